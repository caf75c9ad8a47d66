// SPDX-License-Identifier: GPL-2.0

//! A VMM and a guest in one process, for tests of `/dev/vhost-net`.
//!
//! A test builds a [`Guest`] (memory, two virtqueues, a tap in a network namespace of its own and a
//! packet socket as the other end of the wire), moves frames through the driver and compares what
//! arrived. A guest of this kind follows the rules of the virtio specification to the letter: it kicks
//! only when the device asks for it and sleeps until the device calls. So a lost notification, in
//! either direction, makes a test fail instead of making it slow.
//!
//! Nothing here passes or fails by the clock; the time-outs only turn a hang into a failure.

pub mod cgroup;
pub mod counters;
pub mod dirty;
pub mod fault;
pub mod guest;
pub mod iotlb;
pub mod ktap;
pub mod mem;
pub mod net;
pub mod packed;
pub mod ring;
pub mod rings;
pub mod sys;
pub mod task;
pub mod tracefs;
pub mod traffic;

use std::time::Duration;
use std::time::Instant;

pub use guest::Config;
pub use guest::Guest;
pub use guest::RX;
pub use guest::TX;
pub use ktap::Fail;
pub use ktap::Res;
pub use mem::Mem;
pub use net::frame;
pub use net::Peer;
pub use net::Tap;
pub use ring::Ring;
pub use ring::Seg;
pub use traffic::Traffic;

/// Feature bits, by number.
pub mod feature {
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    pub const LOG_ALL: u64 = 1 << 26;
    /// The driver, not the backend, supplies the virtio-net header.
    pub const VHOST_NET_HDR: u64 = 1 << 27;
    pub const ANY_LAYOUT: u64 = 1 << 27;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    pub const RING_PACKED: u64 = 1 << 34;
    pub const IN_ORDER: u64 = 1 << 35;
    /// Of the second word (65): large packets in UDP tunnels to the guest.
    pub const GUEST_TUNNEL: u64 = 1 << 1;
    /// Of the second word (67): such packets from the guest.
    pub const HOST_TUNNEL: u64 = 1 << 3;
}

/// How long a test waits for something that must happen. Generous: the machine may be emulated and shared. Where most tests are
/// to fail (tests/mutants), PATIENCE says how many seconds.
pub fn patience() -> Duration {
    let default = if sys::on_debug_kernel() { 100 } else { 20 };
    let said = std::env::var("PATIENCE").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(said.unwrap_or(default))
}

/// When a test that begins to wait now has waited long enough.
pub fn deadline() -> Instant {
    Instant::now() + patience()
}

/// How much of something a test does that is long on the base kernel: there a stream is long to meet what is rare. On the
/// debug kernel, which takes several times as long for everything, what counts is that every path is taken.
pub fn amount(count: u32) -> u32 {
    if sys::on_debug_kernel() {
        (count / 20).max(count.min(100))
    } else {
        count
    }
}

/// The same of a list: the first, and some of the others.
pub fn some<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all.iter()
        .step_by(if sys::on_debug_kernel() { 3 } else { 1 })
}

/// As [`some`], but from the one at `from` on, so that several lists have different ones.
pub fn some_from<T>(from: usize, all: &[T]) -> impl Iterator<Item = &T> {
    let debug = sys::on_debug_kernel();
    all.iter()
        .cycle()
        .skip(if debug { from % all.len() } else { 0 })
        .take(all.len())
        .step_by(if debug { 3 } else { 1 })
}

/// Fails the test, with a reason, unless the condition holds.
#[macro_export]
macro_rules! check {
    ($cond:expr) => {
        if !$cond {
            return Err($crate::Fail::at(file!(), line!(), concat!("not so: ", stringify!($cond)).to_string()));
        }
    };
    ($cond:expr, $($arg:tt)*) => {
        if !$cond {
            return Err($crate::Fail::at(file!(), line!(), format!($($arg)*)));
        }
    };
}

/// Fails the test unless both values are equal.
#[macro_export]
macro_rules! check_eq {
    ($got:expr, $want:expr) => {
        $crate::check_eq!($got, $want, "{}", stringify!($got))
    };
    ($got:expr, $want:expr, $($arg:tt)*) => {{
        let (got, want) = (&$got, &$want);
        if *got != *want {
            return Err($crate::Fail::at(
                file!(),
                line!(),
                format!("{}: got {:?}, want {:?}", format!($($arg)*), got, want),
            ));
        }
    }};
}

/// Fails the test.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => {
        return Err($crate::Fail::at(file!(), line!(), format!($($arg)*)))
    };
}
