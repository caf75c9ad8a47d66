// SPDX-License-Identifier: GPL-2.0

//! The messages of the device IOTLB: read from the device, and written to it.
//!
//! What the owner reads are the [misses](super::misses::Misses) of the queues; what it writes
//! are updates and invalidations.

#![forbid(unsafe_code)]

use super::{
    device::{
        Device,
        Driver, //
    },
    state::State,
    work::{
        WorkBits,
        QUEUES, //
    }, //
};
use crate::{
    memtable::{
        Iova,
        Update,
        READ_WRITE, //
    },
    sys::{
        compat::EBADFD,
        poll::{
            self,
            Wake, //
        },
        uaccess::CurrentMm, //
    },
    uapi,
    usermem::{
        UserAddr,
        UserMemory, //
    }, //
};
use kernel::{
    fs::File,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    sync::poll::PollTable, //
};

impl<D: Driver> Device<D> {
    /// Reads a message from the device. Waits for one unless `nonblock` is set.
    ///
    /// Returns 0 if `to` is too short for one. Fails with [`EAGAIN`] if there is none and
    /// `nonblock` is set, with [`ERESTARTSYS`] if a signal came first, and with [`EBADFD`] if
    /// there will be none, for there is no IOTLB.
    pub fn read(&self, to: &mut IovIterDest<'_>, nonblock: bool) -> Result<usize> {
        if to.len() < size_of::<uapi::Message>() {
            return Ok(0);
        }
        let (message, number) = self.next_message(nonblock)?;
        let bytes = message.as_bytes();
        let len = to.copy_to_iter(bytes);
        if len != bytes.len() {
            self.misses.lock().unread(number);
            self.readers.notify_all();
        }
        Ok(len)
    }

    fn next_message(&self, nonblock: bool) -> Result<(uapi::Message, u64)> {
        let mut misses = self.misses.lock();
        loop {
            if let Some(message) = misses.read() {
                return Ok(message);
            }
            if nonblock {
                return Err(EAGAIN);
            }
            if current!().signal_pending() {
                return Err(ERESTARTSYS);
            }
            if !misses.is_open() {
                return Err(EBADFD);
            }
            let _ = self.readers.wait_interruptible(&mut misses);
        }
    }

    /// Writes a message to the device.
    ///
    /// Returns the size of a message. Fails with [`EINVAL`] if it is none, or is an update of an
    /// empty range, and with [`EFAULT`] if the device can't follow it: it is neither an update nor
    /// an invalidation, there is no IOTLB, the
    /// range wraps, its user memory is not in user space, or there is no memory to keep it.
    pub fn write(&self, mm: CurrentMm<'_>, from: &mut IovIterSource<'_>) -> Result<usize> {
        let mut kind = [0; size_of::<u32>()];
        if from.copy_from_iter(&mut kind) != kind.len() {
            return Err(EINVAL);
        }
        if !matches!(
            u32::from_ne_bytes(kind),
            uapi::IOTLB_MSG | uapi::IOTLB_MSG_V2
        ) {
            return Err(EINVAL);
        }
        // A hole, or the address space of a message of the second version: there is one only.
        from.advance(size_of::<u32>());
        let mut message = uapi::IotlbMessage::default();
        let bytes = message.as_mut_bytes();
        if from.copy_from_iter(bytes) != bytes.len() {
            return Err(EINVAL);
        }
        if message.kind == uapi::IOTLB_UPDATE && message.size == 0 {
            return Err(EINVAL);
        }
        self.follow(mm, &message).map_err(|_| EFAULT)?;
        Ok(size_of::<uapi::Message>())
    }

    fn follow(&self, mm: CurrentMm<'_>, message: &uapi::IotlbMessage) -> Result {
        let mut state = self.state.lock();
        let iotlb = state.iotlb.as_ref().ok_or(EFAULT)?;
        let (addr, size) = (Iova::new(message.iova), message.size);
        match message.kind {
            uapi::IOTLB_UPDATE => {
                let user = UserAddr::new(message.uaddr);
                let last = message.uaddr.checked_add(size - 1).ok_or(EFAULT)?;
                usize::try_from(last).map_err(|_| EFAULT)?;
                if message.perm & READ_WRITE != 0 && !mm.access_ok(user, size) {
                    return Err(EFAULT);
                }
                self.update(&mut state, Update::new(addr, size, user, message.perm)?)?;
                let mut answered = [false; QUEUES];
                self.misses.lock().answer(addr, size, |index| {
                    if let Some(answered) = answered.get_mut(index) {
                        *answered = true;
                    }
                });
                for index in (0..QUEUES).filter(|&index| answered.get(index) == Some(&true)) {
                    self.go_on(&state, mm, index);
                }
            }
            uapi::IOTLB_INVALIDATE => {
                self.lock_iotlb(iotlb).invalidate(addr, size)?;
                self.misses.lock().invalidate(addr, size);
            }
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    /// Queue `index` has all that it waited for: unless there is more, it runs.
    fn go_on(&self, state: &State<Self>, mm: CurrentMm<'_>, index: usize) {
        let Some(owner) = &state.owner else {
            return;
        };
        // Who has the device, but another address space, sees none of the rings.
        if state.check_owner().is_ok() && self.waits_for_more(mm, index) {
            return;
        }
        if let Ok(worker) = owner.workers.of(index) {
            worker.wake(WorkBits::ready(index));
        }
    }

    /// The events that the device is ready for: a message can be read.
    pub fn poll(&self, file: &File, table: PollTable<'_>) -> u32 {
        table.register_wait(file, &self.readers);
        if self.misses.lock().is_readable() {
            poll::IN | poll::RDNORM
        } else {
            0
        }
    }
}
