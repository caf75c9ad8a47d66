// SPDX-License-Identifier: GPL-2.0

//! Packets that a socket has received: out of a tap's ring many at a time, or one by one.
//!
//! C headers: [`include/linux/if_tun.h`](srctree/include/linux/if_tun.h),
//! [`include/linux/if_tap.h`](srctree/include/linux/if_tap.h),
//! [`include/linux/ptr_ring.h`](srctree/include/linux/ptr_ring.h)

use super::{
    bindings as local,
    counter::Groups,
    poll::Pollable,
    socket::{
        Kind,
        Socket, //
    },
    uaccess::CurrentMm, //
};
use crate::memtable::Segments;
use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    sync::Arc, //
};

/// The most packets that are taken out of a ring at a time.
pub const RING_BATCH: usize = 64;

/// Packets that were taken out of a socket's ring.
///
/// Dropped, it puts those that were not received back to the head of the ring.
///
/// # Invariants
///
/// `ring` is the one of `sock`. The pointers from `head` to `tail` were taken from it, in order.
struct RingBatch {
    sock: Arc<Socket>,
    ring: NonNull<local::ptr_ring>,
    frames: [MaybeUninit<*mut c_void>; RING_BATCH],
    head: usize,
    tail: usize,
    /// What each packet is received with: its packet and its iterator are set anew each time, and a tap
    /// looks at nothing else. What they point to afterwards is gone.
    msg: bindings::msghdr,
}

// SAFETY: Packets belong to no thread, the ring locks itself, and `msg` is used by who receives only.
unsafe impl Send for RingBatch {}

impl RingBatch {
    /// The packet that comes next, which stays where it is.
    #[inline(always)]
    fn peek(&mut self) -> Option<*mut c_void> {
        if self.head == self.tail && !self.refill() {
            return None;
        }
        let frame = self.frames.get(self.head)?;
        // SAFETY: By the type invariant, the frames from `head` to `tail` were written.
        Some(unsafe { frame.assume_init() })
    }

    /// The packet that comes next, which is the caller's now.
    #[inline(always)]
    fn pop(&mut self) -> Option<*mut c_void> {
        let frame = self.peek()?;
        // INVARIANT: The frame at `head` is no longer ours.
        self.head += 1;
        Some(frame)
    }

    /// Counts the packet in `groups` if it is one to many.
    ///
    /// # Safety
    ///
    /// `frame` came from the ring, and is ours.
    #[inline(always)]
    unsafe fn count_group(&self, frame: *mut c_void, groups: &Groups) {
        // SAFETY: What is not marked as another kind is an `sk_buff`. Its data is in memory of its
        // own, with room for more than a byte, whether it is used or not.
        let grouped = frame.addr() & local::TUN_XDP_FRAME != 0
            || unsafe { *(*frame.cast::<bindings::sk_buff>()).data } & 1 != 0;
        if grouped && self.sock.is_ethernet() {
            // SAFETY: By the safety requirement.
            unsafe { add_group(frame, groups) }
        }
    }

    #[inline(never)]
    fn refill(&mut self) -> bool {
        // SAFETY: By the type invariant the ring is valid, and the file's, and the array has the given
        // length. The consumer's lock is held from the first function to the last, as the other
        // wants.
        let count = unsafe {
            let count = local::ptr_ring_lock_and_consume(
                self.ring.as_ptr(),
                self.frames.as_mut_ptr().cast::<*mut c_void>(),
                RING_BATCH as c_int,
            );
            if count > 0 {
                local::tun_wake_queue(self.sock.file().as_ptr(), count);
            }
            local::ptr_ring_unlock(self.ring.as_ptr());
            count
        };
        // INVARIANT: So many frames were written, and are ours.
        self.head = 0;
        self.tail = usize::try_from(count).unwrap_or(0);
        self.tail > 0
    }
}

impl Drop for RingBatch {
    fn drop(&mut self) {
        if self.head == self.tail {
            return;
        }
        // SAFETY: By the type invariant these frames came from this ring and are ours. What does
        // not fit any more is freed by the function that frees a tap's packets.
        unsafe {
            local::ptr_ring_unconsume(
                self.ring.as_ptr(),
                self.frames
                    .as_mut_ptr()
                    .add(self.head)
                    .cast::<*mut c_void>(),
                (self.tail - self.head) as c_int,
                Some(match self.sock.kind() {
                    Kind::Tap => free_tap_frame,
                    _ => free_tun_frame,
                }),
            );
        }
    }
}

/// # Safety
///
/// `frame` came from the ring of a tap, and is the caller's.
#[cold]
unsafe fn add_group(frame: *mut c_void, groups: &Groups) {
    // SAFETY: By the safety requirement, and the mark says of which kind the frame is. What it
    // begins with is in one piece of so many bytes.
    unsafe {
        let (start, len) = if local::tun_is_xdp_frame(frame) {
            let data = local::tun_ptr_to_xdp_data(frame);
            (data, local::tun_ptr_to_xdp_len(frame))
        } else {
            let skb = frame.cast::<bindings::sk_buff>();
            ((*skb).data, (*skb).len.wrapping_sub((*skb).data_len))
        };
        if len >= 6 {
            groups.add(start.cast::<[u8; 6]>().read());
        }
    }
}

