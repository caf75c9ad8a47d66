// SPDX-License-Identifier: GPL-2.0

//! What happened, counted in memory that outlives who counts.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use kselftest::Res;

use crate::sys::shared;

/// Results that are counted by themselves: 0 and the errnos.
const RESULTS: usize = 134;

/// What is asked of the device, by name.
pub const CALLS: &[&str] = &[
    "SET_BACKEND tap",
    "SET_BACKEND other tap",
    "SET_BACKEND packet socket",
    "SET_BACKEND none",
    "SET_BACKEND no socket",
    "SET_MEM_TABLE",
    "SET_FEATURES",
    "SET_FEATURES_ARRAY",
    "SET_LOG_BASE",
    "SET_LOG_FD",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "SET_VRING_ENDIAN",
    "SET_VRING_BUSYLOOP_TIMEOUT",
    "GET_* of the device",
    "SET_BACKEND_FEATURES",
    "SET_FORK_FROM_OWNER",
    "SET_OWNER",
    "RESET_OWNER",
    "IOTLB update",
    "IOTLB invalidate",
    "IOTLB answer",
    "wild message",
    "read a message",
    "unknown ioctl",
];

/// Numbers of `CALLS`.
pub mod call {
    pub const TAP: usize = 0;
    pub const OTHER_TAP: usize = 1;
    pub const PACKET: usize = 2;
    pub const NONE: usize = 3;
    pub const NO_SOCKET: usize = 4;
    pub const MEM_TABLE: usize = 5;
    pub const FEATURES: usize = 6;
    pub const FEATURES_ARRAY: usize = 7;
    pub const LOG_BASE: usize = 8;
    pub const LOG_FD: usize = 9;
    pub const NUM: usize = 10;
    pub const ADDR: usize = 11;
    pub const BASE: usize = 12;
    pub const GET_BASE: usize = 13;
    pub const KICK: usize = 14;
    pub const CALL: usize = 15;
    pub const ERR: usize = 16;
    pub const ENDIAN: usize = 17;
    pub const BUSYLOOP: usize = 18;
    pub const GET: usize = 19;
    pub const BACKEND_FEATURES: usize = 20;
    pub const FORK: usize = 21;
    pub const OWNER: usize = 22;
    pub const RESET: usize = 23;
    pub const UPDATE: usize = 24;
    pub const INVALIDATE: usize = 25;
    pub const ANSWER: usize = 26;
    pub const WILD_MESSAGE: usize = 27;
    pub const READ: usize = 28;
    pub const UNKNOWN: usize = 29;
}

/// All counts.
#[repr(C)]
pub struct Counts {
    /// The child has set its first device up.
    pub ready: AtomicU64,
    /// The child is to end by itself.
    pub leave: AtomicU64,
    /// Why the child could not go on: its own fault, not the device's.
    pub trouble: AtomicU64,
    /// Packets that the taps got from the guest.
    pub sent: AtomicU64,
    /// Packets that the taps gave to the guest's device.
    pub received: AtomicU64,
    /// Packets that were sent to the taps from the other side.
    pub flood: AtomicU64,
    /// Entries of used rings.
    pub used: [AtomicU64; 2],
    /// Signals at the error eventfds: a queue stopped.
    pub stops: [AtomicU64; 2],
    /// Rings that were filled, and writes to them at random.
    pub steps: AtomicU64,
    pub pokes: AtomicU64,
    calls: [[AtomicU64; RESULTS]; CALLS.len()],
}

impl Counts {
    /// New ones, all 0, that children share.
    pub fn new() -> Res<&'static Self> {
        let p = shared(size_of::<Self>())?;
        // SAFETY: zeroes are a value of it; the memory is never taken away.
        Ok(unsafe { &*p.cast::<Self>() })
    }

    /// Counts a result of one of [`CALLS`].
    pub fn call(&self, call: usize, errno: i32) -> i32 {
        let result = (errno.unsigned_abs() as usize).min(RESULTS - 1);
        self.calls[call][result].fetch_add(1, Relaxed);
        errno
    }

    /// How often one of [`CALLS`] succeeded.
    pub fn good(&self, call: usize) -> u64 {
        self.calls[call][0].load(Relaxed)
    }

    pub fn print(&self) {
        for (name, results) in CALLS.iter().zip(&self.calls) {
            let seen: BTreeMap<_, _> = (results.iter().enumerate())
                .map(|(errno, n)| (errno, n.load(Relaxed)))
                .filter(|(_, n)| *n > 0)
                .collect();
            let all: Vec<_> = (seen.iter())
                .map(|(&errno, n)| match errno {
                    0 => format!("{n} good"),
                    e => format!("{n} errno {e}"),
                })
                .collect();
            println!("# {name}: {}", all.join(", "));
        }
    }
}
