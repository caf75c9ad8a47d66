// SPDX-License-Identifier: GPL-2.0

//! A ring with the memory that it is in.
//!
//! The module's [`Vring`](crate::vring::Vring) is given user memory at each call, for in the kernel it
//! may not keep any. Here the memory is there all the time.

use crate::{
    memtable::{Ahead, Iotlb},
    usermem::UserMemory,
    vring::{self, Endian, Fault, RingAddrs, Take, Wanted},
};
use kernel::prelude::*;
use std::ops::{Deref, DerefMut};

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
        self.ring.take(&self.mem)
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
