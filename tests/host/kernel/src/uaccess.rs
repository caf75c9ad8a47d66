// SPDX-License-Identifier: GPL-2.0

//! `kernel::uaccess` where there is no user: every access fails.

use crate::error::{code::EFAULT, Result};

/// A user address.
#[derive(Clone, Copy)]
pub struct UserPtr(());

impl UserPtr {
    pub fn from_addr(_addr: usize) -> Self {
        Self(())
    }
}

/// A range of user memory.
pub struct UserSlice(());

impl UserSlice {
    pub fn new(_ptr: UserPtr, _len: usize) -> Self {
        Self(())
    }

    pub fn reader(self) -> Self {
        self
    }

    pub fn writer(self) -> Self {
        self
    }

    pub fn read_slice(&mut self, _out: &mut [u8]) -> Result {
        Err(EFAULT)
    }

    pub fn write_slice(&mut self, _data: &[u8]) -> Result {
        Err(EFAULT)
    }
}
