// SPDX-License-Identifier: GPL-2.0

//! Lists of segments.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use vhost_net_host_tests::{
    config,
    mem::{Access, Mem},
    usermem::{write_at, Segment, UserAddr},
};

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn writes_at_an_offset(
        sizes in vec(0..12u64, 0..8),
        offset in prop_oneof![0..70usize, Just(usize::MAX)],
        bytes in vec(1..=255u8, 0..40),
        broken in proptest::option::weighted(0.3, 0..8usize),
    ) {
        let mem = Mem::new();
        let mut segments = Vec::new();
        let mut places = Vec::new();
        for (i, size) in sizes.iter().enumerate() {
            let start = 0x1000 * (8 - i as u64);
            let unmapped = broken == Some(i);
            mem.add(start, *size, if unmapped { Access::Unmapped } else { Access::ReadWrite });
            segments.push(Segment::new(UserAddr::new(start), *size).unwrap());
            places.extend((0..*size).map(|j| (start + j, unmapped)));
        }
        let got = write_at(&mem, &segments, offset, &bytes);
        prop_assert_eq!(mem.violations(), vec![]);

        let rest = places.get(offset..).unwrap_or_default();
        let wanted = &rest[..bytes.len().min(rest.len())];
        let fits = rest.len() >= bytes.len() && !wanted.iter().any(|place| place.1);
        prop_assert_eq!(got, if fits { Ok(()) } else { Err(EFAULT) });
        if fits {
            for (i, (place, _)) in places.iter().enumerate() {
                let want = i.checked_sub(offset).and_then(|i| bytes.get(i)).unwrap_or(&0);
                if let Some(got) = mem.get(*place, 1) {
                    prop_assert_eq!(&got[0], want);
                }
            }
        }
    }
}
