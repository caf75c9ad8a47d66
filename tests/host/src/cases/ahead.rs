// SPDX-License-Identifier: GPL-2.0

//! What a device finds when it looks ahead, in a ring of any content, behind an IOTLB that knows some of it.

use super::hostile::{self, Guest};
use crate::{
    mem::{number_of, Event},
    memtable::{Access, Ahead, Iova, Miss, MAX_AHEAD},
    model::ModelRegion,
    pair::{Pair, Shake, Step, F_INDIRECT, F_NEXT, F_WRITE},
    vring::Wanted,
};
use proptest::{collection::vec, prelude::*};

#[derive(Clone, Debug)]
pub struct Case {
    pub guest: Guest,
    pub offered: u16,
    /// The first chain is taken before.
    pub taken: bool,
    /// The ring is found before the look.
    pub found: bool,
    /// Regions that the IOTLB forgets.
    pub forgotten: Vec<u16>,
    pub first: (u64, bool),
    pub wanted: Wanted,
}

pub fn case() -> impl Strategy<Value = Case> {
    (
        hostile::guest(),
        any::<u64>(),
        (1..80u16, any::<[bool; 2]>(), vec(any::<u16>(), 0..8)),
        (prop_oneof![0..0x6000u64, any::<u64>()], any::<bool>()),
        (0..500u64, 0..5u16),
    )
        .prop_map(
            |(guest, seed, (offered, flags, forgotten), first, wanted)| {
                let mut guest = guest;
                guest.layout.behind.get_or_insert(seed);
                Case {
                    guest,
                    offered,
                    taken: flags[0],
                    found: flags[1],
                    forgotten,
                    first,
                    wanted: Wanted {
                        bytes: wanted.0,
                        chains: wanted.1,
                    },
                }
            },
        )
}

/// The most reads of a look: an entry and a descriptor each, and these in pieces.
const MOST_READS: u64 = 2 * 512 + 64;

/// It finds what a list finds, or the first part of that if it is too much, and touches nothing.
pub fn check(case: &Case) -> Step {
    let mut pair = hostile::fill(&case.guest);
    let num = pair.layout.num as u16;
    let idx = pair.layout.avail() + 2;
    pair.put_u16(idx, pair.ring.base().wrapping_add(case.offered.min(num)));
    if case.taken {
        pair.find()?;
        pair.take(&[0], true)?;
    }
    for which in &case.forgotten {
        pair.shake(Shake::Forget, *which)?;
    }
    if case.found {
        pair.find()?;
    }
    let iotlb = pair.iotlb.as_ref().unwrap();
    let found = pair.ring.find(iotlb).is_ok();
    let first = miss(case.first.0, case.first.1);

    let (base, unpublished) = (pair.ring.base(), pair.ring.unpublished());
    pair.mem.events();
    pair.mem.reads();
    let mut ahead = Ahead::new().unwrap();
    ahead.begin(iotlb.limit());
    ahead.push(first);
    pair.ring.look_ahead(iotlb, case.wanted, &mut ahead);
    let (reads, _) = pair.mem.reads();
    prop_assert!(reads <= MOST_READS, "{} reads", reads);
    for event in pair.mem.events() {
        let written = matches!(event, Event::Write { .. } | Event::SetBits { .. });
        prop_assert!(!written, "{:?}", event);
    }
    prop_assert_eq!(pair.mem.violations(), vec![]);
    prop_assert_eq!(
        (pair.ring.base(), pair.ring.unpublished()),
        (base, unpublished)
    );

    let mut model = Model {
        pair: &pair,
        list: vec![(first, true)],
        beyond: false,
        hides: false,
        steps: 0,
    };
    if found {
        model.chains(case.wanted);
    } else {
        model.ring();
    }
    let got: Vec<_> = ahead.iter().collect();
    prop_assert!(got.len() <= MAX_AHEAD);
    prop_assert_eq!(&got[..], &model.list[..got.len().min(model.list.len())]);
    // Half of what it may do is enough for this.
    if model.steps < 256 {
        prop_assert_eq!(got.len(), model.list.len().min(MAX_AHEAD));
        if got.len() < MAX_AHEAD {
            prop_assert_eq!(ahead.hides_any(), model.hides);
        }
    }
    Ok(())
}

fn miss(addr: u64, write: bool) -> Miss {
    Miss {
        addr: Iova::new(addr),
        access: if write { Access::Write } else { Access::Read },
    }
}

/// What is missing, by a look at each byte's region.
struct Model<'a> {
    pair: &'a Pair,
    list: Vec<(Miss, bool)>,
    beyond: bool,
    /// Of what is needed next, not all can be looked at.
    hides: bool,
    steps: u64,
}

