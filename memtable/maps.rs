// SPDX-License-Identifier: GPL-2.0

//! Ranges of the driver's addresses: the lookup behind each buffer that a guest names.
//!
//! What may never happen here: a translation that reaches a byte that no map covers, or in a way
//! that its map does not allow.

#![forbid(unsafe_code)]

use super::{
    access::{
        Access,
        Miss,
        Refused, //
    },
    addr::Iova,
    hint::Hint,
    segments::Segments, //
};
use crate::usermem::{
    Segment,
    UserAddr, //
};
use kernel::prelude::*;

/// No slot.
const NONE: u32 = u32::MAX;

/// A range of the driver's addresses, and the user memory behind it.
#[derive(Clone, Copy)]
pub(super) struct Map {
    /// The addresses that are looked up here, the first and the last. Those before `from` are in a
    /// map before this one in the order too, which has them; if all are, and where there is no map,
    /// `from` is behind `until`.
    from: u64,
    until: u64,
    /// What is added to an address to get the user address. It wraps.
    delta: u64,
    /// The largest `last` of this and all maps before it in the order.
    reach: u64,
    pub(super) first: u64,
    last: u64,
    /// The slot of the map that is the next older one, and of the next younger one; of a slot
    /// without a map, `younger` is the next of these.
    older: u32,
    younger: u32,
    /// The bits of [`Access`] that it does not allow.
    denied: u8,
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
            && self.denied & access as u8 == 0
    }

    pub(super) fn size(&self) -> u64 {
        // By the invariants of `Maps` it is neither 0 nor 2^64.
        (self.last - self.first).wrapping_add(1)
    }

    pub(super) fn user(&self) -> UserAddr {
        UserAddr::new(self.first.wrapping_add(self.delta))
    }
}

/// Ranges of the driver's addresses, with the user memory behind each.
///
/// Where ranges overlap, the one that starts first has the addresses that they share; of those
/// that start together, the oldest.
///
/// A map stays in its slot for as long as it is there, so that a [`Hint`] of where an address was
/// found outlives changes elsewhere; what moves when there is a change is `order`, four bytes a map.
///
/// # Invariants
///
/// `order` has the slots that have a map, each once, sorted by `first`, then by age; each `first`
/// is at most `last`, and no map covers all 2^64 addresses; `from`, `until` and `reach` are as
/// their comments say. From `oldest` on, `younger` leads through the same slots by age to
/// `youngest`, and `older` back; from `free` on it leads through all other slots.
pub struct Maps {
    slots: KVVec<Map>,
    order: KVVec<u32>,
    oldest: u32,
    youngest: u32,
    free: u32,
}

impl Maps {
    pub(super) const fn new() -> Self {
        // INVARIANT: There are no maps, and no slots.
        Self {
            slots: KVVec::new(),
            order: KVVec::new(),
            oldest: NONE,
            youngest: NONE,
            free: NONE,
        }
    }

