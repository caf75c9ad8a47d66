// SPDX-License-Identifier: GPL-2.0

//! Giving a queue its backend, and taking it away (`VHOST_NET_SET_BACKEND`).
//!
//! When it returns, the old backend is not in use any more, and what was sent through it without a
//! copy is done.

#![forbid(unsafe_code)]

use super::{
    backend::Backend,
    net::{
        Device,
        Queue,
        Worker,
        TX, //
    },
    queue::run_when_ready,
    zcopy::ZeroCopy, //
};
use crate::{
    sys::uaccess::CurrentMm,
    uapi, //
};
use kernel::prelude::*;

/// Gives queue `index` the backend behind `fd`, or none if that is -1.
///
/// Fails with [`EPERM`] unless the current task shares the owner's memory, with [`ENOBUFS`] if
/// there is no such queue, with [`EFAULT`] if the queue is not set up, and with [`ENOTSOCK`] if
/// `fd` is no backend.
pub fn set_backend(device: &Device, mm: CurrentMm<'_>, index: usize, fd: i32) -> Result {
    // Locked until the end: what else the owner wants waits.
    let state = device.lock();
    state.check_owner()?;
    // Before the queue is locked, for it may have to wait for the network's own lock.
    let new = match fd {
        uapi::FILE_UNBIND => Ok(None),
        fd => Backend::new(index, fd).map(Some),
    };
    let mut guard = device.queue(index)?;
    let queue = &mut *guard;
    if fd == uapi::FILE_UNBIND {
        // Whatever the queue waited for, it has no use for it any more.
        device.forget_misses(index);
    }
    if !queue.access_ok(mm) {
        return Err(EFAULT);
    }
    let mut new = new?;
    let same = match (&new, &queue.state.backend) {
        (Some(new), Some(old)) => new.sock.is_same(&old.sock),
        (new, old) => new.is_none() && old.is_none(),
    };
    if same {
        return Ok(());
    }
    if let Some(new) = &mut new {
        new.enable_zerocopy(index, queue.worker())?;
    }
    let swapped = swap(device, mm, queue, new);
    // What is let go of may take a while, and needs no lock of the queue.
    drop(guard);
    let mut old = match swapped {
        Ok(old) => old,
        Err((err, new)) => {
            drop(new);
            return Err(err);
        }
    };
    if let Some(zerocopy) = old.as_mut().and_then(|old| old.zerocopy.take()) {
        settle(device, mm, index, zerocopy);
    }
    // No turn is at the old one: each looks for it anew under the queue's lock.
    drop(old);
    Ok(())
}

/// Starts a queue with a new backend, and returns the old one.
///
/// Returns the new one with the error if that fails; then the queue goes on with the old one.
fn swap(
    device: &Device,
    mm: CurrentMm<'_>,
    queue: &mut Queue,
    new: Option<Backend>,
) -> Result<Option<Backend>, (Error, Option<Backend>)> {
    queue.state.poll.as_mut().stop();
    queue.state.retries = 0;
    let sock = new.as_ref().map(|backend| backend.sock.clone());
    let old = core::mem::replace(&mut queue.state.backend, new);
    let started = match sock {
        Some(sock) => device
            .start(queue, mm)
            .and_then(|()| run_when_ready(queue, &sock)),
        None => Ok(()),
    };
    let Err(err) = started else {
        return Ok(old);
    };
    let new = core::mem::replace(&mut queue.state.backend, old);
    if let Some(sock) = queue.state.backend.as_ref().map(|b| b.sock.clone()) {
        // It was in use: whether it is in an error state is no news.
        let _ = run_when_ready(queue, &sock);
    }
    Err((err, new))
}

/// Waits until all packets of `zerocopy`, which queue `index` had, are done, and gives their
/// buffers to the guest.
fn settle(device: &Device, mm: CurrentMm<'_>, index: usize, mut zerocopy: ZeroCopy<Worker>) {
    zerocopy.in_flight().wait();
    let Ok(mut guard) = device.queue(index) else {
        return;
    };
    let queue = &mut *guard;
    zerocopy.complete(&mut queue.ring, &queue.stats);
    let iotlb = queue.iotlb.clone();
    let iotlb = iotlb.as_deref().map(|iotlb| device.lock_iotlb(iotlb));
    let found = iotlb.as_ref().map_or(Ok(()), |i| queue.ring.find(i));
    if let Err(fault) = found.and_then(|()| queue.publish(mm)) {
        // If that is because of the IOTLB: nobody waits for an answer any more.
        queue.fault(fault);
    }
}

/// Waits until no packet that was begun before is sent from guest memory.
///
/// The caller has the device's state locked, and no queue.
pub fn flush(device: &Device) {
    // The backend stays, for the device's state is locked.
    let hold = |queue: &mut Queue| Some(queue.state.zerocopy()?.hold());
    let Some(in_flight) = device.queue(TX).ok().and_then(|mut queue| hold(&mut queue)) else {
        return;
    };
    in_flight.wait();
    if let Ok(mut queue) = device.queue(TX) {
        if let Some(zerocopy) = queue.state.zerocopy() {
            zerocopy.go_on();
        }
    }
}
