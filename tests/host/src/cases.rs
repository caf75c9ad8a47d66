// SPDX-License-Identifier: GPL-2.0

//! Cases that proptest or a fuzzer makes, and what must hold of each.

pub mod ahead;
pub mod hostile;
pub mod iotlb;
pub mod log;
pub mod messages;
pub mod packed;
