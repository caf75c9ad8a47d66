// SPDX-License-Identifier: GPL-2.0

//! A ring in user memory: its areas, and what is read from and written to them.
//!
//! What the words in them mean is the format's to know. An area is found anew when the ring or the
//! IOTLB has changed, never in between.

#![forbid(unsafe_code)]

use super::{
    area::Area,
    endian::Endian,
    fault::{
        Because,
        Fault,
        Why, //
    },
    lookup::Lookup,
    used_log::UsedLog, //
};
use crate::{
    memtable::{
        Access,
        Ahead,
        Iotlb,
        Iova, //
    },
    usermem::{
        UserAddr,
        UserMemory, //
    }, //
};
use kernel::prelude::*;

/// Where a ring's three parts are: in user memory, or with an IOTLB where that says. Of a packed
/// ring they have the same places in the interface, and other names (virtio 1.3, section 2.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddrs {
    /// The descriptor table, or the descriptor ring, 16 bytes a descriptor. The latter is a multiple
    /// of 16, and should be so in user memory too if an IOTLB maps it, or the driver may see parts
    /// of what is written there.
    pub desc: UserAddr,
    /// The available ring, or the driver's event suppression; a multiple of two.
    pub avail: UserAddr,
    /// The used ring, or the device's event suppression; a multiple of four.
    pub used: UserAddr,
}

/// The size of a descriptor in bytes, in any format.
pub(super) const DESC_SIZE: u64 = 16;

/// The sizes of these in bytes, and what is done with the first; the second is read, the third
/// written.
pub(super) struct Sizes {
    pub(super) desc: u64,
    pub(super) desc_access: Access,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// Where a ring is in user memory. Who reads or writes it brings that.
pub struct RingMemory {
    pub(super) endian: Endian,
    addrs: RingAddrs,
    /// `addrs` are addresses of the driver, which the IOTLB knows.
    behind_iotlb: bool,
    /// With an IOTLB, the generation of it that the areas were found in.
    found_in: Option<u64>,
    desc: Area,
    pub(super) avail: Area,
    used: Area,
    used_log: Option<UsedLog>,
    /// Something was to go to the log.
    logged: bool,
    /// Something did not.
    log_failed: bool,
}

impl RingMemory {
    /// A ring at no useful address.
    pub(super) fn new() -> Self {
        Self {
            endian: Endian::NATIVE,
            addrs: RingAddrs::default(),
            behind_iotlb: false,
            found_in: None,
            desc: Area::default(),
            avail: Area::default(),
            used: Area::default(),
            used_log: None,
            logged: false,
            log_failed: false,
        }
    }

    /// Goes back to what [`Self::new`] made.
    pub(super) fn reset(&mut self) {
        self.set_behind_iotlb(false);
        self.set_addrs(RingAddrs::default());
        self.endian = Endian::NATIVE;
        self.used_log = None;
        self.logged = false;
        self.log_failed = false;
    }

    pub(super) fn addrs(&self) -> RingAddrs {
        self.addrs
    }

    pub(super) fn set_addrs(&mut self, addrs: RingAddrs) {
        self.addrs = addrs;
        self.forget_areas();
    }

    pub(super) fn set_behind_iotlb(&mut self, behind: bool) {
        self.behind_iotlb = behind;
        self.forget_areas();
    }

    /// The areas may be elsewhere, or have another size.
    pub(super) fn forget_areas(&mut self) {
        self.found_in = None;
        let area = |addr| match self.behind_iotlb {
            true => Area::default(),
            false => Area::flat(addr),
        };
        (self.desc, self.avail, self.used) = (
            area(self.addrs.desc),
            area(self.addrs.avail),
            area(self.addrs.used),
        );
    }

    /// Whether a ring at `addrs` would be within user space.
    pub(super) fn access_ok(mem: impl UserMemory, addrs: RingAddrs, sizes: &Sizes) -> bool {
        mem.access_ok(addrs.desc, sizes.desc)
            && mem.access_ok(addrs.avail, sizes.avail)
            && mem.access_ok(addrs.used, sizes.used)
    }

    /// Whether the areas are known to be where `iotlb` has them.
    #[inline(always)]
    pub(super) fn is_found(&self, iotlb: &Iotlb) -> bool {
        self.found_in == Some(iotlb.generation())
    }

    /// Finds the areas. Fails as `Vring::find`.
    pub(super) fn find(
        &mut self,
        iotlb: &Iotlb,
        sizes: &Sizes,
        lookup: &mut Lookup,
    ) -> Result<(), Fault> {
        self.forget_areas();
        let (maps, addrs) = (iotlb.maps(), self.addrs);
        let mut area = |addr, len, access| Area::resolve(maps, addr, len, access, lookup);
        self.desc = area(addrs.desc, sizes.desc, sizes.desc_access)?;
        self.avail = area(addrs.avail, sizes.avail, Access::Read)?;
        self.used = area(addrs.used, sizes.used, Access::Write)?;
        self.found_in = Some(iotlb.generation());
        Ok(())
    }

