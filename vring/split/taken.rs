// SPDX-License-Identifier: GPL-2.0

//! Chains that were taken, until the driver has them back: the used entries to be.
//!
//! A chain is here from [`Taken::push`] on. Its packet may still be given back to the ring, which
//! [removes](Taken::truncate) it; else it is [completed](Taken::complete), or
//! [deferred](Taken::defer) and completed later. All that is completed is written at once, when the
//! ring is published.

#![forbid(unsafe_code)]

use super::{
    heads::HEADS,
    layout::UsedElem, //
};
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

/// The most chains out there: those of one packet, and those that are completed before them and
/// not published, which are as many as are read ahead.
const MAX_TAKEN: usize = MAX_SEGMENTS + HEADS;

/// A chain that is neither in its ring nor completed: its buffers are still in use.
///
/// It goes back to `Vring::complete_deferred` of its ring; dropped, it stays deferred.
#[derive(Debug)]
#[must_use = "dropped, it is never completed"]
pub struct Deferred {
    elem: UsedElem,
    /// The [`Taken::era`] that it was deferred in.
    era: u32,
}

/// What of a ring's chains is out there.
pub(super) struct Taken {
    /// Used entries that are not published: one for each chain, or in order one for each packet
    /// that was received and one for all that were transmitted.
    pub(super) elems: List<UsedElem>,
    /// In order: how many chains each of `elems` stands for, of those that are completed.
    pub(super) spans: List<u16>,
    /// How many chains are completed.
    unpublished: usize,
    /// How many chains are deferred.
    deferred: usize,
    /// How many chains may be taken and not published: as many as the ring has and as there is
    /// room for, less those that are deferred.
    limit: usize,
    /// Changes, and wraps, when deferred chains are forgotten.
    era: u32,
}

impl Taken {
    /// No chains, of a ring of one descriptor. Fails with [`ENOMEM`].
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            elems: List::new(1)?,
            spans: List::new(1)?,
            unpublished: 0,
            deferred: 0,
            limit: 1,
            era: 0,
        })
    }

    /// Makes room for the chains of a ring of `num` descriptors. The caller [forgets](Self::forget)
    /// those that there are.
    ///
    /// Fails with [`ENOMEM`]; then all is as it was.
    pub(super) fn resize(&mut self, num: u16) -> Result {
        let room = usize::from(num).min(MAX_TAKEN);
        if room != self.elems.room() {
            (self.elems, self.spans) = (List::new(room)?, List::new(room)?);
        }
        Ok(())
    }

    /// Forgets all chains, also those that are deferred. The ring has `num` descriptors.
    pub(super) fn forget(&mut self, num: u16) {
        self.clear();
        self.deferred = 0;
        self.era = self.era.wrapping_add(1);
        self.update_limit(num);
    }

    /// Forgets the chains that are completed: the driver has them.
    pub(super) fn clear(&mut self) {
        self.elems.clear();
        self.spans.clear();
        self.unpublished = 0;
    }

    fn update_limit(&mut self, num: u16) {
        self.limit = usize::from(num).min(MAX_TAKEN);
        self.limit = self.limit.saturating_sub(self.deferred);
    }

    /// The number of chains that are completed and not published.
    #[inline(always)]
    pub(super) fn unpublished(&self) -> usize {
        self.unpublished
    }

    /// Fails if no more can be taken beside `chains` of the packet at hand.
    #[inline(always)]
    pub(super) fn check_room(&self, chains: u16, num: u16) -> Result<(), Fault> {
        // Both are bounded by the limit, or far from overflow.
        let out_there = self.unpublished.wrapping_add(usize::from(chains));
        if out_there >= self.limit {
            return Err(self.too_many(out_there, num));
        }
        Ok(())
    }

    #[cold]
    fn too_many(&self, out_there: usize, num: u16) -> Fault {
        // So many can be out only if one was made available again before it was used.
        if out_there + self.deferred >= usize::from(num) {
            Fault::new(EINVAL, Why::Twice)
        } else {
            Fault::new(ENOBUFS, Why::Completed)
        }
    }

    /// Adds a chain whose name is `id`, in the ring's byte order.
    #[inline(always)]
    pub(super) fn push(&mut self, id: u32) -> Result<(), Fault> {
        self.elems
            .push(UsedElem { id, len: 0 })
            .map_err(|_| Fault::new(ENOBUFS, Why::Completed))
    }

    /// Says how many bytes were written to the chain that was added last, in the ring's byte
    /// order.
    #[inline(always)]
    pub(super) fn set_written(&mut self, len: u32) {
        if let Some(elem) = self.elems.as_mut_slice().last_mut() {
            elem.len = len;
        }
    }

    /// Says that nothing was written to the chains behind the first `len` entries. In order, each
    /// has an entry of its own: a driver takes one without for full.
    pub(super) fn clear_written(&mut self, len: usize, in_order: bool) {
        for elem in self.elems.as_mut_slice().iter_mut().skip(len) {
            elem.len = 0;
            if in_order {
                // There is as much room as in the other list.
                let _ = self.spans.push(1);
            }
        }
    }

    /// The number of entries: what [`Self::truncate`] and [`Self::merge`] go back to.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.elems.len()
    }

    /// Removes all but the first `len` entries.
    pub(super) fn truncate(&mut self, len: usize) {
        self.elems.truncate(len);
    }

    /// Makes one used entry of those behind the first `len`, for a packet of so many chains: it
    /// has the head of the last chain, and what was written there. The driver knows that the
    /// chains before it are full.
    pub(super) fn merge(&mut self, len: usize, chains: u16) {
        let Some(last) = self.elems.as_slice().last().copied().filter(|_| chains > 0) else {
            return;
        };
        self.elems.truncate(len);
        // Chains to read need no entry of their own: nothing is written to them.
        let (elems, spans) = (self.elems.as_mut_slice(), self.spans.as_mut_slice());
        if let (Some(elem), Some(span)) = (elems.last_mut(), spans.last_mut()) {
            if elem.len == 0 && last.len == 0 {
                elem.id = last.id;
                *span = span.wrapping_add(chains);
                return;
            }
        }
        // There is room: the entries of the packet were just taken away.
        let _ = self.elems.push(last);
        let _ = self.spans.push(chains);
    }

    /// The last `chains` are completed.
    #[inline(always)]
    pub(super) fn complete(&mut self, chains: u16) {
        // They were counted when they were taken: far from overflow.
        self.unpublished = self.unpublished.wrapping_add(usize::from(chains));
    }

    /// Takes out the chain that was added last, of a ring of `num` descriptors.
    pub(super) fn defer(&mut self, num: u16) -> Option<Deferred> {
        let elem = self.elems.pop()?;
        self.deferred += 1;
        self.update_limit(num);
        Some(Deferred {
            elem,
            era: self.era,
        })
    }

    /// Completes a chain that was deferred, unless it was forgotten since.
    pub(super) fn complete_deferred(&mut self, chain: Deferred, num: u16) {
        if chain.era != self.era {
            return;
        }
        self.deferred = self.deferred.saturating_sub(1);
        self.update_limit(num);
        // There is room: the limit leaves some for each deferred chain.
        let _ = self.elems.push(chain.elem);
        self.unpublished += 1;
    }
}
