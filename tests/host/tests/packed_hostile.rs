// SPDX-License-Identifier: GPL-2.0

//! A packed ring with a driver that keeps no rule.

use kernel::prelude::*;
use proptest::prelude::*;
use vhost_net_host_tests::{
    cases::packed::{case, check},
    config,
    memtable::{GuestAddr, MemTable, Region, Segments},
    packed::{Layout, DESC, F_AVAIL, F_INDIRECT, F_NEXT, GUEST, TABLES, TABLES_USER},
    usermem::UserAddr,
    vring::Why,
};

proptest! {
    #![proptest_config(config(8000))]

    #[test]
    fn whatever_is_there(case in case()) {
        check(&case)?;
    }
}

/// The longest chain there can be, and one more descriptor; and the same in tables.
#[test]
fn long_chains_end() {
    for num in [1u32, 2, 3, 1000, 32768] {
        let layout = Layout {
            num,
            event_idx: false,
            in_order: false,
            start: 0,
        };
        let mem = layout.memory();
        let mut ring = layout.ring(&mem, 0x8000);
        let put = |i: u32, addr: u64, len: u32, flags: u16| {
            let at = DESC + 16 * u64::from(i);
            mem.put(at, &addr.to_le_bytes());
            let word = u64::from(len) | u64::from(flags | F_AVAIL) << 48;
            mem.put(at + 8, &word.to_le_bytes());
        };
        // Of no bytes, or the list of pieces would end it.
        for i in 0..num {
            put(i, GUEST.start, 0, F_NEXT);
        }
        let table = layout.table();
        let mut out = Segments::new().unwrap();
        mem.reads();
        let got = ring.take().next_chain(table.maps(), &mut out, None);
        assert!(got.is_err());
        assert!(mem.reads().0 <= 2 * u64::from(num));
        put(num - 1, GUEST.start, 0, 0);
        let mut take = ring.take();
        let chain = take.next_chain(table.maps(), &mut out, None).unwrap();
        assert_eq!(chain.unwrap().descriptors, num);
        take.complete();
        ring.publish().unwrap();
        assert_eq!((ring.base(), ring.used_idx()), (0, 0));
        // All of it is available once more, with the counter of the next time around.
        assert!(ring.is_empty());
    }
}

/// The longest table, and one that is longer: as many descriptors as it has are read, or none.
#[test]
fn the_longest_table() {
    let layout = Layout {
        num: 4,
        event_idx: false,
        in_order: false,
        start: 0,
    };
    // The same 64 KiB of user memory, over and over: descriptors of no bytes.
    let (guest, size) = (0x100_0000, 0x1_0000);
    let regions = (0..17u32).map(|i| Region {
        guest: GuestAddr::new(guest + size * u64::from(i)),
        size,
        user: UserAddr::new(TABLES_USER),
    });
    let table = MemTable::new(regions).unwrap();
    for (count, want) in [
        (0x1_0000, Ok(0x1_0000)),
        (0x1_0001, Err((E2BIG, Why::TableLength))),
    ] {
        let mem = layout.memory();
        let mut ring = layout.ring(&mem, 0x8000);
        mem.put(DESC, &guest.to_le_bytes());
        let word = 16 * count | u64::from(F_INDIRECT | F_AVAIL) << 48;
        mem.put(DESC + 8, &word.to_le_bytes());
        let mut out = Segments::new().unwrap();
        let mut take = ring.take();
        let got = take.next_chain(table.maps(), &mut out, None);
        let got = got.map(|chain| chain.unwrap().descriptors);
        assert_eq!(got.map_err(|fault| (fault.error, fault.why)), want);
    }
}

/// A ring full of tables does not keep the device for minutes.
#[test]
fn a_packet_has_so_many_descriptors_and_no_more() {
    let layout = Layout {
        num: 32768,
        event_idx: false,
        in_order: false,
        start: 0,
    };
    let mem = layout.memory();
    let mut ring = layout.ring(&mem, 0x8000);
    for i in 0..100u64 {
        mem.put(DESC + 16 * i, &TABLES.to_le_bytes());
        let word = 16 * 0x4000u64 | u64::from(F_INDIRECT | F_AVAIL) << 48;
        mem.put(DESC + 16 * i + 8, &word.to_le_bytes());
    }
    let table = layout.table();
    let mut out = Segments::new().unwrap();
    mem.reads();
    let mut take = ring.take();
    let mut chains = 0;
    while let Ok(Some(_)) = take.next_chain(table.maps(), &mut out, None) {
        chains += 1;
    }
    assert_eq!(chains, (0x8000 + 0x1_0000) / 0x4000);
    drop(take);
    assert!(mem.reads().0 < 110_000);
    assert_eq!(ring.base(), 0x8000);
}
