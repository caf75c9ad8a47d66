// SPDX-License-Identifier: GPL-2.0

//! Descriptors of the packed format (virtio 1.3, section 2.8.13): `struct pvirtq_desc`, in
//! little-endian order.
//!
//! They are two words of 64 bits. The first is the address; the second has the length, the id and
//! the flags, so that who reads or writes it has all three of the same descriptor.

#![forbid(unsafe_code)]

use super::place::Place;
use crate::{
    memtable::{
        Access,
        Iova, //
    },
    vring::memory::DESC_SIZE, //
};

/// The second word, as bits of it.
const ID: u32 = 32;
const FLAGS: u32 = 48;

/// Where the descriptor at `index` is, and in it the second word and the flags.
#[inline(always)]
pub(super) fn offset(index: u16) -> u64 {
    u64::from(index) * DESC_SIZE
}

pub(super) const WORD: u64 = 8;
pub(super) const FLAGS_FIELD: u64 = 14;

/// The device may write the buffer, or has written to it.
const F_WRITE: u16 = 2;
/// Who goes around with the wrap counter 1 makes available with this bit, and uses with both;
/// with the counter 0 it is the other one, and none.
const F_AVAIL: u16 = 1 << 7;
const F_USED: u16 = 1 << 15;

/// Whether the descriptor of these flags is available to who is at `place`.
#[inline(always)]
pub(super) fn is_available(flags: u16, place: Place) -> bool {
    let available = if place.wrap() { F_AVAIL } else { F_USED };
    flags & (F_AVAIL | F_USED) == available
}

/// The flags in the second word.
#[inline(always)]
pub(super) fn flags_of(word: u64) -> u16 {
    (word >> FLAGS) as u16
}

/// The second word of a used descriptor at `place`: the chain of this id, to which `len` bytes were
/// written.
#[inline(always)]
pub(super) fn used_word(id: u16, len: u32, place: Place) -> u64 {
    let mut flags = if place.wrap() { F_AVAIL | F_USED } else { 0 };
    // The length says something only of what was written (section 2.8.6).
    if len > 0 {
        flags |= F_WRITE;
    }
    u64::from(len) | u64::from(id) << ID | u64::from(flags) << FLAGS
}

/// A descriptor, read once.
#[derive(Clone, Copy)]
pub(super) struct Desc {
    pub(super) addr: Iova,
    pub(super) len: u32,
    /// Of the chain, in its last descriptor.
    pub(super) id: u16,
    flags: u16,
}

impl Desc {
    pub(super) const F_NEXT: u16 = 1;
    pub(super) const F_INDIRECT: u16 = 4;

    /// The descriptor of these two words.
    #[inline(always)]
    pub(super) fn new(addr: u64, word: u64) -> Self {
        Self {
            addr: Iova::new(addr),
            len: word as u32,
            id: (word >> ID) as u16,
            flags: flags_of(word),
        }
    }

    #[inline(always)]
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// What the device may do with the buffer.
    #[inline(always)]
    pub(super) fn access(&self) -> Access {
        if self.has(F_WRITE) {
            Access::Write
        } else {
            Access::Read
        }
    }

    /// Whether it is a chain by itself, of one buffer.
    #[inline(always)]
    pub(super) fn is_whole(&self) -> bool {
        self.flags & (Self::F_NEXT | Self::F_INDIRECT) == 0
    }
}
