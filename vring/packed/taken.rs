// SPDX-License-Identifier: GPL-2.0

//! Chains that were taken, until the driver has them back: the used descriptors to be.
//!
//! As those of the split format: a chain is here from [`Taken::push`] on, until its packet is put
//! back ([`Taken::truncate`]), or it is completed and published; one that is [deferred](Taken::defer)
//! comes back to be completed later. Beside its name and what was written, the number of its
//! descriptors is kept: so far the place in the ring moves when it is used.

#![forbid(unsafe_code)]

use crate::{
    list::List,
    memtable::MAX_SEGMENTS,
    sys::compat::ENOBUFS,
    vring::fault::{
        Fault,
        Why, //
    }, //
};
use kernel::prelude::*;

/// The most chains that are completed and not published, beside those of a packet.
const MAX_COMPLETED: usize = 64;

/// The most chains out there.
const MAX_TAKEN: usize = MAX_SEGMENTS + MAX_COMPLETED;

/// A used descriptor to be: for one chain, or in order for one packet that was received or for all
/// that were transmitted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Elem {
    pub(super) len: u32,
    /// The name of the last of these chains.
    pub(super) id: u16,
    /// How many descriptors they have in the ring.
    pub(super) descs: u16,
}

/// A chain that is neither in its ring nor completed: its buffers are still in use.
///
/// It goes back to `Vring::complete_deferred` of its ring; dropped, it stays deferred.
#[derive(Debug)]
#[must_use = "dropped, it is never completed"]
pub struct Deferred {
    elem: Elem,
    /// The [`Taken::era`] that it was deferred in.
    era: u32,
}

/// What of a ring's chains is out there.
pub(super) struct Taken {
    elems: List<Elem>,
    /// How many chains are completed.
    unpublished: usize,
    /// How many chains are deferred.
    deferred: usize,
    /// Changes, and wraps, when deferred chains are forgotten.
    era: u32,
}

impl Taken {
    /// No chains, and no room for any.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            elems: List::new(0)?,
            unpublished: 0,
            deferred: 0,
            era: 0,
        })
    }

    /// Makes room for chains, unless there is. Fails with [`ENOMEM`].
    pub(super) fn make_room(&mut self) -> Result {
        if self.elems.room() == 0 {
            self.elems = List::new(MAX_TAKEN)?;
        }
        Ok(())
    }

    /// Forgets all chains, and gives the room back.
    pub(super) fn give_room_back(&mut self) {
        self.forget();
        // A list without room needs no memory.
        if let Ok(none) = List::new(0) {
            self.elems = none;
        }
    }

    /// Forgets all chains, also those that are deferred.
    pub(super) fn forget(&mut self) {
        self.clear();
        self.deferred = 0;
        self.era = self.era.wrapping_add(1);
    }

    /// Forgets the chains that are completed: the driver has them.
    pub(super) fn clear(&mut self) {
        self.elems.clear();
        self.unpublished = 0;
    }

    /// The number of chains that are completed and not published.
    #[inline(always)]
    pub(super) fn unpublished(&self) -> usize {
        self.unpublished
    }

    /// What is to be used, in order.
    #[inline(always)]
    pub(super) fn elems(&self) -> &[Elem] {
        self.elems.as_slice()
    }

    /// Adds a chain of this name, which has so many descriptors in the ring. Fails if there is no
    /// room beside those that are deferred.
    #[inline(always)]
    pub(super) fn push(&mut self, id: u16, descs: u16) -> Result<(), Fault> {
        // Both are bounded by the room of a list.
        if self.elems.len().wrapping_add(self.deferred) >= MAX_TAKEN {
            return Err(Fault::new(ENOBUFS, Why::Completed));
        }
        let elem = Elem { len: 0, id, descs };
        self.elems
            .push(elem)
            .map_err(|_| Fault::new(ENOBUFS, Why::Completed))
    }

    /// Says how many bytes were written to the chain that was added last.
    #[inline(always)]
    pub(super) fn set_written(&mut self, len: u32) {
        if let Some(elem) = self.elems.as_mut_slice().last_mut() {
            elem.len = len;
        }
    }

    /// Says that nothing was written to the chains behind the first `len`.
    pub(super) fn clear_written(&mut self, len: usize) {
        for elem in self.elems.as_mut_slice().iter_mut().skip(len) {
            elem.len = 0;
        }
    }

    /// What [`Self::truncate`] and [`Self::merge`] go back to.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.elems.len()
    }

    /// Removes all but the first `len`.
    pub(super) fn truncate(&mut self, len: usize) {
        self.elems.truncate(len);
    }

    /// In order: makes one of those behind the first `len`, which are a packet. It has the name of
    /// the last chain, and what was written there: the driver knows that the chains before it are
    /// full. What is transmitted needs no descriptor of its own: nothing is written to it.
    pub(super) fn merge(&mut self, len: usize) {
        let elems = self.elems.as_mut_slice();
        let Some((before, packet)) = elems.split_at_mut_checked(len) else {
            return;
        };
        let Some(mut last) = packet.last().copied() else {
            return;
        };
        // No more than the ring has.
        last.descs = packet.iter().fold(0, |sum, e| e.descs.wrapping_add(sum));
        if let Some(elem) = before.last_mut() {
            if elem.len == 0 && last.len == 0 {
                elem.id = last.id;
                elem.descs = elem.descs.wrapping_add(last.descs);
                self.elems.truncate(len);
                return;
            }
        }
        if let Some(first) = packet.first_mut() {
            *first = last;
        }
        self.elems.truncate(len.wrapping_add(1));
    }

    /// The last `chains` are completed.
    #[inline(always)]
    pub(super) fn complete(&mut self, chains: u16) {
        // They were counted when they were taken: far from overflow.
        self.unpublished = self.unpublished.wrapping_add(usize::from(chains));
    }

    /// Takes out the chain that was added last.
    pub(super) fn defer(&mut self) -> Option<Deferred> {
        let elem = self.elems.pop()?;
        self.deferred += 1;
        Some(Deferred {
            elem,
            era: self.era,
        })
    }

    /// Completes a chain that was deferred, unless it was forgotten since.
    pub(super) fn complete_deferred(&mut self, chain: Deferred) {
        if chain.era != self.era {
            return;
        }
        self.deferred = self.deferred.saturating_sub(1);
        // There is room: some is left for each deferred chain.
        let _ = self.elems.push(chain.elem);
        self.unpublished += 1;
    }
}
