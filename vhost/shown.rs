// SPDX-License-Identifier: GPL-2.0

//! What others may see of a queue, without its lock.
//!
//! What the queue did they read where it is counted. Of what it is, who has it locked puts a copy
//! here when it lets go of it. Who looks is never in the way of a packet.

#![forbid(unsafe_code)]

use super::{
    identity::Identity,
    stats::{
        Loss,
        Stats,
        Stop, //
    }, //
};
use crate::features::Features;
use kernel::{
    new_spinlock,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        Arc,
        SpinLock, //
    }, //
};

/// What changes seldom: at the owner's word, or at a fault.
#[derive(Clone, Default)]
pub struct Facts {
    /// What the driver accepted.
    pub features: Features,
    /// The number of descriptors.
    pub num: u16,
    /// The kind of backend.
    pub backend: Option<&'static str>,
    /// Why the queue stopped last.
    pub fault: Option<&'static CStr>,
    /// Who runs it.
    pub worker: Option<Arc<Identity>>,
}

/// What others see.
#[pin_data]
pub struct Shown {
    /// What the queue did.
    pub stats: Arc<Stats>,
    /// Held to copy them, and no longer.
    #[pin]
    facts: SpinLock<Facts>,
}

impl Shown {
    /// Of queue `index`, which did nothing yet. Fails with [`ENOMEM`].
    pub fn new(index: usize) -> Result<Arc<Self>> {
        let stats = Stats::new(index)?;
        Arc::pin_init(
            pin_init!(Self {
                stats,
                facts <- new_spinlock!(Facts::default(), "vhost_facts"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Shows these facts from now on.
    pub fn set_facts(&self, facts: Facts) {
        let old = core::mem::replace(&mut *self.facts.lock(), facts);
        // Without the lock.
        drop(old);
    }

    /// The facts.
    pub fn facts(&self) -> Facts {
        self.facts.lock().clone()
    }

    /// Prints the queue under this name, a key and a value a line. docs/observing.md says what
    /// each means: a key stays what it is, and new ones come at the end.
    pub fn print(&self, name: &CStr, m: &SeqFile) {
        let (facts, stats) = (self.facts(), &*self.stats);
        let backend = facts.backend.unwrap_or("none");
        let fault = facts.fault.unwrap_or(c"none");
        seq_print!(m, "{name}-size:\t{}\n", facts.num);
        seq_print!(m, "{name}-backend:\t{backend}\n");
        for (key, value) in [
            ("packets", stats.packets.get()),
            ("bytes", stats.bytes.get()),
            ("kicks", stats.kicks.get()),
            ("calls", stats.calls.get()),
            ("calls-suppressed", stats.calls_suppressed.get()),
            ("errors", stats.errors()),
        ] {
            seq_print!(m, "{name}-{key}:\t{value}\n");
        }
        seq_print!(m, "{name}-last-fault:\t{fault}\n");
        let worker = facts.worker.map_or(0, |worker| worker.worker_seen());
        seq_print!(m, "{name}-worker:\t{worker}\n");
        for (key, value) in [
            ("wakeups", stats.wakeups.get()),
            ("turns", stats.turns.get()),
            ("multicast", stats.groups.multicast.get()),
            ("broadcast", stats.groups.broadcast.get()),
            ("iotlb-misses", stats.misses.get()),
            ("polls", stats.polls.get()),
            ("poll-hits", stats.poll_hits.get()),
            ("zerocopy-sent", stats.zerocopy_sent.get()),
            ("zerocopy-copied", stats.zerocopy_copied.get()),
            ("zerocopy-refused", stats.zerocopy_refused.get()),
            ("zerocopy-in-flight", stats.in_flight.get()),
            ("unlogged", stats.unlogged.get()),
        ] {
            seq_print!(m, "{name}-{key}:\t{value}\n");
        }
        for loss in Loss::ALL {
            seq_print!(m, "{name}-drops-{}:\t{}\n", loss.name(), stats.drops(loss));
        }
        for stop in Stop::ALL {
            seq_print!(m, "{name}-stops-{}:\t{}\n", stop.name(), stats.stops(stop));
        }
        for class in stats.classes() {
            seq_print!(
                m,
                "{name}-packets-from-{}:\t{}\n",
                class.bytes,
                class.packets
            );
        }
    }
}
