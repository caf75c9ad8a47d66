// SPDX-License-Identifier: GPL-2.0

//! Sockets that carry raw packets: taps and packet sockets.
//!
//! C headers: [`include/linux/net.h`](srctree/include/linux/net.h),
//! [`include/linux/if_tun.h`](srctree/include/linux/if_tun.h),
//! [`include/linux/if_tap.h`](srctree/include/linux/if_tap.h)

use super::{
    bindings as local,
    compat::ENOTSOCK,
    iov_iter::init_iter,
    poll::Pollable,
    uaccess::CurrentMm,
    xdp::XdpBatch, //
};
use crate::memtable::Segments;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    bindings,
    error::from_err_ptr,
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    prelude::*,
    sync::rcu,
    types::ScopeGuard, //
};

/// The most bytes that a [`Kind::Tun`] says of itself: a key and the name of an interface.
const TUN_FDINFO: usize = 64;

/// What is behind a [`Socket`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A packet socket (`AF_PACKET`, `SOCK_RAW`).
    Packet,
    /// A tap made by `/dev/net/tun`.
    Tun,
    /// A tap on another network device: macvtap or ipvtap.
    Tap,
}

/// A socket that carries raw packets.
///
/// # Invariants
///
/// Owns a reference to the file of `sock`. The socket is of the given kind, and `ring`, if there
/// is one, is where it keeps the packets that wait to be received.
pub struct Socket {
    sock: NonNull<bindings::socket>,
    file: NonNull<bindings::file>,
    kind: Kind,
    /// Packets begin with an Ethernet header.
    ethernet: bool,
    ring: Option<NonNull<local::ptr_ring>>,
}

// SAFETY: A socket is reference counted and locks itself; it belongs to no thread.
unsafe impl Send for Socket {}
// SAFETY: As above.
unsafe impl Sync for Socket {}

impl Socket {
    /// The socket behind the current task's file descriptor `fd`.
    ///
    /// Fails with [`ENOTSOCK`] if there is none, or it is of another kind.
    pub fn from_fd(fd: i32) -> Result<Self> {
        Self::packet_from_fd(fd).or_else(|_| Self::tap_from_fd(fd))
    }

    fn packet_from_fd(fd: i32) -> Result<Self> {
        let mut err: c_int = 0;
        // SAFETY: The function takes any number, and `err` is valid for writes.
        let sock = unsafe { bindings::sockfd_lookup(fd, &mut err) };
        let sock = NonNull::new(sock).ok_or(ENOTSOCK)?;
        // SAFETY: The socket that was found has a file, and the reference to it is ours.
        let file = NonNull::new(unsafe { (*sock.as_ptr()).file }).ok_or(ENOTSOCK)?;
        // SAFETY: As above.
        let file = ScopeGuard::new_with_data(file, |file| unsafe { bindings::fput(file.as_ptr()) });

        // SAFETY: The reference to its file keeps the socket and its `struct sock` alive.
        let (raw, packet) = unsafe {
            let sk = (*sock.as_ptr()).sk;
            (
                u32::from(local::sk_type(sk)) == local::SOCK_TYPE_RAW,
                u32::from(local::sk_family(sk)) == local::FAMILY_PACKET,
            )
        };
        if !raw || !packet {
            return Err(ENOTSOCK);
        }
        // INVARIANT: Looked at above; the reference is ours. A packet socket has no ring.
        Ok(Self {
            sock,
            file: file.dismiss(),
            kind: Kind::Packet,
            ethernet: false,
            ring: None,
        })
    }

    fn tap_from_fd(fd: i32) -> Result<Self> {
        let fd = c_uint::try_from(fd).map_err(|_| ENOTSOCK)?;
        // SAFETY: The function takes any number.
        let file = NonNull::new(unsafe { bindings::fget(fd) }).ok_or(ENOTSOCK)?;
        // SAFETY: The reference is ours.
        let file = ScopeGuard::new_with_data(file, |file| unsafe { bindings::fput(file.as_ptr()) });

        // SAFETY: The file is valid, and the function looks whether it is such a tap.
        let tun = from_err_ptr(unsafe { local::tun_get_socket(file.as_ptr()) });
        let (sock, kind) = match tun {
            Ok(sock) => (sock, Kind::Tun),
            // SAFETY: As above.
            Err(_) => match from_err_ptr(unsafe { local::tap_get_socket(file.as_ptr()) }) {
                Ok(sock) => (sock, Kind::Tap),
                Err(_) => return Err(ENOTSOCK),
            },
        };
        // SAFETY: The file is valid, and the functions look whether it is such a tap.
        let ring = from_err_ptr(unsafe {
            match kind {
                Kind::Tap => local::tap_get_ptr_ring(file.as_ptr()),
                _ => local::tun_get_tx_ring(file.as_ptr()),
            }
        })?;
        // INVARIANT: The socket and the ring are part of what the file owns, and so live as long.
        let mut this = Self {
            sock: NonNull::new(sock).ok_or(ENOTSOCK)?,
            file: file.dismiss(),
            kind,
            ethernet: kind == Kind::Tap,
            ring: NonNull::new(ring),
        };
        if kind == Kind::Tun {
            this.ethernet = this.find_ethernet();
        }
        Ok(this)
    }

