// SPDX-License-Identifier: GPL-2.0

//! What a device wants to do with guest memory, and why it may not.

#![forbid(unsafe_code)]

use super::addr::Iova;

/// What the device wants to do with memory, as a bit of a map's permissions (`VHOST_ACCESS_RO`,
/// `VHOST_ACCESS_WO`), or both (`VHOST_ACCESS_RW`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Access {
    /// Read it.
    Read = 1,
    /// Write it.
    Write = 2,
    /// Read it and write it: what a packed ring's descriptors are for.
    ReadWrite = 3,
}

/// The permissions of memory that may be both read and written (`VHOST_ACCESS_RW`).
pub const READ_WRITE: u8 = Access::ReadWrite as u8;

/// An access to an address that no map holds, or that the map there does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The first such address; of a range that goes past the end, the first of all.
    pub addr: Iova,
    /// What was to be done there.
    pub access: Access,
}

/// Why a range of the driver's addresses could not be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Part of it is in no map.
    Unmapped(Miss),
    /// A map does not allow the access, there.
    Denied(Miss),
    /// It falls into more pieces than there is room for.
    TooMany,
    /// It falls into more pieces than there was room for, and there was no memory for more room.
    NoMemory,
}
