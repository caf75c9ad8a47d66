// SPDX-License-Identifier: GPL-2.0

//! Coverage, for a fuzzer, of what one thread does for another.
//!
//! Nothing is left of it on a kernel without `CONFIG_KCOV`.
//!
//! C header: [`include/linux/kcov.h`](srctree/include/linux/kcov.h)

#[cfg(CONFIG_KCOV)]
use super::bindings as local;

/// Who wants to know what is covered.
#[derive(Clone, Copy)]
pub struct Handle(#[cfg(CONFIG_KCOV)] u64);

impl Handle {
    /// That of the current task, if it wants to know what is covered for it elsewhere.
    pub fn of_current() -> Self {
        Self(
            // SAFETY: Without preconditions.
            #[cfg(CONFIG_KCOV)]
            unsafe {
                local::kcov_common_handle()
            },
        )
    }

    /// Calls `f`, which is covered for who has this handle. Not to be nested.
    #[inline(always)]
    pub fn cover<T>(self, f: impl FnOnce() -> T) -> T {
        // SAFETY: The function takes any number, and the current task is one.
        #[cfg(CONFIG_KCOV)]
        unsafe {
            local::kcov_remote_start_common(self.0)
        };
        let result = f();
        // SAFETY: Without preconditions; it ends what was started above, if that was.
        #[cfg(CONFIG_KCOV)]
        unsafe {
            local::kcov_remote_stop()
        };
        result
    }
}
