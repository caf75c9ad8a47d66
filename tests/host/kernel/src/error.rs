// SPDX-License-Identifier: GPL-2.0

//! `kernel::error`.

use crate::alloc::AllocError;

/// An error code of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error(i32);

/// A result whose error is a kernel error code.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

impl Error {
    /// The code, which is negative.
    pub fn to_errno(self) -> i32 {
        self.0
    }
}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Self {
        code::ENOMEM
    }
}

impl From<core::num::TryFromIntError> for Error {
    fn from(_: core::num::TryFromIntError) -> Self {
        code::EINVAL
    }
}

macro_rules! codes {
    ($($name:ident = $value:literal,)*) => {
        /// The error codes, with the numbers of `asm-generic/errno-base.h` and `errno.h`.
        pub mod code {
            $(pub const $name: super::Error = super::Error(-$value);)*
        }

        impl core::fmt::Debug for Error {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match -self.0 {
                    $($value => f.write_str(stringify!($name)),)*
                    other => write!(f, "Error({other})"),
                }
            }
        }
    };
}

codes! {
    EPERM = 1,
    ENOENT = 2,
    EINTR = 4,
    EIO = 5,
    E2BIG = 7,
    EBADF = 9,
    EAGAIN = 11,
    ENOMEM = 12,
    EFAULT = 14,
    EBUSY = 16,
    EEXIST = 17,
    EINVAL = 22,
    ENOTTY = 25,
    ENOSPC = 28,
    ERANGE = 34,
    ENOSYS = 38,
    EOVERFLOW = 75,
    EBADFD = 77,
    ENOTSOCK = 88,
    EMSGSIZE = 90,
    EOPNOTSUPP = 95,
    ENOBUFS = 105,
}
