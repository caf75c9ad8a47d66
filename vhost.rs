// SPDX-License-Identifier: GPL-2.0

//! The generic vhost device.
//!
//! A [`Device`] has an owner, a worker thread or several, and queues. User space sets it up through
//! ioctls; a queue's worker then runs it when its driver kicks or its backend gets ready. What the device
//! is, a [`Driver`] says: nothing here knows of networking.
//!
//! The room behind this door:
//!
//! - [`work`]: the bits that a kick or a backend sets. [`worker`]: the thread that takes these.
//!   [`workers`]: those of a device, which [`assign`] makes and gives to its queues.
//! - [`queue`]: a ring with its eventfds; calls and faults are signalled here. [`queue_setup`]:
//!   what the owner sets of it; here its kicks begin to be waited for. [`guard`]: its lock.
//! - [`stats`]: what a queue does, counted and traced. [`shown`]: what others see of it.
//!   [`identity`]: what its worker is called; [`kicks`]: when it was kicked.
//! - [`device`]: the owner ([`state`]) and the queues, and which lock comes first; runs a queue
//!   for the worker. [`ioctl`], [`fd`] and [`features_arg`]: what the owner asks for.
//!   [`misses`], [`message_io`] and [`behind`]: what they tell each other of the IOTLB; [`late`]: who has
//!   it locked meanwhile. [`fdinfo`]: what others see.

#![forbid(unsafe_code)]

mod assign;
mod behind;
mod device;
mod fd;
mod fdinfo;
mod features_arg;
mod guard;
mod identity;
mod ioctl;
mod kicks;
mod late;
mod message_io;
mod misses;
mod queue;
mod queue_setup;
mod shown;
mod state;
mod stats;
mod work;
mod worker;
mod workers;

pub use device::{
    Cause,
    Device,
    Driver,
    Queue,
    Worker, //
};
pub use features_arg::FeaturesArg;
pub use queue::{
    backend_poll,
    QueuePoll,
    QueueState, //
};
pub use stats::{
    Loss,
    Stats, //
};
pub use work::{
    WorkBits,
    QUEUES, //
};
