// SPDX-License-Identifier: GPL-2.0

//! What a worker has to do: a bit for each reason to run a queue, and flushes.
//!
//! Bits are set from any context and taken all at once by the worker. A flush waits until all that
//! was set before it is done, and so for who runs it to have let go of what it found then. This
//! knows no thread: who sets a bit wakes one, if the bit is new.

#![forbid(unsafe_code)]

use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        CondVar,
        Mutex, //
    }, //
};

/// The number of queues that a device has.
pub const QUEUES: usize = 2;

/// Work bits: which queues have something to do, and above that the number of flushes that wait.
///
/// One word holds it all, so that a flush comes after the work that was there before it.
#[derive(Clone, Copy)]
pub struct WorkBits(u32);

static_assert!(2 * QUEUES <= 8);

impl WorkBits {
    const FLUSH: u32 = 1 << 8;

    /// The driver kicked queue `index`.
    pub const fn kick(index: usize) -> u32 {
        1 << index
    }

    /// The backend of queue `index` is ready, or the queue goes on for another reason.
    pub const fn ready(index: usize) -> u32 {
        1 << (index + QUEUES)
    }

    /// Whether a bit is set.
    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// Whether a queue behind this one has something to do.
    pub fn has_after(self, index: usize) -> bool {
        (index + 1..QUEUES).any(|index| self.has(Self::kick(index) | Self::ready(index)))
    }

    /// How many flushes wait until this is done.
    pub fn flushes(self) -> u32 {
        self.0 / Self::FLUSH
    }
}

/// How far the flushes of a worker are.
struct Flushes {
    /// The number of flushes that were asked for, which wraps.
    asked: u32,
    /// The number of flushes that are done; they are done in the order they were asked for.
    done: u32,
    /// The worker does nothing any more.
    killed: bool,
}

/// The work that waits for a worker.
#[pin_data]
pub struct WorkSet {
    /// [`WorkBits`] that were not taken.
    bits: Atomic<u32>,
    #[pin]
    flushes: Mutex<Flushes>,
    #[pin]
    flushed: CondVar,
}

impl WorkSet {
    /// Nothing to do. Fails with [`ENOMEM`].
    pub fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                bits: Atomic::new(0),
                flushes <- new_mutex!(Flushes { asked: 0, done: 0, killed: false }),
                flushed <- new_condvar!(),
            }),
            GFP_KERNEL,
        )
    }

    /// Sets a bit. Returns whether it is new: then the worker is to be woken.
    pub fn add(&self, bit: u32) -> bool {
        let mut old = self.bits.load(Relaxed);
        loop {
            // Fully ordered also when the bit is there: what the caller did before is seen by the
            // worker, which takes the bit with full order before it looks.
            match self.bits.cmpxchg(old, old | bit, Full) {
                Ok(_) => return old & bit == 0,
                Err(now) => old = now,
            }
        }
    }

    /// Takes all that there is to do, to be told with [`Self::done`] when it is done.
    pub fn take(&self) -> Option<WorkBits> {
        match self.bits.xchg(0, Full) {
            0 => None,
            bits => Some(WorkBits(bits)),
        }
    }

    /// Whether there is something to do that was not taken.
    pub fn has_work(&self) -> bool {
        self.bits.load(Relaxed) != 0
    }

    /// Waits until all work that was there before is done, or never will be. `wake` wakes the
    /// worker.
    pub fn flush(&self, wake: impl FnOnce()) {
        let mut flushes = self.flushes.lock();
        if flushes.killed {
            return;
        }
        flushes.asked = flushes.asked.wrapping_add(1);
        let ours = flushes.asked;
        // Under the lock: the order of the numbers is the order in the word.
        self.bits.fetch_add(WorkBits::FLUSH, Full);
        wake();
        while !flushes.killed && (ours.wrapping_sub(flushes.done) as i32) > 0 {
            self.flushed.wait(&mut flushes);
        }
    }

    /// What was taken is done: so are the flushes that waited for it.
    pub fn done(&self, bits: WorkBits) {
        if bits.flushes() > 0 {
            let mut flushes = self.flushes.lock();
            flushes.done = flushes.done.wrapping_add(bits.flushes());
            self.flushed.notify_all();
        }
    }

    /// Nothing will be done any more.
    pub fn kill(&self) {
        self.flushes.lock().killed = true;
        self.flushed.notify_all();
    }
}
