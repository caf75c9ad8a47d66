// SPDX-License-Identifier: GPL-2.0

//! What the kernel is asked and told besides the device itself.

use std::fs::read_to_string;
use std::fs::File;
use std::io::Error;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;

use kselftest::bail;
use kselftest::Res;

fn check(result: i64) -> Res {
    match result {
        0 => Ok(()),
        _ => Err(Error::last_os_error().into()),
    }
}

/// Another's descriptor as a file, which is not closed.
pub fn file(of: &impl AsRawFd) -> ManuallyDrop<File> {
    // SAFETY: the descriptor is open, and nobody closes it here.
    ManuallyDrop::new(unsafe { File::from_raw_fd(of.as_raw_fd()) })
}

/// The ids of the device's worker threads, the first one first.
pub fn workers() -> Res<Vec<i32>> {
    let name = format!("vhost-{}", std::process::id());
    let mut ids = vec![];
    for entry in std::fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        if read_to_string(path.join("comm"))?.trim_end() == name {
            ids.push(path.file_name().unwrap().to_string_lossy().parse()?);
        }
    }
    kselftest::check!(!ids.is_empty(), "there is no thread called {name}");
    ids.sort_unstable();
    Ok(ids)
}

/// The processor time of a thread, in nanoseconds. Exact while the thread sleeps.
pub fn runtime(tid: i32) -> Res<u64> {
    let text = read_to_string(format!("/proc/self/task/{tid}/schedstat"))?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// Packets that an interface has received.
pub fn received(interface: &str) -> Res<u64> {
    let text = read_to_string("/proc/self/net/dev")?;
    for line in text.lines() {
        if let Some((name, numbers)) = line.split_once(':') {
            if name.trim() == interface {
                return Ok(numbers
                    .split_whitespace()
                    .nth(1)
                    .unwrap_or_default()
                    .parse()?);
            }
        }
    }
    bail!("there is no interface {interface}")
}

/// Lets this process open as many files as it may: a device and what is around it are a dozen.
pub fn many_files() -> Res {
    // SAFETY: the limits are valid for reads and writes.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit).into())?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit).into())
    }
}

/// Keeps a thread on one processor; 0 is the calling one.
pub fn pin(tid: i32, cpu: usize) -> Res {
    // SAFETY: all zero is a valid set, and the set is of that size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        check(libc::sched_setaffinity(tid, size_of_val(&set), &set).into())
    }
}
