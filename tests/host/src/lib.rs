// SPDX-License-Identifier: GPL-2.0

//! The ring code of the module, compiled for the build machine, and what its tests need.
//!
//! `features` to `vring` are the very files that the kernel module is made of, over the stand-in for the
//! kernel crate in `kernel/`. The tests are in `tests/`, one file a subject.
//!
//! Each run of the property tests makes the same cases. `PROPTEST_RNG_SEED=N` makes others, and
//! `PROPTEST_CASES=N` another number of them.
//!
//! A test that can't fail proves nothing. These mistakes in the ring code were each tried, and each made
//! tests fail: a comparison off by one (every bound of `translate`, `mark`, `read_avail_idx`, `follow`,
//! `follow_indirect`, `publish`, `read_heads` and `passed_event`), a check left out (an empty region, a
//! wrap, a nested or a ragged table, readable behind writable, a chain that is available twice), a
//! barrier left out, a hint trusted where regions overlap, entries kept over a new base, a [`Take`] that
//! gives back too little, and a length in the wrong byte order; and with chains used in order, an entry in the
//! wrong place, for too few chains or of the wrong one, and a descriptor lost when chains are given back.
//!
//! [`Take`]: vring::Take

#[path = "../../../features.rs"]
pub mod features;
#[path = "../../../log.rs"]
pub mod log;
#[path = "../../../memtable.rs"]
pub mod memtable;
#[path = "../../../messages.rs"]
pub mod messages;
#[path = "../../../uapi.rs"]
pub mod uapi;
#[path = "../../../usermem.rs"]
pub mod usermem;
#[path = "../../../vring.rs"]
pub mod vring;

pub mod cases;
pub mod mem;
pub mod model;
pub mod pair;

use proptest::test_runner::{Config, RngSeed};

/// The configuration of a property test that runs `cases` times.
pub fn config(cases: u32) -> Config {
    let mut config = Config {
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(0x7665_7462);
    }
    config
}
