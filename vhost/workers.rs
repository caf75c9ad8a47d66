// SPDX-License-Identifier: GPL-2.0

//! The workers of a device, by their numbers, and which of them each queue has.
//!
//! All of it is under the lock of the device's state. A worker is dropped without the lock of a
//! queue, for that waits for its thread.

#![forbid(unsafe_code)]

use super::{
    work::QUEUES,
    worker::{
        Run,
        Worker, //
    }, //
};
use crate::sys::nospec::bounded;
use kernel::{
    prelude::*,
    sync::Arc,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// The workers of a device.
pub(super) struct Workers<R: Run> {
    /// By their numbers.
    list: KVVec<Option<Arc<Worker<R>>>>,
    /// The number of the worker that each queue has.
    of: [u32; QUEUES],
}

impl<R: Run> Workers<R> {
    /// None yet.
    pub(super) const fn new() -> Self {
        Self {
            list: KVVec::new(),
            of: [0; QUEUES],
        }
    }

    /// Adds a worker. Returns its number, the lowest that is free.
    ///
    /// Fails with [`ENOMEM`], and as `make`.
    pub(super) fn add(&mut self, make: impl FnOnce() -> Result<Arc<Worker<R>>>) -> Result<u32> {
        let free = self.list.iter().position(Option::is_none);
        let at = match free {
            Some(at) => at,
            None => {
                self.list.push(None, GFP_KERNEL_ACCOUNT)?;
                self.list.len() - 1
            }
        };
        let number = u32::try_from(at).map_err(|_| ENOMEM)?;
        let slot = self.list.get_mut(at).ok_or(ENOMEM)?;
        *slot = Some(make()?);
        Ok(number)
    }

    /// The worker of this number. Fails with [`ENODEV`] if there is none.
    pub(super) fn get(&self, number: u32) -> Result<&Arc<Worker<R>>> {
        let at = bounded(number as usize, self.list.len()).ok_or(ENODEV)?;
        self.list.get(at).and_then(Option::as_ref).ok_or(ENODEV)
    }

    /// The number of the worker that queue `index` has.
    pub(super) fn number_of(&self, index: usize) -> u32 {
        self.of.get(index).copied().unwrap_or(0)
    }

    /// The worker that queue `index` has.
    pub(super) fn of(&self, index: usize) -> Result<&Arc<Worker<R>>> {
        self.get(self.number_of(index))
    }

    /// Queue `index` has the worker of this number.
    pub(super) fn give(&mut self, index: usize, number: u32) {
        if let Some(of) = self.of.get_mut(index) {
            *of = number;
        }
    }

    /// Whether one worker runs all queues.
    pub(super) fn is_shared(&self) -> bool {
        let [first, rest @ ..] = &self.of;
        rest.iter().all(|of| of == first)
    }

    /// Takes out the worker of this number.
    ///
    /// Fails with [`ENODEV`] if there is none, and with [`EBUSY`] if a queue has it, or it was
    /// killed.
    pub(super) fn remove(&mut self, number: u32) -> Result<Arc<Worker<R>>> {
        let killed = self.get(number)?.was_killed();
        if killed || self.of.contains(&number) {
            return Err(EBUSY);
        }
        let at = bounded(number as usize, self.list.len()).ok_or(ENODEV)?;
        let slot = self.list.get_mut(at).ok_or(ENODEV)?;
        slot.take().ok_or(ENODEV)
    }
}

impl<R: Run> Drop for Workers<R> {
    fn drop(&mut self) {
        let begin = Instant::<Monotonic>::now();
        for worker in self.list.iter_mut().filter_map(Option::take) {
            worker.waited(begin.elapsed());
        }
    }
}
