// SPDX-License-Identifier: GPL-2.0

//! A queue that is locked.

#![forbid(unsafe_code)]

use super::queue::{
    Queue,
    QueueState, //
};
use crate::sys::poll::Wake;
use core::ops::{
    Deref,
    DerefMut, //
};
use kernel::{
    prelude::*,
    sync::lock::mutex::MutexGuard, //
};

/// The lock of a queue. When it is let go of, others see what the queue is now.
pub struct QueueGuard<'a, S: QueueState, W: Wake>(MutexGuard<'a, KBox<Queue<S, W>>>);

impl<'a, S: QueueState, W: Wake> QueueGuard<'a, S, W> {
    /// Of the worker, which does not set what the owner sets.
    pub(super) fn new(guard: MutexGuard<'a, KBox<Queue<S, W>>>) -> Self {
        Self(guard)
    }

    /// Of the owner, who may change anything.
    pub(super) fn for_owner(mut guard: MutexGuard<'a, KBox<Queue<S, W>>>) -> Self {
        guard.facts_changed = true;
        Self(guard)
    }
}

impl<S: QueueState, W: Wake> Deref for QueueGuard<'_, S, W> {
    type Target = Queue<S, W>;

    fn deref(&self) -> &Queue<S, W> {
        &self.0
    }
}

impl<S: QueueState, W: Wake> DerefMut for QueueGuard<'_, S, W> {
    fn deref_mut(&mut self) -> &mut Queue<S, W> {
        &mut self.0
    }
}

impl<S: QueueState, W: Wake> Drop for QueueGuard<'_, S, W> {
    #[inline]
    fn drop(&mut self) {
        self.0.show();
    }
}
