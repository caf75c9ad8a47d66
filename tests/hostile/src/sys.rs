// SPDX-License-Identifier: GPL-2.0

//! System calls, shared memory, and chance.

use std::io::Error;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;

use kselftest::check;
use kselftest::Res;

/// What a bit of the log stands for, whatever the machine's pages.
pub const PAGE: usize = 4096;

/// Numbers that follow from a seed (SplitMix64).
pub struct Rng(u64);

impl Rng {
    /// A stream of its own for each part of a round.
    pub fn new(seed: u64, part: u64) -> Self {
        let mut rng = Rng(seed ^ part.wrapping_mul(0xd134_2543_de82_ef95));
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`; 0 if that is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next().checked_rem(n).unwrap_or(0)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// Memory that stays the same for children.
pub fn shared(len: usize) -> Res<*mut u8> {
    // SAFETY: a new mapping.
    let p = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    check!(p != libc::MAP_FAILED, "mmap: {}", Error::last_os_error());
    Ok(p.cast())
}

/// Lets nobody touch memory of [`shared`], `len` bytes from `at`.
pub fn forbid(at: *mut u8, len: usize) -> Res {
    protect(at, len, libc::PROT_NONE)
}

/// Changes what may be done in this process with memory of [`shared`], `len` bytes from `at`.
pub fn protect(at: *mut u8, len: usize, prot: i32) -> Res {
    // SAFETY: the memory is the caller's, who touches it no more.
    let r = unsafe { libc::mprotect(at.cast(), len, prot) };
    check!(r == 0, "mprotect: {}", Error::last_os_error());
    Ok(())
}

/// Sends a packet if there is room.
pub fn send(fd: &impl AsRawFd, data: &[u8]) -> bool {
    // SAFETY: the bytes are valid.
    let n = unsafe {
        let at = data.as_ptr().cast();
        libc::send(fd.as_raw_fd(), at, data.len(), libc::MSG_DONTWAIT)
    };
    n >= 0
}

/// Runs `f` in a child process that dies with this one. It ends when `f` returns.
pub fn fork(f: impl FnOnce() -> i32) -> Res<i32> {
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    check!(pid >= 0, "fork: {}", Error::last_os_error());
    if pid == 0 {
        // SAFETY: plain system calls on this process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        let status = f();
        // SAFETY: ends the child with all its threads.
        unsafe { libc::_exit(status) }
    }
    Ok(pid)
}

pub fn kill(pid: i32) {
    // SAFETY: a plain system call; the child was not waited for, so the number is still its.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Ends the calling process with all its threads, as a program does that is done.
pub fn exit(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// The status of a child that ended within `limit`; [`None`] if it did not.
pub fn reap(pid: i32, limit: Duration) -> Option<i32> {
    let deadline = Instant::now() + limit;
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        if unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } == pid {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
