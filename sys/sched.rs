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

/// Whether another task waits for the CPU.
#[inline]
pub fn need_resched() -> bool {
    // SAFETY: Without preconditions.
    unsafe { bindings::need_resched() }
}
