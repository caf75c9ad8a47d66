// SPDX-License-Identifier: GPL-2.0

//! Memory that runs out: each allocation fails once, and then all is as it was. And room that is made when it is needed.

use kernel::{alloc::allow, prelude::*};
use vhost_net_host_tests::{
    cases::messages,
    features::Features,
    log::{Dirty, DirtyList},
    mem::Mem,
    memtable::{
        Access, Ahead, GuestAddr, Hint, Iotlb, Iova, MemTable, Region, Segments, Update, READ_WRITE,
    },
    messages::Misses,
    pair::{Driver, Layout, Pair, Shape},
    ring::Vring,
    uapi,
    usermem::UserAddr,
    vring::{Fault, RingAddrs, Why},
    Tell,
};

/// Calls `f` with no memory, then with memory for one allocation more each time, until it has enough; of what it says else,
/// `check` sees all. Returns how often there was not enough, and what it made.
fn without_memory<T, E>(mut f: impl FnMut() -> Result<T, E>, mut check: impl FnMut(E)) -> (u64, T) {
    for count in 0.. {
        allow(count);
        let got = f();
        allow(u64::MAX);
        match got {
            Ok(made) => return (count, made),
            Err(error) => check(error),
        }
    }
    unreachable!();
}

fn no_memory(error: Error) {
    assert_eq!(error, ENOMEM);
}

#[test]
fn what_is_made_says_so() {
    assert!(without_memory(|| Vring::new(Mem::new()), no_memory).0 > 1);
    assert_eq!(without_memory(Segments::new, no_memory).0, 1);
    assert_eq!(without_memory(DirtyList::new, no_memory).0, 1);
    assert_eq!(without_memory(Ahead::new, no_memory).0, 1);
    assert_eq!(without_memory(Misses::<2>::new, no_memory).0, 2);
    let region = |i: u32| Region {
        guest: GuestAddr::new(u64::from(i) << 12),
        size: 0x1000,
        user: UserAddr::new(u64::from(i) << 12),
    };
    let table = || MemTable::new((0..9).map(region));
    assert_eq!(without_memory(table, no_memory).0, 2);
    let mut iotlb = Iotlb::new(3);
    let update = || iotlb.tell(Iova::new(0), 1, UserAddr::new(0), READ_WRITE);
    assert_eq!(without_memory(update, no_memory).0, 2);
}

/// What is put off needs no memory when it is made, if there was room for it, also if maps go between; at the limit the oldest
/// goes for each.
#[test]
fn catching_up() {
    let update = |i: u64| Update::new(Iova::new(i << 12), 1, UserAddr::new(i), 1).unwrap();
    for (limit, first_of_all) in [(16, 1), (10, 1), (7, 4)] {
        let mut iotlb = Iotlb::new(limit);
        iotlb.update(update(1)).unwrap();
        let made = without_memory(|| iotlb.make_room(9), no_memory).0;
        // Of the three lists that grow one has its room when the others fail.
        assert_eq!((made, iotlb.make_room(9)), (2, Ok(())), "{limit}");
        allow(0);
        let put_off = |iotlb: &mut Iotlb, numbers: core::ops::Range<u64>| {
            iotlb.catch_up(|none| {
                numbers.for_each(|i| none.push_within_capacity(update(i)).unwrap())
            })
        };
        put_off(&mut iotlb, 2..5);
        iotlb.invalidate(Iova::new(2 << 12), 0x1001).unwrap();
        put_off(&mut iotlb, 5..11);
        allow(u64::MAX);
        let (mut out, mut hint) = (Segments::new().unwrap(), Hint::new().unwrap());
        for i in 1..11 {
            let (maps, addr) = (iotlb.maps(), Iova::new(i << 12));
            let found = maps.translate(addr, 1, Access::Read, &mut hint, &mut out);
            let want = i >= first_of_all && i != 2 && i != 3;
            assert_eq!(found.is_ok(), want, "{i} of {limit}");
        }
    }
}

/// A ring of four, with a chain that is completed.
fn ring_of_four() -> (Pair, Driver) {
    let layout = Layout {
        num: 4,
        ..Layout::default()
    };
    let mut pair = Pair::new(layout);
    let mut driver = Driver::new(&pair.layout);
    let one = Shape {
        buffers: vec![(5, 100)],
        readable: 1,
        tables: vec![],
    };
    for _ in 0..2 {
        driver.add(&mut pair, &one);
    }
    driver.expose(&mut pair);
    pair.take(&[7], true).unwrap();
    (pair, driver)
}

#[test]
fn another_size() {
    let (mut pair, _) = ring_of_four();
    let mut fails = 0;
    for num in [8, 4096, 32768] {
        let (ring, before) = (&mut pair.ring, pair.layout.num as u16);
        let as_before = |error| {
            no_memory(error);
            fails += 1;
        };
        let mut tries = 0;
        let set = || {
            // Where it failed before, nothing is forgotten.
            assert!(tries == 0 || num != 8 || (ring.num(), ring.unpublished()) == (before, 1));
            tries += 1;
            ring.set_num(num)
        };
        without_memory(set, as_before);
        assert_eq!((pair.ring.num(), pair.ring.unpublished()), (num as u16, 0));
    }
    // Two lists each, but the largest has no more room than the one before.
    assert_eq!(fails, 4);
}

