// SPDX-License-Identifier: GPL-2.0

//! The ring behind an IOTLB, where it differs from one that is not: what it does while it does not know where
//! it is, and what it can't do. That nothing else differs is in `ring` and `hostile`.

use kernel::{prelude::*, sync::Arc};
use proptest::prelude::*;
use vhost_net_host_tests::{
    config,
    log::DirtyLog,
    mem::{Access, Event, Mem},
    memtable::{self, GuestAddr, Iotlb, Iova, MemTable, Miss, Region, Segments, READ_WRITE},
    pair::{Driver, Layout, Pair, Shake, Shape},
    ring::Vring,
    usermem::UserAddr,
    vring::{Endian, Fault, RingAddrs, UsedLog},
    Tell,
};

fn layout(num: u32, seed: u64) -> Layout {
    Layout {
        num,
        behind: Some(seed),
        cuts: vec![0x10, 0x1009],
        skew: 3,
        ..Layout::default()
    }
}

fn one() -> Shape {
    Shape {
        buffers: vec![(5, 100), (9, 100)],
        readable: 1,
        tables: vec![],
    }
}

/// All that was made available comes back.
fn drain(pair: &mut Pair, driver: &mut Driver) {
    driver.expose(pair);
    let (found, error) = pair.take(&[1; 8], true).unwrap();
    assert_eq!(error, None);
    driver.check_taken(pair, &found, true).unwrap();
    pair.publish().unwrap();
    driver.reap(pair).unwrap();
    assert_eq!(driver.in_flight(), 0);
}

/// What makes the ring forget where it is.
#[derive(Clone, Copy, Debug)]
enum Lost {
    /// A piece of it that the IOTLB no longer knows, or that may no longer be used.
    Missing(u16, bool),
    Num,
    Addrs,
    Features,
    Behind,
    Start,
    Reset,
}

fn lost() -> impl Strategy<Value = Lost> {
    prop_oneof![
        6 => (any::<u16>(), any::<bool>()).prop_map(|(which, all)| Lost::Missing(which, all)),
        1 => Just(Lost::Num),
        1 => Just(Lost::Addrs),
        1 => Just(Lost::Features),
        1 => Just(Lost::Behind),
        1 => Just(Lost::Start),
        1 => Just(Lost::Reset),
    ]
}

proptest! {
    #![proptest_config(config(2000))]

    /// A ring that does not know where it is touches no part that it has not found, and writes nothing.
    #[test]
    fn what_is_not_found_is_not_touched(
        shift in 1..6u32,
        seed in any::<u64>(),
        event_idx in any::<bool>(),
        in_order in any::<bool>(),
        log in any::<bool>(),
        lost in lost(),
    ) {
        let mut pair = Pair::new(Layout { event_idx, in_order, ..layout(1 << shift, seed) });
        let mut driver = Driver::new(&pair.layout);
        pair.tell_all();
        driver.add(&mut pair, &one());
        driver.expose(&mut pair);
        pair.take(&[5], true)?;
        pair.disable_kicks()?;
        pair.set_log(log)?;
        driver.add(&mut pair, &one());
        driver.expose(&mut pair);
        let mut unknown = Vec::new();
        match lost {
            Lost::Missing(which, all) => {
                let ring: Vec<_> = (0..pair.regions.len())
                    .filter(|&i| pair.layout.is_ring(pair.regions[i].guest))
                    .collect();
                let index = ring[usize::from(which) % ring.len()];
                let shake = if all { Shake::Forget } else { Shake::Forbid(0) };
                pair.shake(shake, index as u16)?;
                let region = pair.regions[index];
                unknown.push(region.user..region.user + region.size as u64);
                let fault = pair.ring.find(pair.iotlb.as_ref().unwrap()).unwrap_err();
                let write = region.guest >= pair.layout.used();
                let access = if write { memtable::Access::Write } else { memtable::Access::Read };
                let miss = Miss { addr: Iova::new(region.guest), access };
                prop_assert_eq!(fault.miss(), all.then_some(miss));
                prop_assert_eq!(fault.error, if all { EFAULT } else { EPERM });
            }
            other => {
                let addrs = pair.ring.addrs();
                match other {
                    Lost::Num => pair.ring.set_num(pair.layout.num).unwrap(),
                    Lost::Addrs => pair.ring.set_addrs(addrs),
                    Lost::Features => pair.ring.set_features(pair.layout.features()),
                    Lost::Behind => pair.ring.set_behind_iotlb(true),
                    Lost::Start => pair.ring.start(Endian::Little, pair.iotlb.as_ref()).unwrap(),
                    _ => {
                        pair.ring.reset();
                        pair.ring.set_behind_iotlb(true);
                        pair.ring.set_addrs(addrs);
                    }
                }
                unknown.extend(pair.regions.iter().map(|r| r.user..r.user + r.size as u64));
            }
        }

        pair.mem.events();
        let (base, unpublished) = (pair.ring.base(), pair.ring.unpublished());
        let maps = pair.iotlb.as_ref().unwrap().maps();
        let _ = pair.ring.take().next_chain(maps, &mut pair.out, None);
        pair.ring.is_empty();
        prop_assert!(pair.ring.publish().is_err());
        let _ = pair.ring.wants_call();
        let _ = pair.ring.wants_call();
        let _ = pair.ring.enable_kicks();
        let _ = pair.ring.disable_kicks();
        for event in pair.mem.events() {
            match event {
                Event::Read { addr, .. } => {
                    prop_assert!(unknown.iter().all(|range| !range.contains(&addr)));
                }
                Event::Write { .. } | Event::SetBits { .. } => prop_assert!(false, "{:?}", event),
                _ => {}
            }
        }
        prop_assert_eq!(pair.mem.violations(), vec![]);
        prop_assert_eq!((pair.ring.base(), pair.ring.unpublished()), (base, unpublished));
    }
}

