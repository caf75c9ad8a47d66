// SPDX-License-Identifier: GPL-2.0

//! The log of dirty pages, as the VMM holds it.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

use crate::check;
use crate::check_eq;
use crate::sys;
use crate::sys::ioctl;
use crate::Guest;
use crate::Res;

/// What a bit stands for, whatever the machine's pages.
const PAGE: u64 = 4096;

/// A bitmap, between two pages that nobody may touch.
pub struct Bitmap {
    start: *mut u8,
    size: usize,
    /// Where the device believes it to start.
    pub base: u64,
}

/// The pages that are marked.
pub type Pages = BTreeSet<u64>;

impl Bitmap {
    /// One for the guest addresses below `end`, that starts `skew` bytes behind a page's start.
    pub fn new(end: u64, skew: usize) -> Res<Self> {
        let bytes = (end / PAGE).div_ceil(8) as usize;
        let page = sys::page_size();
        let size = (bytes + skew + 8).next_multiple_of(page);
        // SAFETY: a new mapping, of which the middle is made accessible.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let p = libc::mmap(
                std::ptr::null_mut(),
                size + 2 * page,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            );
            check!(p != libc::MAP_FAILED, "mmap");
            let p = p.add(page);
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            check_eq!(libc::mprotect(p, size, prot), 0);
            p.cast::<u8>()
        };
        let base = start as u64 + skew as u64;
        Ok(Bitmap { start, size, base })
    }

    fn byte(&self, i: usize) -> &AtomicU8 {
        assert!(i < self.size);
        // SAFETY: mapped, and never taken away; who else uses it does so atomically.
        unsafe { AtomicU8::from_ptr(self.start.add(i)) }
    }

    /// Reads the marks and takes them away, as a VMM does.
    pub fn take(&self) -> Res<Pages> {
        let skew = (self.base - self.start as u64) as usize;
        let mut pages = Pages::new();
        for i in 0..self.size {
            let byte = self.byte(i).swap(0, Ordering::AcqRel);
            check!(
                byte == 0 || i >= skew,
                "bits {byte:#x} in front of the log's base"
            );
            for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
                pages.insert((i - skew) as u64 * 8 + bit);
            }
        }
        Ok(pages)
    }

    /// Tells the device where it is.
    pub fn install(&self, g: &Guest) -> i32 {
        ioctl(&g.net, sys::SET_LOG_BASE, &self.base)
    }
}

/// The pages of a range of guest memory.
pub fn pages_of(gpa: u64, len: usize) -> impl Iterator<Item = u64> {
    gpa / PAGE..(gpa + len as u64).div_ceil(PAGE)
}
