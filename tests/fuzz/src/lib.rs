// SPDX-License-Identifier: GPL-2.0

//! Cases of the host tests, made of a fuzzer's bytes.
//!
//! What they are like is close to what the strategies of the host tests make. It can't be these that make
//! them: proptest splits its source of randomness so often that the bytes do not last.

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use std::fmt::Debug;
use vhost_net_host_tests::{
    cases::{ahead, hostile, iotlb, log, messages, packed},
    memtable::MAX_SEGMENTS,
    packed as format,
    pair::{Layout, Shake, Step, HIGH, HOLE, HUGE, HUGE_SIZE, SPAN},
    vring::Wanted,
};

/// Makes a case and checks it. Panics if the check fails.
pub fn run<C: Debug>(
    bytes: &[u8],
    make: impl Fn(&mut Unstructured<'_>) -> Result<C>,
    check: impl Fn(&C) -> Step,
) {
    let Ok(case) = make(&mut Unstructured::new(bytes)) else {
        return;
    };
    if let Err(error) = check(&case) {
        panic!("{error}\n{case:#?}");
    }
}

/// At most `most` of what `f` makes, until there are no more bytes.
fn list<T>(
    u: &mut Unstructured<'_>,
    most: usize,
    f: impl Fn(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut list = Vec::new();
    while list.len() < most && !u.is_empty() {
        list.push(f(u)?);
    }
    Ok(list)
}

fn addr(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=11)? {
        0..=4 => u.int_in_range(SPAN.start..=SPAN.end)?,
        // Indirect tables are here.
        5..=6 => SPAN.start + 16 * u.int_in_range(0..=63)?,
        7 => SPAN.end - u.int_in_range(0..=31)?,
        8 => u.int_in_range(HIGH..=u64::MAX)?,
        9 => u.int_in_range(HUGE..=HUGE + HUGE_SIZE)?,
        10 => HOLE,
        _ => u.arbitrary()?,
    })
}

fn len(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match u.int_in_range(0..=7)? {
        0..=2 => u.int_in_range(0..=200)?,
        3..=5 => 16 * u.int_in_range(0..=12)?,
        6 => *u.choose(&[u32::MAX, u32::MAX - 15, 0x10_0000, 0x10_0010])?,
        _ => u.arbitrary()?,
    })
}

fn desc(u: &mut Unstructured<'_>) -> Result<hostile::Desc> {
    Ok(hostile::Desc {
        addr: addr(u)?,
        len: len(u)?,
        flags: u.int_in_range(0..=7)?,
        next: number(u)?,
    })
}

/// The number of a descriptor, mostly of one that is there.
fn number(u: &mut Unstructured<'_>) -> Result<u16> {
    if u.ratio(1, 32)? {
        u.arbitrary()
    } else {
        u.int_in_range(0..=15)
    }
}

fn shake(u: &mut Unstructured<'_>) -> Result<Shake> {
    Ok(match u.int_in_range(0..=6)? {
        0..=2 => Shake::Move,
        3 => Shake::Forbid(u.int_in_range(0..=3)?),
        4..=5 => Shake::Forget,
        _ => Shake::ForgetAll,
    })
}

fn op(u: &mut Unstructured<'_>) -> Result<hostile::Op> {
    use hostile::Op;
    Ok(match u.int_in_range(0..=15)? {
        0..=1 => Op::Offer(u.int_in_range(1..=8)?),
        2 => Op::IsEmpty,
        3 => Op::Jump(u.arbitrary()?),
        4 => Op::Skip,
        5..=7 => {
            let count = u.int_in_range(1..=5)?;
            Op::Take(list(u, count, |u| u.arbitrary())?, u.arbitrary()?)
        }
        8 => Op::Publish,
        9 => Op::WantsCall,
        10 => Op::DisableKicks,
        11 => Op::EnableKicks,
        12 => Op::Scribble(u.arbitrary()?, u.arbitrary()?),
        13 => Op::Redo(u.arbitrary()?, desc(u)?),
        14 => Op::Log(u.arbitrary()?),
        _ => Op::Shake(shake(u)?, u.arbitrary()?),
    })
}

/// A driver that keeps no rule.
pub fn ring(u: &mut Unstructured<'_>) -> Result<hostile::Case> {
    let guest = guest(u)?;
    Ok(hostile::Case {
        guest,
        ops: list(u, 40, op)?,
    })
}

