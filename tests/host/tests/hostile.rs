// SPDX-License-Identifier: GPL-2.0

//! The ring with a driver that keeps no rule: any bytes, anywhere, which change at any time.

use kernel::prelude::*;
use proptest::prelude::*;
use std::collections::HashSet;
use vhost_net_host_tests::{
    cases::hostile::{case, check, check_changing},
    config,
    pair::{Layout, Pair, F_INDIRECT, F_NEXT, F_WRITE, HOLE, HUGE, HUGE_SIZE, SPAN},
};

proptest! {
    #![proptest_config(config(6000))]

    #[test]
    fn fails_as_the_model(case in case()) {
        check(&case)?;
    }
}

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn memory_that_changes(case in case(), seed in any::<u64>()) {
        check_changing(&case, seed)?;
    }
}

fn plain(num: u32) -> Layout {
    Layout {
        num,
        cuts: vec![0x10, 0x1008, 0x1009],
        skew: 1,
        ..Layout::default()
    }
}

/// A ring of `num` with these descriptors and tables (in guest memory from its start) and one chain,
/// with the first descriptor as its head.
fn chain(num: u32, descs: &[(u64, u32, u16, u16)], table: &[(u64, u32, u16, u16)]) -> Pair {
    let mut pair = Pair::new(plain(num));
    for (i, &(addr, len, flags, next)) in descs.iter().enumerate() {
        let raw = pair.desc(addr, len, flags, next);
        pair.put(pair.layout.desc() + 16 * i as u64, &raw);
    }
    for (i, &(addr, len, flags, next)) in table.iter().enumerate() {
        let raw = pair.desc(addr, len, flags, next);
        pair.put_guest(SPAN.start + 16 * i as u64, &raw);
    }
    pair.put_u16(pair.layout.avail() + 2, 1);
    pair
}

const OK: u64 = SPAN.start + 0x2000;
const TABLE: u64 = SPAN.start;