#[test]
fn another_format() {
    let (mut pair, mut driver) = ring_of_four();
    let packed = Features::of(&[Features::VERSION_1, Features::RING_PACKED]);
    let (count, ()) = without_memory(|| pair.ring.make_room(packed), no_memory);
    assert_eq!(count, 1);
    // Once there is room, there is.
    assert_eq!(
        without_memory(|| pair.ring.make_room(packed), no_memory).0,
        0
    );
    assert_eq!((pair.ring.num(), pair.ring.unpublished()), (4, 1));
    pair.publish().unwrap();
    driver.reap(&mut pair).unwrap();
    // And back, where a packed ring has a size that the split one had not.
    pair.ring.set_features(packed);
    pair.ring.set_num(16).unwrap();
    let split = Features::of(&[Features::VERSION_1]);
    assert_eq!(
        without_memory(|| pair.ring.make_room(split), no_memory).0,
        2
    );
    pair.ring.set_features(split);
    assert_eq!((pair.ring.num(), pair.ring.is_packed()), (16, false));
    // The room of the packed one is gone.
    assert_eq!(
        without_memory(|| pair.ring.make_room(packed), no_memory).0,
        1
    );
}

/// A chain of many pieces, for which room is made when it comes, stays in the ring until there is memory.
#[test]
fn a_chain_of_many_pieces() {
    let mut pair = Pair::new(Layout {
        num: 256,
        ..Layout::default()
    });
    let mut driver = Driver::new(&pair.layout);
    driver.add(
        &mut pair,
        &Shape {
            buffers: vec![(5, 10); 200],
            readable: 200,
            tables: vec![],
        },
    );
    driver.expose(&mut pair);
    let table = pair.layout.table();
    let mut out = Segments::new().unwrap();
    let next = || {
        out.clear();
        let chain = pair.ring.take().next_chain(table.maps(), &mut out, None)?;
        Ok(chain.unwrap().readable)
    };
    let no_room = |fault: Fault| assert_eq!((fault.error, fault.why), (ENOMEM, Why::NoRoom));
    // From 64 to 128, and to 256.
    let (count, readable) = without_memory(next, no_room);
    assert!(count == 2 && readable >= 200, "{count} times, {readable}");
}

/// Where a ring in pieces is, is kept.
#[test]
fn a_ring_in_pieces() {
    let mut ring = Vring::new(Mem::new()).unwrap();
    ring.set_num(4).unwrap();
    ring.set_behind_iotlb(true);
    let [desc, avail, used] = [0x1000, 0x2000, 0x3000].map(UserAddr::new);
    ring.set_addrs(RingAddrs { desc, avail, used });
    let mut iotlb = Iotlb::new(64);
    for i in 0..0x300u64 / 16 {
        let (addr, user) = (0x1000 + 16 * i, 0x10_0000 + 32 * i);
        iotlb
            .tell(Iova::new(addr), 16, UserAddr::new(user), 3)
            .unwrap();
    }
    for addr in [0x2000, 0x3000] {
        iotlb
            .tell(Iova::new(addr), 0x100, UserAddr::new(addr), 3)
            .unwrap();
    }
    let pieces = |fault: Fault| assert_eq!((fault.error, fault.why), (ENOMEM, Why::RingPieces));
    assert_eq!(without_memory(|| ring.find(&iotlb), pieces).0, 1);
}

/// A list of what was written has no room until it is to be logged, and what is in it stays when it has.
#[test]
fn a_list_of_what_was_written() {
    let mut list = DirtyList::without_room().unwrap();
    let range = Dirty {
        addr: GuestAddr::new(1),
        len: 2,
    };
    assert_eq!(list.push(range), Err(ENOBUFS));
    list.make_room().unwrap();
    list.push(range).unwrap();
    list.make_room().unwrap();
    assert_eq!(list.as_slice(), [range]);
}

/// Misses, and a look ahead, have no room until there is an IOTLB, and keep what is in them when there is another.
#[test]
fn misses_when_there_is_an_iotlb() {
    let list = messages::ahead(&[(0x1000, true)], 1);
    let mut misses = Misses::<2>::none();
    misses.wait_for(0, &list, uapi::IOTLB_MSG, false);
    assert!(!misses.is_readable());
    misses.take_room(&mut Misses::new().unwrap());
    misses.wait_for(0, &list, uapi::IOTLB_MSG, false);
    misses.take_room(&mut Misses::new().unwrap());
    assert_eq!(
        misses.read().map(|(message, _)| message.iotlb.iova),
        Some(0x1000)
    );

    let mut ahead = Ahead::none();
    ahead.begin(64);
    ahead.push(messages::miss(0x1000, true));
    assert!(!ahead.needs_any());
    ahead.take_room(&mut Ahead::new().unwrap());
    ahead.begin(64);
    ahead.push(messages::miss(0x1000, true));
    ahead.take_room(&mut Ahead::new().unwrap());
    assert!(ahead.needs_any());
}
