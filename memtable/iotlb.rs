// SPDX-License-Identifier: GPL-2.0

//! The device IOTLB: what is behind the addresses of a driver behind an IOMMU.

#![forbid(unsafe_code)]

use super::{
    addr::Iova,
    maps::Maps, //
};
use crate::usermem::UserAddr;
use kernel::prelude::*;

/// A range of the driver's addresses that the owner tells of, and the user memory behind it.
///
/// # Invariants
///
/// `first` is at most `last`.
#[derive(Clone, Copy)]
pub struct Update {
    first: u64,
    last: u64,
    user: UserAddr,
    perm: u8,
}

impl Update {
    /// `size` bytes from `addr` are the user memory at `user`, which may be accessed as `perm` says.
    ///
    /// Fails with [`EFAULT`] if `size` is 0 or the range wraps.
    pub fn new(addr: Iova, size: u64, user: UserAddr, perm: u8) -> Result<Self> {
        let first = addr.get();
        let more = size.checked_sub(1).ok_or(EFAULT)?;
        // INVARIANT: It does not wrap.
        Ok(Self {
            first,
            last: first.checked_add(more).ok_or(EFAULT)?,
            user,
            perm,
        })
    }

    /// The largest power of two that its ends are multiples of.
    pub fn grain(&self) -> u64 {
        let ends = self.first | self.last.wrapping_add(1);
        1u64.checked_shl(ends.trailing_zeros()).unwrap_or(u64::MAX)
    }

    /// Whether it has no part in what a map says whose ends are multiples of `grain`, however they
    /// lie: such a map that has any of its addresses begins where it does or before, and so has all
    /// of them and comes first.
    pub fn changes_nothing(&self, grain: u64) -> bool {
        let more = self.last - self.first;
        more == self.grain() - 1 && more < grain
    }
}

/// Updates that are to be made, the first one first.
pub type Updates = KVVec<Update>;

/// The device IOTLB: what the owner has told of the driver's addresses.
pub struct Iotlb {
    maps: Maps,
    /// The most maps that it may have.
    limit: usize,
    /// Changes with every change of the maps.
    generation: u64,
    /// Empty: what [`Self::catch_up`] exchanges.
    late: Updates,
}

impl Iotlb {
    /// Makes an empty IOTLB that has at most `limit` maps, at least one.
    pub const fn new(limit: usize) -> Self {
        Self {
            maps: Maps::new(),
            limit,
            generation: 0,
            late: Updates::new(),
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

    /// Adds the map that `update` tells of. If there is no room for it, the oldest map goes.
    ///
    /// Fails with [`ENOMEM`].
    pub fn update(&mut self, update: Update) -> Result {
        let Update {
            first,
            last,
            user,
            perm,
        } = update;
        self.generation += 1;
        if self.maps.len() >= self.limit {
            self.maps.remove_oldest();
        }
        self.maps.insert(first, last, user, perm)
    }

    /// Makes room for `count` updates to [catch up](Self::catch_up) with. Fails with [`ENOMEM`].
    pub fn make_room(&mut self, count: usize) -> Result {
        self.late.reserve(count, GFP_KERNEL_ACCOUNT)?;
        // At the limit one goes for each.
        let more = self.limit.saturating_sub(self.maps.len());
        self.maps.reserve(count.min(more))
    }

    /// Makes updates that have come while it was in use: `take` is to exchange the list that it
    /// gets, which is empty, for theirs. They are no more than there is [room](Self::make_room)
    /// for.
    pub fn catch_up(&mut self, take: impl FnOnce(&mut Updates)) {
        let mut late = core::mem::take(&mut self.late);
        take(&mut late);
        for &update in late.iter() {
            // There is room.
            let _ = self.update(update);
        }
        late.clear();
        self.late = late;
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
