// SPDX-License-Identifier: GPL-2.0

//! A work queue of the module's own, for the end of threads that nobody may wait for.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::{
    bindings as local,
    THIS_MODULE, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    ffi::c_void,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        SetOnce, //
    },
    workqueue::{
        Queue,
        RawWorkItem, //
    }, //
};

/// The queue, once there is one.
static QUEUE: SetOnce<&Queue> = SetOnce::new();

/// How many [`Pending`] there are.
static PENDING: Atomic<i32> = Atomic::new(0);

/// The work queue of the module, which exists as long as this: at most one at a time. Dropped, it
/// waits for each [`Pending`], and for all that is on the queue.
///
/// # Invariants
///
/// `queue` is valid, and what [`QUEUE`] holds.
pub struct Reaper {
    queue: NonNull<bindings::workqueue_struct>,
}

// SAFETY: Any thread may destroy the queue.
unsafe impl Send for Reaper {}
// SAFETY: There are no methods on `&self`.
unsafe impl Sync for Reaper {}

impl Reaper {
    /// Makes the queue. Fails with [`ENOMEM`], and with [`EBUSY`] if there was one before.
    pub fn new() -> Result<Self> {
        // SAFETY: The format is a string without arguments.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"vhost_net".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND,
                0,
            )
        };
        // INVARIANT: Just made; if another one is in `QUEUE`, this is never dropped.
        let this = Self {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
        };
        // SAFETY: The queue is valid until the module has ended, when nobody uses `QUEUE`.
        QUEUE.populate(unsafe { Queue::from_raw(queue) });
        Ok(this)
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // SAFETY: The counter lives for ever, an `atomic_t` is laid out as the `i32` in it, and who
        // makes it zero wakes those who wait for its address.
        unsafe { local::wait_var_event_zero(PENDING.as_ptr().cast()) };
        // SAFETY: By the type invariant the queue is valid. Nobody enqueues any more, for who may do
        // so is a `Pending`.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) };
    }
}

/// Keeps the module, which is in use meanwhile, and its work queue, until something has been reaped.
///
/// # Invariants
///
/// It has a reference to the module, and is counted in [`PENDING`].
pub(super) struct Pending(());

impl Pending {
    /// Something is to be reaped some day. The caller keeps the module until this returns.
    pub(super) fn new() -> Self {
        // SAFETY: Code of the module runs, and the caller keeps it.
        unsafe { bindings::__module_get(THIS_MODULE) };
        PENDING.fetch_add(1, Relaxed);
        // INVARIANT: Taken and counted above.
        Self(())
    }

    /// Reaps it on the work queue.
    pub(super) fn enqueue<W, const ID: u64>(&self, work: W)
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        if let Some(queue) = QUEUE.as_ref() {
            let _ = queue.enqueue(work);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. From here on the module may be unloaded, which waits for what
        // is below, and then for the work queue.
        unsafe { bindings::module_put(THIS_MODULE) };
        if PENDING.fetch_sub(1, Full) == 1 {
            // SAFETY: The address is a key, and is not read.
            unsafe { bindings::wake_up_var(PENDING.as_ptr().cast::<c_void>()) };
        }
    }
}
