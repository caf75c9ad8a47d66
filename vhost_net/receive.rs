// SPDX-License-Identifier: GPL-2.0

//! Packets from the backend to the guest.
//!
//! Buffers are taken from the ring for as long as the packet needs more, and completed once it is
//! in them. If there are too few they are put back, by dropping their [`Take`], and the packet
//! stays with the [receiver](crate::sys::receiver::Receiver).

#![forbid(unsafe_code)]

use super::{
    budget::{
        Budget,
        Pause,
        BATCH, //
    },
    header,
    net::Queue, //
};
use crate::{
    features::Features,
    log::{
        DirtyList,
        DirtyLog, //
    },
    memtable::{
        Maps,
        MemTable,
        Segments,
        MAX_SEGMENTS, //
    },
    sys::{
        receiver::Receiver,
        uaccess::CurrentMm, //
    },
    vhost::{
        Loss,
        Stats, //
    },
    vring::{
        Fault,
        Packed,
        RingFormat,
        Split,
        Take,
        Wanted,
        Why, //
    }, //
};
use kernel::prelude::*;

/// What the packet that comes next needs of the ring.
pub fn wanted(queue: &mut Queue) -> Wanted {
    let mergeable = queue.features.has(Features::MRG_RXBUF);
    let state = &mut queue.state;
    let receiver = state.backend.as_mut().and_then(|b| b.receiver.as_mut());
    let packet = receiver.map_or(0, |receiver| receiver.peek_len());
    Wanted {
        bytes: (packet + state.backend_header + state.own_header) as u64,
        chains: if mergeable { MAX_SEGMENTS as u16 } else { 1 },
    }
}

/// Moves packets from the backend to the guest, until there is a reason to pause.
///
/// Fails if the ring or a buffer is malformed, or out of reach.
pub fn receive(
    queue: &mut Queue,
    mm: CurrentMm<'_>,
    maps: &Maps,
    budget: &mut Budget<'_>,
) -> Result<Pause, Fault> {
    if queue.ring.is_packed() {
        receive_to::<Packed>(queue, mm, maps, budget)
    } else {
        receive_to::<Split>(queue, mm, maps, budget)
    }
}

/// As [`receive`], to a ring of this format.
#[inline(never)]
fn receive_to<F: RingFormat>(
    queue: &mut Queue,
    mm: CurrentMm<'_>,
    maps: &Maps,
    budget: &mut Budget<'_>,
) -> Result<Pause, Fault> {
    let log = log_with_room(queue)?;
    // With an IOTLB, what knows where the log has them.
    let mem = queue.mem.as_deref().filter(|_| queue.iotlb.is_some());
    let (most, counted) = chains_a_packet(queue.features);
    let (stats, state) = (&*queue.stats, &mut queue.state);
    let mut ring = queue.ring.in_format::<F>();
    let (skip, endian) = (state.own_header, ring.endian());
    let Some(receiver) = state.backend.as_mut().and_then(|b| b.receiver.as_mut()) else {
        return Ok(Pause::NotReady);
    };
    while ring.unpublished() < BATCH && !budget.is_spent() {
        let packet = receiver.peek_len();
        if packet == 0 {
            return Ok(Pause::NotReady);
        }
        let sock_len = packet + state.backend_header;
        let len = sock_len + skip;
        state.segments.clear();
        state.dirty.clear();
        let mut take = ring.take(mm);
        let list = log.is_some().then_some(&mut state.dirty);
        let Some(room) = take_room(&mut take, maps, &mut state.segments, list, len, most)? else {
            budget.spend_descriptors(take.descriptors());
            return Ok(Pause::NoBuffer);
        };
        budget.spend(len, take.descriptors());
        let filled = if room < len {
            receiver.discard();
            Err(EMSGSIZE)
        } else {
            let count = counted.then(|| endian.u16(take.chains()));
            fill(mm, receiver, &state.segments, skip, sock_len, count, stats)
        };
        // What was written in part too.
        if let Some(log) = log.filter(|_| matches!(filled, Ok(()) | Err(EFAULT))) {
            match mark(mm, log, mem, &state.segments, &state.dirty, len) {
                Ok(()) => state.logged = true,
                Err(_) => stats.unlogged.add(1),
            }
        }
        if let Err(err) = filled {
            // If it will never fit, or the backend has it no more, the buffers are put back.
            if err == EFAULT {
                take.complete_empty();
            }
            stats.lost(Loss::of(err), packet);
            continue;
        }
        take.complete();
        stats.moved(packet);
    }
    Ok(Pause::Enough)
}

