// SPDX-License-Identifier: GPL-2.0

//! A list whose room is made before it is used: adding to it never allocates, and calls nothing.

#![forbid(unsafe_code)]

use crate::sys::compat::ENOBUFS;
use kernel::prelude::*;

/// Up to as many items as there is room for.
///
/// # Invariants
///
/// The items are the first `len` of `slots`, which has as many or more.
pub struct List<T> {
    slots: KVVec<T>,
    len: usize,
}

impl<T: Copy + Default> List<T> {
    /// The least room that [`Self::grow`] makes.
    pub const FIRST: usize = 64;

    /// Makes an empty list with room for `room` items.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new(room: usize) -> Result<Self> {
        // INVARIANT: There are no items.
        Ok(Self {
            slots: KVVec::from_elem(T::default(), room, GFP_KERNEL_ACCOUNT)?,
            len: 0,
        })
    }

    /// For how many items there is room.
    pub fn room(&self) -> usize {
        self.slots.len()
    }

    /// Makes more room, twice as much or that for [`Self::FIRST`] items, but not for more than `most`.
    ///
    /// Fails with [`ENOBUFS`] if there is that room already, and with [`ENOMEM`].
    #[cold]
    pub fn grow(&mut self, most: usize) -> Result {
        let room = (self.room() * 2).max(Self::FIRST).min(most);
        if room <= self.room() {
            return Err(ENOBUFS);
        }
        // INVARIANT: There are more slots than before.
        Ok((self.slots).resize(room, T::default(), GFP_KERNEL_ACCOUNT)?)
    }

    /// Whether there is no room for another item.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.len >= self.slots.len()
    }

    /// The number of items.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds an item behind the others.
    ///
    /// Fails with [`ENOBUFS`] if there is no room.
    #[inline(always)]
    pub fn push(&mut self, item: T) -> Result {
        let slot = self.slots.get_mut(self.len).ok_or(ENOBUFS)?;
        *slot = item;
        // INVARIANT: There was a slot for it, so this does not overflow.
        self.len = self.len.wrapping_add(1);
        Ok(())
    }

    /// Removes the last item, if there is one.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.as_slice().last().copied()?;
        // INVARIANT: There was one.
        self.len -= 1;
        Some(last)
    }

    /// Removes all but the first `len` items.
    #[inline(always)]
    pub fn truncate(&mut self, len: usize) {
        // INVARIANT: It does not grow.
        self.len = self.len.min(len);
    }

    /// Removes all items.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// The items, in the order they were added.
    #[inline(always)]
    pub fn as_slice(&self) -> &[T] {
        // By the type invariant there are as many.
        self.slots.get(..self.len).unwrap_or(&[])
    }

    /// The item, if there is just one. That is the case which packets are in.
    #[inline(always)]
    pub fn only(&self) -> Option<T> {
        if self.len != 1 {
            return None;
        }
        self.slots.first().copied()
    }

    /// The items, to be changed.
    #[inline(always)]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // As above.
        self.slots.get_mut(..self.len).unwrap_or(&mut [])
    }
}
