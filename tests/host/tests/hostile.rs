// SPDX-License-Identifier: GPL-2.0

//! The ring with a driver that keeps no rule: any bytes, anywhere, which change at any time.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use std::{cell::Cell, collections::HashSet, rc::Rc};
use vhost_net_host_tests::{
    config,
    pair::{
        shake, Layout, Pair, Shake, Step, F_INDIRECT, F_NEXT, F_WRITE, HIGH, HOLE, HUGE, HUGE_SIZE,
        SPAN,
    },
};

#[derive(Clone, Debug)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => SPAN,
        // Indirect tables are here.
        6 => (0..64u64).prop_map(|i| SPAN.start + i * 16),
        1 => (0..32u64).prop_map(|i| SPAN.end - i),
        1 => (0..64u64).prop_map(|i| HIGH + i * 64 + i % 3),
        1 => (0..32u64).prop_map(|i| u64::MAX - i),
        1 => HUGE..HUGE + HUGE_SIZE,
        1 => Just(HOLE),
        1 => any::<u64>(),
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![
        2 => Just(0),
        8 => 1..200u32,
        6 => (1..12u32).prop_map(|n| n * 16),
        2 => 0..0x4001u32,
        1 => Just(u32::MAX),
        1 => Just(u32::MAX - 15),
        1 => Just(0x10_0000),
        1 => Just(0x10_0010),
        1 => any::<u32>(),
    ]
}

/// Descriptors; the weight of mistakes is `wild` of 20.
fn desc(num: u16, wild: u32, nested: bool) -> impl Strategy<Value = Desc> {
    let sane = 20 - wild;
    let indirect = if nested { 0u32 } else { 4 };
    (
        prop_oneof![wild => addr(), sane => SPAN.start..SPAN.end - 200],
        prop_oneof![wild => len(), sane => 1..200u32],
        (
            prop_oneof![wild => any::<u16>(), sane => Just(0)],
            prop_oneof![10 => Just(0), 8 => Just(F_WRITE), indirect => Just(F_INDIRECT)],
            prop_oneof![Just(0), Just(F_NEXT)],
        )
            .prop_map(|(noise, kind, next)| noise & 7 | kind | next),
        prop_oneof![wild => any::<u16>(), sane => 0..num],
    )
        .prop_map(|(addr, len, flags, next)| {
            if flags & F_INDIRECT != 0 && next % 4 != 3 {
                // Where the tables are, mostly.
                Desc {
                    addr: SPAN.start + addr % 64 * 16 + u64::from(next % 2),
                    len: len / 16 * 16,
                    flags,
                    next,
                }
            } else {
                Desc {
                    addr,
                    len,
                    flags,
                    next,
                }
            }
        })
}

#[derive(Clone, Debug)]
struct Guest {
    layout: Layout,
    descs: Vec<Desc>,
    /// Tables fill guest memory from its start.
    tables: Vec<Desc>,
    entries: Vec<u16>,
}

fn guest() -> impl Strategy<Value = Guest> {
    (0..7u32, prop_oneof![0..3u32, 0..14u32])
        .prop_flat_map(|(shift, wild)| {
            let num = 1u16 << shift;
            (
                (
                    any::<[bool; 4]>(),
                    any::<Option<u64>>(),
                    any::<u8>(),
                    any::<[u16; 2]>(),
                ),
                vec(0..0x4000u16, 0..10),
                0..0x2000u32,
                vec(desc(num, wild, false), usize::from(num)),
                vec(desc(num, wild, true), 100),
                vec(
                    prop_oneof![1 => any::<u16>(), 30 => 0..num],
                    usize::from(num),
                ),
                Just(num),
            )
        })
        .prop_map(
            |((flags, behind, skew, bases), cuts, log_addr, descs, tables, entries, num)| Guest {
                layout: Layout {
                    num: u32::from(num),
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
                descs,
                tables,
                entries,
            },
        )
}

#[derive(Clone, Debug)]
enum Op {
    /// Makes so many chains available.
    Offer(u16),
    /// Moves the available index anywhere.
    Jump(u16),
    /// The VMM moves the device to the next chain.
    Skip,
    Take(Vec<u32>, bool),
    Publish,
    WantsCall,
    DisableKicks,
    EnableKicks,
    IsEmpty,
    /// Any 16 bits in the available ring.
    Scribble(u16, u16),
    /// Another descriptor.
    Redo(u16, Desc),
    Log(bool),
    Shake(Shake, u16),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (1..5u16).prop_map(Op::Offer),
        1 => any::<u16>().prop_map(Op::Jump),
        5 => Just(Op::Skip),
        10 => (vec(prop_oneof![Just(0), any::<u32>()], 1..6), any::<bool>()).prop_map(|(w, c)| Op::Take(w, c)),
        4 => Just(Op::Publish),
        3 => Just(Op::WantsCall),
        2 => Just(Op::DisableKicks),
        2 => Just(Op::EnableKicks),
        1 => Just(Op::IsEmpty),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(at, value)| Op::Scribble(at, value)),
        4 => (any::<u16>(), desc(64, 10, false)).prop_map(|(i, desc)| Op::Redo(i, desc)),
        1 => any::<bool>().prop_map(Op::Log),
        4 => (shake(), any::<u16>()).prop_map(|(shake, which)| Op::Shake(shake, which)),
    ]
}

