// SPDX-License-Identifier: GPL-2.0

//! What a device will come upon in a ring: a look at what the driver has made available, which
//! takes nothing.
//!
//! As when it is taken, each value is read once and checked before use. What does not hold ends the
//! look: it is the turn that comes to it which says so. How far it goes, [`Ahead`] decides.

#![forbid(unsafe_code)]

use super::{
    desc::Desc,
    indirect,
    layout::{
        avail_entry,
        IDX, //
    },
    Split, //
};
use crate::{
    memtable::{
        Ahead,
        Maps, //
    },
    usermem::UserMemory,
    vring::{
        chain::Wanted,
        lookup::Lookup,
        memory::RingMemory, //
    }, //
};

impl Split {
    /// Adds to `ahead` what is missing in `maps` of the chains that are available. Those that
    /// `wanted` speaks of are needed next.
    pub(in super::super) fn look_ahead<M: UserMemory>(
        &self,
        memory: &RingMemory,
        mem: M,
        lookup: &mut Lookup,
        maps: &Maps,
        wanted: Wanted,
        ahead: &mut Ahead,
    ) {
        let mut next = self.next_desc.filter(|_| self.in_order);
        let mut bytes = 0u64;
        for number in 0..self.available(memory, mem) {
            let head = match next {
                Some(next) => Some(self.slot(next)),
                None => {
                    let at = self.slot(self.next_avail.wrapping_add(number));
                    memory.load_avail(mem, avail_entry(at)).ok()
                }
            };
            let Some(head) = head.filter(|&head| head < self.num) else {
                return;
            };
            let Some((more, descs)) = self.look_at_chain(memory, mem, lookup, maps, head, ahead)
            else {
                return;
            };
            bytes = bytes.saturating_add(more);
            if number + 1 >= wanted.chains || bytes >= wanted.bytes {
                ahead.go_beyond();
            }
            if self.in_order {
                next = Some(head.wrapping_add(descs));
            }
        }
    }

    /// How many chains are available; the driver's index is read anew.
    fn available<M: UserMemory>(&self, memory: &RingMemory, mem: M) -> u16 {
        let Ok(avail_idx) = memory.load_avail(mem, IDX) else {
            return 0;
        };
        // As in `read_avail_idx`: the index before what it shows.
        mem.read_barrier();
        let available = avail_idx.wrapping_sub(self.next_avail);
        if available > self.num {
            return 0;
        }
        available
    }

    /// Looks at the chain of this head. Returns how many bytes it has, as far as that can be seen,
    /// and how many descriptors in the ring itself; none if the look ends here.
    fn look_at_chain<M: UserMemory>(
        &self,
        memory: &RingMemory,
        mem: M,
        lookup: &mut Lookup,
        maps: &Maps,
        head: u16,
        ahead: &mut Ahead,
    ) -> Option<(u64, u16)> {
        let mut bytes = 0u64;
        let mut index = head;
        for count in 1..=self.num {
            ahead.step()?;
            let desc = Self::read_desc(memory, mem, index).ok()?;
            bytes += if desc.has(Desc::F_INDIRECT) {
                indirect::look_ahead(mem, memory.endian, desc, maps, lookup, ahead)?
            } else {
                let len = u64::from(desc.len);
                ahead.look(maps, desc.addr, len, desc.access(), &mut lookup.hint);
                len
            };
            if !desc.has(Desc::F_NEXT) {
                return Some((bytes, count));
            }
            index = desc.next;
            if index >= self.num {
                return None;
            }
        }
        // It loops.
        None
    }
}
