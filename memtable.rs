// SPDX-License-Identifier: GPL-2.0

//! The memory table: guest addresses to user addresses.
//!
//! The owner describes guest memory as regions (`VHOST_SET_MEM_TABLE`); the ring code asks the
//! table for the user memory behind every buffer that a guest names. A table is built once, never
//! changed, and shared by the queues; a new one takes its place. What may never happen here: a
//! translation that reaches a byte that no region covers.

#![forbid(unsafe_code)]

use crate::usermem::{
    Segment,
    UserAddr,
    UserMemory, //
};
use kernel::prelude::*;

/// An address that the driver put in a descriptor.
///
/// It is a guest physical address (virtio 1.3, section 2.7.5: `le64 addr`). The device must
/// translate it before use, so the number inside is reached only by the table and the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct GuestAddr(u64);

impl GuestAddr {
    /// Makes an address of a number that the guest or the owner gave.
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

/// A region of guest memory, as the owner describes it.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// The guest address of its first byte.
    pub guest: GuestAddr,
    /// Its size in bytes, at least one.
    pub size: u64,
    /// The user address of its first byte.
    pub user: UserAddr,
}

/// A region within a table.
#[derive(Clone, Copy)]
struct Map {
    first: u64,
    last: u64,
    user: UserAddr,
    /// The largest `last` of this and all maps before it in the table.
    reach: u64,
    /// The region's place in the owner's list: it orders regions that start at the same address.
    rank: usize,
}

impl Map {
    #[inline(always)]
    fn holds(&self, addr: u64) -> bool {
        self.first <= addr && addr <= self.last
    }
}

/// The most pieces that one chain may fall into (`UIO_MAXIOV`).
pub const MAX_SEGMENTS: usize = 1024;

/// A list of segments that never allocates once made: the buffers of a chain, in order.
pub struct Segments(KVVec<Segment>);

impl Segments {
    /// Makes an empty list with room for [`MAX_SEGMENTS`].
    ///
    /// Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        Ok(Self(KVVec::with_capacity(MAX_SEGMENTS, GFP_KERNEL)?))
    }

    /// Adds a segment. Fails with [`ENOBUFS`] when there are [`MAX_SEGMENTS`] already.
    #[inline(always)]
    fn push(&mut self, segment: Segment) -> Result {
        if self.0.len() >= MAX_SEGMENTS {
            return Err(ENOBUFS);
        }
        self.0.push_within_capacity(segment).map_err(|_| ENOBUFS)
    }

    /// Empties the list.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The segments.
    #[inline(always)]
    pub fn as_slice(&self) -> &[Segment] {
        self.0.as_slice()
    }

    /// The segments from number `start` on; none if there are no more than these.
    #[inline(always)]
    pub fn from(&self, start: usize) -> &[Segment] {
        self.as_slice().get(start..).unwrap_or_default()
    }

    /// How many segments there are.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// A guess at which map the next address falls into: the one that held the last.
///
/// It belongs to the table's user, so that queues don't share it. A stale one costs a search.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint(usize);

/// The memory table.
///
/// # Invariants
///
/// `maps` is sorted by `first`, then by `rank`; no map is empty; each `reach` is as its comment
/// says; `disjoint` is true only if no address is in two maps.
pub struct MemTable {
    maps: KVVec<Map>,
    disjoint: bool,
}

impl MemTable {
    /// Builds the table of `regions`.
    ///
    /// Fails with [`EFAULT`] if a region is empty or wraps around the end of the guest's address
    /// space (one that covers the whole of it is neither), and with [`ENOMEM`].
    pub fn new(regions: impl ExactSizeIterator<Item = Region>) -> Result<Self> {
        // A region that covers all 2^64 bytes becomes two maps.
        let mut maps = KVVec::with_capacity(regions.len().saturating_mul(2), GFP_KERNEL)?;
        for region in regions {
            let first = region.guest.get();
            let last = first.wrapping_add(region.size).wrapping_sub(1);
            if last < first {
                return Err(EFAULT);
            }
            Self::add(&mut maps, first, last, region.user)?;
        }
        maps.sort_unstable_by_key(|map| (map.first, map.rank));

        let mut disjoint = true;
        let mut reach = None;
        for map in maps.iter_mut() {
            disjoint &= reach.is_none_or(|reach| reach < map.first);
            map.reach = reach.map_or(map.last, |reach: u64| reach.max(map.last));
            reach = Some(map.reach);
        }
        // INVARIANT: Sorted above, and `last < first` was refused; the loop set the rest.
        Ok(Self { maps, disjoint })
    }

    fn add(maps: &mut KVVec<Map>, first: u64, last: u64, user: UserAddr) -> Result {
        if first == 0 && last == u64::MAX {
            // The size of this one is no `u64`.
            let middle = u64::MAX / 2;
            Self::add(maps, 0, middle, user)?;
            return Self::add(maps, middle + 1, last, user.offset(middle + 1));
        }
        let rank = maps.len();
        maps.push(
            Map {
                first,
                last,
                user,
                reach: last,
                rank,
            },
            GFP_KERNEL,
        )?;
        Ok(())
    }

    /// Whether all of the table is within user space.
    pub fn access_ok(&self, mem: &impl UserMemory) -> bool {
        self.maps
            .iter()
            .all(|map| mem.access_ok(map.user, Self::size(map)))
    }

    /// The guest's ranges, each as its first address and its size in bytes.
    pub fn ranges(&self) -> impl Iterator<Item = (GuestAddr, u64)> + '_ {
        self.maps
            .iter()
            .map(|map| (GuestAddr::new(map.first), Self::size(map)))
    }

    fn size(map: &Map) -> u64 {
        // By the type invariants and `add` it is neither 0 nor 2^64.
        (map.last - map.first).wrapping_add(1)
    }

    /// The map that `addr` is in. Where regions overlap, the one that starts first has it.
    #[inline]
    fn find(&self, addr: u64, hint: &mut Hint) -> Option<&Map> {
        if self.disjoint {
            if let Some(map) = self.maps.get(hint.0).filter(|map| map.holds(addr)) {
                return Some(map);
            }
        }
        self.search(addr, hint)
    }

    fn search(&self, addr: u64, hint: &mut Hint) -> Option<&Map> {
        // `reach` never falls, and it first gets to `addr` at the first map that does.
        let index = self.maps.partition_point(|map| map.reach < addr);
        hint.0 = index;
        self.maps.get(index).filter(|map| map.holds(addr))
    }

    /// Adds to `out` the user memory behind `len` bytes of guest memory from `addr`, in order.
    ///
    /// Fails with [`EFAULT`] if a byte of the range is in no region, and with [`ENOBUFS`] if `out`
    /// is full; then some of the range may be in `out`.
    #[inline]
    pub fn translate(
        &self,
        addr: GuestAddr,
        len: u32,
        hint: &mut Hint,
        out: &mut Segments,
    ) -> Result {
        let mut left = u64::from(len);
        let mut addr = addr.get();

        while left > 0 {
            if out.len() >= MAX_SEGMENTS {
                return Err(ENOBUFS);
            }
            let map = self.find(addr, hint).ok_or(EFAULT)?;
            let skip = addr - map.first;
            // The bytes after `addr` in this map: the last one may be number 2^64 - 1.
            let more = map.last - addr;
            let take = if left <= more { left } else { more + 1 };
            out.push(Segment::new(map.user.offset(skip), take).ok_or(EFAULT)?)?;
            left -= take;
            if left > 0 {
                addr = addr.checked_add(take).ok_or(EFAULT)?;
            }
        }
        Ok(())
    }
}
