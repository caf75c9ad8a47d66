// SPDX-License-Identifier: GPL-2.0

//! Counters that one thread adds to while others read them.
//!
//! A kernel atomic costs a call for each access where the kernel's helpers are not inlined. These
//! are plain memory, accessed as C does with `READ_ONCE` and `WRITE_ONCE`.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

use core::cell::UnsafeCell;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// A number that may be read at any time, and is written by one thread at a time: two that add at
/// once may lose what one of them adds, and no more than that.
#[derive(Default)]
#[repr(transparent)]
pub struct Counter(UnsafeCell<u64>);

// SAFETY: Each access is a volatile one of an aligned word, which the kernel's memory model takes
// for an atomic one that orders nothing.
unsafe impl Sync for Counter {}

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    /// The number.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        // SAFETY: The cell is valid and aligned. For a write beside it see `Sync`.
        unsafe { self.0.get().read_volatile() }
    }

    /// Makes it another number.
    #[inline(always)]
    pub fn set(&self, value: u64) {
        // SAFETY: As in `get`.
        unsafe { self.0.get().write_volatile(value) }
    }

    /// Adds to it; it wraps.
    #[inline(always)]
    pub fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }
}

/// How many threads wait for something. Whoever they wait for looks without a call.
pub struct Waiters(Atomic<u32>);

impl Waiters {
    /// None.
    pub const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Has the current thread counted while `wait` waits.
    pub fn during<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.0.fetch_add(1, Relaxed);
        let got = wait();
        self.0.fetch_sub(1, Relaxed);
        got
    }

    /// Whether there are any. It may have changed meanwhile.
    #[inline(always)]
    pub fn any(&self) -> bool {
        // SAFETY: The number is valid and aligned, and others change it atomically.
        unsafe { self.0.as_ptr().read_volatile() != 0 }
    }
}

/// Packets whose Ethernet destination is more than one station.
#[derive(Default)]
pub struct Groups {
    /// To some, but not all.
    pub multicast: Counter,
    /// To all.
    pub broadcast: Counter,
}

impl Groups {
    /// Counts a packet by its destination.
    #[cold]
    pub fn add(&self, destination: [u8; 6]) {
        match destination {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => self.broadcast.add(1),
            [first, ..] if first & 1 != 0 => self.multicast.add(1),
            _ => {}
        }
    }
}
