// SPDX-License-Identifier: GPL-2.0

//! The device IOTLB, against a list of what the owner said.

use kernel::prelude::*;
use proptest::prelude::*;
use vhost_net_host_tests::{
    cases::iotlb::{case, check},
    config,
    memtable::{self, Access, Hint, Iotlb, Iova, Segments, Update},
    messages::{Misses, MAX_LATE},
    usermem::UserAddr,
    Tell,
};

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn does_as_the_list(case in case()) {
        check(&case)?;
    }
}

/// As many as it may have, and one more: the oldest goes, not the one that starts first.
#[test]
fn the_oldest_goes() {
    let mut iotlb = Iotlb::new(3);
    let has = |iotlb: &Iotlb, addr| {
        let mut out = Segments::new().unwrap();
        let addr = Iova::new(addr);
        iotlb
            .maps()
            .translate(addr, 1, Access::Read, &mut Hint::new().unwrap(), &mut out)
            .is_ok()
    };
    let starts = [0x3000, 0x1000, 0x2000, 0x4000, 0x500];
    for (i, start) in starts.iter().enumerate() {
        iotlb
            .tell(Iova::new(*start), 0x100, UserAddr::new(0), 1)
            .unwrap();
        for (j, start) in starts.iter().enumerate() {
            assert_eq!(has(&iotlb, *start), j <= i && j + 3 > i, "{j} after {i}");
        }
    }
}

/// What is put off is made in its order when the IOTLB catches up, each time for as many as there is room for; what is forgotten
/// is not.
#[test]
fn catches_up() {
    let mut misses = Misses::<2>::new().unwrap();
    let mut iotlb = Iotlb::new(MAX_LATE + 1);
    iotlb.make_room(MAX_LATE).unwrap();
    let user = |iotlb: &Iotlb, addr| {
        let (mut out, mut hint) = (Segments::new().unwrap(), Hint::new().unwrap());
        let maps = iotlb.maps();
        maps.translate(Iova::new(addr), 1, Access::Read, &mut hint, &mut out)
            .ok()?;
        Some(out.as_slice()[0].addr().get())
    };
    let update = |addr, user| Update::new(Iova::new(addr), 1, UserAddr::new(user), 1).unwrap();
    for round in 1..4u64 {
        iotlb.update(update(round << 32, 7)).unwrap();
        for i in 0..MAX_LATE as u64 {
            assert!(misses.put_off(update(0x1000 * (round + i / 2), round << 20 | i)));
            assert!(misses.has_late());
        }
        assert!(!misses.put_off(update(0, 0)));
        iotlb.invalidate(Iova::new(0), 1 << 32).unwrap();
        let generation = iotlb.generation();
        iotlb.catch_up(|none| misses.take_late(none));
        assert!(!misses.has_late() && iotlb.generation() != generation);
        // Of two that start together it is the one that was told first.
        for i in 0..MAX_LATE as u64 / 2 {
            let want = Some(round << 20 | 2 * i);
            assert_eq!(user(&iotlb, 0x1000 * (round + i)), want, "{i} in {round}");
        }
        // There was room for one beside them: those of the rounds before are gone.
        for old in 1..4 {
            let want = (old == round).then_some(7);
            assert_eq!(user(&iotlb, old << 32), want, "{old} in {round}");
        }
    }
    let forget: [fn(&mut Misses<2>); 2] = [Misses::forget_late, Misses::close];
    for forget in forget {
        assert!(misses.put_off(update(0x50, 9)));
        forget(&mut misses);
        assert!(!misses.has_late());
        iotlb.catch_up(|none| misses.take_late(none));
        assert_eq!(user(&iotlb, 0x50), None);
    }
    for (addr, size) in [(1, 0), (2, u64::MAX), (u64::MAX, 2)] {
        let got = Update::new(Iova::new(addr), size, UserAddr::new(0), 1);
        assert_eq!(got.err(), Some(EFAULT), "{size} from {addr}");
    }
}

