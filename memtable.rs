// SPDX-License-Identifier: GPL-2.0

//! Guest addresses to user addresses: the memory table and the device IOTLB.
//!
//! The owner describes guest memory as regions (`VHOST_SET_MEM_TABLE`); the [`MemTable`] of these
//! is built once, never changed, and shared by the queues. Behind an IOMMU the driver's addresses
//! mean nothing by themselves: the [`Iotlb`] holds what the owner told of them so far
//! (`VHOST_IOTLB_UPDATE`). The ring code asks the [`Maps`] of either for the user memory behind
//! every buffer that a guest names. What may never happen here: a translation that reaches a byte
//! that no map covers, or in a way that its map does not allow.

#![forbid(unsafe_code)]

use crate::usermem::{
    Segment,
    UserAddr,
    UserMemory, //
};
use kernel::prelude::*;

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
/// With `VIRTIO_F_ACCESS_PLATFORM` it is an I/O virtual address, which the [`Iotlb`] knows,
/// without it a guest physical one, which the [`MemTable`] knows. The device must translate it
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

/// What the device wants to do with memory, as a bit of a map's permissions (`VHOST_ACCESS_RO`,
/// `VHOST_ACCESS_WO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Access {
    /// Read it.
    Read = 1,
    /// Write it.
    Write = 2,
}

/// The permissions of memory that may be both read and written (`VHOST_ACCESS_RW`).
pub const READ_WRITE: u8 = Access::Read as u8 | Access::Write as u8;

/// An access to an address that no map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The first such address.
    pub addr: Iova,
    /// What was to be done there.
    pub access: Access,
}

/// Why a range of the driver's addresses could not be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Part of it is in no map.
    Unmapped(Miss),
    /// A map does not allow the access.
    Denied,
    /// It falls into more pieces than there is room for.
    TooMany,
}

/// A range of the driver's addresses, and the user memory behind it.
#[derive(Clone, Copy)]
struct Map {
    /// The addresses that are looked up here, the first and the last. Those before `from` are in a
    /// map before this one in the list too, which has them; if all are, `from` is behind `until`.
    from: u64,
    until: u64,
    /// What is added to an address to get the user address. It wraps.
    delta: u64,
    /// The largest `last` of this and all maps before it in the list.
    reach: u64,
    first: u64,
    last: u64,
    /// Maps that start at the same address are ordered by age; so is who has to go.
    age: u64,
    perm: u8,
}

impl Map {
    #[inline(always)]
    fn has(&self, addr: u64) -> bool {
        self.from <= addr && addr <= self.until
    }

    /// Whether `len` bytes from `addr`, at least one, are looked up here and nowhere else, and
    /// may be accessed so.
    #[inline(always)]
    fn allows(&self, addr: u64, len: u32, access: Access) -> bool {
        self.has(addr)
            && u64::from(len).wrapping_sub(1) <= self.last - addr
            && self.perm & access as u8 != 0
    }

    fn size(&self) -> u64 {
        // By the invariants of `Maps` it is neither 0 nor 2^64.
        (self.last - self.first).wrapping_add(1)
    }

    fn user(&self) -> UserAddr {
        UserAddr::new(self.first.wrapping_add(self.delta))
    }
}

/// The most pieces that one chain may fall into (`UIO_MAXIOV`).
pub const MAX_SEGMENTS: usize = 1024;

/// A list of segments that never allocates once made: the buffers of a chain, in order.
///
/// # Invariants
///
/// There are at most [`MAX_SEGMENTS`], with `total` bytes together.
pub struct Segments {
    list: KVVec<Segment>,
    total: u64,
}

impl Segments {
    /// Makes an empty list with room for [`MAX_SEGMENTS`].
    ///
    /// Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        Ok(Self {
            list: KVVec::with_capacity(MAX_SEGMENTS, GFP_KERNEL)?,
            total: 0,
        })
    }

    /// Whether there is no room: there are [`MAX_SEGMENTS`].
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.list.len() >= MAX_SEGMENTS
    }

    /// Adds a segment, unless the list is full.
    #[inline(always)]
    fn push(&mut self, segment: Segment) -> Result<(), Refused> {
        if self.is_full() {
            return Err(Refused::TooMany);
        }
        self.list
            .push_within_capacity(segment)
            .map_err(|_| Refused::TooMany)?;
        // INVARIANT: There was room. Less than 2^32 bytes each do not overflow.
        self.total += segment.len() as u64;
        Ok(())
    }

    /// Empties the list.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.list.clear();
        self.total = 0;
    }

    /// The segments.
    #[inline(always)]
    pub fn as_slice(&self) -> &[Segment] {
        self.list.as_slice()
    }

    /// How many segments there are.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// How many bytes they have together, which saturates.
    #[inline(always)]
    pub fn total(&self) -> usize {
        usize::try_from(self.total).unwrap_or(usize::MAX)
    }
}

/// How many guesses there are. A `u8` names one.
const GUESSES: usize = 1 << u8::BITS;

