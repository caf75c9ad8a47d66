// SPDX-License-Identifier: GPL-2.0

//! Busy polling: looking for work for a while before the worker sleeps.
//!
//! What comes meanwhile needs no kick, and no wake-up. It ends when anybody waits for the worker
//! or for what it has locked.

#![forbid(unsafe_code)]

use super::net::{
    Device,
    Queue,
    Worker,
    RX, //
};
use crate::{
    memtable::Iotlb,
    sys::{
        sched::need_resched,
        uaccess::CurrentMm, //
    }, //
};
use kernel::{
    prelude::*,
    processor::cpu_relax,
    sync::Arc,
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// How busy polling ended.
pub enum Polled {
    /// There is work for the queue.
    Found,
    /// There is other work for the worker, or somebody waits for the queue.
    Interrupted,
    /// There was none for as long as the owner wants that, or others need the CPU, or the other
    /// queue; or there is to be no polling.
    TimedOut,
}

/// Busy polling, as a turn may do it.
pub struct BusyPoll<'a> {
    pub device: &'a Device,
    /// The user memory of the turn.
    pub mm: CurrentMm<'a>,
    /// The IOTLB of the turn, locked.
    pub iotlb: Option<&'a Iotlb>,
    /// Another queue waits until the turn is over.
    pub waited_for: bool,
}

impl BusyPoll<'_> {
    /// Looks for work for a queue that has none, and for the other queue beside it, for as long as
    /// the owner wants that: what comes meanwhile needs no kick, and no wake-up. `moved` says that
    /// there was work in this turn.
    pub fn for_work(&self, queue: &mut Queue, moved: bool) -> Polled {
        let Some(timeout) = queue.busyloop_timeout() else {
            return Polled::TimedOut;
        };
        if moved {
            queue.state.polling_since = None;
        }
        // Interruptions don't make it longer.
        let begin = *queue.state.polling_since.get_or_insert_with(Instant::now);
        queue.stats.polls.add(1);
        let polled = match begin.elapsed() < timeout {
            true if self.waited_for => Polled::Interrupted,
            true => self.until(queue, begin, timeout),
            false => Polled::TimedOut,
        };
        if matches!(polled, Polled::Found) {
            queue.stats.poll_hits.add(1);
        }
        if !matches!(polled, Polled::Interrupted) {
            queue.state.polling_since = None;
        }
        polled
    }

    fn until(&self, queue: &mut Queue, begin: Instant<Monotonic>, timeout: Delta) -> Polled {
        let mm = self.mm;
        let mut other = None;
        if queue.shares_worker() {
            // Where both are wanted, the owner has the locks in the other order.
            let Some(guard) = self.device.try_other_queue(queue.index()) else {
                return Polled::TimedOut;
            };
            other = Some(guard);
        }
        // Another worker looks for what it has to do itself.
        let mut other = other
            .as_deref_mut()
            .and_then(|other| self.may_look(queue, other).then_some(other));
        // One that needs no kick, for its backend wakes it or it is to run, is left so.
        let mut disabled = false;
        if let Some(other) = other.as_mut().filter(|other| !other.ring.is_quiet()) {
            disabled = true;
            // Only advice to the driver: if it can't be given, the queue's own turn will say so.
            let _ = other.disable_kicks(mm);
        }

        let worker = queue.worker();
        let worker = worker.as_deref();
        let mut interrupted = false;
        while !(has_work(queue, mm) || other.as_mut().is_some_and(|other| has_work(other, mm))) {
            interrupted = self.device.lock_waiters().any()
                || self.device.iotlb_waiters().any()
                || worker.is_some_and(Worker::has_work);
            if interrupted
                || need_resched()
                || current!().signal_pending()
                || begin.elapsed() >= timeout
            {
                break;
            }
            cpu_relax();
        }
        if let Some(other) = other {
            if has_work(other, mm) || disabled && !matches!(other.enable_kicks(mm), Ok(false)) {
                other.run_again();
            }
        }
        // Also a packet without a buffer: a socket that was emptied does not get ready for it
        // again.
        if has_packet(queue) && (queue.index() == RX || !queue.ring.is_empty(mm)) {
            Polled::Found
        } else if interrupted {
            Polled::Interrupted
        } else {
            Polled::TimedOut
        }
    }

    /// Whether the other queue is to be looked at beside this one.
    fn may_look(&self, queue: &Queue, other: &mut Queue) -> bool {
        let same_iotlb = match (&queue.iotlb, &other.iotlb) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        other.state.backend.is_some()
            && other.is_set_up()
            && !other.is_halted()
            && same_iotlb
            && self
                .iotlb
                .is_none_or(|iotlb| other.ring.find(iotlb).is_ok())
    }
}

/// Whether the backend may have a packet for the guest, or is one that takes them.
fn has_packet(queue: &mut Queue) -> bool {
    match queue.state.backend.as_mut() {
        Some(backend) => match &mut backend.receiver {
            Some(receiver) => receiver.peek_len() > 0,
            None => true,
        },
        None => false,
    }
}

/// Whether there is a packet to be moved, and a buffer that has it or takes it.
fn has_work(queue: &mut Queue, mm: CurrentMm<'_>) -> bool {
    // A ring that can't be read is not empty.
    has_packet(queue) && !queue.ring.is_empty(mm)
}