/// What a device sees of such a driver when it looks ahead.
pub fn ahead(u: &mut Unstructured<'_>) -> Result<ahead::Case> {
    let mut guest = guest(u)?;
    guest.layout.behind.get_or_insert(0);
    Ok(ahead::Case {
        guest,
        offered: u.int_in_range(0..=80)?,
        taken: u.arbitrary()?,
        found: u.arbitrary()?,
        forgotten: list(u, 8, |u| u.arbitrary())?,
        first: (addr(u)?, u.arbitrary()?),
        wanted: Wanted {
            bytes: u.int_in_range(0..=500)?,
            chains: u.int_in_range(0..=5)?,
        },
    })
}

fn guest(u: &mut Unstructured<'_>) -> Result<hostile::Guest> {
    let num = 1u32 << u.int_in_range(0..=6)?;
    let layout = Layout {
        num,
        big_endian: u.arbitrary()?,
        event_idx: u.arbitrary()?,
        notify_on_empty: u.arbitrary()?,
        in_order: u.arbitrary()?,
        behind: u.arbitrary()?,
        cuts: {
            let count = u.int_in_range(0..=10)?;
            list(u, count, |u| u.int_in_range(0..=0x3fff))?
        },
        skew: u.arbitrary()?,
        log_addr: u.int_in_range(0..=0x1fff)?,
        avail_base: u.arbitrary()?,
        used_base: u.arbitrary()?,
    };
    let count = u.int_in_range(0..=num as usize)?;
    let descs = list(u, count, desc)?;
    let count = u.int_in_range(0..=100)?;
    let tables = list(u, count, desc)?;
    let count = u.int_in_range(0..=num as usize)?;
    let entries = list(u, count, number)?;
    Ok(hostile::Guest {
        layout,
        descs,
        tables,
        entries,
    })
}

fn packed_desc(u: &mut Unstructured<'_>) -> Result<packed::Desc> {
    let guest = format::GUEST;
    Ok(packed::Desc {
        addr: match u.int_in_range(0..=11)? {
            0..=5 => u.int_in_range(guest.start..=guest.end)?,
            6..=8 => format::TABLES + 16 * u.int_in_range(0..=63)?,
            9 => guest.end - u.int_in_range(0..=31)?,
            10 => u64::MAX - u.int_in_range(0..=31)?,
            _ => u.arbitrary()?,
        },
        len: len(u)?,
        id: u.int_in_range(0..=63)?,
        // Whose it is, and what it is.
        flags: match u.int_in_range(0..=3)? {
            0 => 0,
            1 => format::F_AVAIL,
            2 => format::F_USED,
            _ => format::F_AVAIL | format::F_USED,
        } | u.int_in_range(0..=7)?,
    })
}

fn packed_op(u: &mut Unstructured<'_>) -> Result<packed::Op> {
    use format::What;
    use packed::Op;
    Ok(match u.int_in_range(0..=15)? {
        0..=2 => Op::Offer(u.int_in_range(1..=8)?),
        3..=4 => Op::Redo(u.int_in_range(0..=3)?, packed_desc(u)?),
        5 => Op::Ask(u.int_in_range(0..=4)?, u.arbitrary()?),
        6..=8 => {
            let what = match u.int_in_range(0..=7)? {
                0..=3 => What::Complete,
                4 => What::CompleteEmpty,
                5 => What::PutBack,
                _ => What::Defer,
            };
            let count = u.int_in_range(1..=5)?;
            Op::Take(list(u, count, |u| u.arbitrary())?, what)
        }
        9 => Op::CompleteDeferred(usize::from(u.arbitrary::<u8>()?)),
        10..=11 => Op::Publish,
        12 => Op::WantsCall,
        13 => match u.arbitrary()? {
            true => Op::DisableKicks,
            false => Op::EnableKicks,
        },
        14 => Op::IsEmpty,
        _ => Op::SetBase(u.arbitrary()?),
    })
}

/// A driver of a packed ring that keeps no rule.
pub fn packed(u: &mut Unstructured<'_>) -> Result<packed::Case> {
    let num = u.int_in_range(1..=64)?;
    Ok(packed::Case {
        layout: format::Layout {
            num,
            event_idx: u.arbitrary()?,
            in_order: u.arbitrary()?,
            start: u.int_in_range(0..=0xffff)?,
        },
        changing: u.arbitrary()?,
        descs: {
            let count = u.int_in_range(0..=num as usize)?;
            list(u, count, packed_desc)?
        },
        tables: {
            let count = u.int_in_range(0..=100)?;
            list(u, count, packed_desc)?
        },
        ops: list(u, 40, packed_op)?,
    })
}

