// SPDX-License-Identifier: GPL-2.0

//! The backend of a queue: a tap or a packet socket.

#![forbid(unsafe_code)]

use super::{
    net::{
        Worker,
        RX,
        TX, //
    },
    zcopy::ZeroCopy, //
};
use crate::sys::{
    receiver::Receiver,
    socket::{
        Kind,
        Socket, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// What a queue takes its packets from, or gives them to.
pub struct Backend {
    pub sock: Arc<Socket>,
    /// For queue [`RX`].
    pub receiver: Option<Receiver>,
    /// For queue [`TX`], if the owner of the host wants it and the socket can do it.
    pub zerocopy: Option<ZeroCopy<Worker>>,
}

impl Backend {
    /// Opens the backend of queue `index` behind the current task's file descriptor `fd`.
    ///
    /// Fails with [`ENOTSOCK`] if it is no backend, with [`EBADF`], and with [`ENOMEM`].
    pub fn new(index: usize, fd: i32) -> Result<Self> {
        let sock = Arc::new(Socket::from_fd(fd)?, GFP_KERNEL_ACCOUNT)?;
        let receiver = match index {
            RX => Some(Receiver::new(sock.clone())?),
            _ => None,
        };
        Ok(Self {
            sock,
            receiver,
            zerocopy: None,
        })
    }

    /// Lets the packets of queue `index`, which `worker` runs, go without a copy, if that is to be
    /// and the socket can do it.
    ///
    /// Fails with [`EPERM`] if there is no worker, and with [`ENOMEM`].
    pub fn enable_zerocopy(&mut self, index: usize, worker: Option<Arc<Worker>>) -> Result {
        let enabled = crate::parameters::experimental_zcopytx();
        if enabled && index == TX && self.sock.has_zerocopy() {
            self.zerocopy = Some(ZeroCopy::new(index, worker.ok_or(EPERM)?)?);
        }
        Ok(())
    }

    /// What kind of socket it is, for who looks at `fdinfo`.
    pub fn name(&self) -> &'static str {
        match self.sock.kind() {
            Kind::Packet => "packet",
            Kind::Tun | Kind::Tap => "tap",
        }
    }
}
