// SPDX-License-Identifier: GPL-2.0

//! Threads by their numbers.
//!
//! C header: [`include/linux/pid.h`](srctree/include/linux/pid.h)

use core::ptr::NonNull;
use kernel::{
    bindings,
    task::Task, //
};

/// What a thread is called. It stays the thread's own name as long as this exists, also when the
/// thread is gone.
///
/// # Invariants
///
/// Owns a reference to the `struct pid`.
pub struct Pid(NonNull<bindings::pid>);

// SAFETY: A `struct pid` is reference counted and belongs to no thread.
unsafe impl Send for Pid {}
// SAFETY: As above. What is read of it never changes.
unsafe impl Sync for Pid {}

impl Pid {
    /// That of the current thread.
    pub fn of_current() -> Option<Self> {
        // SAFETY: The current task is valid, and has a pid while it runs.
        let pid =
            unsafe { bindings::get_task_pid(Task::current_raw(), bindings::pid_type_PIDTYPE_PID) };
        // INVARIANT: The reference is ours.
        NonNull::new(pid).map(Self)
    }

    /// Its number in the pid namespace of the current task; 0 if that does not see the thread.
    pub fn in_my_namespace(&self) -> i32 {
        // SAFETY: By the type invariant.
        unsafe { bindings::pid_vnr(self.0.as_ptr()) }
    }
}

impl Drop for Pid {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to give back.
        unsafe { bindings::put_pid(self.0.as_ptr()) }
    }
}
