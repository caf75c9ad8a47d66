// SPDX-License-Identifier: GPL-2.0

//! The virtqueue: where a driver makes buffers available and the device gives them back used.
//!
//! A [`Vring`] is one queue, seen from the device.
//! The device [takes](Vring::take) the chains that it needs for a packet, completes or drops the
//! [`Take`], [publishes](Vring::publish) what was completed, and asks whether the driver
//! [wants a call](Vring::wants_call). A chain whose buffers are needed for longer it
//! [defers](Take::defer). The driver is hostile: every value of its memory is read
//! once and checked before use, and no ring content can make a method here panic, loop without
//! end, reach memory outside the ring and the memory table, or complete a chain twice.
//!
//! The room behind this door: what the words of a ring mean, and where the device is in it, is
//! its format's, of which there is one, [`split`], with a room of its own; another one would stand
//! beside that, as a variant of [`Format`]. What any format needs is here: how a ring's parts are
//! found in user memory, read, written and logged ([`memory`], [`area`], [`used_log`]), and
//! how the buffers of a chain are translated ([`chain`], [`lookup`]).
//!
//! The caller serialises all access to a ring (its queue's mutex in the kernel).

#![forbid(unsafe_code)]

mod area;
mod chain;
mod endian;
mod fault;
mod lookup;
mod memory;
mod split;
mod used_log;

pub use chain::{
    Chain,
    Wanted, //
};
// What the owner may ask for; nobody else in the module does.
#[allow(unused_imports)]
pub use chain::MAX_NUM;
pub use endian::Endian;
pub use fault::{
    Because,
    Fault, //
};
pub use memory::RingAddrs;
pub use split::Deferred;
pub use used_log::UsedLog;

use crate::{
    features::Features,
    log::DirtyList,
    memtable::{
        Ahead,
        Iotlb,
        Maps,
        Segments, //
    },
    usermem::UserMemory, //
};
use chain::{
    Found,
    Parts, //
};
use kernel::prelude::*;
use lookup::Lookup;
use memory::RingMemory;
use split::{
    Mark,
    Split,
    START_SIZE, //
};

/// The format of a ring. There is one; where there are more, [`Vring::set_features`] chooses.
enum Format {
    Split(Split),
}

/// A virtqueue. What reads or writes it takes the user memory that it is in.
pub struct Vring {
    memory: RingMemory,
    lookup: Lookup,
    format: Format,
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
    /// Fails with [`EINVAL`] unless `num` is a power of two from 1 to [`MAX_NUM`].
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

    /// Starts to take the chains of a packet.
    #[inline(always)]
    pub fn take<M: UserMemory>(&mut self, mem: M) -> Take<'_, M> {
        Take {
            mark: match &self.format {
                Format::Split(split) => split.mark(),
            },
            chains: 0,
            descriptors: 0,
            ring: self,
            mem,
        }
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
    /// A ring that can't be read is not empty: the next [`Take::next_chain`] says what is wrong.
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

/// The chains of a packet, taken from the ring and not yet completed.
///
/// Dropping it puts them all back: the next [`Vring::take`] finds them again.
#[must_use = "dropped, it puts its chains back"]
pub struct Take<'ring, M: UserMemory> {
    ring: &'ring mut Vring,
    mem: M,
    /// Where the ring was before.
    mark: Mark,
    chains: u16,
    /// All descriptors that were read for these chains.
    descriptors: u32,
}

impl<M: UserMemory> Take<'_, M> {
    /// Takes one more chain. Its buffers are added to `out`, and if `dirty` is given the guest
    /// addresses of the writable ones to that.
    ///
    /// Returns [`None`] if the driver has made no more available. Fails with [`EINVAL`] if the
    /// ring or the chain is malformed, with [`EFAULT`] if part of it is not in memory, with
    /// [`ENOBUFS`] if it has too many pieces, and with [`E2BIG`] if an indirect table is too long.
    /// After an error the chain is still in the ring.
    #[inline(always)]
    pub fn next_chain(
        &mut self,
        maps: &Maps,
        out: &mut Segments,
        dirty: Option<&mut DirtyList>,
    ) -> Result<Option<Chain>, Fault> {
        let Vring {
            memory,
            lookup,
            format,
        } = &mut *self.ring;
        let parts = Parts {
            maps,
            out,
            dirty,
            found: Found {
                readable: 0,
                writable: 0,
                descriptors: self.descriptors,
            },
        };
        let next = match format {
            Format::Split(split) => {
                split.next_chain(memory, self.mem, lookup, self.chains, parts)?
            }
        };
        let Some((head, found)) = next else {
            return Ok(None);
        };
        let chain = Chain {
            head,
            readable: found.readable,
            writable: found.writable,
            descriptors: found.descriptors - self.descriptors,
        };
        self.descriptors = found.descriptors;
        self.chains = self.chains.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Whether there is no more in the ring, as [`Vring::is_empty`].
    pub fn is_last(&mut self) -> bool {
        self.ring.is_empty(self.mem)
    }

    /// The number of descriptors of the ring.
    pub fn num(&self) -> u16 {
        self.ring.num()
    }

    /// The number of descriptors that were read for the chains taken.
    pub fn descriptors(&self) -> u32 {
        self.descriptors
    }

    /// The number of chains taken.
    pub fn chains(&self) -> u16 {
        self.chains
    }

    /// Says how many bytes the device wrote to the chain that was taken last; none until said.
    #[inline(always)]
    pub fn set_written(&mut self, len: u32) {
        let len = self.ring.memory.endian.u32(len);
        if self.chains > 0 {
            match &mut self.ring.format {
                Format::Split(split) => split.set_written(len),
            }
        }
    }

    /// Completes the chains, each by itself, as ones that nothing was written to, whatever was
    /// said before.
    #[cold]
    pub fn complete_empty(self) {
        match &mut self.ring.format {
            Format::Split(split) => split.complete_empty(&self.mark, self.chains),
        }
        // As in `complete`.
        core::mem::forget(self);
    }

    /// Completes the chains: the next [`Vring::publish`] gives them to the driver.
    #[inline(always)]
    pub fn complete(self) {
        match &mut self.ring.format {
            Format::Split(split) => split.complete(&self.mark, self.chains),
        }
        // They are not to be put back.
        core::mem::forget(self);
    }

    /// Takes the chain out of the ring until [`Vring::complete_deferred`], in whatever order.
    ///
    /// Returns [`None`], and puts the chains back, if there is not just one, or if the ring is
    /// used in order.
    pub fn defer(mut self) -> Option<Deferred> {
        if self.chains != 1 {
            return None;
        }
        let deferred = match &mut self.ring.format {
            Format::Split(split) => split.defer()?,
        };
        self.chains = 0;
        Some(deferred)
    }
}

impl<M: UserMemory> Drop for Take<'_, M> {
    #[inline(always)]
    fn drop(&mut self) {
        match &mut self.ring.format {
            Format::Split(split) => split.put_back(&self.mark, self.chains),
        }
    }
}
