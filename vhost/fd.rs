// SPDX-License-Identifier: GPL-2.0

//! File descriptors in the arguments of ioctls.

#![forbid(unsafe_code)]

use crate::uapi::{
    self,
    Arg, //
};
use kernel::prelude::*;

/// Reads a `struct vhost_vring_file`, and opens what it names; [`None`] if that is nothing.
///
/// Fails with [`EFAULT`], and as `open`.
pub fn read_file<T>(arg: Arg, open: impl FnOnce(i32) -> Result<T>) -> Result<Option<T>> {
    let file: uapi::VringFile = arg.read()?;
    open_file(file.fd, open)
}

/// Opens the file of descriptor `fd`, unless that means none. Fails as `open`.
pub fn open_file<T>(fd: i32, open: impl FnOnce(i32) -> Result<T>) -> Result<Option<T>> {
    if fd == uapi::FILE_UNBIND {
        return Ok(None);
    }
    open(fd).map(Some)
}
