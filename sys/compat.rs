// SPDX-License-Identifier: GPL-2.0

//! What an older kernel lacks of the kernel crate that the module is written for, which is that of
//! 7.3; each piece with the series that needs it.
//!
//! The Makefile says which series it is: `linux_7_2`. `compat.h` is the same for C.

// In 7.3 `kernel::prelude` has these too, as it has the other codes.
#[cfg(not(linux_7_2))]
pub use kernel::error::code::{
    EBADFD,
    ENOBUFS,
    ENOTSOCK,
    EOPNOTSUPP, //
};

#[cfg(linux_7_2)]
use kernel::{
    bindings,
    prelude::*, //
};

/// An error of this number, as a constant, which a pattern takes.
///
/// 7.2: it has no name for some errors, and no function that makes such a constant.
#[cfg(linux_7_2)]
const fn code(errno: u32) -> Error {
    // SAFETY: Any four bytes are a number.
    let known = unsafe { core::mem::transmute::<Error, i32>(EINVAL) };
    // Looked at when it is built.
    assert!(known == -(bindings::EINVAL as i32));
    assert!(errno > 0 && errno < bindings::MAX_ERRNO);
    // SAFETY: An error is as large as a number, or this would not build, and has its bytes, as the
    // assertions say. The number is that of an error.
    unsafe { core::mem::transmute::<i32, Error>(-(errno as i32)) }
}

/// File descriptor in bad state.
#[cfg(linux_7_2)]
pub const EBADFD: Error = code(bindings::EBADFD);

/// No buffer space available.
#[cfg(linux_7_2)]
pub const ENOBUFS: Error = code(bindings::ENOBUFS);

/// Socket operation on non-socket.
#[cfg(linux_7_2)]
pub const ENOTSOCK: Error = code(bindings::ENOTSOCK);

/// Operation not supported on transport endpoint.
#[cfg(linux_7_2)]
pub const EOPNOTSUPP: Error = code(bindings::EOPNOTSUPP);
