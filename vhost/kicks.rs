// SPDX-License-Identifier: GPL-2.0

//! When queues were kicked, for who traces it. Nothing is kept while nobody does.

#![forbid(unsafe_code)]

use super::{
    identity::Identity,
    work::{
        WorkBits,
        WorkSet,
        QUEUES, //
    }, //
};
use crate::sys::{
    counter::Counter,
    trace, //
};
use kernel::{
    sync::Arc,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// When queues were kicked that a worker runs.
pub struct Kicks {
    identity: Arc<Identity>,
    /// What times are counted from.
    zero: Instant<Monotonic>,
    /// Since when a kick waits for the worker, in nanoseconds; 0 if that is not known.
    at: [Counter; QUEUES],
}

impl Kicks {
    /// None yet, for the worker of this name.
    pub fn new(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            zero: Instant::now(),
            at: [const { Counter::new() }; QUEUES],
        }
    }

    /// Nanoseconds, never 0.
    fn now(&self) -> u64 {
        self.zero.elapsed().as_nanos().unsigned_abs() + 1
    }

    /// A work bit is about to be added to `set`. Called in any context.
    #[inline]
    pub fn passed(&self, bit: u32, set: &WorkSet) {
        if trace::kick_enabled() || trace::work_enabled() {
            self.note(bit, set);
        }
    }

    #[cold]
    fn note(&self, bit: u32, set: &WorkSet) {
        for (index, at) in self.at.iter().enumerate() {
            if bit == WorkBits::kick(index) {
                // Of several kicks for one turn the first one counts.
                if !trace::work_enabled() {
                    at.set(0);
                } else if !set.has(bit) {
                    at.set(self.now());
                }
                trace::kick(self.identity.owner(), self.identity.worker(), index as u32);
            }
        }
    }

    /// How many nanoseconds ago queue `index` was kicked, which runs now; 0 if that is not known, or if
    /// it was not `kicked`.
    #[inline]
    pub fn since(&self, index: usize, kicked: bool) -> u64 {
        if trace::work_enabled() && kicked {
            self.take(index)
        } else {
            0
        }
    }

    #[cold]
    fn take(&self, index: usize) -> u64 {
        let Some(at) = self.at.get(index) else {
            return 0;
        };
        let kicked = at.get();
        at.set(0);
        if kicked == 0 {
            return 0;
        }
        self.now().saturating_sub(kicked)
    }
}
