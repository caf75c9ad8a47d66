// SPDX-License-Identifier: GPL-2.0

//! The misses that a device tells its owner, against a list of them.

use kernel::prelude::*;
use proptest::prelude::*;
use vhost_net_host_tests::{
    cases::messages::{ahead, case, check},
    config,
    memtable::{Iova, MAX_AHEAD},
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
    let mut misses: Misses<2> = Misses::new().unwrap();
    let one = |addr| ahead(&[(addr, false)], 1);
    assert!(misses.wait_for(1, &one(10), uapi::IOTLB_MSG, false));
    let (_, number) = misses.read().unwrap();
    assert!(misses.wait_for(0, &one(20), uapi::IOTLB_MSG, false));
    misses.unread(number);
    // Nobody knows of it: it can't have been answered.
    misses.answer(Iova::new(0), u64::MAX, |_| panic!("an answer to nothing"));
    let mut next = || misses.read().map(|(message, _)| message.iotlb.iova);
    assert_eq!([next(), next(), next()], [Some(10), Some(20), None]);
}

/// All that a queue misses is told before the first answer, each page once, up to a limit; and the queue goes on
/// when it has what it needs next, not before, and no more than once.
#[test]
fn all_pages_before_the_first_answer() {
    let mut misses: Misses<2> = Misses::new().unwrap();
    let pages: Vec<_> = (0..200u64).map(|i| (i / 2 * 4096 + i % 2, false)).collect();
    let list = ahead(&pages, 34);
    assert!(misses.wait_for(1, &list, uapi::IOTLB_MSG_V2, false));
    let mut told = vec![];
    while let Some((message, _)) = misses.read() {
        told.push(message.iotlb.iova);
    }
    let want: Vec<_> = (0..MAX_AHEAD as u64).map(|i| i * 4096).collect();
    assert_eq!(told, want);
    // It comes upon the same, and nothing is told twice.
    assert!(!misses.wait_for(1, &list, uapi::IOTLB_MSG_V2, false));
    let mut woken = vec![];
    for (i, page) in told.iter().enumerate().rev() {
        misses.answer(Iova::new(*page), 4096, |queue| woken.push((queue, i)));
        misses.answer(Iova::new(*page), 4096, |_| panic!("a second answer"));
    }
    assert_eq!(woken, [(1, 0)]);
    assert!(misses.read().is_none());
    // Of seventeen pages that are needed the last answer matters, whichever it is.
    assert!(misses.wait_for(1, &list, uapi::IOTLB_MSG_V2, false));
    while misses.read().is_some() {}
    let mut woken = vec![];
    for i in (0..17).rev().chain(17..40) {
        misses.answer(Iova::new(want[i]), 4096, |_| woken.push(i));
    }
    assert_eq!(woken, [0]);
}

/// What a kick asks for again is what is needed next; what an invalidation covers is asked for again without one.
#[test]
fn what_is_asked_again() {
    let mut misses: Misses<2> = Misses::new().unwrap();
    let list = ahead(&[(0, false), (4096, false), (8192, true), (12288, true)], 2);
    let wait = |misses: &mut Misses<2>, again| {
        let any = misses.wait_for(0, &list, uapi::IOTLB_MSG, again);
        let told: Vec<_> = std::iter::from_fn(|| misses.read())
            .map(|(message, _)| message.iotlb.iova / 4096)
            .collect();
        assert_eq!(any, !told.is_empty());
        told
    };
    assert_eq!(wait(&mut misses, false), [0, 1, 2, 3]);
    assert!(wait(&mut misses, false).is_empty());
    assert_eq!(wait(&mut misses, true), [0, 1]);
    misses.invalidate(Iova::new(0x1000), 0x1001);
    assert_eq!(wait(&mut misses, false), [1, 2]);
    assert!(wait(&mut misses, false).is_empty());
    misses.invalidate(Iova::new(0x1000), 0x1000);
    assert_eq!(wait(&mut misses, false), [1]);
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
