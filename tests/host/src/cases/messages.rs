// SPDX-License-Identifier: GPL-2.0

//! Misses of queues, and an owner who reads and answers them.

use crate::{
    memtable::{Access, Iova, Miss},
    messages::Misses,
    pair::Step,
};
use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};

pub fn case() -> impl Strategy<Value = Vec<Op>> {
    vec(op(), 1..60)
}

/// The misses do as a list of them.
pub fn check(ops: &[Op]) -> Step {
    let mut misses: Misses<QUEUES> = Misses::new();
    let (mut told, mut open): (Vec<Told>, bool) = (Vec::new(), false);
    let mut numbers = Vec::new();
    for op in ops {
        match *op {
            Op::Add(queue, addr, write, kind, again) => {
                let access = if write { Access::Write } else { Access::Read };
                let miss = Miss {
                    addr: Iova::new(addr),
                    access,
                };
                // One that was read and not answered gives way, if it is to be asked for again.
                let old = told.iter().position(|told| told.queue == queue);
                let free = queue < QUEUES && old.is_none_or(|at| told[at].read.is_some() && again);
                if free {
                    let old = old.map(|at| told.remove(at));
                    told.push(Told {
                        queue,
                        miss,
                        kind,
                        read: None,
                        asked: old.is_some_and(|old| old.miss == miss),
                    });
                }
                prop_assert_eq!(misses.add(queue, miss, kind, again), free);
            }
            Op::Read => {
                let want = told.iter_mut().find(|told| told.read.is_none());
                let got = misses.read();
                prop_assert_eq!(got.is_some(), want.is_some());
                if let (Some((message, number)), Some(told)) = (got, want) {
                    prop_assert_eq!(message.as_bytes(), bytes(told));
                    told.read = Some(number);
                    numbers.push(number);
                }
            }
            Op::Unread(ago) => {
                // It may have been answered, or read again, meanwhile.
                if let Some(&number) = numbers.iter().rev().nth(ago) {
                    misses.unread(number);
                    for told in &mut told {
                        if told.read == Some(number) {
                            told.read = None;
                        }
                    }
                }
            }
            Op::Answer(addr, size) => {
                let end = u128::from(addr) + u128::from(size);
                let size = if end > 1 << 64 { 1 } else { size };
                let covered = |told: &Told| {
                    let at = u128::from(told.miss.addr.get());
                    (u128::from(addr)..u128::from(addr) + u128::from(size)).contains(&at)
                };
                let answered = |told: &Told| (told.read.is_some() || told.asked) && covered(told);
                let mut want: Vec<_> = told
                    .iter()
                    .filter(|t| answered(t))
                    .map(|t| t.queue)
                    .collect();
                told.retain(|told| !answered(told));
                let mut got = Vec::new();
                misses.answer(Iova::new(addr), size, |queue| got.push(queue));
                want.sort_unstable();
                got.sort_unstable();
                prop_assert_eq!(got, want);
            }
            Op::Forget(queue) => {
                misses.forget(queue);
                told.retain(|told| told.queue != queue);
            }
            Op::Close => {
                misses.close();
                told.clear();
                open = false;
            }
            Op::Open => {
                misses.open();
                open = true;
            }
        }
        prop_assert_eq!(
            misses.is_readable(),
            told.iter().any(|told| told.read.is_none())
        );
        prop_assert_eq!(misses.is_open(), open);
    }
    Ok(())
}

pub const QUEUES: usize = 3;

/// A miss that was not answered; the list of these has the oldest first.
#[derive(Clone, Copy, Debug)]
struct Told {
    queue: usize,
    miss: Miss,
    kind: u32,
    /// It was read; the message had this number.
    read: Option<u64>,
    /// The same was read before, as another message.
    asked: bool,
}

#[derive(Clone, Debug)]
pub enum Op {
    /// A miss of a queue: its address, whether to write there, the type of its message, whether it is asked for again.
    Add(usize, u64, bool, u32, bool),
    Read,
    /// A read that was so many reads ago did not reach its reader.
    Unread(usize),
    Answer(u64, u64),
    Forget(usize),
    Close,
    Open,
}

/// Addresses that are close to each other, at both ends of the address space.
fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![0..6u64, u64::MAX - 5..=u64::MAX, any::<u64>()]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..=QUEUES, addr(), any::<bool>(), 1..3u32, any::<bool>())
            .prop_map(|(q, a, w, k, again)| Op::Add(q, a, w, k, again)),
        6 => Just(Op::Read),
        2 => (0..3usize).prop_map(Op::Unread),
        6 => (addr(), prop_oneof![4 => 1..6u64, 1 => Just(u64::MAX), 1 => any::<u64>()])
            .prop_map(|(a, s)| Op::Answer(a, s)),
        1 => (0..=QUEUES).prop_map(Op::Forget),
        1 => Just(Op::Close),
        1 => Just(Op::Open),
    ]
}

/// A message in bytes, by the offsets in `struct vhost_msg_v2`.
fn bytes(told: &Told) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[..4].copy_from_slice(&told.kind.to_ne_bytes());
    bytes[8..16].copy_from_slice(&told.miss.addr.get().to_ne_bytes());
    bytes[32] = match told.miss.access {
        Access::Read => 1,
        Access::Write => 2,
    };
    bytes[33] = 1;
    bytes
}
