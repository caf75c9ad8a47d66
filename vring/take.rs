// SPDX-License-Identifier: GPL-2.0

//! The chains that a device has taken for a packet: completed together, deferred, or put back.

#![forbid(unsafe_code)]

use super::{
    chain::{
        Chain,
        Found,
        Parts, //
    },
    endian::Endian,
    fault::Fault,
    ring::{
        Deferred,
        RingFormat,
        Vring, //
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
use core::marker::PhantomData;
use kernel::prelude::*;

impl Vring {
    /// The ring as one of the format `F`, which [it has](Self::is_packed): the way of many packets
    /// asks once.
    #[inline(always)]
    pub fn in_format<F: RingFormat>(&mut self) -> Ring<'_, F> {
        Ring {
            ring: self,
            format: PhantomData,
        }
    }

    /// Starts to take the chains of a packet, of a ring that has the format `F`.
    #[inline(always)]
    pub fn take<M: UserMemory, F: RingFormat>(&mut self, mem: M) -> Take<'_, M, F> {
        Take {
            mark: F::of(self).mark(),
            chains: 0,
            descriptors: 0,
            ring: self,
            mem,
        }
    }
}

/// A [`Vring`] of the format `F`.
pub struct Ring<'ring, F: RingFormat> {
    ring: &'ring mut Vring,
    format: PhantomData<F>,
}

impl<F: RingFormat> Ring<'_, F> {
    /// The ring, for who does not ask for its format.
    #[inline(always)]
    pub fn any(&mut self) -> &mut Vring {
        self.ring
    }

    /// As [`Vring::endian`].
    #[inline(always)]
    pub fn endian(&self) -> Endian {
        self.ring.endian()
    }

    /// As [`Vring::unpublished`].
    #[inline(always)]
    pub fn unpublished(&self) -> usize {
        F::of(self.ring).unpublished()
    }

    /// As [`Vring::take`].
    #[inline(always)]
    pub fn take<M: UserMemory>(&mut self, mem: M) -> Take<'_, M, F> {
        self.ring.take(mem)
    }
}

/// The chains of a packet, taken from the ring and not yet completed.
///
/// Dropping it puts them all back: the next [`Vring::take`] finds them again.
#[must_use = "dropped, it puts its chains back"]
pub struct Take<'ring, M: UserMemory, F: RingFormat> {
    ring: &'ring mut Vring,
    mem: M,
    /// Where the ring was before.
    mark: F::Mark,
    chains: u16,
    /// All descriptors that were read for these chains.
    descriptors: u32,
}

impl<M: UserMemory, F: RingFormat> Take<'_, M, F> {
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
        let (memory, lookup, format) = F::parts(self.ring);
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
        let next = format.next_chain(memory, self.mem, lookup, self.chains, parts)?;
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
        let (memory, _, format) = F::parts(self.ring);
        format.is_empty(memory, self.mem)
    }

    /// The number of descriptors of the ring.
    pub fn num(&self) -> u16 {
        F::of(self.ring).num()
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
        if self.chains > 0 {
            let (memory, _, format) = F::parts(self.ring);
            format.set_written(memory, len);
        }
    }

    /// Completes the chains, each by itself, as ones that nothing was written to, whatever was
    /// said before.
    #[cold]
    pub fn complete_empty(self) {
        let (_, _, format) = F::parts(self.ring);
        format.complete_empty(&self.mark, self.chains);
        // As in `complete`.
        core::mem::forget(self);
    }

    /// Completes the chains: the next [`Vring::publish`] gives them to the driver.
    #[inline(always)]
    pub fn complete(self) {
        let (_, _, format) = F::parts(self.ring);
        format.complete(&self.mark, self.chains);
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
        let (_, _, format) = F::parts(self.ring);
        let deferred = format.defer()?;
        self.chains = 0;
        Some(F::deferred(deferred))
    }
}

impl<M: UserMemory, F: RingFormat> Drop for Take<'_, M, F> {
    #[inline(always)]
    fn drop(&mut self) {
        let (_, _, format) = F::parts(self.ring);
        format.put_back(&self.mark, self.chains);
    }
}
