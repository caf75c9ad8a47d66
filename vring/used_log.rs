// SPDX-License-Identifier: GPL-2.0

//! The log of what the device writes to a ring itself.

#![forbid(unsafe_code)]

use super::area::Area;
use crate::{
    log::DirtyLog,
    memtable::{
        GuestAddr,
        MemTable, //
    },
    usermem::UserMemory, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Where the writes to a ring are logged.
pub struct UsedLog {
    /// The log.
    pub log: DirtyLog,
    /// The guest address of the used ring. Not used with an IOTLB.
    pub addr: GuestAddr,
    /// Guest memory: with an IOTLB, what knows the guest addresses of the used ring, and always of
    /// a packed ring's descriptors.
    pub mem: Option<Arc<MemTable>>,
}

impl UsedLog {
    /// Marks `len` bytes at `offset` of `area`: the used ring, or what `by_user` says that its
    /// guest addresses are to be found by the user addresses.
    ///
    /// Fails with [`EFAULT`] where the log is not mapped, and where it is no guest memory.
    #[cold]
    pub(super) fn mark(
        &self,
        mem: impl UserMemory,
        area: &Area,
        by_user: bool,
        offset: u64,
        len: u64,
    ) -> Result {
        // The write before its bit in the log; pairs with the VMM's atomic exchange of the log.
        mem.write_barrier();
        if by_user {
            self.mark_user(mem, area, offset, len)
        } else {
            self.log.mark(mem, self.addr.offset(offset), len)
        }
    }

    fn mark_user(&self, mem: impl UserMemory, area: &Area, mut offset: u64, len: u64) -> Result {
        let table = self.mem.as_ref().ok_or(EFAULT)?;
        let end = offset + len;
        while offset < end {
            let (addr, count) = area.piece(offset, end - offset)?;
            self.log.mark_user(mem, table, addr, count)?;
            offset += count;
        }
        Ok(())
    }
}
