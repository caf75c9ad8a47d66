// SPDX-License-Identifier: GPL-2.0

//! The memory table, against a look-up of each byte by itself.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use vhost_net_host_tests::{
    config,
    mem::{Mem, USER_END},
    memtable::{
        Access, GuestAddr, Hint, Iova, MemTable, Miss, Refused, Region, Segments, MAX_SEGMENTS,
    },
    model::{owner_of, ModelRegion, Piece},
    usermem::{Segment, UserAddr, UserMemory},
};

const SPACE: u128 = 1 << 64;

fn build(regions: &[(u64, u64, u64)]) -> Result<MemTable> {
    MemTable::new(
        regions
            .iter()
            .map(|&(guest, size, user)| Region {
                guest: GuestAddr::new(guest),
                size,
                user: UserAddr::new(user),
            })
            .collect::<Vec<_>>()
            .into_iter(),
    )
}

/// The regions as the C driver takes them; [`None`] if it refuses one.
fn understand(regions: &[(u64, u64, u64)]) -> Option<Vec<ModelRegion>> {
    let mut list = Vec::new();
    for &(guest, size, user) in regions {
        let last = u128::from(guest) + u128::from(size);
        if (guest, size) == (0, 0) {
            // Size 0 at 0 is how 2^64 bytes are written; the C driver makes two regions of it.
            let half = 1u64 << 63;
            for (guest, user) in [(0, user), (half, user.wrapping_add(half))] {
                list.push(ModelRegion::new(guest, u128::from(half), user));
            }
        } else if size == 0 || last > SPACE {
            return None;
        } else {
            list.push(ModelRegion::new(guest, u128::from(size), user));
        }
    }
    Some(list)
}

/// That this address, which is to be read, is in no region.
fn unmapped(addr: u64) -> Refused {
    Refused::Unmapped(Miss {
        addr: Iova::new(addr),
        access: Access::Read,
    })
}

/// The pieces of a range, found byte by byte. A piece ends where the next byte belongs to another
/// region.
fn by_bytes(
    regions: &[ModelRegion],
    guest: u64,
    len: u64,
) -> std::result::Result<Vec<Piece>, Refused> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut before = None;
    for i in 0..u128::from(len) {
        let at = u128::from(guest) + i;
        // Behind the last address of all there is nothing that could be mapped.
        let nowhere = u64::try_from(at).unwrap_or(guest);
        let owner = owner_of(regions, at).ok_or(unmapped(nowhere))?;
        if before == Some(owner) {
            pieces.last_mut().unwrap().1 += 1;
        } else {
            pieces.push((regions[owner].byte(at).unwrap(), 1));
        }
        before = Some(owner);
    }
    Ok(pieces)
}

/// Translates a range that is to be read.
fn translate(
    table: &MemTable,
    guest: u64,
    len: u32,
    hint: &mut Hint,
    out: &mut Segments,
) -> std::result::Result<(), Refused> {
    table
        .maps()
        .translate(Iova::new(guest), len, Access::Read, hint, out)
}

fn list(segments: &[Segment]) -> Vec<Piece> {
    segments
        .iter()
        .map(|segment| (segment.addr().get(), segment.len() as u64))
        .collect()
}

/// Where a test's small window of addresses starts.
fn window() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1 << 32),
        Just((1 << 63) - 40),
        Just(0u64.wrapping_sub(80)),
    ]
}

