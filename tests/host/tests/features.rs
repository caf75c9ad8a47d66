// SPDX-License-Identifier: GPL-2.0

//! Sets of feature bits, against a number of 128 bits.

use proptest::{collection::vec, prelude::*};
use vhost_net_host_tests::{config, features::Features};

fn number(words: [u64; 2]) -> u128 {
    u128::from(words[0]) | u128::from(words[1]) << 64
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn a_set_of_bits(bits in vec(0..128u32, 0..20), more in vec(0..128u32, 0..3)) {
        let set = Features::of(&bits);
        let want = bits.iter().fold(0, |set, bit| set | 1u128 << bit);
        prop_assert_eq!(number(set.words()), want);
        prop_assert_eq!(Features::from_words(set.words()), set);
        for bit in 0..200 {
            prop_assert_eq!(set.has(bit), want.checked_shr(bit).unwrap_or(0) & 1 == 1);
        }
        // Of a larger set it is one, and of any other if that has all of it.
        let other = Features::of(&more);
        let both = Features::of(&[bits, more].concat());
        prop_assert!(set.is_subset_of(&both) && other.is_subset_of(&both));
        let within = want & !number(other.words()) == 0;
        prop_assert_eq!(set.is_subset_of(&other), within);
        prop_assert_eq!(both.is_subset_of(&set), number(other.words()) & !want == 0);
    }
}