/// A start that fails, for want of a part of the used ring or for memory that is not there, changes nothing.
#[test]
fn a_start_that_fails_changes_nothing() {
    for (from, count, unmapped) in [(0, 2, true), (2, 2, true), (0, 4, false)] {
        let mut pair = Pair::new(layout(4, 7));
        let mut driver = Driver::new(&pair.layout);
        pair.tell_all();
        driver.add(&mut pair, &one());
        driver.expose(&mut pair);
        let (found, _) = pair.take(&[5], true).unwrap();
        driver.check_taken(&pair, &found, true).unwrap();
        let used = pair.layout.used();
        if unmapped {
            let user = pair.place_of(used + from);
            pair.mem.fail(user..user + count);
        } else {
            let first = (0..pair.regions.len())
                .find(|&i| pair.regions[i].guest == used)
                .unwrap();
            pair.shake(Shake::Forget, first as u16).unwrap();
        }
        let fault = pair
            .ring
            .start(Endian::Big, pair.iotlb.as_ref())
            .unwrap_err();
        assert_eq!(fault.error, EFAULT);
        assert_eq!(fault.miss().is_some(), !unmapped);
        assert_eq!(pair.ring.endian(), Endian::Little);
        assert_eq!(pair.ring.unpublished(), 1);
        pair.mem.heal();
        // It is still little-endian, and where it was.
        driver.add(&mut pair, &one());
        pair.publish().unwrap();
        drain(&mut pair, &mut driver);
    }
}

/// A ring of `num` at 0x1000, 0x10000 and 0x20000 of the driver's addresses.
fn by_hand(mem: &Mem, num: u32) -> Vring<Mem> {
    let mut ring = Vring::new(mem.clone()).unwrap();
    ring.set_num(num).unwrap();
    ring.set_behind_iotlb(true);
    ring.set_addrs(RingAddrs {
        desc: UserAddr::new(0x1000),
        avail: UserAddr::new(0x1_0000),
        used: UserAddr::new(0x2_0000),
    });
    ring
}

/// An IOTLB that knows these: the driver's address, the size, and the user address of each.
fn knows(maps: &[(u64, u64, u64)]) -> Iotlb {
    let mut iotlb = Iotlb::new(2048);
    for &(addr, size, user) in maps {
        let (addr, user) = (Iova::new(addr), UserAddr::new(user));
        iotlb.tell(addr, size, user, READ_WRITE).unwrap();
    }
    iotlb
}