/// # Safety
///
/// `frame` came from the ring of a [`Kind::Tun`] and is the caller's.
unsafe extern "C" fn free_tun_frame(frame: *mut c_void) {
    // SAFETY: By the safety requirement.
    unsafe { local::tun_ptr_free(frame) }
}

/// # Safety
///
/// `frame` came from the ring of a [`Kind::Tap`] and is the caller's.
unsafe extern "C" fn free_tap_frame(frame: *mut c_void) {
    // SAFETY: By the safety requirement.
    unsafe { local::tap_ptr_free(frame) }
}

/// Receives a socket's packets, one after the other.
pub struct Receiver(Source);

enum Source {
    /// Out of the ring, many at a time.
    Ring(KBox<RingBatch>),
    /// Out of the socket's own queue.
    Queue(Arc<Socket>),
}

impl Receiver {
    /// Makes the receiver of a socket. At most one at a time should be in use.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new(sock: Arc<Socket>) -> Result<Self> {
        let Some(ring) = sock.ring() else {
            return Ok(Self(Source::Queue(sock)));
        };
        // INVARIANT: The ring is the socket's, and there are no frames.
        let batch = KBox::new(
            RingBatch {
                sock,
                ring,
                frames: [const { MaybeUninit::uninit() }; RING_BATCH],
                head: 0,
                tail: 0,
                msg: bindings::msghdr::default(),
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        Ok(Self(Source::Ring(batch)))
    }

    /// The length in bytes of the packet that comes next, without the header that a tap may put in
    /// front of it; 0 if there is none.
    #[inline(always)]
    pub fn peek_len(&mut self) -> usize {
        match &mut self.0 {
            Source::Ring(batch) => {
                let Some(frame) = batch.peek() else {
                    return 0;
                };
                // SAFETY: The frame came from a tap's ring, and is ours.
                unsafe {
                    if local::tun_is_xdp_frame(frame) {
                        local::tun_ptr_to_xdp_len(frame) as usize
                    } else {
                        usize::try_from(local::__skb_array_len_with_tag(frame.cast())).unwrap_or(0)
                    }
                }
            }
            Source::Queue(sock) => sock.queue_peek_len(),
        }
    }

    /// Receives the next packet, which has `len` bytes with its header, into `segments` without
    /// their first `skip` bytes. Never waits. A tap's packet is gone afterwards, also after an
    /// error. One to many is counted in `groups`, if it is a tap's and begins with an Ethernet header.
    ///
    /// Returns the number of bytes that the packet has. Fails with [`EFAULT`] if it has `len` bytes
    /// and `segments` can't be written, with [`EAGAIN`] if there is no packet any more, or as the
    /// socket's `recvmsg` does.
    #[inline(always)]
    pub fn receive(
        &mut self,
        _: CurrentMm<'_>,
        segments: &Segments,
        skip: usize,
        len: usize,
        groups: &Groups,
    ) -> Result<usize> {
        self.receive_to(Some((segments, groups)), skip, len)
    }

    #[inline(always)]
    fn receive_to(
        &mut self,
        to: Option<(&Segments, &Groups)>,
        skip: usize,
        len: usize,
    ) -> Result<usize> {
        let segments = to.map(|(segments, _)| segments);
        match &mut self.0 {
            Source::Ring(batch) => {
                let frame = batch.pop().ok_or(EAGAIN)?;
                if let Some((_, groups)) = to {
                    // SAFETY: The frame came out of this ring.
                    unsafe { batch.count_group(frame, groups) }
                }
                let RingBatch { sock, msg, .. } = &mut **batch;
                msg.__bindgen_anon_1.msg_control = frame;
                if segments.is_none() {
                    msg.msg_iter = bindings::iov_iter::default();
                }
                // SAFETY: The frame came out of this socket's ring, which only a tap has, and is
                // ours no more: the tap takes it, whatever happens. The rest of `msg` is as
                // `recvmsg` left it; its iterator is over nothing if there are no segments.
                unsafe { sock.recvmsg(msg, segments, skip, len) }
            }
            Source::Queue(sock) => {
                let mut msg = bindings::msghdr::default();
                // SAFETY: It is all zeroes: no packet, and an iterator over nothing.
                unsafe { sock.recvmsg(&mut msg, segments, skip, len) }
            }
        }
    }

    /// Drops the next packet.
    #[cold]
    pub fn discard(&mut self) {
        // With no room for it, the socket does just that. A socket that has an error to report
        // does so first, and is asked again.
        let _ = self.receive_to(None, 0, 0);
    }
}
