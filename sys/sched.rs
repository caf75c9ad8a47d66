// SPDX-License-Identifier: GPL-2.0

//! The scheduler.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use super::bindings;

/// Lets another task run, if one waits for the CPU.
///
/// The caller is in a context that may sleep.
#[inline]
pub fn cond_resched() {
    // SAFETY: Without preconditions, but for the context: sleeping in another is a bug that the
    // kernel reports, not a breach of memory safety.
    unsafe { bindings::cond_resched() }
}

/// Sleeps for so many milliseconds, or until a signal is pending.
///
/// The caller is in a context that may sleep.
pub fn sleep_interruptible(msecs: u32) {
    // SAFETY: As for `cond_resched`.
    unsafe { bindings::msleep_interruptible(msecs) };
}

/// Whether another task waits for the CPU.
#[inline]
pub fn need_resched() -> bool {
    // SAFETY: Without preconditions.
    unsafe { bindings::need_resched() }
}
