// SPDX-License-Identifier: GPL-2.0

//! A ring with the memory that it is in.
//!
//! The module's [`Vring`](crate::vring::Vring) is given user memory at each call, for in the kernel it
//! may not keep any. Here the memory is there all the time.

use crate::{
    log::DirtyList,
    memtable::{Ahead, Iotlb, Maps, Segments},
    usermem::UserMemory,
    vring::{self, Chain, Deferred, Endian, Fault, Packed, RingAddrs, Split, Wanted},
};
use kernel::prelude::*;
use std::ops::{Deref, DerefMut};

/// The module's [`Take`](vring::Take) of a ring of either format, which a test need not know.
#[must_use = "dropped, it puts its chains back"]
pub enum Take<'ring, M: UserMemory> {
    Split(vring::Take<'ring, M, Split>),
    Packed(vring::Take<'ring, M, Packed>),
}

/// Calls a method of either.
macro_rules! either {
    ($take:expr, $($call:tt)*) => {
        match $take {
            Take::Split(take) => take.$($call)*,
            Take::Packed(take) => take.$($call)*,
        }
    };
}

impl<M: UserMemory> Take<'_, M> {
    pub fn next_chain(
        &mut self,
        maps: &Maps,
        out: &mut Segments,
        dirty: Option<&mut DirtyList>,
    ) -> Result<Option<Chain>, Fault> {
        either!(self, next_chain(maps, out, dirty))
    }

    pub fn is_last(&mut self) -> bool {
        either!(self, is_last())
    }

    pub fn num(&self) -> u16 {
        either!(self, num())
    }

    pub fn descriptors(&self) -> u32 {
        either!(self, descriptors())
    }

    pub fn chains(&self) -> u16 {
        either!(self, chains())
    }

    pub fn set_written(&mut self, len: u32) {
        either!(self, set_written(len))
    }

    pub fn complete_empty(self) {
        either!(self, complete_empty())
    }

    pub fn complete(self) {
        either!(self, complete())
    }

    pub fn defer(self) -> Option<Deferred> {
        either!(self, defer())
    }
}

pub struct Vring<M> {
    ring: vring::Vring,
    mem: M,
}

impl<M> Vring<M>
where
    for<'a> &'a M: UserMemory,
{
    pub fn new(mem: M) -> Result<Self> {
        Ok(Self {
            ring: vring::Vring::new()?,
            mem,
        })
    }

    pub fn mem(&self) -> &M {
        &self.mem
    }

    pub fn set_base(&mut self, base: u16) {
        self.ring.set_vring_base(base.into()).unwrap();
    }

    pub fn access_ok(&self, addrs: RingAddrs) -> bool {
        self.ring.access_ok(&self.mem, addrs)
    }

    pub fn start(&mut self, endian: Endian, iotlb: Option<&Iotlb>) -> Result<(), Fault> {
        self.ring.start(&self.mem, endian, iotlb)
    }

    pub fn look_ahead(&mut self, iotlb: &Iotlb, wanted: Wanted, ahead: &mut Ahead) {
        self.ring.look_ahead(&self.mem, iotlb, wanted, ahead);
    }

    pub fn take(&mut self) -> Take<'_, &M> {
        if self.ring.is_packed() {
            Take::Packed(self.ring.take(&self.mem))
        } else {
            Take::Split(self.ring.take(&self.mem))
        }
    }

    pub fn is_empty(&mut self) -> bool {
        self.ring.is_empty(&self.mem)
    }

    pub fn publish(&mut self) -> Result<(), Fault> {
        self.ring.publish(&self.mem)
    }

    pub fn wants_call(&mut self) -> Result<bool, Fault> {
        self.ring.wants_call(&self.mem)
    }

    pub fn disable_kicks(&mut self) -> Result<(), Fault> {
        self.ring.disable_kicks(&self.mem)
    }

    pub fn enable_kicks(&mut self) -> Result<bool, Fault> {
        self.ring.enable_kicks(&self.mem)
    }
}

impl<M> Deref for Vring<M> {
    type Target = vring::Vring;

    fn deref(&self) -> &vring::Vring {
        &self.ring
    }
}

impl<M> DerefMut for Vring<M> {
    fn deref_mut(&mut self) -> &mut vring::Vring {
        &mut self.ring
    }
}
