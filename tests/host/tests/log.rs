// SPDX-License-Identifier: GPL-2.0

//! The dirty log, against a bit for each page.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use vhost_net_host_tests::{
    cases::log::{case, check},
    config,
    log::{Dirty, DirtyList, DirtyLog, PAGE_SIZE},
    mem::{Access, Event, Mem, USER_END},
    memtable::{GuestAddr, MemTable, Region, MAX_SEGMENTS},
    model,
    usermem::{Segment, UserAddr, UserMemory},
};

const AREA: u64 = 0x7000_0000;

/// The C driver's `log_access_ok()`, said anew: whether the log of `len` bytes from `addr` is in
/// user space, the byte of the first page and so many more as whole 32 KiB fit.
fn c_access_ok(base: u64, addr: u64, len: u64) -> bool {
    let start = u128::from(base) + u128::from(addr / 0x8000);
    let size = (u128::from(len) + 0x7fff) / 0x8000;
    start <= u128::from(u64::MAX) && start + size <= u128::from(USER_END)
}

fn log(base: u64) -> DirtyLog {
    DirtyLog::new(UserAddr::new(base))
}

/// A log of which the part for pages 512 to 767 is not mapped, and what is wanted of the rest.
fn half_a_log() -> (Mem, Mem) {
    let (mem, want) = (Mem::new(), Mem::new());
    mem.add(AREA, 64, Access::ReadWrite);
    mem.add(AREA + 64, 32, Access::Unmapped);
    mem.add(AREA + 96, 32, Access::ReadWrite);
    want.add(AREA, 128, Access::ReadWrite);
    (mem, want)
}

/// Marks a range of that, up to what is not mapped. Returns whether it is all.
fn mark_what_can_be(want: &Mem, addr: u64, len: u64) -> bool {
    let pages = addr / PAGE_SIZE..(addr + len).div_ceil(PAGE_SIZE);
    for page in pages.filter(|_| len > 0) {
        if (512..768).contains(&page) {
            return false;
        }
        model::mark(want, AREA, page * PAGE_SIZE, 1);
    }
    true
}

/// The parts of it that are mapped.
fn marked(mem: &Mem) -> [Option<Vec<u8>>; 2] {
    [mem.get(AREA, 64), mem.get(AREA + 96, 32)]
}