    /// Adds to `ahead` what `iotlb` does not know of the areas. All of it is needed, and without it
    /// nothing else can be looked at.
    pub(super) fn look_ahead(
        &self,
        iotlb: &Iotlb,
        sizes: &Sizes,
        lookup: &mut Lookup,
        ahead: &mut Ahead,
    ) {
        ahead.hide();
        let addrs = self.addrs;
        let mut area = |addr: UserAddr, len, access| {
            let addr = Iova::new(addr.get());
            ahead.look(iotlb.maps(), addr, len, access, &mut lookup.hint);
        };
        area(addrs.desc, sizes.desc, sizes.desc_access);
        area(addrs.avail, sizes.avail, Access::Read);
        area(addrs.used, sizes.used, Access::Write);
    }

    /// Finds the first `len` bytes of the used ring, to be written, and if `read` says so read.
    ///
    /// Fails as `Vring::find`. The caller [forgets](Self::forget_areas) them afterwards.
    pub(super) fn find_used(
        &mut self,
        iotlb: &Iotlb,
        len: u64,
        read: bool,
        lookup: &mut Lookup,
    ) -> Result<(), Fault> {
        let (maps, addr) = (iotlb.maps(), self.addrs.used);
        let mut area = |access| Area::resolve(maps, addr, len, access, lookup);
        if read {
            area(Access::Read)?;
        }
        self.used = area(Access::Write)?;
        Ok(())
    }

    /// Reads descriptor `index` of the table, as two words in the byte order of the CPU.
    #[inline(always)]
    pub(super) fn read_desc(&self, mem: impl UserMemory, index: u16) -> Result<[u64; 2], Fault> {
        self.desc
            .read_u64x2(mem, u64::from(index) * DESC_SIZE)
            .because(Why::DescriptorRead)
    }

    /// Reads the 16 bytes at `offset` of the descriptors, a multiple of that, as two words in
    /// little-endian order: the second one first, and behind a read barrier the other one.
    #[inline(always)]
    pub(super) fn read_desc_last_first(
        &self,
        mem: impl UserMemory,
        offset: u64,
    ) -> Result<[u64; 2]> {
        let words = self.desc.read_u64x2_last_first(mem, offset)?;
        Ok(words.map(u64::from_le))
    }

    /// Reads the 16-bit field at `offset` of the descriptors, in little-endian order.
    #[inline(always)]
    pub(super) fn load_desc_u16(&self, mem: impl UserMemory, offset: u64) -> Result<u16> {
        Ok(u16::from_le(self.desc.load_u16(mem, offset)?))
    }

    /// Writes the 64-bit word at `offset` of the descriptors, in little-endian order. That is
    /// [logged](Self::log_desc) by the caller.
    #[inline(always)]
    pub(super) fn store_desc(&self, mem: impl UserMemory, offset: u64, value: u64) -> Result {
        self.desc.store_u64(mem, offset, value.to_le())
    }

    /// Reads the field at `offset` of the used ring.
    pub(super) fn load_used(&self, mem: impl UserMemory, offset: u64) -> Result<u16> {
        let value = self.used.load_u16(mem, offset)?;
        Ok(self.endian.u16(value))
    }

    /// Writes the field at `offset` of the used ring, and logs that.
    #[inline(always)]
    pub(super) fn store_used(&mut self, mem: impl UserMemory, offset: u64, value: u16) -> Result {
        self.used.store_u16(mem, offset, self.endian.u16(value))?;
        self.log_used(mem, offset, size_of::<u16>() as u64);
        Ok(())
    }

    /// Writes `bytes` to `offset` of the used ring, and logs that.
    #[inline(always)]
    pub(super) fn write_used(&mut self, mem: impl UserMemory, offset: u64, bytes: &[u8]) -> Result {
        self.used.write(mem, offset, bytes)?;
        self.log_used(mem, offset, bytes.len() as u64);
        Ok(())
    }

    /// Reads the field at `offset` of the available ring.
    #[inline(always)]
    pub(super) fn load_avail(&self, mem: impl UserMemory, offset: u64) -> Result<u16> {
        let value = self.avail.load_u16(mem, offset)?;
        Ok(self.endian.u16(value))
    }

    pub(super) fn set_used_log(&mut self, log: Option<UsedLog>) {
        self.used_log = log;
    }

    /// Whether a write was to be logged since this was last asked.
    pub(super) fn logged(&mut self) -> bool {
        core::mem::take(&mut self.logged)
    }

    /// Whether a write should have been since this was last asked, and the log was not mapped.
    pub(super) fn log_failed(&mut self) -> bool {
        core::mem::take(&mut self.log_failed)
    }

    #[inline(always)]
    fn log_used(&mut self, mem: impl UserMemory, offset: u64, len: u64) {
        if let Some(log) = &self.used_log {
            let marked = log.mark(mem, &self.used, self.behind_iotlb, offset, len);
            // A log that is not mapped is the VMM's loss: what was written stays.
            self.log_failed |= marked.is_err();
            self.logged = true;
        }
    }

    /// Logs that some of the `len` bytes at `offset` of the descriptors were written. Their guest
    /// address nobody has told: it is the one that the user address has.
    #[inline(always)]
    pub(super) fn log_desc(&mut self, mem: impl UserMemory, offset: u64, len: u64) {
        if let Some(log) = &self.used_log {
            let marked = log.mark(mem, &self.desc, true, offset, len);
            self.log_failed |= marked.is_err();
            self.logged = true;
        }
    }
}
