// SPDX-License-Identifier: GPL-2.0

//! A chain: the buffers that the driver makes available together.
//!
//! Whatever the format, and wherever a descriptor stands, its buffer is added to the packet here,
//! and checked: it is in guest memory, what is readable comes before what is writable, and there
//! are not too many.

#![forbid(unsafe_code)]

use super::fault::{
    Because,
    Fault,
    Why, //
};
use crate::{
    log::{
        Dirty,
        DirtyList, //
    },
    memtable::{
        Access,
        Hint,
        Iova,
        Maps,
        Segments, //
    }, //
};
use kernel::prelude::*;

/// The most descriptors that a ring may have (virtio 1.3, sections 2.7 and 2.8.10).
pub const MAX_NUM: u32 = 0x8000;

/// The most descriptors that an indirect table may have: in a split ring they are linked by
/// 16-bit numbers.
pub(super) const MAX_INDIRECT: u32 = 0x1_0000;

/// The most descriptors that the chains of one packet may have, in the ring and in all their
/// indirect tables. An honest driver is far below; without a limit, a ring full of tables would
/// keep the device for minutes.
const MAX_PACKET: u32 = MAX_NUM + MAX_INDIRECT;

/// A chain that was taken from a ring.
///
/// Its buffers follow each other in the [`Segments`] that the caller gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The name by which the driver knows it: the number of its first descriptor, or its buffer id.
    pub head: u16,
    /// The number of segments that the device may read; they come first.
    pub readable: usize,
    /// The number of segments that the device may write; they come last.
    pub writable: usize,
    /// The number of descriptors that were read for it.
    pub descriptors: u32,
}

/// What the device needs of a ring next: chains until it has so many bytes, but no more chains
/// than these; in any case one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub bytes: u64,
    pub chains: u16,
}

/// What was found of a packet's chains; of the one at hand, how many segments.
#[derive(Clone, Copy)]
pub struct Found {
    pub(super) readable: usize,
    pub(super) writable: usize,
    pub(super) descriptors: u32,
}

/// Where what is found goes to.
pub struct Parts<'a> {
    pub(super) maps: &'a Maps,
    pub(super) out: &'a mut Segments,
    pub(super) dirty: Option<&'a mut DirtyList>,
    pub(super) found: Found,
}

impl Parts<'_> {
    /// Adds the buffer of a descriptor: `len` bytes from `addr`, for an `access`.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        addr: Iova,
        len: u32,
        access: Access,
        hint: &mut Hint,
    ) -> Result<(), Fault> {
        // No count here overflows: the first is bounded below, the others by the list's room.
        let found = &mut self.found;
        found.descriptors = found.descriptors.wrapping_add(1);
        if found.descriptors > MAX_PACKET {
            return Err(Fault::new(EINVAL, Why::Descriptors));
        }
        let before = self.out.len();
        self.maps
            .translate(addr, len, access, hint, self.out)
            .because(Why::Buffer)?;
        let count = self.out.len().wrapping_sub(before);

        if access == Access::Write {
            found.writable = found.writable.wrapping_add(count);
            if let Some(dirty) = self.dirty.as_deref_mut().filter(|_| count > 0) {
                dirty
                    .push(Dirty {
                        addr: addr.as_physical(),
                        len: u64::from(len),
                    })
                    .because(Why::DirtyBuffers)?;
            }
        } else if found.writable > 0 {
            return Err(Fault::new(EINVAL, Why::Mixed));
        } else {
            found.readable = found.readable.wrapping_add(count);
        }
        Ok(())
    }
}
