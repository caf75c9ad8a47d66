// SPDX-License-Identifier: GPL-2.0

//! A virtqueue of any format.

#![forbid(unsafe_code)]

use super::{
    chain::Wanted,
    endian::Endian,
    fault::Fault,
    lookup::Lookup,
    memory::{
        RingAddrs,
        RingMemory, //
    },
    split::{
        Deferred,
        Split,
        START_SIZE, //
    },
    used_log::UsedLog, //
};
use crate::{
    features::Features,
    memtable::{
        Ahead,
        Iotlb, //
    },
    usermem::UserMemory, //
};
use kernel::prelude::*;

/// The format of a ring. There is one; where there are more, [`Vring::set_features`] chooses.
pub(super) enum Format {
    Split(Split),
}

/// A virtqueue. What reads or writes it takes the user memory that it is in.
pub struct Vring {
    pub(super) memory: RingMemory,
    pub(super) lookup: Lookup,
    pub(super) format: Format,
}

impl Vring {
    /// Makes a ring of one descriptor at no useful address.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        Ok(Self {
            memory: RingMemory::new(),
            lookup: Lookup::new()?,
            format: Format::Split(Split::new()?),
        })
    }

    /// Puts the ring into the state that [`Self::new`] made.
    pub fn reset(&mut self) {
        self.memory.reset();
        match &mut self.format {
            Format::Split(split) => split.reset(),
        }
    }

    /// The byte order of the ring, and of the packet headers in its buffers.
    pub fn endian(&self) -> Endian {
        self.memory.endian
    }

    /// The number of descriptors.
    #[inline(always)]
    pub fn num(&self) -> u16 {
        match &self.format {
            Format::Split(split) => split.num(),
        }
    }

    /// Sets the number of descriptors. What was deferred, or completed but not published, is
    /// forgotten.
    ///
    /// Fails with [`EINVAL`] unless `num` is a power of two from 1 to [`MAX_NUM`](super::MAX_NUM),
    /// and with [`ENOMEM`]; then all is as it was.
    pub fn set_num(&mut self, num: u32) -> Result {
        match &mut self.format {
            Format::Split(split) => split.set_num(num)?,
        }
        self.memory.forget_areas();
        Ok(())
    }

    /// Where the ring is.
    pub fn addrs(&self) -> RingAddrs {
        self.memory.addrs()
    }

    /// Moves the ring to `addrs`, which have the alignment that [`RingAddrs`] asks for.
    pub fn set_addrs(&mut self, addrs: RingAddrs) {
        self.memory.set_addrs(addrs);
        self.forget_heads();
    }

    /// Sets whether the ring's addresses are such that an IOTLB knows. If so it has to be
    /// [found](Self::find) before it is used.
    pub fn set_behind_iotlb(&mut self, behind: bool) {
        self.memory.set_behind_iotlb(behind);
    }

    /// Finds the ring in user memory, if it may have moved since this was last asked.
    ///
    /// Fails with [`EFAULT`] if part of it is not mapped, with [`EPERM`] if a map does not allow
    /// what the ring is for, with [`ENOBUFS`] if it is in too many pieces, and with [`ENOMEM`].
    pub fn find(&mut self, iotlb: &Iotlb) -> Result<(), Fault> {
        if self.memory.is_found(iotlb) {
            return Ok(());
        }
        let sizes = match &self.format {
            Format::Split(split) => split.sizes(),
        };
        self.memory.find(iotlb, &sizes, &mut self.lookup)
    }

    /// Adds to `ahead` what `iotlb` does not know of what the device will come upon: the ring
    /// itself, or if that was [found](Self::find), the chains that the driver has made available,
    /// of which `wanted` are needed next. Nothing is taken.
    #[cold]
    pub fn look_ahead(
        &mut self,
        mem: impl UserMemory,
        iotlb: &Iotlb,
        wanted: Wanted,
        ahead: &mut Ahead,
    ) {
        let Self {
            memory,
            lookup,
            format: Format::Split(split),
        } = self;
        if memory.is_found(iotlb) {
            split.look_ahead(memory, mem, lookup, iotlb.maps(), wanted, ahead);
        } else {
            memory.look_ahead(iotlb, &split.sizes(), lookup, ahead);
        }
    }

    /// The index of the chain that the device will take next.
    pub fn base(&self) -> u16 {
        match &self.format {
            Format::Split(split) => split.base(),
        }
    }

    /// The index of the used entry that the device will write next.
    pub fn used_idx(&self) -> u16 {
        match &self.format {
            Format::Split(split) => split.used_idx(),
        }
    }

    /// Makes `base` the index of the chain that the device will take next. What was deferred, or
    /// completed but not published, is forgotten.
    pub fn set_base(&mut self, base: u16) {
        match &mut self.format {
            Format::Split(split) => split.set_base(base),
        }
    }

    /// Sets the features that the driver accepted. If the order of use changes, what was deferred,
    /// or completed but not published, is forgotten.
    pub fn set_features(&mut self, features: Features) {
        match &mut self.format {
            Format::Split(split) => split.set_features(features),
        }
        self.memory.forget_areas();
    }

    /// Sets where writes to the used ring are logged.
    pub fn set_used_log(&mut self, log: Option<UsedLog>) {
        self.memory.set_used_log(log);
    }

    /// Whether a write to the used ring was logged since this was last asked.
    pub fn logged(&mut self) -> bool {
        self.memory.logged()
    }

    /// Whether a write to the used ring should have been logged since this was last asked, and the
    /// log was not mapped.
    pub fn log_failed(&mut self) -> bool {
        self.memory.log_failed()
    }

    /// The size in bytes of the used ring.
    pub fn used_size(&self) -> u64 {
        match &self.format {
            Format::Split(split) => split.sizes().used,
        }
    }

    /// Whether a ring at `addrs` would be within user space.
    pub fn access_ok(&self, mem: impl UserMemory, addrs: RingAddrs) -> bool {
        let sizes = match &self.format {
            Format::Split(split) => split.sizes(),
        };
        RingMemory::access_ok(mem, addrs, &sizes)
    }

    /// Readies the ring for its device: tells the driver whether kicks are wanted, and goes on
    /// behind the last entry that the used ring holds. `iotlb` is what knows where that is, if it
    /// is not in user memory.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written or read, and as [`Self::find`] if
    /// the IOTLB does not know where it is; then the ring is where it was.
    pub fn start(
        &mut self,
        mem: impl UserMemory,
        endian: Endian,
        iotlb: Option<&Iotlb>,
    ) -> Result<(), Fault> {
        let Self {
            memory,
            lookup,
            format: Format::Split(split),
        } = self;
        if let Some(iotlb) = iotlb {
            // No more of the ring has to be there yet.
            memory.find_used(iotlb, START_SIZE, lookup)?;
        }
        let before = core::mem::replace(&mut memory.endian, endian);
        let started = split.start(memory, mem);
        if iotlb.is_some() {
            memory.forget_areas();
        }
        started.inspect_err(|_| memory.endian = before)?;
        if endian != before {
            // It is in the other byte order.
            split.forget_taken();
        }
        Ok(())
    }

    /// Completes a chain of this ring that was deferred. If the ring has forgotten those since,
    /// this does nothing.
    pub fn complete_deferred(&mut self, chain: Deferred) {
        match &mut self.format {
            Format::Split(split) => split.complete_deferred(chain),
        }
    }

    /// The number of chains that are completed but not published.
    #[inline(always)]
    pub fn unpublished(&self) -> usize {
        match &self.format {
            Format::Split(split) => split.unpublished(),
        }
    }

    /// Whether the driver has made nothing available that was not taken.
    ///
    /// A ring that can't be read is not empty: the next [`Take::next_chain`](super::Take::next_chain) says what is wrong.
    #[inline]
    pub fn is_empty(&mut self, mem: impl UserMemory) -> bool {
        match &mut self.format {
            Format::Split(split) => split.is_empty(&self.memory, mem),
        }
    }

    /// Gives the completed chains to the driver, in the order they were completed.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written. The chains stay completed, and the
    /// next call tries them again.
    pub fn publish(&mut self, mem: impl UserMemory) -> Result<(), Fault> {
        match &mut self.format {
            Format::Split(split) => split.publish(&mut self.memory, mem),
        }
    }

    /// Whether the driver is to be called for what was published since this was last asked.
    ///
    /// Fails with [`EFAULT`] if the available ring can't be read; then call the driver.
    pub fn wants_call(&mut self, mem: impl UserMemory) -> Result<bool, Fault> {
        match &mut self.format {
            Format::Split(split) => split.wants_call(&self.memory, mem),
        }
    }

    /// Asks the driver not to kick.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written. The driver may kick all the same.
    #[inline]
    pub fn disable_kicks(&mut self, mem: impl UserMemory) -> Result<(), Fault> {
        match &mut self.format {
            Format::Split(split) => split.disable_kicks(&mut self.memory, mem),
        }
    }

    /// Asks the driver to kick when it makes more available.
    ///
    /// Returns true if it has done so meanwhile: no kick may come for that. Fails with [`EFAULT`]
    /// if the used ring can't be written or the available ring can't be read, and with [`EINVAL`]
    /// if the available index is impossible.
    pub fn enable_kicks(&mut self, mem: impl UserMemory) -> Result<bool, Fault> {
        match &mut self.format {
            Format::Split(split) => split.enable_kicks(&mut self.memory, mem),
        }
    }

    /// Forgets what was read of the available ring ahead of its use.
    pub fn forget_heads(&mut self) {
        match &mut self.format {
            Format::Split(split) => split.forget_heads(),
        }
    }
}