    /// Whether the interface of a [`Kind::Tun`] has Ethernet headers (`IFF_TAP`). One that is not
    /// found, for it was moved to another network namespace since, is said to have none.
    fn find_ethernet(&self) -> bool {
        let mut text = [0u8; TUN_FDINFO];
        let mut seq = bindings::seq_file {
            buf: text.as_mut_ptr().cast(),
            size: text.len(),
            ..Default::default()
        };
        // The file says which interface it is, to who asks for `fdinfo`; there is no other way.
        // SAFETY: By the type invariant the file is valid, and so are its operations. The function
        // adds to the buffer of `seq` and its count, which are valid, and to nothing else.
        let shown = unsafe {
            let file = self.file.as_ptr();
            (*(*file).f_op).show_fdinfo.map(|show| show(&mut seq, file))
        };
        if shown.is_none() {
            return false;
        }
        let text = text.get(..seq.count).unwrap_or(&[]);
        let name = text
            .strip_prefix(b"iff:\t")
            .and_then(|name| name.strip_suffix(b"\n"));
        let mut zeroed = [0u8; bindings::IFNAMSIZ as usize];
        let Some(room) = name.and_then(|name| zeroed.get_mut(..name.len())) else {
            return false;
        };
        room.copy_from_slice(name.unwrap_or(&[]));
        if zeroed.last() != Some(&0) {
            return false;
        }
        let _guard = rcu::read_lock();
        // SAFETY: By the type invariant the socket is valid. The name ends with a zero, and the
        // critical section keeps the interface alive.
        unsafe { local::dev_has_ethernet_header(self.sk(), zeroed.as_ptr().cast()) }
    }

    /// Whether packets begin with an Ethernet header. It is not known of packet sockets.
    pub(super) fn is_ethernet(&self) -> bool {
        self.ethernet
    }

    /// What is behind the socket.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where a tap keeps the packets that wait to be received. It is valid for as long as the socket.
    pub(super) fn ring(&self) -> Option<NonNull<local::ptr_ring>> {
        self.ring
    }

    /// Whether both are one socket.
    pub fn is_same(&self, other: &Self) -> bool {
        self.sock == other.sock
    }

    /// Whether packets may be sent in [batches](XdpBatch): it is a tap of an Ethernet that never
    /// makes its senders wait.
    #[inline]
    pub fn takes_batches(&self) -> bool {
        // SAFETY: By the type invariant the socket is valid.
        self.ethernet && unsafe { local::sk_sndbuf(self.sk()) } == c_int::MAX
    }

    /// Whether an XDP program runs on the packets that are sent, which wants headroom in them.
    #[inline]
    pub fn has_xdp(&self) -> bool {
        // SAFETY: By the type invariant the socket is valid.
        unsafe { local::sk_flag(self.sk(), local::SOCK_FLAG_XDP) }
    }

    /// Whether packets may be sent from [user memory](super::ubuf::UserBufs), without a copy: it
    /// is a tap for devices that can do it.
    pub fn has_zerocopy(&self) -> bool {
        // SAFETY: By the type invariant the socket is valid.
        self.kind != Kind::Packet && unsafe { local::sk_flag(self.sk(), local::SOCK_FLAG_ZEROCOPY) }
    }