/// Guesses at which map an address falls into: the one where the last address in the same page, or
/// in one that shares its guess, was found.
///
/// They belong to the user of the maps, so that queues don't share them. A wrong one costs a
/// search.
#[derive(Clone, Debug)]
pub struct Hint([u16; GUESSES]);

impl Default for Hint {
    fn default() -> Self {
        Self([0; GUESSES])
    }
}

impl Hint {
    /// The guess for `addr`. The multiplier is one by which 64 addresses at the same distance from
    /// each other, any power of two from a page to 1 GiB, have different ones.
    #[inline(always)]
    fn number(addr: u64) -> usize {
        let hash = (addr >> 12).wrapping_mul(0xcd61_3e30_d8f1_6adf);
        usize::from((hash >> (u64::BITS - u8::BITS)) as u8)
    }

    #[inline(always)]
    fn guess(&self, addr: u64) -> usize {
        usize::from(self.0[Self::number(addr)])
    }

    fn learn(&mut self, addr: u64, index: usize) {
        // Of more maps than that, the others are searched for each time.
        self.0[Self::number(addr)] = index as u16;
    }
}

/// Ranges of the driver's addresses, with the user memory behind each.
///
/// Where ranges overlap, the one that starts first has the addresses that they share; of those
/// that start together, the oldest.
///
/// # Invariants
///
/// `list` is sorted by `first`, then by `age`; each `first` is at most `last`, and no map covers
/// all 2^64 addresses; `from`, `until` and `reach` are as their comments say.
pub struct Maps {
    list: KVVec<Map>,
    /// The age of the next map.
    next_age: u64,
}

impl Maps {
    const fn new() -> Self {
        // INVARIANT: There are no maps.
        Self {
            list: KVVec::new(),
            next_age: 0,
        }
    }

    /// Makes a map that [`Self::link`] has to see.
    fn map(&mut self, first: u64, last: u64, user: UserAddr, perm: u8) -> Map {
        let age = self.next_age;
        self.next_age += 1;
        Map {
            from: first,
            until: last,
            delta: user.get().wrapping_sub(first),
            reach: last,
            first,
            last,
            age,
            perm,
        }
    }

    /// Corrects what each map from `index` on knows of those before it. Behind the first `count`
    /// of them, where maps were added or removed, all are right as soon as one is.
    fn link(&mut self, index: usize, count: usize) {
        let before = index.checked_sub(1).and_then(|index| self.list.get(index));
        let mut reach = before.map(|map| map.reach);
        for (number, map) in self.list.iter_mut().skip(index).enumerate() {
            let (from, until) = match reach {
                Some(reach) if reach >= map.last => (1, 0),
                Some(reach) if reach >= map.first => (reach + 1, map.last),
                _ => (map.first, map.last),
            };
            let far = reach.map_or(map.last, |reach: u64| reach.max(map.last));
            if number >= count && (map.from, map.until, map.reach) == (from, until, far) {
                break;
            }
            (map.from, map.until, map.reach) = (from, until, far);
            reach = Some(far);
        }
    }

    fn insert(&mut self, first: u64, last: u64, user: UserAddr, perm: u8) -> Result {
        let index = self.list.partition_point(|map| map.first <= first);
        self.list.reserve(1, GFP_KERNEL)?;
        let map = self.map(first, last, user, perm);
        self.list.insert_within_capacity(index, map)?;
        // INVARIANT: It is the youngest, and behind all that start where it does.
        self.link(index, 1);
        Ok(())
    }

    /// Removes the maps that have addresses both up to `last` and from `first` on.
    fn remove(&mut self, first: u64, last: u64) {
        let begin = self.list.partition_point(|map| map.reach < first);
        let end = self.list.partition_point(|map| map.first <= last);
        let found = |index: &usize| self.list.get(*index).is_some_and(|map| map.last >= first);
        let mut indices = (begin..end).filter(found);
        match (indices.next(), indices.next()) {
            (None, _) => return,
            (Some(index), None) => {
                let _ = self.list.remove(index);
            }
            _ => self.list.retain(|map| map.last < first || map.first > last),
        }
        // INVARIANT: The maps that are left keep their order.
        self.link(begin, end.saturating_sub(begin));
    }

    /// Removes the oldest map. This looks at all of them.
    fn remove_oldest(&mut self) {
        let ages = self.list.iter().map(|map| map.age).enumerate();
        if let Some((index, _)) = ages.min_by_key(|(_, age)| *age) {
            let _ = self.list.remove(index);
            // INVARIANT: As above.
            self.link(index, 0);
        }
    }

    /// The map that has `addr`.
    #[inline(always)]
    fn find(&self, addr: u64, hint: &mut Hint) -> Option<&Map> {
        match self.list.get(hint.guess(addr)) {
            Some(map) if map.has(addr) => Some(map),
            _ => self.search(addr, hint),
        }
    }

