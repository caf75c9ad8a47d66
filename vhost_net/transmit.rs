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
    queue::NetQueue, //
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
        xdp::{
            Layout,
            XdpBatch, //
        }, //
    },
    vring::{
        Chain,
        Fault,
        Take, //
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
    maps: &Maps,
    sock: &Socket,
    way: Way,
    budget: &mut Budget,
) -> Result<Pause, Fault> {
    match way {
        Way::Batches(layout) => transmit_batch(queue, maps, sock, layout, budget),
        Way::Singly => transmit_singly(queue, maps, sock, false, budget),
        Way::ZeroCopy => transmit_singly(queue, maps, sock, true, budget),
    }
}

/// Sends what is in `batch`, and counts what is lost.
pub fn send_batch(batch: &mut XdpBatch, sock: &Socket, errors: &mut u64) {
    let count = batch.len();
    if sock.send_batch(batch).is_err() {
        // As on a wire that is cut: the packets are lost, the guest has its buffers back.
        *errors += count as u64;
    }
}

/// The length in bytes of a packet to transmit: what `segments` have, but for the first `skip`.
///
/// Fails with [`EFAULT`] if the chain is not one to transmit.
#[inline(always)]
fn packet_len(chain: &Chain, segments: &Segments, skip: usize) -> Result<usize, Fault> {
    if chain.writable > 0 {
        return Err(Fault::new(EFAULT, "a buffer to transmit is writable"));
    }
    match segments.total().checked_sub(skip) {
        None | Some(0) => Err(Fault::new(EFAULT, "a packet has no more than its header")),
        Some(len) => Ok(len),
    }
}

/// Moves packets from the guest to a tap, many at a time.
#[inline(never)]
fn transmit_batch(
    queue: &mut Queue,
    maps: &Maps,
    sock: &Socket,
    layout: Layout,
    budget: &mut Budget,
) -> Result<Pause, Fault> {
    let NetQueue {
        own_header,
        segments,
        batch,
        ..
    } = &mut queue.state;
    let (ring, stats) = (&mut queue.ring, &mut queue.stats);
    let (skip, endian) = (*own_header, ring.endian());

    while ring.unpublished() < BATCH && !budget.is_spent() {
        segments.clear();
        let mut take = ring.take();
        let Some(chain) = take.next_chain(maps, segments, None)? else {
            return Ok(Pause::NoBuffer);
        };
        let len = packet_len(&chain, segments, skip)?;
        let sent = match batch.push(layout, segments, skip) {
            Ok(header) => match header::complete(header, len, endian) {
                true => Ok(()),
                false => {
                    batch.pop();
                    Err(EINVAL)
                }
            },
            Err(ENOSPC) => {
                // Too long for a batch: by itself, behind those that came before.
                send_batch(batch, sock, &mut stats.errors);
                sock.send(segments, skip, false).map(|_| ())
            }
            Err(EINVAL) => return Err(Fault::new(EFAULT, "a packet is shorter than its header")),
            Err(EFAULT) => return Err(Fault::new(EFAULT, "a buffer to transmit can't be read")),
            Err(err) => Err(err),
        };
        match sent {
            Ok(()) => {
                stats.packets += 1;
                stats.bytes += len.saturating_sub(layout.header()) as u64;
            }
            // Given back to the ring, to be tried again.
            Err(EAGAIN | ENOMEM | ENOBUFS) => return Ok(Pause::NotReady),
            // What is wrong with it will not get better.
            Err(_) => stats.errors += 1,
        }
        budget.spend(len, chain.descriptors);
        take.complete();
    }
    Ok(Pause::Enough)
}

/// Moves packets from the guest to a backend that takes them one by one.
#[inline(never)]
fn transmit_singly(
    queue: &mut Queue,
    maps: &Maps,
    sock: &Socket,
    zerocopy: bool,
    budget: &mut Budget,
) -> Result<Pause, Fault> {
    let NetQueue {
        backend,
        own_header,
        backend_header,
        segments,
        ..
    } = &mut queue.state;
    let (ring, stats) = (&mut queue.ring, &mut queue.stats);
    let skip = *own_header;
    let mut zerocopy = backend
        .as_mut()
        .and_then(|backend| backend.zerocopy.as_mut())
        .filter(|_| zerocopy);

    while ring.unpublished() < BATCH && !budget.is_spent() {
        segments.clear();
        let mut take = ring.take();
        let Some(chain) = take.next_chain(maps, segments, None)? else {
            return Ok(Pause::NoBuffer);
        };
        let len = packet_len(&chain, segments, skip)?;
        let body = skip.saturating_add(*backend_header);
        let wanted = zerocopy.as_mut().filter(|zerocopy| {
            zerocopy.wants(len, segments, body, take.num()) && sock.completes_ubufs()
        });
        let sent = match wanted {
            Some(zerocopy) => zerocopy.send(sock, take, segments, skip),
            None => {
                let more = budget.has_bytes(len) && !take.is_last();
                send_copy(sock, take, segments, skip, more)
            }
        };
        if let Some((err, take)) = sent.err() {
            if matches!(err, EAGAIN | ENOMEM | ENOBUFS) {
                return Ok(Pause::NotReady);
            }
            stats.errors += 1;
            take.complete();
        } else {
            stats.packets += 1;
            stats.bytes += len.saturating_sub(*backend_header) as u64;
        }
        if let Some(zerocopy) = &mut zerocopy {
            zerocopy.count();
            zerocopy.complete(ring);
        }
        budget.spend(len, chain.descriptors);
    }
    Ok(Pause::Enough)
}

/// As [`ZeroCopy::send`](super::zcopy::ZeroCopy::send), but the socket has a copy, and the chain is
/// completed. `more` says that another packet follows at once.
#[inline(always)]
fn send_copy<'ring>(
    sock: &Socket,
    take: Take<'ring, CurrentMm>,
    segments: &Segments,
    skip: usize,
    more: bool,
) -> Result<(), (Error, Take<'ring, CurrentMm>)> {
    match sock.send(segments, skip, more) {
        Ok(_) => {
            take.complete();
            Ok(())
        }
        Err(err) => Err((err, take)),
    }
}