fn fill(guest: &Guest) -> Pair {
    let mut pair = Pair::new(guest.layout.clone());
    for (i, desc) in guest.descs.iter().enumerate() {
        let raw = pair.desc(desc.addr, desc.len, desc.flags, desc.next);
        pair.put(pair.layout.desc() + 16 * i as u64, &raw);
    }
    for (i, desc) in guest.tables.iter().enumerate() {
        let raw = pair.desc(desc.addr, desc.len, desc.flags, desc.next);
        pair.put_guest(SPAN.start + 16 * i as u64, &raw);
    }
    for (i, entry) in guest.entries.iter().enumerate() {
        pair.put_u16(pair.layout.avail() + 4 + 2 * i as u64, *entry);
    }
    pair
}

/// The most bytes of ring and tables that one chain may take: the index, the entries, and each
/// descriptor with all of guest memory as its table.
fn most_bytes(layout: &Layout) -> u64 {
    let span = (SPAN.end - SPAN.start).max(0x1000);
    2 + 2 * 64 + u64::from(layout.num) * (16 + span)
}

fn run(pair: &mut Pair, op: &Op) -> Step<Option<Error>> {
    let idx = pair.layout.avail() + 2;
    match op {
        Op::Offer(count) => {
            let count = *count.min(&(pair.layout.num as u16));
            pair.put_u16(idx, pair.ring.base().wrapping_add(count));
        }
        Op::Jump(to) => pair.put_u16(idx, *to),
        Op::Skip => {
            let next = pair.ring.base().wrapping_add(1);
            pair.ring.set_base(next);
            pair.model.set_base(next);
        }
        Op::Take(written, complete) => {
            let base = pair.ring.base();
            let (found, error) = pair.take(written, *complete)?;
            // What failed has not moved the index.
            let moved = pair.ring.base().wrapping_sub(base);
            prop_assert_eq!(usize::from(moved), if *complete { found.len() } else { 0 });
            prop_assert!(pair.most_reads.1 <= most_bytes(&pair.layout));
            return Ok(error);
        }
        Op::Publish => pair.publish()?,
        Op::WantsCall => pair.wants_call()?,
        Op::DisableKicks => pair.disable_kicks()?,
        Op::EnableKicks => pair.enable_kicks()?,
        Op::IsEmpty => pair.is_empty()?,
        Op::Scribble(at, value) => {
            let event = if pair.layout.event_idx { 1 } else { 0 };
            let words = pair.layout.num as u16 + 2 + event;
            // Not into entries that may have been read already: see `memory_that_changes`.
            let at = [0, 1, words - 1][usize::from(at % 3)];
            if at < 2 || pair.layout.event_idx {
                pair.put_u16(pair.layout.avail() + 2 * u64::from(at), *value);
            }
        }
        Op::Redo(i, desc) => {
            let raw = pair.desc(desc.addr, desc.len, desc.flags, desc.next);
            let i = u64::from(*i) % u64::from(pair.layout.num);
            pair.put(pair.layout.desc() + 16 * i, &raw);
        }
        Op::Log(on) => pair.set_log(*on)?,
        Op::Shake(shake, which) => pair.shake(*shake, *which)?,
    }
    Ok(None)
}

