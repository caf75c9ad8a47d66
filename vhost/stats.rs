// SPDX-License-Identifier: GPL-2.0

//! What a queue does, told by who does it: counted here, and traced.
//!
//! Who has the queue locked tells. Who wants to know reads the counters without any lock, at any
//! moment, so numbers that belong together may differ by what is being done; each only ever grows
//! (but for [`Stats::in_flight`]). docs/observing.md is about the names under which they are shown.

#![forbid(unsafe_code)]

use crate::{
    memtable::Miss,
    sys::{
        compat::ENOBUFS,
        counter::{
            Counter,
            Groups, //
        },
        trace, //
    },
    vring::Fault, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Why a packet was lost. Its buffers went back to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It has less than its header and that of an Ethernet, where there has to be one.
    Short,
    /// Its header wants a checksum outside the packet.
    Header,
    /// Its buffers are in user memory that can't be read or written.
    Buffers,
    /// There was no memory for it, several times.
    Memory,
    /// The driver's buffers are too small for it, or the backend takes none so long.
    TooLong,
    /// The backend refused it, or is gone.
    Backend,
}

impl Loss {
    /// All of them, in the order of their values.
    pub const ALL: [Self; 6] = [
        Self::Short,
        Self::Header,
        Self::Buffers,
        Self::Memory,
        Self::TooLong,
        Self::Backend,
    ];

    /// What it is called.
    pub fn name(self) -> &'static CStr {
        match self {
            Self::Short => c"short",
            Self::Header => c"header",
            Self::Buffers => c"buffers",
            Self::Memory => c"memory",
            Self::TooLong => c"too-long",
            Self::Backend => c"backend",
        }
    }

    /// The reason that an error of the backend, or of the copy for it, stands for.
    #[cold]
    pub fn of(err: Error) -> Self {
        match err {
            EFAULT => Self::Buffers,
            ENOMEM | ENOBUFS => Self::Memory,
            EMSGSIZE => Self::TooLong,
            _ => Self::Backend,
        }
    }
}

/// Why a queue stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The ring or a chain is not what the specification allows.
    Malformed,
    /// The ring or a buffer is outside guest memory, or in memory that the owner took away.
    Unreachable,
    /// The IOTLB does not allow the access.
    Denied,
    /// A chain or the ring has too many pieces.
    Pieces,
    /// There was no memory for what the ring needs. It goes on by itself.
    Memory,
}

impl Stop {
    /// All of them, in the order of their values.
    pub const ALL: [Self; 5] = [
        Self::Malformed,
        Self::Unreachable,
        Self::Denied,
        Self::Pieces,
        Self::Memory,
    ];

    /// What it is called.
    pub fn name(self) -> &'static CStr {
        match self {
            Self::Malformed => c"malformed",
            Self::Unreachable => c"unreachable",
            Self::Denied => c"denied",
            Self::Pieces => c"pieces",
            Self::Memory => c"memory",
        }
    }

    fn of(fault: &Fault) -> Self {
        match fault.error {
            EFAULT => Self::Unreachable,
            EPERM => Self::Denied,
            ENOBUFS => Self::Pieces,
            ENOMEM => Self::Memory,
            _ => Self::Malformed,
        }
    }
}

/// A counter for each bit of a length: packets of 2^n bytes up to twice as many.
const SIZES: usize = u32::BITS as usize;
/// Packets of less than 64 bytes are shown together,
const FIRST_BIT: usize = 5;
/// and those of 65536 and more.
const LAST_BIT: usize = 16;

/// The packets of a class by their length.
pub struct Class {
    /// The least bytes that they have. They have less than those of the next class.
    pub bytes: u32,
    /// How many there were.
    pub packets: u64,
}

