// SPDX-License-Identifier: GPL-2.0

//! The ring code of the module, compiled for the build machine, and what its tests need.
//!
//! What is in `driver` are the very files that the kernel module is made of, over the stand-in for the
//! kernel crate in `kernel/`. The tests are in `tests/`, one file a subject.
//!
//! Each run of the property tests makes the same cases. `PROPTEST_RNG_SEED=N` makes others, and
//! `PROPTEST_CASES=N` another number of them; `PROPTEST_SHARE=N` one of N.
//!
//! A test that can't fail proves nothing. These mistakes in the ring code were each tried, and each made
//! tests fail: a comparison off by one (every bound of `translate`, `mark`, `read_avail_idx`, `follow`,
//! `follow_indirect`, `publish`, `read_heads` and `passed_event`), a check left out (an empty region, a
//! wrap, a nested or a ragged table, readable behind writable, a chain that is available twice), a
//! barrier left out, a hint trusted where regions overlap, entries kept over a new base, a [`Take`] that
//! gives back too little, and a length in the wrong byte order; and with chains used in order, an entry in the
//! wrong place, for too few chains or of the wrong one, and a descriptor lost when chains are given back; and
//! with the IOTLB, a map that is not linked to those before it, a hint trusted where another map comes first,
//! the wrong map retired, a permission not checked or the wrong one, a range that goes around, a change without
//! a new generation, a ring that is not found again, or is used before it was, a field read across pieces, a
//! miss that names another address or none, a message that comes out of order or is answered before it was
//! read, and a log of only one of the places that memory is in; and where it looks ahead, a page that is left
//! out or told twice, what is needed next taken for what is not and the other way round, a queue that is woken at
//! each answer, and a slot that is guessed at when its map has gone.
//!
//! [`Take`]: ring::Take

// A folder of modules, as the kernel module's root is, so that each finds the files of its room.
#[path = "../../.."]
mod driver {
    #[path = "sys/compat.rs"]
    pub mod compat;
    pub mod features;
    pub mod list;
    pub mod log;
    pub mod memtable;
    #[path = "vhost/misses.rs"]
    pub mod messages;
    pub mod uapi;
    pub mod usermem;
    pub mod vring;
}

pub use driver::{features, list, log, memtable, messages, uapi, usermem, vring};

pub mod cases;
pub mod mem;
pub mod model;
pub mod packed;
pub mod pair;
pub mod ring;

/// Of `sys/` what any file may use.
pub mod sys {
    pub use super::driver::compat;
}

use kernel::prelude::*;
use memtable::{Iotlb, Iova, Update};
use proptest::test_runner::{Config, RngSeed};
use usermem::UserAddr;

/// An owner's.
pub trait Tell {
    /// Adds a map.
    fn tell(&mut self, addr: Iova, size: u64, user: UserAddr, perm: u8) -> Result;
}

impl Tell for Iotlb {
    fn tell(&mut self, addr: Iova, size: u64, user: UserAddr, perm: u8) -> Result {
        self.update(Update::new(addr, size, user, perm)?)
    }
}

/// The configuration of a property test that runs `cases` times.
pub fn config(cases: u32) -> Config {
    let mut config = Config {
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        let share = std::env::var("PROPTEST_SHARE").ok();
        let share = share.map_or(1, |share| {
            share.parse().expect("PROPTEST_SHARE is no number")
        });
        config.cases = cases.div_ceil(share);
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(0x7665_7462);
    }
    config
}
