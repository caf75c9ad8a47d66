// SPDX-License-Identifier: GPL-2.0

//! What happened, counted in memory that outlives who counts.

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
    "NEW_WORKER",
    "FREE_WORKER",
    "ATTACH_VRING_WORKER",
    "GET_VRING_WORKER",
];

/// What a driver in the field, or its VMM, was reported to do.
pub const KINDS: &[&str] = &[
    "chains of 5 MiB",
    "packets shorter than a header",
    "buffers that may be out of reach",
    "misses left without an answer",
    "backends without Ethernet headers",
    "queues that poll",
];

/// Numbers of `KINDS`.
pub mod kind {
    pub const HUGE: usize = 0;
    pub const SHORT: usize = 1;
    pub const HOLE: usize = 2;
    pub const UNANSWERED: usize = 3;
    pub const TUN: usize = 4;
    pub const POLLING: usize = 5;
}

/// How many places of rings are remembered.
const PLACES: usize = 512;

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
    pub const NEW_WORKER: usize = 30;
    pub const FREE_WORKER: usize = 31;
    pub const ATTACH_WORKER: usize = 32;
    pub const GET_WORKER: usize = 33;
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
    /// Those of them that were packed.
    pub packed: [AtomicU64; 2],
    /// Signals at the error eventfds: a queue stopped.
    pub stops: [AtomicU64; 2],
    /// Rings that were filled, and writes to them at random.
    pub steps: AtomicU64,
    pub pokes: AtomicU64,
    /// Packets of each of [`KINDS`], and what a VMM does that makes such.
    pub kinds: [AtomicU64; KINDS.len()],
    calls: [[AtomicU64; RESULTS]; CALLS.len()],
    /// Where used rings were: how many, and of the last the address and the number of entries.
    placed: AtomicU64,
    places: [[AtomicU64; 2]; PLACES],
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

    /// How often one of [`CALLS`] ended so: 0 or the errno.
    pub fn seen(&self, call: usize, errno: i32) -> u64 {
        self.calls[call][errno as usize].load(Relaxed)
    }

    /// Whether one of [`CALLS`] ended so, and never in another way.
    pub fn only(&self, call: usize, errno: i32) -> bool {
        let n = self.seen(call, errno);
        n > 0 && n == self.all(call)
    }

    /// How often one of [`CALLS`] was made.
    fn all(&self, call: usize) -> u64 {
        self.calls[call].iter().map(|n| n.load(Relaxed)).sum()
    }

    /// Counts one of [`KINDS`].
    pub fn kind(&self, kind: usize) {
        self.kinds[kind].fetch_add(1, Relaxed);
    }

    /// One of [`KINDS`] that never was.
    pub fn missing_kind(&self) -> Option<&'static str> {
        let mut all = KINDS.iter().zip(&self.kinds);
        all.find(|(_, n)| n.load(Relaxed) == 0)
            .map(|(name, _)| *name)
    }

    /// Remembers that there is a used ring.
    pub fn place(&self, used: u64, num: u16) {
        let place = &self.places[self.placed.fetch_add(1, Relaxed) as usize % PLACES];
        place[0].store(used, Relaxed);
        place[1].store(num.into(), Relaxed);
    }

    /// Forgets where there were rings.
    pub fn forget_places(&self) {
        for place in &self.places {
            place[0].store(0, Relaxed);
        }
    }

    /// How many entries each used ring had that ended less than an entry before this byte.
    pub fn rings_before(&self, hva: u64) -> Vec<u64> {
        let nums = self.places.iter().filter_map(|place| {
            let (used, num) = (place[0].load(Relaxed), place[1].load(Relaxed));
            let end = used + 4 + 8 * num;
            (used != 0 && (end..end + 8).contains(&hva)).then_some(num)
        });
        nums.collect()
    }

    /// All calls in a line.
    pub fn sum(&self) -> String {
        let good: u64 = (0..CALLS.len()).map(|call| self.seen(call, 0)).sum();
        let made: u64 = (0..CALLS.len()).map(|call| self.all(call)).sum();
        let never: Vec<_> = (0..CALLS.len())
            .filter(|call| ![call::NO_SOCKET, call::UNKNOWN].contains(call))
            .filter(|call| self.seen(*call, 0) == 0)
            .map(|call| CALLS[call])
            .collect();
        let each = match never.is_empty() {
            true => "each of them good at least once".into(),
            false => format!("never good: {}", never.join(", ")),
        };
        format!("{good} good, {} refused; {each}", made - good)
    }

    /// How often one of [`CALLS`] ended how.
    pub fn results(&self, call: usize) -> String {
        let seen = (0..RESULTS as i32).map(|errno| (errno, self.seen(call, errno)));
        let all: Vec<_> = (seen.filter(|(_, n)| *n > 0))
            .map(|(errno, n)| match errno {
                0 => format!("{n} good"),
                e => format!("{n} errno {e}"),
            })
            .collect();
        all.join(", ")
    }

    pub fn print(&self) {
        for (name, count) in KINDS.iter().zip(&self.kinds) {
            println!("# {name}: {}", count.load(Relaxed));
        }
        for (call, name) in CALLS.iter().enumerate() {
            println!("# {name}: {}", self.results(call));
        }
    }
}
