// SPDX-License-Identifier: GPL-2.0

//! What `fdinfo` says of a device.

#![forbid(unsafe_code)]

use super::device::{
    Device,
    Driver,
    Queue, //
};
use kernel::{
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        atomic::Relaxed,
        lock::mutex::MutexGuard,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

impl<D: Driver> Device<D> {
    /// Prints the features and what each queue did, a key and a value a line.
    ///
    /// A queue that can't be had within a second is only said to be busy.
    pub fn show_fdinfo(&self, m: &SeqFile) {
        self.fdinfo_readers.fetch_add(1, Relaxed);
        if let Some(queue) = self.lock_to_look(&self.first) {
            let [low, high] = queue.features.words();
            seq_print!(m, "vhost-features:\t{low:#x}\n");
            seq_print!(m, "vhost-features-64:\t{high:#x}\n");
        }
        for (queue, name) in [&self.first, &self.second].into_iter().zip(D::QUEUE_NAMES) {
            match self.lock_to_look(queue) {
                Some(queue) => queue.show(name, m),
                None => seq_print!(m, "{name}-state:\tbusy\n"),
            }
        }
        self.fdinfo_readers.fetch_sub(1, Relaxed);
    }

    /// Locks a queue, but gives up after a second.
    ///
    /// The worker holds the mutex while it accesses the owner's memory, which the owner can make
    /// wait for as long as it likes (`userfaultfd`). Who only looks must not wait with it.
    fn lock_to_look<'a>(&self, queue: &'a Mutex<Queue<D>>) -> Option<MutexGuard<'a, Queue<D>>> {
        for _ in 0..1000 {
            if let Some(guard) = queue.try_lock() {
                return Some(guard);
            }
            if current!().signal_pending() {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        None
    }
}
