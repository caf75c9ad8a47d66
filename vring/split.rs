// SPDX-License-Identifier: GPL-2.0

//! The split format (virtio 1.3, section 2.7): a table of descriptors, a ring of those that are
//! available, and a ring of those that are used.
//!
//! Here are its indices, and the way of a chain. In its room: [`layout`], where things are;
//! [`desc`] and [`indirect`], descriptors; [`heads`], what is read ahead; [`taken`], the used
//! entries to be; [`events`], kicks and calls; [`ahead`], a look at what will be taken.
//!
//! Its indices only ever move by what was checked. What it has taken and not given back is in
//! [`Taken`].

#![forbid(unsafe_code)]

mod ahead;
mod desc;
mod events;
mod heads;
mod indirect;
mod layout;
mod taken;

pub use taken::Deferred;

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
        Sizes, //
    }, //
};
use crate::{
    features::Features,
    usermem::UserMemory, //
};
use desc::{
    Desc,
    RawDesc, //
};
use events::Events;
use heads::{
    Heads,
    HEADS, //
};
use kernel::prelude::*;
use layout::{
    avail_entry,
    used_entry,
    IDX, //
};
use taken::Taken;

/// As much of the used ring as [`Split::start`] needs, in bytes.
pub(super) const START_SIZE: u64 = IDX + size_of::<u16>() as u64;

/// Where a packet began: what putting it back goes back to.
pub struct Mark {
    /// The number of entries in `taken`.
    taken: usize,
    /// As `next_desc` was.
    next_desc: Option<u16>,
}

/// The state of a ring in the split format.
pub struct Split {
    /// The number of descriptors, a power of two from 1 to [`MAX_NUM`].
    num: u16,
    in_order: bool,
    /// The index of the next chain to take (`last_avail_idx`).
    next_avail: u16,
    /// With `in_order`: the place in the descriptor table of the next chain, which wraps; unknown
    /// until a chain was taken.
    next_desc: Option<u16>,
    /// The driver's index as last read.
    avail_idx: u16,
    /// The index of the next used entry to write.
    used_idx: u16,
    events: Events,
    heads: Heads,
    taken: Taken,
}