proptest! {
    #![proptest_config(config(4000))]

    /// What is said to change nothing changes nothing: each address that was known is where it was, and may be used as before.
    #[test]
    fn changes_nothing(
        maps in proptest::collection::vec((0..64u64, 1..32u64, 0..4u32, 1..4u8), 0..8),
        block in (0..64u64, 1..32u64, 0..4u32),
    ) {
        let mut iotlb = Iotlb::new(100);
        let mut grain = u64::MAX;
        let update = |(first, count, shift, perm): (u64, u64, u32, u8), user| {
            Update::new(Iova::new(first << shift), count << shift, UserAddr::new(user), perm).unwrap()
        };
        for (i, &map) in maps.iter().enumerate() {
            let update = update(map, (i as u64) << 32);
            let (first, end) = (map.0 << map.2, (map.0 + map.1) << map.2);
            let own = update.grain();
            prop_assert!(own.is_power_of_two() && first % own == 0 && end % own == 0);
            prop_assert!(first % (2 * own) != 0 || end % (2 * own) != 0);
            grain = grain.min(own);
            iotlb.update(update).unwrap();
        }
        let all = |iotlb: &Iotlb| {
            (0..1024).map(|addr| {
                [Access::Read, Access::Write].map(|access| {
                    let (mut out, mut hint) = (Segments::new().unwrap(), Hint::new().unwrap());
                    let got = iotlb.maps().translate(Iova::new(addr), 1, access, &mut hint, &mut out);
                    got.map(|()| out.as_slice()[0].addr().get())
                })
            }).collect::<Vec<_>>()
        };
        let before = all(&iotlb);
        let new = update((block.0, block.1, block.2, 3), 7 << 32);
        let nothing = new.changes_nothing(grain);
        // A page among pages is.
        let size = block.1 << block.2;
        let aligned = size.is_power_of_two() && (block.0 << block.2) % size == 0;
        prop_assert_eq!(nothing, aligned && size <= grain);
        iotlb.update(new).unwrap();
        for (old, new) in before.iter().zip(all(&iotlb)).filter(|_| nothing) {
            let unmapped = matches!(old[0], Err(memtable::Refused::Unmapped(_)));
            prop_assert!(unmapped || *old == new, "{:?} {:?}", old, new);
        }
    }
}

/// Also a map of which only the first address, or the last, is in what is taken back.
#[test]
fn an_end_is_enough_to_be_taken_back() {
    for (start, size, stays) in [
        (0x10f, 1, false),
        (0x10f, 0x20, false),
        (0x110, 0x20, true),
        (0xf0, 0x11, false),
        (0xf0, 0x10, true),
    ] {
        let mut iotlb = Iotlb::new(4);
        (iotlb.tell(Iova::new(0x100), 0x10, UserAddr::new(0), 3)).unwrap();
        iotlb.invalidate(Iova::new(start), size).unwrap();
        let mut out = Segments::new().unwrap();
        let (first, mut hint) = (Iova::new(0x100), Hint::new().unwrap());
        let got = (iotlb.maps()).translate(first, 1, Access::Read, &mut hint, &mut out);
        assert_eq!(got.is_ok(), stays, "{size:#x} from {start:#x}");
    }
}

/// Nothing that covers all 2^64 addresses can be said, but all except one.
#[test]
fn nearly_all_of_the_address_space() {
    let mut iotlb = Iotlb::new(2);
    let mut update = |first, size| iotlb.tell(Iova::new(first), size, UserAddr::new(first), 3);
    assert_eq!(update(0, 0), Err(EFAULT));
    assert_eq!(update(1, 0), Err(EFAULT));
    assert_eq!(update(2, u64::MAX), Err(EFAULT));
    assert_eq!(update(1, u64::MAX), Ok(()));
    assert_eq!(update(0, u64::MAX), Ok(()));
    let mut out = Segments::new().unwrap();
    let last_two = Iova::new(u64::MAX - 1);
    let mut hint = Hint::new().unwrap();
    let got = (iotlb.maps()).translate(last_two, 2, Access::Read, &mut hint, &mut out);
    assert_eq!(got, Ok(()));
    assert_eq!(out.len(), 2);
}
