// SPDX-License-Identifier: GPL-2.0

//! The ring with a driver that keeps the rules, against the model of a device.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use vhost_net_host_tests::{
    config,
    mem::{Access, Event, Mem, USER_END},
    pair::{shake, Driver, Layout, Pair, Shake, Shape, Step, F_INDIRECT, F_NEXT, SPAN},
    ring::Vring,
    usermem::UserAddr,
    vring::{Endian, RingAddrs, Split, MAX_NUM},
};

#[derive(Clone, Debug)]
enum Op {
    /// The driver adds a chain, and makes available what it added.
    Add(Shape, bool),
    /// The device takes chains, one for each length, and completes them or not.
    Take(Vec<u32>, bool),
    Publish,
    WantsCall,
    /// The driver asks for calls, or for none.
    AvailFlags(u16),
    /// The driver asks to be called so far from its last used entry.
    UsedEvent(i16),
    DisableKicks,
    EnableKicks,
    IsEmpty,
    Reap,
    /// Chains go through one after the other.
    Burst(u16),
    Log(bool),
    Logged,
    Resume(bool),
    Shake(Shake, u16),
}

fn shape() -> impl Strategy<Value = Shape> {
    let len = prop_oneof![Just(0), 1..64u16, 0..0x1800u16];
    (
        vec((any::<u16>(), len), 1..12),
        0..12usize,
        vec(prop_oneof![3 => Just(0), 2 => 1..20usize], 0..8),
    )
        .prop_map(|(buffers, readable, tables)| Shape {
            buffers,
            readable,
            tables,
        })
}

/// How many bytes the device says it wrote; nothing, as a device that only reads.
fn written() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), any::<u32>()]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (shape(), any::<bool>()).prop_map(|(shape, expose)| Op::Add(shape, expose)),
        8 => (vec(written(), 1..5), proptest::bool::weighted(0.7))
            .prop_map(|(written, complete)| Op::Take(written, complete)),
        4 => Just(Op::Publish),
        4 => Just(Op::WantsCall),
        2 => any::<u16>().prop_map(Op::AvailFlags),
        2 => (-6..7i16).prop_map(Op::UsedEvent),
        2 => Just(Op::DisableKicks),
        2 => Just(Op::EnableKicks),
        1 => Just(Op::IsEmpty),
        4 => Just(Op::Reap),
        1 => (1..80u16).prop_map(Op::Burst),
        1 => any::<bool>().prop_map(Op::Log),
        1 => Just(Op::Logged),
        1 => any::<bool>().prop_map(Op::Resume),
        6 => (shake(), any::<u16>()).prop_map(|(shake, which)| Op::Shake(shake, which)),
    ]
}

fn layout() -> impl Strategy<Value = Layout> {
    (
        prop_oneof![20 => 0..9u32, 1 => 9..16u32],
        (any::<[bool; 4]>(), any::<Option<u64>>()),
        vec(0..0x4000u16, 0..12),
        any::<u8>(),
        prop_oneof![0..0x700_0000u32, 0xff0..0x1010u32],
        any::<[u16; 2]>(),
    )
        .prop_map(
            |(shift, (flags, behind), cuts, skew, log_addr, bases)| Layout {
                num: 1 << shift,
                big_endian: flags[0],
                event_idx: flags[1],
                notify_on_empty: flags[2],
                in_order: flags[3],
                cuts,
                behind,
                skew,
                log_addr,
                avail_base: bases[0],
                used_base: bases[1],
            },
        )
}