/// What a queue did.
pub struct Stats {
    /// The queue's number.
    queue: u32,
    /// The process that owns the device; 0 if there is none.
    owner: Counter,
    /// Packets that went through.
    pub packets: Counter,
    /// Their bytes, without headers.
    pub bytes: Counter,
    sizes: [Counter; SIZES],
    /// Of the packets that were taken up, those to many.
    pub groups: Groups,
    /// Turns that a kick has caused; several that come close together cause one.
    pub kicks: Counter,
    /// Times that the worker slept until this queue had something to do.
    pub wakeups: Counter,
    /// Times that the worker looked at the queue.
    pub turns: Counter,
    /// Calls that were signalled.
    pub calls: Counter,
    /// Times that buffers were given back without a call, because the driver asked for none.
    pub calls_suppressed: Counter,
    drops: [Counter; Loss::ALL.len()],
    stops: [Counter; Stop::ALL.len()],
    /// Writes to guest memory that could not be logged.
    pub unlogged: Counter,
    /// Addresses that the IOTLB did not know.
    pub misses: Counter,
    /// Times that the queue was polled when it had nothing to do.
    pub polls: Counter,
    /// Those that found something.
    pub poll_hits: Counter,
    /// Packets sent without a copy.
    pub zerocopy_sent: Counter,
    /// Packets that were to go without a copy, and were copied after all, or lost.
    pub zerocopy_copied: Counter,
    /// Packets long enough to go without a copy that were copied at once.
    pub zerocopy_refused: Counter,
    /// Packets that the network stack has, or whose buffers the driver does not have back yet.
    pub in_flight: Counter,
}

impl Stats {
    /// Of queue `index`, which did nothing yet. Fails with [`ENOMEM`].
    pub fn new(index: usize) -> Result<Arc<Self>> {
        let stats = Self {
            queue: index as u32,
            owner: Counter::new(),
            packets: Counter::new(),
            bytes: Counter::new(),
            sizes: [const { Counter::new() }; SIZES],
            groups: Groups::default(),
            kicks: Counter::new(),
            wakeups: Counter::new(),
            turns: Counter::new(),
            calls: Counter::new(),
            calls_suppressed: Counter::new(),
            drops: [const { Counter::new() }; Loss::ALL.len()],
            stops: [const { Counter::new() }; Stop::ALL.len()],
            unlogged: Counter::new(),
            misses: Counter::new(),
            polls: Counter::new(),
            poll_hits: Counter::new(),
            zerocopy_sent: Counter::new(),
            zerocopy_copied: Counter::new(),
            zerocopy_refused: Counter::new(),
            in_flight: Counter::new(),
        };
        Ok(Arc::new(stats, GFP_KERNEL_ACCOUNT)?)
    }

    /// The device has another owner, of this process number; 0 if none.
    pub fn set_owner(&self, pid: i32) {
        self.owner.set(u64::from(pid.unsigned_abs()));
    }

    /// The process that owns the device, by its number in the first namespace; 0 if there is none.
    pub fn owner(&self) -> i32 {
        self.owner.get() as i32
    }

    /// A packet of `len` bytes went through.
    #[inline(always)]
    pub fn moved(&self, len: usize) {
        self.packets.add(1);
        self.bytes.add(len as u64);
        self.took(len);
    }

    /// A packet of `len` bytes was taken up.
    #[inline(always)]
    pub fn took(&self, len: usize) {
        let bit = (len as u32 | 1).ilog2();
        if let Some(size) = self.sizes.get(bit as usize) {
            size.add(1);
        }
    }