impl Split {
    /// A ring of one descriptor. Fails with [`ENOMEM`].
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            num: 1,
            in_order: false,
            next_avail: 0,
            next_desc: None,
            avail_idx: 0,
            used_idx: 0,
            events: Events::default(),
            heads: Heads::new(),
            taken: Taken::new()?,
        })
    }

    /// Goes back to what [`Self::new`] made.
    pub(super) fn reset(&mut self) {
        self.num = 1;
        self.events = Events::default();
        self.set_features(Features::default());
        self.used_idx = 0;
        self.set_base(0);
    }

    pub(super) fn set_num(&mut self, num: u32) -> Result {
        if !num.is_power_of_two() || num > MAX_NUM {
            return Err(EINVAL);
        }
        self.taken.resize(num as u16)?;
        self.num = num as u16;
        self.forget_taken();
        self.forget_heads();
        Ok(())
    }

    pub(super) fn base(&self) -> u16 {
        self.next_avail
    }

    pub(super) fn used_idx(&self) -> u16 {
        self.used_idx
    }

    pub(super) fn set_base(&mut self, base: u16) {
        self.next_avail = base;
        self.next_desc = None;
        self.avail_idx = base;
        self.forget_taken();
        self.forget_heads();
    }

    pub(super) fn set_features(&mut self, features: Features) {
        self.events.set_features(features);
        let in_order = features.has(Features::IN_ORDER);
        if in_order != self.in_order {
            self.in_order = in_order;
            self.next_desc = None;
            self.forget_taken();
        }
    }

    /// The sizes of the ring's parts.
    pub(super) fn sizes(&self) -> Sizes {
        layout::sizes(self.num, self.events.by_index())
    }

    /// Tells the driver whether kicks are wanted, and goes on behind the last entry that the used
    /// ring holds.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written or read.
    pub(super) fn start<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        self.events.start(memory, mem)?;
        self.used_idx = memory.load_used(mem, IDX).because(Why::UsedIndexRead)?;
        Ok(())
    }

    /// Forgets what was taken and not published.
    pub(super) fn forget_taken(&mut self) {
        self.taken.forget(self.num);
    }

    /// Forgets what was read of the available ring ahead of its use.
    pub(super) fn forget_heads(&mut self) {
        self.heads.count = 0;
    }

    /// The first descriptor of the chain at `next_avail`, which the driver has made available.
    #[inline(always)]
    fn head<M: UserMemory>(&mut self, memory: &RingMemory, mem: M) -> Result<u16> {
        if self.in_order {
            if let Some(next) = self.next_desc {
                // The driver takes its descriptors in the order of the table.
                return Ok(self.slot(next));
            }
        }
        let index = self.next_avail;
        let raw = match self.heads.get(index) {
            Some(raw) => raw,
            None => self.read_heads(memory, mem, index)?,
        };
        Ok(memory.endian.u16(raw))
    }

    /// Reads the available entries from `index` to the end of the ring, and returns the first.
    #[inline(never)]
    fn read_heads<M: UserMemory>(
        &mut self,
        memory: &RingMemory,
        mem: M,
        index: u16,
    ) -> Result<u16> {
        let at = self.slot(index);
        let offset = avail_entry(at);
        let available = self.avail_idx.wrapping_sub(index).min(self.num - at);
        let count = usize::from(available).min(HEADS);

        self.forget_heads();
        if count <= 1 {
            return memory.avail.load_u16(mem, offset);
        }
        let entries = self.heads.entries.get_mut(..count).ok_or(EFAULT)?;
        memory.avail.read(mem, offset, entries.as_mut_bytes())?;
        let head = entries.first().copied().ok_or(EFAULT)?;
        self.heads.first = index;
        self.heads.count = count as u16;
        Ok(head)
    }

    #[inline(always)]
    fn read_desc<M: UserMemory>(memory: &RingMemory, mem: M, index: u16) -> Result<Desc, Fault> {
        let words = memory.read_desc(mem, index)?;
        Ok(Desc::new(RawDesc::from_words(words), memory.endian))
    }

    /// Follows the chain whose first descriptor is `desc`. Returns what was found, and how many
    /// descriptors it has in the ring itself. Fails as `Take::next_chain` does of a chain.
    #[inline(never)]
    fn follow<M: UserMemory>(
        &self,
        memory: &RingMemory,
        mem: M,
        lookup: &mut Lookup,
        mut desc: Desc,
        mut parts: Parts<'_>,
    ) -> Result<(Found, u16), Fault> {
        let mut count = 1;
        loop {
            if desc.has(Desc::F_INDIRECT) {
                indirect::follow(mem, memory.endian, desc, &mut parts, lookup)?;
            } else {
                parts.add(desc.addr, desc.len, desc.access(), &mut lookup.hint)?;
            }
            if !desc.has(Desc::F_NEXT) {
                return Ok((parts.found, count));
            }
            if desc.next >= self.num {
                return Err(Fault::new(EINVAL, Why::Next));
            }
            count += 1;
            if count > self.num {
                return Err(Fault::new(EINVAL, Why::Loop));
            }
            desc = Self::read_desc(memory, mem, desc.next)?;
        }
    }

    pub(super) fn complete_deferred(&mut self, chain: Deferred) {
        self.taken.complete_deferred(chain, self.num);
    }

    pub(super) fn publish<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        let old = self.used_idx;
        // No more than a ring has, and so no more than a `u16` holds.
        let new = old.wrapping_add(self.taken.unpublished() as u16);
        if self.in_order {
            self.write_used_in_order(memory, mem, old)
        } else {
            self.write_used_elems(memory, mem, old)
        }
        .because(Why::UsedWrite)?;

        // The entries before the index that shows them; pairs with the driver's read barrier
        // between its reads of the index and of the entries. What was read of the buffers comes before
        // it since it was stored, which this orders.
        mem.write_barrier();
        memory
            .store_used(mem, IDX, new)
            .because(Why::UsedIndexWrite)?;

        self.taken.clear();
        self.used_idx = new;
        self.events.published(old, new);
        Ok(())
    }

    fn write_used_elems<M: UserMemory>(
        &self,
        memory: &mut RingMemory,
        mem: M,
        first: u16,
    ) -> Result {
        let mut at = self.slot(first);
        let mut left = self.taken.elems.as_slice();
        while !left.is_empty() {
            // At most to the end of the ring, then on from its start.
            let room = usize::from(self.num.wrapping_sub(at));
            let (now, later) = left.split_at_checked(room).unwrap_or((left, &[]));
            memory.write_used(mem, used_entry(at), now.as_bytes())?;
            left = later;
            at = 0;
        }
        Ok(())
    }

    /// Writes an entry where the first of the chains that it stands for belongs (virtio 1.3,
    /// section 2.7.9).
    fn write_used_in_order<M: UserMemory>(
        &self,
        memory: &mut RingMemory,
        mem: M,
        mut index: u16,
    ) -> Result {
        let (elems, spans) = (self.taken.elems.as_slice(), self.taken.spans.as_slice());
        for (elem, span) in elems.iter().zip(spans) {
            memory.write_used(mem, used_entry(self.slot(index)), elem.as_bytes())?;
            index = index.wrapping_add(*span);
        }
        Ok(())
    }

    pub(super) fn wants_call<M: UserMemory>(
        &mut self,
        memory: &RingMemory,
        mem: M,
    ) -> Result<bool, Fault> {
        let empty = self.avail_idx == self.next_avail;
        self.events
            .wants_call(memory, mem, self.num, self.used_idx, empty)
    }

    /// Whether the driver is asked not to kick.
    pub(super) fn is_quiet(&self) -> bool {
        self.events.is_quiet()
    }

    #[inline]
    pub(super) fn disable_kicks<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        self.events.disable_kicks(memory, mem)
    }

    pub(super) fn enable_kicks<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<bool, Fault> {
        let asked = self
            .events
            .enable_kicks(memory, mem, self.num, self.avail_idx)?;
        Ok(asked && self.read_avail_idx(memory, mem)?)
    }

    /// Reads the driver's index. Returns whether it moved.
    #[inline(never)]
    fn read_avail_idx<M: UserMemory>(
        &mut self,
        memory: &RingMemory,
        mem: M,
    ) -> Result<bool, Fault> {
        let avail_idx = memory.load_avail(mem, IDX).because(Why::AvailIndexRead)?;
        if avail_idx.wrapping_sub(self.next_avail) > self.num {
            return Err(Fault::new(EINVAL, Why::AvailIndex));
        }
        if avail_idx == self.avail_idx {
            return Ok(false);
        }
        self.avail_idx = avail_idx;
        // The index before the entries and descriptors that it shows; pairs with the write barrier
        // that the driver has before it moves the index.
        mem.read_barrier();
        Ok(true)
    }

    /// Where `index` is in a ring.
    #[inline(always)]
    fn slot(&self, index: u16) -> u16 {
        // `num` is a power of two, at least 1.
        index & self.num.wrapping_sub(1)
    }
}

