// SPDX-License-Identifier: GPL-2.0

//! A driver of a packed ring that keeps no rule, also with memory that changes under the device.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_net_host_tests::cases::packed;

fuzz_target!(|bytes: &[u8]| vhost_net_fuzz::run(bytes, vhost_net_fuzz::packed, packed::check));
