// SPDX-License-Identifier: GPL-2.0

//! Writes to guest memory that go to the dirty log.

use crate::{
    log::{DirtyLog, PAGE_SIZE},
    mem::{Access, Mem},
    memtable::GuestAddr,
    model,
    pair::Step,
    usermem::UserAddr,
};
use proptest::{collection::vec, prelude::*};

const AREA: u64 = 0x7000_0000;
const AREA_SIZE: u64 = 256;

/// A log `skew` bytes into an area that is full of `noise`; a page, an offset in it and a length for each range.
#[derive(Clone, Debug)]
pub struct Case {
    skew: u64,
    noise: Vec<u8>,
    ranges: Vec<(u64, u64, u64)>,
}

pub fn case() -> impl Strategy<Value = Case> {
    (
        0..32u64,
        vec(any::<u8>(), AREA_SIZE as usize),
        vec(
            (
                0..1500u64,
                0..4096u64,
                prop_oneof![0..3u64, 0..0x30_0000u64],
            ),
            1..6,
        ),
    )
        .prop_map(|(skew, noise, ranges)| Case {
            skew,
            noise,
            ranges,
        })
}

/// The bit of each page is set, and no other.
pub fn check(
    Case {
        skew,
        noise,
        ranges,
    }: &Case,
) -> Step {
    let (mem, want) = (Mem::new(), Mem::new());
    for mem in [&mem, &want] {
        mem.add(AREA, AREA_SIZE, Access::ReadWrite);
        mem.put(AREA, noise);
    }
    let base = AREA + skew;
    for &(page, offset, len) in ranges {
        // The log ends 16 bytes before the area.
        let pages = (AREA_SIZE - 32 - 16) * 8;
        let addr = (page % pages) * PAGE_SIZE + offset;
        let len = len.min(pages * PAGE_SIZE - addr);
        prop_assert_eq!(
            DirtyLog::new(UserAddr::new(base)).mark(&mem, GuestAddr::new(addr), len),
            Ok(())
        );
        model::mark(&want, base, addr, len);
        prop_assert_eq!(mem.get(AREA, AREA_SIZE), want.get(AREA, AREA_SIZE));
    }
    prop_assert_eq!(mem.violations(), vec![]);
    Ok(())
}
