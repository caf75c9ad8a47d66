// SPDX-License-Identifier: GPL-2.0

//! Packets from the guest to the backend.
//!
//! A packet is taken from the ring, and completed once it is copied, sent or lost; one that the
//! socket does not take now is put back, by dropping its [`Take`].

#![forbid(unsafe_code)]

use super::{
    budget::{
        Budget,
        Pause,
        BATCH, //
    },
    header,
    net::Queue,
    queue::NetQueue,
    verdict::Verdict, //
};
use crate::{
    features::Features,
    memtable::{
        Maps,
        Segments, //
    },
    sys::{
        socket::Socket,
        uaccess::CurrentMm,
        xdp::Layout, //
    },
    vhost::{
        Loss,
        Stats, //
    },
    vring::{
        Chain,
        Fault,
        Packed,
        RingFormat,
        Split,
        Take,
        Why, //
    }, //
};
use kernel::prelude::*;

/// How packets go to the socket, which is asked once a turn.
#[derive(Clone, Copy)]
pub enum Way {
    /// Many at a time, in buffers of this layout.
    Batches(Layout),
    /// One by one, as copies.
    Singly,
    /// One by one, those for which it pays without a copy.
    ZeroCopy,
}

impl Way {
    /// How packets go from `queue` to `sock`, its backend's.
    pub fn of(queue: &mut Queue, sock: &Socket) -> Self {
        // Used in order, the ring wants back what was copied behind what was not.
        if queue.state.zerocopy().is_some()
            && !queue.features.has(Features::IN_ORDER)
            && sock.completes_ubufs()
        {
            return Self::ZeroCopy;
        }
        let layout = sock
            .takes_batches()
            .then(|| Layout::new(queue.state.backend_header, sock.has_xdp()).ok());
        layout.flatten().map_or(Self::Singly, Self::Batches)
    }
}

/// Moves packets from the guest to the backend, until there is a reason to pause.
///
/// Fails if the ring or a packet is malformed, or out of reach.
pub fn transmit(
    queue: &mut Queue,
    mm: CurrentMm<'_>,
    maps: &Maps,
    sock: &Socket,
    way: Way,
    budget: &mut Budget<'_>,
) -> Result<Pause, Fault> {
    if queue.ring.is_packed() {
        transmit_from::<Packed>(queue, mm, maps, sock, way, budget)
    } else {
        transmit_from::<Split>(queue, mm, maps, sock, way, budget)
    }
}

/// As [`transmit`], from a ring of this format.
#[inline(always)]
fn transmit_from<F: RingFormat>(
    queue: &mut Queue,
    mm: CurrentMm<'_>,
    maps: &Maps,
    sock: &Socket,
    way: Way,
    budget: &mut Budget<'_>,
) -> Result<Pause, Fault> {
    match way {
        Way::Batches(layout) => transmit_batch::<F>(queue, mm, maps, sock, layout, budget),
        Way::Singly => transmit_singly::<F>(queue, mm, maps, sock, false, budget),
        Way::ZeroCopy => transmit_singly::<F>(queue, mm, maps, sock, true, budget),
    }
}

/// Sends the batch of `queue` to `sock`, and counts what is sent or lost.
pub fn send_batch(queue: &mut NetQueue, stats: &Stats, sock: &Socket) {
    let NetQueue {
        batch, batch_bytes, ..
    } = queue;
    let (count, bytes) = (batch.len() as u64, core::mem::take(batch_bytes));
    match sock.send_batch(batch) {
        Ok(()) => {
            stats.packets.add(count);
            stats.bytes.add(bytes);
        }
        // As on a wire that is cut: the packets are lost, the guest has its buffers back.
        Err(_) => stats.lost_many(Loss::Backend, count, bytes as usize),
    }
}

/// Looks at a chain to transmit.
///
/// Returns the length in bytes of its packet, what `segments` have but for the first `skip`: 0 if
/// it has no more than these. Fails with [`EINVAL`] if the chain is one to receive.
#[inline(always)]
fn packet_len(chain: &Chain, segments: &Segments, skip: usize) -> Result<usize, Fault> {
    if chain.writable > 0 {
        return Err(Fault::new(EINVAL, Why::Writable));
    }
    Ok(segments.total().saturating_sub(skip))
}

/// What to pause for after `err`, which came of a packet of `len` bytes; none if it is to be
/// dropped. `retries` is the queue's, and `budget` the turn's.
#[cold]
fn pause_after(err: Error, len: usize, retries: &mut u32, budget: &Budget<'_>) -> Option<Pause> {
    if budget.is_begun() {
        // It is not the packet that the turn before has ended with.
        *retries = 0;
    }
    match Verdict::of(err, len, retries) {
        Verdict::Drop => None,
        Verdict::Wait => Some(Pause::NotReady),
        Verdict::Retry => Some(Pause::NoMemory),
    }
}

