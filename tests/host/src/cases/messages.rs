// SPDX-License-Identifier: GPL-2.0

//! Misses of queues, and an owner who reads and answers them.

use crate::{
    memtable::{Access, Ahead, Iova, Miss, MAX_AHEAD},
    messages::Misses,
    pair::Step,
};
use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};

pub fn case() -> impl Strategy<Value = Vec<Op>> {
    vec(op(), 1..60)
}

pub fn miss(addr: u64, write: bool) -> Miss {
    Miss {
        addr: Iova::new(addr),
        access: if write { Access::Write } else { Access::Read },
    }
}

/// What a queue comes upon, of which the first `needed` are needed next.
pub fn ahead(misses: &[(u64, bool)], needed: usize) -> Ahead {
    let mut ahead = Ahead::new().unwrap();
    ahead.begin(1024);
    for (i, &(addr, write)) in misses.iter().enumerate() {
        if i == needed.max(1) {
            ahead.go_beyond();
        }
        ahead.push(miss(addr, write));
    }
    ahead
}

/// The misses do as a list of them.
pub fn check(ops: &[Op]) -> Step {
    let mut misses: Misses<QUEUES> = Misses::new().unwrap();
    let (mut told, mut open): (Vec<Told>, bool) = (Vec::new(), false);
    let mut numbers = Vec::new();
    for op in ops {
        match op {
            Op::Wait(queue, list, needed, kind, again) => {
                let ahead = ahead(list, *needed);
                let new = wait(&mut told, *queue, &ahead, *kind, *again);
                prop_assert_eq!(misses.wait_for(*queue, &ahead, *kind, *again), new);
            }
            Op::Silently(queue, addr) => {
                misses.wait_silently(*queue, miss(*addr, false));
                told.retain(|told| told.queue != *queue);
                if *queue < QUEUES {
                    told.push(Told {
                        silent: true,
                        read: Some(u64::MAX),
                        ..Told::new(*queue, miss(*addr, false), 0)
                    });
                }
            }
            Op::Read => {
                // What a queue can't go on without comes first.
                let mut unread: Vec<_> = told.iter_mut().filter(|t| t.read.is_none()).collect();
                unread.sort_by_key(|told| !told.needed);
                let want = unread.into_iter().next();
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
                if let Some(&number) = numbers.iter().rev().nth(*ago) {
                    misses.unread(number);
                    for told in &mut told {
                        if told.read == Some(number) {
                            told.read = None;
                        }
                    }
                }
            }
            Op::Answer(addr, size) => {
                let mut want = answer(&mut told, *addr, *size);
                let mut got = Vec::new();
                let size = cut(*addr, *size);
                misses.answer(Iova::new(*addr), size, |queue| got.push(queue));
                want.sort_unstable();
                got.sort_unstable();
                prop_assert_eq!(got, want);
            }
            Op::Invalidate(addr, size) => {
                misses.invalidate(Iova::new(*addr), cut(*addr, *size));
                for told in &mut told {
                    told.stale |= told.read.is_some() && told.is_in(*addr, *size);
                }
            }
            Op::Forget(queue) => {
                misses.forget(*queue);
                told.retain(|told| told.queue != *queue);
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

/// A miss that was not answered; the list of these is in the order of their messages.
#[derive(Clone, Copy, Debug)]
struct Told {
    queue: usize,
    miss: Miss,
    kind: u32,
    /// It was read; the message had this number.
    read: Option<u64>,
    /// The same was read before, as another message.
    asked: bool,
    /// It was invalidated since.
    stale: bool,
    needed: bool,
    silent: bool,
}

impl Told {
    fn new(queue: usize, miss: Miss, kind: u32) -> Self {
        Told {
            queue,
            miss,
            kind,
            read: None,
            asked: false,
            stale: false,
            needed: true,
            silent: false,
        }
    }

    fn is_in(&self, addr: u64, size: u64) -> bool {
        let at = u128::from(self.miss.addr.get());
        (u128::from(addr)..u128::from(addr) + u128::from(cut(addr, size))).contains(&at)
    }
}

/// The queue waits for these. Returns whether there is a message more.
fn wait(told: &mut Vec<Told>, queue: usize, ahead: &Ahead, kind: u32, again: bool) -> bool {
    if queue >= QUEUES {
        return false;
    }
    let (mine, others): (Vec<Told>, Vec<Told>) = told.iter().partition(|told| told.queue == queue);
    let list: Vec<_> = ahead.iter().collect();
    let mut new = vec![];
    let mut kept = vec![];
    for (miss, needed) in list {
        let mut entry = Told {
            needed,
            ..Told::new(queue, miss, kind)
        };
        match mine.iter().find(|old| old.miss == miss && !old.silent) {
            Some(old) if old.read.is_some() && (old.stale || again && needed) => {
                entry.asked = true;
                new.push(entry);
            }
            Some(old) => kept.push(Told { needed, ..*old }),
            None => new.push(entry),
        }
    }
    // Those that stay keep their place among all.
    let stays = |old: &Told| kept.iter().find(|kept| kept.miss == old.miss).copied();
    let all = told.iter().filter_map(|old| match old.queue == queue {
        true if old.silent => None,
        true => stays(old),
        false => Some(*old),
    });
    let mut all: Vec<_> = all.collect();
    assert!(all.len() >= others.len());
    all.extend(&new);
    *told = all;
    assert!(told.iter().filter(|told| told.queue == queue).count() <= MAX_AHEAD);
    !new.is_empty()
}

/// An update. Returns the queues that have what they need then.
fn answer(told: &mut Vec<Told>, addr: u64, size: u64) -> Vec<usize> {
    let mut ready = vec![];
    for queue in 0..QUEUES {
        let covered = |told: &Told| told.queue == queue && told.is_in(addr, size);
        if told
            .iter()
            .any(|told| covered(told) && (told.read.is_some() || told.asked))
        {
            let needs = |told: &[Told]| told.iter().any(|t| t.queue == queue && t.needed);
            let before = told.iter().any(|told| covered(told) && told.needed);
            told.retain(|told| !covered(told));
            if before && !needs(told) {
                ready.push(queue);
            }
        }
    }
    ready
}

/// A size that does not go past the end of the address space.
fn cut(addr: u64, size: u64) -> u64 {
    if u128::from(addr) + u128::from(size) > 1 << 64 {
        1
    } else {
        size
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    /// A queue comes upon these: addresses, and whether to write there; so many of them are needed next; the
    /// type of the messages; whether it asks again.
    Wait(usize, Vec<(u64, bool)>, usize, u32, bool),
    /// A queue waits for another map of this address.
    Silently(usize, u64),
    Read,
    /// A read that was so many reads ago did not reach its reader.
    Unread(usize),
    Answer(u64, u64),
    Invalidate(u64, u64),
    Forget(usize),
    Close,
    Open,
}

/// Addresses in pages that are close to each other, at both ends of the address space.
fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..8u64, 0..2u64).prop_map(|(page, at)| page * 4096 + at),
        1 => (0..4u64).prop_map(|page| u64::MAX - page * 4096),
        1 => any::<u64>(),
    ]
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1..3u64, 6 => (1..4u64).prop_map(|n| n * 4096), 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn op() -> impl Strategy<Value = Op> {
    let list = || {
        prop_oneof![
            10 => vec((addr(), any::<bool>()), 1..8),
            1 => (any::<u32>(), 60..90u64).prop_map(|(from, count)| {
                (0..count).map(|i| (u64::from(from) + i * 4096, i % 2 == 0)).collect()
            }),
        ]
    };
    prop_oneof![
        8 => (0..=QUEUES, list(), 0..5usize, 1..3u32, any::<bool>())
            .prop_map(|(q, l, n, k, again)| Op::Wait(q, l, n, k, again)),
        1 => (0..=QUEUES, addr()).prop_map(|(q, a)| Op::Silently(q, a)),
        12 => Just(Op::Read),
        2 => (0..3usize).prop_map(Op::Unread),
        10 => (addr(), size()).prop_map(|(a, s)| Op::Answer(a, s)),
        2 => (addr(), size()).prop_map(|(a, s)| Op::Invalidate(a, s)),
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
        Access::ReadWrite => 3,
    };
    bytes[33] = 1;
    bytes
}
