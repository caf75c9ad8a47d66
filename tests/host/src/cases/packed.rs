// SPDX-License-Identifier: GPL-2.0

//! A packed ring with a driver that keeps no rule: any bytes, anywhere.
//!
//! What must hold whatever it does: nothing panics or goes on without end, nothing is read or written
//! outside of what the device was given, each chain that was taken is used once, and what is used are
//! descriptors that were taken.

use crate::{
    log::DirtyList,
    mem::Event,
    memtable::Segments,
    packed::{
        Layout, What, CUT, DESC, DEVICE, DRIVER, F_AVAIL, F_INDIRECT, F_NEXT, F_USED, F_WRITE,
        GUEST, TABLES, TABLES_SIZE, TABLES_USER, USERS,
    },
    pair::Step,
    vring::Deferred,
};
use proptest::{collection::vec, prelude::*};
use std::{cell::Cell, collections::HashMap, rc::Rc};

/// Memory as a driver left it, and what happens then.
#[derive(Clone, Debug)]
pub struct Case {
    pub layout: Layout,
    pub descs: Vec<Desc>,
    /// Tables fill guest memory from where tables are.
    pub tables: Vec<Desc>,
    pub ops: Vec<Op>,
    /// Every read gets other bytes than the one before, which this chooses.
    pub changing: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub id: u16,
    pub flags: u16,
}

#[derive(Clone, Debug)]
pub enum Op {
    /// Makes so many descriptors available, from the next one on, whatever they are.
    Offer(u16),
    /// Another descriptor, so far from the next one.
    Redo(u16, Desc),
    /// The driver's event area.
    Ask(u16, u16),
    Take(Vec<u32>, What),
    CompleteDeferred(usize),
    Publish,
    WantsCall,
    DisableKicks,
    EnableKicks,
    IsEmpty,
    /// The VMM sets the base to what it was, or to any.
    SetBase(Option<u32>),
}

fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => GUEST,
        4 => (0..64u64).prop_map(|i| TABLES + i * 16),
        1 => (0..32u64).prop_map(|i| GUEST.end - i),
        1 => (0..32u64).prop_map(|i| u64::MAX - i),
        1 => Just(0),
        1 => any::<u64>(),
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![
        2 => Just(0),
        8 => 1..200u32,
        6 => (1..12u32).prop_map(|n| n * 16),
        1 => Just(u32::MAX),
        1 => Just(u32::MAX - 15),
        1 => Just(0x10_0010),
        1 => any::<u32>(),
    ]
}

/// Descriptors; the weight of mistakes is `wild` of 20.
fn desc(wild: u32) -> impl Strategy<Value = Desc> {
    let sane = 20 - wild;
    (
        prop_oneof![wild => addr(), sane => GUEST.start..GUEST.end - 200],
        prop_oneof![wild => len(), sane => 1..200u32],
        any::<u16>(),
        (
            prop_oneof![wild => any::<u16>(), sane => Just(0)],
            prop_oneof![10 => Just(0), 8 => Just(F_WRITE), 4 => Just(F_INDIRECT)],
            prop_oneof![2 => Just(0), 1 => Just(F_NEXT)],
            prop_oneof![Just(0), Just(F_AVAIL), Just(F_USED), Just(F_AVAIL | F_USED)],
        ),
    )
        .prop_map(|(addr, len, id, (noise, kind, next, turn))| {
            let flags = noise & 7 | kind | next | turn;
            let table = flags & F_INDIRECT != 0 && id % 4 != 3;
            Desc {
                addr: if table { TABLES + addr % 64 * 16 } else { addr },
                len: if table { len / 16 * 16 } else { len },
                id,
                flags,
            }
        })
}

fn op() -> impl Strategy<Value = Op> {
    let what = prop_oneof![
        6 => Just(What::Complete),
        1 => Just(What::CompleteEmpty),
        2 => Just(What::PutBack),
        3 => Just(What::Defer),
    ];
    let written = prop_oneof![Just(0), any::<u32>()];
    prop_oneof![
        10 => (1..5u16).prop_map(Op::Offer),
        4 => (0..4u16, desc(10)).prop_map(|(i, desc)| Op::Redo(i, desc)),
        2 => (prop_oneof![0..5u16, any::<u16>()], any::<u16>()).prop_map(|(f, p)| Op::Ask(f, p)),
        10 => (vec(written, 1..6), what).prop_map(|(written, what)| Op::Take(written, what)),
        2 => any::<usize>().prop_map(Op::CompleteDeferred),
        5 => Just(Op::Publish),
        3 => Just(Op::WantsCall),
        2 => Just(Op::DisableKicks),
        2 => Just(Op::EnableKicks),
        1 => Just(Op::IsEmpty),
        1 => proptest::option::of(any::<u32>()).prop_map(Op::SetBase),
    ]
}

