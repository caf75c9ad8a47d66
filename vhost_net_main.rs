// SPDX-License-Identifier: GPL-2.0

//! The vhost-net driver: `/dev/vhost-net`.

// The ring code is also built on the host, as the public modules of its tests.
#![allow(unreachable_pub)]

mod features;
mod log;
mod memtable;
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
    params: {
        max_mem_regions: u16 {
            default: 64,
            description: "Maximum number of memory regions in memory map. (default: 64)",
        },
        max_iotlb_entries: i32 {
            default: 2048,
            description: "Maximum number of iotlb entries. (default: 2048)",
        },
        fork_from_owner_default: bool {
            default: true,
            description: "Set task mode as the default (default: Y)",
        },
        experimental_zcopytx: i32 {
            default: 0,
            description: "Enable Zero Copy TX; 1 - Enable; 0 - Disable",
        },
    },
}

/// The loaded module: it has the device node.
#[pin_data]
pub struct Module {
    #[pin]
    _device: sys::miscdev::Registration<vhost::Device<vhost_net::Net>>,
}

impl kernel::InPlaceModule for Module {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _device <- sys::miscdev::Registration::new(),
        })
    }
}
