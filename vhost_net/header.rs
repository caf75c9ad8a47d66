// SPDX-License-Identifier: GPL-2.0

//! The header in front of each packet: `struct virtio_net_hdr` (virtio 1.3, section 5.1.6).

#![forbid(unsafe_code)]

use crate::{
    sys::uaccess::CurrentMm,
    usermem::{
        write_at,
        Segment,
        UserMemory, //
    },
    vring::Endian, //
};
use kernel::prelude::*;

/// The size in bytes of the header that legacy drivers without mergeable buffers know.
pub const LEN: usize = 10;
/// The size of `struct virtio_net_hdr_mrg_rxbuf`, with the number of buffers at its end.
pub const MRG_LEN: usize = 12;
/// The size of `struct virtio_net_hdr_v1_hash_tunnel`.
pub const TUNNEL_LEN: usize = 24;
/// Where the number of buffers is.
const NUM_BUFFERS: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` is to be computed.
const F_NEEDS_CSUM: u8 = 1;

/// Makes sure that the header of a packet of `len` bytes covers the checksum that it asks for.
///
/// Returns false if that is outside the packet. A header that is not there asks for nothing.
#[inline(always)]
pub fn complete(header: &mut [u8], len: usize, endian: Endian) -> bool {
    let Some((fields, _)) = header.split_first_chunk_mut::<{ LEN }>() else {
        return true;
    };
    // The fields, in the order of the specification.
    let [flags, _gso_type, rest @ ..] = fields;
    *flags & F_NEEDS_CSUM == 0 || cover_checksum(rest, len, endian)
}

/// As [`complete`], for the `fields` behind the type of segmentation.
fn cover_checksum(fields: &mut [u8; LEN - 2], len: usize, endian: Endian) -> bool {
    let [h0, h1, _, _, s0, s1, o0, o1] = fields;
    let field = |low: &u8, high: &u8| usize::from(endian.u16(u16::from_ne_bytes([*low, *high])));
    let end = field(s0, s1) + field(o0, o1) + 2;
    if end <= field(h0, h1) {
        return true;
    }
    if end > len {
        return false;
    }
    let Ok(end) = u16::try_from(end) else {
        return false;
    };
    [*h0, *h1] = endian.u16(end).to_ne_bytes();
    true
}

/// Writes a header of `len` bytes that says nothing, at most [`TUNNEL_LEN`]. Fails with
/// [`EFAULT`].
#[inline(always)]
pub fn write_empty(mm: CurrentMm<'_>, segments: &[Segment], len: usize) -> Result {
    let zeroes = [0; TUNNEL_LEN];
    let header = zeroes.get(..len).unwrap_or(&zeroes);
    write_at(mm, segments, 0, header)
}

/// Writes the number of buffers, in the ring's byte order, into a packet's header. Fails with
/// [`EFAULT`].
#[inline(always)]
pub fn write_count(mm: CurrentMm<'_>, segments: &[Segment], count: u16) -> Result {
    match segments {
        [first, ..] if first.len() >= MRG_LEN => {
            let addr = first.addr().offset(NUM_BUFFERS as u64);
            mm.store_u16(addr, count)
        }
        _ => write_at(mm, segments, NUM_BUFFERS, &count.to_ne_bytes()),
    }
}
