// SPDX-License-Identifier: GPL-2.0

//! What the owner tells the IOTLB.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_net_host_tests::cases::iotlb;

fuzz_target!(|bytes: &[u8]| vhost_net_fuzz::run(bytes, vhost_net_fuzz::iotlb, iotlb::check));
