// SPDX-License-Identifier: GPL-2.0

//! The device IOTLB, against a list of what the owner said.

use kernel::prelude::*;
use proptest::prelude::*;
use vhost_net_host_tests::{
    cases::iotlb::{case, check},
    config,
    memtable::{Access, Hint, Iotlb, Iova, Segments},
    usermem::UserAddr,
};

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn does_as_the_list(case in case()) {
        check(&case)?;
    }
}

/// As many as it may have, and one more: the oldest goes, not the one that starts first.
#[test]
fn the_oldest_goes() {
    let mut iotlb = Iotlb::new(3);
    let has = |iotlb: &Iotlb, addr| {
        let mut out = Segments::new().unwrap();
        let addr = Iova::new(addr);
        iotlb
            .maps()
            .translate(addr, 1, Access::Read, &mut Hint::new().unwrap(), &mut out)
            .is_ok()
    };
    let starts = [0x3000, 0x1000, 0x2000, 0x4000, 0x500];
    for (i, start) in starts.iter().enumerate() {
        iotlb
            .update(Iova::new(*start), 0x100, UserAddr::new(0), 1)
            .unwrap();
        for (j, start) in starts.iter().enumerate() {
            assert_eq!(has(&iotlb, *start), j <= i && j + 3 > i, "{j} after {i}");
        }
    }
}

/// Also a map of which only the first address, or the last, is in what is taken back.
#[test]
fn an_end_is_enough_to_be_taken_back() {
    for (start, size, stays) in [
        (0x10f, 1, false),
        (0x10f, 0x20, false),
        (0x110, 0x20, true),
        (0xf0, 0x11, false),
        (0xf0, 0x10, true),
    ] {
        let mut iotlb = Iotlb::new(4);
        (iotlb.update(Iova::new(0x100), 0x10, UserAddr::new(0), 3)).unwrap();
        iotlb.invalidate(Iova::new(start), size).unwrap();
        let mut out = Segments::new().unwrap();
        let (first, mut hint) = (Iova::new(0x100), Hint::new().unwrap());
        let got = (iotlb.maps()).translate(first, 1, Access::Read, &mut hint, &mut out);
        assert_eq!(got.is_ok(), stays, "{size:#x} from {start:#x}");
    }
}

/// Nothing that covers all 2^64 addresses can be said, but all except one.
#[test]
fn nearly_all_of_the_address_space() {
    let mut iotlb = Iotlb::new(2);
    let mut update = |first, size| iotlb.update(Iova::new(first), size, UserAddr::new(first), 3);
    assert_eq!(update(0, 0), Err(EFAULT));
    assert_eq!(update(1, 0), Err(EFAULT));
    assert_eq!(update(2, u64::MAX), Err(EFAULT));
    assert_eq!(update(1, u64::MAX), Ok(()));
    assert_eq!(update(0, u64::MAX), Ok(()));
    let mut out = Segments::new().unwrap();
    let last_two = Iova::new(u64::MAX - 1);
    let mut hint = Hint::new().unwrap();
    let got = (iotlb.maps()).translate(last_two, 2, Access::Read, &mut hint, &mut out);
    assert_eq!(got, Ok(()));
    assert_eq!(out.len(), 2);
}
