// SPDX-License-Identifier: GPL-2.0

//! A part of a ring in user memory.
//!
//! What an offset into it reaches was checked when the ring was set up, or is checked by
//! [`UserMemory`] at the access: it is never memory of the kernel's.

#![forbid(unsafe_code)]

use super::{
    fault::{
        Because,
        Fault,
        Why, //
    },
    lookup::Lookup, //
};
use crate::{
    memtable::{
        Access,
        Iova,
        Maps, //
    },
    usermem::{
        Segment,
        UserAddr,
        UserMemory, //
    }, //
};
use kernel::prelude::*;

/// A part of the ring in user memory.
#[derive(Default)]
pub(super) struct Area {
    /// All of it lies together, at `base`.
    flat: bool,
    base: UserAddr,
    /// If not, where its pieces are: there are none while that is not known.
    pieces: KVVec<Segment>,
}

impl Area {
    pub(super) fn flat(base: UserAddr) -> Self {
        Self {
            flat: true,
            base,
            pieces: KVVec::new(),
        }
    }

    /// The area of `len` bytes that the driver has at `addr`, for an `access`.
    pub(super) fn resolve(
        maps: &Maps,
        addr: UserAddr,
        len: u64,
        access: Access,
        lookup: &mut Lookup,
    ) -> Result<Self, Fault> {
        let why = Why::Ring;
        let addr = Iova::new(addr.get());
        let len = u32::try_from(len).map_err(|_| Fault::new(EINVAL, why))?;
        let Lookup { hint, table } = lookup;
        table.clear();
        maps.translate(addr, len, access, hint, table)
            .map_err(|refused| Fault::refused_ring(refused, why))?;
        let mut area = Self::default();
        match table.as_slice() {
            [all] => area = Self::flat(all.addr()),
            several => area
                .pieces
                .extend_from_slice(several, GFP_KERNEL_ACCOUNT)
                .map_err(Error::from)
                .because(Why::RingPieces)?,
        }
        Ok(area)
    }

    /// The user address of the `len` bytes at `offset`. Fails with [`EFAULT`] if they do not lie
    /// together.
    #[inline(always)]
    fn at(&self, offset: u64, len: usize) -> Result<UserAddr> {
        if self.flat {
            return Ok(self.base.offset(offset));
        }
        let (addr, together) = self.find(offset)?;
        if together < len {
            return Err(EFAULT);
        }
        Ok(addr)
    }

    /// Reads 16 bytes from `offset`, as [`UserMemory::read_u64x2`].
    #[inline(always)]
    pub(super) fn read_u64x2(&self, mem: impl UserMemory, offset: u64) -> Result<[u64; 2]> {
        if self.flat {
            return mem.read_u64x2(self.base.offset(offset));
        }
        self.read_u64x2_pieces(mem, offset)
    }

    #[cold]
    fn read_u64x2_pieces(&self, mem: impl UserMemory, offset: u64) -> Result<[u64; 2]> {
        let mut words = [0; 2];
        self.read_pieces(mem, offset, words.as_mut_bytes())?;
        Ok(words)
    }

    /// The user address of the byte at `offset`, and how many of the `len` bytes from there lie
    /// together.
    pub(super) fn piece(&self, offset: u64, len: u64) -> Result<(UserAddr, u64)> {
        if self.flat {
            return Ok((self.base.offset(offset), len));
        }
        let (addr, together) = self.find(offset)?;
        Ok((addr, len.min(together as u64)))
    }

    /// The user address of the byte at `offset`, and how many bytes lie together from there.
    #[cold]
    fn find(&self, offset: u64) -> Result<(UserAddr, usize)> {
        let mut skip = usize::try_from(offset).map_err(|_| EFAULT)?;
        for piece in &self.pieces {
            if skip < piece.len() {
                let rest = piece.skip(skip);
                return Ok((rest.addr(), rest.len()));
            }
            skip -= piece.len();
        }
        Err(EFAULT)
    }

    /// Reads the 16-bit word at `offset`, which is even.
    #[inline(always)]
    pub(super) fn load_u16(&self, mem: impl UserMemory, offset: u64) -> Result<u16> {
        mem.load_u16(self.at(offset, 2)?)
    }

    /// Writes the 16-bit word at `offset`, which is even.
    #[inline(always)]
    pub(super) fn store_u16(&self, mem: impl UserMemory, offset: u64, value: u16) -> Result {
        mem.store_u16(self.at(offset, 2)?, value)
    }

    /// Reads 16 bytes from `offset`, a multiple of 16, as [`UserMemory::read_u64x2_last_first`].
    #[inline(always)]
    pub(super) fn read_u64x2_last_first(
        &self,
        mem: impl UserMemory,
        offset: u64,
    ) -> Result<[u64; 2]> {
        mem.read_u64x2_last_first(self.at(offset, size_of::<[u64; 2]>())?)
    }

    /// Writes the 64-bit word at `offset`, a multiple of eight.
    #[inline(always)]
    pub(super) fn store_u64(&self, mem: impl UserMemory, offset: u64, value: u64) -> Result {
        mem.store_u64(self.at(offset, size_of::<u64>())?, value)
    }

    /// Reads `buf.len()` bytes from `offset`.
    #[inline(always)]
    pub(super) fn read(&self, mem: impl UserMemory, offset: u64, buf: &mut [u8]) -> Result {
        if self.flat {
            return mem.read(self.base.offset(offset), buf);
        }
        self.read_pieces(mem, offset, buf)
    }

    #[cold]
    fn read_pieces(&self, mem: impl UserMemory, mut offset: u64, mut buf: &mut [u8]) -> Result {
        while !buf.is_empty() {
            let (addr, together) = self.find(offset)?;
            let count = together.min(buf.len());
            let (now, later) = buf.split_at_mut_checked(count).ok_or(EFAULT)?;
            mem.read(addr, now)?;
            offset += count as u64;
            buf = later;
        }
        Ok(())
    }

    /// Writes all of `buf` to `offset`.
    #[inline(always)]
    pub(super) fn write(&self, mem: impl UserMemory, offset: u64, buf: &[u8]) -> Result {
        if self.flat {
            return mem.write(self.base.offset(offset), buf);
        }
        self.write_pieces(mem, offset, buf)
    }

    #[cold]
    fn write_pieces(&self, mem: impl UserMemory, mut offset: u64, mut buf: &[u8]) -> Result {
        while !buf.is_empty() {
            let (addr, together) = self.find(offset)?;
            let (now, later) = buf.split_at_checked(together).unwrap_or((buf, &[]));
            mem.write(addr, now)?;
            offset += now.len() as u64;
            buf = later;
        }
        Ok(())
    }
}
