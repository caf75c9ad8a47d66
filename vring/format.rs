// SPDX-License-Identifier: GPL-2.0

//! What a format of rings does for a packet: the way of its chains.
//!
//! Who moves many packets is made for each format ([`RingFormat`](super::RingFormat)), so that none
//! of them is asked which one it is.

#![forbid(unsafe_code)]

use super::{
    chain::{
        Found,
        Parts, //
    },
    fault::Fault,
    lookup::Lookup,
    memory::RingMemory, //
};
use crate::usermem::UserMemory;

/// The state of a ring in a format.
pub trait Format {
    /// Where a packet began: what putting it back goes back to.
    type Mark;

    /// A chain that is neither in the ring nor completed.
    type Deferred;

    /// The number of descriptors.
    fn num(&self) -> u16;

    /// Where the packet begins whose chains are taken next.
    fn mark(&self) -> Self::Mark;

    /// Takes the next chain of a packet that has `chains` already: its name, and what `parts` has
    /// of the packet then. As [`Take::next_chain`](super::Take::next_chain).
    fn next_chain<M: UserMemory>(
        &mut self,
        memory: &RingMemory,
        mem: M,
        lookup: &mut Lookup,
        chains: u16,
        parts: Parts<'_>,
    ) -> Result<Option<(u16, Found)>, Fault>;

    /// Says how many bytes were written to the chain that was taken last.
    fn set_written(&mut self, memory: &RingMemory, len: u32);

    /// Completes the packet that began at `mark`, of so many chains.
    fn complete(&mut self, mark: &Self::Mark, chains: u16);

    /// Completes the packet that began at `mark`, of so many chains that nothing was written to.
    fn complete_empty(&mut self, mark: &Self::Mark, chains: u16);

    /// Puts the packet that began at `mark`, of so many chains, back into the ring.
    fn put_back(&mut self, mark: &Self::Mark, chains: u16);

    /// Takes out the chain that was taken last, unless the ring is used in order.
    fn defer(&mut self) -> Option<Self::Deferred>;

    /// How many chains are completed and not published.
    fn unpublished(&self) -> usize;

    /// Whether no more is available, as far as can be read.
    fn is_empty<M: UserMemory>(&mut self, memory: &RingMemory, mem: M) -> bool;
}
