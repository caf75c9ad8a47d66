// SPDX-License-Identifier: GPL-2.0

//! Event file descriptors.
//!
//! C header: [`include/linux/eventfd.h`](srctree/include/linux/eventfd.h)

use super::poll::Pollable;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_err_ptr,
    prelude::*, //
};

/// The counter of an eventfd, which the kernel adds to.
///
/// # Invariants
///
/// Owns a reference to the context.
pub struct EventFdCtx(NonNull<bindings::eventfd_ctx>);

// SAFETY: The context is reference counted and locks itself; it belongs to no thread.
unsafe impl Send for EventFdCtx {}
// SAFETY: As above.
unsafe impl Sync for EventFdCtx {}

impl EventFdCtx {
    /// The context of the current task's file descriptor `fd`.
    ///
    /// Fails with [`EBADF`] if there is no such descriptor, and with [`EINVAL`] if it is no
    /// eventfd.
    pub fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: The function takes any number.
        let ctx = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(fd) })?;
        // INVARIANT: The reference is ours.
        Ok(Self(NonNull::new(ctx).ok_or(EINVAL)?))
    }

    /// Adds one to the counter, and wakes who waits for it. Never sleeps.
    #[inline]
    pub fn signal(&self) {
        // SAFETY: By the type invariant the context is valid.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) }
    }
}

impl Drop for EventFdCtx {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to give back.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) }
    }
}

/// The file of an eventfd, which the kernel waits for.
///
/// # Invariants
///
/// Owns a reference to the file, and the file is an eventfd.
pub struct EventFdFile(NonNull<bindings::file>);

// SAFETY: A file is reference counted, and the only use here is to poll it, which any thread may.
unsafe impl Send for EventFdFile {}
// SAFETY: As above.
unsafe impl Sync for EventFdFile {}

impl EventFdFile {
    /// The file of the current task's file descriptor `fd`.
    ///
    /// Fails with [`EBADF`] if there is no such descriptor, and with [`EINVAL`] if it is no
    /// eventfd.
    pub fn from_fd(fd: i32) -> Result<Self> {
        // SAFETY: The function takes any number.
        let file = from_err_ptr(unsafe { bindings::eventfd_fget(fd) })?;
        // INVARIANT: The reference is ours, and the function looked that it is an eventfd.
        Ok(Self(NonNull::new(file).ok_or(EINVAL)?))
    }

    /// Whether both are one file.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

// SAFETY: By the type invariant the file is a valid eventfd. Its one wait queue is part of its
// context, which the file owns a reference to.
unsafe impl Pollable for EventFdFile {
    fn file(&self) -> NonNull<bindings::file> {
        self.0
    }
}

impl Drop for EventFdFile {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to give back.
        unsafe { bindings::fput(self.0.as_ptr()) }
    }
}
