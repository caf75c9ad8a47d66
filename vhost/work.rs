// SPDX-License-Identifier: GPL-2.0

//! What a worker has to do: a bit for each reason to run a queue.
//!
//! Bits are set from any context, and the worker takes them all at once. This knows no thread: who
//! sets a bit wakes one, if the bit is new. Nobody waits for a bit to be done: what a turn uses it
//! finds anew under the queue's lock, so whoever has that lock knows that the last turn is over,
//! and that the next one will see what is changed.

#![forbid(unsafe_code)]

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    }, //
};

/// The number of queues that a device has.
pub const QUEUES: usize = 2;

/// Work bits: which queues have something to do.
#[derive(Clone, Copy)]
pub struct WorkBits(u32);

static_assert!(2 * QUEUES <= 30);

impl WorkBits {
    /// The driver kicked queue `index`.
    pub const fn kick(index: usize) -> u32 {
        1 << index
    }

    /// The backend of queue `index` is ready, or the queue goes on for another reason.
    pub const fn ready(index: usize) -> u32 {
        1 << (index + QUEUES)
    }

    /// Either of them.
    pub const fn of(index: usize) -> [u32; 2] {
        [Self::kick(index), Self::ready(index)]
    }

    /// The worker's first work: to say who it is.
    pub const BEGIN: u32 = 1 << 30;

    const WOKEN: u32 = 1 << 31;

    /// The same work, for which the worker has slept or not.
    pub fn after(self, sleep: bool) -> Self {
        Self(self.0 | if sleep { Self::WOKEN } else { 0 })
    }

    /// Whether the worker has slept until there was this work.
    pub fn woken(self) -> bool {
        self.has(Self::WOKEN)
    }

    /// Whether a bit is set.
    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// Whether a queue behind this one has something to do.
    pub fn has_after(self, index: usize) -> bool {
        (index + 1..QUEUES).any(|index| Self::of(index).iter().any(|&bit| self.has(bit)))
    }
}

/// The work that waits for a worker: [`WorkBits`] that were not taken.
pub struct WorkSet(Atomic<u32>);

impl WorkSet {
    /// Nothing to do.
    pub const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Sets a bit. Returns whether it is new: then the worker is to be woken.
    pub fn add(&self, bit: u32) -> bool {
        let mut old = self.0.load(Relaxed);
        loop {
            // Fully ordered also when the bit is there: what the caller did before is seen by the
            // worker, which takes the bit with full order before it looks.
            match self.0.cmpxchg(old, old | bit, Full) {
                Ok(_) => return old & bit == 0,
                Err(now) => old = now,
            }
        }
    }

    /// Whether a bit is set and not taken.
    pub fn has(&self, bit: u32) -> bool {
        self.0.load(Relaxed) & bit != 0
    }

    /// Takes all that there is to do.
    pub fn take(&self) -> Option<WorkBits> {
        match self.0.xchg(0, Full) {
            0 => None,
            bits => Some(WorkBits(bits)),
        }
    }

    /// Whether there is something to do that was not taken.
    pub fn has_work(&self) -> bool {
        self.0.load(Relaxed) != 0
    }
}
