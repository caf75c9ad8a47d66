// SPDX-License-Identifier: GPL-2.0

//! What an owner tells the device IOTLB, and what that makes of it.

use crate::{
    memtable::{
        Access, GuestAddr, Hint, Iotlb, Iova, MemTable, Miss, Refused, Region, Segments,
        MAX_SEGMENTS,
    },
    model::Piece,
    pair::Step,
    usermem::UserAddr,
    Tell,
};
use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use std::sync::LazyLock;

/// What happens to an IOTLB of at most `limit` maps; the addresses are from `start` on.
#[derive(Clone, Debug)]
pub struct Case {
    pub start: u64,
    pub limit: usize,
    pub ops: Vec<Op>,
}

pub fn case() -> impl Strategy<Value = Case> {
    (
        window(),
        prop_oneof![1..6usize, 6..40usize],
        vec(op(), 1..60),
    )
        .prop_map(|(start, limit, ops)| Case { start, limit, ops })
}

/// It does as a list of what the owner said.
pub fn check(case: &Case) -> Step {
    let Case { start, limit, ops } = case;
    let (start, limit) = (*start, *limit);
    let mut iotlb = Iotlb::new(limit);
    let mut model = Model {
        said: Vec::new(),
        limit,
    };
    let mut hints = vec![Hint::new().unwrap()];
    let mut told = (start, 1);
    for op in ops {
        let generation = iotlb.generation();
        let changed = match *op {
            Op::Update(..) | Op::Again(..) => {
                let (addr, size, user, perm) = match *op {
                    Op::Update(range, user, perm) => {
                        (start.wrapping_add(range.offset), range.size, user, perm)
                    }
                    Op::Again(true, user, perm) => (told.0, told.1, user, perm),
                    _ => (told.0.wrapping_add(told.1), told.1, 0, 1),
                };
                told = (addr, size);
                let got = iotlb.tell(Iova::new(addr), size, UserAddr::new(user), perm);
                prop_assert_eq!(got, model.update(addr, size, user, perm));
                got.is_ok()
            }
            Op::Invalidate(range) => {
                let addr = start.wrapping_add(range.offset);
                let got = iotlb.invalidate(Iova::new(addr), range.size);
                prop_assert_eq!(got, model.invalidate(addr, range.size));
                got.is_ok()
            }
            Op::Translate(range, write, room, ago) => {
                let addr = start.wrapping_add(range.offset);
                let len = range.size.min(u64::from(u32::MAX)) as u32;
                let access = if write { Access::Write } else { Access::Read };
                let (pieces, want) = model.translate(addr, len, access, room);
                // A new one, the one before, and any two, which may not have been used for long.
                let last = hints.len() - 1;
                let [first, second] = ago.map(|ago| ago % hints.len());
                hints.push(Hint::new().unwrap());
                for hint in [last + 1, last, first, second] {
                    let (mut out, hint) = (list(room), &mut hints[hint]);
                    let before = out.len();
                    let maps = iotlb.maps();
                    let got = maps.translate(Iova::new(addr), len, access, hint, &mut out);
                    let got_pieces: Vec<_> = out.as_slice()[before..]
                        .iter()
                        .map(|segment| (segment.addr().get(), segment.len() as u64))
                        .collect();
                    prop_assert_eq!(got, want);
                    prop_assert_eq!(got_pieces, pieces.clone());
                }
                false
            }
        };
        prop_assert_eq!(iotlb.generation() > generation, changed);
    }
    Ok(())
}

const SPACE: u128 = 1 << 64;

/// What the owner said of a range, from its first to its last address.
#[derive(Clone, Copy, Debug)]
struct Said {
    first: u64,
    last: u64,
    user: u64,
    perm: u8,
}

/// The oldest first.
struct Model {
    said: Vec<Said>,
    limit: usize,
}

impl Model {
    fn update(&mut self, first: u64, size: u64, user: u64, perm: u8) -> Result {
        if size == 0 || u128::from(first) + u128::from(size) > SPACE {
            return Err(EFAULT);
        }
        if self.said.len() == self.limit {
            self.said.remove(0);
        }
        let last = first + (size - 1);
        self.said.push(Said {
            first,
            last,
            user,
            perm,
        });
        Ok(())
    }

    fn invalidate(&mut self, first: u64, size: u64) -> Result {
        if size == 0 {
            return Err(EINVAL);
        }
        let last = first.wrapping_add(size - 1);
        self.said
            .retain(|said| !(said.first <= last && first <= said.last));
        Ok(())
    }

