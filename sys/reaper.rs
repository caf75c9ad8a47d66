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
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        SetOnce, //
    },
    workqueue::{
        Queue,
        RawWorkItem, //
    }, //
};

/// The queue, once there is one. It may be used by who has a [`Pending`].
static QUEUE: SetOnce<&Queue> = SetOnce::new();

/// Whether there may be more [`Pending`].
static OPEN: Atomic<bool> = Atomic::new(false);

/// How many [`Pending`] there are.
static PENDING: Atomic<i32> = Atomic::new(0);

/// The work queue of the module, which exists as long as this: one, once. Dropped, it waits for each
/// [`Pending`], and for all that is on the queue.
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
        let queue = NonNull::new(queue).ok_or(ENOMEM)?;
        // SAFETY: The queue is valid until `drop`, after which nobody uses `QUEUE`.
        if !QUEUE.populate(unsafe { Queue::from_raw(queue.as_ptr()) }) {
            // SAFETY: Nobody knows it.
            unsafe { bindings::destroy_workqueue(queue.as_ptr()) };
            return Err(EBUSY);
        }
        OPEN.store(true, Release);
        // INVARIANT: Just made, and put there.
        Ok(Self { queue })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // Either who makes a `Pending` sees this, or it is counted below.
        OPEN.xchg(false, Full);
        // SAFETY: The counter lives for ever, an `atomic_t` is laid out as the `i32` in it, and who
        // makes it zero wakes those who wait for its address.
        unsafe { local::wait_var_event_zero(PENDING.as_ptr().cast()) };
        // SAFETY: By the type invariant the queue is valid. Nobody enqueues any more, for who does has
        // a `Pending`, and there will be none.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) };
    }
}

/// Something that is to be reaped some day. It keeps the module, which is in use meanwhile, and the
/// work queue.
///
/// # Invariants
///
/// It has a reference to the module, and is counted in [`PENDING`].
pub(super) struct Pending(());

impl Pending {
    /// Fails with [`ENODEV`] if there is no work queue.
    pub(super) fn new() -> Result<Self> {
        // SAFETY: Code of the module runs, so somebody keeps it.
        unsafe { bindings::__module_get(THIS_MODULE) };
        PENDING.fetch_add(1, Full);
        // INVARIANT: Taken and counted above.
        let this = Self(());
        if !OPEN.load(Acquire) {
            return Err(ENODEV);
        }
        Ok(this)
    }

    /// Reaps it on the work queue, with work that is not on it already.
    pub(super) fn enqueue<W, const ID: u64>(&self, work: W)
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        // There is one, as long as there is `self`.
        if let Some(queue) = QUEUE.as_ref() {
            let _ = queue.enqueue(work);
        }
    }
}

impl Clone for Pending {
    fn clone(&self) -> Self {
        // SAFETY: `self` has a reference.
        unsafe { bindings::__module_get(THIS_MODULE) };
        PENDING.fetch_add(1, Relaxed);
        // INVARIANT: Taken and counted above.
        Self(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. From here on the module may be unloaded, which waits for what
        // is below. For what comes behind that, who drops this keeps the module or is on the queue.
        unsafe { bindings::module_put(THIS_MODULE) };
        if PENDING.fetch_sub(1, Full) == 1 {
            // SAFETY: The address is a key, and is not read.
            unsafe { bindings::wake_up_var(PENDING.as_ptr().cast::<c_void>()) };
        }
    }
}
