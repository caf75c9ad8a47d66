// SPDX-License-Identifier: GPL-2.0

//! What the parameters say.
//!
//! Three of them are those of the C driver's other module, `vhost`. A VMM reads there how many
//! memory regions it may name (`/sys/module/vhost/parameters/max_mem_regions`), and an
//! administrator writes `options vhost ...`. That module may be here too, for its other drivers:
//! then what it says counts, so that nobody is told one thing and gets another. Otherwise this
//! module's own do.

#![forbid(unsafe_code)]

use crate::{
    own_parameters as own,
    sys::moduleparam::{
        of_module,
        Param,
        Value, //
    }, //
};
use kernel::str::CStr;

fn value<T: Param>(name: &CStr, own: &Value<T>) -> T {
    of_module(c"vhost", name).unwrap_or_else(|| own.get())
}

/// How many regions a memory table may have. May sleep.
pub fn max_mem_regions() -> u16 {
    value(c"max_mem_regions", &own::max_mem_regions)
}

/// How many mappings a device IOTLB has; none if negative. May sleep.
pub fn max_iotlb_entries() -> i32 {
    value(c"max_iotlb_entries", &own::max_iotlb_entries)
}

/// Whether a worker is a thread of its owner's process if nobody says otherwise. May sleep.
pub fn fork_from_owner_default() -> bool {
    value(c"fork_from_owner_default", &own::fork_from_owner_default)
}

/// Whether the queues of a device have a worker each, and not one for both.
pub fn worker_per_virtqueue() -> bool {
    own::worker_per_virtqueue.get()
}

/// Whether taps are to send from the guest's memory.
pub fn experimental_zcopytx() -> bool {
    own::experimental_zcopytx.get() != 0
}