    /// Who has an address: the range that starts first, and of these the oldest.
    fn owner_of(&self, addr: u64) -> Option<usize> {
        let has = |said: &Said| said.first <= addr && addr <= said.last;
        (0..self.said.len())
            .filter(|&i| has(&self.said[i]))
            .min_by_key(|&i| (self.said[i].first, i))
    }

    /// The pieces of a range, at most `room`: those before the first trouble, and that.
    fn translate(
        &self,
        start: u64,
        len: u32,
        access: Access,
        room: usize,
    ) -> (Vec<Piece>, std::result::Result<(), Refused>) {
        let unmapped = |addr| {
            let addr = Iova::new(addr);
            Err(Refused::Unmapped(Miss { addr, access }))
        };
        let mut pieces: Vec<Piece> = Vec::new();
        let mut before = None;
        let end = u128::from(start) + u128::from(len);
        let mut at = u128::from(start);
        while at < end {
            let Ok(addr) = u64::try_from(at) else {
                return (pieces, unmapped(start));
            };
            let owner = self.owner_of(addr);
            // No address from here up to `next` has another owner.
            let next = (self.said.iter())
                .flat_map(|said| [u128::from(said.first), u128::from(said.last) + 1])
                .chain([end, SPACE])
                .filter(|&border| border > at)
                .min()
                .unwrap();
            let count = (next - at) as u64;
            match owner {
                Some(_) if owner == before => pieces.last_mut().unwrap().1 += count,
                _ if pieces.len() == room => return (pieces, Err(Refused::TooMany)),
                None => return (pieces, unmapped(addr)),
                Some(owner) => {
                    let said = self.said[owner];
                    if said.perm & access as u8 == 0 {
                        let addr = Iova::new(addr);
                        return (pieces, Err(Refused::Denied(Miss { addr, access })));
                    }
                    pieces.push((said.user.wrapping_add(addr - said.first), count));
                }
            }
            before = owner;
            at = next;
        }
        (pieces, Ok(()))
    }
}

/// A range that starts at so many bytes behind the start of the test's window.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub offset: u64,
    pub size: u64,
}

#[derive(Clone, Debug)]
pub enum Op {
    Update(Range, u64, u8),
    /// The range that was told last, again: all of it, or what adjoins it.
    Again(bool, u64, u8),
    Invalidate(Range),
    /// Translates a range, for writing or for reading, with so much room and with hints of so long ago.
    Translate(Range, bool, usize, [usize; 2]),
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        20 => 1..24u64,
        4 => 24..200u64,
        1 => Just(0),
        1 => Just(1 << 63),
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..72u64, size()).prop_map(|(offset, size)| Range { offset, size });
    let room = prop_oneof![1 => 0..6usize, 4 => Just(MAX_SEGMENTS)];
    // What the owner says has bits that mean nothing.
    let perm =
        || prop_oneof![8 => Just(3u8), 2 => 0..4u8, 1 => (0..4u8).prop_map(|perm| perm | !3)];
    prop_oneof![
        8 => (range(), any::<u64>(), perm()).prop_map(|(r, u, p)| Op::Update(r, u, p)),
        2 => (any::<bool>(), any::<u64>(), perm()).prop_map(|(a, u, p)| Op::Again(a, u, p)),
        2 => range().prop_map(Op::Invalidate),
        8 => (range(), any::<bool>(), room, any::<[usize; 2]>())
            .prop_map(|(r, w, room, h)| Op::Translate(r, w, room, h)),
    ]
}

fn window() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1 << 32),
        Just((1 << 63) - 40),
        Just(0u64.wrapping_sub(100)),
        // Around the end of the address space.
        Just(0u64.wrapping_sub(40)),
    ]
}

/// A list of pieces that has no more than `room` left.
fn list(room: usize) -> Segments {
    static FILL: LazyLock<MemTable> = LazyLock::new(|| {
        let regions: Vec<_> = (0..MAX_SEGMENTS as u64)
            .map(|i| Region {
                guest: GuestAddr::new(i),
                size: 1,
                user: UserAddr::new(i * 2),
            })
            .collect();
        MemTable::new(regions.into_iter()).unwrap()
    });
    let mut list = Segments::new().unwrap();
    let (zero, len) = (Iova::new(0), (MAX_SEGMENTS - room) as u32);
    FILL.maps()
        .translate(
            zero,
            len,
            Access::Read,
            &mut Hint::new().unwrap(),
            &mut list,
        )
        .unwrap();
    list
}
