// SPDX-License-Identifier: GPL-2.0

//! KCOV: who has set the owner has what the worker does for it in its coverage, as a fuzzer wants it.
//!
//! For kernels with `CONFIG_KCOV`. This module's Rust code is instrumented there; the C driver only with
//! `CONFIG_KCOV_INSTRUMENT_ALL`.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use kselftest::counters::Before;
use kselftest::ktap::Test;
use kselftest::*;

const WORDS: usize = 64 << 10;
/// Subsystem 0, instance 0x42 (linux/kcov.h).
const HANDLE: u64 = 0x42;

const INIT_TRACE: u64 = 0x8008_6301;
const DISABLE: u64 = 0x6365;
const REMOTE_ENABLE: u64 = 0x4018_6366;

/// `struct kcov_remote_arg`, without handles but the common one.
#[repr(C)]
struct Remote {
    trace_mode: u32,
    area_size: u32,
    num_handles: u32,
    common_handle: u64,
}

/// The coverage of what is done for the current thread elsewhere.
struct Coverage {
    file: File,
    area: *const AtomicU64,
}

impl Coverage {
    fn new() -> Res<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/sys/kernel/debug/kcov")?;
        // SAFETY: the argument is a number.
        check_eq!(
            unsafe { libc::ioctl(file.as_raw_fd(), INIT_TRACE, WORDS) },
            0
        );
        // SAFETY: a new mapping, which nothing else refers to.
        let area = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                WORDS * 8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        check!(area != libc::MAP_FAILED, "the area is not mapped");
        Ok(Coverage {
            file,
            area: area.cast(),
        })
    }

    fn enable(&self) -> Res {
        let remote = Remote {
            trace_mode: 0,
            area_size: WORDS as u32,
            num_handles: 0,
            common_handle: HANDLE,
        };
        check_eq!(sys::ioctl(&self.file, REMOTE_ENABLE, &remote), 0);
        Ok(())
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < WORDS);
        // SAFETY: the mapping has so many words, and stays.
        unsafe { &*self.area.add(index) }
    }

    /// Forgets what there was.
    fn clear(&self) {
        self.word(0).store(0, Relaxed);
    }

    /// How many different addresses are there of each kind: in the module, and elsewhere.
    fn counts(&self) -> Res<(usize, usize)> {
        let text = module_text()?;
        let count = self.word(0).load(Relaxed) as usize;
        let all = (1..=count).map(|i| self.word(i).load(Relaxed));
        let all: BTreeSet<_> = all.collect();
        let ours = all.iter().filter(|address| text.contains(address)).count();
        Ok((ours, all.len() - ours))
    }
}

/// Where the module's code is.
fn module_text() -> Res<std::ops::Range<u64>> {
    let start = std::fs::read_to_string("/sys/module/vhost_net/sections/.text")?;
    let start = u64::from_str_radix(start.trim().trim_start_matches("0x"), 16);
    let start = start.map_err(|e| Fail(e.to_string()))?;
    // Its sections are in one piece of memory.
    Ok(start..start + (1 << 20))
}

fn send(g: &mut Guest) -> Res {
    g.send_all(&[frame(1, 60)])?;
    // Settles.
    Before::of(g).map(|_| ())
}

/// The worker's turns are in the coverage of who has it on when it sets the owner, with a worker of either kind.
fn turns() -> Res {
    for kernel_thread in [false, true] {
        let coverage = Coverage::new()?;
        coverage.enable()?;
        let mut g = Guest::new(Config {
            kernel_thread,
            ..Config::default()
        })?;
        coverage.clear();
        send(&mut g)?;
        let (ours, others) = coverage.counts()?;
        println!("# {ours} addresses in the module, {others} elsewhere");
        check!(ours > 30, "{ours} addresses in the module");
        drop(g);
        // SAFETY: the argument is a number.
        check_eq!(
            unsafe { libc::ioctl(coverage.file.as_raw_fd(), DISABLE, 0) },
            0
        );
    }
    Ok(())
}

/// Who has it off when the owner is set has nothing in it.
fn off() -> Res {
    let mut g = Guest::new(Config::default())?;
    let coverage = Coverage::new()?;
    coverage.enable()?;
    coverage.clear();
    send(&mut g)?;
    check_eq!(coverage.counts()?.0, 0, "addresses in the module");
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[("turns", turns), ("off", off)];
    ktap::run(TESTS)
}
