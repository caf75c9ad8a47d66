// SPDX-License-Identifier: GPL-2.0

//! Packets from the backend to the guest.
//!
//! Buffers are taken from the ring for as long as the packet needs more, and completed once it is
//! in them. If there are too few they are put back, by dropping their [`Take`], and the packet
//! stays with the [receiver](crate::sys::socket::Receiver).

#![forbid(unsafe_code)]

use super::{
    budget::{
        Budget,
        Pause,
        BATCH, //
    },
    header,
    net::Queue,
    queue::NetQueue, //
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
    sys::uaccess::CurrentMm,
    usermem::Segment,
    vring::{
        Because,
        Fault,
        Take, //
    }, //
};
use kernel::prelude::*;

/// Moves packets from the backend to the guest, until there is a reason to pause.
///
/// Fails if the ring or a buffer is malformed, or out of reach.
#[inline(never)]
pub fn receive(queue: &mut Queue, maps: &Maps, budget: &mut Budget) -> Result<Pause, Fault> {
    let log = queue.log();
    let mergeable = queue.features.has(Features::MRG_RXBUF);
    let counted = mergeable || queue.features.has(Features::VERSION_1);
    let most = if mergeable { MAX_SEGMENTS } else { 1 };
    let NetQueue {
        backend,
        own_header,
        backend_header,
        segments,
        dirty,
        logged,
        ..
    } = &mut queue.state;
    let (ring, stats) = (&mut queue.ring, &mut queue.stats);
    let (skip, endian) = (*own_header, ring.endian());
    let Some(receiver) = backend.as_mut().and_then(|b| b.receiver.as_mut()) else {
        return Ok(Pause::NotReady);
    };
    while ring.unpublished() < BATCH && !budget.is_spent() {
        let packet = receiver.peek_len();
        if packet == 0 {
            return Ok(Pause::NotReady);
        }
        let sock_len = packet + *backend_header;
        let len = sock_len + skip;

        segments.clear();
        dirty.clear();
        let mut take = ring.take();
        let list = log.is_some().then_some(&mut *dirty);
        let Some(room) = take_buffers(&mut take, maps, segments, list, len, most)? else {
            budget.spend_descriptors(take.descriptors());
            return Ok(Pause::NoBuffer);
        };
        budget.spend(len, take.descriptors());
        let fits = room >= len;
        if !fits {
            receiver.discard();
        }
        if !fits || receiver.receive(segments, skip, sock_len) != Ok(sock_len) {
            // Too long, taken by another, or the buffers are not mapped: these are put back.
            stats.errors += 1;
            continue;
        }
        let count = counted.then(|| endian.u16(take.chains()));
        write_header(segments.as_slice(), skip, count)?;
        if let Some(log) = log {
            let mem = queue.mem.as_deref().filter(|_| queue.iotlb.is_some());
            match mark(log, mem, segments, dirty, len) {
                Ok(()) => *logged = true,
                Err(_) => stats.errors += 1,
            }
        }
        take.complete();
        stats.packets += 1;
        stats.bytes += packet as u64;
    }
    Ok(Pause::Enough)
}

/// Takes buffers for a packet of `len` bytes, in at most `most` chains, and says what is written to
/// each. Returns how many bytes they have, or [`None`] if there are not enough.
///
/// Fails as [`Take::next_chain`], and with [`EINVAL`] if a buffer is one to transmit.
#[inline(always)]
fn take_buffers(
    take: &mut Take<'_, CurrentMm>,
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
            return Err(Fault::new(EINVAL, "a buffer to receive is not writable"));
        }
        let before = room;
        room = segments.total();
        take.set_written((room.min(len) - before) as u32);
    }
    Ok(Some(room))
}

/// Writes what the device makes of a header: the first `len` bytes, if it makes all of it, and the
/// number of buffers in the ring's byte order, if it has that.
///
/// Fails with [`EFAULT`].
#[inline(always)]
fn write_header(segments: &[Segment], len: usize, count: Option<u16>) -> Result<(), Fault> {
    if len > 0 {
        header::write_empty(segments, len).because("a header can't be written")?;
    }
    if let Some(count) = count {
        header::write_count(segments, count).because("the number of buffers can't be written")?;
    }
    Ok(())
}

/// Marks the first `len` bytes of a packet in the log. Guest memory is known by `dirty`, or with an
/// IOTLB by the user addresses in `segments`, which `mem` has.
///
/// Fails as [`DirtyLog::mark_packet`] and [`DirtyLog::mark_segments`].
#[cold]
fn mark(
    log: DirtyLog,
    mem: Option<&MemTable>,
    segments: &Segments,
    dirty: &DirtyList,
    len: usize,
) -> Result {
    match mem {
        Some(mem) => log.mark_segments(&CurrentMm, mem, segments.as_slice(), len),
        None => log.mark_packet(&CurrentMm, dirty, len),
    }
}