    /// Whether a packet that is sent from user memory now will be done some day.
    ///
    /// A macvtap or ipvtap whose interface is gone, and a tap with an XDP program that has dropped
    /// it, may take a packet and never say so. If that comes about while the packet is being sent,
    /// it is too late to know.
    pub fn completes_ubufs(&self) -> bool {
        match self.kind {
            Kind::Packet => false,
            Kind::Tun => !self.has_xdp(),
            // SAFETY: By the type invariant the socket is the one of a `struct tap_queue`.
            Kind::Tap => unsafe { local::tap_is_attached(self.sock.as_ptr()) },
        }
    }

    fn sk(&self) -> *mut bindings::sock {
        // SAFETY: By the type invariant the socket is valid.
        unsafe { (*self.sock.as_ptr()).sk }
    }

    /// Sends a packet: `segments` of the user memory without their first `skip` bytes. Never waits.
    ///
    /// `more` says that another one follows at once. Returns the number of bytes that were taken.
    /// Fails as the socket's `sendmsg` does: with [`EAGAIN`] if the socket is full, with
    /// [`ENOMEM`] or [`ENOBUFS`], or because the packet is bad.
    pub fn send(
        &self,
        _: CurrentMm<'_>,
        segments: &Segments,
        skip: usize,
        more: bool,
    ) -> Result<usize> {
        // SAFETY: There is no `ctl`.
        unsafe { self.send_with(segments, skip, more, None) }
    }

    /// As [`Self::send`] to a tap, which may use the memory of `segments` until it has completed
    /// `ubuf`. Fails with [`EINVAL`] if it is none.
    ///
    /// After an error, the tap has completed `ubuf`, or never will.
    ///
    /// # Safety
    ///
    /// The caller gives the tap a reference to `ubuf`. It, and what it points to, is valid until
    /// it is completed or this fails.
    pub(super) unsafe fn send_ubuf(
        &self,
        _: CurrentMm<'_>,
        segments: &Segments,
        skip: usize,
        more: bool,
        ubuf: *mut bindings::ubuf_info,
    ) -> Result<usize> {
        if self.kind == Kind::Packet {
            return Err(EINVAL);
        }
        let mut ctl = local::tun_msg_ctl {
            type_: local::TUN_MSG_UBUF as u16,
            num: 0,
            ptr: ubuf.cast::<c_void>(),
        };
        // SAFETY: The socket is a tap. By the safety requirement `ubuf` is what it is said to be.
        unsafe { self.send_with(segments, skip, more, Some(&mut ctl)) }
    }

    /// Sends a packet, with `ctl` for a tap.
    ///
    /// # Safety
    ///
    /// `ctl` is none, or the socket is a tap and it is a `TUN_MSG_UBUF` with what
    /// [`Self::send_ubuf`] asks for.
    #[inline(always)]
    unsafe fn send_with(
        &self,
        segments: &Segments,
        skip: usize,
        more: bool,
        ctl: Option<&mut local::tun_msg_ctl>,
    ) -> Result<usize> {
        let mut msg = bindings::msghdr {
            msg_flags: bindings::MSG_DONTWAIT,
            ..Default::default()
        };
        if more {
            msg.msg_flags |= bindings::MSG_MORE;
        }
        if let Some(ctl) = ctl {
            msg.msg_controllen = size_of_val(ctl);
            msg.__bindgen_anon_1.msg_control = ptr::from_mut(ctl).cast::<c_void>();
        }
        let len = segments.total().saturating_sub(skip);
        init_iter(
            &mut msg.msg_iter,
            bindings::ITER_SOURCE,
            segments,
            skip,
            len,
        );
        // SAFETY: `ctl` is as the safety requirement says, and so is what it points to; the
        // iterator goes over `segments`. Both are borrowed until this returns.
        unsafe { self.sendmsg(&mut msg, len) }
    }

    /// Sends the packets of a batch and empties it. Never waits.
    ///
    /// Fails if the socket takes no packets at all ([`EBADFD`] when its interface is gone); then
    /// they are dropped. A packet that only by itself is bad is dropped without an error.
    pub fn send_batch(&self, batch: &mut XdpBatch) -> Result {
        if batch.is_empty() {
            return Ok(());
        }
        if self.kind == Kind::Packet {
            batch.clear();
            return Err(EINVAL);
        }
        let mut ctl = local::tun_msg_ctl {
            type_: local::TUN_MSG_PTR as u16,
            num: batch.len() as u16,
            ptr: batch.as_mut_ptr().cast::<c_void>(),
        };
        let mut msg = bindings::msghdr {
            msg_flags: bindings::MSG_DONTWAIT,
            msg_controllen: size_of_val(&ctl),
            ..Default::default()
        };
        msg.__bindgen_anon_1.msg_control = (&raw mut ctl).cast::<c_void>();

        // SAFETY: The socket is a tap. `ctl` says how many buffers the batch has and where; they
        // are the batch's, which forgets them if the tap has taken them. The iterator goes over
        // nothing.
        match unsafe { self.sendmsg(&mut msg, 0) } {
            // A tap takes all the buffers that `ctl` names.
            Ok(_) => batch.forget(),
            Err(err) => {
                // A tap that fails the call has not looked at the buffers, so they are as they
                // were.
                batch.clear();
                return Err(err);
            }
        }
        Ok(())
    }

