// SPDX-License-Identifier: GPL-2.0

//! Chains that are completed long after they were taken.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*, sample::Index};
use std::collections::VecDeque;
use vhost_net_host_tests::{
    config,
    features::Features,
    mem::Mem,
    memtable::{MemTable, Segments},
    pair::{raw_desc, Layout, Pair, Step, SPAN},
    ring::Vring,
    vring::{Deferred, MAX_NUM},
};

/// A ring, and a driver whose chains have one descriptor each.
struct Fixture {
    layout: Layout,
    mem: Mem,
    ring: Vring<Mem>,
    table: MemTable,
    /// The index of the next chain to be made available, and of the next used entry.
    avail: u16,
    used: u16,
    /// Chains that the driver has.
    free: VecDeque<u16>,
    /// Chains that are available, those that are deferred, and those that are completed.
    available: VecDeque<u16>,
    deferred: Vec<(u16, Deferred)>,
    done: VecDeque<u16>,
}

impl Fixture {
    fn new(num: u32, big_endian: bool, base: u16) -> Self {
        let layout = Layout {
            num,
            big_endian,
            avail_base: base,
            used_base: base,
            ..Layout::default()
        };
        let Pair {
            mem, ring, table, ..
        } = Pair::new(layout.clone());
        for head in 0..num {
            let desc = raw_desc(layout.endian(), SPAN.start, 1 + head % 4096, 0, 0);
            mem.put(layout.desc() + 16 * u64::from(head), &desc);
        }
        Self {
            mem,
            ring,
            table,
            avail: base,
            used: base,
            free: (0..num as u16).collect(),
            available: VecDeque::new(),
            deferred: vec![],
            done: VecDeque::new(),
            layout,
        }
    }

    /// The driver makes a chain available, whether or not it has it.
    fn offer(&mut self, head: u16) {
        let (num, endian) = (self.layout.num as u16, self.layout.endian());
        let at = self.layout.avail() + 4 + 2 * u64::from(self.avail & (num - 1));
        self.mem.put_u16(at, head, endian);
        self.avail = self.avail.wrapping_add(1);
        self.mem
            .put_u16(self.layout.avail() + 2, self.avail, endian);
        self.available.push_back(head);
    }

    /// The device takes a chain, and completes it, defers it or gives it back.
    fn take(&mut self, what: What) -> Result<Option<u16>> {
        let mut out = Segments::new()?;
        let mut take = self.ring.take();
        let Some(chain) = take
            .next_chain(self.table.maps(), &mut out, None)
            .map_err(|fault| fault.error)?
        else {
            return Ok(None);
        };
        assert_eq!(Some(&chain.head), self.available.front());
        match what {
            What::Complete => {
                take.complete();
                self.done.push_back(chain.head);
            }
            What::Defer => {
                let deferred = take.defer().unwrap();
                self.deferred.push((chain.head, deferred));
            }
            What::GiveBack => {
                drop(take);
                return Ok(Some(chain.head));
            }
        }
        self.available.pop_front();
        Ok(Some(chain.head))
    }

    fn complete_deferred(&mut self, which: usize) {
        let (head, chain) = self.deferred.remove(which);
        self.ring.complete_deferred(chain);
        self.done.push_back(head);
    }