proptest! {
    #![proptest_config(config(6000))]

    /// What comes out, and which error, is as with the C driver.
    #[test]
    fn fails_as_the_model(guest in guest(), ops in vec(op(), 1..40)) {
        let mut pair = fill(&guest);
        for op in &ops {
            run(&mut pair, op)?;
        }
    }
}

proptest! {
    #![proptest_config(config(4000))]

    /// Every read of the ring or a table gets other bytes than the one before.
    #[test]
    fn memory_that_changes(guest in guest(), ops in vec(op(), 1..40), seed in any::<u64>()) {
        let mut pair = fill(&guest);
        pair.tell_all();
        pair.find()?;
        let idx_place = pair.place_of(pair.layout.avail() + 2);
        let Pair { layout, mem, mut ring, regions, table, iotlb, mut out, mut dirty, .. } = pair;
        let maps = iotlb.as_ref().map_or(table.maps(), |iotlb| iotlb.maps());
        let state = Rc::new(Cell::new(seed | 1));
        let num = layout.num as u16;
        let base = Rc::new(Cell::new(ring.base()));
        let (now, endian) = (base.clone(), layout.endian());
        mem.meddle(Box::new(move |addr, buf| {
            let mut x = state.get();
            for byte in buf.iter_mut() {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                // Some bits change, so that the rest goes on making sense.
                if x % 64 == 0 {
                    *byte ^= (x >> 32) as u8 & (x >> 40) as u8;
                }
            }
            if addr == idx_place && x % 16 != 0 {
                // Mostly an index that is possible.
                let idx = now.get().wrapping_add((x >> 20) as u16 % (num + 1));
                buf.copy_from_slice(&vhost_net_host_tests::mem::bytes_of_u16(idx, endian));
            }
            state.set(x);
        }));

        let mut taken = 0u64;
        let mut published = 0u64;
        for op in &ops {
            mem.reads();
            match op {
                Op::Take(written, complete) => {
                    let before = ring.base();
                    out.clear();
                    dirty.clear();
                    let mut take = ring.take();
                    let mut good = 0;
                    for len in written {
                        let had = out.len();
                        let Ok(Some(chain)) = take.next_chain(maps, &mut out, Some(&mut dirty)) else {
                            break;
                        };
                        good += 1;
                        base.set(base.get().wrapping_add(1));
                        prop_assert!(u32::from(chain.head) < layout.num);
                        prop_assert_eq!(chain.readable + chain.writable, out.len() - had);
                        take.set_written(*len);
                    }
                    prop_assert_eq!(take.chains(), good);
                    if *complete {
                        take.complete();
                        taken += u64::from(good);
                    } else {
                        drop(take);
                        good = 0;
                    }
                    prop_assert_eq!(ring.base(), before.wrapping_add(good));
                    base.set(ring.base());
                    // Whatever it says, each piece is within a region.
                    for piece in out.as_slice() {
                        let (user, len) = (piece.addr().get(), piece.len() as u64);
                        let within = regions.iter().any(|region| {
                            user >= region.user
                                && user - region.user < region.size as u64
                                && len <= region.size as u64 - (user - region.user)
                        });
                        prop_assert!(within && len > 0);
                    }
                    prop_assert!(out.len() <= 1024);
                    let (_, bytes) = mem.reads();
                    prop_assert!(bytes <= written.len() as u64 * most_bytes(&layout));
                }
                Op::Publish => {
                    published += ring.unpublished() as u64;
                    prop_assert!(ring.unpublished() <= usize::from(num));
                    prop_assert!(ring.publish().is_ok());
                    prop_assert_eq!(ring.unpublished(), 0);
                }
                Op::WantsCall => prop_assert!(ring.wants_call().is_ok()),
                Op::DisableKicks => prop_assert!(ring.disable_kicks().is_ok()),
                Op::EnableKicks => { let _ = ring.enable_kicks(); }
                Op::IsEmpty => { ring.is_empty(); }
                Op::Skip => {
                    taken -= ring.unpublished() as u64;
                    ring.set_base(ring.base().wrapping_add(1));
                    base.set(ring.base());
                }
                _ => {}
            }
            prop_assert_eq!(published + ring.unpublished() as u64, taken);
            prop_assert_eq!(mem.violations(), vec![]);
        }
    }
}

