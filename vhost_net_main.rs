// SPDX-License-Identifier: GPL-2.0

//! The vhost-net driver: `/dev/vhost-net`.

// The ring code is also built on the host, as the public modules of its tests.
#![allow(unreachable_pub)]

mod features;
mod list;
mod log;
mod memtable;
mod parameters;
mod sys;
mod uapi;
mod usermem;
mod vhost;
mod vhost_net;
mod vring;

use kernel::prelude::*;

module! {
    type: Module,
    name: "vhost_net",
    authors: ["The vhost-net in Rust developers"],
    description: "Host kernel accelerator for virtio net, in Rust",
    license: "GPL",
    alias: ["devname:vhost-net", "char-major-10-238"],
}

// DKMS puts no module in the place of the C driver's, whose version is 0.0.1, that is not newer.
sys::moduleparam::module_info!("vhost_net"; "version=0.1");

/// The parameters of this module.
mod own_parameters {
    crate::sys::moduleparam::module_params! {
        "vhost_net";
        max_mem_regions: u16 = 64,
            "Maximum number of memory regions in memory map. (default: 64)";
        max_iotlb_entries: i32 = 2048,
            "Maximum number of iotlb entries. (default: 2048)";
        fork_from_owner_default: bool = true,
            "Set task mode as the default(default: Y)";
        worker_per_virtqueue: bool = false,
            "Make a worker for each virtqueue, not one for both (default: N)";
        experimental_zcopytx: i32 = 0,
            "Enable Zero Copy TX; 1 - Enable; 0 - Disable";
    }
}

/// The loaded module: it has the device node.
#[pin_data]
pub struct Module {
    #[pin]
    _device: sys::miscdev::Registration<vhost::Device<vhost_net::Net>>,
    // Behind the device: what that leaves is waited for here.
    _reaper: sys::reaper::Reaper,
}

impl kernel::InPlaceModule for Module {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _reaper: sys::reaper::Reaper::new()?,
            _device <- sys::miscdev::Registration::new(),
        })
    }
}
