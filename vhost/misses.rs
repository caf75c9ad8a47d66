// SPDX-License-Identifier: GPL-2.0

//! The misses of the IOTLB, which a device tells its owner.
//!
//! A queue that comes upon an address that the IOTLB does not know stops and tells the owner, who
//! reads that as a message (`VHOST_IOTLB_MISS`) and answers with an update. A queue has one miss
//! at a time: it goes on at an answer to that one, which comes after the message was read. If none
//! comes, for the owner may have failed, a kick has the queue look again, and ask again.

#![forbid(unsafe_code)]

use crate::{
    memtable::{
        Iova,
        Miss, //
    },
    uapi, //
};

/// A miss of a queue.
#[derive(Clone, Copy)]
struct Waiting {
    miss: Miss,
    /// The message's type, which says what the rest is like.
    kind: u32,
    /// Misses are read in the order of these.
    number: u64,
    /// The message was read, and is not to be read again.
    read: bool,
    /// The same miss was read before, as another message: it may be answered.
    asked: bool,
}

/// The misses of a device with `N` queues.
pub struct Misses<const N: usize> {
    queues: [Option<Waiting>; N],
    next_number: u64,
    /// There is an IOTLB, so there may be misses.
    open: bool,
}

impl<const N: usize> Misses<N> {
    /// No misses, and none to come.
    pub const fn new() -> Self {
        Self {
            queues: [None; N],
            next_number: 0,
            open: false,
        }
    }

    /// Whether there may be misses.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Says that there may be misses from now on.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// Forgets the miss of queue `index`.
    pub fn forget(&mut self, index: usize) {
        if let Some(slot) = self.queues.get_mut(index) {
            *slot = None;
        }
    }

    /// Forgets all misses; there will be no more.
    pub fn close(&mut self) {
        self.queues = [None; N];
        self.open = false;
    }

    /// Adds a miss of queue `index`, as a message of type `kind`. With `again` it takes the place
    /// of one that was read and not answered. Returns false if there is another one, which comes
    /// first.
    pub fn add(&mut self, index: usize, miss: Miss, kind: u32, again: bool) -> bool {
        let Some(slot) = self.queues.get_mut(index) else {
            return false;
        };
        if slot.is_some_and(|waiting| !waiting.read || !again) {
            return false;
        }
        *slot = Some(Waiting {
            miss,
            kind,
            number: self.next_number,
            read: false,
            // The answer to the first message may be on its way.
            asked: slot.is_some_and(|waiting| waiting.miss == miss),
        });
        self.next_number += 1;
        true
    }

    /// Whether there is a message to read.
    pub fn is_readable(&self) -> bool {
        self.queues.iter().flatten().any(|waiting| !waiting.read)
    }

    /// Reads the oldest message that was not read. Returns it with its number.
    pub fn read(&mut self) -> Option<(uapi::Message, u64)> {
        let waiting = self
            .queues
            .iter_mut()
            .flatten()
            .filter(|waiting| !waiting.read)
            .min_by_key(|waiting| waiting.number)?;
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
        for waiting in self.queues.iter_mut().flatten() {
            if waiting.number == number {
                waiting.read = false;
            }
        }
    }

    /// Removes the misses that were read once and whose address is one of `size` from `addr`. Calls
    /// `f` with the index of each one's queue.
    pub fn answer(&mut self, addr: Iova, size: u64, mut f: impl FnMut(usize)) {
        for (index, slot) in self.queues.iter_mut().enumerate() {
            let answered = slot.is_some_and(|waiting| {
                let asked = waiting.read || waiting.asked;
                asked && waiting.miss.addr.get().wrapping_sub(addr.get()) < size
            });
            if answered {
                *slot = None;
                f(index);
            }
        }
    }
}
