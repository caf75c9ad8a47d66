// SPDX-License-Identifier: GPL-2.0

//! Where things are in the two rings of the split format (virtio 1.3, sections 2.7.6 and 2.7.8),
//! as offsets in bytes.

#![forbid(unsafe_code)]

use crate::{
    memtable::Access,
    vring::memory::{
        Sizes,
        DESC_SIZE, //
    }, //
};
use kernel::prelude::*;
use zerocopy_derive::Immutable;

/// `struct virtq_used_elem` (virtio 1.3, section 2.7.8), in the ring's byte order.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct UsedElem {
    pub(super) id: u32,
    pub(super) len: u32,
}

/// Both rings start with 16-bit flags and a 16-bit index.
pub(super) const FLAGS: u64 = 0;
pub(super) const IDX: u64 = 2;
const ENTRIES: u64 = 4;

/// An entry of the available ring: the head of a chain.
#[inline(always)]
pub(super) fn avail_entry(at: u16) -> u64 {
    ENTRIES + u64::from(at) * size_of::<u16>() as u64
}

/// An entry of the used ring: a [`UsedElem`].
#[inline(always)]
pub(super) fn used_entry(at: u16) -> u64 {
    ENTRIES + u64::from(at) * size_of::<UsedElem>() as u64
}

/// The used event index, behind the available ring of `num` entries.
#[inline(always)]
pub(super) fn used_event(num: u16) -> u64 {
    avail_entry(num)
}

/// The available event index, behind the used ring of `num` entries.
#[inline(always)]
pub(super) fn avail_event(num: u16) -> u64 {
    used_entry(num)
}

/// The sizes of the parts of a ring of `num` descriptors, with event indices or without.
pub(super) fn sizes(num: u16, event_idx: bool) -> Sizes {
    let event = if event_idx { 2 } else { 0 };
    Sizes {
        desc: u64::from(num) * DESC_SIZE,
        desc_access: Access::Read,
        avail: used_event(num) + event,
        used: avail_event(num) + event,
    }
}
