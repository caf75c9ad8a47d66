// SPDX-License-Identifier: GPL-2.0

//! The net device: packets between a guest's virtqueues and a tap or a packet socket.
//!
//! Queue 0 receives (virtio 1.3, section 5.1.2), queue 1 transmits. Each has a backend of its own,
//! which for a guest is the same one. A turn moves packets until there are no more, or until it
//! has moved so many that the other queue must have its turn.
//!
//! The way of a packet that the guest sends:
//!
//! 1. The guest kicks: an eventfd. Its wait queue calls `sys/poll.rs`, which sets the queue's kick
//!    bit ([`vhost/work.rs`](crate::vhost)) and wakes the worker (`vhost/worker.rs`).
//! 2. The worker takes the bits, and `vhost/device.rs` runs each queue that has one: it calls
//!    [`Net::run`](Driver::run), here, which locks the queue and starts a [`turn`].
//! 3. [`transmit`] takes the next chain of the ring (`vring/split.rs`, `vring/packed.rs`), whose
//!    buffers `memtable/maps.rs` translates, and puts the packet into a batch for the tap
//!    (`sys/xdp.rs`), into the socket (`sys/socket.rs`), or lends it to that ([`zcopy`]). Whether
//!    one that can't be moved is dropped, is tried again or halts the queue, [`verdict`] says.
//! 4. After 64 packets (or two pages of them), and in the end, the turn sends the batch, writes the used entries
//!    (as above) and calls the guest if it wants that (`vhost/queue.rs`).
//! 5. With the ring empty it polls for a while ([`busy_poll`]), asks for kicks, and is over.
//!
//! A packet for the guest: the tap's wait queue sets the queue's ready bit, and [`receive`] asks
//! how long the packet is, takes as many chains as it needs, has the socket write it there, logs
//! what was written (`log.rs`) and completes the chains. With the tap empty, the turn polls,
//! has the worker woken when the tap gets ready, and is over.
//!
//! Beside that way: [`chardev`] is the device node, [`attach`] sets backends, [`queue`] and
//! [`backend`] are what a queue has, [`header`] and [`budget`] what their names say, [`stretch`] is
//! for who traces turns, [`net`] the types.

#![forbid(unsafe_code)]

mod attach;
mod backend;
mod budget;
mod busy_poll;
mod chardev;
mod header;
mod net;
mod queue;
mod receive;
mod stretch;
mod transmit;
mod turn;
mod verdict;
mod zcopy;

pub use net::Net;

use crate::{
    sys::{
        uaccess::CurrentMm,
        ubuf::Replaced, //
    },
    vhost::{
        Cause,
        Driver,
        QUEUES, //
    }, //
};
use kernel::prelude::*;
use net::{
    Device,
    Queue,
    Worker, //
};
use queue::NetQueue;

impl Driver for Net {
    const QUEUE_NAMES: [&'static CStr; QUEUES] = [c"rx", c"tx"];

    type Queue = NetQueue;

    fn new_queue(index: usize) -> Result<NetQueue> {
        NetQueue::new(index)
    }

    fn run(device: &Device, mm: CurrentMm<'_>, index: usize, cause: Cause) -> u32 {
        let Some(mut queue) = device.queue_to_run(index, &cause) else {
            return 0;
        };
        (queue.stats).began(cause.kicked, cause.ready, cause.woken, cause.since);
        turn::turn(device, mm, &mut queue, cause)
    }

    type Kept = Option<Replaced<Worker>>;

    fn follow_worker(queue: &mut Queue) -> Self::Kept {
        queue::follow_worker(queue)
    }

    fn flush(device: &Device) {
        attach::flush(device);
    }
}
