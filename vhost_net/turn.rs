// SPDX-License-Identifier: GPL-2.0

//! A turn: what the worker does for a queue before it looks at the other one.
//!
//! It looks what the socket is like, moves packets, gives to the guest and to the socket what was
//! moved, and asks to be woken by whichever side has nothing. The queue is locked all the while,
//! and so is the IOTLB, if there is one.

#![forbid(unsafe_code)]

use super::{
    budget::{
        Budget,
        Pause,
        BATCH, //
    },
    busy_poll::{
        BusyPoll,
        Polled, //
    },
    net::{
        Device,
        Queue,
        RX,
        TX, //
    },
    queue::run_unless_ready,
    receive::{
        receive,
        wanted, //
    },
    stretch::Stretch,
    transmit::{
        send_batch,
        transmit,
        Way, //
    },
};
use crate::{
    memtable::{
        Iotlb,
        Maps, //
    },
    sys::{
        socket::Socket,
        uaccess::CurrentMm, //
    },
    vhost::Cause,
    vring::{
        Fault,
        Wanted, //
    }, //
};
use kernel::prelude::*;

/// How long a queue rests, in milliseconds, whose ring itself needs memory.
const REST: u32 = 10;

/// Moves packets through a queue, in the user memory `mm`, until there are no more or the queue's turn is over.
///
/// Returns after how many milliseconds the queue is to run again, for want of memory; 0 if there is
/// no such want.
pub fn turn(device: &Device, mm: CurrentMm<'_>, queue: &mut Queue, cause: Cause) -> u32 {
    let Some(mem) = queue.mem.clone() else {
        return 0;
    };
    let Some(sock) = queue.state.backend.as_ref().map(|b| b.sock.clone()) else {
        return 0;
    };
    if !queue.is_set_up() {
        return 0;
    }
    let kicked = queue.go_on(cause.kicked);
    let iotlb = queue.iotlb.clone();
    let iotlb = iotlb.as_deref().map(|iotlb| device.iotlb_to_run(iotlb));
    let mut maps = mem.maps();
    if let Some(iotlb) = &iotlb {
        if let Err(fault) = queue.ring.find(iotlb) {
            return rest_after(device, mm, queue, fault, kicked, Some(&**iotlb));
        }
        maps = iotlb.maps();
    }
    let busy_poll = BusyPoll {
        device,
        mm,
        iotlb: iotlb.as_deref(),
        waited_for: cause.waited_for,
    };
    let mut stretch = Stretch::begin(&queue.stats);
    let moved = move_packets(queue, maps, &sock, &busy_poll, &mut stretch);
    let finished = match moved {
        // It has done that when it paused; but packets that went without a copy may be done since.
        Ok(Next::Wait | Next::Rest(_)) if queue.state.zerocopy().is_none() => Ok(()),
        // Also after a fault: what was moved before it is done.
        _ => finish(queue, mm, &sock, Some(&mut stretch)),
    };
    match (moved, finished) {
        (Ok(Next::Wait), Ok(())) => 0,
        (Ok(Next::Again), Ok(())) => {
            queue.run_again();
            0
        }
        (Ok(Next::Rest(msecs)), Ok(())) => msecs,
        (Err(fault), _) | (_, Err(fault)) => {
            rest_after(device, mm, queue, fault, kicked, iotlb.as_deref())
        }
    }
}

/// Halts the queue, unless that was for want of memory. Returns how long it rests then.
#[cold]
fn rest_after(
    device: &Device,
    mm: CurrentMm<'_>,
    queue: &mut Queue,
    fault: Fault,
    kicked: bool,
    iotlb: Option<&Iotlb>,
) -> u32 {
    if fault.miss().is_none() {
        // Or each packet that comes would have it told again.
        queue.state.poll.as_mut().stop();
    } else if device.run_again_if_late(queue, kicked) {
        return 0;
    } else {
        let wanted = match queue.index() {
            RX => wanted(queue),
            _ => Wanted::default(),
        };
        queue.look_ahead(mm, fault, iotlb, wanted);
    }
    if device.halt(queue, fault, kicked) {
        REST
    } else {
        0
    }
}

/// What becomes of a queue after its turn.
enum Next {
    /// It runs when it is kicked, or its backend is ready.
    Wait,
    /// It runs again, after the other one.
    Again,
    /// It runs again after so many milliseconds.
    Rest(u32),
}

fn move_packets(
    queue: &mut Queue,
    maps: &Maps,
    sock: &Socket,
    busy_poll: &BusyPoll<'_>,
    stretch: &mut Stretch,
) -> Result<Next, Fault> {
    let mm = busy_poll.mm;
    queue.state.poll.as_mut().pause();
    queue.disable_kicks(mm)?;

    let way = match queue.index() {
        RX => Way::Singly, // as good as any: nothing is sent
        _ => Way::of(queue, sock),
    };
    let mut budget = Budget::new(busy_poll.device.lock_waiters());
    while !budget.is_spent() {
        if queue.ring.unpublished() >= BATCH {
            finish(queue, mm, sock, None)?;
        }
        let pause = match queue.index() {
            RX => receive(queue, mm, maps, &mut budget)?,
            _ => transmit(queue, mm, maps, sock, way, &mut budget)?,
        };
        if matches!(pause, Pause::Enough) {
            continue;
        }
        finish(queue, mm, sock, Some(stretch))?;
        if matches!(pause, Pause::NoMemory) {
            return Ok(Next::Rest(1 << queue.state.retries));
        }
        queue.state.retries = 0;
        // Each queue polls the side that packets come from: the guest, or the socket.
        let polled = match (queue.index(), pause) {
            (RX, Pause::NotReady) | (TX, Pause::NoBuffer) => {
                busy_poll.for_work(queue, budget.is_begun())
            }
            _ => Polled::TimedOut,
        };
        match polled {
            Polled::Found => {}
            Polled::Interrupted => break,
            Polled::TimedOut if wake_by(queue, mm, sock, pause)? => {}
            Polled::TimedOut => return Ok(Next::Wait),
        }
        // A guest that makes one buffer available at a time can't keep the worker.
        budget.spend(0, 0);
    }
    Ok(Next::Again)
}

/// Has the queue run when the side that `pause` is about has something. Returns whether it has it
/// already; then the turn goes on. So what has come while the guest was called needs no other turn,
/// and the other queue has its own when the budget is spent.
///
/// Fails as [`Queue::enable_kicks`].
fn wake_by(
    queue: &mut Queue,
    mm: CurrentMm<'_>,
    sock: &Socket,
    pause: Pause,
) -> Result<bool, Fault> {
    if matches!(pause, Pause::NoBuffer) {
        return queue.enable_kicks(mm);
    }
    // A backend in an error state wakes nobody; the owner will give another.
    Ok(run_unless_ready(queue, sock).unwrap_or(false))
}

/// Sends what waits to be sent, and gives the buffers that are done with to the guest. `stretch` is
/// what ends here, if the queue pauses.
///
/// Fails as [`Queue::publish`].
#[inline(always)]
fn finish(
    queue: &mut Queue,
    mm: CurrentMm<'_>,
    sock: &Socket,
    stretch: Option<&mut Stretch>,
) -> Result<(), Fault> {
    if !queue.state.batch.is_empty() {
        send_batch(&mut queue.state, &queue.stats, sock);
    }
    if core::mem::take(&mut queue.state.logged) {
        queue.signal_log();
    }
    if let Some(zerocopy) = queue.state.zerocopy() {
        zerocopy.complete(&mut queue.ring, &queue.stats);
    }
    if let Some(stretch) = stretch {
        stretch.end(queue);
    }
    queue.publish(mm)
}