    #[inline(never)]
    fn search(&self, addr: u64, hint: &mut Hint) -> Option<&Map> {
        // `reach` never falls, and it first gets to `addr` at the first map that does.
        let index = self.list.partition_point(|map| map.reach < addr);
        let map = self.list.get(index).filter(|map| map.has(addr))?;
        hint.learn(addr, index);
        Some(map)
    }

    /// Adds to `out` the user memory behind `len` bytes from `addr`, in order, for an `access`.
    ///
    /// After an error some of the range may be in `out`.
    #[inline(always)]
    pub fn translate(
        &self,
        addr: Iova,
        len: u32,
        access: Access,
        hint: &mut Hint,
        out: &mut Segments,
    ) -> Result<(), Refused> {
        // Nearly always it is all in the map that was guessed.
        if let Some(map) = self.list.get(hint.guess(addr.get())) {
            if map.allows(addr.get(), len, access) {
                let user = UserAddr::new(addr.get().wrapping_add(map.delta));
                if let Some(segment) = Segment::new(user, u64::from(len)) {
                    return out.push(segment);
                }
            }
        }
        self.translate_pieces(addr, len, access, hint, out)
    }

    #[inline(never)]
    fn translate_pieces(
        &self,
        start: Iova,
        len: u32,
        access: Access,
        hint: &mut Hint,
        out: &mut Segments,
    ) -> Result<(), Refused> {
        let mut left = u64::from(len);
        let mut addr = start.get();
        while left > 0 {
            if out.is_full() {
                return Err(Refused::TooMany);
            }
            let Some(map) = self.find(addr, hint) else {
                let addr = Iova::new(addr);
                return Err(Refused::Unmapped(Miss { addr, access }));
            };
            if map.perm & access as u8 == 0 {
                return Err(Refused::Denied);
            }
            // The bytes after `addr` in this map: the last one may be number 2^64 - 1.
            let more = map.last - addr;
            let take = if left <= more { left } else { more + 1 };
            let user = UserAddr::new(addr.wrapping_add(map.delta));
            // A range that goes past the end of either address space is nowhere.
            let nowhere = Refused::Unmapped(Miss {
                addr: start,
                access,
            });
            let segment = Segment::new(user, take).ok_or(nowhere)?;
            out.push(segment)?;
            left -= take;
            if left > 0 {
                addr = addr.checked_add(take).ok_or(nowhere)?;
            }
        }
        Ok(())
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

/// The memory table.
pub struct MemTable(Maps);

impl MemTable {
    /// Builds the table of `regions`.
    ///
    /// Fails with [`EFAULT`] if a region is empty or wraps around the end of the guest's address
    /// space (one that covers the whole of it is neither), and with [`ENOMEM`].
    pub fn new(regions: impl ExactSizeIterator<Item = Region>) -> Result<Self> {
        let mut maps = Maps::new();
        maps.list.reserve(regions.len(), GFP_KERNEL)?;
        for region in regions {
            let first = region.guest.get();
            let last = first.wrapping_add(region.size).wrapping_sub(1);
            if last < first {
                return Err(EFAULT);
            }
            // Owners name their regions in order, so that each goes to the end.
            let mut add = |first, last, user| -> Result {
                let index = maps.list.partition_point(|map| map.first <= first);
                maps.list.reserve(1, GFP_KERNEL)?;
                let map = maps.map(first, last, user, READ_WRITE);
                Ok(maps.list.insert_within_capacity(index, map)?)
            };
            if first == 0 && last == u64::MAX {
                // The size of this one is no `u64`.
                let middle = u64::MAX / 2;
                add(first, middle, region.user)?;
                add(middle + 1, last, region.user.offset(middle + 1))?;
            } else {
                add(first, last, region.user)?;
            }
        }
        // INVARIANT: Each was put behind those that start no later, and `last < first` was refused.
        maps.link(0, usize::MAX);
        Ok(Self(maps))
    }

    /// The table as maps.
    #[inline(always)]
    pub fn maps(&self) -> &Maps {
        &self.0
    }

    /// Whether all of the table is within user space.
    pub fn access_ok(&self, mem: &impl UserMemory) -> bool {
        let mut maps = self.0.list.iter();
        maps.all(|map| mem.access_ok(map.user(), map.size()))
    }

    /// The guest's ranges, each as its first address and its size in bytes.
    pub fn ranges(&self) -> impl Iterator<Item = (GuestAddr, u64)> + '_ {
        let maps = self.0.list.iter();
        maps.map(|map| (GuestAddr::new(map.first), map.size()))
    }

    /// Calls `f` with each range of guest memory, as its first address and its size in bytes, that
    /// is behind part of `len` bytes of user memory from `user`. Returns whether there is any.
    pub fn physical(&self, user: UserAddr, len: u64, mut f: impl FnMut(GuestAddr, u64)) -> bool {
        let mut any = false;
        for map in self.0.list.iter() {
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
        if self.maps.list.len() >= self.limit {
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
