// SPDX-License-Identifier: GPL-2.0

//! User memory, as the rings see it.
//!
//! The rings, the buffers and the dirty log all live in the address space of the process that owns
//! the device. The code that talks to a guest reaches that memory through [`UserMemory`] only: in
//! the kernel it is user access to the current `mm`, in `tests/host` an array of bytes. Nothing in
//! this file may touch memory itself.

#![forbid(unsafe_code)]

use kernel::prelude::*;
use zerocopy::IntoBytes;

/// An address in the owner's address space.
///
/// It is a number, not a pointer: it says nothing about whether anything is mapped there, and the
/// owner may remap it at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct UserAddr(u64);

impl UserAddr {
    /// Makes an address of a number that user space gave.
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// The address as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on. It wraps, as addresses do: [`UserMemory`] refuses a range
    /// that is not within user space.
    #[inline(always)]
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// A piece of a buffer: `len` bytes of user memory from `addr`.
///
/// Laid out as `struct iovec`, so that a list of these is what the socket layer takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    addr: usize,
    len: usize,
}

const _: () = assert!(core::mem::offset_of!(Segment, addr) == 0);

impl Segment {
    /// Makes a segment of `len` bytes from `addr`.
    ///
    /// Returns [`None`] if either does not fit the machine's word.
    #[inline(always)]
    pub fn new(addr: UserAddr, len: u64) -> Option<Self> {
        Some(Self {
            addr: usize::try_from(addr.get()).ok()?,
            len: usize::try_from(len).ok()?,
        })
    }

    /// Where the segment starts.
    #[inline(always)]
    pub fn addr(&self) -> UserAddr {
        UserAddr::new(self.addr as u64)
    }

    /// How many bytes it has.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The segment without its first `bytes` bytes; empty if it has no more than these.
    #[inline(always)]
    #[must_use]
    pub fn skip(&self, bytes: usize) -> Self {
        let bytes = bytes.min(self.len);
        Self {
            addr: self.addr.wrapping_add(bytes),
            len: self.len - bytes,
        }
    }
}

/// Writes all of `buf` to `segments`, from their `offset`-th byte on.
///
/// Fails with [`EFAULT`] if they can't be written, or end before.
pub fn write_at(
    mem: impl UserMemory,
    segments: &[Segment],
    mut offset: usize,
    mut buf: &[u8],
) -> Result {
    for segment in segments {
        if buf.is_empty() {
            break;
        }
        if offset >= segment.len() {
            offset -= segment.len();
            continue;
        }
        let rest = segment.skip(offset);
        let (now, later) = buf.split_at_checked(rest.len()).unwrap_or((buf, &[]));
        mem.write(rest.addr(), now)?;
        buf = later;
        offset = 0;
    }
    if buf.is_empty() {
        Ok(())
    } else {
        Err(EFAULT)
    }
}

/// Access to the memory of the device's owner.
///
/// Every method fails with [`EFAULT`] if part of the range is no user address, is not mapped, or
/// does not allow the access. A write that failed may have changed part of the range.
///
/// It is handed on by value: in the kernel it is [a token](crate::sys::uaccess::CurrentMm) that its
/// holder may go there, and no more.
pub trait UserMemory: Copy {
    /// Whether `len` bytes from `addr` are within user space, mapped or not.
    fn access_ok(&self, addr: UserAddr, len: u64) -> bool;

    /// Reads `buf.len()` bytes from `addr`.
    fn read(&self, addr: UserAddr, buf: &mut [u8]) -> Result;

    /// Reads 16 bytes from `addr`, as two words in the byte order of the CPU.
    fn read_u64x2(&self, addr: UserAddr) -> Result<[u64; 2]> {
        let mut value = [0; 2];
        self.read(addr, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes all of `buf` to `addr`.
    fn write(&self, addr: UserAddr, buf: &[u8]) -> Result;

    /// Reads the 16-bit word at `addr` in one access. That may be odd: where a driver has put a
    /// header, or the owner has mapped a ring behind an IOTLB.
    fn load_u16(&self, addr: UserAddr) -> Result<u16>;

    /// Writes the 16-bit word at `addr`, which is as for [`Self::load_u16`], in one access.
    fn store_u16(&self, addr: UserAddr, value: u16) -> Result;

    /// Reads the second of the two 64-bit words at `addr`, and behind a
    /// [barrier](Self::read_barrier) the first. Each is one access if `addr` is a multiple of eight.
    fn read_u64x2_last_first(&self, addr: UserAddr) -> Result<[u64; 2]>;

    /// Writes the 64-bit word at `addr`, in one access if that is a multiple of eight.
    fn store_u64(&self, addr: UserAddr, value: u64) -> Result;

    /// Sets the bits of `mask` in the 32-bit word at `addr`, which is a multiple of four, in one
    /// atomic read-modify-write. Fails with `EFAULT`, also if others change the word without end.
    fn set_bits(&self, addr: UserAddr, mask: u32) -> Result;

    /// Orders earlier reads before later reads (`smp_rmb()`).
    fn read_barrier(&self);

    /// Orders earlier writes before later writes (`smp_wmb()`).
    fn write_barrier(&self);

    /// Orders all earlier accesses before all later ones (`smp_mb()`).
    fn full_barrier(&self);
}
