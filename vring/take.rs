// SPDX-License-Identifier: GPL-2.0

//! The chains that a device has taken for a packet: completed together, deferred, or put back.

#![forbid(unsafe_code)]

use super::{
    chain::{
        Chain,
        Found,
        Parts, //
    },
    fault::Fault,
    ring::{
        Format,
        Vring, //
    },
    split::{
        Deferred,
        Mark, //
    }, //
};
use crate::{
    log::DirtyList,
    memtable::{
        Maps,
        Segments, //
    },
    usermem::UserMemory, //
};
use kernel::prelude::*;

impl Vring {
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
