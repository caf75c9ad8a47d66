// SPDX-License-Identifier: GPL-2.0

//! The device IOTLB: what is behind the addresses of a driver behind an IOMMU.

#![forbid(unsafe_code)]

use super::{
    addr::Iova,
    maps::Maps, //
};
use crate::usermem::UserAddr;
use kernel::prelude::*;

/// The device IOTLB: what the owner has told of the driver's addresses.
pub struct Iotlb {
    maps: Maps,
    /// The most maps that it may have.
    limit: usize,
    /// Changes with every change of the maps.
    generation: u64,
}

impl Iotlb {
    /// Makes an empty IOTLB that has at most `limit` maps, at least one.
    pub const fn new(limit: usize) -> Self {
        Self {
            maps: Maps::new(),
            limit,
            generation: 0,
        }
    }

    /// What it holds.
    #[inline(always)]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The most maps that it may have.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A number that is another one after each change.
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Adds the map of `size` bytes from `addr` to the user memory at `user`, which may be
    /// accessed as `perm` says. If there is no room for it, the oldest map goes.
    ///
    /// Fails with [`EFAULT`] if `size` is 0 or the range wraps, and with [`ENOMEM`].
    pub fn update(&mut self, addr: Iova, size: u64, user: UserAddr, perm: u8) -> Result {
        let first = addr.get();
        let more = size.checked_sub(1).ok_or(EFAULT)?;
        let last = first.checked_add(more).ok_or(EFAULT)?;
        self.generation += 1;
        if self.maps.len() >= self.limit {
            self.maps.remove_oldest();
        }
        self.maps.insert(first, last, user, perm)
    }

    /// Removes every map that has part of the `size` bytes from `addr`.
    ///
    /// Fails with [`EINVAL`] if `size` is 0.
    pub fn invalidate(&mut self, addr: Iova, size: u64) -> Result {
        let more = size.checked_sub(1).ok_or(EINVAL)?;
        self.generation += 1;
        let first = addr.get();
        self.maps.remove(first, first.wrapping_add(more));
        Ok(())
    }
}
