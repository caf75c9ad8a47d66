// SPDX-License-Identifier: GPL-2.0

//! What the net device keeps for a queue, and the queue's wait for its backend.

#![forbid(unsafe_code)]

use super::{
    backend::Backend,
    net::{
        Queue,
        Worker,
        RX, //
    },
    zcopy::ZeroCopy, //
};
use crate::{
    log::DirtyList,
    memtable::Segments,
    sys::{
        poll,
        socket::Socket,
        ubuf::Replaced,
        xdp::XdpBatch, //
    },
    vhost::{
        backend_poll,
        QueuePoll,
        QueueState, //
    }, //
};
use kernel::{
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// What the net device keeps for a queue.
pub struct NetQueue {
    pub backend: Option<Backend>,
    pub poll: QueuePoll<Worker>,
    /// The size in bytes of the header that the device makes and strips itself.
    pub own_header: usize,
    /// The size in bytes of the header that the backend makes and takes.
    pub backend_header: usize,
    /// The buffers of the packet that is being moved.
    pub segments: Segments,
    /// What the guest's buffers of that packet are, if they are to be logged.
    pub dirty: DirtyList,
    /// Packets were logged, and the owner was not told yet.
    pub logged: bool,
    /// Packets on their way to a tap. Empty between turns.
    pub batch: XdpBatch,
    /// The bytes of these, without headers.
    pub batch_bytes: u64,
    /// How often the packet that comes next was tried again for want of memory.
    pub retries: u32,
    /// When busy polling began, if nothing was found since and it was interrupted.
    pub polling_since: Option<Instant<Monotonic>>,
}

impl NetQueue {
    /// The state of queue `index` without a backend. Fails with [`ENOMEM`].
    pub fn new(index: usize) -> Result<Self> {
        Ok(Self {
            backend: None,
            poll: backend_poll(index, if index == RX { poll::IN } else { poll::OUT })?,
            own_header: 0,
            backend_header: 0,
            segments: Segments::new()?,
            dirty: DirtyList::without_room()?,
            logged: false,
            batch: XdpBatch::new()?,
            batch_bytes: 0,
            retries: 0,
            polling_since: None,
        })
    }

    /// The packets that go without a copy, if some may.
    pub fn zerocopy(&mut self) -> Option<&mut ZeroCopy<Worker>> {
        self.backend.as_mut()?.zerocopy.as_mut()
    }
}

impl QueueState for NetQueue {
    fn backend(&self) -> Option<&'static str> {
        self.backend.as_ref().map(Backend::name)
    }

    type Released = Option<Backend>;

    fn reset(&mut self) -> Option<Backend> {
        self.poll.as_mut().stop();
        self.own_header = 0;
        self.backend_header = 0;
        self.polling_since = None;
        self.retries = 0;
        self.backend.take()
    }
}

/// The queue has another worker: its backend, and packets that are sent without a copy, wake that from
/// now on. What is returned keeps the one before.
pub fn follow_worker(queue: &mut Queue) -> Option<Replaced<Worker>> {
    let worker = queue.worker()?;
    let state = &mut queue.state;
    state.poll.as_mut().set_target(worker.clone());
    Some(state.zerocopy()?.set_worker(worker))
}

/// As [`run_when_ready`], unless the socket is ready now: then this returns true.
pub fn run_unless_ready(queue: &mut Queue, sock: &Socket) -> Result<bool> {
    match queue.worker_and_state() {
        Some((worker, state)) => state.poll.as_mut().start_unless_ready(sock, worker),
        None => Ok(false),
    }
}

/// Has the queue run when `sock`, its backend's, gets ready.
///
/// Fails with [`EINVAL`] if the socket is in an error state.
pub fn run_when_ready(queue: &mut Queue, sock: &Socket) -> Result {
    match queue.worker_and_state() {
        Some((worker, state)) => state.poll.as_mut().start(sock, worker),
        None => Ok(()),
    }
}
