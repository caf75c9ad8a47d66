// SPDX-License-Identifier: GPL-2.0

//! Packet buffers that a tap takes many at a time.
//!
//! C headers: [`include/net/xdp.h`](srctree/include/net/xdp.h),
//! [`include/linux/page_frag_cache.h`](srctree/include/linux/page_frag_cache.h)

use super::{
    bindings as local,
    uaccess::CurrentMm, //
};
use crate::{
    memtable::Segments,
    usermem::Segment, //
};
use core::{
    mem::MaybeUninit,
    ptr::NonNull,
    slice, //
};
use kernel::{
    bindings,
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    static_assert, //
};

/// The most packets that go in one batch.
pub const BATCH: usize = 64;

/// The size of an Ethernet header in bytes.
const ETH_HLEN: usize = bindings::ETH_HLEN as usize;

/// The longest header that a tap may expect in front of a packet.
pub const HEADER_MAX: usize = local::VNET_HDR_MAX;

/// A piece of memory out of a [`FragCache`].
///
/// # Invariants
///
/// `start` is the start of a page fragment of `size` bytes that is ours.
struct Frag {
    start: NonNull<u8>,
    size: usize,
}

impl Frag {
    /// The bytes from `from` to `to`; none if the fragment has no such.
    #[inline(always)]
    fn range(&mut self, from: usize, to: usize) -> &mut [MaybeUninit<u8>] {
        if from > to || to > self.size {
            return &mut [];
        }
        // SAFETY: By the type invariant and the check the range is within memory that is ours.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr().add(from).cast(), to - from) }
    }
}

impl Drop for Frag {
    #[inline(never)]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the fragment is ours to free.
        unsafe { bindings::page_frag_free(self.start.as_ptr().cast::<c_void>()) }
    }
}

/// Cuts pages into pieces of the sizes that packets have.
///
/// When a cache's page is used up and all its pieces were freed, it is cut up anew; otherwise the
/// cache gets another one. Of a single cache, the pieces of the batch at hand are never free then.
/// So there are two in turn: as long as a batch is not much longer than a page, which is so for
/// packets of up to some 500 bytes, the other one's are.
///
/// # Invariants
///
/// Both caches are initialised.
struct FragCache {
    now: bindings::page_frag_cache,
    next: bindings::page_frag_cache,
}

// SAFETY: The caches belong to no thread.
unsafe impl Send for FragCache {}

impl FragCache {
    fn new() -> Self {
        // INVARIANT: An empty cache is all zeroes.
        Self {
            now: pin_init::zeroed(),
            next: pin_init::zeroed(),
        }
    }

    /// Fails with [`ENOMEM`].
    #[inline(always)]
    fn alloc(&mut self, size: usize) -> Result<Frag> {
        let fragsz = u32::try_from(size).map_err(|_| ENOMEM)?;
        if fragsz > local::FRAG_CACHE_SIZE.saturating_sub(self.now.offset) {
            core::mem::swap(&mut self.now, &mut self.next);
        }
        // SAFETY: By the type invariant. The mask is that of an alignment to a power of two.
        let start = unsafe {
            bindings::__page_frag_alloc_align(
                &mut self.now,
                fragsz,
                local::FRAG_GFP,
                (local::SMP_CACHE_BYTES as u32).wrapping_neg(),
            )
        };
        // INVARIANT: The fragment is ours.
        Ok(Frag {
            start: NonNull::new(start.cast::<u8>()).ok_or(ENOMEM)?,
            size,
        })
    }
}

impl Drop for FragCache {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. Fragments that are in use keep their page.
        unsafe {
            bindings::page_frag_cache_drain(&mut self.now);
            bindings::page_frag_cache_drain(&mut self.next);
        }
    }
}

/// Packets, each in a buffer of its own with its header in front, that a tap is to send.
///
/// # Invariants
///
/// Each buffer starts where a page fragment does that the batch owns. There is room for [`BATCH`].
pub struct XdpBatch {
    cache: FragCache,
    buffs: KVec<local::xdp_buff>,
}

// SAFETY: Buffers belong to no thread.
unsafe impl Send for XdpBatch {}

const fn align(size: usize) -> usize {
    size.next_multiple_of(local::SMP_CACHE_BYTES)
}

/// What the network stack puts behind a packet that takes over its buffer.
const TAIL: usize = align(size_of::<bindings::skb_shared_info>());

// No more than the pad that the network stack wants (`NET_SKB_PAD`), wherever it runs.
static_assert!(HEADER_MAX <= 32);

/// How the buffers of packets are laid out.
///
/// # Invariants
///
/// `header` is at most [`HEADER_MAX`] and `least`, and `pad` is `header` and the pad of the network stack, or
/// more.
#[derive(Clone, Copy)]
pub struct Layout {
    /// The size in bytes of the header, at most [`HEADER_MAX`].
    header: usize,
    /// Where the packet is, with its header in front of it.
    pad: usize,
    /// The least bytes that a packet has with its header: those of an Ethernet header.
    least: usize,
}

impl Layout {
    /// The layout for packets with a header of so many bytes, with room for an XDP program's work
    /// if `xdp`.
    ///
    /// Fails with [`EINVAL`] if the header is longer than [`HEADER_MAX`].
    pub fn new(header: usize, xdp: bool) -> Result<Self> {
        if header > HEADER_MAX {
            return Err(EINVAL);
        }
        let headroom = if xdp { local::XDP_HEADROOM } else { 0 };
        // SAFETY: The function returns a constant.
        let pad = align(unsafe { local::net_rx_pad() } + headroom + header);
        // INVARIANT: Checked and added above.
        Ok(Self {
            header,
            pad,
            least: header + ETH_HLEN,
        })
    }

