// SPDX-License-Identifier: GPL-2.0

//! The addresses that a guest knows.
//!
//! Only the tables turn one kind into another, or into a user address.

#![forbid(unsafe_code)]

/// A guest physical address: what the regions of the memory table and the dirty log are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct GuestAddr(u64);

impl GuestAddr {
    /// Makes an address of a number that the owner gave.
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// The address as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on, which wraps.
    #[inline(always)]
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// An address that the driver gave to the device (virtio 1.3, section 2.7.5: `le64 addr`).
///
/// With `VIRTIO_F_ACCESS_PLATFORM` it is an I/O virtual address, which the IOTLB knows,
/// without it a guest physical one, which the memory table knows. The device must translate it
/// before use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Iova(u64);

impl Iova {
    /// Makes an address of a number that the guest or the owner gave.
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// The address as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The guest physical address that this is where there is no IOMMU.
    #[inline(always)]
    pub const fn as_physical(self) -> GuestAddr {
        GuestAddr(self.0)
    }
}
