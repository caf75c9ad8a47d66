// SPDX-License-Identifier: GPL-2.0

//! Reading an indirect table: descriptors outside the ring.
//!
//! What they mean, the ring's format knows.

#![forbid(unsafe_code)]

use super::memory::DESC_SIZE;
use crate::{
    memtable::Segments,
    usermem::{
        Segment,
        UserMemory, //
    }, //
};
use kernel::prelude::*;

/// The size of a descriptor in bytes.
const SIZE: usize = DESC_SIZE as usize;

/// Reads an indirect table, which may fall into several pieces of user memory.
pub(super) struct TableReader<'a> {
    segments: &'a [Segment],
    /// The rest of the segment before these.
    rest: Segment,
}

impl<'a> TableReader<'a> {
    pub(super) fn new(table: &'a Segments) -> Self {
        Self {
            segments: table.as_slice(),
            rest: Segment::default(),
        }
    }

    /// The next descriptor, as two words in the byte order of the CPU. Fails with [`EFAULT`], also
    /// behind the last one.
    #[inline(always)]
    pub(super) fn next(&mut self, mem: impl UserMemory) -> Result<[u64; 2]> {
        if self.rest.len() == 0 {
            self.refill()?;
        }
        if self.rest.len() >= SIZE {
            let words = mem.read_u64x2(self.rest.addr())?;
            self.rest = self.rest.skip(SIZE);
            return Ok(words);
        }
        let mut words = [0; 2];
        self.next_in_pieces(mem, words.as_mut_bytes())?;
        Ok(words)
    }

    #[cold]
    fn next_in_pieces(&mut self, mem: impl UserMemory, mut bytes: &mut [u8]) -> Result {
        while !bytes.is_empty() {
            if self.rest.len() == 0 {
                self.refill()?;
            }
            let count = self.rest.len().min(bytes.len());
            let (now, later) = bytes.split_at_mut_checked(count).ok_or(EFAULT)?;
            mem.read(self.rest.addr(), now)?;
            self.rest = self.rest.skip(count);
            bytes = later;
        }
        Ok(())
    }

    fn refill(&mut self) -> Result {
        let (first, others) = self.segments.split_first().ok_or(EFAULT)?;
        self.rest = *first;
        self.segments = others;
        Ok(())
    }
}