    /// The size in bytes of the header.
    #[inline(always)]
    pub fn header(&self) -> usize {
        self.header
    }
}

impl XdpBatch {
    /// Makes an empty batch.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        // INVARIANT: It is empty.
        Ok(Self {
            cache: FragCache::new(),
            buffs: KVec::with_capacity(BATCH, GFP_KERNEL)?,
        })
    }

    /// The number of packets.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.buffs.len()
    }

    /// Whether there is no packet.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.buffs.is_empty()
    }

    /// Adds a packet: what `segments` have behind their first `skip` bytes, its header first. That
    /// goes in front of the packet, with zeroes behind it up to [`HEADER_MAX`].
    ///
    /// Returns the header, to be checked.
    ///
    /// Fails with [`ENOSPC`] if the packet is too long for a buffer, or the batch is full; with
    /// [`EINVAL`] if it is shorter than its header and that of an Ethernet; with [`EFAULT`] if `segments` can't be read;
    /// and with [`ENOMEM`].
    #[inline(always)]
    pub fn push(
        &mut self,
        mm: CurrentMm<'_>,
        layout: Layout,
        segments: &Segments,
        skip: usize,
    ) -> Result<&mut [u8]> {
        let Layout { header, pad, least } = layout;
        let len = segments.total().saturating_sub(skip);
        if len < least {
            return Err(EINVAL);
        }
        // `least` is no less than `header`.
        let data_len = len.wrapping_sub(header);
        // The packet may have any length: look at it before the sum can overflow.
        if data_len > local::FRAG_SIZE || self.len() >= BATCH {
            return Err(ENOSPC);
        }
        // One header more than the packet has: the limit is that of the C driver.
        let size = align(len + pad) + TAIL;
        if size > local::FRAG_SIZE {
            return Err(ENOSPC);
        }
        let mut frag = self.cache.alloc(size)?;
        let room = frag.range(pad - header, pad + data_len);
        match segments.as_slice() {
            // By the list's invariant it has as many bytes.
            [all] => mm.read_uninit(all.skip(skip).addr(), room)?,
            pieces => read_pieces(mm, pieces, skip, room)?,
        }

        let start = frag.start.as_ptr();
        // SAFETY: The fragment has `pad + data_len` bytes and more, and `HEADER_MAX` bytes at its
        // start, with the pad of the network stack between these and the header in front of the
        // packet, which was just read.
        unsafe {
            start.write_bytes(0, HEADER_MAX);
            let from = start.add(pad - header);
            match header {
                // The usual ones, so that it takes two moves and no call.
                10 => start.copy_from_nonoverlapping(from, 10),
                12 => start.copy_from_nonoverlapping(from, 12),
                _ => start.copy_from_nonoverlapping(from, header),
            }
        }
        let mut buff = MaybeUninit::<local::xdp_buff>::zeroed();
        // SAFETY: All bytes zero are a valid buffer, and the functions fill it in. `pad` and
        // `data_len` are within the fragment.
        let buff = unsafe {
            local::xdp_init_buff(buff.as_mut_ptr(), size as u32);
            local::xdp_prepare_buff(buff.as_mut_ptr(), start, pad as c_int, data_len as c_int);
            buff.assume_init()
        };
        self.buffs.push_within_capacity(buff).map_err(|_| ENOSPC)?;
        // INVARIANT: The buffer starts where the fragment does, which is the batch's now.
        core::mem::forget(frag);
        // SAFETY: The header is at the start of the fragment, all of it was written, and it is
        // borrowed from the batch that owns it.
        Ok(unsafe { slice::from_raw_parts_mut(start, header) })
    }

    /// Drops the packet that was added last.
    pub fn pop(&mut self) {
        if let Some(buff) = self.buffs.pop() {
            // SAFETY: By the type invariant, and it is no longer in the batch.
            unsafe { bindings::page_frag_free(local::xdp_hard_start(&buff)) };
        }
    }

    /// Drops all packets.
    pub fn clear(&mut self) {
        while !self.is_empty() {
            self.pop();
        }
    }

    /// Whoever uses it leaves the buffers as they are, or calls [`Self::forget`].
    pub(super) fn as_mut_ptr(&mut self) -> *mut local::xdp_buff {
        self.buffs.as_mut_ptr()
    }

    /// Empties the batch without freeing its packets: somebody else owns them now.
    pub(super) fn forget(&mut self) {
        self.buffs.clear();
    }
}

impl Drop for XdpBatch {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Fills `to` with what `segments` have behind their first `skip` bytes. Fails with [`EFAULT`] if
/// that is not enough, or can't be read.
#[inline(never)]
fn read_pieces(
    mm: CurrentMm<'_>,
    segments: &[Segment],
    mut skip: usize,
    mut to: &mut [MaybeUninit<u8>],
) -> Result {
    for segment in segments {
        let rest = segment.skip(skip);
        skip -= segment.len() - rest.len();
        let count = rest.len().min(to.len());
        let (now, later) = to.split_at_mut_checked(count).ok_or(EFAULT)?;
        if count > 0 {
            mm.read_uninit(rest.addr(), now)?;
        }
        to = later;
    }
    if to.is_empty() {
        Ok(())
    } else {
        Err(EFAULT)
    }
}
