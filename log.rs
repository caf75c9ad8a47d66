// SPDX-License-Identifier: GPL-2.0

//! The dirty-page log.
//!
//! While a guest migrates, its VMM must learn which pages the device wrote. The log is a bitmap in
//! the VMM's memory, a bit for each 4 KiB page of guest physical memory (`VHOST_SET_LOG_BASE`);
//! the queues mark in it what they wrote. A bit must never be visible before the data that it
//! stands for, and no bit outside the range that the caller names may change.

#![forbid(unsafe_code)]

use crate::{
    list::List,
    memtable::{
        GuestAddr,
        MemTable,
        MAX_SEGMENTS, //
    },
    usermem::{
        Segment,
        UserAddr,
        UserMemory, //
    }, //
};
use kernel::prelude::*;

/// The bytes that a bit of the log stands for (`VHOST_PAGE_SIZE`), whatever the CPU's page size.
pub const PAGE_SIZE: u64 = 0x1000;

/// The pages that one 32-bit word of the log stands for.
const PAGES_PER_WORD: u64 = 32;

/// A written range of guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Its first byte.
    pub addr: GuestAddr,
    /// Its size in bytes.
    pub len: u64,
}

/// A dirty log that starts at a user address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyLog {
    base: UserAddr,
}

impl DirtyLog {
    /// The log at `base`, which may be any address.
    pub const fn new(base: UserAddr) -> Self {
        Self { base }
    }

    /// Whether the part of the log that stands for `len` bytes from `addr` is within user space.
    pub fn access_ok(&self, mem: impl UserMemory, addr: GuestAddr, len: u64) -> bool {
        let offset = addr.get() / PAGE_SIZE / 8;
        match self.base.get().checked_add(offset) {
            Some(start) => mem.access_ok(
                UserAddr::new(start),
                len.saturating_add(PAGE_SIZE * 8 - 1) / PAGE_SIZE / 8,
            ),
            None => false,
        }
    }

    /// Marks the pages of `len` bytes from `addr` as written.
    ///
    /// The caller has made the writes visible ([`UserMemory::write_barrier`]). Fails with
    /// [`EFAULT`] where the log is not mapped; pages before that are marked.
    pub fn mark(&self, mem: impl UserMemory, addr: GuestAddr, len: u64) -> Result {
        if len == 0 {
            return Ok(());
        }
        let last_byte = addr.get().checked_add(len - 1).ok_or(EFAULT)?;
        let last = last_byte / PAGE_SIZE;
        let mut page = addr.get() / PAGE_SIZE;

        // A word of the log at a time. The log may start at any byte: count the pages from the
        // aligned word that holds its first byte.
        let skew = (self.base.get() % 8) * 8;
        let words = self.base.get() - self.base.get() % 8;
        while page <= last {
            let bit = (page + skew) % PAGES_PER_WORD;
            let count = (PAGES_PER_WORD - bit).min(last - page + 1);
            let mask = ((1u64 << count) - 1) << bit;
            let word = words
                .checked_add(Self::word_offset((page + skew) / PAGES_PER_WORD))
                .ok_or(EFAULT)?;
            mem.set_bits(UserAddr::new(word), mask as u32)?;
            page += count;
        }
        Ok(())
    }

    /// Marks the pages of guest memory that are behind `len` bytes of user memory from `user`.
    ///
    /// As [`Self::mark`]. Fails with [`EFAULT`] also if none of that is guest memory.
    pub fn mark_user(
        &self,
        mem: impl UserMemory,
        table: &MemTable,
        user: UserAddr,
        len: u64,
    ) -> Result {
        let mut result = Ok(());
        let any = table.physical(user, len, |addr, len| {
            result = self.mark(mem, addr, len).and(result);
        });
        if !any {
            return Err(EFAULT);
        }
        result
    }

    /// Marks the first `len` bytes of `dirty`, which were just written.
    ///
    /// Fails with [`EFAULT`] where the log is not mapped; what can be is marked.
    pub fn mark_packet(&self, mem: impl UserMemory, dirty: &DirtyList, len: usize) -> Result {
        // The data before its bits in the log; pairs with the VMM's atomic exchange of the log.
        mem.write_barrier();
        let mut left = len as u64;
        let mut result = Ok(());
        for range in dirty.as_slice() {
            let now = range.len.min(left);
            result = self.mark(mem, range.addr, now).and(result);
            left -= now;
        }
        result
    }

    /// Marks the guest memory that is behind the first `len` bytes of `segments`, which were just
    /// written.
    ///
    /// As [`Self::mark_packet`]. Fails with [`EFAULT`] also if a segment is no guest memory.
    pub fn mark_segments(
        &self,
        mem: impl UserMemory,
        table: &MemTable,
        segments: &[Segment],
        len: usize,
    ) -> Result {
        // As in `mark_packet`.
        mem.write_barrier();
        let mut left = len;
        let mut result = Ok(());
        for segment in segments {
            let now = segment.len().min(left);
            if now > 0 {
                let marked = self.mark_user(mem, table, segment.addr(), now as u64);
                result = marked.and(result);
            }
            left -= now;
        }
        result
    }

    /// The offset in bytes of the `index`-th 32 bits of the log, which is an array of `unsigned
    /// long` in the byte order of the CPU.
    const fn word_offset(index: u64) -> u64 {
        if cfg!(all(target_endian = "big", target_pointer_width = "64")) {
            (index ^ 1) * 4
        } else {
            index * 4
        }
    }
}

/// A list of written ranges.
pub struct DirtyList(List<Dirty>);

impl DirtyList {
    /// Makes an empty list with room for [`MAX_SEGMENTS`]: a chain has no more writable pieces.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        Ok(Self(List::new(MAX_SEGMENTS)?))
    }

    /// Makes an empty list without room: most guests never have anything logged.
    ///
    /// Fails with [`ENOMEM`].
    pub fn without_room() -> Result<Self> {
        Ok(Self(List::new(0)?))
    }

    /// Makes that room if there is none. Fails with [`ENOMEM`].
    pub fn make_room(&mut self) -> Result {
        if self.0.room() == 0 {
            *self = Self::new()?;
        }
        Ok(())
    }

    /// Adds a range. Fails with [`ENOBUFS`] when there is no more room.
    pub fn push(&mut self, dirty: Dirty) -> Result {
        self.0.push(dirty)
    }

    /// Empties the list.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The ranges, in the order they were added.
    pub fn as_slice(&self) -> &[Dirty] {
        self.0.as_slice()
    }
}
