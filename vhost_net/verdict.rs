// SPDX-License-Identifier: GPL-2.0

//! What becomes of a packet that can't be moved.
//!
//! The rule, for both directions and every backend:
//!
//! - What is only this packet's fault costs this packet: it is dropped and counted as an error, its
//!   buffers go back to the guest, empty if they were to receive, and the next packet is moved. So
//!   it is with a packet that is shorter than its header, whose header is nonsense, that the
//!   backend refuses, or whose buffers the owner has unmapped or protected.
//! - A broken ring halts its queue, and the owner is told by the error eventfd: nobody knows what
//!   the rest of it means. So it is with a [fault](crate::vring::Fault): an index, a head or a
//!   chain that is malformed, a buffer outside guest memory, or one for the other direction.
//! - A packet waits only for what comes by itself: room in the backend, which says so, and memory
//!   (or for a packet socket, room in the queue of its interface), for which it is tried a few
//!   times. No packet keeps its queue longer, or a CPU.

#![forbid(unsafe_code)]

use crate::sys::compat::ENOBUFS;
use kernel::prelude::*;

/// What is to be done with a packet after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Drop it: it will not get better.
    Drop,
    /// Wait until the backend is ready for it.
    Wait,
    /// Try it again after a pause: there was no memory.
    Retry,
}

/// How often a packet is tried again for want of memory.
const RETRIES: u32 = 3;

/// A packet longer than that, in bytes, is never tried again: no network takes it, and a backend
/// may say that there is no memory for it.
const LONGEST: usize = 0x2_0000;

impl Verdict {
    /// The verdict on a packet of `len` bytes that failed with `err`. `retries` says how often it was
    /// tried again.
    #[cold]
    pub fn of(err: Error, len: usize, retries: &mut u32) -> Self {
        match err {
            EAGAIN => Self::Wait,
            ENOMEM | ENOBUFS if len <= LONGEST && *retries < RETRIES => {
                *retries += 1;
                Self::Retry
            }
            _ => {
                *retries = 0;
                Self::Drop
            }
        }
    }
}
