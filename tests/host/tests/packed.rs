// SPDX-License-Identifier: GPL-2.0

//! A packed ring with a driver that keeps the rules, against the model of a device; and its set-up.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use vhost_net_host_tests::{
    config,
    features::Features,
    log::DirtyLog,
    mem::{Access, Event, Mem, USER_END},
    memtable::{self, Ahead, GuestAddr, Iotlb, Iova, Miss, Segments, READ_WRITE},
    packed::{
        Layout, Pair, Shape, What, BY_PLACE, DESC, DEVICE, DISABLE, DRIVER, ENABLE, F_AVAIL,
        F_INDIRECT, F_NEXT, F_USED, F_WRITE, GUEST, LOG, RING_GUEST,
    },
    pair::Step,
    ring::Vring,
    usermem::UserAddr,
    vring::{Endian, Fault, RingAddrs, UsedLog, Wanted, Why},
    Tell,
};

#[derive(Clone, Debug)]
enum Op {
    Add(Shape),
    /// The device takes chains, one for each length, as a packet.
    Take(Vec<u32>, What),
    CompleteDeferred(usize),
    Publish,
    WantsCall,
    AskForCalls(u16, i32),
    DisableKicks,
    EnableKicks,
    Reap,
    /// Chains go through one after the other.
    Burst(u16),
    Resume(bool),
    Log(bool),
}

fn shape() -> impl Strategy<Value = Shape> {
    let len = prop_oneof![Just(0), 1..64u16, 0..0x1800u16];
    (vec((any::<u16>(), len), 1..9), 0..9usize, any::<bool>()).prop_map(
        |(buffers, readable, indirect)| Shape {
            buffers,
            readable,
            indirect,
        },
    )
}

fn written() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), any::<u32>()]
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        6 => Just(What::Complete),
        1 => Just(What::CompleteEmpty),
        2 => Just(What::PutBack),
        3 => Just(What::Defer),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        9 => shape().prop_map(Op::Add),
        6 => (vec(written(), 1..5), what()).prop_map(|(written, what)| Op::Take(written, what)),
        3 => any::<usize>().prop_map(Op::CompleteDeferred),
        4 => Just(Op::Publish),
        3 => Just(Op::WantsCall),
        3 => (prop_oneof![6 => 0..3u16, 1 => any::<u16>()], -9..10i32)
            .prop_map(|(flags, delta)| Op::AskForCalls(flags, delta)),
        2 => Just(Op::DisableKicks),
        3 => Just(Op::EnableKicks),
        4 => Just(Op::Reap),
        1 => (1..90u16).prop_map(Op::Burst),
        1 => any::<bool>().prop_map(Op::Resume),
        1 => any::<bool>().prop_map(Op::Log),
    ]
}

fn layout() -> impl Strategy<Value = Layout> {
    let num = prop_oneof![
        4 => 1..9u32,
        4 => 9..70u32,
        1 => Just(256),
        1 => 70..2000u32,
        1 => prop_oneof![Just(32768), Just(32767), 2000..32768u32],
    ];
    (num, any::<[bool; 2]>(), any::<u32>(), any::<bool>()).prop_map(
        |(num, [event_idx, in_order], start, fresh)| Layout {
            num,
            event_idx,
            in_order,
            start: if fresh {
                0
            } else {
                u64::from(start) % (4 * u64::from(num))
            },
        },
    )
}

fn small() -> Shape {
    Shape {
        buffers: vec![(17, 60), (3, 1500)],
        readable: 1,
        indirect: false,
    }
}

fn one() -> Shape {
    Shape {
        buffers: vec![(5, 100)],
        readable: 0,
        indirect: false,
    }
}

fn run(pair: &mut Pair, op: &Op) -> Step {
    match op {
        Op::Add(shape) => {
            pair.add(shape)?;
        }
        Op::Take(written, what) => {
            pair.take(written, *what)?;
        }
        Op::CompleteDeferred(which) => pair.complete_deferred(*which),
        Op::Publish => pair.publish()?,
        Op::WantsCall => pair.wants_call()?,
        Op::AskForCalls(flags, delta) => pair.ask_for_calls(*flags, *delta),
        Op::DisableKicks => pair.disable_kicks()?,
        Op::EnableKicks => pair.enable_kicks()?,
        Op::Reap => pair.reap()?,
        Op::Burst(count) => {
            for i in 0..*count {
                pair.add(&small())?;
                pair.take(&[u32::from(i), 9], What::Complete)?;
                if i % 3 == 0 {
                    pair.publish()?;
                    pair.reap()?;
                }
            }
        }
        Op::Resume(dpdk) => pair.resume(*dpdk)?,
        Op::Log(on) => pair.set_log(*on),
    }
    pair.check()
}

