// SPDX-License-Identifier: GPL-2.0

//! The worker: the thread that runs queues.
//!
//! It knows work and threads. What the work is, the [`Run`] that it was made for knows.

#![forbid(unsafe_code)]

use super::{
    identity::Identity,
    kicks::Kicks,
    work::{
        WorkBits,
        WorkSet, //
    }, //
};
use crate::sys::{
    counter::Counter,
    kcov::Handle,
    kthread::Kthread,
    poll::Wake,
    sched::sleep_unless,
    uaccess::CurrentMm,
    vhost_task::{
        VhostTask,
        Work, //
    }, //
};
use kernel::{
    mm::MmWithUser,
    prelude::*,
    str::CString,
    sync::Arc,
    time::Delta, //
};

/// What a worker runs.
pub trait Run: Send + Sync + 'static {
    /// Does what `bits` say, and says what there is to do only after a rest. `kicks` are those that
    /// `bits` are about. Called by the thread of `worker`, in its owner's address space, of which `mm`
    /// is the user memory.
    fn run(&self, worker: WorkerId, bits: WorkBits, kicks: &Kicks, mm: CurrentMm<'_>) -> Rest;
}

/// Which worker it is: two that exist at a time are not the same, and a worker exists as long as its
/// thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerId(usize);

/// What there is to do after a rest: to try at once what there is no memory for would keep a CPU.
#[derive(Default)]
pub struct Rest {
    msecs: u32,
    bits: u32,
}

impl Rest {
    /// Adds a work bit that is due in so many milliseconds.
    pub fn add(&mut self, msecs: u32, bit: u32) {
        self.msecs = self.msecs.max(msecs);
        self.bits |= bit;
    }
}

/// What the thread of a [`Worker`] has.
struct Runner<R: Run> {
    set: WorkSet,
    /// 1 if the thread found nothing to do since it last did something. Its own.
    idle: Counter,
    kicks: Kicks,
    identity: Arc<Identity>,
    /// Of the task that made the worker.
    kcov: Handle,
    target: Arc<R>,
}

impl<R: Run> Runner<R> {
    fn id(&self) -> WorkerId {
        // It has a size, and the thread has a reference to it.
        WorkerId(core::ptr::from_ref(self).addr())
    }
}

impl<R: Run> Work for Runner<R> {
    type Batch = WorkBits;

    fn take(&self) -> Option<WorkBits> {
        let Some(bits) = self.set.take() else {
            self.idle.set(1);
            return None;
        };
        let slept = self.idle.get() != 0;
        self.idle.set(0);
        Some(bits.after(slept))
    }

    fn run(&self, bits: WorkBits, mm: CurrentMm<'_>) {
        if bits.has(WorkBits::BEGIN) {
            self.identity.begin();
        }
        let rest = self
            .kcov
            .cover(|| self.target.run(self.id(), bits, &self.kicks, mm));
        if rest.bits != 0 {
            // Not for longer than there is nothing else to do: that is rest enough.
            sleep_unless(rest.msecs, || self.set.has_work());
            self.set.add(rest.bits);
        }
    }

    fn killed(&self) {
        self.identity.end();
    }
}

/// The thread of a [`Worker`].
enum Thread<R: Run> {
    /// One of the owner's own: in its cgroups, under its limits, and killed with it.
    Owner(VhostTask<Runner<R>>),
    /// One of the kernel's, in the owner's cgroups.
    Kernel(Kthread<Runner<R>>),
}

impl<R: Run> Thread<R> {
    fn wake(&self) {
        match self {
            Self::Owner(task) => task.wake(),
            Self::Kernel(task) => task.wake(),
        }
    }
}

/// A thread that runs queues, named `vhost-TID` after the thread that made it. Dropped, it ends.
pub struct Worker<R: Run> {
    runner: Arc<Runner<R>>,
    thread: Thread<R>,
}

impl<R: Run> Worker<R> {
    /// Makes a worker for the address space `mm`, which the current process shares. `fork` says that
    /// the thread is to be one of that process. `owner` is the number of the device's owner, which that
    /// need not be.
    ///
    /// Fails with [`ENOMEM`], and as the kernel does when it makes a thread.
    pub fn new(target: Arc<R>, mm: &MmWithUser, owner: i32, fork: bool) -> Result<Arc<Self>> {
        let set = WorkSet::new();
        set.add(WorkBits::BEGIN);
        let identity = Identity::new(owner)?;
        let runner = Runner {
            set,
            idle: Counter::new(),
            kicks: Kicks::new(identity.clone()),
            identity,
            kcov: Handle::of_current(),
            target,
        };
        let runner = Arc::new(runner, GFP_KERNEL_ACCOUNT)?;
        let name = CString::try_from_fmt(fmt!("vhost-{}", current!().pid()))?;
        let thread = if fork {
            Thread::Owner(VhostTask::spawn(runner.clone(), &name)?)
        } else {
            Thread::Kernel(Kthread::spawn(runner.clone(), &name, mm.into())?)
        };
        Ok(Arc::new(Self { runner, thread }, GFP_KERNEL_ACCOUNT)?)
    }

    /// Which one it is.
    pub fn id(&self) -> WorkerId {
        self.runner.id()
    }

    /// What the thread and its owner are called.
    pub fn identity(&self) -> Arc<Identity> {
        self.runner.identity.clone()
    }

    /// Whether the thread was killed with its process: it runs nothing any more.
    pub fn was_killed(&self) -> bool {
        self.runner.identity.was_killed()
    }

    /// Who drops it, which may take a second, has waited for others for so long already.
    pub fn waited(&self, time: Delta) {
        if let Thread::Owner(task) = &self.thread {
            task.waited(u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        }
    }

    /// Whether there is something to do that was not begun.
    pub fn has_work(&self) -> bool {
        self.runner.set.has_work()
    }
}

impl<R: Run> Wake for Worker<R> {
    fn wake(&self, bit: u32) {
        self.runner.kicks.passed(bit, &self.runner.set);
        if self.runner.set.add(bit) {
            self.thread.wake();
        }
    }
}
