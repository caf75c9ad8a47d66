// SPDX-License-Identifier: GPL-2.0

//! Misses before they happen: the pages that a device is about to come upon and that no map holds.
//!
//! A device whose turn ends at a miss looks through what it would do next, and puts here all that
//! is missing, so that its owner is told of it at once. What a guest has made available decides
//! what is looked at; how much that may be, is decided here.

#![forbid(unsafe_code)]

use super::{
    access::{
        Access,
        Miss, //
    },
    addr::Iova,
    hint::Hint,
    maps::Maps, //
};
use kernel::prelude::*;

/// The most misses that a queue has at a time.
pub const MAX_AHEAD: usize = 64;

/// The most that is looked at in one go: descriptors that are read, and maps.
const STEPS: u32 = 512;

/// What an IOMMU maps at least.
const PAGE_SHIFT: u32 = 12;

/// The misses of a queue: the one that has stopped it, and behind it those to come.
///
/// Each page is here once for each kind of access: by the address of its first byte that is
/// missing.
///
/// # Invariants
///
/// There are at most [`MAX_AHEAD`], of which the first `needed` are of what comes next.
pub struct Ahead {
    list: KVVec<Miss>,
    needed: usize,
    /// What is looked at is no longer what comes next.
    beyond: bool,
    /// Of what comes next, not all could be looked at.
    hides: bool,
    /// The most that there are with what does not come next.
    limit: usize,
    steps: u32,
}

impl Ahead {
    /// None, and without room for any.
    pub const fn none() -> Self {
        // INVARIANT: There are none.
        Self {
            list: KVVec::new(),
            needed: 0,
            beyond: false,
            hides: false,
            limit: 0,
            steps: 0,
        }
    }

    /// None, with room for [`MAX_AHEAD`]. Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        Ok(Self {
            list: KVVec::with_capacity(MAX_AHEAD, GFP_KERNEL_ACCOUNT)?,
            ..Self::none()
        })
    }

    /// If there is no room, takes that of `new`.
    pub fn take_room(&mut self, new: &mut Self) {
        if self.list.capacity() == 0 {
            core::mem::swap(self, new);
        }
    }

    /// Begins anew, with none. Of an IOTLB of `maps` maps, what does not come next is to take a
    /// small part only: the answers must not drive out what does.
    pub fn begin(&mut self, maps: usize) {
        self.list.clear();
        // INVARIANT: There are none.
        self.needed = 0;
        self.beyond = false;
        self.hides = false;
        self.limit = MAX_AHEAD.min(maps / 8);
        self.steps = STEPS;
    }

    /// What is looked at from now on is not needed next.
    pub fn go_beyond(&mut self) {
        self.beyond = true;
    }

    /// What is looked at can't be seen, for something is missing or this has gone far enough.
    pub fn hide(&mut self) {
        self.hides |= !self.beyond;
    }

    /// Whether more of what comes next may be missing than is here: there is something that could
    /// not be looked at.
    pub fn hides_any(&self) -> bool {
        self.hides
    }

    /// Whether there is room for more misses.
    fn has_room(&self) -> bool {
        self.list.len() < if self.beyond { self.limit } else { MAX_AHEAD }
    }

    /// Whether one more thing may be looked at.
    pub fn step(&mut self) -> Option<()> {
        match self.steps.checked_sub(1).filter(|_| self.has_room()) {
            Some(steps) => {
                self.steps = steps;
                Some(())
            }
            None => {
                self.hide();
                None
            }
        }
    }

    /// Adds a miss, unless its page is here, or there is no room.
    pub fn push(&mut self, miss: Miss) {
        let page = |miss: &Miss| (miss.addr.get() >> PAGE_SHIFT, miss.access as u8);
        if self.has_room() && self.list.iter().all(|other| page(other) != page(&miss)) {
            // INVARIANT: There was room; as long as all are needed, the last one is.
            let pushed = self.list.push_within_capacity(miss);
            if pushed.is_ok() && !self.beyond {
                self.needed = self.list.len();
            }
        }
    }

    /// Adds what is missing in `maps` of `len` bytes from `addr`, for an `access`: what is at the
    /// end of the address space ends there. Returns whether anything is, or can't be looked at.
    pub fn look(
        &mut self,
        maps: &Maps,
        addr: Iova,
        len: u64,
        access: Access,
        hint: &mut Hint,
    ) -> bool {
        let Some(more) = len.checked_sub(1) else {
            return false;
        };
        let mut at = addr.get();
        let last = at.saturating_add(more);
        let mut any = false;
        loop {
            let missing = maps.first_unmapped(at, last, hint, &mut self.steps);
            let Some(missing) = missing.filter(|_| self.has_room()) else {
                let ended = self.steps == 0 || !self.has_room();
                if ended {
                    self.hide();
                }
                return any || ended;
            };
            any = true;
            let addr = Iova::new(missing);
            self.push(Miss { addr, access });
            // The rest of its page is its owner's affair.
            let next = (missing >> PAGE_SHIFT) + 1;
            let next = next.checked_mul(1 << PAGE_SHIFT);
            match next.filter(|&next| next <= last) {
                Some(next) => at = next,
                None => return true,
            }
        }
    }

    /// Whether there is one that comes next.
    pub fn needs_any(&self) -> bool {
        self.needed > 0
    }

    /// The misses, in the order in which the queue will come upon them, and whether each is needed
    /// for what comes next.
    pub fn iter(&self) -> impl Iterator<Item = (Miss, bool)> + '_ {
        let list = self.list.iter().enumerate();
        list.map(|(at, &miss)| (miss, at < self.needed))
    }
}
