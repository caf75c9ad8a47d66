// SPDX-License-Identifier: GPL-2.0

//! Packet buffers that a tap takes many at a time.
//!
//! C headers: [`include/net/xdp.h`](srctree/include/net/xdp.h),
//! [`include/linux/page_frag_cache.h`](srctree/include/linux/page_frag_cache.h)

use super::{
    bindings as local,
    uaccess::CurrentMm, //
};
use crate::usermem::Segment;
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
    fn range(&mut self, from: usize, to: usize) -> &mut [MaybeUninit<u8>] {
        if from > to || to > self.size {
            return &mut [];
        }
        // SAFETY: By the type invariant and the check the range is within memory that is ours.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr().add(from).cast(), to - from) }
    }
}

impl Drop for Frag {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the fragment is ours to free.
        unsafe { bindings::page_frag_free(self.start.as_ptr().cast::<c_void>()) }
    }
}

/// Cuts pages into pieces of the sizes that packets have.
///
/// # Invariants
///
/// The cache is initialised.
struct FragCache(bindings::page_frag_cache);

// SAFETY: The cache belongs to no thread.
unsafe impl Send for FragCache {}

impl FragCache {
    fn new() -> Self {
        // INVARIANT: An empty cache is all zeroes.
        Self(pin_init::zeroed())
    }

