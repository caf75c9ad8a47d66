// SPDX-License-Identifier: GPL-2.0

//! Entries of the available ring that were read ahead of their use.

#![forbid(unsafe_code)]

/// How many entries are read at a time.
pub(super) const HEADS: usize = 64;

/// Entries that were read together.
pub(super) struct Heads {
    /// The index of the first one.
    pub(super) first: u16,
    pub(super) count: u16,
    /// In the ring's byte order.
    pub(super) entries: [u16; HEADS],
}

impl Heads {
    /// Nothing was read.
    pub(super) const fn new() -> Self {
        Self {
            first: 0,
            count: 0,
            entries: [0; HEADS],
        }
    }

    #[inline(always)]
    pub(super) fn get(&self, index: u16) -> Option<u16> {
        let at = index.wrapping_sub(self.first);
        if at >= self.count {
            return None;
        }
        // There are no more than `HEADS`.
        Some(self.entries[usize::from(at) % HEADS])
    }
}
