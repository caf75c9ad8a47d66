// SPDX-License-Identifier: GPL-2.0

//! The ring with a driver that keeps no rule: any bytes, anywhere.

use crate::{
    mem::bytes_of_u16,
    pair::{
        shake, Layout, Pair, Shake, Step, F_INDIRECT, F_NEXT, F_WRITE, HIGH, HOLE, HUGE, HUGE_SIZE,
        SPAN,
    },
};
use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use std::{cell::Cell, rc::Rc};

/// Memory as a driver left it, and what happens then.
#[derive(Clone, Debug)]
pub struct Case {
    pub guest: Guest,
    pub ops: Vec<Op>,
}

pub fn case() -> impl Strategy<Value = Case> {
    (guest(), vec(op(), 1..40)).prop_map(|(guest, ops)| Case { guest, ops })
}

/// What comes out, and which error, is as with the C driver.
pub fn check(case: &Case) -> Step {
    let mut pair = fill(&case.guest);
    for op in &case.ops {
        run(&mut pair, op)?;
    }
    Ok(())
}

/// Every read of the ring or a table gets other bytes than the one before, which `seed` chooses.
pub fn check_changing(Case { guest, ops }: &Case, seed: u64) -> Step {
    let mut pair = fill(guest);
    pair.tell_all();
    pair.find()?;
    let idx_place = pair.place_of(pair.layout.avail() + 2);
    let Pair {
        layout,
        mem,
        mut ring,
        regions,
        table,
        iotlb,
        mut out,
        mut dirty,
        ..
    } = pair;
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
            buf.copy_from_slice(&bytes_of_u16(idx, endian));
        }
        state.set(x);
    }));

    let mut taken = 0u64;
    let mut published = 0u64;
    for op in ops {
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
            Op::EnableKicks => {
                let _ = ring.enable_kicks();
            }
            Op::IsEmpty => {
                ring.is_empty();
            }
            Op::Skip => {
                taken -= ring.unpublished() as u64;
                let next = ring.base().wrapping_add(1);
                ring.set_base(next);
                base.set(ring.base());
            }
            _ => {}
        }
        prop_assert_eq!(published + ring.unpublished() as u64, taken);
        prop_assert_eq!(mem.violations(), vec![]);
    }
    Ok(())
}

#[derive(Clone, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
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
pub struct Guest {
    pub layout: Layout,
    pub descs: Vec<Desc>,
    /// Tables fill guest memory from its start.
    pub tables: Vec<Desc>,
    pub entries: Vec<u16>,
}

pub fn guest() -> impl Strategy<Value = Guest> {
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
pub enum Op {
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

pub fn fill(guest: &Guest) -> Pair {
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