    /// Fails with [`ENOMEM`].
    fn alloc(&mut self, size: usize) -> Result<Frag> {
        let fragsz = u32::try_from(size).map_err(|_| ENOMEM)?;
        // SAFETY: By the type invariant. The mask is that of an alignment to a power of two.
        let start = unsafe {
            bindings::__page_frag_alloc_align(
                &mut self.0,
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
        unsafe { bindings::page_frag_cache_drain(&mut self.0) }
    }
}

/// Packets, each in a buffer of its own with its header in front, that a tap is to send.
///
/// # Invariants
///
/// Each of `buffs` describes the memory that the one of `frags` in the same place owns. Both have
/// room for [`BATCH`].
pub struct XdpBatch {
    cache: FragCache,
    frags: KVec<Frag>,
    buffs: KVec<local::xdp_buff>,
}

// SAFETY: Buffers belong to no thread.
unsafe impl Send for XdpBatch {}

const fn align(size: usize) -> usize {
    size.next_multiple_of(local::SMP_CACHE_BYTES)
}

/// What the network stack puts behind a packet that takes over its buffer.
const TAIL: usize = align(size_of::<bindings::skb_shared_info>());

// Less than the pad that the network stack wants (`NET_SKB_PAD`), wherever it runs.
static_assert!(HEADER_MAX <= 32);

impl XdpBatch {
    /// Makes an empty batch.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        // INVARIANT: It is empty.
        Ok(Self {
            cache: FragCache::new(),
            frags: KVec::with_capacity(BATCH, GFP_KERNEL)?,
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

    /// Adds a packet: `len` bytes of `segments` behind their first `skip` bytes. The first
    /// `header` bytes of these go in front of the packet, with zeroes behind them up to
    /// [`HEADER_MAX`].
    ///
    /// `xdp` says that an XDP program will look at it. Returns the header, to be checked.
    ///
    /// Fails with [`ENOSPC`] if the packet is too long for a buffer, or the batch is full; with
    /// [`EINVAL`] if it is shorter than its header or that is too long; with [`EFAULT`] if
    /// `segments` can't be read; and with [`ENOMEM`].
    #[inline]
    pub fn push(
        &mut self,
        segments: &[Segment],
        skip: usize,
        len: usize,
        header: usize,
        xdp: bool,
    ) -> Result<&mut [u8]> {
        let data_len = len.checked_sub(header).ok_or(EINVAL)?;
        if header > HEADER_MAX {
            return Err(EINVAL);
        }
        let headroom = if xdp { local::XDP_HEADROOM } else { 0 };
        // SAFETY: The function returns a constant.
        let pad = align(unsafe { local::net_rx_pad() } + headroom + header);
        // The packet may have any length: look at it before the sum can overflow.
        if data_len > local::FRAG_SIZE || self.len() >= BATCH {
            return Err(ENOSPC);
        }
        // One header more than the packet has: the limit is that of the C driver.
        if align(len + pad) + TAIL > local::FRAG_SIZE {
            return Err(ENOSPC);
        }
        let size = align(len + pad) + TAIL;
        let mut frag = self.cache.alloc(size)?;

        for byte in frag.range(0, HEADER_MAX) {
            byte.write(0);
        }
        let front = pad - header;
        Cursor::new(segments, skip).read(frag.range(front, pad + data_len))?;

        let start = frag.start.as_ptr();
        // SAFETY: Both are within the fragment, with the pad of the network stack between them,
        // which no header is as long as. All that is copied was just read.
        unsafe { start.copy_from_nonoverlapping(start.add(front), header) };
        let mut buff = MaybeUninit::<local::xdp_buff>::zeroed();
        // SAFETY: All bytes zero are a valid buffer, and the functions fill it in. `pad` and
        // `data_len` are within the fragment.
        let buff = unsafe {
            local::xdp_init_buff(buff.as_mut_ptr(), size as u32);
            local::xdp_prepare_buff(buff.as_mut_ptr(), start, pad as c_int, data_len as c_int);
            buff.assume_init()
        };
        // INVARIANT: The buffer describes the fragment. There is room for both.
        self.buffs.push_within_capacity(buff).map_err(|_| ENOSPC)?;
        self.frags.push_within_capacity(frag).map_err(|_| ENOSPC)?;
        // SAFETY: The header is at the start of the fragment, all of it was written, and it is
        // borrowed from the batch that owns it.
        Ok(unsafe { slice::from_raw_parts_mut(start, header) })
    }

    /// Drops the packet that was added last.
    pub fn pop(&mut self) {
        self.buffs.pop();
        self.frags.pop();
    }

    /// Drops all packets.
    pub fn clear(&mut self) {
        self.buffs.clear();
        self.frags.clear();
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut local::xdp_buff {
        self.buffs.as_mut_ptr()
    }

    /// Empties the batch without freeing its packets: somebody else owns them now.
    pub(super) fn forget(&mut self) {
        self.buffs.clear();
        while let Some(frag) = self.frags.pop() {
            core::mem::forget(frag);
        }
    }
}

/// A place in a list of segments.
struct Cursor<'a> {
    /// What is left of the segment that is being read.
    rest: Segment,
    /// The segments behind it.
    segments: &'a [Segment],
}

impl<'a> Cursor<'a> {
    /// The place `skip` bytes from the start of `segments`, or their end.
    #[inline(always)]
    fn new(segments: &'a [Segment], mut skip: usize) -> Self {
        let mut this = Self {
            rest: Segment::default(),
            segments,
        };
        while let Some((first, others)) = this.segments.split_first() {
            this.rest = first.skip(skip);
            this.segments = others;
            if this.rest.len() > 0 {
                break;
            }
            skip -= first.len();
        }
        this
    }

    /// Fills `to` with what comes next. Fails with [`EFAULT`] if that is not enough, or can't be
    /// read.
    #[inline(always)]
    fn read(&mut self, mut to: &mut [MaybeUninit<u8>]) -> Result {
        while !to.is_empty() {
            let count = self.rest.len().min(to.len());
            let (now, later) = to.split_at_mut_checked(count).ok_or(EFAULT)?;
            if count > 0 {
                CurrentMm.read_uninit(self.rest.addr(), now)?;
                self.rest = self.rest.skip(count);
            }
            to = later;
            if self.rest.len() == 0 && !to.is_empty() {
                let (first, others) = self.segments.split_first().ok_or(EFAULT)?;
                self.rest = *first;
                self.segments = others;
            }
        }
        Ok(())
    }
}
