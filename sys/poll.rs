// SPDX-License-Identifier: GPL-2.0

//! Waiting for a file to become ready, without a thread that sleeps.
//!
//! C headers: [`include/linux/poll.h`](srctree/include/linux/poll.h),
//! [`include/linux/wait.h`](srctree/include/linux/wait.h)

use super::bindings as local;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    bindings,
    container_of,
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// The file has something to read (`EPOLLIN`).
pub const IN: u32 = local::POLL_IN;
/// As [`IN`], in ordinary data (`EPOLLRDNORM`).
pub const RDNORM: u32 = local::POLL_RDNORM;
/// The file takes something to write (`EPOLLOUT`).
pub const OUT: u32 = local::POLL_OUT;

/// A file that can be waited for.
///
/// # Safety
///
/// [`Self::file`] returns a valid file as long as the object lives, and each wait queue that the
/// file's `poll` method names lives as long as the file.
pub unsafe trait Pollable {
    /// The file.
    fn file(&self) -> NonNull<bindings::file>;
}

/// Who is told that a file is ready, or that there is something else to do.
pub trait Wake: Send + Sync + 'static {
    /// What `token` stands for may be ready.
    ///
    /// Called in any context, also with interrupts off and the lock of a wait queue held: it must
    /// not sleep.
    fn wake(&self, token: u32);
}

/// What the wait queue's callback reads. Pinned, and reached through raw pointers only.
#[repr(C)]
struct Inner<T> {
    wait: bindings::wait_queue_entry,
    table: bindings::poll_table_struct,
    /// The queue that `wait` is on, or null.
    queue: *mut bindings::wait_queue_head,
    mask: u32,
    token: u32,
    /// Valid from `start` to `stop`, and null otherwise.
    target: *const T,
}

/// An entry on the wait queue of a file.
///
/// While it is [started](Self::start), it tells its target each time that the file gets ready. One
/// that [pauses](Self::pause) keeps both for the next start, which is cheaper then.
///
/// # Invariants
///
/// `inner.target` and `file` are both null, or the one comes from [`Arc::into_raw`] and the other is a
/// reference to a file. While `inner.queue` is not null, `inner.wait` is on it, they are not null,
/// and the file keeps the queue alive. `inner.mask` and `inner.token` never change.
#[pin_data(PinnedDrop)]
pub struct PollEntry<T: Wake> {
    #[pin]
    inner: Opaque<Inner<T>>,
    file: *mut bindings::file,
}

// SAFETY: An entry may be put on and taken off its queue by any thread; the target may be told by
// any thread, and dropped by any, for it is `Send + Sync`.
unsafe impl<T: Wake> Send for PollEntry<T> {}
// SAFETY: The only method on `&self` reads what never changes.
unsafe impl<T: Wake> Sync for PollEntry<T> {}