fn run(pair: &mut Pair, driver: &mut Driver, op: &Op) -> Step {
    match op {
        Op::Add(shape, expose) => {
            driver.add(pair, shape);
            if *expose {
                driver.expose(pair);
            }
        }
        Op::Take(written, complete) => {
            let (found, error) = pair.take(written, *complete)?;
            prop_assert_eq!(error, None);
            driver.check_taken(pair, &found, *complete)?;
        }
        Op::Publish => pair.publish()?,
        Op::WantsCall => pair.wants_call()?,
        Op::AvailFlags(flags) => pair.put_u16(pair.layout.avail(), *flags),
        Op::UsedEvent(delta) => {
            if let Some(at) = pair.used_event() {
                let event = pair.model.last_used.wrapping_add_signed(*delta);
                pair.put_u16(at, event);
            }
        }
        Op::DisableKicks => pair.disable_kicks()?,
        Op::EnableKicks => pair.enable_kicks()?,
        Op::IsEmpty => pair.is_empty()?,
        Op::Reap => driver.reap(pair)?,
        Op::Burst(count) => {
            let small = Shape {
                buffers: vec![(17, 60), (3, 1500)],
                readable: 1,
                tables: vec![0],
            };
            for i in 0..*count {
                driver.add(pair, &small);
                driver.expose(pair);
                let (found, _) = pair.take(&[u32::from(i), 9], true)?;
                driver.check_taken(pair, &found, true)?;
                if i % 3 == 0 {
                    pair.publish()?;
                    driver.reap(pair)?;
                }
            }
        }
        Op::Log(on) => pair.set_log(*on)?,
        Op::Logged => pair.logged()?,
        Op::Resume(another) => {
            pair.publish()?;
            pair.resume(*another)?;
        }
        Op::Shake(shake, which) => pair.shake(*shake, *which)?,
    }
    Ok(())
}

