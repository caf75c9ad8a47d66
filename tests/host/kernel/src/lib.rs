// SPDX-License-Identifier: GPL-2.0

//! A stand-in for the kernel crate: just what the ring code uses of it, with the kernel's signatures.
//!
//! It is stricter than the real thing where that finds bugs: a vector never has more capacity than
//! was asked for.

pub mod alloc;
pub mod error;
pub mod ioctl;
pub mod uaccess;

pub mod sync {
    pub use std::sync::Arc;
}

pub mod prelude {
    pub use crate::{
        alloc::{flags::*, AllocError, KVVec, KVec},
        error::{code::*, Error, Result},
        pr_debug,
        uaccess::UserPtr,
    };
    pub use core::ffi::CStr;
    pub use core::mem::{align_of, align_of_val, size_of, size_of_val};
    pub use zerocopy::{FromBytes, IntoBytes};
    pub use zerocopy_derive::{FromBytes, IntoBytes};
}

/// Checks what is known to the compiler.
#[macro_export]
macro_rules! static_assert {
    ($condition:expr) => {
        const _: () = assert!($condition);
    };
}

/// Checks the format, prints nothing.
#[macro_export]
macro_rules! pr_debug {
    ($($arg:tt)*) => {
        {
            let _ = ::core::format_args!($($arg)*);
        }
    };
}
