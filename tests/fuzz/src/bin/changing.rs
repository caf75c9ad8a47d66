// SPDX-License-Identifier: GPL-2.0

//! As `ring`, with memory that changes under the device. The first bytes say how.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vhost_net_host_tests::cases::hostile;

fuzz_target!(|bytes: &[u8]| {
    if let Some((seed, bytes)) = bytes.split_first_chunk() {
        let check = |case: &_| hostile::check_changing(case, u64::from_le_bytes(*seed));
        vhost_net_fuzz::run(bytes, vhost_net_fuzz::ring, check);
    }
});