pub fn case() -> impl Strategy<Value = Case> {
    (
        prop_oneof![1..9u32, 9..65u32],
        any::<[bool; 2]>(),
        any::<u16>(),
        prop_oneof![0..3u32, 0..14u32],
    )
        .prop_flat_map(|(num, [event_idx, in_order], start, wild)| {
            let layout = Layout {
                num,
                event_idx,
                in_order,
                start: u64::from(start),
            };
            (
                Just(layout),
                vec(desc(wild), num as usize),
                vec(desc(wild), 100),
                vec(op(), 1..50),
                any::<Option<u64>>(),
            )
        })
        .prop_map(|(layout, descs, tables, ops, changing)| Case {
            layout,
            descs,
            tables,
            ops,
            changing,
        })
}

pub fn raw(desc: &Desc) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&desc.addr.to_le_bytes());
    raw[8..12].copy_from_slice(&desc.len.to_le_bytes());
    raw[12..14].copy_from_slice(&desc.id.to_le_bytes());
    raw[14..].copy_from_slice(&desc.flags.to_le_bytes());
    raw
}

/// So far it is from the place `from` to `to`, around the ring at most twice.
fn steps(from: u16, to: u16, num: u64) -> u64 {
    let number = |place: u16| u64::from(place & 0x7fff) + if place & 0x8000 != 0 { 0 } else { num };
    (number(to) + 2 * num - number(from)) % (2 * num)
}