    /// How many maps there are.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// The maps, by their first addresses.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Map> {
        self.order.iter().filter_map(|&slot| self.slot(slot))
    }

    #[inline(always)]
    fn slot(&self, slot: u32) -> Option<&Map> {
        self.slots.get(slot as usize)
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Map> {
        self.slots.get_mut(slot as usize)
    }

    /// The map at this place in the order.
    fn at(&self, place: usize) -> Option<&Map> {
        self.slot(*self.order.get(place)?)
    }

    /// The place in the order of the first map that `f` is not true of; it is of all before that.
    fn place(&self, f: impl Fn(&Map) -> bool) -> usize {
        self.order
            .partition_point(|&slot| self.slot(slot).is_some_and(&f))
    }

    /// Makes room for so many maps more: to add them takes no memory then. Fails with [`ENOMEM`].
    pub(super) fn reserve(&mut self, count: usize) -> Result {
        let free = self.slots.len() - self.order.len();
        self.slots
            .reserve(count.saturating_sub(free), GFP_KERNEL_ACCOUNT)?;
        Ok(self.order.reserve(count, GFP_KERNEL_ACCOUNT)?)
    }

    /// Adds a map, of which [`Self::link`] has to be told the place that is returned.
    ///
    /// Fails with [`ENOMEM`].
    pub(super) fn add(&mut self, first: u64, last: u64, user: UserAddr, perm: u8) -> Result<usize> {
        self.order.reserve(1, GFP_KERNEL_ACCOUNT)?;
        let map = Map {
            from: first,
            until: last,
            delta: user.get().wrapping_sub(first),
            reach: last,
            first,
            last,
            older: self.youngest,
            younger: NONE,
            denied: !perm,
        };
        let slot = self.free;
        let slot = if let Some(free) = self.slot_mut(slot) {
            let next = core::mem::replace(free, map).younger;
            self.free = next;
            slot
        } else {
            let slot = u32::try_from(self.slots.len()).map_err(|_| ENOMEM)?;
            self.slots.push(map, GFP_KERNEL_ACCOUNT)?;
            slot
        };
        // INVARIANT: It is the youngest, and behind all that start where it does.
        let youngest = core::mem::replace(&mut self.youngest, slot);
        match self.slot_mut(youngest) {
            Some(map) => map.younger = slot,
            None => self.oldest = slot,
        }
        let place = self.place(|map| map.first <= first);
        self.order.insert_within_capacity(place, slot)?;
        Ok(place)
    }

    /// Takes the map of a slot that is no longer in the order out of the list by age, and the slot
    /// for another one.
    fn release(&mut self, slot: u32) {
        let free = self.free;
        let Some(map) = self.slot_mut(slot) else {
            return;
        };
        let (older, younger) = (map.older, map.younger);
        // A guess that it is here is wrong from now on.
        (map.from, map.until, map.younger) = (1, 0, free);
        self.free = slot;
        match self.slot_mut(older) {
            Some(map) => map.younger = younger,
            None => self.oldest = younger,
        }
        match self.slot_mut(younger) {
            Some(map) => map.older = older,
            None => self.youngest = older,
        }
    }

    /// Corrects what each map from `place` on knows of those before it. Behind the first `count`
    /// of them, where maps were added or removed, all are right as soon as one is.
    pub(super) fn link(&mut self, place: usize, count: usize) {
        let before = place.checked_sub(1).and_then(|place| self.at(place));
        let mut reach = before.map(|map| map.reach);
        let Self { slots, order, .. } = self;
        for (number, &slot) in order.iter().skip(place).enumerate() {
            let Some(map) = slots.get_mut(slot as usize) else {
                break;
            };
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

    pub(super) fn insert(&mut self, first: u64, last: u64, user: UserAddr, perm: u8) -> Result {
        let place = self.add(first, last, user, perm)?;
        self.link(place, 1);
        Ok(())
    }

    /// Removes the maps that have addresses both up to `last` and from `first` on.
    ///
    /// Those that start before `last` are looked at, from the one on that first gets to `first`.
    pub(super) fn remove(&mut self, first: u64, last: u64) {
        let begin = self.place(|map| map.reach < first);
        let end = self.place(|map| map.first <= last);
        let mut kept = begin;
        for place in begin..end {
            let Some(&slot) = self.order.get(place) else {
                return;
            };
            if self.slot(slot).is_some_and(|map| map.last >= first) {
                self.release(slot);
            } else if let Some(to) = self.order.get_mut(kept) {
                *to = slot;
                kept += 1;
            }
        }
        // INVARIANT: The maps that are left keep their order, and those that went are at no place.
        self.close_gap(kept, end);
        if kept < end {
            self.link(begin, kept - begin);
        }
    }

    /// Removes the places from `begin` up to `end` from the order.
    fn close_gap(&mut self, begin: usize, end: usize) {
        let len = self.order.len();
        if begin < end && end <= len {
            self.order.copy_within(end.., begin);
            self.order.truncate(len - (end - begin));
        }
    }

    /// Removes the oldest map.
    pub(super) fn remove_oldest(&mut self) {
        let slot = self.oldest;
        let Some(&Map { first, .. }) = self.slot(slot) else {
            return;
        };
        // Of those that start together it comes first.
        let place = self.place(|map| map.first < first);
        self.close_gap(place, place + 1);
        // INVARIANT: As above.
        self.release(slot);
        self.link(place, 0);
    }

    /// The map that has `addr`.
    #[inline(always)]
    fn find(&self, addr: u64, hint: &mut Hint) -> Option<&Map> {
        match self.slots.get(hint.guess(addr)) {
            Some(map) if map.has(addr) => Some(map),
            _ => self.search(addr, hint),
        }
    }

    #[inline(never)]
    fn search(&self, addr: u64, hint: &mut Hint) -> Option<&Map> {
        // `reach` never falls, and it first gets to `addr` at the first map that does.
        let slot = *self.order.get(self.place(|map| map.reach < addr))?;
        let map = self.slot(slot).filter(|map| map.has(addr))?;
        hint.learn(addr, slot);
        Some(map)
    }

    /// The first address from `addr` up to `last` that is in no map, whatever may be done there.
    /// Each map that is looked at is one of `steps`; when there are none left, nothing is found.
    pub(super) fn first_unmapped(
        &self,
        mut addr: u64,
        last: u64,
        hint: &mut Hint,
        steps: &mut u32,
    ) -> Option<u64> {
        while addr <= last {
            *steps = steps.checked_sub(1)?;
            let Some(map) = self.find(addr, hint) else {
                return Some(addr);
            };
            addr = map.until.checked_add(1)?;
        }
        None
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
        if let Some(map) = self.slots.get(hint.guess(addr.get())) {
            if map.allows(addr.get(), len, access) {
                let user = UserAddr::new(addr.get().wrapping_add(map.delta));
                if let Some(segment) = Segment::new(user, u64::from(len)) {
                    if out.push(segment) {
                        return Ok(());
                    }
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
            out.make_room()?;
            let Some(map) = self.find(addr, hint) else {
                let addr = Iova::new(addr);
                return Err(Refused::Unmapped(Miss { addr, access }));
            };
            if map.denied & access as u8 != 0 {
                let addr = Iova::new(addr);
                return Err(Refused::Denied(Miss { addr, access }));
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
            // There is room.
            let _ = out.push(segment);
            left -= take;
            if left > 0 {
                addr = addr.checked_add(take).ok_or(nowhere)?;
            }
        }
        Ok(())
    }
}
