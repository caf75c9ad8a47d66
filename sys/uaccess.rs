// SPDX-License-Identifier: GPL-2.0

//! User memory of the current task.
//!
//! C headers: [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h), and `asm/futex.h` of the
//! architecture

use super::{
    bindings,
    sched::{
        cond_resched,
        is_killed, //
    },
};
use crate::usermem::{
    UserAddr,
    UserMemory, //
};
use core::{
    marker::PhantomData,
    mem::MaybeUninit, //
};
use kernel::{
    error::to_result,
    ffi::c_void,
    prelude::*,
    task::CurrentTask,
    types::NotThreadSafe, //
};

/// The current task's user memory, for `'mm`.
///
/// A token, of no size: the worker's thread makes one for each turn, a call of the device's file one
/// if its task has an address space, and both hand it down. It can't leave the task, nor be kept
/// after the turn or the call: a device, which lives longer, has no way to user memory of its own.
/// So whatever touches user memory was told by its caller that there is one, and nothing does that
/// from a wait queue's callback, a kernel thread's work (which may hold the memory of whatever
/// process ran before), or another process.
///
/// Its methods may sleep. An address is checked to be one of user space at each access, so no
/// address, whoever made it up, can lead to the kernel's memory.
///
/// # Invariants
///
/// Throughout `'mm` the current task has the address space of a user process: its own, or one that
/// it borrowed.
#[derive(Clone, Copy)]
pub struct CurrentMm<'mm> {
    _mm: PhantomData<&'mm ()>,
    // Of no use in another thread.
    _not_send: NotThreadSafe,
}

/// What is no longer is copied by words: a processor's string instructions have to get going.
const FEW: usize = 128;

/// How often a word is tried to be changed that others write to all the time. A writer elsewhere
/// makes it fail a few times; one that makes all of these fail does nothing else.
const TRIES: usize = 1024;

impl CurrentMm<'_> {
    /// The token of a task that is known to have an address space.
    ///
    /// # Safety
    ///
    /// The current task has the address space of a user process for as long as the token is used.
    #[inline(always)]
    pub(super) const unsafe fn assume() -> Self {
        // INVARIANT: By the safety requirement.
        Self {
            _mm: PhantomData,
            _not_send: NotThreadSafe,
        }
    }

    /// As [`UserMemory::read`], for a buffer that need not hold anything yet. After success all of
    /// it does.
    #[inline(always)]
    pub fn read_uninit(&self, addr: UserAddr, buf: &mut [MaybeUninit<u8>]) -> Result {
        let (to, from) = (
            buf.as_mut_ptr().cast::<c_void>(),
            addr.get() as *const c_void,
        );
        let failed = if (size_of::<u64>()..=FEW).contains(&buf.len()) {
            // At any user address: HAVE_EFFICIENT_UNALIGNED_ACCESS, says Kconfig.
            // SAFETY: `buf` is valid for writes of its length, which is at least a word, as the
            // function wants. It checks the user address.
            unsafe { bindings::copy_words_from_user(to, from, buf.len()) != 0 }
        } else {
            // SAFETY: `buf` is valid for writes of its length. The function checks the user
            // address.
            unsafe { kernel::bindings::copy_from_user(to, from, buf.len()) != 0 }
        };
        if failed {
            return Err(EFAULT);
        }
        Ok(())
    }
}

impl<'mm> CurrentMm<'mm> {
    /// The token of `task`, if it has an address space.
    pub(super) fn of(task: &'mm CurrentTask) -> Option<Self> {
        task.mm()?;
        // SAFETY: It was looked at. It changes only where a task gives back one that it borrowed,
        // and by its own rules `task` does not outlive that.
        Some(unsafe { Self::assume() })
    }
}