/// Moves packets from the guest to a tap, many at a time.
#[inline(never)]
fn transmit_batch<F: RingFormat>(
    queue: &mut Queue,
    mm: CurrentMm<'_>,
    maps: &Maps,
    sock: &Socket,
    layout: Layout,
    budget: &mut Budget<'_>,
) -> Result<Pause, Fault> {
    let (stats, state) = (&*queue.stats, &mut queue.state);
    let mut ring = queue.ring.in_format::<F>();
    let (skip, endian) = (state.own_header, ring.endian());

    while ring.unpublished() < BATCH && !budget.is_spent() {
        state.segments.clear();
        let mut take = ring.take(mm);
        let Some(chain) = take.next_chain(maps, &mut state.segments, None)? else {
            return Ok(Pause::NoBuffer);
        };
        let len = packet_len(&chain, &state.segments, skip)?;
        let bytes = len.saturating_sub(layout.header());
        let pushed = (state.batch).push(mm, layout, &state.segments, skip, &stats.groups);
        let sent = match pushed {
            Ok(header) => match header::complete(header, len, endian) {
                true => {
                    state.batch_bytes = state.batch_bytes.wrapping_add(bytes as u64);
                    stats.took(bytes);
                    Ok(())
                }
                false => {
                    state.batch.pop();
                    Err((EINVAL, Loss::Header))
                }
            },
            // Too long for a batch: by itself, behind those that came before.
            Err(ENOSPC) => {
                send_batch(state, stats, sock);
                let sent = sock.send(mm, &state.segments, skip, false);
                sent.map(|_| stats.moved(bytes))
                    .map_err(|err| (err, Loss::of(err)))
            }
            Err(EINVAL) => Err((EINVAL, Loss::Short)),
            Err(err) => Err((err, Loss::of(err))),
        };
        if let Err((err, loss)) = sent {
            if let Some(pause) = pause_after(err, len, &mut state.retries, budget) {
                return Ok(pause);
            }
            stats.lost(loss, bytes);
        }
        budget.spend(len, chain.descriptors);
        take.complete();
        if state.batch.is_full() {
            send_batch(state, stats, sock);
        }
    }
    Ok(Pause::Enough)
}

/// Moves packets from the guest to a backend that takes them one by one.
#[inline(never)]
fn transmit_singly<F: RingFormat>(
    queue: &mut Queue,
    mm: CurrentMm<'_>,
    maps: &Maps,
    sock: &Socket,
    zerocopy: bool,
    budget: &mut Budget<'_>,
) -> Result<Pause, Fault> {
    let NetQueue {
        backend,
        own_header,
        backend_header,
        segments,
        retries,
        ..
    } = &mut queue.state;
    let (stats, mut ring) = (&*queue.stats, queue.ring.in_format::<F>());
    let (skip, body) = (*own_header, own_header.saturating_add(*backend_header));
    let mut zerocopy = backend
        .as_mut()
        .and_then(|backend| backend.zerocopy.as_mut())
        .filter(|_| zerocopy);

    while ring.unpublished() < BATCH && !budget.is_spent() {
        segments.clear();
        let mut take = ring.take(mm);
        let Some(chain) = take.next_chain(maps, segments, None)? else {
            return Ok(Pause::NoBuffer);
        };
        let len = packet_len(&chain, segments, skip)?;
        let bytes = len.saturating_sub(*backend_header);
        let wanted = zerocopy
            .as_mut()
            .and_then(|zerocopy| zerocopy.if_wanted(sock, len, segments, body, take.num()));
        let sent = match wanted {
            _ if len == 0 => Err((EINVAL, take)),
            Some(zerocopy) => zerocopy.send(mm, sock, take, segments, skip, stats),
            None => {
                let more = budget.has_bytes(len) && !take.is_last();
                send_copy(mm, sock, take, segments, skip, more)
            }
        };
        let went = sent.is_ok();
        if let Some((err, take)) = sent.err() {
            if let Some(pause) = pause_after(err, len, retries, budget) {
                return Ok(pause);
            }
            let loss = if len == 0 { Loss::Short } else { Loss::of(err) };
            stats.lost(loss, bytes);
            take.complete();
        } else {
            stats.moved(bytes);
        }
        if let Some(zerocopy) = &mut zerocopy {
            zerocopy.count(went, ring.any(), stats);
        }
        budget.spend(len, chain.descriptors);
    }
    Ok(Pause::Enough)
}

/// As [`ZeroCopy::send`](super::zcopy::ZeroCopy::send), but the socket has a copy, and the chain is
/// completed. `more` says that another packet follows at once.
#[inline(always)]
fn send_copy<'ring, 'mm, F: RingFormat>(
    mm: CurrentMm<'mm>,
    sock: &Socket,
    take: Take<'ring, CurrentMm<'mm>, F>,
    segments: &Segments,
    skip: usize,
    more: bool,
) -> Result<(), (Error, Take<'ring, CurrentMm<'mm>, F>)> {
    match sock.send(mm, segments, skip, more) {
        Ok(_) => {
            take.complete();
            Ok(())
        }
        Err(err) => Err((err, take)),
    }
}