/// A field whose two bytes don't lie together can't be read in one access. It is not read at all.
#[test]
fn a_field_in_two_pieces() {
    let mem = Mem::new();
    for start in [0x50_0000, 0x60_0000, 0x70_0000] {
        mem.add(start, 0x1000, Access::ReadWrite);
    }
    let out_of_reach = |got: Result<(), Fault>| {
        let fault = got.unwrap_err();
        assert_eq!((fault.error, fault.miss()), (EFAULT, None));
    };
    let (desc, used) = ((0x1000, 64, 0x50_0000), (0x2_0000, 36, 0x70_0000));
    // The index of the available ring, or an entry.
    for cut in [3, 5] {
        let (one, two) = (
            (0x1_0000, cut, 0x60_0000),
            (0x1_0000 + cut, 12 - cut, 0x60_0100),
        );
        let iotlb = knows(&[desc, one, two, used]);
        let mut ring = by_hand(&mem, 4);
        ring.start(Endian::Little, Some(&iotlb)).unwrap();
        ring.find(&iotlb).unwrap();
        mem.put_u16(0x60_0000 + 2, 1, Endian::Little);
        mem.events();
        let mut out = Segments::new().unwrap();
        let got = ring.take().next_chain(iotlb.maps(), &mut out, None);
        out_of_reach(got.map(|_| ()));
        let reads = mem
            .events()
            .iter()
            .filter(|e| matches!(e, Event::Read { .. }))
            .count();
        assert_eq!(reads, usize::from(cut > 4));
    }
    // The used ring's flags, or its index.
    for cut in [1, 3] {
        let (one, two) = (
            (0x2_0000, cut, 0x70_0000),
            (0x2_0000 + cut, 36 - cut, 0x70_0100),
        );
        let iotlb = knows(&[desc, (0x1_0000, 12, 0x60_0000), one, two]);
        out_of_reach(by_hand(&mem, 4).start(Endian::Little, Some(&iotlb)));
    }
    assert_eq!(mem.violations(), []);
}

/// The ring's parts have room for as many pieces as a chain.
#[test]
fn a_ring_in_too_many_pieces() {
    for (size, want) in [(2, None), (1, Some(ENOBUFS))] {
        // 2048 bytes of descriptors, the first two in pieces of `size`.
        let mut maps: Vec<_> = (0..1024)
            .map(|i| (0x1000 + 2 * i, 2, 0x50_0000 + 4 * i))
            .collect();
        maps[0].1 = size;
        maps.push((0x1001, 1, 0x60_0000));
        maps.extend([
            (0x1_0000, 4 + 256, 0x70_0000),
            (0x2_0000, 4 + 1024, 0x80_0000),
        ]);
        let mut ring = by_hand(&Mem::new(), 128);
        let got = ring.find(&knows(&maps)).err();
        assert_eq!(
            got.map(|fault| (fault.error, fault.miss())),
            want.map(|error| (error, None))
        );
    }
}

/// The log can't have what is not the guest's, and a guest may never do without its ring for that.
#[test]
fn a_used_ring_that_is_not_guest_memory() {
    let log = 0x90_0000;
    for (mem_table, failed) in [(None, true), (Some(0x1000), true), (Some(0), false)] {
        let mut pair = Pair::new(layout(2, 11));
        let mut driver = Driver::new(&pair.layout);
        pair.tell_all();
        pair.mem.add(log, 0x1000, Access::ReadWrite);
        let used = pair.layout.used();
        let size = pair.layout.used_size();
        // Each piece of it, or what is far behind it.
        let table = mem_table.map(|ahead| {
            let pieces = pair.regions.iter();
            let pieces: Vec<_> = pieces
                .filter(|region| (used..used + size).contains(&region.guest))
                .map(|region| Region {
                    guest: GuestAddr::new(region.guest - used),
                    size: region.size as u64,
                    user: UserAddr::new(region.user + (ahead << 16)),
                })
                .collect();
            Arc::new(MemTable::new(pieces.into_iter()).unwrap())
        });
        pair.ring.set_used_log(Some(UsedLog {
            log: DirtyLog::new(UserAddr::new(log)),
            addr: GuestAddr::new(0),
            mem: table,
        }));
        driver.add(&mut pair, &one());
        drain(&mut pair, &mut driver);
        assert!(pair.ring.logged());
        assert_eq!(pair.ring.log_failed(), failed);
        assert!(!pair.ring.log_failed());
        let marked = pair.mem.get(log, 1).unwrap()[0] == 1;
        assert_eq!(marked, !failed);
    }
}
