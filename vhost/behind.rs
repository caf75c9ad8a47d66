// SPDX-License-Identifier: GPL-2.0

//! What a device needs once its driver is behind an IOMMU. Most are not, and have none of it.

#![forbid(unsafe_code)]

use super::{
    misses::{
        Misses,
        MAX_LATE, //
    },
    work::QUEUES, //
};
use crate::memtable::{
    Ahead,
    Iotlb, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// An IOTLB, and room for what it does not know.
pub(super) struct Behind {
    pub(super) iotlb: Arc<Mutex<Iotlb>>,
    pub(super) misses: Misses<QUEUES>,
    /// For each queue.
    pub(super) ahead: [Ahead; QUEUES],
}

impl Behind {
    /// Makes an empty one. Fails with [`EINVAL`] if an IOTLB may have no maps, and with [`ENOMEM`].
    pub(super) fn new() -> Result<Self> {
        let limit = crate::parameters::max_iotlb_entries();
        let limit = usize::try_from(limit).ok().filter(|&limit| limit > 0);
        let mut iotlb = Iotlb::new(limit.ok_or(EINVAL)?);
        iotlb.make_room(MAX_LATE)?;
        Ok(Self {
            iotlb: Arc::pin_init(new_mutex!(iotlb, "vhost_iotlb"), GFP_KERNEL_ACCOUNT)?,
            misses: Misses::new()?,
            ahead: [Ahead::new()?, Ahead::new()?],
        })
    }
}
