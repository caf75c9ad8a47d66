// SPDX-License-Identifier: GPL-2.0

//! The generic vhost device: its owner, its queues, and who may have what locked.
//!
//! Lock order: the device's state, then its queues by their index, then the IOTLB, then the
//! misses. What a turn of a worker uses is under the mutexes of its queue and of the IOTLB; the
//! other queue it only tries to lock. A worker is never stopped, and never waited for, under the
//! mutex of a queue. Which worker runs which queue, [`assign`](super::assign) says.

#![forbid(unsafe_code)]

use super::{
    behind::Behind,
    guard,
    kicks::Kicks,
    misses::{
        Misses,
        MAX_LATE, //
    },
    queue::{
        self,
        QueueState, //
    },
    shown::Shown,
    state::State,
    work::{
        WorkBits,
        QUEUES, //
    },
    worker::{
        self,
        Rest,
        Run,
        WorkerId, //
    }, //
};
use crate::{
    features::Features,
    memtable::{
        MemTable, //
    },
    sys::{
        compat::ENOBUFS,
        counter::{
            Counter,
            Waiters, //
        },
        sched::cond_resched,
        uaccess::CurrentMm, //
    },
    uapi,
    vring::{
        Fault,
        Wanted, //
    }, //
};
use kernel::{
    new_mutex,
    new_poll_condvar,
    new_spinlock,
    prelude::*,
    sync::{
        lock::mutex::MutexGuard,
        poll::PollCondVar,
        Arc,
        Mutex,
        SpinLock, //
    }, //
};

/// The worker of a device.
pub type Worker<D> = worker::Worker<Device<D>>;

/// A queue of a device, locked.
pub type QueueGuard<'a, D> = guard::QueueGuard<'a, <D as Driver>::Queue, Worker<D>>;

/// A queue of a device.
pub type Queue<D> = queue::Queue<<D as Driver>::Queue, Worker<D>>;

