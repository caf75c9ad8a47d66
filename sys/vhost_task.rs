// SPDX-License-Identifier: GPL-2.0

//! Kernel threads of a user process.
//!
//! C header: [`include/linux/sched/vhost_task.h`](srctree/include/linux/sched/vhost_task.h)

use super::{
    bindings,
    reaper::Pending,
    uaccess::CurrentMm, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    ffi::c_void,
    new_condvar,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        CondVar,
        CondVarTimeoutResult,
        SpinLock, //
    },
    time::msecs_to_jiffies,
    workqueue::{
        self,
        impl_has_work,
        new_work,
        WorkItem, //
    }, //
};

/// What a [`VhostTask`] or a [`Kthread`](super::kthread::Kthread) does.
pub trait Work: Send + Sync + 'static {
    /// What there is to do in one go.
    type Batch;

    /// Takes all that there is to do; [`None`] lets the task sleep until it is woken.
    ///
    /// The task counts as asleep while this runs, so that no wake-up is lost: it must not block.
    fn take(&self) -> Option<Self::Batch>;

    /// Does it, in the user memory `mm`.
    fn run(&self, batch: Self::Batch, mm: CurrentMm<'_>);

    /// The task was killed, and does no more. Must not block.
    fn killed(&self);
}

/// How long, in milliseconds, who drops tasks waits for their end.
const PATIENCE: u32 = 1000;

/// A thread in the process of the task that made it.
///
/// It shares the address space, the cgroups and the limits of that process, and dies with it. It is
/// stopped and frozen with it too (`SIGSTOP`, `cgroup.freeze`, a suspend), at any moment when it
/// runs nothing, and who stops a `vhost_task` has to wait for it: a process could not be frozen
/// while it does. So a task is stopped by the module's [work queue](super::reaper), which may wait,
/// once the task has said that it is awake.
///
/// Dropped, it does no more than what it is at, and ends when it can. This waits for that, but not
/// longer than a second, nor when a signal comes or the current task is to be frozen.
///
/// # Invariants
///
/// `task` was started and not stopped. Its argument is `job`.
pub struct VhostTask<T: Work> {
    task: NonNull<bindings::vhost_task>,
    job: Arc<Job<T>>,
    pending: Pending,
    /// How long, in milliseconds, its end is waited for.
    patience: Atomic<u32>,
}

// SAFETY: Any thread may wake and stop a `vhost_task`.
unsafe impl<T: Work> Send for VhostTask<T> {}
// SAFETY: As above.
unsafe impl<T: Work> Sync for VhostTask<T> {}

/// The right to stop a task, and the duty.
///
/// # Invariants
///
/// The task was started and not stopped.
struct Stop(NonNull<bindings::vhost_task>);

// SAFETY: Any thread may stop a `vhost_task`.
unsafe impl Send for Stop {}

impl Stop {
    /// Stops the task, once it has gone to the end of what it is at.
    fn stop(self) {
        // SAFETY: By the type invariant. It is stopped once, since `self` is gone then.
        unsafe { bindings::vhost_task_stop(self.0.as_ptr()) }
    }
}

/// How far the end of a task is.
enum End<T: Work> {
    /// Nobody wants it.
    No,
    /// The task is to put itself on the work queue, which has to know this.
    Wanted(Stop, Pending, Arc<Job<T>>),
    /// It is on the work queue.
    Queued(Stop, Pending),
    /// It is being stopped.
    Stopping,
    /// It has ended, or is at it without having been told, for its process was killed.
    Over,
}

/// What a task is given.
#[pin_data]
struct Job<T: Work> {
    work: Arc<T>,
    /// The end was wanted: look at it.
    wanted: Atomic<bool>,
    #[pin]
    end: SpinLock<End<T>>,
    /// Who waits for [`End::Over`].
    #[pin]
    over: CondVar,
    #[pin]
    stopping: workqueue::Work<Self>,
}

impl_has_work! {
    impl{T: Work} HasWork<Self> for Job<T> { self.stopping }
}

impl<T: Work> WorkItem for Job<T> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let end = core::mem::replace(&mut *this.end.lock(), End::Stopping);
        let End::Queued(stop, pending) = end else {
            return;
        };
        stop.stop();
        // Before anybody may know: the module is no longer in use for it. Its code stays as long as
        // this is on the queue.
        drop(pending);
        *this.end.lock() = End::Over;
        this.over.notify_all();
    }
}

