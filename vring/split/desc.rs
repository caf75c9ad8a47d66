// SPDX-License-Identifier: GPL-2.0

//! Descriptors of the split format, in the ring and in indirect tables: where a buffer is.

#![forbid(unsafe_code)]

use crate::{
    memtable::{
        Access,
        Iova, //
    },
    vring::{
        endian::Endian,
        memory::DESC_SIZE, //
    }, //
};
use kernel::prelude::*;
use zerocopy_derive::Immutable;

/// `struct virtq_desc` (virtio 1.3, section 2.7.5), in the ring's byte order.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct RawDesc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const _: () = assert!(size_of::<RawDesc>() as u64 == DESC_SIZE);

impl RawDesc {
    /// The descriptor that two words of user memory are.
    #[inline(always)]
    pub(super) fn from_words(words: [u64; 2]) -> Self {
        zerocopy::transmute!(words)
    }
}

/// A descriptor, read once, in the CPU's byte order.
#[derive(Clone, Copy)]
pub(super) struct Desc {
    pub(super) addr: Iova,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Desc {
    pub(super) const F_NEXT: u16 = 1;
    const F_WRITE: u16 = 2;
    pub(super) const F_INDIRECT: u16 = 4;

    #[inline(always)]
    pub(super) fn new(raw: RawDesc, endian: Endian) -> Self {
        if endian == Endian::NATIVE {
            Self::convert(raw, Endian::NATIVE)
        } else {
            Self::convert_foreign(raw, endian)
        }
    }

    #[cold]
    fn convert_foreign(raw: RawDesc, endian: Endian) -> Self {
        Self::convert(raw, endian)
    }

    #[inline(always)]
    fn convert(raw: RawDesc, endian: Endian) -> Self {
        Self {
            addr: Iova::new(endian.u64(raw.addr)),
            len: endian.u32(raw.len),
            flags: endian.u16(raw.flags),
            next: endian.u16(raw.next),
        }
    }

    #[inline(always)]
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// What the device may do with the buffer.
    #[inline(always)]
    pub(super) fn access(&self) -> Access {
        if self.has(Self::F_WRITE) {
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
