// SPDX-License-Identifier: GPL-2.0

//! Kernel threads of a user process.
//!
//! C header: [`include/linux/sched/vhost_task.h`](srctree/include/linux/sched/vhost_task.h)

use super::{
    bindings,
    uaccess::CurrentMm, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    ffi::c_void,
    prelude::*,
    sync::Arc, //
};

/// What a [`VhostTask`] or a [`Kthread`](super::kthread::Kthread) does.
pub trait Work: Send + Sync + 'static {
    /// What there is to do in one go.
    type Batch;

    /// Takes all that there is to do; [`None`] lets the task sleep until it is woken.
    ///
    /// The task counts as asleep while this runs, so that no wake-up is lost: it must not block.
    fn take(&self) -> Option<Self::Batch>;

    /// Does it, in the user memory `mm`.
    fn run(&self, batch: Self::Batch, mm: CurrentMm<'_>);
}

/// A thread in the process of the task that made it.
///
/// It shares the address space, the cgroups and the limits of that process, and dies with it.
/// Dropped, it is stopped; this waits for what it runs, so the task must not drop itself.
///
/// # Invariants
///
/// `task` is valid, it was started and not stopped, and its argument is `_work`.
pub struct VhostTask<T: Work> {
    task: NonNull<bindings::vhost_task>,
    _work: Arc<T>,
}

// SAFETY: Any thread may wake and stop a `vhost_task`.
unsafe impl<T: Work> Send for VhostTask<T> {}
// SAFETY: As above.
unsafe impl<T: Work> Sync for VhostTask<T> {}

impl<T: Work> VhostTask<T> {
    /// Makes a thread with a name in the current process and starts it.
    ///
    /// Fails with [`ENOMEM`], or as `clone()` does.
    pub fn spawn(work: Arc<T>, name: &CStr) -> Result<Self> {
        // SAFETY: The functions are for a `T`, which `arg` points to; `work` keeps it alive until
        // the task was stopped. The name is copied.
        let task = from_err_ptr(unsafe {
            bindings::vhost_task_create(
                Some(Self::run),
                Some(Self::killed),
                Arc::as_ptr(&work).cast_mut().cast::<c_void>(),
                name.as_char_ptr(),
            )
        })?;
        let task = NonNull::new(task).ok_or(ENOMEM)?;
        // SAFETY: The task is new.
        unsafe { bindings::vhost_task_start(task.as_ptr()) };
        // INVARIANT: Just made and started.
        Ok(Self { task, _work: work })
    }

    /// Makes the task look for something to do. Callable in any context; no effect on one that was
    /// killed.
    #[inline]
    pub fn wake(&self) {
        // SAFETY: By the type invariant the task is valid.
        unsafe { bindings::vhost_task_wake(self.task.as_ptr()) }
    }

    /// # Safety
    ///
    /// `arg` points to a `T`. The current task is a `vhost_task`, about to sleep.
    unsafe extern "C" fn run(arg: *mut c_void) -> bool {
        // SAFETY: By the safety requirement.
        let work = unsafe { &*arg.cast::<T>() };
        let Some(batch) = work.take() else {
            return false;
        };
        // SAFETY: Sets the state of the current task, which is awake.
        unsafe { bindings::set_current_running() };
        // SAFETY: The current task is a thread of a user process, whose address space it shares.
        work.run(batch, unsafe { CurrentMm::assume() });
        // What a thread has to do before it goes back to user space, where this one never goes: a
        // CPU limit takes it off the CPU here. A signal is left to who calls this.
        // SAFETY: The current task holds no lock.
        unsafe { bindings::xfer_to_guest_mode_handle_work() };
        true
    }

    /// The process is being killed. It is enough that `run` is called no more.
    extern "C" fn killed(_arg: *mut c_void) {}
}

impl<T: Work> Drop for VhostTask<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the task was started and not stopped. Afterwards it does
        // not use its argument any more.
        unsafe { bindings::vhost_task_stop(self.task.as_ptr()) }
    }
}
