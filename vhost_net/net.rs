// SPDX-License-Identifier: GPL-2.0

//! The net device as a type, and its two queues.

#![forbid(unsafe_code)]

use crate::vhost;

/// The net device, as a [`vhost::Driver`].
pub struct Net;

/// A net device that is open.
pub type Device = vhost::Device<Net>;

/// A queue of one.
pub type Queue = vhost::Queue<Net>;

/// What runs a queue of one.
pub type Worker = vhost::Worker<Net>;

/// The index of the queue that fills the guest's buffers; the other one empties them.
pub const RX: usize = 0;
/// The index of the other one.
pub const TX: usize = 1;
