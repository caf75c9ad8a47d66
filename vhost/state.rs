// SPDX-License-Identifier: GPL-2.0

//! What the owner set for the whole device.

#![forbid(unsafe_code)]

use super::{
    worker::Run,
    workers::Workers, //
};
use crate::{
    memtable::{
        Iotlb,
        MemTable, //
    },
    sys::eventfd::EventFdCtx, //
};
use kernel::{
    mm::MmWithUser,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        Mutex, //
    }, //
};

/// The process that a device belongs to, and what works for it.
pub(super) struct Owner<R: Run> {
    pub(super) mm: ARef<MmWithUser>,
    pub(super) workers: Workers<R>,
}

/// What the owner set for the whole device.
pub struct State<R: Run> {
    pub(super) owner: Option<Owner<R>>,
    pub(super) mem: Option<Arc<MemTable>>,
    pub(super) iotlb: Option<Arc<Mutex<Iotlb>>>,
    /// How many updates of that may be put off, for which it has room.
    pub(super) late_room: usize,
    /// A power of two that the ends of all its maps are multiples of; without a map, any number.
    pub(super) grain: u64,
    pub(super) log_event: Option<Arc<EventFdCtx>>,
    /// Workers are threads of the process that makes them.
    pub(super) fork: bool,
}

impl<R: Run> State<R> {
    /// Nothing is set.
    pub(super) fn new() -> Self {
        Self {
            owner: None,
            mem: None,
            iotlb: None,
            late_room: 0,
            grain: u64::MAX,
            log_event: None,
            // Without the option to choose, it is one of the owner's.
            fork: cfg!(not(CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL))
                || crate::parameters::fork_from_owner_default(),
        }
    }

    /// Whether the device has an owner.
    pub fn has_owner(&self) -> bool {
        self.owner.is_some()
    }

    /// Fails with [`EPERM`] unless the current task shares the owner's memory.
    pub fn check_owner(&self) -> Result {
        let current = current!();
        match (&self.owner, current.mm()) {
            (Some(owner), Some(mm)) if core::ptr::eq(&*owner.mm, mm) => Ok(()),
            _ => Err(EPERM),
        }
    }
}