proptest! {
    #![proptest_config(config(2500))]

    #[test]
    fn does_as_the_model(layout in layout(), ops in vec(op(), 1..70)) {
        let mut pair = Pair::new(layout);
        for op in &ops {
            run(&mut pair, op)?;
        }
        pair.drain()?;
    }

    /// Whole batches, so that the ring wraps in the midst of one, and calls are by place.
    #[test]
    fn batches_wrap(
        layout in layout(),
        batches in vec((1..300usize, what(), shape(), -3..300i32), 1..9),
        log in any::<bool>(),
    ) {
        let mut pair = Pair::new(layout);
        pair.set_log(log);
        for (count, what, shape, delta) in batches {
            while pair.in_flight() < count && pair.add(&shape)?.is_some() {}
            pair.ask_for_calls(BY_PLACE, delta);
            let lens: Vec<u32> = (0..count as u32).collect();
            for lens in lens.chunks(7) {
                pair.take(lens, what)?;
            }
            pair.complete_deferred(count);
            pair.publish()?;
            pair.wants_call()?;
            pair.reap()?;
            pair.check()?;
        }
        pair.drain()?;
    }
}

/// The device sleeps when there is nothing, and each chain that is added then has it kicked: also when
/// chains that are too few were put back.
#[test]
fn nobody_sleeps_for_ever() {
    for event_idx in [false, true] {
        for num in [1, 2, 3, 7, 64] {
            let mut pair = Pair::new(Layout {
                num,
                event_idx,
                in_order: false,
                start: 0,
            });
            pair.disable_kicks().unwrap();
            for i in 0..50 {
                pair.enable_kicks().unwrap();
                pair.add(&one()).unwrap();
                if i % 3 == 0 {
                    // Not enough for a packet.
                    assert!(pair.take(&[0; 5], What::PutBack).unwrap() > 0);
                    pair.disable_kicks().unwrap();
                    pair.enable_kicks().unwrap();
                    if num > 1 {
                        pair.add(&one()).unwrap();
                    }
                }
                pair.disable_kicks().unwrap();
                while pair.take(&[1], What::Complete).unwrap() > 0 {}
                pair.publish().unwrap();
                pair.reap().unwrap();
                pair.check().unwrap();
            }
        }
    }
}

fn small_ring(num: u32) -> Layout {
    Layout {
        num,
        event_idx: true,
        in_order: false,
        start: 0,
    }
}

#[test]
fn every_size_up_to_the_most() {
    let layout = small_ring(1);
    let mut ring = Vring::new(Mem::new()).unwrap();
    assert_eq!(ring.set_num(3), Err(EINVAL));
    ring.make_room(layout.features()).unwrap();
    ring.set_features(layout.features());
    for num in (0..40_000).chain([1 << 16, 1 << 31, u32::MAX]) {
        let valid = num > 0 && num <= 0x8000;
        let before = ring.num();
        assert_eq!(ring.set_num(num), if valid { Ok(()) } else { Err(EINVAL) });
        assert_eq!(ring.num(), if valid { num as u16 } else { before });
    }
}

#[test]
fn another_format_forgets_all_but_where_and_how_large() {
    let packed = small_ring(8).features();
    let split = Features::of(&[Features::VERSION_1]);
    let mut ring = Vring::new(Mem::new()).unwrap();
    ring.set_num(8).unwrap();
    ring.set_vring_base(77).unwrap();
    ring.make_room(packed).unwrap();
    // Room changes nothing.
    assert_eq!((ring.vring_base(), ring.is_packed()), (77, false));
    ring.set_features(packed);
    assert!(ring.is_packed());
    assert_eq!((ring.num(), ring.vring_base()), (8, 0x8000_8000));
    ring.set_vring_base(0x8005_0003).unwrap();
    // The same features again change nothing.
    ring.set_features(packed);
    assert_eq!((ring.base(), ring.used_idx()), (3, 0x8005));
    ring.set_features(split);
    assert_eq!((ring.num(), ring.vring_base(), ring.used_idx()), (8, 0, 0));
    // A size that the other format can't have.
    ring.make_room(packed).unwrap();
    ring.set_features(packed);
    ring.set_num(6).unwrap();
    ring.set_features(split);
    assert_eq!(ring.num(), 1);
    assert_eq!(ring.set_vring_base(0x1_0000), Err(EINVAL));
    ring.set_features(packed);
    ring.make_room(packed).unwrap();
    ring.set_num(100).unwrap();
    ring.reset();
    assert!(!ring.is_packed());
    assert_eq!((ring.num(), ring.vring_base()), (1, 0));
}