/// A kind of vhost device.
pub trait Driver: Sized + Send + Sync + 'static {
    /// The names of the queues in `fdinfo`.
    const QUEUE_NAMES: [&'static CStr; QUEUES];

    /// What the driver keeps for each queue, under the queue's mutex.
    type Queue: QueueState;

    /// Makes the state of queue `index`. Fails with [`ENOMEM`].
    fn new_queue(index: usize) -> Result<Self::Queue>;

    /// Moves what can be moved through queue `index`, in the user memory `mm`. Called by the worker.
    ///
    /// Returns after how many milliseconds the queue is to run again, for want of memory; 0 if
    /// there is no such want.
    fn run(device: &Device<Self>, mm: CurrentMm<'_>, index: usize, cause: Cause) -> u32;

    /// What [`Self::follow_worker`] lets go of.
    type Kept;

    /// The queue has another worker: has what else wakes the one before wake that. What is returned
    /// keeps the one before, and is dropped with no queue locked, since it may wait.
    fn follow_worker(queue: &mut Queue<Self>) -> Self::Kept;

    /// Waits until nothing that was begun before uses guest memory any more.
    ///
    /// The caller has the device's state locked, and no queue.
    fn flush(device: &Device<Self>);
}

/// Why a queue runs, and who runs it.
#[derive(Clone, Copy, Debug)]
pub struct Cause {
    /// Who runs it.
    pub worker: WorkerId,
    /// Its driver kicked it.
    pub kicked: bool,
    /// Its backend is ready, or it goes on for another reason.
    pub ready: bool,
    /// Another queue waits until it has run.
    pub waited_for: bool,
    /// The worker has slept until there was something to do.
    pub woken: bool,
    /// Nanoseconds since the kick; 0 if that is not known.
    pub since: u64,
}

/// A vhost device.
#[pin_data]
pub struct Device<D: Driver> {
    #[pin]
    pub(super) state: Mutex<State<Self>>,
    #[pin]
    pub(super) first: Mutex<KBox<Queue<D>>>,
    #[pin]
    pub(super) second: Mutex<KBox<Queue<D>>>,
    /// What others see of the queues.
    pub(super) shown: [Arc<Shown>; QUEUES],
    /// What the owner is to be told.
    #[pin]
    pub(super) misses: SpinLock<Misses<QUEUES>>,
    /// Who waits for that.
    #[pin]
    pub(super) readers: PollCondVar,
    /// How many threads want to lock what a worker may have locked.
    lock_waiters: Waiters,
    /// How many workers want to lock the IOTLB.
    pub(super) iotlb_waiters: Waiters,
    /// 1 if updates of the IOTLB are put off. Changes under the lock of the misses.
    pub(super) has_late: Counter,
}

impl<D: Driver> Device<D> {
    /// Makes a device without an owner. Fails with [`ENOMEM`].
    pub fn new() -> Result<Arc<Self>> {
        let shown = [Shown::new(0)?, Shown::new(1)?];
        let [first, second] = &shown;
        let first = Queue::<D>::new(0, D::new_queue(0)?, first.clone())?;
        let second = Queue::<D>::new(1, D::new_queue(1)?, second.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                shown,
                state <- new_mutex!(State::new(), "vhost_device"),
                // A class for each queue: the lock validator knows them apart.
                first <- new_mutex!(first, "vhost_first_queue"),
                second <- new_mutex!(second, "vhost_second_queue"),
                misses <- new_spinlock!(Misses::none(), "vhost_misses"),
                readers <- new_poll_condvar!("vhost_readers"),
                lock_waiters: Waiters::new(),
                iotlb_waiters: Waiters::new(),
                has_late: Counter::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Locks what the owner set.
    pub fn lock(&self) -> MutexGuard<'_, State<Self>> {
        self.state.lock()
    }

    fn find_queue(&self, index: usize) -> Option<&Mutex<KBox<Queue<D>>>> {
        match index {
            0 => Some(&self.first),
            1 => Some(&self.second),
            _ => None,
        }
    }

    /// Locks what a worker may have locked, for the owner or for another worker. A worker lets go of it
    /// after the packet that it moves, or if it has nothing to do.
    pub(super) fn lock_for_owner<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        self.lock_waiters.during(|| mutex.lock())
    }

    /// Locks a queue, for the owner. Fails with [`ENOBUFS`] if there is none of this index.
    pub fn queue(&self, index: usize) -> Result<QueueGuard<'_, D>> {
        let queue = self.find_queue(index).ok_or(ENOBUFS)?;
        Ok(self.lock_queue(queue))
    }

    fn lock_queue<'a>(&self, queue: &'a Mutex<KBox<Queue<D>>>) -> QueueGuard<'a, D> {
        QueueGuard::<D>::for_owner(self.lock_for_owner(queue))
    }

    /// Locks a queue, for the worker of `cause`. There is none if that is not whom it belongs to any
    /// more: a worker may go on for a while after its owner has given the device back, and another
    /// owner's queue is in other memory than its own.
    pub fn queue_to_run(&self, index: usize, cause: &Cause) -> Option<QueueGuard<'_, D>> {
        let queue = self.find_queue(index)?;
        // If it is in use, it may be by who polls for a long time, unless somebody waits.
        let queue = queue
            .try_lock()
            .unwrap_or_else(|| self.lock_for_owner(queue));
        let ours = queue.worker.as_ref()?.id() == cause.worker;
        ours.then(|| QueueGuard::<D>::new(queue))
    }

    /// Locks the queue beside the one of this index, for a worker that has that one locked. It may
    /// be in use.
    pub fn try_other_queue(&self, index: usize) -> Option<QueueGuard<'_, D>> {
        let queue = self.find_queue(1usize.checked_sub(index)?)?;
        queue.try_lock().map(QueueGuard::<D>::new)
    }

    /// Who waits for what the worker has locked.
    pub fn lock_waiters(&self) -> &Waiters {
        &self.lock_waiters
    }

    /// Calls `f` with each queue locked in turn.
    pub(super) fn each_queue(&self, mut f: impl FnMut(&mut Queue<D>)) {
        f(&mut self.lock_queue(&self.first));
        f(&mut self.lock_queue(&self.second));
    }

    /// Whether `f` is true of each queue, locked in turn.
    fn all_queues(&self, mut f: impl FnMut(&Queue<D>) -> bool) -> bool {
        f(&self.lock_queue(&self.first)) && f(&self.lock_queue(&self.second))
    }

    /// Makes the device as good as new, but for a memory table, which is empty then.
    ///
    /// Fails with [`EPERM`] unless the current task shares the owner's memory, and with
    /// [`ENOMEM`].
    pub fn reset_owner(&self) -> Result {
        let mut state = self.state.lock();
        state.check_owner()?;
        let mem = Arc::new(MemTable::new([].into_iter())?, GFP_KERNEL_ACCOUNT)?;
        self.stop(&mut state);
        self.each_queue(|queue| queue.set_mem(mem.clone()));
        state.mem = Some(mem);
        Ok(())
    }

    /// Nobody uses the device any more.
    pub fn release(&self) {
        self.stop(&mut self.state.lock());
    }

    /// Stops the queues and the worker, and lets go of the owner and all that it set.
    fn stop(&self, state: &mut State<Self>) {
        // Nothing makes the worker run a queue any more, and a turn that is still to come finds no
        // backend.
        let stop = |queue: &mut Queue<D>| {
            queue.kick_poll.as_mut().stop();
            queue.state.reset()
        };
        let first = stop(&mut self.lock_queue(&self.first));
        let second = stop(&mut self.lock_queue(&self.second));
        // With no queue locked, since it may wait.
        drop((first, second));
        self.each_queue(Queue::reset);
        *state = State::new();
        self.close_misses();
    }

    /// There is no IOTLB, and nobody is told of what it does not know.
    fn close_misses(&self) {
        self.change_late(Misses::close);
        self.readers.notify_all();
    }

    /// Sets the features that the driver of each queue accepted. `f` does what the device has to
    /// do for it.
    ///
    /// Fails with [`EFAULT`] if writes to guest memory are to be logged, and the log is not in
    /// user space, and if there is no memory for an IOTLB; with [`ENOMEM`] if there is none for
    /// packed rings.
    pub fn set_features(
        &self,
        mm: CurrentMm<'_>,
        features: Features,
        mut f: impl FnMut(&mut Queue<D>),
    ) -> Result {
        let mut state = self.state.lock();
        if features.has(Features::LOG_ALL) && !self.mem_access_ok(mm, state.mem.as_ref(), true) {
            return Err(EFAULT);
        }
        let mut room = Ok(());
        self.each_queue(|queue| room = room.and(queue.ring.make_room(features)));
        room?;
        // Where there was an IOTLB before, what it knew may be out of date.
        let mut behind = None;
        if features.has(Features::ACCESS_PLATFORM) {
            behind = Some(Behind::new().map_err(|_| EFAULT)?);
        }
        // And so may what it does not know yet.
        self.change_late(Misses::forget_late);
        state.late_room = if behind.is_some() { MAX_LATE } else { 0 };
        state.grain = u64::MAX;
        state.iotlb = behind.as_ref().map(|behind| behind.iotlb.clone());
        self.each_queue(|queue| {
            queue.set_iotlb(state.iotlb.clone());
            if let Some(behind) = &mut behind {
                let ahead = behind.ahead.get_mut(queue.index);
                ahead.into_iter().for_each(|a| queue.ahead.take_room(a));
            }
            queue.features = features;
            queue.ring.set_features(features);
            f(queue);
        });
        if let Some(behind) = &mut behind {
            let mut misses = self.misses.lock();
            misses.take_room(&mut behind.misses);
            misses.open();
        } else {
            self.close_misses();
        }
        Ok(())
    }

    /// Sets the features of the interface between the owner and the device, of
    /// `VHOST_BACKEND_F_*` numbers.
    pub fn set_backend_features(&self, features: u64) {
        let _state = self.state.lock();
        self.each_queue(|queue| {
            queue.message_kind = if features & uapi::BACKEND_F_IOTLB_MSG_V2 != 0 {
                uapi::IOTLB_MSG_V2
            } else {
                uapi::IOTLB_MSG
            };
        });
    }

    /// Readies a queue's ring for a backend.
    ///
    /// Fails with [`EFAULT`] if the ring can't be accessed, and with [`ENOMEM`]. If that is
    /// because of the IOTLB the owner is told so.
    pub fn start(&self, queue: &mut Queue<D>, mm: CurrentMm<'_>) -> Result {
        let iotlb = queue.iotlb.clone();
        let iotlb = iotlb.as_deref().map(|iotlb| self.lock_iotlb(iotlb));
        let started = queue.try_start(mm, iotlb.as_deref());
        drop(iotlb);
        started.map_err(|fault| {
            if fault.error == ENOMEM {
                return ENOMEM;
            }
            if queue.iotlb.is_some() {
                queue.look_ahead(mm, fault, None, Wanted::default());
                self.wait_for_misses(queue, fault, false);
                queue.fault(fault);
            }
            EFAULT
        })
    }

    /// Queue `index` has all that it waited for, by an update of the owner's, who is at it just
    /// now. If that may show what else it needs, looks for it in the worker's place: what the IOTLB
    /// does not know of that is told at once. Returns whether the queue waits for that; if not, it
    /// can go on.
    ///
    /// The caller has the device's state locked, and no queue.
    pub(super) fn waits_for_more(&self, mm: CurrentMm<'_>, index: usize) -> bool {
        // If it is in use, the worker is at it.
        let Some(mut queue) = self.find_queue(index).and_then(Mutex::try_lock) else {
            return false;
        };
        let Some(iotlb) = queue
            .iotlb
            .clone()
            .filter(|_| queue.halted && queue.is_running() && queue.ahead.hides_any())
        else {
            return false;
        };
        // Nor does it wait for a turn of the other queue.
        let Some(iotlb) = self.try_lock_iotlb(&iotlb) else {
            return false;
        };
        let waits = queue.look_on(mm, &iotlb);
        let mut misses = self.misses.lock();
        if misses.wait_for(index, &queue.ahead, queue.message_kind, false) {
            if let Some((miss, _)) = queue.ahead.iter().next() {
                queue.stats.missed(&miss);
            }
            self.readers.notify_all();
        }
        waits
    }

    /// Forgets what queue `index` waits for, and what the owner was to be told of that.
    pub fn forget_misses(&self, index: usize) {
        self.misses.lock().forget(index);
    }

    /// The queue can't go on. If that is because of an address that the IOTLB does not know, it
    /// can as soon as the owner has said what is there, and at all others that the queue needs
    /// next, of which it [looked ahead](Queue::look_ahead); if that may have been said meanwhile, it
    /// runs again after the other queue. For want of memory, it can after a while, and this returns
    /// true; if none of these, the ring is broken, and the owner is told so.
    ///
    /// `again` says that the owner is to be told once more of an address that it knows of already.
    pub fn halt(&self, queue: &mut Queue<D>, fault: Fault, again: bool) -> bool {
        if fault.error == ENOMEM {
            queue.stats.stopped(&fault);
            return true;
        }
        queue.halted = true;
        // The driver may mend it.
        queue.ring.forget_heads();
        if !self.wait_for_misses(queue, fault, again) {
            queue.fault(fault);
        }
        false
    }

    /// Tells the owner what the queue needs that the IOTLB does not know. Returns false if that is
    /// not what is wrong; a queue whose ring may not be used as it has to, waits for another map
    /// of it all the same. If updates were put off, the queue runs again, and this returns true.
    fn wait_for_misses(&self, queue: &mut Queue<D>, fault: Fault, again: bool) -> bool {
        if queue.iotlb.is_none() {
            return false;
        }
        let (miss, denied) = (fault.miss(), fault.denied());
        if miss.is_none() && denied.is_none() {
            return false;
        }
        let mut misses = self.misses.lock();
        // What is put off later finds the queue waiting for it.
        if misses.has_late() {
            return self.run_again_if_late(queue, again);
        }
        if let Some(miss) = miss {
            queue.stats.missed(&miss);
            if misses.wait_for(queue.index, &queue.ahead, queue.message_kind, again) {
                self.readers.notify_all();
            }
            return true;
        }
        if let Some(miss) = denied {
            misses.wait_silently(queue.index, miss);
            queue.ahead.begin(0);
        }
        false
    }

    /// Whether `mem` may be the memory of all the queues that run.
    pub(super) fn mem_access_ok(
        &self,
        mm: CurrentMm<'_>,
        mem: Option<&Arc<MemTable>>,
        log_all: bool,
    ) -> bool {
        self.all_queues(|queue| {
            let log = (log_all || queue.features.has(Features::LOG_ALL)).then_some(queue.log);
            // A queue that does not run is checked when it starts.
            !queue.is_running() || queue.mem_access_ok(mm, mem, log)
        })
    }
}

impl<D: Driver> Run for Device<D> {
    fn run(&self, worker: WorkerId, bits: WorkBits, kicks: &Kicks, mm: CurrentMm<'_>) -> Rest {
        let (mut rest, mut ran) = (Rest::default(), false);
        for index in 0..QUEUES {
            let kicked = bits.has(WorkBits::kick(index));
            let ready = bits.has(WorkBits::ready(index));
            if kicked || ready {
                // After the last one the thread does.
                if core::mem::replace(&mut ran, true) {
                    cond_resched();
                }
                let cause = Cause {
                    worker,
                    kicked,
                    ready,
                    waited_for: bits.has_after(index),
                    woken: bits.woken(),
                    since: kicks.since(index, kicked),
                };
                let msecs = D::run(self, mm, index, cause);
                if msecs > 0 {
                    rest.add(msecs, WorkBits::ready(index));
                }
            }
        }
        rest
    }
}
