// SPDX-License-Identifier: GPL-2.0

//! Guest addresses to user addresses: the memory table and the device IOTLB.
//!
//! The owner describes guest memory as regions (`VHOST_SET_MEM_TABLE`); the [`MemTable`] of these
//! is built once, never changed, and shared by the queues. Behind an IOMMU the driver's addresses
//! mean nothing by themselves: the [`Iotlb`] holds what the owner told of them so far
//! (`VHOST_IOTLB_UPDATE`). The ring code asks the [`Maps`] of either for the user memory behind
//! every buffer that a guest names.
//!
//! The room behind this door: [`addr`], the kinds of addresses; [`maps`], the lookup, with
//! [`hint`] for its guesses; [`segments`], what it finds; [`access`], why it does not; [`iotlb`];
//! [`ahead`], what it will not find. What may never happen here: a translation that reaches a byte
//! that no map covers, or in a way that its map does not allow.

#![forbid(unsafe_code)]

mod access;
mod addr;
mod ahead;
mod hint;
mod iotlb;
mod maps;
mod segments;

pub use access::{
    Access,
    Miss,
    Refused,
    READ_WRITE, //
};
pub use addr::{
    GuestAddr,
    Iova, //
};
pub use ahead::Ahead;
// How many there may be concerns the tests, too.
#[allow(unused_imports)]
pub use ahead::MAX_AHEAD;
pub use hint::Hint;
pub use iotlb::{
    Iotlb,
    Update,
    Updates, //
};
pub use maps::Maps;
pub use segments::{
    Segments,
    MAX_SEGMENTS, //
};

use crate::usermem::{
    UserAddr,
    UserMemory, //
};
use kernel::prelude::*;

/// A region of guest memory, as the owner describes it.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// The guest address of its first byte.
    pub guest: GuestAddr,
    /// Its size in bytes; 0 is all of the address space, from address 0.
    pub size: u64,
    /// The user address of its first byte.
    pub user: UserAddr,
}

/// The memory table.
pub struct MemTable(Maps);

impl MemTable {
    /// Builds the table of `regions`.
    ///
    /// Fails with [`EFAULT`] if a region is empty or wraps around the end of the guest's address
    /// space (one that covers the whole of it is neither), and with [`ENOMEM`].
    pub fn new(regions: impl ExactSizeIterator<Item = Region>) -> Result<Self> {
        let mut maps = Maps::new();
        maps.reserve(regions.len())?;
        for region in regions {
            let first = region.guest.get();
            let last = first.wrapping_add(region.size).wrapping_sub(1);
            if last < first {
                return Err(EFAULT);
            }
            // Owners name their regions in order, so that each goes to the end.
            let mut add = |first, last, user| maps.add(first, last, user, READ_WRITE);
            if first == 0 && last == u64::MAX {
                // The size of this one is no `u64`.
                let middle = u64::MAX / 2;
                add(first, middle, region.user)?;
                add(middle + 1, last, region.user.offset(middle + 1))?;
            } else {
                add(first, last, region.user)?;
            }
        }
        // INVARIANT: `last < first` was refused.
        maps.link(0, usize::MAX);
        Ok(Self(maps))
    }

    /// The table as maps.
    #[inline(always)]
    pub fn maps(&self) -> &Maps {
        &self.0
    }

    /// Whether all of the table is within user space.
    pub fn access_ok(&self, mem: impl UserMemory) -> bool {
        let mut maps = self.0.iter();
        maps.all(|map| mem.access_ok(map.user(), map.size()))
    }

    /// The guest's ranges, each as its first address and its size in bytes.
    pub fn ranges(&self) -> impl Iterator<Item = (GuestAddr, u64)> + '_ {
        let maps = self.0.iter();
        maps.map(|map| (GuestAddr::new(map.first), map.size()))
    }

    /// Calls `f` with each range of guest memory, as its first address and its size in bytes, that
    /// is behind part of `len` bytes of user memory from `user`. Returns whether there is any.
    pub fn physical(&self, user: UserAddr, len: u64, mut f: impl FnMut(GuestAddr, u64)) -> bool {
        let mut any = false;
        for map in self.0.iter() {
            // Where each of the ranges starts in the other, if it does.
            let skip = user.get().wrapping_sub(map.user().get());
            let ahead = map.user().get().wrapping_sub(user.get());
            let (start, len) = if skip < map.size() {
                (skip, len.min(map.size() - skip))
            } else if ahead < len {
                (0, map.size().min(len - ahead))
            } else {
                continue;
            };
            any = true;
            f(GuestAddr::new(map.first).offset(start), len);
        }
        any
    }
}
