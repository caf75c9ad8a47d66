// SPDX-License-Identifier: GPL-2.0

//! A virtqueue of any format.

#![forbid(unsafe_code)]

use super::{
    chain::Wanted,
    endian::Endian,
    fault::Fault,
    format::Format,
    lookup::Lookup,
    memory::{
        RingAddrs,
        RingMemory,
        Sizes, //
    },
    packed::{
        self,
        Packed, //
    },
    split::{
        self,
        Split, //
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

/// The format that a ring has: the driver's features choose ([`Vring::set_features`]).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Split,
    Packed,
}

/// A virtqueue. What reads or writes it takes the user memory that it is in.
pub struct Vring {
    memory: RingMemory,
    lookup: Lookup,
    kind: Kind,
    /// The state in each format; that of the other one means nothing.
    split: Split,
    packed: Packed,
}

/// A format that a ring may have, for who is made for each of them.
pub trait RingFormat: Format {
    /// The state of `ring` in this format.
    fn of(ring: &Vring) -> &Self;

    /// The same, to be changed, with where the ring is and what translates its addresses.
    fn parts(ring: &mut Vring) -> (&mut RingMemory, &mut Lookup, &mut Self);

    /// A chain of this format that is deferred.
    fn deferred(chain: Self::Deferred) -> Deferred;
}

impl RingFormat for Split {
    #[inline(always)]
    fn of(ring: &Vring) -> &Self {
        &ring.split
    }

    #[inline(always)]
    fn parts(ring: &mut Vring) -> (&mut RingMemory, &mut Lookup, &mut Self) {
        (&mut ring.memory, &mut ring.lookup, &mut ring.split)
    }

    fn deferred(chain: Self::Deferred) -> Deferred {
        Deferred::Split(chain)
    }
}

impl RingFormat for Packed {
    #[inline(always)]
    fn of(ring: &Vring) -> &Self {
        &ring.packed
    }

    #[inline(always)]
    fn parts(ring: &mut Vring) -> (&mut RingMemory, &mut Lookup, &mut Self) {
        (&mut ring.memory, &mut ring.lookup, &mut ring.packed)
    }

    fn deferred(chain: Self::Deferred) -> Deferred {
        Deferred::Packed(chain)
    }
}

/// A chain that is neither in its ring nor completed: its buffers are still in use.
///
/// It goes back to [`Vring::complete_deferred`] of its ring; dropped, it stays deferred.
#[derive(Debug)]
#[must_use = "dropped, it is never completed"]
#[allow(missing_docs)]
pub enum Deferred {
    Split(<Split as Format>::Deferred),
    Packed(<Packed as Format>::Deferred),
}

impl Vring {
    /// Makes a ring of one descriptor at no useful address.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new() -> Result<Self> {
        Ok(Self {
            memory: RingMemory::new(),
            lookup: Lookup::new()?,
            kind: Kind::Split,
            split: Split::new()?,
            packed: Packed::new()?,
        })
    }

    /// Puts the ring into the state that [`Self::new`] made.
    pub fn reset(&mut self) {
        self.memory.reset();
        self.kind = Kind::Split;
        self.split.reset();
        self.packed.reset();
    }

    /// Whether the ring has the packed format.
    #[inline(always)]
    pub fn is_packed(&self) -> bool {
        self.kind == Kind::Packed
    }

    /// The byte order of the ring, and of the packet headers in its buffers.
    pub fn endian(&self) -> Endian {
        self.memory.endian
    }

    /// The number of descriptors.
    #[inline(always)]
    pub fn num(&self) -> u16 {
        match self.kind {
            Kind::Split => self.split.num(),
            Kind::Packed => self.packed.num(),
        }
    }

    /// Sets the number of descriptors. What was deferred, or completed but not published, is
    /// forgotten.
    ///
    /// Fails with [`EINVAL`] unless `num` is from 1 to [`MAX_NUM`](super::MAX_NUM), and a power of
    /// two if the ring is not packed. Fails
    /// with [`ENOMEM`], too; then all is as it was.
    pub fn set_num(&mut self, num: u32) -> Result {
        match self.kind {
            Kind::Split => self.split.set_num(num)?,
            Kind::Packed => self.packed.set_num(num)?,
        }
        self.memory.forget_areas();
        Ok(())
    }

    /// Where the ring is.
    pub fn addrs(&self) -> RingAddrs {
        self.memory.addrs()
    }

    /// Moves the ring to `addrs`, which have the alignment that [`RingAddrs`] asks for. Of the
    /// descriptors of a ring that may become packed, [`Self::start`] asks.
    pub fn set_addrs(&mut self, addrs: RingAddrs) {
        self.memory.set_addrs(addrs);
        self.packed.forget_area();
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
        let sizes = self.sizes();
        self.memory.find(iotlb, &sizes, &mut self.lookup)
    }

    /// The sizes of the ring's parts.
    fn sizes(&self) -> Sizes {
        match self.kind {
            Kind::Split => self.split.sizes(),
            Kind::Packed => self.packed.sizes(),
        }
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
        let sizes = self.sizes();
        let (memory, lookup, maps) = (&self.memory, &mut self.lookup, iotlb.maps());
        if !memory.is_found(iotlb) {
            return memory.look_ahead(iotlb, &sizes, lookup, ahead);
        }
        match self.kind {
            Kind::Split => (self.split).look_ahead(memory, mem, lookup, maps, wanted, ahead),
            Kind::Packed => (self.packed).look_ahead(memory, mem, lookup, maps, wanted, ahead),
        }
    }

    /// The index of the chain that the device will take next; of a packed ring, the index of its
    /// first descriptor, and in bit 15 the wrap counter there.
    pub fn base(&self) -> u16 {
        match self.kind {
            Kind::Split => self.split.base(),
            Kind::Packed => self.packed.base(),
        }
    }

    /// The index of the used entry that the device will write next; of a packed ring, that of a
    /// descriptor, as [`Self::base`].
    pub fn used_idx(&self) -> u16 {
        match self.kind {
            Kind::Split => self.split.used_idx(),
            Kind::Packed => self.packed.used_idx(),
        }
    }

    /// What `VHOST_GET_VRING_BASE` says: the base, and of a packed ring above that where the next
    /// used descriptor is written. If nothing is out there, that is the same place.
    pub fn vring_base(&self) -> u32 {
        match self.kind {
            Kind::Split => u32::from(self.split.base()),
            Kind::Packed => u32::from(self.packed.base()) | u32::from(self.packed.used_idx()) << 16,
        }
    }

    /// Goes on where [`Self::vring_base`] said, of this ring or of another host's. What was
    /// deferred, or completed but not published, is forgotten.
    ///
    /// Of a packed ring, what is between the two halves stays out there: a device has stopped whose
    /// ring it could not write. DPDK's virtio-user starts at `0x8000`, which would mean that all of
    /// the ring is; it means that nothing is.
    ///
    /// Fails with [`EINVAL`] if the ring is not packed, and `base` is no 16-bit index.
    pub fn set_vring_base(&mut self, base: u32) -> Result {
        match self.kind {
            Kind::Split => self
                .split
                .set_base(u16::try_from(base).map_err(|_| EINVAL)?),
            Kind::Packed => {
                let (avail, used) = (base as u16, (base >> 16) as u16);
                let used = if base == 0x8000 { avail } else { used };
                self.packed.set_base(avail, used);
            }
        }
        Ok(())
    }

    /// Makes room for what a ring of these features needs. Nothing changes before they are
    /// [set](Self::set_features).
    ///
    /// Fails with [`ENOMEM`].
    pub fn make_room(&mut self, features: Features) -> Result {
        match Self::kind_of(features) {
            Kind::Split if self.is_packed() => match self.split.set_num(self.num().into()) {
                // It is no size of a split ring, and will not be this one's.
                Err(EINVAL) => Ok(()),
                other => other,
            },
            Kind::Split => Ok(()),
            Kind::Packed => self.packed.make_room(),
        }
    }

    fn kind_of(features: Features) -> Kind {
        if features.has(Features::RING_PACKED) {
            Kind::Packed
        } else {
            Kind::Split
        }
    }

    /// Sets the features that the driver accepted, for which there is [room](Self::make_room). If
    /// the order of use changes, what was deferred, or completed but not published, is forgotten.
    /// If the format does, all is forgotten but the ring's addresses, and its size if it may have
    /// that in the other one, too.
    pub fn set_features(&mut self, features: Features) {
        let kind = Self::kind_of(features);
        if kind != self.kind {
            self.change_format(kind);
        }
        match self.kind {
            Kind::Split => self.split.set_features(features),
            Kind::Packed => self.packed.set_features(features),
        }
        self.memory.forget_areas();
    }

    #[cold]
    fn change_format(&mut self, kind: Kind) {
        let num = self.num();
        self.kind = kind;
        self.split.reset();
        match kind {
            Kind::Split => {
                self.packed.reset();
                // There is room. Where it may not have that size, it has the one that it had at first.
                let _ = self.split.set_num(u32::from(num));
            }
            Kind::Packed => {
                self.packed.begin(num);
                // There is no other.
                self.memory.endian = Endian::Little;
            }
        }
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
        self.sizes().used
    }

    /// Whether a ring at `addrs` would be within user space.
    pub fn access_ok(&self, mem: impl UserMemory, addrs: RingAddrs) -> bool {
        let sizes = self.sizes();
        RingMemory::access_ok(mem, addrs, &sizes)
    }

    /// Readies the ring for its device: tells the driver whether kicks are wanted, and goes on
    /// behind the last entry that the used ring holds; a packed ring where its base says. `iotlb`
    /// is what knows where that is, if it is not in user memory. A packed ring is little-endian.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written or read, as [`Self::find`] if
    /// the IOTLB does not know where it is, and with [`EINVAL`] if the base of a packed ring is
    /// outside it, or its descriptors are at no multiple of 16; then the ring is where it was.
    pub fn start(
        &mut self,
        mem: impl UserMemory,
        endian: Endian,
        iotlb: Option<&Iotlb>,
    ) -> Result<(), Fault> {
        let Self { memory, lookup, .. } = self;
        if let Some(iotlb) = iotlb {
            // No more of the ring has to be there yet.
            let (size, read) = match self.kind {
                Kind::Split => (split::START_SIZE, true),
                Kind::Packed => (packed::START_SIZE, false),
            };
            memory.find_used(iotlb, size, read, lookup)?;
        }
        let endian = match self.kind {
            Kind::Split => endian,
            Kind::Packed => Endian::Little,
        };
        let before = core::mem::replace(&mut memory.endian, endian);
        let started = match self.kind {
            Kind::Split => self.split.start(memory, mem),
            Kind::Packed => self.packed.start(memory, mem),
        };
        if iotlb.is_some() {
            memory.forget_areas();
        }
        started.inspect_err(|_| memory.endian = before)?;
        if endian != before && self.kind == Kind::Split {
            // It is in the other byte order.
            self.split.forget_taken();
        }
        Ok(())
    }

    /// Completes a chain of this ring that was deferred. If the ring has forgotten those since,
    /// this does nothing.
    pub fn complete_deferred(&mut self, chain: Deferred) {
        match (self.kind, chain) {
            (Kind::Split, Deferred::Split(chain)) => self.split.complete_deferred(chain),
            (Kind::Packed, Deferred::Packed(chain)) => self.packed.complete_deferred(chain),
            // It had another format then.
            _ => {}
        }
    }

    /// The number of chains that are completed but not published.
    #[inline(always)]
    pub fn unpublished(&self) -> usize {
        match self.kind {
            Kind::Split => self.split.unpublished(),
            Kind::Packed => self.packed.unpublished(),
        }
    }

    /// Whether the driver has made nothing available that was not taken.
    ///
    /// A ring that can't be read is not empty: the next [`Take::next_chain`](super::Take::next_chain) says what is wrong.
    #[inline]
    pub fn is_empty(&mut self, mem: impl UserMemory) -> bool {
        match self.kind {
            Kind::Split => self.split.is_empty(&self.memory, mem),
            Kind::Packed => self.packed.is_empty(&self.memory, mem),
        }
    }

    /// Gives the completed chains to the driver, in the order they were completed.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written. The chains stay completed, and the
    /// next call tries them again.
    pub fn publish(&mut self, mem: impl UserMemory) -> Result<(), Fault> {
        match self.kind {
            Kind::Split => self.split.publish(&mut self.memory, mem),
            Kind::Packed => self.packed.publish(&mut self.memory, mem),
        }
    }

    /// Whether the driver is to be called for what was published since this was last asked.
    ///
    /// Fails with [`EFAULT`] if the available ring can't be read; then call the driver.
    pub fn wants_call(&mut self, mem: impl UserMemory) -> Result<bool, Fault> {
        match self.kind {
            Kind::Split => self.split.wants_call(&self.memory, mem),
            Kind::Packed => self.packed.wants_call(&self.memory, mem),
        }
    }

    /// Whether the driver is asked not to kick.
    pub fn is_quiet(&self) -> bool {
        match self.kind {
            Kind::Split => self.split.is_quiet(),
            Kind::Packed => self.packed.is_quiet(),
        }
    }

    /// Asks the driver not to kick.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written. The driver may kick all the same.
    #[inline]
    pub fn disable_kicks(&mut self, mem: impl UserMemory) -> Result<(), Fault> {
        match self.kind {
            Kind::Split => self.split.disable_kicks(&mut self.memory, mem),
            Kind::Packed => self.packed.disable_kicks(&mut self.memory, mem),
        }
    }

    /// Asks the driver to kick when it makes more available.
    ///
    /// Returns true if it has done so meanwhile: no kick may come for that. Fails with [`EFAULT`]
    /// if the used ring can't be written or the available ring can't be read, and with [`EINVAL`]
    /// if the available index is impossible.
    pub fn enable_kicks(&mut self, mem: impl UserMemory) -> Result<bool, Fault> {
        match self.kind {
            Kind::Split => self.split.enable_kicks(&mut self.memory, mem),
            Kind::Packed => self.packed.enable_kicks(&mut self.memory, mem),
        }
    }

    /// Forgets what was read of the available ring ahead of its use.
    pub fn forget_heads(&mut self) {
        self.split.forget_heads();
    }
}
