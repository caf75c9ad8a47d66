// SPDX-License-Identifier: GPL-2.0

//! The misses of the IOTLB, which a device tells its owner.
//!
//! A queue that comes upon an address that the IOTLB does not know stops, looks
//! [ahead](crate::memtable::Ahead), and tells its owner of all that is missing, who reads each as a
//! message (`VHOST_IOTLB_MISS`) and answers it with an update. The queue goes on when all that it
//! needs next was answered. An answer comes after its message was read; where none comes, for the
//! owner may have failed, a kick has the queue look again, and ask again for what it needs next.
//! What an invalidation covers may be asked again, too.
//!
//! What a queue waits for is what it came upon when it last stopped: what was told and is no longer
//! among that, is forgotten. How many these are, [`MAX_AHEAD`] says; their room is made with the
//! IOTLB.
//!
//! An update that comes while a turn has the IOTLB, and changes nothing that is known, is put off,
//! so that the owner does not wait for a packet that has nothing to do with it; who has the IOTLB
//! next makes the update. A turn that comes upon a miss looks here whether anything was put off, and if so runs again.

#![forbid(unsafe_code)]

use crate::{
    memtable::{
        Ahead,
        Iova,
        Miss,
        Update,
        Updates,
        MAX_AHEAD, //
    },
    uapi, //
};
use kernel::prelude::*;

/// The most updates that are put off.
pub const MAX_LATE: usize = 64;

/// A miss of a queue.
#[derive(Clone, Copy)]
struct Waiting {
    queue: usize,
    miss: Miss,
    /// The message's type, which says what the rest is like.
    kind: u32,
    /// The message's, which no other has.
    number: u64,
    /// The message was read, and is not to be read again.
    read: bool,
    /// The same miss was read before, as another message: it may be answered.
    asked: bool,
    /// An invalidation has come after the message was read: there may be no answer.
    stale: bool,
    /// The queue can't go on without it.
    needed: bool,
    /// Nobody is told: a map is there, which does not allow the access.
    silent: bool,
}

/// The misses of a device with `N` queues.
///
/// # Invariants
///
/// Each queue has at most [`MAX_AHEAD`], each once. The first is the one to be read first.
pub struct Misses<const N: usize> {
    list: KVVec<Waiting>,
    next_number: u64,
    /// There is an IOTLB, so there may be misses.
    open: bool,
    /// What is put off.
    late: Updates,
}

impl<const N: usize> Misses<N> {
    /// No misses, none to come, and no room for any.
    pub const fn none() -> Self {
        // INVARIANT: There are none.
        Self {
            list: KVVec::new(),
            next_number: 0,
            open: false,
            late: Updates::new(),
        }
    }

