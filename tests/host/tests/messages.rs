// SPDX-License-Identifier: GPL-2.0

//! The misses that a device tells its owner, against a list of them.

use kernel::prelude::*;
use proptest::prelude::*;
use vhost_net_host_tests::{
    cases::messages::{case, check},
    config,
    memtable::{Access, Iova, Miss},
    messages::Misses,
    uapi,
};

proptest! {
    #![proptest_config(config(8000))]

    #[test]
    fn does_as_the_list(ops in case()) {
        check(&ops)?;
    }
}

/// What did not reach its reader comes first again, before misses that are younger.
#[test]
fn an_unread_message_keeps_its_place() {
    let mut misses: Misses<2> = Misses::new();
    let miss = |addr| Miss {
        addr: Iova::new(addr),
        access: Access::Read,
    };
    assert!(misses.add(1, miss(10), uapi::IOTLB_MSG, false));
    let (_, number) = misses.read().unwrap();
    assert!(misses.add(0, miss(20), uapi::IOTLB_MSG, false));
    misses.unread(number);
    // Nobody knows of it: it can't have been answered.
    misses.answer(Iova::new(0), u64::MAX, |_| panic!("an answer to nothing"));
    let mut next = || misses.read().map(|(message, _)| message.iotlb.iova);
    assert_eq!([next(), next(), next()], [Some(10), Some(20), None]);
}

/// The layout of `struct vhost_msg` and `struct vhost_msg_v2`, and the numbers of their types.
#[test]
fn the_layout_of_a_message() {
    use core::mem::offset_of;
    use uapi::{IotlbMessage, Message};
    assert_eq!(size_of::<Message>(), 72);
    assert_eq!(offset_of!(Message, kind), 0);
    assert_eq!(offset_of!(Message, iotlb), 8);
    assert_eq!(offset_of!(IotlbMessage, iova), 0);
    assert_eq!(offset_of!(IotlbMessage, size), 8);
    assert_eq!(offset_of!(IotlbMessage, uaddr), 16);
    assert_eq!(offset_of!(IotlbMessage, perm), 24);
    assert_eq!(offset_of!(IotlbMessage, kind), 25);
    assert_eq!((uapi::IOTLB_MSG, uapi::IOTLB_MSG_V2), (1, 2));
    let kinds = [uapi::IOTLB_MISS, uapi::IOTLB_UPDATE, uapi::IOTLB_INVALIDATE];
    assert_eq!(kinds, [1, 2, 3]);
}
