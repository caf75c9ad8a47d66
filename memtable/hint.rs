// SPDX-License-Identifier: GPL-2.0

//! Guesses at where an address is mapped.

#![forbid(unsafe_code)]

use kernel::prelude::*;

/// How many guesses there are: about as many as a device may have regions where the host sets
/// `max_mem_regions` to 509. Some of these share one.
const GUESSES: usize = 512;

/// Guesses at which map an address falls into, by its slot: the one where the last address in the
/// same page, or in one that shares its guess, was found.
///
/// They belong to the user of the maps, so that queues don't share them. A wrong one costs a
/// search.
#[derive(Debug)]
pub struct Hint(KVec<u16>);

impl Hint {
    /// Any guesses. Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        Ok(Self(KVec::from_elem(0, GUESSES, GFP_KERNEL_ACCOUNT)?))
    }

    /// The guess for `addr`. The multiplier is one by which nearly all of 64 addresses at the same
    /// distance from each other, any power of two from a page to 1 GiB, have different ones.
    #[inline(always)]
    fn number(addr: u64) -> usize {
        let hash = (addr >> 12).wrapping_mul(0xcd61_3e30_d8f1_6adf);
        (hash >> (u64::BITS - GUESSES.ilog2())) as usize
    }

    #[inline(always)]
    pub(super) fn guess(&self, addr: u64) -> usize {
        self.0
            .get(Self::number(addr))
            .copied()
            .map_or(0, usize::from)
    }

    pub(super) fn learn(&mut self, addr: u64, slot: u32) {
        // Of more maps than that, the others are searched for each time.
        if let Some(guess) = self.0.get_mut(Self::number(addr)) {
            *guess = slot as u16;
        }
    }
}
