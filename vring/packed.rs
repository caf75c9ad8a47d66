// SPDX-License-Identifier: GPL-2.0

//! The packed format (virtio 1.3, section 2.8): one ring of descriptors, which the driver makes
//! available and the device overwrites with used ones, and for each side an area that says which
//! notifications it wants. All of it is little-endian.
//!
//! Here are the two places in the ring where the device is, and the way of a chain. In its room:
//! [`place`], how such a place is written; [`desc`] and [`indirect`], descriptors; [`taken`], the
//! used descriptors to be; [`events`], kicks and calls; [`ahead`], a look at what will be taken.
//!
//! Descriptors between the two places are out there: taken, and not used. There are never more than
//! the ring has, whatever a driver writes, so none that was not taken is overwritten.

#![forbid(unsafe_code)]

mod ahead;
mod desc;
mod events;
mod indirect;
mod place;
mod taken;

use super::{
    chain::{
        Found,
        Parts,
        MAX_NUM, //
    },
    fault::{
        Because,
        Fault,
        Why, //
    },
    format::Format,
    lookup::Lookup,
    memory::{
        RingMemory,
        Sizes,
        DESC_SIZE, //
    }, //
};
use crate::{
    features::Features,
    memtable::Access,
    usermem::UserMemory, //
};
use desc::Desc;
use events::Events;
use kernel::prelude::*;
use place::Place;
use taken::{
    Deferred,
    Taken, //
};

/// As much of the device's event area as [`Packed::start`] needs, in bytes.
pub(super) const START_SIZE: u64 = events::SIZE;

/// Where a packet began: what putting it back goes back to.
pub struct Mark {
    /// As `taken` was.
    taken: usize,
    /// As `avail` was.
    avail: Place,
    /// As `out` was.
    out: u16,
}

/// The state of a ring in the packed format.
pub struct Packed {
    /// The number of descriptors, from 1 to [`MAX_NUM`].
    num: u16,
    in_order: bool,
    /// The place of the next chain to take.
    avail: Place,
    /// The place of the next used descriptor.
    used: Place,
    /// How many descriptors are from `used` up to `avail`; no more than `num`.
    out: u16,
    /// The place behind chains that were looked at and put back, which are behind `avail`: so far
    /// the driver has got, as is known.
    seen: Option<Place>,
    events: Events,
    taken: Taken,
}