pub fn check(case: &Case) -> Step {
    let layout = case.layout;
    let num = u64::from(layout.num);
    let mem = layout.memory();
    for (i, desc) in case.descs.iter().enumerate() {
        mem.put(DESC + 16 * i as u64, &raw(desc));
    }
    for (i, desc) in case.tables.iter().enumerate() {
        mem.put(TABLES_USER + 16 * i as u64, &raw(desc));
    }
    let mut ring = layout.ring(&mem, layout.base(layout.start));
    if let Some(seed) = case.changing {
        let state = Rc::new(Cell::new(seed | 1));
        mem.meddle(Box::new(move |_, buf| {
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
            state.set(x);
        }));
    }
    let table = layout.table();
    let mut out = Segments::new().unwrap();
    let mut dirty = DirtyList::new().unwrap();
    // What was taken and not published, by id; what is out there; what is deferred.
    let mut ledger: HashMap<u16, usize> = HashMap::new();
    let mut completed = 0;
    let mut descs_out = 0;
    // What was out there when the base was set, and so stays there.
    let mut lost = 0;
    let mut deferred: Vec<Deferred> = Vec::new();
    for op in &case.ops {
        mem.reads();
        mem.events();
        let base = ring.base();
        match op {
            Op::Offer(count) => {
                for i in 0..u64::from(*count).min(num) {
                    let number = steps(0x8000, base, num) + i;
                    let at = DESC + 16 * (number % num) + 14;
                    let flags = mem.get(at, 2).unwrap();
                    let flags = u16::from_le_bytes([flags[0], flags[1]]) & !(F_AVAIL | F_USED);
                    let turn = if layout.place(number) & 0x8000 != 0 {
                        F_AVAIL
                    } else {
                        F_USED
                    };
                    mem.put(at, &(flags | turn).to_le_bytes());
                }
            }
            Op::Redo(ahead, desc) => {
                let number = (u64::from(base & 0x7fff) + u64::from(*ahead)) % num;
                mem.put(DESC + 16 * number, &raw(desc));
            }
            Op::Ask(flags, place) => {
                mem.put(DRIVER, &place.to_le_bytes());
                mem.put(DRIVER + 2, &flags.to_le_bytes());
            }
            Op::Take(written, what) => {
                out.clear();
                dirty.clear();
                let mut take = ring.take();
                let mut ids = Vec::new();
                for len in written {
                    let had = out.len();
                    let Ok(Some(chain)) = take.next_chain(table.maps(), &mut out, Some(&mut dirty))
                    else {
                        break;
                    };
                    prop_assert_eq!(chain.readable + chain.writable, out.len() - had);
                    ids.push(chain.head);
                    take.set_written(*len);
                }
                prop_assert_eq!(usize::from(take.chains()), ids.len());
                let kept = match what {
                    What::PutBack => {
                        drop(take);
                        false
                    }
                    What::Defer => {
                        let chain = take.defer();
                        prop_assert_eq!(chain.is_some(), ids.len() == 1 && !layout.in_order);
                        deferred.extend(chain);
                        ids.len() == 1 && !layout.in_order
                    }
                    What::Complete => {
                        take.complete();
                        completed += ids.len();
                        true
                    }
                    What::CompleteEmpty => {
                        take.complete_empty();
                        completed += ids.len();
                        true
                    }
                };
                let moved = steps(base, ring.base(), num);
                if kept {
                    prop_assert!(moved >= ids.len() as u64 && moved + descs_out <= num);
                    descs_out += moved;
                    for id in ids {
                        *ledger.entry(id).or_default() += 1;
                    }
                } else {
                    prop_assert_eq!(moved, 0);
                }
                for piece in out.as_slice() {
                    let (user, len) = (piece.addr().get(), piece.len() as u64);
                    let areas = [
                        (USERS[0], CUT - GUEST.start),
                        (USERS[1], GUEST.end - CUT),
                        (TABLES_USER, TABLES_SIZE),
                        (DESC, 16 * num),
                    ];
                    let within = |&(start, size): &(u64, u64)| {
                        user >= start && user - start < size && len <= size - (user - start)
                    };
                    prop_assert!(len > 0 && areas.iter().any(within));
                }
                let (_, bytes) = mem.reads();
                prop_assert!(bytes <= written.len() as u64 * (16 * num + TABLES_SIZE));
            }
            Op::CompleteDeferred(which) => {
                if !deferred.is_empty() {
                    let chain = deferred.swap_remove(which % deferred.len());
                    let before = ring.unpublished();
                    ring.complete_deferred(chain);
                    completed += ring.unpublished() - before;
                }
            }
            Op::Publish => {
                let from = ring.used_idx();
                prop_assert!(ring.publish().is_ok());
                let moved = steps(from, ring.used_idx(), num);
                prop_assert!(moved <= descs_out);
                let writes: Vec<u64> = (mem.events().iter())
                    .filter_map(|event| match event {
                        Event::Write { addr, len: 8 } => Some(*addr),
                        _ => None,
                    })
                    .collect();
                // The first of them last.
                let first = DESC + 16 * u64::from(from & 0x7fff) + 8;
                prop_assert!(writes.last().is_none_or(|&last| last == first));
                for at in &writes {
                    // It is one that was out there.
                    let ahead = (at - DESC) / 16 + num - u64::from(from & 0x7fff);
                    prop_assert!(at % 16 == 8 && ahead % num < moved);
                    let id = mem.get(at + 4, 2).unwrap();
                    let id = u16::from_le_bytes([id[0], id[1]]);
                    let count = ledger.get_mut(&id).filter(|count| **count > 0);
                    prop_assert!(count.is_some(), "{} is used, and was not taken", id);
                    *count.unwrap() -= 1;
                }
                let used = writes.len();
                if !layout.in_order {
                    prop_assert_eq!(used, completed);
                }
                prop_assert_eq!(used > 0, completed > 0);
                descs_out -= moved;
                completed = 0;
                if deferred.is_empty() {
                    prop_assert_eq!(descs_out, lost);
                    ledger.clear();
                }
            }
            Op::WantsCall => prop_assert!(ring.wants_call().is_ok()),
            Op::DisableKicks => prop_assert!(ring.disable_kicks().is_ok()),
            Op::EnableKicks => prop_assert!(ring.enable_kicks().is_ok()),
            Op::IsEmpty => {
                ring.is_empty();
            }
            Op::SetBase(to) => {
                let to = to.unwrap_or(u32::from(base) * 0x1_0001);
                ring.set_vring_base(to).unwrap();
                let (avail, used) = (to as u16, (to >> 16) as u16);
                let used = if to == 0x8000 { avail } else { used };
                let inside = |place: u16| u64::from(place & 0x7fff) < num;
                let good = inside(avail)
                    && inside(used)
                    && steps(used, avail, num) <= if layout.in_order { 0 } else { num };
                prop_assert_eq!(ring.start(crate::vring::Endian::Little, None).is_ok(), good);
                if good {
                    descs_out = steps(used, avail, num);
                } else {
                    ring.set_vring_base(u32::from(base) * 0x1_0001).unwrap();
                    descs_out = 0;
                }
                lost = descs_out;
                ledger.clear();
                completed = 0;
                deferred.clear();
            }
        }
        prop_assert_eq!(ring.unpublished(), completed);
        prop_assert_eq!(steps(ring.used_idx(), ring.base(), num), descs_out);
        prop_assert_eq!(mem.violations(), vec![]);
        for event in mem.events() {
            // Nobody writes to the ring but who publishes.
            if let Event::Write { addr, .. } = event {
                prop_assert_eq!(addr & !3, DEVICE);
            }
        }
    }
    Ok(())
}