impl<T: Work> VhostTask<T> {
    /// Makes a thread with a name in the current process and starts it.
    ///
    /// Fails with [`ENOMEM`], as `clone()` does, and with [`ENODEV`] if the module's work queue is
    /// not there.
    pub fn spawn(work: Arc<T>, name: &CStr) -> Result<Self> {
        let pending = Pending::new()?;
        let job = Arc::pin_init(
            pin_init!(Job {
                work,
                wanted: Atomic::new(false),
                end <- new_spinlock!(End::No, "vhost_task_end"),
                over <- new_condvar!("vhost_task_over"),
                stopping <- new_work!("vhost_task_stopping"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: The functions are for a `Job<T>`, which `arg` points to; `job` keeps it alive
        // until the task was stopped. The name is copied.
        let task = from_err_ptr(unsafe {
            bindings::vhost_task_create(
                Some(Self::run),
                Some(Self::killed),
                Arc::as_ptr(&job).cast_mut().cast::<c_void>(),
                name.as_char_ptr(),
            )
        })?;
        let task = NonNull::new(task).ok_or(ENOMEM)?;
        // SAFETY: The task is new.
        unsafe { bindings::vhost_task_start(task.as_ptr()) };
        // INVARIANT: Just made and started.
        Ok(Self {
            task,
            job,
            pending,
            patience: Atomic::new(PATIENCE),
        })
    }

    /// Who drops it has waited for others for so many milliseconds: the sum is no longer than for one.
    pub fn waited(&self, msecs: u32) {
        self.patience.store(PATIENCE.saturating_sub(msecs), Relaxed);
    }

    /// Makes the task look for something to do. Callable in any context; no effect on one that was
    /// killed.
    #[inline]
    pub fn wake(&self) {
        // SAFETY: By the type invariant the task is valid.
        unsafe { bindings::vhost_task_wake(self.task.as_ptr()) }
    }

    /// # Safety
    ///
    /// `arg` points to a `Job<T>`. The current task is a `vhost_task`, about to sleep.
    unsafe extern "C" fn run(arg: *mut c_void) -> bool {
        // SAFETY: By the safety requirement.
        let job = unsafe { &*arg.cast::<Job<T>>() };
        if job.wanted.load(Relaxed) {
            // Whatever there is to do is nobody's any more.
            Self::leave(job, End::No);
            return false;
        }
        let Some(batch) = job.work.take() else {
            return false;
        };
        // SAFETY: Sets the state of the current task, which is awake.
        unsafe { bindings::set_current_running() };
        // SAFETY: The current task is a thread of a user process, whose address space it shares.
        job.work.run(batch, unsafe { CurrentMm::assume() });
        Self::do_pending();
        true
    }

    /// What a thread has to do before it goes back to user space, where this one never goes: a CPU
    /// limit takes it off the CPU here. A signal is left to who calls [`Self::run`].
    #[inline(always)]
    fn do_pending() {
        #[cfg(CONFIG_VIRT_XFER_TO_GUEST_WORK)]
        // SAFETY: The current task holds no lock.
        unsafe {
            if bindings::xfer_to_guest_mode_work_pending() {
                bindings::xfer_to_guest_mode_handle_work();
            }
        }
        #[cfg(not(CONFIG_VIRT_XFER_TO_GUEST_WORK))]
        super::sched::cond_resched();
    }

    /// The process is being killed, and `run` is called no more.
    ///
    /// # Safety
    ///
    /// `arg` points to a `Job<T>`.
    unsafe extern "C" fn killed(arg: *mut c_void) {
        // SAFETY: By the safety requirement.
        let job = unsafe { &*arg.cast::<Job<T>>() };
        job.work.killed();
        Self::leave(job, End::Over);
    }

    /// Has the current task stopped, if that is wanted. If it is not yet, it is `otherwise`.
    ///
    /// Does not block.
    fn leave(job: &Job<T>, otherwise: End<T>) {
        let mut end = job.end.lock();
        *end = match core::mem::replace(&mut *end, End::Stopping) {
            End::Wanted(stop, pending, job) => {
                // It is looked at when `end` is not locked any more.
                pending.enqueue(job);
                End::Queued(stop, pending)
            }
            End::No => otherwise,
            other => other,
        };
    }
}

impl<T: Work> Drop for VhostTask<T> {
    fn drop(&mut self) {
        // INVARIANT: By the type invariant; the task is no longer `self`'s.
        let stop = Stop(self.task);
        let mut end = self.job.end.lock();
        if matches!(*end, End::Over) {
            drop(end);
            // It was killed: this waits for its last steps, where nothing holds it up.
            return stop.stop();
        }
        *end = End::Wanted(stop, self.pending.near(), self.job.clone());
        // Seen by the task once it is woken; pairs with the barrier of its change of state before it
        // looks.
        self.job.wanted.store(true, Relaxed);
        // It can't be stopped before, for that takes a look at `end`.
        self.wake();
        let mut left = msecs_to_jiffies(self.patience.load(Relaxed));
        while left > 0 && !matches!(*end, End::Over) {
            match self.job.over.wait_interruptible_timeout(&mut end, left) {
                CondVarTimeoutResult::Woken { jiffies } => left = jiffies,
                _ => break,
            }
        }
    }
}
