// SPDX-License-Identifier: GPL-2.0

//! The scheduler.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use super::bindings;
use kernel::{
    ffi::c_long,
    time::msecs_to_jiffies, //
};

/// Lets another task run, if one waits for the CPU.
///
/// The caller is in a context that may sleep.
#[inline]
pub fn cond_resched() {
    // SAFETY: Without preconditions, but for the context: sleeping in another is a bug that the
    // kernel reports, not a breach of memory safety.
    unsafe { bindings::cond_resched() }
}

/// Sleeps for so many milliseconds, unless `awake`, or until the task is woken or has a signal.
///
/// The caller is in a context that may sleep. No wake-up is lost that comes after what `awake` looks
/// at, which must not block.
pub fn sleep_unless(msecs: u32, awake: impl FnOnce() -> bool) {
    // SAFETY: Sets the state of the current task.
    unsafe { bindings::set_current_interruptible() };
    if !awake() {
        // SAFETY: As for `cond_resched`.
        unsafe { kernel::bindings::schedule_timeout(msecs_to_jiffies(msecs) as c_long) };
    }
    // SAFETY: Sets the state of the current task, which is awake.
    unsafe { bindings::set_current_running() };
}

/// Whether the current task has been told to end, by a signal that it can't ignore.
#[inline]
pub fn is_killed() -> bool {
    // SAFETY: Looks at the current task, which is there.
    unsafe { bindings::fatal_signal_pending() }
}

/// Whether another task waits for the CPU.
#[inline]
pub fn need_resched() -> bool {
    // SAFETY: Without preconditions.
    unsafe { bindings::need_resched() }
}
