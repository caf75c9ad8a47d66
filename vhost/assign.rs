// SPDX-License-Identifier: GPL-2.0

//! Who runs which queue: the owner's first workers, and those that it makes, frees, and gives to its
//! queues (`VHOST_NEW_WORKER` and what goes with it).
//!
//! A queue moves to another worker between two of its turns. What wakes the old one then wakes the new
//! one, which is told to look at the queue when nobody tells the old one any more. Whatever that was told
//! of the queue is done by this look; it finds the queue another's ([`Device::queue_to_run`]).

#![forbid(unsafe_code)]

use super::{
    device::{
        Device,
        Driver,
        Worker, //
    },
    state::{
        Owner,
        State, //
    },
    work::{
        WorkBits,
        QUEUES, //
    },
    workers::Workers, //
};
use crate::{
    parameters,
    sys::{
        compat::ENOBUFS,
        nospec::bounded,
        poll::Wake, //
    },
    uapi::{
        self,
        Arg, //
    }, //
};
use kernel::{
    mm::MmWithUser,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        ArcBorrow, //
    }, //
};

impl<D: Driver> Device<D> {
    /// Makes the current process the owner.
    ///
    /// Fails with [`EBUSY`] if there is one, with [`EPERM`] if the process has no address space,
    /// and as [`Self::new_worker`]. `state` is ours, locked.
    pub fn set_owner(this: ArcBorrow<'_, Self>, state: &mut State<Self>) -> Result {
        if state.has_owner() {
            return Err(EBUSY);
        }
        let mm = ARef::from(current!().mm().ok_or(EPERM)?);
        let number = current!().group_leader().pid();
        let mut workers = Workers::new();
        for index in 0..QUEUES {
            if index == 0 || parameters::worker_per_virtqueue() {
                let worker = workers.add(|| Self::new_worker(this, &mm, number, state.fork))?;
                workers.give(index, worker);
            }
        }
        let shared = workers.is_shared();
        for index in 0..QUEUES {
            let worker = workers.of(index)?.clone();
            let mut queue = this.queue(index)?;
            queue.stats.set_owner(number);
            queue.shares_worker = shared;
            let identity = worker.identity();
            queue.set_worker(worker, identity);
        }
        state.owner = Some(Owner { mm, workers });
        Ok(())
    }

    /// Makes a worker, for which `owner` and `fork` are what [`Worker::new`] says.
    ///
    /// Fails with [`ENOMEM`]; with [`ERESTARTNOINTR`], which the caller does not see, if a signal
    /// came first.
    fn new_worker(
        this: ArcBorrow<'_, Self>,
        mm: &MmWithUser,
        owner: i32,
        fork: bool,
    ) -> Result<Arc<Worker<D>>> {
        Worker::new(this.into(), mm, owner, fork).map_err(|err| match err {
            // A signal was pending. It is handled, and the call is made again.
            ERESTARTNOINTR => err,
            // Whatever else the reason is, this is what it is called.
            _ => ENOMEM,
        })
    }

    /// The ioctls that make workers, free them, and give them to queues.
    ///
    /// Fails with [`EINVAL`] if there is no owner, with [`EPERM`] unless the current task shares the
    /// owner's memory, with [`ENOIOCTLCMD`] if there is no such ioctl, and as each one says.
    pub fn worker_ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: Arg) -> Result {
        let mut state = this.lock();
        if !state.has_owner() {
            return Err(EINVAL);
        }
        state.check_owner()?;
        let fork = state.fork;
        let owner = state.owner.as_mut().ok_or(EINVAL)?;
        match cmd {
            uapi::NEW_WORKER => Self::add_worker(this, owner, fork, arg),
            uapi::FREE_WORKER => {
                let what: uapi::WorkerState = arg.read()?;
                let worker = owner.workers.remove(what.worker_id)?;
                // No queue has it, so nobody else does.
                drop(worker);
                Ok(())
            }
            uapi::ATTACH_VRING_WORKER => {
                // What is said of the index a second time does not count.
                let index = Self::queue_index(arg)?;
                let what: uapi::VringWorker = arg.read()?;
                this.attach_worker(owner, index, what.worker_id)
            }
            uapi::GET_VRING_WORKER => {
                let index = Self::queue_index(arg)?;
                if owner.workers.of(index)?.was_killed() {
                    return Err(EINVAL);
                }
                arg.write(&uapi::VringWorker {
                    index: index as u32,
                    worker_id: owner.workers.number_of(index),
                })
            }
            _ => Err(ENOIOCTLCMD),
        }
    }

    /// Reads the index of a queue. Fails with [`EFAULT`], and with [`ENOBUFS`] if there is no such
    /// queue.
    fn queue_index(arg: Arg) -> Result<usize> {
        bounded(arg.read::<u32>()? as usize, QUEUES).ok_or(ENOBUFS)
    }

    /// Makes one more worker, and says its number.
    ///
    /// Fails with [`EFAULT`] if the owner's are kernel threads, which no limit of the owner's counts,
    /// as [`Self::new_worker`], and with [`EFAULT`] if the number can't be written; then the worker is
    /// there all the same.
    fn add_worker(
        this: ArcBorrow<'_, Self>,
        owner: &mut Owner<Self>,
        fork: bool,
        arg: Arg,
    ) -> Result {
        if !fork {
            return Err(EFAULT);
        }
        let Owner { mm, workers } = owner;
        // The current process may be another, which shares the owner's memory.
        let number = workers.of(0)?.identity().owner();
        let worker_id = workers.add(|| Self::new_worker(this, mm, number, true))?;
        arg.write(&uapi::WorkerState { worker_id })
    }

    /// Gives queue `index` the worker of this number, unless that was killed. When this returns, the
    /// one before is not at the queue, and will not be.
    ///
    /// Fails with [`ENODEV`] if there is no such worker, and with [`ENOBUFS`] if there is no such
    /// queue.
    fn attach_worker(&self, owner: &mut Owner<Self>, index: usize, number: u32) -> Result {
        let worker = owner.workers.get(number)?.clone();
        if worker.was_killed() || owner.workers.number_of(index) == number {
            return Ok(());
        }
        let kept = {
            let mut queue = self.queue(index)?;
            queue.set_worker(worker.clone(), worker.identity());
            D::follow_worker(&mut queue)
        };
        owner.workers.give(index, number);
        let shared = owner.workers.is_shared();
        self.each_queue(|queue| queue.shares_worker = shared);
        // The one before can still be told something until this is gone.
        drop(kept);
        // It was kicked, or its backend was ready; or it rests, and the one before would have gone on. As
        // after a kick, for that asks again for what nobody has answered.
        worker.wake(WorkBits::kick(index));
        Ok(())
    }
}
