// SPDX-License-Identifier: GPL-2.0

//! A look ahead, through the ring of a driver that keeps no rule.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_net_host_tests::cases::ahead;

fuzz_target!(|bytes: &[u8]| vhost_net_fuzz::run(bytes, vhost_net_fuzz::ahead, ahead::check));