/// The log of guest memory, if there is one. Then there is room to keep what a packet writes.
///
/// Fails with [`ENOMEM`].
fn log_with_room(queue: &mut Queue) -> Result<Option<DirtyLog>, Fault> {
    let log = queue.log();
    if log.is_some() {
        let room = queue.state.dirty.make_room();
        room.map_err(|err| Fault::new(err, Why::NoRoom))?;
    }
    Ok(log)
}

/// In how many chains a packet may be, and whether its header says in how many it is.
fn chains_a_packet(features: Features) -> (usize, bool) {
    let mergeable = features.has(Features::MRG_RXBUF);
    let most = if mergeable { MAX_SEGMENTS } else { 1 };
    (most, mergeable || features.has(Features::VERSION_1))
}

/// Takes buffers for a packet of `len` bytes, in at most `most` chains, and says what is written to
/// each. Returns how many bytes they have, or [`None`] if there are not enough.
///
/// Fails as [`Take::next_chain`], and with [`EINVAL`] if a buffer is one to transmit.
#[inline(always)]
fn take_room<F: RingFormat>(
    take: &mut Take<'_, CurrentMm<'_>, F>,
    maps: &Maps,
    segments: &mut Segments,
    mut dirty: Option<&mut DirtyList>,
    len: usize,
    most: usize,
) -> Result<Option<usize>, Fault> {
    let mut room = 0;
    while room < len && usize::from(take.chains()) < most {
        let Some(chain) = take.next_chain(maps, segments, dirty.as_deref_mut())? else {
            return Ok(None);
        };
        if chain.readable > 0 || chain.writable == 0 {
            return Err(Fault::new(EINVAL, Why::NotWritable));
        }
        let before = room;
        room = segments.total();
        take.set_written((room.min(len) - before) as u32);
    }
    Ok(Some(room))
}

/// Has the packet that comes next written to `segments`: `len` bytes behind their first `skip`, and
/// there, or in the backend's header, what the device knows: `count`, the number of buffers in the
/// ring's byte order. A packet to many is counted in `stats`.
///
/// Fails with [`EFAULT`] if the buffers can't be written; with [`EAGAIN`] if there is no packet of
/// this length any more, or as [`Receiver::receive`]. In any case the packet is gone.
#[inline(always)]
fn fill(
    mm: CurrentMm<'_>,
    receiver: &mut Receiver,
    segments: &Segments,
    skip: usize,
    len: usize,
    count: Option<u16>,
    stats: &Stats,
) -> Result {
    if receiver.receive(mm, segments, skip, len, &stats.groups)? != len {
        return Err(EAGAIN);
    }
    if skip > 0 {
        header::write_empty(mm, segments.as_slice(), skip)?;
    }
    if let Some(count) = count {
        header::write_count(mm, segments.as_slice(), count)?;
    }
    Ok(())
}

/// Marks the first `len` bytes of a packet in the log. Guest memory is known by `dirty`, or with an
/// IOTLB by the user addresses in `segments`, which `mem` has.
///
/// Fails as [`DirtyLog::mark_packet`] and [`DirtyLog::mark_segments`].
#[cold]
fn mark(
    mm: CurrentMm<'_>,
    log: DirtyLog,
    mem: Option<&MemTable>,
    segments: &Segments,
    dirty: &DirtyList,
    len: usize,
) -> Result {
    match mem {
        Some(mem) => log.mark_segments(mm, mem, segments.as_slice(), len),
        None => log.mark_packet(mm, dirty, len),
    }
}
