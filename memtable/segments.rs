// SPDX-License-Identifier: GPL-2.0

//! The buffers of a packet, in user memory.

#![forbid(unsafe_code)]

use super::access::Refused;
use crate::{
    list::List,
    usermem::Segment, //
};
use kernel::prelude::*;

/// The most pieces that one chain may fall into (`UIO_MAXIOV`).
pub const MAX_SEGMENTS: usize = 1024;

/// The buffers of a packet, in order. Few packets have many: room for more is made when one comes.
///
/// # Invariants
///
/// They have `total` bytes together.
pub struct Segments {
    list: List<Segment>,
    total: u64,
}

impl Segments {
    /// Makes an empty list with room for what most packets have.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        Self::with_room(List::<Segment>::FIRST)
    }

    /// Makes an empty list with room for so many. Fails with [`ENOMEM`].
    pub fn with_room(room: usize) -> Result<Self> {
        Ok(Self {
            list: List::new(room)?,
            total: 0,
        })
    }

    /// Adds a segment, if there is room for it now. Returns whether there was.
    #[inline(always)]
    pub(super) fn push(&mut self, segment: Segment) -> bool {
        if self.list.push(segment).is_err() {
            return false;
        }
        // INVARIANT: Less than 2^32 bytes each do not overflow.
        self.total = self.total.wrapping_add(segment.len() as u64);
        true
    }

    /// Makes more room if there is none. Fails if there are [`MAX_SEGMENTS`], or there is no memory.
    pub(super) fn make_room(&mut self) -> Result<(), Refused> {
        if !self.list.is_full() {
            return Ok(());
        }
        self.list.grow(MAX_SEGMENTS).map_err(|err| match err {
            ENOMEM => Refused::NoMemory,
            _ => Refused::TooMany,
        })
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

    /// The segment, if there is just one.
    #[inline(always)]
    pub fn only(&self) -> Option<Segment> {
        self.list.only()
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
