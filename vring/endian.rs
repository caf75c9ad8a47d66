// SPDX-License-Identifier: GPL-2.0

//! Byte order.

#![forbid(unsafe_code)]

/// The byte order of a ring's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// Little: every modern device, and a legacy one of a little-endian guest.
    Little,
    /// Big: a legacy device of a big-endian guest.
    Big,
}

impl Endian {
    /// The byte order of the CPU.
    pub const NATIVE: Self = if cfg!(target_endian = "little") {
        Self::Little
    } else {
        Self::Big
    };

    /// Converts a 16-bit field from or to the CPU's order.
    #[inline(always)]
    pub fn u16(self, value: u16) -> u16 {
        match self {
            Self::Little => value.to_le(),
            Self::Big => value.to_be(),
        }
    }

    /// Converts a 32-bit field from or to the CPU's order.
    #[inline(always)]
    pub fn u32(self, value: u32) -> u32 {
        match self {
            Self::Little => value.to_le(),
            Self::Big => value.to_be(),
        }
    }

    /// Converts a 64-bit field from or to the CPU's order.
    #[inline(always)]
    pub fn u64(self, value: u64) -> u64 {
        match self {
            Self::Little => value.to_le(),
            Self::Big => value.to_be(),
        }
    }
}