/// What a chain was deferred from decides whether it comes back: not the number that it has there.
#[test]
fn deferred_chains_of_another_format_are_forgotten() {
    let mut pair = Pair::new(small_ring(4));
    let features = pair.layout.features();
    pair.add(&one()).unwrap();
    let mut take = pair.ring.take();
    let mut out = Segments::new().unwrap();
    let table = pair.layout.table();
    take.next_chain(table.maps(), &mut out, None)
        .unwrap()
        .unwrap();
    let deferred = take.defer().unwrap();
    pair.ring.set_features(Features::of(&[Features::VERSION_1]));
    pair.ring.complete_deferred(deferred);
    assert_eq!(pair.ring.unpublished(), 0);

    // The same with one of the same format, when it was another meanwhile.
    let mut pair = Pair::new(small_ring(4));
    pair.add(&one()).unwrap();
    let mut take = pair.ring.take();
    take.next_chain(table.maps(), &mut out, None)
        .unwrap()
        .unwrap();
    let deferred = take.defer().unwrap();
    pair.ring.set_features(Features::of(&[Features::VERSION_1]));
    pair.ring.make_room(features).unwrap();
    pair.ring.set_features(features);
    pair.ring.complete_deferred(deferred);
    assert_eq!(pair.ring.unpublished(), 0);
}

/// At the start, also without the upper half, which DPDK leaves 0.
#[test]
fn nothing_is_out_there_at_the_start() {
    for base in [0x8000, 0x8000_8000] {
        let mut pair = Pair::new(small_ring(4));
        pair.ring.set_vring_base(base).unwrap();
        assert_eq!(pair.ring.vring_base(), 0x8000_8000);
        for _ in 0..4 {
            pair.add(&one()).unwrap();
        }
        pair.drain().unwrap();
    }
}

/// What the device before could not give back: the next used descriptor goes where the driver waits for
/// it, and no more is taken than the ring has beside these.
#[test]
fn what_is_between_the_halves_stays_out_there() {
    let layout = small_ring(3);
    let mem = layout.memory();
    // Two of three, the last one's place before the ring's end.
    let mut ring = layout.ring(&mem, 0x8000_8002);
    let table = layout.table();
    let mut out = Segments::new().unwrap();
    put(&mem, 2, GUEST.start, 1, 5, F_AVAIL);
    put(&mem, 0, GUEST.start, 1, 6, F_USED);
    let mut take = ring.take();
    let chain = take.next_chain(table.maps(), &mut out, None).unwrap();
    assert_eq!(chain.unwrap().head, 5);
    take.complete();
    let got = ring.take().next_chain(table.maps(), &mut out, None);
    assert_eq!(got.map_err(|fault| fault.why), Err(Why::Twice));
    ring.publish().unwrap();
    assert_eq!(ring.vring_base(), 0x8001_0000);
    assert_eq!(mem.get_u16(DESC + 14, Endian::Little), F_AVAIL | F_USED);
    assert_eq!(mem.get_u16(DESC + 12, Endian::Little), 5);
    // All of the ring, and more than that.
    for (base, good) in [(0x8001_0001, true), (0x8001_0002, false)] {
        let mut ring = layout.ring(&mem, 0x8000);
        ring.set_vring_base(base).unwrap();
        assert_eq!(ring.start(Endian::Little, None).is_ok(), good, "{base:#x}");
    }
}