    /// The used entries are the chains that were completed, in that order.
    fn publish(&mut self) -> Step {
        prop_assert_eq!(self.ring.unpublished(), self.done.len());
        self.ring.publish().unwrap();
        prop_assert_eq!(self.ring.unpublished(), 0);
        let endian = self.layout.endian();
        for head in self.done.drain(..) {
            let slot = u64::from(self.used & (self.layout.num as u16 - 1));
            let at = self.layout.used() + 4 + 8 * slot;
            prop_assert_eq!(self.mem.get_u32(at, endian), u32::from(head));
            prop_assert_eq!(self.mem.get_u32(at + 4, endian), 0);
            self.used = self.used.wrapping_add(1);
            self.free.push_back(head);
        }
        let index = self.mem.get_u16(self.layout.used() + 2, endian);
        prop_assert_eq!(index, self.used);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum What {
    Complete,
    Defer,
    GiveBack,
}

#[derive(Clone, Debug)]
enum Op {
    Offer(u8),
    Take(What),
    CompleteDeferred(Index),
    Publish,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (1..8u8).prop_map(Op::Offer),
        3 => Just(Op::Take(What::Complete)),
        4 => Just(Op::Take(What::Defer)),
        1 => Just(Op::Take(What::GiveBack)),
        3 => any::<Index>().prop_map(Op::CompleteDeferred),
        2 => Just(Op::Publish),
    ]
}

proptest! {
    #![proptest_config(config(2000))]

    /// Whatever is completed when, each chain comes back once, in the order of completion.
    #[test]
    fn in_any_order(
        shift in 0..6u32,
        big_endian: bool,
        base: u16,
        ops in vec(op(), 0..200),
    ) {
        let mut f = Fixture::new(1 << shift, big_endian, base);
        for op in ops {
            match op {
                Op::Offer(count) => {
                    for _ in 0..count {
                        if let Some(head) = f.free.pop_front() {
                            f.offer(head);
                        }
                    }
                }
                Op::Take(what) => {
                    let first = f.available.front().copied();
                    prop_assert_eq!(f.take(what), Ok(first));
                }
                Op::CompleteDeferred(which) if !f.deferred.is_empty() => {
                    f.complete_deferred(which.index(f.deferred.len()));
                }
                Op::CompleteDeferred(_) => {}
                Op::Publish => f.publish()?,
            }
        }
        while !f.deferred.is_empty() {
            f.complete_deferred(0);
        }
        while f.take(What::Complete).unwrap().is_some() {}
        f.publish()?;
        let mut back: Vec<_> = f.free.into();
        back.sort_unstable();
        prop_assert_eq!(back, (0..1u16 << shift).collect::<Vec<_>>());
    }
}

/// So many chains as the ring has, deferred, completed or taken: another one is one of them.
#[test]
fn a_chain_that_is_available_twice() {
    for num in [1, 2, 8, 64] {
        for deferred in 1..=num {
            let mut f = Fixture::new(num, false, 0xfff0);
            for head in 0..num {
                f.offer(head as u16);
                let what = match head < deferred {
                    true => What::Defer,
                    false => What::Complete,
                };
                assert!(f.take(what).unwrap().is_some());
            }
            f.offer(0);
            assert_eq!(f.take(What::Complete), Err(EINVAL));
            // What was published is no longer out.
            if deferred < num {
                f.publish().unwrap();
                assert_eq!(f.take(What::Complete), Ok(Some(0)));
                f.publish().unwrap();
                f.offer(1);
            }
            for _ in 0..deferred {
                f.complete_deferred(0);
            }
            if deferred == num {
                assert_eq!(f.take(What::Complete), Err(EINVAL));
            }
            f.publish().unwrap();
            assert!(f.take(What::Complete).unwrap().is_some());
        }
    }
}

/// However much is completed before, there is room for what was deferred.
#[test]
fn room() {
    const DEFERRED: usize = 128;
    let mut f = Fixture::new(MAX_NUM, true, 7);
    for head in 0..4096 {
        f.offer(head);
    }
    for _ in 0..DEFERRED {
        f.take(What::Defer).unwrap();
    }
    let full = loop {
        match f.take(What::Complete) {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(full, Err(ENOBUFS));
    assert!(f.done.len() > 900, "{} were completed", f.done.len());
    for i in 0..DEFERRED {
        f.complete_deferred((DEFERRED - 1 - i) / 2);
    }
    f.publish().unwrap();
    assert!(f.take(What::Complete).unwrap().is_some());
}

/// A ring that is set up anew knows nothing of what was deferred before, and is not confused by it.
#[test]
fn forgotten() {
    type Change = fn(&mut Fixture);
    let changes: [(&str, Change); 5] = [
        ("the number", |f| f.ring.set_num(f.layout.num).unwrap()),
        ("the base", |f| {
            let base = f.ring.base();
            f.ring.set_base(base);
        }),
        ("the order", |f| {
            f.ring.set_features(Features::of(&[Features::IN_ORDER]));
            f.ring.set_features(Features::default());
        }),
        ("the byte order", |f| {
            f.layout.big_endian = true;
            f.mem
                .put_u16(f.layout.used() + 2, f.used, f.layout.endian());
            f.ring.start(f.layout.endian(), None).unwrap();
            f.layout.big_endian = false;
            f.mem
                .put_u16(f.layout.used() + 2, f.used, f.layout.endian());
            f.ring.start(f.layout.endian(), None).unwrap();
        }),
        ("all of it", |f| {
            f.ring.reset();
            f.layout.set_up(&mut f.ring, f.avail);
            f.ring.start(f.layout.endian(), None).unwrap();
        }),
    ];
    for (what, change) in changes {
        let mut f = Fixture::new(4, false, 3);
        for head in 0..4 {
            f.offer(head);
            f.take(What::Defer).unwrap();
        }
        change(&mut f);
        let old = core::mem::take(&mut f.deferred);
        for head in [2, 0] {
            f.offer(head);
            assert_eq!(f.take(What::Defer), Ok(Some(head)), "{what}");
        }
        for (_, chain) in old {
            f.ring.complete_deferred(chain);
            assert_eq!(f.ring.unpublished(), 0, "{what}");
        }
        // There are two left, and no more.
        for head in [1, 3] {
            f.offer(head);
            assert_eq!(f.take(What::Defer), Ok(Some(head)), "{what}");
        }
        f.offer(0);
        assert_eq!(f.take(What::Defer), Err(EINVAL), "{what}");
        for i in [1, 2, 1, 0] {
            f.complete_deferred(i);
        }
        f.publish().unwrap();
    }
}

/// What can't be deferred is in the ring again.
#[test]
fn not_to_be_deferred() {
    let mut f = Fixture::new(4, false, 0);
    let mut out = Segments::new().unwrap();
    f.offer(3);
    f.offer(0);
    assert!(f.ring.take().defer().is_none());
    let mut take = f.ring.take();
    for _ in 0..2 {
        let chain = take.next_chain(f.table.maps(), &mut out, None).unwrap();
        assert!(chain.is_some());
    }
    assert!(take.defer().is_none());
    assert_eq!(f.take(What::GiveBack), Ok(Some(3)));

    f.ring.set_features(Features::of(&[Features::IN_ORDER]));
    let mut take = f.ring.take();
    let chain = take.next_chain(f.table.maps(), &mut out, None).unwrap();
    assert_eq!(chain.unwrap().head, 3);
    assert!(take.defer().is_none());
    assert_eq!(f.take(What::Complete), Ok(Some(3)));
    assert_eq!(f.take(What::Complete), Ok(Some(0)));
    assert_eq!(f.ring.unpublished(), 2);
}
