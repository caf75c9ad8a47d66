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

/// A range of the driver's addresses, and the user memory behind it.
#[derive(Clone, Copy)]
pub(super) struct Map {
    /// The addresses that are looked up here, the first and the last. Those before `from` are in a
    /// map before this one in the list too, which has them; if all are, `from` is behind `until`.
    from: u64,
    until: u64,
    /// What is added to an address to get the user address. It wraps.
    delta: u64,
    /// The largest `last` of this and all maps before it in the list.
    reach: u64,
    pub(super) first: u64,
    last: u64,
    /// Maps that start at the same address are ordered by age; so is who has to go.
    pub(super) age: u64,
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
/// # Invariants
///
/// `list` is sorted by `first`, then by `age`; each `first` is at most `last`, and no map covers
/// all 2^64 addresses; `from`, `until` and `reach` are as their comments say.
pub struct Maps {
    pub(super) list: KVVec<Map>,
    /// The age of the next map.
    next_age: u64,
}

impl Maps {
    pub(super) const fn new() -> Self {
        // INVARIANT: There are no maps.
        Self {
            list: KVVec::new(),
            next_age: 0,
        }
    }

    /// Makes a map that [`Self::link`] has to see.
    pub(super) fn map(&mut self, first: u64, last: u64, user: UserAddr, perm: u8) -> Map {
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
    pub(super) fn link(&mut self, index: usize, count: usize) {
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

    pub(super) fn insert(&mut self, first: u64, last: u64, user: UserAddr, perm: u8) -> Result {
        let index = self.list.partition_point(|map| map.first <= first);
        self.list.reserve(1, GFP_KERNEL)?;
        let map = self.map(first, last, user, perm);
        self.list.insert_within_capacity(index, map)?;
        // INVARIANT: It is the youngest, and behind all that start where it does.
        self.link(index, 1);
        Ok(())
    }

    /// Removes the maps that have addresses both up to `last` and from `first` on.
    pub(super) fn remove(&mut self, first: u64, last: u64) {
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
    pub(super) fn remove_oldest(&mut self) {
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