/// Regions in the window: overlapping, adjacent, sometimes empty, sometimes wrapping.
fn regions(valid: bool) -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    let least = u64::from(valid);
    (
        window(),
        vec((0..72u64, least..24u64, any::<u64>()), 0..40),
        any::<bool>(),
    )
        .prop_map(move |(start, regions, one_full)| {
            let mut list: Vec<_> = regions
                .into_iter()
                .map(|(offset, size, user)| {
                    let guest = start.wrapping_add(offset);
                    let size = if valid {
                        size.min(0u64.wrapping_sub(guest).wrapping_sub(1)).max(1)
                    } else {
                        size
                    };
                    (guest, size, user)
                })
                .collect();
            if one_full && list.len() > 30 {
                list.insert(3, (0, 0, 0x1234));
            }
            list
        })
}

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn translates_as_each_byte_alone(
        regions in regions(true),
        stale in 0..50u64,
        ranges in vec((window(), 0..80u64, 0..90u32), 1..12),
    ) {
        let model = understand(&regions).unwrap();
        let table = build(&regions).unwrap();
        // A hint from another, larger table.
        let other: Vec<_> = (0..50).map(|i| (i * 2, 1, i)).collect();
        let other = build(&other).unwrap();
        let mut out = Segments::new().unwrap();
        let old = || {
            let (mut hint, mut out) = (Hint::new().unwrap(), Segments::new().unwrap());
            translate(&other, stale * 2, 1, &mut hint, &mut out).unwrap();
            hint
        };

        let mut hint = old();
        for (start, offset, len) in ranges {
            // Most of the ranges in the window of the regions.
            let first = regions.first().map_or(start, |region| region.0);
            let guest = first.wrapping_add(offset).wrapping_sub(20);
            let want = by_bytes(&model, guest, u64::from(len));
            for hint in [&mut hint, &mut old(), &mut Hint::new().unwrap()] {
                out.clear();
                let got = translate(&table, guest, len, hint, &mut out);
                match &want {
                    Ok(pieces) => {
                        prop_assert_eq!(got, Ok(()));
                        prop_assert_eq!(&list(out.as_slice()), pieces);
                        prop_assert_eq!(out.total(), len as usize);
                    }
                    Err(refused) => prop_assert_eq!(got, Err(*refused)),
                }
            }
        }
    }

    #[test]
    fn finds_each_guest_byte_behind_a_user_byte(
        start in window(),
        regions in vec((any::<u32>(), 1..24u64, 0..72u64), 0..20),
        queries in vec((0..90u64, 1..40u64), 1..8),
    ) {
        // Guest ranges far apart, user ranges that overlap.
        let regions: Vec<_> = regions
            .into_iter()
            .map(|(guest, size, user)| (u64::from(guest) << 8, size, start.wrapping_add(user)))
            .collect();
        let table = build(&regions).unwrap();
        for (offset, len) in queries {
            let query = start.wrapping_add(offset);
            let mut want: Vec<_> = regions
                .iter()
                .flat_map(|&(guest, size, user)| (0..size).map(move |i| (guest + i, user.wrapping_add(i))))
                .filter(|(_, user)| user.wrapping_sub(query) < len)
                .map(|(guest, _)| guest)
                .collect();
            let mut got = Vec::new();
            let any = table.physical(UserAddr::new(query), len, |guest, len| {
                got.extend((0..len).map(|i| guest.get() + i));
            });
            want.sort_unstable();
            got.sort_unstable();
            prop_assert_eq!(any, !want.is_empty());
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn refuses_what_c_refuses(regions in regions(false)) {
        match understand(&regions) {
            None => prop_assert_eq!(build(&regions).err(), Some(EFAULT)),
            Some(mut model) => {
                let table = build(&regions).unwrap();
                let mut want: Vec<_> = model.drain(..).map(|r| (r.guest, r.size as u64)).collect();
                let mut got: Vec<_> = table.ranges().map(|(addr, size)| (addr.get(), size)).collect();
                want.sort_unstable();
                got.sort_unstable();
                prop_assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn access_ok_is_for_every_region(
        users in vec(
            (prop_oneof![any::<u64>(), USER_END - 64..USER_END + 64], 1..64u64),
            0..4,
        ),
    ) {
        let regions: Vec<_> = (0u64..).zip(&users).map(|(i, u)| (i * 64, u.1, u.0)).collect();
        let ok = users
            .iter()
            .all(|&(user, size)| u128::from(user) + u128::from(size) <= u128::from(USER_END));
        prop_assert_eq!(build(&regions).unwrap().access_ok(&Mem::new()), ok);
    }
}

#[test]
fn an_empty_table_has_nothing() {
    let table = build(&[]).unwrap();
    let mut out = Segments::new().unwrap();
    let mut hint = Hint::new().unwrap();
    assert_eq!(translate(&table, 0, 0, &mut hint, &mut out), Ok(()));
    assert_eq!(
        translate(&table, 0, 1, &mut hint, &mut out),
        Err(unmapped(0))
    );
    assert!(table.access_ok(&Mem::new()));
}

#[test]
fn the_limits_of_regions() {
    // Empty; wraps; up to the very end; all but the last byte; all.
    assert_eq!(build(&[(1, 0, 0)]).err(), Some(EFAULT));
    assert_eq!(build(&[(u64::MAX, 0, 0)]).err(), Some(EFAULT));
    assert_eq!(build(&[(u64::MAX, 2, 0)]).err(), Some(EFAULT));
    assert_eq!(build(&[(2, u64::MAX, 0)]).err(), Some(EFAULT));
    assert!(build(&[(u64::MAX, 1, 0)]).is_ok());
    assert!(build(&[(1, u64::MAX, 0)]).is_ok());
    assert_eq!(build(&[(0, u64::MAX, 0)]).unwrap().ranges().count(), 1);
    assert_eq!(build(&[(0, 0, 0)]).unwrap().ranges().count(), 2);
}

#[test]
fn all_of_the_address_space() {
    let table = build(&[(0, 0, 0x100)]).unwrap();
    let mut hint = Hint::new().unwrap();
    let mut out = Segments::new().unwrap();
    let half = 1u64 << 63;
    type Row = (u64, u32, std::result::Result<Vec<Piece>, Refused>);
    let cases: [Row; 7] = [
        (0, 1, Ok(vec![(0x100, 1)])),
        (0, u32::MAX, Ok(vec![(0x100, u64::from(u32::MAX))])),
        (half - 1, 2, Ok(vec![(half + 0xff, 1), (half + 0x100, 1)])),
        (u64::MAX, 1, Ok(vec![(0xff, 1)])),
        (u64::MAX, 2, Err(unmapped(u64::MAX))),
        (u64::MAX - 4, u32::MAX, Err(unmapped(u64::MAX - 4))),
        (u64::MAX, 0, Ok(vec![])),
    ];
    for (guest, len, want) in cases {
        out.clear();
        let got = translate(&table, guest, len, &mut hint, &mut out);
        assert_eq!(
            got.map(|()| list(out.as_slice())),
            want,
            "{guest:#x} {len:#x}"
        );
    }
    // Half of it is beyond user space.
    assert!(!table.access_ok(&Mem::new()));
}

#[test]
fn a_range_that_wraps_is_no_range() {
    // Regions at both ends of the address space don't make a range that goes around.
    let table = build(&[(0, 16, 0x100), (u64::MAX - 15, 16, 0x200)]).unwrap();
    let mut out = Segments::new().unwrap();
    let got = translate(&table, u64::MAX, 2, &mut Hint::new().unwrap(), &mut out);
    assert_eq!(got, Err(unmapped(u64::MAX)));
}

#[test]
fn at_most_1024_pieces() {
    let regions: Vec<_> = (0..1500u64).map(|i| (i, 1, i * 3)).collect();
    let table = build(&regions).unwrap();
    let mut hint = Hint::new().unwrap();
    for before in [0u32, 1, 1000, 1023, 1024] {
        for len in [1023 - before.min(1023), 1024 - before, 1025 - before, 1400] {
            let mut out = Segments::new().unwrap();
            translate(&table, 0, before, &mut hint, &mut out).unwrap();
            let got = translate(&table, 7, len, &mut hint, &mut out);
            let fits = before + len <= 1024;
            assert_eq!(
                got,
                if fits { Ok(()) } else { Err(Refused::TooMany) },
                "{before} {len}"
            );
            assert_eq!(out.len(), MAX_SEGMENTS.min((before + len) as usize));
        }
    }
    // The full list comes before the missing region, as in the C driver.
    let mut out = Segments::new().unwrap();
    translate(&table, 0, 1024, &mut hint, &mut out).unwrap();
    let nowhere = 1 << 40;
    assert_eq!(
        translate(&table, nowhere, 1, &mut hint, &mut out),
        Err(Refused::TooMany)
    );
    assert_eq!(translate(&table, nowhere, 0, &mut hint, &mut out), Ok(()));
    out.clear();
    assert_eq!(
        translate(&table, nowhere, 1, &mut hint, &mut out),
        Err(unmapped(nowhere))
    );
}

#[test]
fn segments_and_addresses() {
    let segment = Segment::new(UserAddr::new(0x1000), 10).unwrap();
    assert_eq!(
        (segment.skip(3).addr().get(), segment.skip(3).len()),
        (0x1003, 7)
    );
    assert_eq!(
        (segment.skip(11).addr().get(), segment.skip(11).len()),
        (0x100a, 0)
    );
    assert_eq!(UserAddr::new(u64::MAX).offset(2).get(), 1);
    assert_eq!(GuestAddr::new(u64::MAX).offset(2).get(), 1);
    let mut out = Segments::new().unwrap();
    let table = build(&[(0, 2, 0x10), (2, 2, 0x20)]).unwrap();
    translate(&table, 0, 4, &mut Hint::new().unwrap(), &mut out).unwrap();
    assert_eq!(
        (list(out.as_slice()), out.total()),
        (vec![(0x10, 2), (0x20, 2)], 4)
    );
    // One by itself, and no other.
    assert_eq!(out.only(), None);
    out.clear();
    assert_eq!((out.len(), out.total(), out.only()), (0, 0, None));
    translate(&table, 2, 2, &mut Hint::new().unwrap(), &mut out).unwrap();
    assert_eq!(out.only(), Segment::new(UserAddr::new(0x20), 2));
    assert!((&Mem::new()).access_ok(UserAddr::new(0), USER_END));
}
