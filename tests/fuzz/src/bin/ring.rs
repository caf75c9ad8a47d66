// SPDX-License-Identifier: GPL-2.0

//! A driver that keeps no rule: its ring, chains and indirect tables, also behind an IOTLB.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_net_host_tests::cases::hostile;

fuzz_target!(|bytes: &[u8]| vhost_net_fuzz::run(bytes, vhost_net_fuzz::ring, hostile::check));