#[test]
fn a_base_outside_the_ring_is_refused_at_the_start() {
    let layout = small_ring(5);
    let mem = layout.memory();
    for (base, good) in [
        (4, true),
        (5, false),
        (0x7fff, false),
        (0x8004, true),
        (0xffff, false),
    ] {
        let mut ring = layout.ring(&mem, 0x8000);
        ring.set_vring_base(base * 0x1_0001).unwrap();
        let got = ring
            .start(Endian::Little, None)
            .map_err(|fault| (fault.error, fault.why));
        assert_eq!(
            got,
            if good {
                Ok(())
            } else {
                Err((EINVAL, Why::Base))
            }
        );
        assert_eq!(ring.base(), base as u16);
    }
}

/// They may have been set when the ring was a split one.
#[test]
fn descriptors_at_an_odd_place_are_refused_at_the_start() {
    let layout = small_ring(4);
    let mem = layout.memory();
    for (offset, good) in [(0, true), (8, false), (15, false), (16, true)] {
        let mut ring = layout.ring(&mem, 0x8000);
        let addrs = layout.addrs();
        ring.set_addrs(RingAddrs {
            desc: addrs.desc.offset(offset),
            ..addrs
        });
        let got = ring.start(Endian::Little, None);
        let want = Err(Fault::new(EINVAL, Why::Alignment));
        assert_eq!(got, if good { Ok(()) } else { want }, "{offset}");
    }
}

/// When the order of use changes, what was taken is forgotten: it stays out there, which a ring that is used in order can't have.
#[test]
fn another_order_forgets() {
    let mut pair = Pair::new(small_ring(4));
    pair.add(&one()).unwrap();
    pair.take(&[1], What::Complete).unwrap();
    pair.ring.set_features(pair.layout.features());
    assert_eq!(pair.ring.unpublished(), 1);
    pair.layout.in_order = true;
    pair.ring.set_features(pair.layout.features());
    assert_eq!(pair.ring.unpublished(), 0);
    assert_eq!(pair.ring.vring_base(), 0x8000_8001);
    let started = pair.ring.start(Endian::Little, None);
    assert_eq!(started.map_err(|fault| fault.why), Err(Why::Base));
    pair.ring.set_vring_base(0x8001_8001).unwrap();
    assert_eq!(pair.ring.start(Endian::Little, None), Ok(()));
}

/// Also if the other half is inside, and the two are not far apart.
#[test]
fn half_a_base_outside_the_ring_is_refused() {
    let layout = small_ring(5);
    let mem = layout.memory();
    for (base, good) in [
        (0x8004_0000, true),
        (0x8005_0000, false),
        (0x8004_8005, false),
        (0x0004_8000, true),
        (0x0005_8000, false),
    ] {
        let mut ring = layout.ring(&mem, 0x8000);
        ring.set_vring_base(base).unwrap();
        assert_eq!(ring.start(Endian::Little, None).is_ok(), good, "{base:#x}");
    }
}

#[test]
fn the_start_writes_the_devices_area_only() {
    let layout = small_ring(4);
    let mem = layout.memory();
    mem.put(DEVICE, &[7, 0, DISABLE as u8, 0]);
    let mut ring = layout.ring(&mem, 0x8000);
    assert_eq!(
        mem.events(),
        [Event::Write {
            addr: DEVICE + 2,
            len: 2
        }]
    );
    assert_eq!(mem.get_u16(DEVICE + 2, Endian::Little), ENABLE);
    // A ring that is quiet says so.
    ring.disable_kicks().unwrap();
    mem.put(DEVICE + 2, &[ENABLE as u8, 0]);
    ring.start(Endian::Big, None).unwrap();
    assert_eq!(mem.get_u16(DEVICE + 2, Endian::Little), DISABLE);
    assert_eq!(ring.endian(), Endian::Little);
    mem.fail(DEVICE..DEVICE + 4);
    let got = ring.start(Endian::Little, None);
    assert_eq!(got.map_err(|fault| fault.error), Err(EFAULT));
}

