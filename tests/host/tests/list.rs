// SPDX-License-Identifier: GPL-2.0

//! Lists whose room is made before they are used.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use vhost_net_host_tests::{config, list::List};

#[derive(Clone, Debug)]
enum Op {
    Push(u16),
    Pop,
    Truncate(usize),
    Clear,
    Set(usize, u16),
    Grow(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => any::<u16>().prop_map(Op::Push),
        2 => Just(Op::Pop),
        1 => (0..12usize).prop_map(Op::Truncate),
        1 => Just(Op::Clear),
        1 => (0..200usize).prop_map(Op::Grow),
        2 => (0..10usize, any::<u16>()).prop_map(|(at, value)| Op::Set(at, value)),
    ]
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn does_as_a_vector(mut room in 0..9usize, ops in vec(op(), 0..60)) {
        let mut list = List::new(room).unwrap();
        let mut model = Vec::new();
        for op in ops {
            match op {
                Op::Push(value) => {
                    let fits = model.len() < room;
                    prop_assert_eq!(list.push(value), if fits { Ok(()) } else { Err(ENOBUFS) });
                    if fits {
                        model.push(value);
                    }
                }
                Op::Pop => prop_assert_eq!(list.pop(), model.pop()),
                Op::Truncate(len) => {
                    list.truncate(len);
                    model.truncate(len);
                }
                Op::Clear => {
                    list.clear();
                    model.clear();
                }
                Op::Grow(most) => {
                    // To twice as much, or what it begins with; never to less.
                    let to = (2 * room).max(List::<u16>::FIRST).min(most);
                    let grows = to > room;
                    prop_assert_eq!(list.grow(most), if grows { Ok(()) } else { Err(ENOBUFS) });
                    room = room.max(to);
                    prop_assert_eq!(list.room(), room);
                }
                Op::Set(at, value) => {
                    let (there, wanted) = (list.as_mut_slice().get_mut(at), model.get_mut(at));
                    prop_assert_eq!(there.is_some(), wanted.is_some());
                    if let (Some(there), Some(wanted)) = (there, wanted) {
                        (*there, *wanted) = (value, value);
                    }
                }
            }
            prop_assert_eq!(list.as_slice(), &model[..]);
            prop_assert_eq!(list.len(), model.len());
            prop_assert_eq!(list.is_full(), model.len() == room);
            let only = if let [only] = model[..] { Some(only) } else { None };
            prop_assert_eq!(list.only(), only);
        }
    }
}
