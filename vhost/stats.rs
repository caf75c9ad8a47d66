// SPDX-License-Identifier: GPL-2.0

//! What a queue did.

#![forbid(unsafe_code)]

/// What a queue did. Printed in `fdinfo`; it only ever grows.
#[derive(Default)]
pub struct Stats {
    /// Packets that went through.
    pub packets: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
    /// Kicks that were seen; several that come close together are seen as one.
    pub kicks: u64,
    /// Calls that were signalled.
    pub calls: u64,
    /// Times that buffers were given back without a call, because the driver asked for none.
    pub calls_suppressed: u64,
    /// Packets that were lost, faults that stopped the queue, and writes that could not be logged.
    pub errors: u64,
}