proptest! {
    #![proptest_config(config(6000))]

    #[test]
    fn sets_the_bit_of_each_page(case in case()) {
        check(&case)?;
    }

    #[test]
    fn stops_where_the_log_is_not_mapped(skew in 0..8u64, page in 0..700u64, pages in 1..200u64) {
        let (mem, want) = (Mem::new(), Mem::new());
        mem.add(AREA, 64, Access::ReadWrite);
        mem.add(AREA + 64, 64, Access::Unmapped);
        want.add(AREA, 128, Access::ReadWrite);
        let base = AREA + skew;
        let page = page.min(900 - pages);
        let got = log(base).mark(&mem, GuestAddr::new(page * PAGE_SIZE), pages * PAGE_SIZE);
        model::mark(&want, base, page * PAGE_SIZE, pages * PAGE_SIZE);
        let fits = skew * 8 + page + pages <= 64 * 8;
        prop_assert_eq!(got, if fits { Ok(()) } else { Err(EFAULT) });
        // All that is mapped is marked.
        prop_assert_eq!(mem.get(AREA, 64), want.get(AREA, 64));
        prop_assert_eq!(mem.violations(), vec![]);
    }

    /// Each guest page behind the user memory, also where the same memory is in several places.
    #[test]
    fn marks_what_is_behind_user_memory(
        regions in vec((0..900u64, 0..4096u64, 1..0x3000u64, 0..0x8000u64), 0..12),
        queries in vec((0..0x9000u64, 1..0x2000u64), 1..5),
    ) {
        // The log of 256 of the guest's pages is not mapped; there are pages on both sides of them.
        let (mem, want) = (Mem::new(), Mem::new());
        mem.add(AREA, 64, Access::ReadWrite);
        mem.add(AREA + 64, 32, Access::Unmapped);
        mem.add(AREA + 96, 32, Access::ReadWrite);
        want.add(AREA, 128, Access::ReadWrite);
        let table = MemTable::new(regions.iter().map(|&(page, offset, size, user)| Region {
            guest: GuestAddr::new(page * PAGE_SIZE + offset),
            size,
            user: UserAddr::new(user),
        }))
        .unwrap();
        for (user, len) in queries {
            let behind: Vec<_> = regions
                .iter()
                .flat_map(|&(page, offset, size, at)| {
                    (0..size).map(move |i| (page * PAGE_SIZE + offset + i, at + i))
                })
                .filter(|(_, at)| (user..user + len).contains(at))
                .map(|(guest, _)| guest)
                .collect();
            for &guest in &behind {
                model::mark(&want, AREA, guest, 1);
            }
            let good = !behind.is_empty() && behind.iter().all(|guest| guest / PAGE_SIZE / 256 != 2);
            let got = log(AREA).mark_user(&mem, &table, UserAddr::new(user), len);
            prop_assert_eq!(got, if good { Ok(()) } else { Err(EFAULT) });
            // All before that is marked.
            prop_assert_eq!(mem.get(AREA, 64), want.get(AREA, 64));
        }
        prop_assert_eq!(mem.violations(), vec![]);
    }

    /// Of a packet's buffers as much as was written, and no more. What can be is marked, also behind a range that can't.
    #[test]
    fn marks_what_was_written_of_a_packet(
        ranges in vec((0..900u64, 0..4096u64, prop_oneof![Just(0), 0..0x3000u64]), 0..6),
        share in 0..5u64,
    ) {
        let (mem, want) = half_a_log();
        let total: u64 = ranges.iter().map(|range| range.2).sum();
        let written = total * share / 4;
        let mut list = DirtyList::new().unwrap();
        let (mut left, mut good) = (written, true);
        for (page, offset, len) in ranges {
            let addr = GuestAddr::new(page * PAGE_SIZE + offset);
            list.push(Dirty { addr, len }).unwrap();
            good &= mark_what_can_be(&want, addr.get(), len.min(left));
            left -= len.min(left);
        }
        let got = log(AREA).mark_packet(&mem, &list, written as usize);
        prop_assert_eq!(got, if good { Ok(()) } else { Err(EFAULT) });
        prop_assert_eq!(marked(&mem), marked(&want));
        // The data before its bits.
        prop_assert_eq!(mem.events()[0], Event::WriteBarrier);
        prop_assert_eq!(mem.violations(), vec![]);
    }

    /// The same of buffers of which the user addresses are known. Those that nothing was written to may be anywhere.
    #[test]
    fn marks_the_guest_memory_of_segments(
        segments in vec((0..0x9000u64, prop_oneof![Just(0), 1..0x3000u64]), 0..6),
        share in 0..5u64,
        page in 0..900u64,
    ) {
        let (mem, want) = half_a_log();
        // Guest memory, and a hole behind it.
        let (size, guest) = (0x6000, page * PAGE_SIZE);
        let region = Region { guest: GuestAddr::new(guest), size, user: UserAddr::new(0) };
        let table = MemTable::new([region].into_iter()).unwrap();
        let total: u64 = segments.iter().map(|segment| segment.1).sum();
        let written = total * share / 4;
        let (mut left, mut good) = (written, true);
        let mut list = vec![];
        for (user, len) in segments {
            list.push(Segment::new(UserAddr::new(user), len).unwrap());
            let now = len.min(left);
            left -= now;
            if now > 0 {
                good &= user < size;
                good &= mark_what_can_be(&want, guest + user, now.min(size.saturating_sub(user)));
            }
        }
        let got = log(AREA).mark_segments(&mem, &table, &list, written as usize);
        prop_assert_eq!(got, if good { Ok(()) } else { Err(EFAULT) });
        prop_assert_eq!(marked(&mem), marked(&want));
        prop_assert_eq!(mem.events()[0], Event::WriteBarrier);
        prop_assert_eq!(mem.violations(), vec![]);
    }

    #[test]
    fn never_panics_and_never_goes_far(
        base in any::<u64>(),
        addr in prop_oneof![any::<u64>(), 0..0x10_0000u64, u64::MAX - 0x10_0000..=u64::MAX],
        len in prop_oneof![0..0x10_0000u64, Just(u64::MAX), any::<u64>()],
    ) {
        // Nothing is mapped: the first word fails.
        let mem = Mem::new();
        let got = log(base).mark(&mem, GuestAddr::new(addr), len);
        prop_assert_eq!(got, if len == 0 { Ok(()) } else { Err(EFAULT) });
        prop_assert!(mem.events().len() <= 1);
        let _ = log(base).access_ok(&mem, GuestAddr::new(addr), len);
    }

    #[test]
    fn access_ok_as_in_c(
        base in prop_oneof![any::<u64>(), 0..USER_END, USER_END - 0x1000..USER_END + 0x1000],
        addr in prop_oneof![any::<u64>(), 0..0x4000_0000u64, Just(0)],
        len in prop_oneof![any::<u64>(), 0..0x800_0000u64, 0..0x1_0001u64],
    ) {
        let got = log(base).access_ok(&Mem::new(), GuestAddr::new(addr), len);
        prop_assert_eq!(got, c_access_ok(base, addr, len));
    }

    #[test]
    fn access_ok_at_its_edge(
        pages in 0..64u64,
        more in prop_oneof![0..2u64, 0..4096u64],
        at in 0..64u64,
        edge in 0..4u64,
    ) {
        let (addr, len) = (at * 0x8000, pages * PAGE_SIZE + more);
        let size = (len + 0x7fff) / 0x8000;
        let base = (USER_END + 1 + 1 - edge).wrapping_sub(size + at);
        let got = log(base).access_ok(&Mem::new(), GuestAddr::new(addr), len);
        prop_assert_eq!(got, edge >= 2);
    }
}