impl UserMemory for CurrentMm<'_> {
    #[inline]
    fn access_ok(&self, addr: UserAddr, len: u64) -> bool {
        let Ok(len) = usize::try_from(len) else {
            return false;
        };
        // SAFETY: The function computes, and accesses nothing.
        unsafe { bindings::access_ok(addr.get() as *const c_void, len) }
    }

    #[inline(always)]
    fn read(&self, addr: UserAddr, buf: &mut [u8]) -> Result {
        let from = addr.get() as *const c_void;
        let to = buf.as_mut_ptr().cast::<c_void>();
        // SAFETY: `to` is valid for writes of the length of `buf`. The function checks the user
        // address.
        let left = unsafe { kernel::bindings::copy_from_user(to, from, buf.len()) };
        if left != 0 {
            return Err(EFAULT);
        }
        Ok(())
    }

    #[inline(always)]
    fn read_u64x2(&self, addr: UserAddr) -> Result<[u64; 2]> {
        let mut value = [0; 2];
        // At any user address, as in `read_uninit`.
        // SAFETY: `value` is valid for writes of two words. The function checks the user address.
        let err = unsafe { bindings::get_user_u64x2(value.as_mut_ptr(), addr.get() as *const u64) };
        if err != 0 {
            return Err(EFAULT);
        }
        Ok(value)
    }

    #[inline(always)]
    fn write(&self, addr: UserAddr, buf: &[u8]) -> Result {
        // One word, as a used entry is, is not worth a function that looks where it comes from.
        if let Ok(word) = buf.try_into() {
            return self.store_u64(addr, u64::from_ne_bytes(word));
        }
        let to = addr.get() as *mut c_void;
        // SAFETY: `buf` is valid for reads of its length. The function checks the user address.
        let left =
            unsafe { kernel::bindings::copy_to_user(to, buf.as_ptr().cast::<c_void>(), buf.len()) };
        if left != 0 {
            return Err(EFAULT);
        }
        Ok(())
    }

    #[inline(always)]
    fn load_u16(&self, addr: UserAddr) -> Result<u16> {
        let mut value = 0;
        // SAFETY: `value` is valid for the write of a `u16`. The function checks the user address.
        let err = unsafe { bindings::get_user_u16(&mut value, addr.get() as *const u16) };
        if err != 0 {
            return Err(EFAULT);
        }
        Ok(value)
    }

    #[inline(always)]
    fn store_u16(&self, addr: UserAddr, value: u16) -> Result {
        // SAFETY: The function checks the user address.
        let err = unsafe { bindings::put_user_u16(value, addr.get() as *mut u16) };
        if err != 0 {
            return Err(EFAULT);
        }
        Ok(())
    }

    #[inline(always)]
    fn read_u64x2_last_first(&self, addr: UserAddr) -> Result<[u64; 2]> {
        let (mut value, from) = ([0; 2], addr.get() as *const u64);
        // SAFETY: `value` is valid for writes of two words. The function checks the user address.
        let err = unsafe { bindings::get_user_u64x2_last_first(value.as_mut_ptr(), from) };
        if err != 0 {
            return Err(EFAULT);
        }
        Ok(value)
    }

    #[inline(always)]
    fn store_u64(&self, addr: UserAddr, value: u64) -> Result {
        // SAFETY: The function checks the user address.
        let err = unsafe { bindings::put_user_u64(value, addr.get() as *mut u64) };
        if err != 0 {
            return Err(EFAULT);
        }
        Ok(())
    }

    #[inline]
    fn set_bits(&self, addr: UserAddr, mask: u32) -> Result {
        for _ in 0..TRIES {
            // SAFETY: The function checks the user address.
            let err = unsafe { bindings::futex_atomic_or(mask, addr.get() as *mut u32) };
            match to_result(err) {
                Ok(()) => return Ok(()),
                // Others write to the word so often that it gave up, as arm64 does after 128 tries.
                // A thread of a process that is to end does not wait for them.
                Err(EAGAIN) if !is_killed() => cond_resched(),
                Err(_) => break,
            }
        }
        Err(EFAULT)
    }

    #[inline(always)]
    fn read_barrier(&self) {
        // SAFETY: Without preconditions.
        unsafe { kernel::bindings::smp_rmb() }
    }

    #[inline(always)]
    fn write_barrier(&self) {
        // SAFETY: Without preconditions.
        unsafe { kernel::bindings::smp_wmb() }
    }

    #[inline(always)]
    fn full_barrier(&self) {
        // SAFETY: Without preconditions.
        unsafe { kernel::bindings::smp_mb() }
    }
}