/// All that was made available comes back, once.
fn drain(pair: &mut Pair, driver: &mut Driver) -> Step {
    driver.expose(pair);
    for _ in 0..=pair.layout.num {
        let (found, error) = pair.take(&[1; 8], true)?;
        prop_assert_eq!(error, None);
        driver.check_taken(pair, &found, true)?;
        pair.publish()?;
        driver.reap(pair)?;
        if found.is_empty() {
            break;
        }
    }
    prop_assert_eq!(driver.in_flight(), 0, "a chain was lost");
    prop_assert!(pair.ring.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn does_as_the_model(layout in layout(), ops in vec(op(), 1..70)) {
        let mut pair = Pair::new(layout);
        let mut driver = Driver::new(&pair.layout);
        for op in &ops {
            run(&mut pair, &mut driver, op)?;
        }
        drain(&mut pair, &mut driver)?;
    }

    /// Publishes whole batches, so that the used ring wraps in the midst of one.
    #[test]
    fn batches_wrap(
        layout in layout(),
        batches in vec((1..300usize, any::<bool>()), 1..8),
        log in any::<bool>(),
    ) {
        let mut pair = Pair::new(layout);
        let mut driver = Driver::new(&pair.layout);
        pair.set_log(log)?;
        let one = Shape { buffers: vec![(5, 100)], readable: 0, tables: vec![] };
        for (count, complete) in batches {
            while driver.in_flight() < count && driver.add(&mut pair, &one) {}
            driver.expose(&mut pair);
            let lens: Vec<u32> = (0..count as u32).collect();
            let (found, _) = pair.take(&lens, complete)?;
            driver.check_taken(&pair, &found, complete)?;
            pair.publish()?;
            pair.wants_call()?;
            driver.reap(&mut pair)?;
        }
        drain(&mut pair, &mut driver)?;
    }
}

proptest! {
    #![proptest_config(config(60))]

    /// So many chains that the 16-bit indices go around between two questions about a call.
    #[test]
    fn indices_go_around(mut layout in layout(), shift in 8..16u32, ask in 1..90usize) {
        layout.num = 1 << shift;
        layout.event_idx = true;
        let mut pair = Pair::new(layout);
        let mut driver = Driver::new(&pair.layout);
        let one = Shape { buffers: vec![(5, 100)], readable: 1, tables: vec![] };
        pair.wants_call()?;
        let at = pair.used_event().unwrap();
        // The memories are large: what is compared at each step is the index, and at last all.
        let mut published = 0usize;
        for i in 1..100usize {
            for _ in 0..900 {
                if !driver.add(&mut pair, &one) {
                    break;
                }
            }
            driver.expose(&mut pair);
            let (found, _) = pair.take(&[1; 900], true)?;
            driver.check_taken(&pair, &found, true)?;
            published += found.len();
            pair.publish()?;
            driver.reap(&mut pair)?;
            if i % ask == 0 {
                pair.put_u16(at, pair.model.last_used.wrapping_sub(i as u16 * 16));
                pair.wants_call()?;
            }
            if published > 70_000 {
                break;
            }
        }
        pair.wants_call()?;
        drain(&mut pair, &mut driver)?;
    }
}

fn small(num: u32) -> Layout {
    Layout {
        num,
        event_idx: true,
        log_addr: 0x1000,
        ..Layout::default()
    }
}

fn one() -> Shape {
    Shape {
        buffers: vec![(5, 100)],
        readable: 1,
        tables: vec![],
    }
}

#[test]
fn sizes_are_powers_of_two() {
    let mut ring = Vring::new(Mem::new()).unwrap();
    for num in (0..70_000).chain([1 << 20, 1 << 31, u32::MAX]) {
        let valid = num != 0 && num <= 0x8000 && num.count_ones() == 1;
        let before = ring.num();
        assert_eq!(ring.set_num(num), if valid { Ok(()) } else { Err(EINVAL) });
        let after = if valid { num as u16 } else { before };
        assert_eq!(ring.num(), after);
    }
    assert_eq!(MAX_NUM, 0x8000);
}

#[test]
fn access_ok_is_for_the_whole_ring() {
    for num in [1u32, 2, 256, 32768] {
        for event_idx in [false, true] {
            let mut layout = small(num);
            layout.event_idx = event_idx;
            let mut ring = Vring::new(Mem::new()).unwrap();
            ring.set_num(num).unwrap();
            ring.set_features(layout.features());
            let event = if event_idx { 2 } else { 0 };
            let sizes = [16 * num, 4 + 2 * num + event, 4 + 8 * num + event].map(u64::from);
            assert_eq!(ring.used_size(), sizes[2]);
            assert!(ring.access_ok(RingAddrs::default()));
            for part in 0..3 {
                for beyond in [0, 1, 1 << 50] {
                    let mut at = [0; 3];
                    at[part] = USER_END - sizes[part] + beyond;
                    let addrs = RingAddrs {
                        desc: UserAddr::new(at[0]),
                        avail: UserAddr::new(at[1]),
                        used: UserAddr::new(at[2]),
                    };
                    assert_eq!(ring.access_ok(addrs), beyond == 0);
                }
            }
        }
    }
}

#[test]
fn a_start_that_fails_changes_nothing() {
    let mut pair = Pair::new(small(4));
    let used = pair.layout.used();
    let mut driver = Driver::new(&pair.layout);
    for part in [used..used + 2, used + 2..used + 4] {
        pair.mem.fail(part);
        let got = pair.ring.start(Endian::Big, None);
        assert_eq!(got.map_err(|fault| fault.error), Err(EFAULT));
        pair.mem.heal();
    }
    // It is still little-endian, and where it was.
    driver.add(&mut pair, &one());
    driver.expose(&mut pair);
    drain(&mut pair, &mut driver).unwrap();
}

#[test]
fn a_publish_that_fails_is_tried_again() {
    for (from, to) in [(2, 4), (4, 8), (4 + 8 * 3, 4 + 8 * 4), (4, 12)] {
        let mut layout = small(4);
        layout.used_base = 2;
        let mut pair = Pair::new(layout);
        let mut driver = Driver::new(&pair.layout);
        for _ in 0..3 {
            driver.add(&mut pair, &one());
        }
        driver.expose(&mut pair);
        let (found, _) = pair.take(&[7, 8, 9], true).unwrap();
        driver.check_taken(&pair, &found, true).unwrap();

        let used = pair.layout.used();
        pair.mem.fail(used + from..used + to);
        for _ in 0..2 {
            let got = pair.ring.publish();
            assert_eq!(got.map_err(|fault| fault.error), Err(EFAULT));
            assert_eq!(pair.ring.unpublished(), 3);
        }
        pair.mem.heal();
        assert_eq!(pair.mem.get_u16(used + 2, Endian::Little), 2);
        pair.publish().unwrap();
        driver.reap(&mut pair).unwrap();
        drain(&mut pair, &mut driver).unwrap();
    }
}

#[test]
fn memory_that_fails_is_efault() {
    // The available flags, index, event; the used flags and event.
    for event_idx in [false, true] {
        let mut layout = small(4);
        layout.event_idx = event_idx;
        let (avail, used) = (layout.avail(), layout.used());
        let mut pair = Pair::new(layout);
        let mut driver = Driver::new(&pair.layout);
        pair.wants_call().unwrap();
        for range in [
            avail..avail + 2,
            avail + 2..avail + 4,
            avail + 12..avail + 14,
        ] {
            for mem in [&pair.mem, &pair.model.mem] {
                mem.fail(range.clone());
            }
            pair.wants_call().unwrap();
            pair.is_empty().unwrap();
            pair.enable_kicks().unwrap();
            pair.disable_kicks().unwrap();
            pair.take(&[1], true).unwrap();
            for mem in [&pair.mem, &pair.model.mem] {
                mem.heal();
            }
        }
        for range in [used..used + 2, used + 36..used + 38] {
            for mem in [&pair.mem, &pair.model.mem] {
                mem.fail(range.clone());
            }
            pair.enable_kicks().unwrap();
            pair.disable_kicks().unwrap();
            for mem in [&pair.mem, &pair.model.mem] {
                mem.heal();
            }
        }
        driver.add(&mut pair, &one());
        drain(&mut pair, &mut driver).unwrap();
    }
}

#[test]
fn set_base_forgets() {
    let mut pair = Pair::new(small(8));
    let mut driver = Driver::new(&pair.layout);
    for _ in 0..8 {
        driver.add(&mut pair, &one());
    }
    driver.expose(&mut pair);
    let (first, _) = pair.take(&[1, 2, 3], true).unwrap();
    assert_eq!((pair.ring.base(), pair.ring.unpublished()), (3, 3));
    pair.ring.set_base(1);
    assert_eq!((pair.ring.base(), pair.ring.unpublished()), (1, 0));
    // It goes on at 1, with a fresh look at the ring.
    let table = pair.layout.table();
    let entry = pair.layout.avail() + 4 + 2 * 2;
    let other = pair.mem.get_u16(entry + 2, Endian::Little);
    pair.mem.put_u16(entry, other, Endian::Little);
    let mut take = pair.ring.take();
    let mut next = || {
        take.next_chain(table.maps(), &mut pair.out, None)
            .unwrap()
            .unwrap()
            .head
    };
    assert_eq!([next(), next()], [first[1].head, other]);
}

#[test]
fn a_drop_without_a_chain_changes_nothing() {
    let mut pair = Pair::new(small(2));
    let mut take = pair.ring.take();
    take.set_written(5);
    assert_eq!(take.chains(), 0);
    drop(take);
    assert_eq!((pair.ring.base(), pair.ring.unpublished()), (0, 0));
    // Nor does a word about a chain of an earlier packet.
    let mut driver = Driver::new(&pair.layout);
    driver.add(&mut pair, &one());
    driver.expose(&mut pair);
    pair.take(&[77], true).unwrap();
    pair.ring.take().set_written(5);
    pair.publish().unwrap();
    driver.reap(&mut pair).unwrap();
}

#[test]
fn entries_are_read_together() {
    let mut pair = Pair::new(small(256));
    let mut driver = Driver::new(&pair.layout);
    while driver.add(&mut pair, &one()) {}
    driver.expose(&mut pair);
    let (avail, mut reads) = (pair.layout.avail(), 0);
    let mut take = pair.ring.take();
    pair.mem.events();
    for _ in 0..256 {
        take.next_chain(pair.table.maps(), &mut pair.out, None)
            .unwrap()
            .unwrap();
    }
    for event in pair.mem.events() {
        if let Event::Read { addr, .. } = event {
            reads += usize::from((avail..avail + 1000).contains(&addr));
        }
    }
    assert!(reads <= 1 + 256 / 64, "{reads} reads of the available ring");
}

#[test]
fn a_fault_in_the_log_is_not_the_driver_s() {
    use vhost_net_host_tests::{log::DirtyLog, memtable::GuestAddr, vring::UsedLog};
    let mut pair = Pair::new(small(2));
    pair.mem.add(0x10_0000, 0x1000, Access::Unmapped);
    pair.ring.set_used_log(Some(UsedLog {
        log: DirtyLog::new(UserAddr::new(0x10_0000)),
        addr: GuestAddr::new(0),
        mem: None,
    }));
    let mut driver = Driver::new(&pair.layout);
    driver.add(&mut pair, &one());
    drain(&mut pair, &mut driver).unwrap();
    assert!(pair.ring.logged());
    assert!(pair.ring.log_failed());
    assert!(!pair.ring.log_failed());
}

/// One more region of guest memory, for tables.
fn add_region(pair: &mut Pair, user: u64, guest: u64, size: u64) {
    for mem in [&pair.mem, &pair.model.mem] {
        mem.add(user, size, Access::Read);
    }
    let region = vhost_net_host_tests::model::ModelRegion::new(guest, u128::from(size), user);
    pair.regions.push(region);
    pair.table = vhost_net_host_tests::pair::table(&pair.regions);
}

#[test]
fn the_longest_indirect_table() {
    // 65536 descriptors, only the last with a buffer; and one more than that.
    let mut pair = Pair::new(small(2));
    let (user, guest) = (0x900_0000_0000, 0x40_0000);
    add_region(&mut pair, user, guest, 0x10_0010);
    let mut table: Vec<u8> = pair.desc(0, 0, F_NEXT, 0).repeat(0xffff);
    table.extend(pair.desc(SPAN.start, 10, 0, 0));
    pair.put(user, &table);
    for (len, want) in [
        (0x10_0000, None),
        (0x10_0010, Some(E2BIG)),
        (0x0f_fff0, Some(EINVAL)),
    ] {
        let raw = pair.desc(guest, len, 4, 0);
        pair.put(pair.layout.desc(), &raw);
        pair.put_u16(pair.layout.avail() + 2, 1);
        let (found, error) = pair.take(&[0], false).unwrap();
        assert_eq!(error, want);
        assert_eq!(found.len(), usize::from(want.is_none()));
    }
}

/// As many empty buffers as a ring and a table have, in tables, are a chain; with one more it is refused, and
/// no more is read than that.
#[test]
fn the_longest_chain() {
    let most = MAX_NUM + 0x1_0000;
    let mut pair = Pair::new(small(MAX_NUM));
    let (user, guest, size) = (0x900_0000_0000, 0x40_0000, 0x10_0000u64);
    add_region(&mut pair, user, guest, size);
    let mut table: Vec<u8> = pair.desc(0, 0, F_NEXT, 0).repeat(0xffff);
    table.extend(pair.desc(0, 0, 0, 0));
    pair.put(user, &table);
    pair.put_u16(pair.layout.avail() + 2, 1);

    // Tables that end where all of them do: so many descriptors in the first, then whole tables, over and over.
    let rest = most - 0x1_0000;
    for (first, tables, want) in [
        (rest, 2, Ok(most)),
        (rest + 1, 2, Err(EINVAL)),
        (0x1_0000, MAX_NUM, Err(EINVAL)),
    ] {
        for i in 0..tables {
            let count = if i == 0 { first } else { 0x1_0000 };
            let more = if i + 1 < tables { F_NEXT } else { 0 };
            let addr = guest + size - 16 * u64::from(count);
            let raw = pair.desc(addr, 16 * count, F_INDIRECT | more, i as u16 + 1);
            pair.put(pair.layout.desc() + 16 * u64::from(i), &raw);
        }
        pair.mem.reads();
        let mut take = pair.ring.take();
        let got = take.next_chain(pair.table.maps(), &mut pair.out, None);
        let got = got.map(|chain| chain.unwrap().descriptors);
        assert_eq!(got.map_err(|fault| fault.error), want);
        drop(take);
        // The index and the entry, the descriptors of the tables, and the one too many.
        let (reads, _) = pair.mem.reads();
        assert!(reads <= u64::from(most) + 1 + 2 + 3, "{reads} reads");
        assert_eq!(pair.ring.base(), 0);
    }

    // And so many chains of a packet: whole tables again, each a chain of its own, all with one head.
    let raw = pair.desc(guest, size as u32, F_INDIRECT, 0);
    pair.put(pair.layout.desc(), &raw);
    pair.put_u16(pair.layout.avail() + 2, 1000);
    let mut take = pair.ring.take();
    let mut next = || take.next_chain(pair.table.maps(), &mut pair.out, None);
    assert_eq!(next().map(|chain| chain.unwrap().descriptors), Ok(0x1_0000));
    assert_eq!(next().map_err(|fault| fault.error), Err(EINVAL));
    drop(take);
    assert_eq!(pair.ring.base(), 0);
}

/// Chains that are used in order: where the entries are, and what they say.
#[test]
fn in_order_entries() {
    let mut layout = small(16);
    (layout.in_order, layout.avail_base, layout.used_base) = (true, 12, 14);
    let mut pair = Pair::new(layout);
    let mut driver = Driver::new(&pair.layout);
    // Chains of two descriptors: their heads are 12, 14, 0, 2, 4, and so on.
    let two = Shape {
        buffers: vec![(5, 100), (7, 10)],
        readable: 0,
        tables: vec![],
    };
    while driver.add(&mut pair, &two) {}
    driver.expose(&mut pair);
    for written in [&[0][..], &[0], &[50, 60], &[0, 0], &[0]] {
        pair.take(written, true).unwrap();
        // Taken once and given back, a chain is the next one again.
        pair.take(&[9, 9], false).unwrap();
    }
    assert_eq!((pair.ring.base(), pair.ring.unpublished()), (19, 7));
    let used = pair.layout.used();
    let entry = |pair: &Pair, slot: u64| {
        let at = |offset| {
            pair.mem
                .get_u32(used + 4 + 8 * slot + offset, Endian::Little)
        };
        (at(0), at(4))
    };
    pair.publish().unwrap();
    // Two packets of which nothing was written; one over two chains; two more in three chains.
    let mut want = [(0, 0); 16];
    (want[14], want[0], want[2]) = ((14, 0), (2, 60), (8, 0));
    for (slot, want) in want.into_iter().enumerate() {
        assert_eq!(entry(&pair, slot as u64), want, "the entry at {slot}");
    }
    assert_eq!(pair.mem.get_u16(used + 2, Endian::Little), 21);
    assert_eq!(pair.ring.unpublished(), 0);
    driver.reap(&mut pair).unwrap();
}

/// Whether the order of use counts is known before anything is taken: when it changes, what was completed is
/// forgotten.
#[test]
fn another_order_forgets() {
    let mut pair = Pair::new(small(8));
    let mut driver = Driver::new(&pair.layout);
    for _ in 0..4 {
        driver.add(&mut pair, &one());
    }
    driver.expose(&mut pair);
    let features = pair.layout.features();
    pair.take(&[1, 2], true).unwrap();
    pair.ring.set_features(features);
    assert_eq!(pair.ring.unpublished(), 2);
    pair.layout.in_order = true;
    pair.ring.set_features(pair.layout.features());
    assert_eq!(pair.ring.unpublished(), 0);
    let used = pair.layout.used();
    pair.ring.publish().unwrap();
    assert_eq!(pair.mem.get_u16(used + 2, Endian::Little), 0);
}

#[test]
fn a_start_forgets_the_last_call() {
    let mut pair = Pair::new(small(4));
    let at = pair.used_event().unwrap();
    pair.put_u16(at, 100);
    assert_eq!(pair.ring.wants_call(), Ok(true));
    assert_eq!(pair.ring.wants_call(), Ok(false));
    pair.ring.start(Endian::Little, None).unwrap();
    assert_eq!(pair.ring.wants_call(), Ok(true));
}

/// What was completed is still there after another start, and after a word about features that change nothing.
#[test]
fn a_start_forgets_no_chain() {
    let mut pair = Pair::new(small(4));
    let mut driver = Driver::new(&pair.layout);
    driver.add(&mut pair, &one());
    driver.expose(&mut pair);
    let (found, _) = pair.take(&[7], true).unwrap();
    driver.check_taken(&pair, &found, true).unwrap();
    let features = pair.layout.features();
    pair.ring.make_room(features).unwrap();
    pair.ring.set_features(features);
    pair.ring.start(Endian::Little, None).unwrap();
    assert_eq!(pair.ring.unpublished(), 1);
    pair.publish().unwrap();
    driver.reap(&mut pair).unwrap();
    drain(&mut pair, &mut driver).unwrap();
}

/// Entries that were read ahead are read again when that is asked for, or when the ring is elsewhere.
#[test]
fn entries_are_forgotten() {
    for elsewhere in [false, true] {
        let mut pair = Pair::new(small(8));
        let mut driver = Driver::new(&pair.layout);
        for _ in 0..4 {
            driver.add(&mut pair, &one());
        }
        driver.expose(&mut pair);
        let (table, avail) = (pair.layout.table(), pair.layout.avail());
        let next = |pair: &mut Pair| {
            let mut take = pair.ring.take();
            let chain = take.next_chain(table.maps(), &mut pair.out, None).unwrap();
            take.complete();
            chain.unwrap().head
        };
        next(&mut pair);
        let last = pair.mem.get_u16(avail + 4 + 2 * 3, Endian::Little);
        pair.mem.put_u16(avail + 4 + 2, last, Endian::Little);
        if elsewhere {
            let addrs = pair.ring.addrs();
            pair.ring.set_addrs(addrs);
        } else {
            pair.ring.forget_heads();
        }
        assert_eq!(next(&mut pair), last);
    }
}

/// Nothing of what was set up is left.
#[test]
fn a_reset_ring_is_a_new_one() {
    let mut layout = small(4);
    layout.big_endian = true;
    let mut pair = Pair::new(layout);
    let mut driver = Driver::new(&pair.layout);
    pair.set_log(true).unwrap();
    driver.add(&mut pair, &one());
    driver.expose(&mut pair);
    pair.take(&[7], true).unwrap();
    pair.disable_kicks().unwrap();
    pair.publish().unwrap();
    let addrs = pair.ring.addrs();
    pair.ring.reset();
    assert_eq!(pair.ring.addrs(), RingAddrs::default());
    assert_eq!((pair.ring.num(), pair.ring.endian()), (1, Endian::NATIVE));
    assert_eq!((pair.ring.base(), pair.ring.used_idx()), (0, 0));
    assert!(!pair.ring.is_quiet() && !pair.ring.logged() && !pair.ring.log_failed());
    // And it logs nothing.
    pair.ring.set_addrs(addrs);
    pair.ring.start(Endian::Little, None).unwrap();
    assert!(!pair.ring.logged());
    // It is where it is said to be, in user memory.
    pair.ring.set_behind_iotlb(true);
    pair.ring.reset();
    pair.ring.set_addrs(addrs);
    assert_eq!(pair.ring.start(Endian::Little, None), Ok(()));
}

/// The ring for who knows its format is the same ring.
#[test]
fn in_a_format() {
    let mut layout = small(4);
    layout.big_endian = true;
    let mut pair = Pair::new(layout);
    let mut driver = Driver::new(&pair.layout);
    for _ in 0..4 {
        driver.add(&mut pair, &one());
    }
    driver.expose(&mut pair);
    let (table, mem) = (pair.layout.table(), pair.mem.clone());
    let mut ring = pair.ring.in_format::<Split>();
    assert_eq!(ring.endian(), Endian::Big);
    for i in 1..=2 {
        let mut take = ring.take(&mem);
        assert_eq!((take.num(), take.chains(), take.descriptors()), (4, 0, 0));
        let chain = take.next_chain(table.maps(), &mut pair.out, None).unwrap();
        assert_eq!(chain.unwrap().descriptors, 1);
        assert_eq!((take.chains(), take.descriptors()), (1, 1));
        take.complete();
        assert_eq!((ring.unpublished(), ring.any().unpublished()), (i, i));
    }
    // Each chain has its own descriptors, of a packet that has more.
    let mut take = ring.take(&mem);
    for i in 1..=2 {
        let chain = take.next_chain(table.maps(), &mut pair.out, None).unwrap();
        assert_eq!((chain.unwrap().descriptors, take.descriptors()), (1, i));
        assert_eq!(take.is_last(), i == 2);
    }
}

/// Chains that nothing counts in come back as empty, each by itself, also in order; those before them as they were.
#[test]
fn chains_that_come_back_empty() {
    for in_order in [false, true] {
        let mut layout = small(8);
        layout.in_order = in_order;
        let mut pair = Pair::new(layout);
        let mut driver = Driver::new(&pair.layout);
        for _ in 0..4 {
            driver.add(&mut pair, &one());
        }
        driver.expose(&mut pair);
        let table = pair.layout.table();
        let mut want = vec![];
        for packet in [&[5][..], &[7, 8]] {
            let mut take = pair.ring.take();
            for &len in packet {
                let chain = take.next_chain(table.maps(), &mut pair.out, None).unwrap();
                take.set_written(len);
                want.push((chain.unwrap().head, if packet.len() == 1 { len } else { 0 }));
            }
            if packet.len() == 1 {
                take.complete();
            } else {
                take.complete_empty();
            }
        }
        assert_eq!(pair.ring.unpublished(), 3);
        pair.ring.publish().unwrap();
        let used = pair.layout.used();
        assert_eq!(pair.mem.get_u16(used + 2, Endian::Little), 3);
        for (slot, (head, len)) in want.into_iter().enumerate() {
            let at = used + 4 + 8 * slot as u64;
            let entry = (
                pair.mem.get_u16(at, Endian::Little),
                pair.mem.get_u32(at + 4, Endian::Little),
            );
            assert_eq!(entry, (head, len), "{slot}, in order: {in_order}");
        }
    }
}
