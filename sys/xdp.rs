// SPDX-License-Identifier: GPL-2.0

//! Packet buffers that a tap takes many at a time.
//!
//! C headers: [`include/net/xdp.h`](srctree/include/net/xdp.h),
//! [`include/linux/page_frag_cache.h`](srctree/include/linux/page_frag_cache.h)

use super::{
    bindings as local,
    counter::Groups,
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
/// It is the start of a page fragment that is ours.
struct Frag(NonNull<u8>);

impl Drop for Frag {
    #[inline(never)]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the fragment is ours to free.
        unsafe { bindings::page_frag_free(self.0.as_ptr().cast::<c_void>()) }
    }
}

/// Cuts pages into pieces of the sizes that packets have.
///
/// When a cache's page is used up and all its pieces were freed, it is cut up anew; otherwise the
/// cache gets another one, which costs more than a packet: the kernel may have to zero it. Of a
/// single cache, the pieces of the batch at hand are never free then. So there are two in turn, and
/// a batch ends before it needs the first one again.
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

    /// Whether the page at hand has `size` bytes that are not cut.
    #[inline(always)]
    fn has(&self, size: u32) -> bool {
        // Far from overflow. Where memory is short a page may be a smaller one, which is not known here:
        // then it is over sooner, and there is another one.
        self.now.offset.wrapping_add(size) <= local::FRAG_CACHE_SIZE
    }

    /// Goes on with the other cache.
    fn swap(&mut self) {
        core::mem::swap(&mut self.now, &mut self.next);
    }

    /// Cuts off a piece of `size` bytes.
    ///
    /// Fails with [`ENOMEM`].
    #[inline(always)]
    fn alloc(&mut self, size: u32) -> Result<Frag> {
        // SAFETY: By the type invariant. The mask is that of an alignment to a power of two.
        let start = unsafe {
            bindings::__page_frag_alloc_align(
                &mut self.now,
                size,
                local::FRAG_GFP,
                (local::SMP_CACHE_BYTES as u32).wrapping_neg(),
            )
        };
        // INVARIANT: The fragment is ours.
        Ok(Frag(NonNull::new(start.cast::<u8>()).ok_or(ENOMEM)?))
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
/// The first `len` of `buffs`, and no more than there are, were filled in. Each starts where a page
/// fragment does that the batch owns.
pub struct XdpBatch {
    cache: FragCache,
    buffs: KBox<[MaybeUninit<local::xdp_buff>; BATCH]>,
    len: usize,
    /// It has pieces of both pages.
    swapped: bool,
    /// As [`Self::is_full`].
    full: bool,
}

// SAFETY: Buffers belong to no thread.
unsafe impl Send for XdpBatch {}

/// The next multiple of a cache line, which is a power of two. For sizes far from overflow.
const fn align(size: usize) -> usize {
    let mask = local::SMP_CACHE_BYTES - 1;
    size.wrapping_add(mask) & !mask
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
        let pad = align(local::RX_PAD + headroom + header);
        // INVARIANT: Checked and added above.
        Ok(Self {
            header,
            pad,
            least: header + ETH_HLEN,
        })
    }

    /// The size in bytes of the buffer for a packet of `len` bytes with its header.
    ///
    /// Fails with [`ENOSPC`] if that is too long.
    #[inline(always)]
    fn size(&self, len: usize) -> Result<u32> {
        // The packet may have any length: look at it before the sum can overflow.
        if len > local::FRAG_SIZE {
            return Err(ENOSPC);
        }
        // One header more than the packet has: the limit is that of the C driver.
        let size = align(len.wrapping_add(self.pad)).wrapping_add(TAIL);
        if size > local::FRAG_SIZE {
            return Err(ENOSPC);
        }
        Ok(size as u32)
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
            buffs: KBox::new([const { MaybeUninit::uninit() }; BATCH], GFP_KERNEL_ACCOUNT)?,
            len: 0,
            swapped: false,
            full: false,
        })
    }

    /// The number of packets.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no packet.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it should be sent before a packet is added that is as long as the last one: there
    /// is no room, or that would take a new page.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Adds a packet: what `segments` have behind their first `skip` bytes, its header first. That
    /// goes in front of the packet, with zeroes behind it up to [`HEADER_MAX`].
    ///
    /// Returns the header, to be checked. A packet to many is counted in `groups`.
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
        groups: &Groups,
    ) -> Result<&mut [u8]> {
        let (header, pad) = (layout.header, layout.pad);
        let len = segments.total().saturating_sub(skip);
        if len < layout.least {
            return Err(EINVAL);
        }
        // No less than `header`.
        let data_len = len.wrapping_sub(header) as c_int;
        let size = layout.size(len)?;
        let slot = self.buffs.get_mut(self.len).ok_or(ENOSPC)?;
        if !self.cache.has(size) {
            self.cache.swap();
            self.swapped = self.len > 0;
        }
        let frag = self.cache.alloc(size)?;
        let start = frag.0.as_ptr();
        // SAFETY: The fragment has `size` bytes, which is `pad + len` and more; by the layout's invariant
        // `header` is no more than `pad`. Nobody else has them.
        let room = unsafe {
            let from = start.add(pad.wrapping_sub(header));
            slice::from_raw_parts_mut(from.cast::<MaybeUninit<u8>>(), len)
        };
        match segments.only() {
            // By the list's invariant it has as many bytes.
            Some(all) => mm.read_uninit(all.skip(skip).addr(), room)?,
            None => read_pieces(mm, segments.as_slice(), skip, room)?,
        }
        let from = room.as_ptr().cast::<u8>();
        // SAFETY: There are `HEADER_MAX` bytes at the start of the fragment, with the pad of the
        // network stack between these and the header in front of the packet, which was just read
        // and has an Ethernet header at least.
        // The buffer's slot is valid for writes; `pad` and `data_len` are within the fragment.
        unsafe {
            start.write_bytes(0, HEADER_MAX);
            match header {
                // The usual ones, so that it takes two moves and no call.
                10 => start.copy_from_nonoverlapping(from, 10),
                12 => start.copy_from_nonoverlapping(from, 12),
                _ => start.copy_from_nonoverlapping(from, header),
            }
            count_group(from.add(header), groups);
            local::xdp_fill_buff(slot.as_mut_ptr(), start, size, pad as c_int, data_len);
        }
        // INVARIANT: There was a slot, which is filled in now; the fragment is the batch's.
        core::mem::forget(frag);
        self.len = self.len.wrapping_add(1);
        self.full = self.len >= BATCH || (self.swapped && !self.cache.has(size));
        // SAFETY: The header is at the start of the fragment, all of it was written, and it is
        // borrowed from the batch that owns it.
        Ok(unsafe { slice::from_raw_parts_mut(start, header) })
    }

    /// Drops the packet that was added last.
    pub fn pop(&mut self) {
        let last = self.len.checked_sub(1);
        let Some((len, buff)) = last.and_then(|last| Some((last, self.buffs.get(last)?))) else {
            return;
        };
        // SAFETY: By the type invariant it was filled in.
        let start = unsafe { local::xdp_hard_start(buff.as_ptr()) };
        // INVARIANT: The fragment is no longer the batch's.
        self.len = len;
        drop(NonNull::new(start.cast::<u8>()).map(Frag));
    }

    /// Drops all packets.
    pub fn clear(&mut self) {
        while !self.is_empty() {
            self.pop();
        }
        self.forget();
    }

    /// Whoever uses it leaves the buffers as they are, or calls [`Self::forget`].
    pub(super) fn as_mut_ptr(&mut self) -> *mut local::xdp_buff {
        self.buffs.as_mut_ptr().cast()
    }

    /// Empties the batch without freeing its packets: somebody else owns them now.
    pub(super) fn forget(&mut self) {
        // INVARIANT: There are none.
        self.len = 0;
        self.swapped = false;
        self.full = false;
    }
}

impl Drop for XdpBatch {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Counts a packet in `groups` if it is one to many.
///
/// # Safety
///
/// `packet` points to its Ethernet header.
#[inline(always)]
unsafe fn count_group(packet: *const u8, groups: &Groups) {
    // SAFETY: By the safety requirement. The destination comes first.
    unsafe {
        if packet.read() & 1 != 0 {
            groups.add(packet.cast::<[u8; 6]>().read());
        }
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