    /// No misses, and room for those to come. Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        // INVARIANT: There are none.
        Ok(Self {
            list: KVVec::with_capacity(N * MAX_AHEAD, GFP_KERNEL_ACCOUNT)?,
            late: Updates::with_capacity(MAX_LATE, GFP_KERNEL_ACCOUNT)?,
            ..Self::none()
        })
    }

    /// Whether there may be misses.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// If there is no room, takes that of `new`.
    pub fn take_room(&mut self, new: &mut Self) {
        if self.list.capacity() == 0 {
            core::mem::swap(&mut self.list, &mut new.list);
            core::mem::swap(&mut self.late, &mut new.late);
        }
    }

    /// Says that there may be misses from now on, for which there is room.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// Forgets the misses of queue `index`.
    pub fn forget(&mut self, index: usize) {
        self.list.retain(|waiting| waiting.queue != index);
    }

    /// Forgets all misses; there will be no more.
    pub fn close(&mut self) {
        self.list.clear();
        self.late.clear();
        self.open = false;
    }

    /// Puts an update off. Returns false if there is no room.
    pub fn put_off(&mut self, update: Update) -> bool {
        self.late.push_within_capacity(update).is_ok()
    }

    /// Exchanges `none`, which has room for [`MAX_LATE`], for what was put off.
    pub fn take_late(&mut self, none: &mut Updates) {
        core::mem::swap(&mut self.late, none);
    }

    /// Forgets what was put off: it concerns an IOTLB that will be no more.
    pub fn forget_late(&mut self) {
        self.late.clear();
    }

    /// Whether something was put off.
    pub fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Has queue `index` wait for `ahead`, and for nothing else, with messages of type `kind`. With
    /// `again`, what it needs next is asked for once more if it was read and not answered.
    ///
    /// Returns whether there is a message to read that was not there before.
    pub fn wait_for(&mut self, index: usize, ahead: &Ahead, kind: u32, again: bool) -> bool {
        if index >= N {
            return false;
        }
        // What was told goes in the order of its messages; what is told anew comes behind it.
        self.list.retain(|waiting| {
            waiting.queue != index
                || !waiting.silent && ahead.iter().any(|(miss, _)| miss == waiting.miss)
        });
        let before = self.next_number;
        for (miss, needed) in ahead.iter() {
            let known = |waiting: &Waiting| waiting.queue == index && waiting.miss == miss;
            let known = self.list.iter().position(known);
            let mut asked = false;
            if let Some((at, waiting)) = known.and_then(|at| Some((at, self.list.get_mut(at)?))) {
                waiting.needed = needed;
                if !waiting.read || !(waiting.stale || again && needed) {
                    continue;
                }
                // The answer to the first message may be on its way.
                asked = true;
                let _ = self.list.remove(at);
            }
            // INVARIANT: It is not there, and there is room: the others of its queue are in `ahead`.
            let _ = self.list.push_within_capacity(Waiting {
                queue: index,
                miss,
                kind,
                number: self.next_number,
                read: false,
                asked,
                stale: false,
                needed,
                silent: false,
            });
            self.next_number += 1;
        }
        self.next_number != before
    }

    /// Has queue `index` wait, and for nothing else, until an update covers an address that a map
    /// does not allow to be used: nobody is asked for that.
    pub fn wait_silently(&mut self, index: usize, miss: Miss) {
        self.forget(index);
        if index < N {
            // INVARIANT: It is the only one of its queue.
            let _ = self.list.push_within_capacity(Waiting {
                queue: index,
                miss,
                kind: 0,
                number: self.next_number,
                read: true,
                asked: false,
                stale: false,
                needed: true,
                silent: true,
            });
            self.next_number += 1;
        }
    }

    /// Whether there is a message to read.
    pub fn is_readable(&self) -> bool {
        self.list.iter().any(|waiting| !waiting.read)
    }

    /// Reads a message that was not read: the oldest one that a queue can't go on without, or of
    /// the others. Returns it with its number.
    pub fn read(&mut self) -> Option<(uapi::Message, u64)> {
        let next = |needed| {
            let mut list = self.list.iter();
            list.position(|waiting| !waiting.read && waiting.needed == needed)
        };
        let at = next(true).or_else(|| next(false))?;
        let waiting = self.list.get_mut(at)?;
        waiting.read = true;
        let message = uapi::Message {
            kind: waiting.kind,
            asid: 0,
            iotlb: uapi::IotlbMessage {
                iova: waiting.miss.addr.get(),
                size: 0,
                uaddr: 0,
                perm: waiting.miss.access as u8,
                kind: uapi::IOTLB_MISS,
                padding: [0; 6],
            },
            padding: [0; 32],
        };
        Some((message, waiting.number))
    }

    /// The message of this number did not reach its reader: the next one gets it.
    pub fn unread(&mut self, number: u64) {
        for waiting in self.list.iter_mut() {
            if waiting.number == number && !waiting.silent {
                waiting.read = false;
            }
        }
    }

    /// There is an update of `size` bytes from `addr`. Where it covers a miss of a queue that was
    /// read once, it is the answer to that, and to all others of the queue that it covers. Calls
    /// `f` with the index of each queue that has all that it needs then.
    pub fn answer(&mut self, addr: Iova, size: u64, mut f: impl FnMut(usize)) {
        let covers = |waiting: &Waiting| waiting.miss.addr.get().wrapping_sub(addr.get()) < size;
        for index in 0..N {
            let (mut answers, mut needed) = (false, false);
            for waiting in self.list.iter().filter(|w| w.queue == index && covers(w)) {
                answers |= waiting.read || waiting.asked;
                needed |= waiting.needed;
            }
            if !answers {
                continue;
            }
            self.list.retain(|w| w.queue != index || !covers(w));
            needed &= !self.list.iter().any(|w| w.queue == index && w.needed);
            if needed {
                f(index);
            }
        }
    }

    /// The maps of `size` bytes from `addr` are gone: who was asked for one of these may have
    /// nothing to say.
    pub fn invalidate(&mut self, addr: Iova, size: u64) {
        for waiting in self.list.iter_mut() {
            let at = waiting.miss.addr.get().wrapping_sub(addr.get());
            waiting.stale |= waiting.read && at < size;
        }
    }
}
