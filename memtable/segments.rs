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

/// A list of segments that never allocates once made: the buffers of a packet, in order.
///
/// # Invariants
///
/// They have `total` bytes together.
pub struct Segments {
    list: List<Segment>,
    total: u64,
}

impl Segments {
    /// Makes an empty list with room for [`MAX_SEGMENTS`].
    ///
    /// Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        Ok(Self {
            list: List::new(MAX_SEGMENTS)?,
            total: 0,
        })
    }

    /// Whether there is no room: there are [`MAX_SEGMENTS`].
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.list.is_full()
    }

    /// Adds a segment, unless the list is full.
    #[inline(always)]
    pub(super) fn push(&mut self, segment: Segment) -> Result<(), Refused> {
        self.list.push(segment).map_err(|_| Refused::TooMany)?;
        // INVARIANT: Less than 2^32 bytes each do not overflow.
        self.total = self.total.wrapping_add(segment.len() as u64);
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
