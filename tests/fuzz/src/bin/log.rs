// SPDX-License-Identifier: GPL-2.0

//! The dirty log.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_net_host_tests::cases::log;

fuzz_target!(|bytes: &[u8]| vhost_net_fuzz::run(bytes, vhost_net_fuzz::log, log::check));
