// SPDX-License-Identifier: GPL-2.0

//! What others may see of a queue, without its lock.
//!
//! Who has the queue locked puts a copy here when it lets go of it; who looks takes it from here,
//! and is never in the way of a packet. Numbers that belong together may be of different moments.

#![forbid(unsafe_code)]

use super::stats::Stats;
use crate::features::Features;
use kernel::{
    new_spinlock,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock, //
    }, //
};

/// What changes seldom: at the owner's word, or at a fault.
#[derive(Clone, Copy, Default)]
pub struct Facts {
    /// What the driver accepted.
    pub features: Features,
    /// The number of descriptors.
    pub num: u16,
    /// The kind of backend.
    pub backend: Option<&'static str>,
    /// Why the queue stopped last.
    pub fault: Option<&'static str>,
}

/// The copy.
#[pin_data]
pub struct Shown {
    packets: Atomic<u64>,
    bytes: Atomic<u64>,
    kicks: Atomic<u64>,
    calls: Atomic<u64>,
    calls_suppressed: Atomic<u64>,
    errors: Atomic<u64>,
    /// Held to copy them, and no longer.
    #[pin]
    facts: SpinLock<Facts>,
}

impl Shown {
    /// Nothing was done yet. Fails with [`ENOMEM`].
    pub fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                packets: Atomic::new(0),
                bytes: Atomic::new(0),
                kicks: Atomic::new(0),
                calls: Atomic::new(0),
                calls_suppressed: Atomic::new(0),
                errors: Atomic::new(0),
                facts <- new_spinlock!(Facts::default(), "vhost_facts"),
            }),
            GFP_KERNEL,
        )
    }

    /// Shows these statistics from now on.
    #[inline(always)]
    pub fn set_stats(&self, stats: &Stats) {
        self.packets.store(stats.packets, Relaxed);
        self.bytes.store(stats.bytes, Relaxed);
        self.kicks.store(stats.kicks, Relaxed);
        self.calls.store(stats.calls, Relaxed);
        self.calls_suppressed.store(stats.calls_suppressed, Relaxed);
        self.errors.store(stats.errors, Relaxed);
    }

    /// Shows these facts from now on.
    pub fn set_facts(&self, facts: Facts) {
        *self.facts.lock() = facts;
    }

    /// The facts.
    pub fn facts(&self) -> Facts {
        *self.facts.lock()
    }

    /// Prints the queue under this name, a key and a value a line.
    pub fn print(&self, name: &CStr, m: &SeqFile) {
        let facts = self.facts();
        let backend = facts.backend.unwrap_or("none");
        seq_print!(m, "{name}-size:\t{}\n", facts.num);
        seq_print!(m, "{name}-backend:\t{backend}\n");
        seq_print!(m, "{name}-packets:\t{}\n", self.packets.load(Relaxed));
        seq_print!(m, "{name}-bytes:\t{}\n", self.bytes.load(Relaxed));
        seq_print!(m, "{name}-kicks:\t{}\n", self.kicks.load(Relaxed));
        seq_print!(m, "{name}-calls:\t{}\n", self.calls.load(Relaxed));
        let suppressed = self.calls_suppressed.load(Relaxed);
        seq_print!(m, "{name}-calls-suppressed:\t{suppressed}\n");
        seq_print!(m, "{name}-errors:\t{}\n", self.errors.load(Relaxed));
        let fault = facts.fault.unwrap_or("none");
        seq_print!(m, "{name}-last-fault:\t{fault}\n");
    }
}