impl Model<'_> {
    fn region(&self, addr: u64) -> Option<&ModelRegion> {
        let regions = self.pair.regions.iter();
        regions
            .filter(|region| region.perm.is_some())
            .find(|region| region.byte(u128::from(addr)).is_some())
    }

    /// Whether any of the range is missing. More than can be told is not looked for.
    fn range(&mut self, addr: u64, len: u64, write: bool) -> bool {
        let end = (u128::from(addr) + u128::from(len)).min(1 << 64);
        let (mut at, mut any) = (u128::from(addr), false);
        while at < end && self.list.len() <= MAX_AHEAD {
            self.steps += 1;
            if let Some(region) = self.region(at as u64) {
                at = u128::from(region.guest) + region.size;
                continue;
            }
            any = true;
            let miss = miss(at as u64, write);
            let same = |(old, _): &(Miss, bool)| {
                old.addr.get() / 4096 == miss.addr.get() / 4096 && old.access == miss.access
            };
            if !self.list.iter().any(same) {
                self.list.push((miss, !self.beyond));
            }
            at = (at / 4096 + 1) * 4096;
        }
        any
    }

    fn ring(&mut self) {
        self.hides = true;
        let layout = &self.pair.layout;
        let num = u64::from(layout.num);
        let event = if layout.event_idx { 2 } else { 0 };
        self.range(layout.desc(), 16 * num, false);
        self.range(layout.avail(), 4 + 2 * num + event, false);
        self.range(layout.used(), 4 + 8 * num + event, true);
    }

    fn number(&self, addr: u64, len: u64) -> Option<u64> {
        let bytes = self.pair.get(addr, len)?;
        Some(number_of(&bytes, self.pair.layout.endian()))
    }

    fn chains(&mut self, wanted: Wanted) {
        let (layout, model) = (&self.pair.layout, &self.pair.model);
        let num = layout.num as u16;
        let mut index = model.last_avail;
        let mut next = model.next_desc.filter(|_| layout.in_order);
        let end = self.number(layout.avail() + 2, 2).unwrap() as u16;
        if end.wrapping_sub(index) > num {
            return;
        }
        let (mut bytes, mut count) = (0, 0);
        while index != end {
            let entry = layout.avail() + 4 + 2 * u64::from(index % num);
            let head =
                next.map_or_else(|| self.number(entry, 2).unwrap() as u16, |next| next % num);
            if head >= num {
                return;
            }
            let mut at = head;
            let mut descs = 0;
            loop {
                self.steps += 1;
                let Some((len, flags, after)) = self.desc(layout.desc() + 16 * u64::from(at), true)
                else {
                    return;
                };
                bytes += len;
                descs += 1;
                if flags & F_NEXT == 0 {
                    break;
                }
                if after >= num || descs == num {
                    return;
                }
                at = after;
            }
            count += 1;
            if count >= wanted.chains || bytes >= wanted.bytes {
                self.beyond = true;
            }
            if layout.in_order {
                next = Some(head.wrapping_add(descs));
            }
            index = index.wrapping_add(1);
        }
    }

    /// Looks at a descriptor. Returns the bytes of its buffers, its flags and the next one.
    fn desc(&mut self, at: u64, tables: bool) -> Option<(u64, u16, u16)> {
        let addr = self.number(at, 8)?;
        let len = self.number(at + 8, 4)?;
        let flags = self.number(at + 12, 2)? as u16;
        let next = self.number(at + 14, 2)? as u16;
        if flags & F_INDIRECT == 0 {
            self.range(addr, len, flags & F_WRITE != 0);
            return Some((len, flags, next));
        }
        if !tables || len % 16 != 0 || len / 16 > 0x1_0000 {
            return None;
        }
        if self.range(addr, len, false) {
            self.hides |= !self.beyond;
            self.beyond = true;
            return Some((0, flags, next));
        }
        self.may_be_read(addr, len)?;
        let mut bytes = 0;
        for i in 0..len / 16 {
            self.steps += 1;
            let (more, inner, _) = self.desc(addr + 16 * i, false)?;
            bytes += more;
            if inner & F_NEXT == 0 {
                return Some((bytes, flags, next));
            }
        }
        None
    }

    /// Whether a table that is mapped may be read, and does not go past the end of the address space.
    fn may_be_read(&self, addr: u64, len: u64) -> Option<()> {
        let mut at = u128::from(addr);
        while at < u128::from(addr) + u128::from(len) {
            let region = self.region(u64::try_from(at).ok()?)?;
            if region.perm? & 1 == 0 {
                return None;
            }
            at = u128::from(region.guest) + region.size;
        }
        Some(())
    }
}