    /// # Safety
    ///
    /// What the iterator of `msg` goes over is valid for the call. Its control data is nothing, or
    /// for a tap a `tun_msg_ctl` that is valid for the call: `TUN_MSG_UBUF` with a `ubuf_info`
    /// that is valid until it is completed or this fails, or `TUN_MSG_PTR` with `num` buffers that
    /// the caller owns, and the tap after `Ok`.
    unsafe fn sendmsg(&self, msg: &mut bindings::msghdr, len: usize) -> Result<usize> {
        let sock = self.sock.as_ptr();
        // SAFETY: By the type invariant the socket is valid, and each socket has its operations.
        let sendmsg = unsafe { (*(*sock).ops).sendmsg }.ok_or(ENOTSOCK)?;
        // SAFETY: By the type invariant and the safety requirement the socket and the message are
        // valid for the call.
        let sent = unsafe { sendmsg(sock, msg, len) };
        usize::try_from(sent).map_err(|_| Error::from_errno(sent))
    }

    /// Receives a packet of at most `len` bytes into `segments`, if any, without their first
    /// `skip` bytes. The control data of `msg` go to a tap as the packet that it is to deliver.
    ///
    /// Returns the number of bytes that the packet has. Fails as the socket's `recvmsg` does, and
    /// with [`EFAULT`] if a packet of `len` bytes could not be written.
    ///
    /// # Safety
    ///
    /// `msg` is all zeroes but for its control data, or was used for this before. It has no control
    /// data, or the socket is a tap and the caller gives it this packet, which came out of its ring.
    /// Its iterator goes over nothing if there are no `segments`.
    #[inline(always)]
    pub(super) unsafe fn recvmsg(
        &self,
        msg: &mut bindings::msghdr,
        segments: Option<&Segments>,
        skip: usize,
        len: usize,
    ) -> Result<usize> {
        let sock = self.sock.as_ptr();
        // SAFETY: By the type invariant the socket is valid, and each socket has its operations.
        let recvmsg = unsafe { (*(*sock).ops).recvmsg }.ok_or(ENOTSOCK)?;
        if let Some(segments) = segments {
            init_iter(&mut msg.msg_iter, bindings::ITER_DEST, segments, skip, len);
        }
        let flags = (bindings::MSG_DONTWAIT | bindings::MSG_TRUNC) as c_int;
        // SAFETY: By the type invariant and the safety requirement the socket and the message are
        // valid for the call: the iterator goes over `segments`, which are borrowed until this
        // returns, or is all zeroes, which is one over no user memory.
        let received = unsafe { recvmsg(sock, msg, len, flags) };
        let received = usize::try_from(received).map_err(|_| Error::from_errno(received))?;
        // A tap does not say so when it could not write all of the packet.
        // SAFETY: The iterator was initialised, or is all zeroes: in both cases it has a count.
        let left = unsafe { msg.msg_iter.__bindgen_anon_1.__bindgen_anon_1.as_ref() }.count;
        if received == len && left > 0 {
            return Err(EFAULT);
        }
        Ok(received)
    }

    /// The length in bytes of the packet at the head of the socket's own queue; 0 if there is none.
    pub(super) fn queue_peek_len(&self) -> usize {
        // SAFETY: By the type invariant the socket is valid. The function locks the queue.
        let len = unsafe { local::sk_receive_queue_peek_len(self.sk()) };
        usize::try_from(len).unwrap_or(0)
    }
}

// SAFETY: By the type invariant the file is valid. The wait queue that a tap or a packet socket
// names is part of what the file owns.
unsafe impl Pollable for Socket {
    fn file(&self) -> NonNull<bindings::file> {
        self.file
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to give back.
        unsafe { bindings::fput(self.file.as_ptr()) }
    }
}
