// SPDX-License-Identifier: GPL-2.0

//! What a device will come upon in a packed ring: a look at what the driver has made available,
//! which takes nothing.
//!
//! As when it is taken, each value is read once and checked before use. What does not hold ends the
//! look: it is the turn that comes to it which says so. How far it goes, [`Ahead`] decides.

#![forbid(unsafe_code)]

use super::{
    desc::Desc,
    indirect,
    place::Place,
    Packed, //
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

impl Packed {
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
        let mut bytes = 0u64;
        let mut chains = 0u16;
        let mut place = self.avail;
        // As many descriptors as are not out there.
        let mut left = self.num.saturating_sub(self.out);
        while left > 0 {
            let looked = self.look_at_chain(memory, mem, lookup, maps, place, ahead);
            let Some((more, descs)) = looked.filter(|&(_, descs)| descs <= left) else {
                return;
            };
            left -= descs;
            place = place.after(descs, self.num);
            bytes = bytes.saturating_add(more);
            chains = chains.saturating_add(1);
            if chains >= wanted.chains || bytes >= wanted.bytes {
                ahead.go_beyond();
            }
        }
    }

    /// Looks at the chain at `place`. Returns how many bytes it has, as far as that can be seen,
    /// and how many descriptors in the ring; none if the look ends here.
    fn look_at_chain<M: UserMemory>(
        &self,
        memory: &RingMemory,
        mem: M,
        lookup: &mut Lookup,
        maps: &Maps,
        mut place: Place,
        ahead: &mut Ahead,
    ) -> Option<(u64, u16)> {
        let mut bytes = 0u64;
        for count in 1..=self.num {
            ahead.step()?;
            let desc = Self::read_desc(memory, mem, place).ok()??;
            if desc.has(Desc::F_INDIRECT) {
                let alone = count == 1 && !desc.has(Desc::F_NEXT);
                let more = alone.then(|| indirect::look_ahead(mem, desc, maps, lookup, ahead));
                return Some((more??, 1));
            }
            let len = u64::from(desc.len);
            ahead.look(maps, desc.addr, len, desc.access(), &mut lookup.hint);
            bytes += len;
            if !desc.has(Desc::F_NEXT) {
                return Some((bytes, count));
            }
            place = place.after(1, self.num);
        }
        // It loops.
        None
    }
}