#[test]
fn access_ok_is_for_the_whole_ring() {
    for num in [1u32, 3, 256, 32768] {
        let layout = small_ring(num);
        let mut ring = Vring::new(Mem::new()).unwrap();
        ring.make_room(layout.features()).unwrap();
        ring.set_features(layout.features());
        ring.set_num(num).unwrap();
        assert_eq!(ring.used_size(), 4);
        let sizes = [16 * u64::from(num), 4, 4];
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

/// The first descriptor of a batch is written last, by itself, behind a barrier.
#[test]
fn a_batch_is_seen_at_once() {
    let mut pair = Pair::new(Layout {
        start: 3,
        ..small_ring(5)
    });
    for _ in 0..4 {
        pair.add(&one()).unwrap();
    }
    pair.take(&[1, 2], What::Complete).unwrap();
    pair.take(&[3, 4], What::Complete).unwrap();
    pair.publish().unwrap();
    pair.reap().unwrap();
    let mut pair = Pair::new(Layout {
        start: 3,
        ..small_ring(5)
    });
    for _ in 0..4 {
        pair.add(&one()).unwrap();
    }
    pair.take(&[1, 2, 3, 4], What::Complete).unwrap();
    pair.mem.events();
    pair.ring.publish().unwrap();
    let write = |i: u64| Event::Write {
        addr: DESC + 16 * i + 8,
        len: 8,
    };
    let events = pair.mem.events();
    assert_eq!(
        events,
        [write(4), write(0), write(1), Event::WriteBarrier, write(3)]
    );
}

/// What can't be written is written when it can, and until then nothing is seen of it.
#[test]
fn a_publish_that_fails_is_tried_again() {
    for part in 0..4 {
        let mut pair = Pair::new(Layout {
            start: 6,
            ..small_ring(4)
        });
        for _ in 0..4 {
            pair.add(&one()).unwrap();
        }
        pair.take(&[7, 8, 9, 1], What::Complete).unwrap();
        pair.mem.fail(DESC + 16 * part + 8..DESC + 16 * part + 16);
        for _ in 0..2 {
            let got = pair
                .ring
                .publish()
                .map_err(|fault| (fault.error, fault.why));
            assert_eq!(got, Err((EFAULT, Why::UsedDescriptorWrite)));
            assert_eq!(pair.ring.unpublished(), 4);
        }
        pair.mem.heal();
        pair.reap().unwrap();
        pair.publish().unwrap();
        pair.reap().unwrap();
        pair.drain().unwrap();
    }
}

#[test]
fn memory_that_fails_is_efault() {
    let mut pair = Pair::new(small_ring(4));
    pair.ask_for_calls(BY_PLACE, 0);
    pair.wants_call().unwrap();
    let errors = |pair: &mut Pair| {
        let mut out = Segments::new().unwrap();
        let table = pair.layout.table();
        let taken = pair.ring.take().next_chain(table.maps(), &mut out, None);
        let called = pair.ring.wants_call();
        pair.ring.disable_kicks().ok();
        let kicked = pair.ring.enable_kicks();
        [
            taken.err().map(|fault| fault.why),
            called.err().map(|fault| fault.why),
            kicked.err().map(|fault| fault.why),
        ]
    };
    assert_eq!(errors(&mut pair), [None, None, None]);
    pair.mem.fail(DESC..DESC + 16);
    assert!(!pair.ring.is_empty());
    let read = Some(Why::DescriptorRead);
    assert_eq!(errors(&mut pair), [read, None, read]);
    pair.mem.heal();
    for field in [DRIVER, DRIVER + 2] {
        pair.mem.fail(field..field + 2);
        assert_eq!(errors(&mut pair), [None, Some(Why::DriverEventRead), None]);
        pair.mem.heal();
    }
    pair.mem.fail(DEVICE..DEVICE + 4);
    assert_eq!(errors(&mut pair), [None, None, Some(Why::DeviceEventWrite)]);
}

/// Puts a descriptor into a ring that nothing was taken of.
fn put(mem: &Mem, index: u64, addr: u64, len: u32, id: u16, flags: u16) {
    let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
    mem.put(DESC + 16 * index, &addr.to_le_bytes());
    mem.put(DESC + 16 * index + 8, &word.to_le_bytes());
}

/// Two times around between two questions about a call pass every place, whatever it is.
#[test]
fn a_call_after_twice_around() {
    for place in [0, 1, 2, 0x8000, 0x8001, 0x8002] {
        for times in [1, 2] {
            let mut pair = Pair::new(small_ring(3));
            pair.wants_call().unwrap();
            pair.mem.put_u16(DRIVER, place, Endian::Little);
            pair.mem.put_u16(DRIVER + 2, BY_PLACE, Endian::Little);
            for _ in 0..3 * times {
                pair.add(&one()).unwrap();
                pair.take(&[1], What::Complete).unwrap();
                pair.publish().unwrap();
                pair.reap().unwrap();
            }
            let passed = times == 2 || place >= 0x8000;
            assert_eq!(pair.ring.wants_call(), Ok(passed), "{place:#x} in {times}");
        }
    }
}

/// Of another area for the device nothing is known: all of it is written.
#[test]
fn another_area_for_the_device() {
    let mut pair = Pair::new(small_ring(4));
    let other = DEVICE + 0x100;
    pair.mem.add(other, 4, Access::ReadWrite);
    pair.disable_kicks().unwrap();
    pair.enable_kicks().unwrap();
    assert_eq!(pair.mem.get_u16(DEVICE + 2, Endian::Little), BY_PLACE);
    let mut addrs = pair.layout.addrs();
    addrs.used = UserAddr::new(other);
    pair.ring.set_addrs(addrs);
    assert_eq!(pair.ring.addrs(), addrs);
    pair.disable_kicks().unwrap();
    assert_eq!(pair.mem.get_u16(other + 2, Endian::Little), DISABLE);
    pair.enable_kicks().unwrap();
    assert_eq!(pair.mem.get_u16(other + 2, Endian::Little), BY_PLACE);
    assert_eq!(pair.mem.violations(), []);
}

/// What a chain is refused for; then it is still in the ring.
#[test]
fn malformed_chains() {
    let a = GUEST.start;
    let cases: &[(&[(u64, u32, u16)], Error, Why)] = &[
        // The chain goes on where nothing is available.
        (&[(a, 1, F_NEXT | F_AVAIL), (a, 1, 0)], EINVAL, Why::Part),
        (
            &[(a, 1, F_NEXT | F_AVAIL), (a, 1, F_AVAIL | F_USED)],
            EINVAL,
            Why::Part,
        ),
        // It goes around; the ring's second half has the other wrap counter.
        (&[(a, 1, F_NEXT | F_AVAIL); 4], EINVAL, Why::Loop),
        (
            &[(a, 32, F_INDIRECT | F_NEXT | F_AVAIL), (a, 1, F_AVAIL)],
            EINVAL,
            Why::TableInChain,
        ),
        (
            &[(a, 1, F_NEXT | F_AVAIL), (a, 16, F_INDIRECT | F_AVAIL)],
            EINVAL,
            Why::TableInChain,
        ),
        (&[(a, 0, F_INDIRECT | F_AVAIL)], EINVAL, Why::TableEnd),
        (
            &[(a, 17, F_INDIRECT | F_AVAIL)],
            EINVAL,
            Why::PartOfDescriptor,
        ),
        (&[(0, 16, F_INDIRECT | F_AVAIL)], EFAULT, Why::Table),
        (&[(0, 1, F_AVAIL)], EFAULT, Why::Buffer),
        (
            &[(a, 1, F_WRITE | F_NEXT | F_AVAIL), (a, 1, F_AVAIL)],
            EINVAL,
            Why::Mixed,
        ),
    ];
    for (descs, error, why) in cases {
        let layout = small_ring(4);
        let mem = layout.memory();
        let mut ring = layout.ring(&mem, 0x8000);
        for (i, &(addr, len, flags)) in descs.iter().enumerate() {
            put(&mem, i as u64, addr, len, 7, flags);
        }
        let table = layout.table();
        let mut out = Segments::new().unwrap();
        for _ in 0..2 {
            let mut take = ring.take();
            let got = take.next_chain(table.maps(), &mut out, None);
            assert_eq!(
                got.map_err(|fault| (fault.error, fault.why)),
                Err((*error, *why))
            );
            assert_eq!(take.chains(), 0);
            drop(take);
            assert_eq!((ring.base(), ring.unpublished()), (0x8000, 0));
        }
        // The driver mends it.
        put(&mem, 0, a, 1, 7, F_AVAIL);
        let chain = ring.take().next_chain(table.maps(), &mut out, None);
        assert_eq!(chain.unwrap().unwrap().head, 7);
    }
}

/// A driver that makes available what is out there already: never more than the ring has.
#[test]
fn available_twice() {
    for defer in [false, true] {
        let layout = small_ring(3);
        let mem = layout.memory();
        let mut ring = layout.ring(&mem, 0x8000);
        let table = layout.table();
        let mut out = Segments::new().unwrap();
        let mut deferred = Vec::new();
        for i in 0..3 {
            put(&mem, i, GUEST.start, 1, i as u16, F_AVAIL);
            let mut take = ring.take();
            take.next_chain(table.maps(), &mut out, None)
                .unwrap()
                .unwrap();
            if defer {
                deferred.push(take.defer().unwrap());
            } else {
                take.complete();
            }
        }
        put(&mem, 0, GUEST.start, 1, 0, F_USED);
        let got = ring.take().next_chain(table.maps(), &mut out, None);
        assert_eq!(
            got.map_err(|fault| (fault.error, fault.why)),
            Err((EINVAL, Why::Twice))
        );
        for chain in deferred {
            ring.complete_deferred(chain);
        }
        assert_eq!(ring.unpublished(), 3);
        ring.publish().unwrap();
        assert_eq!((ring.base(), ring.used_idx()), (0, 0));
    }
}

/// However much is completed before, there is room for what was deferred.
#[test]
fn room_for_what_was_deferred() {
    const DEFERRED: usize = 128;
    let mut pair = Pair::new(small_ring(2048));
    for _ in 0..2048 {
        pair.add(&one()).unwrap();
    }
    for _ in 0..DEFERRED {
        pair.take(&[1], What::Defer).unwrap();
    }
    let (table, mut out) = (pair.layout.table(), Segments::new().unwrap());
    let full = loop {
        out.clear();
        let mut take = pair.ring.take();
        match take.next_chain(table.maps(), &mut out, None) {
            Ok(Some(_)) => drop(take),
            other => break other.map_err(|fault| (fault.error, fault.why)),
        }
        pair.take(&[1], What::Complete).unwrap();
    };
    assert_eq!(full, Err((ENOBUFS, Why::Completed)));
    let completed = pair.ring.unpublished();
    assert!(completed > 900, "{completed} were completed");
    for i in 0..DEFERRED {
        pair.complete_deferred(i / 2);
    }
    pair.publish().unwrap();
    pair.reap().unwrap();
    assert_eq!(pair.in_flight(), 2048 - completed - DEFERRED);
    pair.drain().unwrap();
}

/// The guest pages of the descriptors that were written are marked, whatever their user addresses; a batch
/// that goes around marks both ends.
#[test]
fn used_descriptors_are_logged() {
    for (start, count, want) in [
        (0u64, 3usize, vec![0u64]),
        (1022, 4, vec![0, 3]),
        (200, 300, vec![0, 1]),
    ] {
        let mut pair = Pair::new(Layout {
            start,
            ..small_ring(1024)
        });
        pair.set_log(true);
        for _ in 0..count {
            pair.add(&one()).unwrap();
        }
        pair.take(&vec![1; count], What::Complete).unwrap();
        pair.publish().unwrap();
        assert!(pair.ring.wants_call().unwrap());
        let want: Vec<_> = want.iter().map(|page| RING_GUEST / 0x1000 + page).collect();
        assert_eq!(pair.logged_pages(), want);
        pair.check().unwrap();
        // The device's area is where the owner says.
        pair.disable_kicks().unwrap();
        assert_eq!(pair.logged_pages(), [0]);
    }
    // A ring that is no guest memory.
    let layout = small_ring(4);
    let mut pair = Pair::new(layout);
    let table = memtable::MemTable::new([].into_iter()).unwrap();
    pair.ring.set_used_log(Some(UsedLog {
        log: DirtyLog::new(UserAddr::new(LOG)),
        addr: GuestAddr::new(0),
        mem: Some(kernel::sync::Arc::new(table)),
    }));
    pair.add(&one()).unwrap();
    pair.take(&[1], What::Complete).unwrap();
    pair.ring.publish().unwrap();
    assert!(pair.ring.log_failed());
}

/// Descriptors are to be read and written: so is what is asked for, and no less will do.
#[test]
fn descriptors_behind_an_iotlb() {
    let layout = small_ring(300);
    let mem = layout.memory();
    let mut ring = layout.ring_behind(&mem);
    let mut iotlb = Iotlb::new(1024);
    let same = |iotlb: &mut Iotlb, at, size, perm| {
        iotlb
            .tell(Iova::new(at), size, UserAddr::new(at), perm)
            .unwrap();
    };
    let miss = |addr, access| {
        Some(Miss {
            addr: Iova::new(addr),
            access,
        })
    };
    // The start needs the device's area, to be written.
    let started = ring.start(Endian::Little, Some(&iotlb)).unwrap_err();
    assert_eq!(started.miss(), miss(DEVICE, memtable::Access::Write));
    same(&mut iotlb, DEVICE, 4, 2);
    ring.start(Endian::Little, Some(&iotlb)).unwrap();

    let found = ring.find(&iotlb).unwrap_err();
    assert_eq!(found.miss(), miss(DESC, memtable::Access::ReadWrite));
    assert_eq!(found.miss().unwrap().access as u8, 3);
    let mut ahead = Ahead::new().unwrap();
    ahead.begin(1024);
    ring.look_ahead(&iotlb, Wanted::default(), &mut ahead);
    let told: Vec<_> = ahead.iter().collect();
    let want = [
        (miss(DESC, memtable::Access::ReadWrite).unwrap(), true),
        (
            miss(DESC + 0x1000, memtable::Access::ReadWrite).unwrap(),
            true,
        ),
        (miss(DRIVER, memtable::Access::Read).unwrap(), true),
    ];
    assert_eq!(told, want);

    for perm in [1, 2] {
        same(&mut iotlb, DESC, 300 * 16, perm);
        let found = ring.find(&iotlb).unwrap_err();
        assert_eq!((found.error, found.miss()), (EPERM, None));
        assert_eq!(found.denied(), miss(DESC, memtable::Access::ReadWrite));
        iotlb.invalidate(Iova::new(DESC), 1).unwrap();
    }
    // In two pieces, elsewhere.
    let other = 0x5900_0000_0000;
    mem.add(other, 0x1000, Access::ReadWrite);
    iotlb
        .tell(Iova::new(DESC), 0x40, UserAddr::new(other), READ_WRITE)
        .unwrap();
    iotlb
        .tell(
            Iova::new(DESC + 0x40),
            0x2000,
            UserAddr::new(DESC + 0x40),
            READ_WRITE,
        )
        .unwrap();
    same(&mut iotlb, DRIVER, 4, 1);

    // Five chains; the buffers of the last two are missing.
    same(&mut iotlb, GUEST.start, 0x100, 3);
    ring.find(&iotlb).unwrap();
    let raw = |addr: u64, i: u16| {
        let word = 100 | u64::from(i) << 32 | u64::from(F_AVAIL | F_WRITE) << 48;
        [addr.to_le_bytes(), word.to_le_bytes()].concat()
    };
    for i in 0..5u16 {
        let at = if i < 4 { other } else { DESC } + 16 * u64::from(i);
        let page = if i < 3 { 0 } else { u64::from(i) };
        mem.put(at, &raw(GUEST.start + 0x1000 * page, i));
    }
    ahead.begin(1024);
    let wanted = Wanted {
        bytes: 350,
        chains: 9,
    };
    ring.look_ahead(&iotlb, wanted, &mut ahead);
    let told: Vec<_> = ahead.iter().collect();
    let want = [
        (
            miss(GUEST.start + 0x3000, memtable::Access::Write).unwrap(),
            true,
        ),
        (
            miss(GUEST.start + 0x4000, memtable::Access::Write).unwrap(),
            false,
        ),
    ];
    assert_eq!(told, want);
    let mut out = Segments::new().unwrap();
    let mut take = ring.take();
    for i in 0..3 {
        let chain = take
            .next_chain(iotlb.maps(), &mut out, None)
            .unwrap()
            .unwrap();
        assert_eq!(chain.head, i);
    }
    let fault = take.next_chain(iotlb.maps(), &mut out, None).unwrap_err();
    assert_eq!(
        fault.miss(),
        miss(GUEST.start + 0x3000, memtable::Access::Write)
    );
    take.set_written(1);
    take.complete();
    ring.publish().unwrap();
    assert_eq!(mem.get_u16(other + 14, Endian::Little), F_AVAIL | F_USED);
    assert_eq!(mem.violations(), []);
}

/// A hundred thousand looks at an empty ring cost one read each.
#[test]
fn an_empty_ring_costs_one_read() {
    let mut pair = Pair::new(small_ring(64));
    pair.mem.reads();
    assert!(pair.ring.is_empty());
    assert_eq!(pair.mem.reads(), (1, 2));
    assert_eq!(pair.take(&[1], What::Complete).unwrap(), 0);
}