impl<T: Wake> PollEntry<T> {
    /// Makes an entry that waits for nothing. Once started it waits for the events of `mask`, and
    /// tells its target `token`.
    pub fn new(mask: u32, token: u32) -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(move |slot: *mut Inner<T>| {
                // SAFETY: `slot` is valid for writes. All bytes zero are a wait queue entry that
                // is on no queue.
                unsafe {
                    slot.write(Inner {
                        wait: pin_init::zeroed(),
                        table: bindings::poll_table_struct {
                            _qproc: Some(Self::enqueue),
                            _key: !0,
                        },
                        queue: ptr::null_mut(),
                        mask,
                        token,
                        target: ptr::null(),
                    });
                    (*slot).wait.func = Some(Self::woken);
                }
            }),
            file: ptr::null_mut(),
        })
    }

    /// Starts to wait for `file`. If it is ready now, `target` is told at once.
    ///
    /// An entry that is started already stays with the file that it waits for. Fails with
    /// [`EINVAL`] if the file is in an error state; then the entry is stopped. May sleep.
    pub fn start(self: Pin<&mut Self>, file: &impl Pollable, target: &Arc<T>) -> Result {
        self.begin(file, target, true).map(|_| ())
    }

    /// As [`Self::start`], unless the file is ready now: then this returns true, and the entry
    /// pauses.
    pub fn start_unless_ready(
        self: Pin<&mut Self>,
        file: &impl Pollable,
        target: &Arc<T>,
    ) -> Result<bool> {
        self.begin(file, target, false)
    }

    /// Starts, and says whether the file is ready: its target with `tell`, else who calls this.
    fn begin(
        self: Pin<&mut Self>,
        file: &impl Pollable,
        target: &Arc<T>,
        tell: bool,
    ) -> Result<bool> {
        let inner = self.inner.get();
        // SAFETY: `inner` is valid, and only this function, `pause` and `stop` write `queue`, all with
        // exclusive access to the entry.
        if unsafe { !(*inner).queue.is_null() } {
            return Ok(false);
        }
        // SAFETY: We don't move out of the entry.
        let this = unsafe { self.get_unchecked_mut() };
        let file = file.file().as_ptr();

        // SAFETY: The entry is on no queue, so nobody else reads `target`. The file is valid by
        // the safety requirement of `Pollable`, and lives until the reference is put: by `detach`,
        // after the entry left the queue. `table` is valid, and its function is `enqueue`.
        // INVARIANT: Both are taken, unless they are kept from the last time.
        let mask = unsafe {
            if this.file != file || (*inner).target != Arc::as_ptr(target) {
                this.detach();
                (*inner).target = Arc::into_raw(target.clone());
                this.file = bindings::get_file(file);
            }
            local::vfs_poll(file, &raw mut (*inner).table)
        };
        let ready = mask & this.mask() != 0;
        if ready && !tell {
            this.leave_queue();
            return Ok(true);
        }
        if ready {
            // SAFETY: `target` comes from `into_raw`, here or at an earlier start, and is not dropped.
            unsafe { (*(*inner).target).wake((*inner).token) };
        }
        // INVARIANT: If the file had no queue for us, this puts back what was taken for it.
        // SAFETY: As for the first look at `queue`.
        if mask & local::POLL_ERR != 0 || unsafe { (*inner).queue.is_null() } {
            this.detach();
        }
        if mask & local::POLL_ERR != 0 {
            return Err(EINVAL);
        }
        Ok(ready)
    }

    /// Tells another target from now on, if the entry is started; one that is paused is stopped. When
    /// this returns, the one before is told no more; no event is lost in between.
    pub fn set_target(self: Pin<&mut Self>, target: Arc<T>) {
        let inner = self.inner.get();
        // SAFETY: As for the first look at `queue` in `begin`.
        let Some(queue) = NonNull::new(unsafe { (*inner).queue }) else {
            // Or a pause would keep the one before.
            return self.stop();
        };
        // SAFETY: By the type invariant the file keeps the queue, which has the entry on it: the
        // callback reads `target` with the queue's lock held. The old one came from `into_raw`, and
        // is not read any more.
        // INVARIANT: So does the new one.
        let old = unsafe {
            let flags = local::wait_queue_lock(queue.as_ptr());
            let old = ptr::replace(&raw mut (*inner).target, Arc::into_raw(target));
            local::wait_queue_unlock(queue.as_ptr(), flags);
            Arc::from_raw(old)
        };
        drop(old);
    }

    /// Stops to wait, but keeps file and target until the entry is stopped, or started with others.
    /// When this returns, the target is told no more. May be called at any time.
    pub fn pause(self: Pin<&mut Self>) {
        // SAFETY: We don't move out of the entry.
        unsafe { self.get_unchecked_mut() }.leave_queue();
    }

    /// Stops to wait. When this returns, the target is told no more. May be called at any time.
    pub fn stop(self: Pin<&mut Self>) {
        // SAFETY: We don't move out of the entry.
        unsafe { self.get_unchecked_mut() }.detach();
    }

    fn mask(&self) -> u32 {
        // SAFETY: By the type invariant `mask` never changes.
        unsafe { (*self.inner.get()).mask }
    }

    fn leave_queue(&mut self) {
        let inner = self.inner.get();
        // SAFETY: By the type invariant, `wait` is on `queue` if that is not null, and the file
        // keeps the queue alive.
        // INVARIANT: It is on none any more.
        unsafe {
            if !(*inner).queue.is_null() {
                bindings::remove_wait_queue((*inner).queue, &raw mut (*inner).wait);
                (*inner).queue = ptr::null_mut();
            }
        }
    }

    fn detach(&mut self) {
        self.leave_queue();
        let inner = self.inner.get();
        // SAFETY: Once the entry is off the queue, which takes the queue's lock, no callback runs
        // any more, so the target and the file are ours to put.
        // INVARIANT: All that `start` took is given back.
        unsafe {
            if !(*inner).target.is_null() {
                drop(Arc::from_raw((*inner).target));
                (*inner).target = ptr::null();
            }
            if !self.file.is_null() {
                bindings::fput(self.file);
                self.file = ptr::null_mut();
            }
        }
    }

    /// Called by the file's `poll` method, once for each of its wait queues.
    ///
    /// # Safety
    ///
    /// `table` is the one of an entry that is being started, and `queue` lives as long as the
    /// file.
    unsafe extern "C" fn enqueue(
        _file: *mut bindings::file,
        queue: *mut bindings::wait_queue_head,
        table: *mut bindings::poll_table_struct,
    ) {
        // SAFETY: By the safety requirement `table` is part of an `Inner<T>`, which `start` has
        // exclusive access to but for the callback, and that does not read `queue`.
        unsafe {
            let inner = container_of!(table, Inner<T>, table);
            // An entry can be on one queue: the first one that the file names.
            if (*inner).queue.is_null() {
                (*inner).queue = queue;
                bindings::add_wait_queue(queue, &raw mut (*inner).wait);
            }
        }
    }

    /// Called when the file gets ready, under the lock of the wait queue.
    ///
    /// # Safety
    ///
    /// `wait` is the one of an entry that is on a queue.
    unsafe extern "C" fn woken(
        wait: *mut bindings::wait_queue_entry,
        _mode: c_uint,
        _flags: c_int,
        key: *mut c_void,
    ) -> c_int {
        // SAFETY: By the safety requirement `wait` is part of an `Inner<T>` on a queue: then
        // `target` is valid, and does not change while the queue is locked; `mask` and `token` never do.
        unsafe {
            let inner = container_of!(wait, Inner<T>, wait);
            if key as usize as u32 & (*inner).mask != 0 {
                (*(*inner).target).wake((*inner).token);
            }
        }
        0
    }
}

#[pinned_drop]
impl<T: Wake> PinnedDrop for PollEntry<T> {
    fn drop(self: Pin<&mut Self>) {
        self.stop();
    }
}