fn plain(num: u32) -> Layout {
    Layout {
        num,
        big_endian: false,
        event_idx: false,
        notify_on_empty: false,
        in_order: false,
        behind: None,
        cuts: vec![0x10, 0x1008, 0x1009],
        skew: 1,
        log_addr: 0,
        avail_base: 0,
        used_base: 0,
    }
}

/// A ring of `num` with these descriptors and tables (in guest memory from its start) and one chain,
/// with the first descriptor as its head.
fn chain(num: u32, descs: &[(u64, u32, u16, u16)], table: &[(u64, u32, u16, u16)]) -> Pair {
    let mut pair = Pair::new(plain(num));
    for (i, &(addr, len, flags, next)) in descs.iter().enumerate() {
        let raw = pair.desc(addr, len, flags, next);
        pair.put(pair.layout.desc() + 16 * i as u64, &raw);
    }
    for (i, &(addr, len, flags, next)) in table.iter().enumerate() {
        let raw = pair.desc(addr, len, flags, next);
        pair.put_guest(SPAN.start + 16 * i as u64, &raw);
    }
    pair.put_u16(pair.layout.avail() + 2, 1);
    pair
}

const OK: u64 = SPAN.start + 0x2000;
const TABLE: u64 = SPAN.start;

/// Each kind of mistake, with the C driver's error code. The chain is still there after it.
#[test]
fn the_error_codes() {
    let too_many: Vec<_> = (0..1025).map(|i| (OK, 1, F_NEXT, i + 1)).collect();
    let mut fits = too_many.clone();
    fits[1023].2 = 0;
    let piece = |count: usize| -> Vec<(u64, u32, u16, u16)> {
        // Each buffer spans the cuts at 0x1008 and 0x1009: three pieces.
        (0..count)
            .map(|i| {
                (
                    SPAN.start + 0x1000,
                    16,
                    if i + 1 < count { F_NEXT } else { 0 },
                    0,
                )
            })
            .collect()
    };
    let table_of = |count: usize| [(TABLE, count as u32 * 16, F_INDIRECT, 0)];

    type Row<'a> = (
        &'a str,
        u32,
        &'a [(u64, u32, u16, u16)],
        &'a [(u64, u32, u16, u16)],
        Option<Error>,
    );
    let rows: &[Row<'_>] = &[
        ("a buffer", 4, &[(OK, 10, 0, 0)], &[], None),
        ("no bytes", 4, &[(HOLE, 0, 0, 0)], &[], None),
        (
            "no bytes to write, then some to read",
            4,
            &[(OK, 0, F_WRITE | F_NEXT, 1), (OK, 1, 0, 0)],
            &[],
            None,
        ),
        ("in no region", 4, &[(HOLE, 1, 0, 0)], &[], Some(EFAULT)),
        (
            "behind the last region",
            4,
            &[(SPAN.end - 1, 2, 0, 0)],
            &[],
            Some(EFAULT),
        ),
        (
            "before the first region",
            4,
            &[(SPAN.start - 1, 2, 0, 0)],
            &[],
            Some(EFAULT),
        ),
        ("4 GiB in a region", 4, &[(HUGE, u32::MAX, 0, 0)], &[], None),
        (
            "4 GiB of which the last byte is too many",
            4,
            &[(HUGE + HUGE_SIZE + 1 - u64::from(u32::MAX), u32::MAX, 0, 0)],
            &[],
            Some(EFAULT),
        ),
        ("the last byte of all", 4, &[(u64::MAX, 1, 0, 0)], &[], None),
        (
            "around the end of the address space",
            4,
            &[(u64::MAX, 2, 0, 0)],
            &[],
            Some(EFAULT),
        ),
        ("a loop of one", 4, &[(OK, 1, F_NEXT, 0)], &[], Some(EINVAL)),
        (
            "a loop of two",
            2,
            &[(OK, 1, F_NEXT, 1), (OK, 1, F_NEXT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "a loop of empty buffers",
            4,
            &[(0, 0, F_NEXT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "all of a ring",
            2,
            &[(OK, 1, F_NEXT, 1), (OK, 1, 0, 0)],
            &[],
            None,
        ),
        (
            "the next one out of range",
            4,
            &[(OK, 1, F_NEXT, 4)],
            &[],
            Some(EINVAL),
        ),
        (
            "the next one far out of range",
            4,
            &[(OK, 1, F_NEXT, 0xffff)],
            &[],
            Some(EINVAL),
        ),
        (
            "no next one, out of range",
            4,
            &[(OK, 1, 0, 0xffff)],
            &[],
            None,
        ),
        (
            "readable behind writable",
            4,
            &[(OK, 1, F_NEXT | F_WRITE, 1), (OK, 1, 0, 0)],
            &[],
            Some(EINVAL),
        ),
        ("too many pieces", 2048, &too_many, &[], Some(ENOBUFS)),
        ("just as many", 2048, &fits, &[], None),
        (
            "a table",
            4,
            &table_of(2),
            &[(OK, 1, F_NEXT, 1), (OK, 2, F_WRITE, 0)],
            None,
        ),
        (
            "a table whose links are nonsense",
            4,
            &table_of(2),
            &[(OK, 1, F_NEXT, 0), (OK, 2, F_WRITE, 0)],
            None,
        ),
        (
            "a table, then a buffer",
            4,
            &[(TABLE, 16, F_INDIRECT | F_NEXT, 1), (OK, 1, F_WRITE, 0)],
            &[(OK, 1, 0, 0)],
            None,
        ),
        (
            "a table with the mark of a writable buffer",
            4,
            &[(TABLE, 16, F_INDIRECT | F_WRITE, 0)],
            &[(OK, 1, 0, 0)],
            None,
        ),
        (
            "a table of no bytes",
            4,
            &[(TABLE, 0, F_INDIRECT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "a table of 15 bytes",
            4,
            &[(TABLE, 15, F_INDIRECT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "a table of 17 bytes",
            4,
            &[(TABLE, 17, F_INDIRECT, 0)],
            &[(OK, 1, 0, 0)],
            Some(EINVAL),
        ),
        (
            "a table of 4 GiB less one byte",
            4,
            &[(HUGE, u32::MAX, F_INDIRECT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "a table in no region",
            4,
            &[(HOLE, 16, F_INDIRECT, 0)],
            &[],
            Some(EFAULT),
        ),
        (
            "a table around the end of the address space",
            4,
            &[(u64::MAX - 7, 16, F_INDIRECT, 0)],
            &[],
            Some(EFAULT),
        ),
        (
            "a table in memory that is not mapped",
            4,
            &[(HUGE, 16, F_INDIRECT, 0)],
            &[],
            Some(EFAULT),
        ),
        (
            "a table of 65537",
            4,
            &[(HUGE, 0x10_0010, F_INDIRECT, 0)],
            &[],
            Some(E2BIG),
        ),
        (
            "a table of 4 GiB",
            4,
            &[(HUGE, 0xffff_fff0, F_INDIRECT, 0)],
            &[],
            Some(E2BIG),
        ),
        (
            "a table in a table",
            4,
            &table_of(1),
            &[(TABLE, 16, F_INDIRECT, 0)],
            Some(EINVAL),
        ),
        (
            "a table that does not end",
            4,
            &table_of(2),
            &[(OK, 1, F_NEXT, 1), (OK, 1, F_NEXT, 0)],
            Some(EINVAL),
        ),
        (
            "readable behind writable in a table",
            4,
            &table_of(2),
            &[(OK, 1, F_NEXT | F_WRITE, 1), (OK, 1, 0, 0)],
            Some(EINVAL),
        ),
        (
            "readable in a table behind writable outside",
            4,
            &[(OK, 1, F_NEXT | F_WRITE, 1), (TABLE, 16, F_INDIRECT, 0)],
            &[(OK, 1, 0, 0)],
            Some(EINVAL),
        ),
        (
            "in no region, from a table",
            4,
            &table_of(1),
            &[(HOLE, 1, 0, 0)],
            Some(EFAULT),
        ),
        (
            "pieces of a table's buffers",
            4,
            &table_of(85),
            &piece(85),
            None,
        ),
        (
            "tables in a loop",
            4,
            &[(TABLE, 16, F_INDIRECT | F_NEXT, 0)],
            &[(OK, 1, 0, 0)],
            Some(EINVAL),
        ),
    ];

    let mut seen = HashSet::new();
    for (what, num, descs, table, want) in rows {
        let mut pair = chain(*num, descs, table);
        for complete in [false, true] {
            let (found, error) = pair.take(&[7], complete).expect(what);
            assert_eq!(error, *want, "{what}");
            assert_eq!(found.len(), usize::from(want.is_none()), "{what}");
        }
        // What fails can be mended, and is there.
        if let Some(error) = want {
            seen.insert(error.to_errno());
            assert_eq!(pair.ring.base(), 0, "{what}");
            let raw = pair.desc(OK, 1, 0, 0);
            pair.put(pair.layout.desc(), &raw);
            let (found, error) = pair.take(&[7], true).expect(what);
            assert_eq!((found.len(), error), (1, None), "{what}");
        }
        assert_eq!(pair.ring.base(), 1, "{what}");
    }
    // Every error that `Take::next_chain` speaks of.
    let all = [EINVAL, EFAULT, ENOBUFS, E2BIG].map(Error::to_errno);
    assert_eq!(seen, HashSet::from(all));
}

#[test]
fn pieces_of_one_buffer_count() {
    // A buffer of one piece, then of three each: 1 + 341 * 3 = 1024.
    for (count, want) in [(342u64, None), (343, Some(ENOBUFS))] {
        let mut pair = Pair::new(Layout {
            behind: None,
            cuts: vec![0x1002, 0x1005],
            ..plain(4)
        });
        let (table, size) = (SPAN.start + 0x1100, count as u32 * 16);
        for i in 0..count {
            let (addr, len) = if i == 0 {
                (OK, 1)
            } else {
                (SPAN.start + 0x1001, 8)
            };
            let more = if i + 1 < count { F_NEXT } else { 0 };
            let raw = pair.desc(addr, len, F_WRITE | more, 0);
            pair.put_guest(table + 16 * i, &raw);
        }
        let raw = pair.desc(table, size, F_INDIRECT, 0);
        pair.put(pair.layout.desc(), &raw);
        pair.put_u16(pair.layout.avail() + 2, 1);
        let (found, error) = pair.take(&[0], true).unwrap();
        assert_eq!(error, want);
        if let Some(found) = found.first() {
            assert_eq!((found.writable, found.dirty.len()), (1024, 342));
        }
    }
}

#[test]
fn a_table_in_too_many_pieces() {
    // 1040 bytes of table in as many regions: a table has room for no more than 1024 pieces.
    for (descs, want) in [(64u32, None), (65, Some(ENOBUFS))] {
        let cuts = (0..1040).collect();
        let mut pair = Pair::new(Layout { cuts, ..plain(2) });
        for i in 0..u64::from(descs) {
            let more = if i + 1 < u64::from(descs) { F_NEXT } else { 0 };
            let raw = pair.desc(OK, 1, more, 0);
            pair.put_guest(TABLE + 16 * i, &raw);
        }
        let raw = pair.desc(TABLE, descs * 16, F_INDIRECT, 0);
        pair.put(pair.layout.desc(), &raw);
        pair.put_u16(pair.layout.avail() + 2, 1);
        let (_, error) = pair.take(&[0], true).unwrap();
        assert_eq!(error, want);
    }
}

#[test]
fn a_loop_ends_after_the_size_of_the_ring() {
    for num in [1, 2, 64, 32768u32] {
        let mut pair = chain(num, &[(0, 0, F_NEXT, 0)], &[]);
        let (_, error) = pair.take(&[0], true).unwrap();
        assert_eq!(error, Some(EINVAL));
        // The index, the entry, and each descriptor.
        assert_eq!(pair.most_reads.0, 2 + u64::from(num));
    }
}

#[test]
fn an_index_that_jumps() {
    for (num, jump, want) in [
        (4, 4, None),
        (4, 5, Some(EINVAL)),
        (4, 0xffff, Some(EINVAL)),
        (1, 1, None),
        (1, 2, Some(EINVAL)),
        (32768, 32768, None),
        (32768, 32769, Some(EINVAL)),
    ] {
        for base in [0u16, 3, 0xffff] {
            let mut pair = Pair::new(Layout {
                avail_base: base,
                ..plain(num)
            });
            pair.put_u16(pair.layout.avail() + 2, base.wrapping_add(jump));
            pair.disable_kicks().unwrap();
            let (found, error) = pair.take(&[0], false).unwrap();
            assert_eq!((found.len(), error), (usize::from(want.is_none()), want));
            assert_eq!(pair.ring.base(), base);
            assert!(!pair.ring.is_empty());
            pair.enable_kicks().unwrap();
        }
    }
}

#[test]
fn a_head_out_of_range() {
    for head in [4, 5, 0x8000, 0xffff] {
        let mut pair = chain(4, &[(OK, 1, 0, 0)], &[]);
        pair.put_u16(pair.layout.avail() + 4, head);
        let (_, error) = pair.take(&[0], true).unwrap();
        assert_eq!(error, Some(EINVAL));
        pair.put_u16(pair.layout.avail() + 4, 0);
        let (found, _) = pair.take(&[0], true).unwrap();
        assert_eq!(found.len(), 1);
    }
}

#[test]
fn ring_memory_that_is_not_mapped() {
    let layout = plain(4);
    let (desc, avail) = (layout.desc(), layout.avail());
    for part in [
        avail + 2..avail + 4,
        avail + 4..avail + 6,
        desc + 8..desc + 9,
    ] {
        for entries in [1, 4] {
            let mut pair = chain(4, &[(OK, 1, 0, 0)], &[]);
            pair.put_u16(avail + 2, entries);
            for mem in [&pair.mem, &pair.model.mem] {
                mem.fail(part.clone());
            }
            let (_, error) = pair.take(&[0], true).unwrap();
            assert_eq!(error, Some(EFAULT));
            for mem in [&pair.mem, &pair.model.mem] {
                mem.heal();
            }
            let (found, error) = pair.take(&[0], true).unwrap();
            assert_eq!((found.len(), error), (1, None));
        }
    }
}

/// A driver that offers the same chain again and again before it is used gets no used entry twice:
/// the used ring never has more unpublished entries than it has places.
#[test]
fn a_chain_that_is_available_twice() {
    for num in [1u16, 2, 64] {
        let mut pair = chain(u32::from(num), &[(OK, 1, 0, 0)], &[]);
        for i in 1..=num {
            pair.put_u16(pair.layout.avail() + 2, i);
            assert_eq!(pair.take(&[0], true).unwrap().0.len(), 1);
        }
        pair.put_u16(pair.layout.avail() + 2, num + 1);
        assert_eq!(pair.take(&[0], true).unwrap().1, Some(EINVAL));
        pair.publish().unwrap();
        assert_eq!(pair.take(&[0], true).unwrap().0.len(), 1);
    }
}

/// What the driver changes in an entry after the device read it changes nothing.
#[test]
fn an_entry_is_read_once() {
    let descs: Vec<_> = (0..8).map(|i| (OK + i, 1, 0, 0)).collect();
    let mut pair = chain(8, &descs, &[]);
    for i in 0..8 {
        pair.put_u16(pair.layout.avail() + 4 + 2 * i, i as u16);
    }
    pair.put_u16(pair.layout.avail() + 2, 8);
    let (found, _) = pair.take(&[0, 0], true).unwrap();
    assert_eq!([found[0].head, found[1].head], [0, 1]);
    // Only the ring's own copy of memory changes: the model still sees what was there.
    let endian = pair.layout.endian();
    for i in 0..8 {
        pair.mem
            .put_u16(pair.layout.avail() + 4 + 2 * i, 0xffff, endian);
    }
    let (found, error) = pair.take(&[0; 6], true).unwrap();
    assert_eq!((found.len(), error), (6, None));
}
