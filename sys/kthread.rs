// SPDX-License-Identifier: GPL-2.0

//! Kernel threads that borrow a process's address space.
//!
//! C header: [`include/linux/kthread.h`](srctree/include/linux/kthread.h)

use super::{
    bindings as local,
    sched::cond_resched,
    uaccess::CurrentMm,
    vhost_task::Work, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi::{
        c_int,
        c_void, //
    },
    mm::MmWithUser,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        Completion,
        SetOnce, //
    },
    task::Task, //
};

/// What a thread is given.
#[pin_data]
struct Job<T: Work> {
    work: Arc<T>,
    mm: ARef<MmWithUser>,
    /// The task whose cgroups the thread joins.
    owner: ARef<Task>,
    /// How joining them went, known once `joined` is complete.
    result: SetOnce<c_int>,
    #[pin]
    joined: Completion,
}

/// A kernel thread that works in an address space.
///
/// It belongs to no process, but is in the cgroups that the task that made it was in. Dropped, it
/// is stopped; this waits for what it runs, so the thread must not drop itself. It can't
/// be killed: where it waits for user memory, who stops it waits too.
///
/// # Invariants
///
/// `task` is a kernel thread that was not stopped. It runs `Self::main` with `_job`.
pub struct Kthread<T: Work> {
    task: NonNull<bindings::task_struct>,
    _job: Arc<Job<T>>,
}

// SAFETY: Any thread may wake and stop a kernel thread.
unsafe impl<T: Work> Send for Kthread<T> {}
// SAFETY: As above.
unsafe impl<T: Work> Sync for Kthread<T> {}

impl<T: Work> Kthread<T> {
    /// Makes a thread with a name, which does `work` in the address space `mm`, and starts it.
    ///
    /// Fails with [`ENOMEM`], with [`EINTR`] if the current task is being killed, or if the thread
    /// can't join its cgroups.
    pub fn spawn(work: Arc<T>, name: &CStr, mm: ARef<MmWithUser>) -> Result<Self> {
        let owner: &Task = current!();
        let job = Arc::pin_init(
            pin_init!(Job {
                work,
                mm,
                owner: ARef::from(owner),
                result: SetOnce::new(),
                joined <- Completion::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: `main` is for a `Job<T>`, which the argument points to; `_job` keeps it alive
        // until the thread was stopped. The name is copied by the format.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(Self::main),
                Arc::as_ptr(&job).cast_mut().cast::<c_void>(),
                bindings::NUMA_NO_NODE,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        })?;
        // INVARIANT: Just made.
        let this = Self {
            task: NonNull::new(task).ok_or(ENOMEM)?,
            _job: job,
        };
        this.wake();
        this._job.joined.wait_for_completion();
        to_result(this._job.result.copy().ok_or(ENOMEM)?)?;
        Ok(this)
    }

    /// Makes the thread look for something to do. Callable in any context.
    #[inline]
    pub fn wake(&self) {
        // SAFETY: By the type invariant the thread is valid.
        unsafe { bindings::wake_up_process(self.task.as_ptr()) };
    }

    /// # Safety
    ///
    /// `arg` points to a `Job<T>`. The current task is a kernel thread without an address space.
    unsafe extern "C" fn main(arg: *mut c_void) -> c_int {
        // SAFETY: By the safety requirement.
        let job = unsafe { &*arg.cast::<Job<T>>() };
        // SAFETY: The thread has no address space, and this one lives as long as the job.
        unsafe { bindings::kthread_use_mm(job.mm.as_raw()) };
        // SAFETY: Both tasks are valid.
        let result =
            unsafe { local::cgroup_attach_task_all(job.owner.as_ptr(), Task::current_raw()) };
        job.result.populate(result);
        job.joined.complete_all();

        loop {
            // Before the look at what there is to do: a wake-up after that one is not lost.
            // SAFETY: Sets the state of the current task.
            unsafe { local::set_current_interruptible() };
            // SAFETY: The current task is a kernel thread.
            if unsafe { bindings::kthread_should_stop() } {
                // SAFETY: Sets the state of the current task.
                unsafe { local::set_current_running() };
                break;
            }
            match job.work.take() {
                Some(batch) => {
                    // SAFETY: Sets the state of the current task.
                    unsafe { local::set_current_running() };
                    // SAFETY: The current task uses the address space `job.mm`, until below.
                    job.work.run(batch, unsafe { CurrentMm::assume() });
                    cond_resched();
                }
                // SAFETY: The current task may sleep.
                None => unsafe { bindings::schedule() },
            }
        }
        // SAFETY: Borrowed above.
        unsafe { bindings::kthread_unuse_mm(job.mm.as_raw()) };
        0
    }
}

impl<T: Work> Drop for Kthread<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the thread was not stopped, and nobody can wake it any
        // more, for that takes a reference to us. Afterwards it does not use its argument.
        unsafe { bindings::kthread_stop(self.task.as_ptr()) };
    }
}