impl Packed {
    /// A ring of one descriptor, without [room](Self::make_room) for chains.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            num: 1,
            in_order: false,
            avail: Place::START,
            used: Place::START,
            out: 0,
            seen: None,
            events: Events::new(),
            taken: Taken::new()?,
        })
    }

    /// Makes room for the chains that are taken, unless there is. Fails with [`ENOMEM`].
    pub(super) fn make_room(&mut self) -> Result {
        self.taken.make_room()
    }

    /// Goes back to what [`Self::new`] made.
    pub(super) fn reset(&mut self) {
        self.begin(1);
        self.taken.give_room_back();
    }

    /// The ring is used in this format from now on, with `num` descriptors.
    pub(super) fn begin(&mut self, num: u16) {
        self.num = num;
        self.events = Events::new();
        self.set_features(Features::default());
        self.set_base(Place::START.bits(), Place::START.bits());
    }

    pub(super) fn set_num(&mut self, num: u32) -> Result {
        if num == 0 || num > MAX_NUM {
            return Err(EINVAL);
        }
        self.num = num as u16;
        self.set_base(self.avail.bits(), self.used.bits());
        Ok(())
    }

    /// Where the next chain is taken, as the bits of a place.
    pub(super) fn base(&self) -> u16 {
        self.avail.bits()
    }

    /// Where the next used descriptor is written, as the bits of a place.
    pub(super) fn used_idx(&self) -> u16 {
        self.used.bits()
    }

    /// Goes on at these places: where the next chain is taken, and where the next used descriptor
    /// is written. What is between stays out there, and the driver does not get it back.
    pub(super) fn set_base(&mut self, avail: u16, used: u16) {
        (self.avail, self.used) = (Place::from_bits(avail), Place::from_bits(used));
        self.taken.forget();
        self.seen = None;
        // Where one of them is outside the ring, `start` fails.
        self.out = self.used.distance(self.avail, self.num).unwrap_or(0);
    }

    pub(super) fn set_features(&mut self, features: Features) {
        self.events.set_features(features);
        let in_order = features.has(Features::IN_ORDER);
        if in_order != self.in_order {
            self.in_order = in_order;
            self.forget_taken();
        }
    }

    /// The sizes of the ring's parts.
    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            desc: u64::from(self.num) * DESC_SIZE,
            desc_access: Access::ReadWrite,
            avail: events::SIZE,
            used: events::SIZE,
        }
    }

    /// Tells the driver whether kicks are wanted.
    ///
    /// Fails with [`EFAULT`] if the device's event area can't be written, and with [`EINVAL`] if
    /// the descriptors are at no multiple of their size, or the base is no two places in the ring,
    /// or they are further apart than it is long, or apart at all if it is used in order.
    pub(super) fn start<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        // Where the addresses were set before the format, nobody has asked yet.
        if memory.addrs().desc.get() % DESC_SIZE != 0 {
            return Err(Fault::new(EINVAL, Why::Alignment));
        }
        let out = self.used.distance(self.avail, self.num);
        // Used in order, what stays out there would be used along with what comes behind it.
        if out.is_none_or(|out| out > 0 && self.in_order) {
            return Err(Fault::new(EINVAL, Why::Base));
        }
        self.events.start(memory, mem)
    }

    /// The device's event area may be another, of which nothing is known.
    pub(super) fn forget_area(&mut self) {
        self.events.forget_area();
    }

    /// Whether the driver is asked not to kick.
    pub(super) fn is_quiet(&self) -> bool {
        self.events.is_quiet()
    }

    /// Forgets what was taken and not published: the driver does not get it back.
    fn forget_taken(&mut self) {
        self.set_base(self.avail.bits(), self.used.bits());
    }

    /// Reads the descriptor at `place`, if it is available.
    #[inline(always)]
    fn read_desc<M: UserMemory>(
        memory: &RingMemory,
        mem: M,
        place: Place,
    ) -> Result<Option<Desc>, Fault> {
        // The flags before all else of the chain; pairs with the write barrier that the driver has
        // before it writes the flags of a chain's first descriptor.
        let [addr, word] = memory
            .read_desc_last_first(mem, desc::offset(place.index()))
            .because(Why::DescriptorRead)?;
        if !desc::is_available(desc::flags_of(word), place) {
            return Ok(None);
        }
        Ok(Some(Desc::new(addr, word)))
    }

    /// Follows the chain at `avail`, whose first descriptor is `desc`. Returns what was found, its
    /// id, and how many descriptors it has in the ring. Fails as `Take::next_chain` does of a chain.
    #[inline(never)]
    fn follow<M: UserMemory>(
        &self,
        memory: &RingMemory,
        mem: M,
        lookup: &mut Lookup,
        mut desc: Desc,
        mut parts: Parts<'_>,
    ) -> Result<(Found, u16, u16), Fault> {
        if desc.has(Desc::F_INDIRECT) && !desc.has(Desc::F_NEXT) {
            indirect::follow(mem, desc, &mut parts, lookup)?;
            return Ok((parts.found, desc.id, 1));
        }
        let (mut place, mut count) = (self.avail, 1);
        loop {
            if desc.has(Desc::F_INDIRECT) {
                return Err(Fault::new(EINVAL, Why::TableInChain));
            }
            parts.add(desc.addr, desc.len, desc.access(), &mut lookup.hint)?;
            if !desc.has(Desc::F_NEXT) {
                return Ok((parts.found, desc.id, count));
            }
            if count >= self.num {
                return Err(Fault::new(EINVAL, Why::Loop));
            }
            count += 1;
            place = place.after(1, self.num);
            // The driver makes the first one available when all others are.
            desc = Self::read_desc(memory, mem, place)?.ok_or(Fault::new(EINVAL, Why::Part))?;
        }
    }

    pub(super) fn complete_deferred(&mut self, chain: Deferred) {
        self.taken.complete_deferred(chain);
    }

    /// As `Vring::publish`. The used descriptors are written but for the first one, and that last:
    /// the driver waits for it, and sees all of them or none. So it never sees part of a packet.
    pub(super) fn publish<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        let Some((first, others)) = self.taken.elems().split_first() else {
            return Ok(());
        };
        // Each is where the first of the descriptors is that it stands for.
        let mut place = self.used.after(first.descs, self.num);
        // No sum is more than `out`.
        let (mut descs, mut behind) = (first.descs, 1);
        for elem in others {
            Self::write_used(memory, mem, elem, place)?;
            behind = descs.wrapping_add(1);
            descs = descs.wrapping_add(elem.descs);
            place = place.after(elem.descs, self.num);
        }
        // The packets, and the other used descriptors, before the one that shows them; pairs with
        // the driver's read barrier between that one's flags and all else. What was read comes before
        // that since it was stored, which this orders.
        mem.write_barrier();
        Self::write_used(memory, mem, first, self.used)?;
        self.log_used(memory, mem, behind);

        self.taken.clear();
        self.used = place;
        self.out = self.out.wrapping_sub(descs);
        self.events.published(descs);
        Ok(())
    }

    #[inline(always)]
    fn write_used<M: UserMemory>(
        memory: &RingMemory,
        mem: M,
        elem: &taken::Elem,
        place: Place,
    ) -> Result<(), Fault> {
        let offset = desc::offset(place.index()).wrapping_add(desc::WORD);
        memory
            .store_desc(mem, offset, desc::used_word(elem.id, elem.len, place))
            .because(Why::UsedDescriptorWrite)
    }

    /// Logs that some of the `count` descriptors from `used` on were written.
    #[inline(always)]
    fn log_used<M: UserMemory>(&self, memory: &mut RingMemory, mem: M, count: u16) {
        let index = self.used.index();
        // At most to the end of the ring, then on from its start.
        let now = count.min(self.num.wrapping_sub(index));
        memory.log_desc(mem, desc::offset(index), desc::offset(now));
        if now < count {
            memory.log_desc(mem, 0, desc::offset(count.wrapping_sub(now)));
        }
    }

    pub(super) fn wants_call<M: UserMemory>(
        &mut self,
        memory: &RingMemory,
        mem: M,
    ) -> Result<bool, Fault> {
        self.events.wants_call(memory, mem, self.num, self.used)
    }

    #[inline]
    pub(super) fn disable_kicks<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        self.events.disable_kicks(memory, mem)
    }

    /// As `Vring::enable_kicks`: of what comes behind the chains that were looked at and put back.
    pub(super) fn enable_kicks<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<bool, Fault> {
        let place = self.seen.unwrap_or(self.avail);
        Ok(
            self.events.enable_kicks(memory, mem, place)?
                && Self::is_available(memory, mem, place)?,
        )
    }

    fn is_available<M: UserMemory>(
        memory: &RingMemory,
        mem: M,
        place: Place,
    ) -> Result<bool, Fault> {
        let offset = desc::offset(place.index()).wrapping_add(desc::FLAGS_FIELD);
        let flags = memory
            .load_desc_u16(mem, offset)
            .because(Why::DescriptorRead)?;
        Ok(desc::is_available(flags, place))
    }
}

