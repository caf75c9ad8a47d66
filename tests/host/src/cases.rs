// SPDX-License-Identifier: GPL-2.0

//! Cases that are made of random bytes, by proptest or by a fuzzer, and what must hold of each.

pub mod hostile;
pub mod iotlb;
pub mod log;
pub mod messages;

use crate::pair::Step;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// Checks the case that `strategy` makes if `bytes` are what it gets for random ones; zeroes follow them.
///
/// Panics if the check fails.
pub fn fuzz<S: Strategy>(strategy: S, check: impl Fn(&S::Value) -> Step, bytes: &[u8]) {
    let rng = TestRng::from_seed(RngAlgorithm::PassThrough, bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    if let Ok(tree) = strategy.new_tree(&mut runner) {
        let case = tree.current();
        if let Err(error) = check(&case) {
            panic!("{error}\n{case:#?}");
        }
    }
}