    /// The packets that were taken up, by their length, the shortest first.
    pub fn classes(&self) -> impl Iterator<Item = Class> + '_ {
        let sum = |from: usize, to: usize| {
            let sizes = self.sizes.get(from..to).unwrap_or(&[]);
            sizes.iter().map(Counter::get).sum()
        };
        (FIRST_BIT..=LAST_BIT).map(move |bit| match bit {
            FIRST_BIT => Class {
                bytes: 0,
                packets: sum(0, bit + 1),
            },
            LAST_BIT => Class {
                bytes: 1 << bit,
                packets: sum(bit, SIZES),
            },
            _ => Class {
                bytes: 1 << bit,
                packets: sum(bit, bit + 1),
            },
        })
    }

    /// A packet of `len` bytes was lost.
    #[cold]
    pub fn lost(&self, loss: Loss, len: usize) {
        self.lost_many(loss, 1, len);
    }

    /// So many packets were lost, of `len` bytes together.
    #[cold]
    pub fn lost_many(&self, loss: Loss, packets: u64, len: usize) {
        if let Some(drops) = self.drops.get(loss as usize) {
            drops.add(packets);
        }
        trace::drop(self.owner(), self.queue, loss.name(), packets as u32, len);
    }

    /// How many packets were lost for this reason.
    pub fn drops(&self, loss: Loss) -> u64 {
        self.drops.get(loss as usize).map_or(0, Counter::get)
    }

    /// The queue stopped.
    #[cold]
    pub fn stopped(&self, fault: &Fault) {
        if let Some(stops) = self.stops.get(Stop::of(fault) as usize) {
            stops.add(1);
        }
        let (errno, why) = (fault.error.to_errno(), fault.why.text());
        trace::stop(self.owner(), self.queue, errno, why);
    }

    /// How often the queue stopped for this reason.
    pub fn stops(&self, stop: Stop) -> u64 {
        self.stops.get(stop as usize).map_or(0, Counter::get)
    }

    /// All that went wrong: packets that were lost, stops that need somebody's help, and writes
    /// that could not be logged.
    pub fn errors(&self) -> u64 {
        let drops: u64 = self.drops.iter().map(Counter::get).sum();
        let stops = Stop::ALL.into_iter().filter(|&stop| stop != Stop::Memory);
        let stops: u64 = stops.map(|stop| self.stops(stop)).sum();
        drops + stops + self.unlogged.get()
    }

    /// The queue came upon an address that the IOTLB does not know.
    #[cold]
    pub fn missed(&self, miss: &Miss) {
        self.misses.add(1);
        trace::iotlb_miss(
            self.owner(),
            self.queue,
            miss.addr.get(),
            u32::from(miss.access as u8),
        );
    }

    /// The driver was called for all before `used`, or did not want that.
    #[inline]
    pub fn called(&self, signalled: bool, used: impl FnOnce() -> u16) {
        if signalled {
            self.calls.add(1);
        } else {
            self.calls_suppressed.add(1);
        }
        if trace::call_enabled() {
            self.trace_call(used(), signalled);
        }
    }

    #[cold]
    fn trace_call(&self, used: u16, signalled: bool) {
        trace::call(self.owner(), self.queue, used, signalled);
    }

    /// The network stack is done with so many packets, and has [`Self::in_flight`] more.
    pub fn zerocopy_done(&self, sent: u32, copied: u32) {
        let done = u64::from(sent) + u64::from(copied);
        self.in_flight
            .set(self.in_flight.get().saturating_sub(done));
        self.zerocopy_sent.add(u64::from(sent));
        self.zerocopy_copied.add(u64::from(copied));
        let in_flight = self.in_flight.get() as u32;
        trace::zerocopy_done(self.owner(), self.queue, sent, copied, in_flight);
    }

    /// A turn begins, `since` nanoseconds after the kick that has caused it.
    #[inline]
    pub fn began(&self, kicked: bool, ready: bool, woken: bool, since: u64) {
        self.turns.add(1);
        self.kicks.add(u64::from(kicked));
        self.wakeups.add(u64::from(woken));
        if trace::work_enabled() {
            self.trace_work(kicked, ready, woken, since);
        }
    }

    #[cold]
    fn trace_work(&self, kicked: bool, ready: bool, woken: bool, since: u64) {
        let cause = u32::from(kicked) | u32::from(ready) << 1 | u32::from(woken) << 2;
        trace::work(self.owner(), self.queue, cause, since);
    }
}