impl Format for Split {
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
            next_desc: self.next_desc,
        }
    }

    #[inline(always)]
    fn next_chain<M: UserMemory>(
        &mut self,
        memory: &RingMemory,
        mem: M,
        lookup: &mut Lookup,
        chains: u16,
        mut parts: Parts<'_>,
    ) -> Result<Option<(u16, Found)>, Fault> {
        if self.avail_idx == self.next_avail && !self.read_avail_idx(memory, mem)? {
            return Ok(None);
        }
        self.taken.check_room(chains, self.num)?;
        let head = self.head(memory, mem).because(Why::EntryRead)?;
        if head >= self.num {
            return Err(Fault::new(EINVAL, Why::Head));
        }
        let desc = Self::read_desc(memory, mem, head)?;
        let (found, descs) = if desc.is_whole() {
            parts.add(desc.addr, desc.len, desc.access(), &mut lookup.hint)?;
            (parts.found, 1)
        } else {
            self.follow(memory, mem, lookup, desc, parts)?
        };
        self.taken.push(memory.endian.u32(u32::from(head)))?;
        self.next_avail = self.next_avail.wrapping_add(1);
        if self.in_order {
            self.next_desc = Some(head.wrapping_add(descs));
        }
        Ok(Some((head, found)))
    }

    #[inline(always)]
    fn set_written(&mut self, memory: &RingMemory, len: u32) {
        self.taken.set_written(memory.endian.u32(len));
    }

    fn complete_empty(&mut self, mark: &Mark, chains: u16) {
        self.taken.clear_written(mark.taken, self.in_order);
        self.taken.complete(chains);
    }

    #[inline(always)]
    fn complete(&mut self, mark: &Mark, chains: u16) {
        if self.in_order {
            self.taken.merge(mark.taken, chains);
        }
        self.taken.complete(chains);
    }

    #[inline(never)]
    fn put_back(&mut self, mark: &Mark, chains: u16) {
        self.taken.truncate(mark.taken);
        self.next_desc = mark.next_desc;
        self.next_avail = self.next_avail.wrapping_sub(chains);
    }

    fn defer(&mut self) -> Option<Deferred> {
        if self.in_order {
            return None;
        }
        self.taken.defer(self.num)
    }

    #[inline(always)]
    fn unpublished(&self) -> usize {
        self.taken.unpublished()
    }

    #[inline]
    fn is_empty<M: UserMemory>(&mut self, memory: &RingMemory, mem: M) -> bool {
        self.avail_idx == self.next_avail && matches!(self.read_avail_idx(memory, mem), Ok(false))
    }
}