/// Each kind of mistake, with the C driver's error code. The chain is still there after it.
#[test]
fn the_error_codes() {
    let too_many: Vec<_> = (0..1025).map(|i| (OK, 1, F_NEXT, i + 1)).collect();
    let mut fits = too_many.clone();
    fits[1023].2 = 0;
    let piece = |count: usize| -> Vec<(u64, u32, u16, u16)> {
        // Each buffer spans the cuts at 0x1008 and 0x1009: three pieces.
        (0..count)
            .map(|i| {
                (
                    SPAN.start + 0x1000,
                    16,
                    if i + 1 < count { F_NEXT } else { 0 },
                    0,
                )
            })
            .collect()
    };
    let table_of = |count: usize| [(TABLE, count as u32 * 16, F_INDIRECT, 0)];

    type Row<'a> = (
        &'a str,
        u32,
        &'a [(u64, u32, u16, u16)],
        &'a [(u64, u32, u16, u16)],
        Option<Error>,
    );
    let rows: &[Row<'_>] = &[
        ("a buffer", 4, &[(OK, 10, 0, 0)], &[], None),
        ("no bytes", 4, &[(HOLE, 0, 0, 0)], &[], None),
        (
            "no bytes to write, then some to read",
            4,
            &[(OK, 0, F_WRITE | F_NEXT, 1), (OK, 1, 0, 0)],
            &[],
            None,
        ),
        ("in no region", 4, &[(HOLE, 1, 0, 0)], &[], Some(EFAULT)),
        (
            "behind the last region",
            4,
            &[(SPAN.end - 1, 2, 0, 0)],
            &[],
            Some(EFAULT),
        ),
        (
            "before the first region",
            4,
            &[(SPAN.start - 1, 2, 0, 0)],
            &[],
            Some(EFAULT),
        ),
        ("4 GiB in a region", 4, &[(HUGE, u32::MAX, 0, 0)], &[], None),
        (
            "4 GiB of which the last byte is too many",
            4,
            &[(HUGE + HUGE_SIZE + 1 - u64::from(u32::MAX), u32::MAX, 0, 0)],
            &[],
            Some(EFAULT),
        ),
        ("the last byte of all", 4, &[(u64::MAX, 1, 0, 0)], &[], None),
        (
            "around the end of the address space",
            4,
            &[(u64::MAX, 2, 0, 0)],
            &[],
            Some(EFAULT),
        ),
        ("a loop of one", 4, &[(OK, 1, F_NEXT, 0)], &[], Some(EINVAL)),
        (
            "a loop of two",
            2,
            &[(OK, 1, F_NEXT, 1), (OK, 1, F_NEXT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "a loop of empty buffers",
            4,
            &[(0, 0, F_NEXT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "all of a ring",
            2,
            &[(OK, 1, F_NEXT, 1), (OK, 1, 0, 0)],
            &[],
            None,
        ),
        (
            "the next one out of range",
            4,
            &[(OK, 1, F_NEXT, 4)],
            &[],
            Some(EINVAL),
        ),
        (
            "the next one far out of range",
            4,
            &[(OK, 1, F_NEXT, 0xffff)],
            &[],
            Some(EINVAL),
        ),
        (
            "no next one, out of range",
            4,
            &[(OK, 1, 0, 0xffff)],
            &[],
            None,
        ),
        (
            "readable behind writable",
            4,
            &[(OK, 1, F_NEXT | F_WRITE, 1), (OK, 1, 0, 0)],
            &[],
            Some(EINVAL),
        ),
        ("too many pieces", 2048, &too_many, &[], Some(ENOBUFS)),
        ("just as many", 2048, &fits, &[], None),
        (
            "a table",
            4,
            &table_of(2),
            &[(OK, 1, F_NEXT, 1), (OK, 2, F_WRITE, 0)],
            None,
        ),
        (
            "a table whose links are nonsense",
            4,
            &table_of(2),
            &[(OK, 1, F_NEXT, 0), (OK, 2, F_WRITE, 0)],
            None,
        ),
        (
            "a table, then a buffer",
            4,
            &[(TABLE, 16, F_INDIRECT | F_NEXT, 1), (OK, 1, F_WRITE, 0)],
            &[(OK, 1, 0, 0)],
            None,
        ),
        (
            "a table with the mark of a writable buffer",
            4,
            &[(TABLE, 16, F_INDIRECT | F_WRITE, 0)],
            &[(OK, 1, 0, 0)],
            None,
        ),
        (
            "a table of no bytes",
            4,
            &[(TABLE, 0, F_INDIRECT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "a table of 15 bytes",
            4,
            &[(TABLE, 15, F_INDIRECT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "a table of 17 bytes",
            4,
            &[(TABLE, 17, F_INDIRECT, 0)],
            &[(OK, 1, 0, 0)],
            Some(EINVAL),
        ),
        (
            "a table of 4 GiB less one byte",
            4,
            &[(HUGE, u32::MAX, F_INDIRECT, 0)],
            &[],
            Some(EINVAL),
        ),
        (
            "a table in no region",
            4,
            &[(HOLE, 16, F_INDIRECT, 0)],
            &[],
            Some(EFAULT),
        ),
        (
            "a table around the end of the address space",
            4,
            &[(u64::MAX - 7, 16, F_INDIRECT, 0)],
            &[],
            Some(EFAULT),
        ),
        (
            "a table in memory that is not mapped",
            4,
            &[(HUGE, 16, F_INDIRECT, 0)],
            &[],
            Some(EFAULT),
        ),
        (
            "a table of 65537",
            4,
            &[(HUGE, 0x10_0010, F_INDIRECT, 0)],
            &[],
            Some(E2BIG),
        ),
        (
            "a table of 4 GiB",
            4,
            &[(HUGE, 0xffff_fff0, F_INDIRECT, 0)],
            &[],
            Some(E2BIG),
        ),
        (
            "a table in a table",
            4,
            &table_of(1),
            &[(TABLE, 16, F_INDIRECT, 0)],
            Some(EINVAL),
        ),
        (
            "a table that does not end",
            4,
            &table_of(2),
            &[(OK, 1, F_NEXT, 1), (OK, 1, F_NEXT, 0)],
            Some(EINVAL),
        ),
        (
            "readable behind writable in a table",
            4,
            &table_of(2),
            &[(OK, 1, F_NEXT | F_WRITE, 1), (OK, 1, 0, 0)],
            Some(EINVAL),
        ),
        (
            "readable in a table behind writable outside",
            4,
            &[(OK, 1, F_NEXT | F_WRITE, 1), (TABLE, 16, F_INDIRECT, 0)],
            &[(OK, 1, 0, 0)],
            Some(EINVAL),
        ),
        (
            "in no region, from a table",
            4,
            &table_of(1),
            &[(HOLE, 1, 0, 0)],
            Some(EFAULT),
        ),
        (
            "pieces of a table's buffers",
            4,
            &table_of(85),
            &piece(85),
            None,
        ),
        (
            "tables in a loop",
            4,
            &[(TABLE, 16, F_INDIRECT | F_NEXT, 0)],
            &[(OK, 1, 0, 0)],
            Some(EINVAL),
        ),
    ];

    let mut seen = HashSet::new();
    for (what, num, descs, table, want) in rows {
        let mut pair = chain(*num, descs, table);
        for complete in [false, true] {
            let (found, error) = pair.take(&[7], complete).expect(what);
            assert_eq!(error, *want, "{what}");
            assert_eq!(found.len(), usize::from(want.is_none()), "{what}");
        }
        // What fails can be mended, and is there.
        if let Some(error) = want {
            seen.insert(error.to_errno());
            assert_eq!(pair.ring.base(), 0, "{what}");
            let raw = pair.desc(OK, 1, 0, 0);
            pair.put(pair.layout.desc(), &raw);
            let (found, error) = pair.take(&[7], true).expect(what);
            assert_eq!((found.len(), error), (1, None), "{what}");
        }
        assert_eq!(pair.ring.base(), 1, "{what}");
    }
    // Every error that `Take::next_chain` speaks of.
    let all = [EINVAL, EFAULT, ENOBUFS, E2BIG].map(Error::to_errno);
    assert_eq!(seen, HashSet::from(all));
}

#[test]
fn pieces_of_one_buffer_count() {
    // A buffer of one piece, then of three each: 1 + 341 * 3 = 1024.
    for (count, want) in [(342u64, None), (343, Some(ENOBUFS))] {
        let mut pair = Pair::new(Layout {
            cuts: vec![0x1002, 0x1005],
            ..plain(4)
        });
        let (table, size) = (SPAN.start + 0x1100, count as u32 * 16);
        for i in 0..count {
            let (addr, len) = if i == 0 {
                (OK, 1)
            } else {
                (SPAN.start + 0x1001, 8)
            };
            let more = if i + 1 < count { F_NEXT } else { 0 };
            let raw = pair.desc(addr, len, F_WRITE | more, 0);
            pair.put_guest(table + 16 * i, &raw);
        }
        let raw = pair.desc(table, size, F_INDIRECT, 0);
        pair.put(pair.layout.desc(), &raw);
        pair.put_u16(pair.layout.avail() + 2, 1);
        let (found, error) = pair.take(&[0], true).unwrap();
        assert_eq!(error, want);
        if let Some(found) = found.first() {
            assert_eq!((found.writable, found.dirty.len()), (1024, 342));
        }
    }
}

#[test]
fn a_table_in_too_many_pieces() {
    // 1040 bytes of table in as many regions: a table has room for no more than 1024 pieces.
    for (descs, want) in [(64u32, None), (65, Some(ENOBUFS))] {
        let cuts = (0..1040).collect();
        let mut pair = Pair::new(Layout { cuts, ..plain(2) });
        for i in 0..u64::from(descs) {
            let more = if i + 1 < u64::from(descs) { F_NEXT } else { 0 };
            let raw = pair.desc(OK, 1, more, 0);
            pair.put_guest(TABLE + 16 * i, &raw);
        }
        let raw = pair.desc(TABLE, descs * 16, F_INDIRECT, 0);
        pair.put(pair.layout.desc(), &raw);
        pair.put_u16(pair.layout.avail() + 2, 1);
        let (_, error) = pair.take(&[0], true).unwrap();
        assert_eq!(error, want);
    }
}

#[test]
fn a_loop_ends_after_the_size_of_the_ring() {
    for num in [1, 2, 64, 32768u32] {
        let mut pair = chain(num, &[(0, 0, F_NEXT, 0)], &[]);
        let (_, error) = pair.take(&[0], true).unwrap();
        assert_eq!(error, Some(EINVAL));
        // The index, the entry, and each descriptor.
        assert_eq!(pair.most_reads.0, 2 + u64::from(num));
    }
}

#[test]
fn an_index_that_jumps() {
    for (num, jump, want) in [
        (4, 4, None),
        (4, 5, Some(EINVAL)),
        (4, 0xffff, Some(EINVAL)),
        (1, 1, None),
        (1, 2, Some(EINVAL)),
        (32768, 32768, None),
        (32768, 32769, Some(EINVAL)),
    ] {
        for base in [0u16, 3, 0xffff] {
            let mut pair = Pair::new(Layout {
                avail_base: base,
                ..plain(num)
            });
            pair.put_u16(pair.layout.avail() + 2, base.wrapping_add(jump));
            pair.disable_kicks().unwrap();
            let (found, error) = pair.take(&[0], false).unwrap();
            assert_eq!((found.len(), error), (usize::from(want.is_none()), want));
            assert_eq!(pair.ring.base(), base);
            assert!(!pair.ring.is_empty());
            pair.enable_kicks().unwrap();
        }
    }
}

#[test]
fn a_head_out_of_range() {
    for head in [4, 5, 0x8000, 0xffff] {
        let mut pair = chain(4, &[(OK, 1, 0, 0)], &[]);
        pair.put_u16(pair.layout.avail() + 4, head);
        let (_, error) = pair.take(&[0], true).unwrap();
        assert_eq!(error, Some(EINVAL));
        pair.put_u16(pair.layout.avail() + 4, 0);
        let (found, _) = pair.take(&[0], true).unwrap();
        assert_eq!(found.len(), 1);
    }
}

#[test]
fn ring_memory_that_is_not_mapped() {
    let layout = plain(4);
    let (desc, avail) = (layout.desc(), layout.avail());
    for part in [
        avail + 2..avail + 4,
        avail + 4..avail + 6,
        desc + 8..desc + 9,
    ] {
        for entries in [1, 4] {
            let mut pair = chain(4, &[(OK, 1, 0, 0)], &[]);
            pair.put_u16(avail + 2, entries);
            for mem in [&pair.mem, &pair.model.mem] {
                mem.fail(part.clone());
            }
            let (_, error) = pair.take(&[0], true).unwrap();
            assert_eq!(error, Some(EFAULT));
            for mem in [&pair.mem, &pair.model.mem] {
                mem.heal();
            }
            let (found, error) = pair.take(&[0], true).unwrap();
            assert_eq!((found.len(), error), (1, None));
        }
    }
}

/// A driver that offers the same chain again and again before it is used gets no used entry twice:
/// the used ring never has more unpublished entries than it has places.
#[test]
fn a_chain_that_is_available_twice() {
    for num in [1u16, 2, 64] {
        let mut pair = chain(u32::from(num), &[(OK, 1, 0, 0)], &[]);
        for i in 1..=num {
            pair.put_u16(pair.layout.avail() + 2, i);
            assert_eq!(pair.take(&[0], true).unwrap().0.len(), 1);
        }
        pair.put_u16(pair.layout.avail() + 2, num + 1);
        assert_eq!(pair.take(&[0], true).unwrap().1, Some(EINVAL));
        pair.publish().unwrap();
        assert_eq!(pair.take(&[0], true).unwrap().0.len(), 1);
    }
}

/// What the driver changes in an entry after the device read it changes nothing.
#[test]
fn an_entry_is_read_once() {
    let descs: Vec<_> = (0..8).map(|i| (OK + i, 1, 0, 0)).collect();
    let mut pair = chain(8, &descs, &[]);
    for i in 0..8 {
        pair.put_u16(pair.layout.avail() + 4 + 2 * i, i as u16);
    }
    pair.put_u16(pair.layout.avail() + 2, 8);
    let (found, _) = pair.take(&[0, 0], true).unwrap();
    assert_eq!([found[0].head, found[1].head], [0, 1]);
    // Only the ring's own copy of memory changes: the model still sees what was there.
    let endian = pair.layout.endian();
    for i in 0..8 {
        pair.mem
            .put_u16(pair.layout.avail() + 4 + 2 * i, 0xffff, endian);
    }
    let (found, error) = pair.take(&[0; 6], true).unwrap();
    assert_eq!((found.len(), error), (6, None));
}
