// SPDX-License-Identifier: GPL-2.0

//! User memory of the current task.
//!
//! C headers: [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h),
//! [`arch/x86/include/asm/futex.h`](srctree/arch/x86/include/asm/futex.h)

use super::{
    bindings,
    sched::cond_resched, //
};
use crate::usermem::{
    UserAddr,
    UserMemory, //
};
use core::mem::MaybeUninit;
use kernel::{
    error::to_result,
    ffi::c_void,
    prelude::*, //
};

/// The user memory of whichever address space is current.
///
/// Its methods may sleep. An address is checked to be one of user space at each access, so no
/// address, whoever made it up, can lead to the kernel's memory.
#[derive(Clone, Copy, Default)]
pub struct CurrentMm;

/// What is no longer is copied by words: a processor's string instructions have to get going.
const FEW: usize = 128;

impl CurrentMm {
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

impl UserMemory for CurrentMm {
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

    #[inline]
    fn set_bits(&self, addr: UserAddr, mask: u32) -> Result {
        loop {
            // SAFETY: The function checks the user address.
            let err = unsafe { bindings::futex_atomic_or(mask, addr.get() as *mut u32) };
            match to_result(err) {
                Ok(()) => return Ok(()),
                // Others write to the word so often that it gave up.
                Err(EAGAIN) => cond_resched(),
                Err(_) => return Err(EFAULT),
            }
        }
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