/// What ends where guest memory begins, or begins where it ends, is none.
#[test]
fn beside_guest_memory_is_none() {
    let (mem, user) = (Mem::new(), 0x8000);
    mem.add(AREA, 64, Access::ReadWrite);
    let region = Region {
        guest: GuestAddr::new(0),
        size: 0x1000,
        user: UserAddr::new(user),
    };
    let table = MemTable::new([region].into_iter()).unwrap();
    for (at, len, want) in [
        (user - 1, 1, Err(EFAULT)),
        (user - 1, 2, Ok(())),
        (user + 0xfff, 1, Ok(())),
        (user + 0x1000, 1, Err(EFAULT)),
    ] {
        let got = log(AREA).mark_user(&mem, &table, UserAddr::new(at), len);
        assert_eq!(got, want, "{at:#x}");
    }
}

#[test]
fn the_last_page_of_all() {
    // Its bit is in a byte 2^49 behind the base.
    let mem = Mem::new();
    let base = 0x1000;
    let last = base + (1 << 49) - 1;
    mem.add(last - 7, 8, Access::ReadWrite);
    let addr = GuestAddr::new(u64::MAX);
    assert_eq!(log(base).mark(&mem, addr, 1), Ok(()));
    assert_eq!(mem.get(last - 7, 8).unwrap(), [0, 0, 0, 0, 0, 0, 0, 0x80]);
    assert_eq!(log(base).mark(&mem, addr, 2), Err(EFAULT));
    assert_eq!(
        log(base).mark(&mem, GuestAddr::new(2), u64::MAX),
        Err(EFAULT)
    );
    assert_eq!(mem.get(last - 7, 8).unwrap(), [0, 0, 0, 0, 0, 0, 0, 0x80]);
    assert_eq!(mem.violations(), []);
}

#[test]
fn a_log_does_not_go_around_the_address_space() {
    let mem = Mem::new();
    mem.add(0, 64, Access::ReadWrite);
    mem.add(u64::MAX - 63, 63, Access::ReadWrite);
    assert_eq!(
        log(u64::MAX).mark(&mem, GuestAddr::new(0x8_0000), 1),
        Err(EFAULT)
    );
    assert_eq!(mem.get(0, 64).unwrap(), vec![0; 64]);
    assert!(!log(u64::MAX).access_ok(&mem, GuestAddr::new(0x8_0000), 1));
}

#[test]
fn a_list_holds_1024_ranges() {
    let mut list = DirtyList::new().unwrap();
    let range = |i: usize| Dirty {
        addr: GuestAddr::new(i as u64),
        len: 1,
    };
    for i in 0..MAX_SEGMENTS {
        assert_eq!(list.push(range(i)), Ok(()));
    }
    assert_eq!(list.push(range(0)), Err(ENOBUFS));
    assert_eq!(list.as_slice().len(), MAX_SEGMENTS);
    assert_eq!(list.as_slice()[1023], range(1023));
    list.clear();
    assert_eq!(list.push(range(7)), Ok(()));
    assert_eq!(list.as_slice(), [range(7)]);
    assert!((&Mem::new()).access_ok(UserAddr::new(0), 1));
}