/// What the owner tells an IOTLB.
pub fn iotlb(u: &mut Unstructured<'_>) -> Result<iotlb::Case> {
    use iotlb::{Op, Range};
    let range = |u: &mut Unstructured<'_>| {
        Ok(Range {
            offset: u.int_in_range(0..=71)?,
            size: match u.int_in_range(0..=7)? {
                0..=6 => u.int_in_range(0..=31)?,
                _ => u.arbitrary()?,
            },
        })
    };
    Ok(iotlb::Case {
        start: match u.int_in_range(0..=2)? {
            0 => 0,
            1 => 0u64.wrapping_sub(u.int_in_range(0..=100)?),
            _ => u.arbitrary()?,
        },
        limit: u.int_in_range(1..=40)?,
        ops: list(u, 60, |u| {
            Ok(match u.int_in_range(0..=9)? {
                0..=3 => Op::Update(range(u)?, u.arbitrary()?, u.arbitrary()?),
                4 => Op::Again(u.arbitrary()?, u.arbitrary()?, u.arbitrary()?),
                5 => Op::Invalidate(range(u)?),
                _ => {
                    // To fill a list takes long.
                    let room = match u.ratio(1, 16)? {
                        true => u.int_in_range(0..=5)?,
                        false => MAX_SEGMENTS,
                    };
                    let ago = [usize::from(u.arbitrary::<u8>()?), u.arbitrary()?];
                    Op::Translate(range(u)?, u.arbitrary()?, room, ago)
                }
            })
        })?,
    })
}

/// Misses of queues, and an owner who answers.
pub fn messages(u: &mut Unstructured<'_>) -> Result<Vec<messages::Op>> {
    use messages::{Op, QUEUES};
    let addr = |u: &mut Unstructured<'_>| {
        Ok(match u.int_in_range(0..=2)? {
            0 => u.int_in_range(0..=7)? * 4096 + u.int_in_range(0..=1)?,
            1 => u64::MAX - u.int_in_range(0..=5)? * 4096,
            _ => u.arbitrary()?,
        })
    };
    list(u, 60, |u| {
        Ok(match u.int_in_range(0..=11)? {
            0..=2 => {
                let queue = u.int_in_range(0..=QUEUES)?;
                let count = u.int_in_range(1..=8)?;
                let mut misses = vec![(addr(u)?, u.arbitrary()?)];
                misses.extend(list(u, count, |u| Ok((addr(u)?, u.arbitrary()?)))?);
                let needed = u.int_in_range(0..=4)?;
                Op::Wait(
                    queue,
                    misses,
                    needed,
                    u.int_in_range(1..=2)?,
                    u.arbitrary()?,
                )
            }
            3..=4 => Op::Read,
            5 => Op::Unread(u.int_in_range(0..=2)?),
            6 => Op::Answer(addr(u)?, u.int_in_range(1..=3)? * 4096),
            7 => Op::Answer(addr(u)?, u.arbitrary()?),
            10 => Op::Invalidate(addr(u)?, u.int_in_range(1..=2)? * 4096),
            11 => Op::Silently(u.int_in_range(0..=QUEUES)?, addr(u)?),
            8 => match u.int_in_range(0..=QUEUES + 1)? {
                queue if queue <= QUEUES => Op::Forget(queue),
                _ => Op::Close,
            },
            _ => Op::Open,
        })
    })
}

/// Writes that are logged.
pub fn log(u: &mut Unstructured<'_>) -> Result<log::Case> {
    let skew = u.int_in_range(0..=31)?;
    let count = u.int_in_range(1..=6)?;
    let ranges = list(u, count, |u| {
        let (page, offset) = (u.int_in_range(0..=1499)?, u.int_in_range(0..=4095)?);
        Ok((page, offset, u.int_in_range(0..=0x30_0000)?))
    })?;
    let mut noise = vec![0; log::AREA_SIZE as usize];
    u.fill_buffer(&mut noise)?;
    Ok(log::Case {
        skew,
        noise,
        ranges,
    })
}