impl Format for Packed {
    type Mark = Mark;
    type Deferred = Deferred;

    #[inline(always)]
    fn num(&self) -> u16 {
        self.num
    }

    #[inline(always)]
    fn mark(&self) -> Mark {
        Mark {
            taken: self.taken.len(),
            avail: self.avail,
            out: self.out,
        }
    }

    #[inline(always)]
    fn next_chain<M: UserMemory>(
        &mut self,
        memory: &RingMemory,
        mem: M,
        lookup: &mut Lookup,
        _chains: u16,
        mut parts: Parts<'_>,
    ) -> Result<Option<(u16, Found)>, Fault> {
        let Some(desc) = Self::read_desc(memory, mem, self.avail)? else {
            return Ok(None);
        };
        let (found, id, descs) = if desc.is_whole() {
            parts.add(desc.addr, desc.len, desc.access(), &mut lookup.hint)?;
            (parts.found, desc.id, 1)
        } else {
            self.follow(memory, mem, lookup, desc, parts)?
        };
        if descs > self.num.wrapping_sub(self.out) {
            // One of them was made available again before it was used.
            return Err(Fault::new(EINVAL, Why::Twice));
        }
        self.taken.push(id, descs)?;
        self.out = self.out.wrapping_add(descs);
        self.avail = self.avail.after(descs, self.num);
        Ok(Some((id, found)))
    }

    #[inline(always)]
    fn set_written(&mut self, _memory: &RingMemory, len: u32) {
        self.taken.set_written(len);
    }

    fn complete_empty(&mut self, mark: &Mark, chains: u16) {
        self.taken.clear_written(mark.taken);
        self.taken.complete(chains);
        self.seen = None;
    }

    #[inline(always)]
    fn complete(&mut self, mark: &Mark, chains: u16) {
        if self.in_order {
            self.taken.merge(mark.taken);
        }
        self.taken.complete(chains);
        self.seen = None;
    }

    #[inline(never)]
    fn put_back(&mut self, mark: &Mark, chains: u16) {
        if chains == 0 {
            return;
        }
        self.taken.truncate(mark.taken);
        self.seen = Some(self.avail);
        self.avail = mark.avail;
        self.out = mark.out;
    }

    fn defer(&mut self) -> Option<Deferred> {
        if self.in_order {
            return None;
        }
        self.seen = None;
        self.taken.defer()
    }

    #[inline(always)]
    fn unpublished(&self) -> usize {
        self.taken.unpublished()
    }

    #[inline]
    fn is_empty<M: UserMemory>(&mut self, memory: &RingMemory, mem: M) -> bool {
        matches!(Self::is_available(memory, mem, self.avail), Ok(false))
    }
}
