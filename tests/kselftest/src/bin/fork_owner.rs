// SPDX-License-Identifier: GPL-2.0

//! The two kinds of worker: a thread of the owner, or a kernel thread.

use std::fs::read_to_string;
use std::ptr::null;

use kselftest::ktap::Test;
use kselftest::sys::*;
use kselftest::*;

const NULL: *const u64 = null();

fn fork(f: &std::fs::File) -> Res<u8> {
    let value = 0xffu8;
    check_eq!(sys::ioctl(f, GET_FORK_FROM_OWNER, &value), 0);
    // SAFETY: a local variable; read again because the kernel wrote it.
    Ok(unsafe { std::ptr::read_volatile(&value) })
}

/// The ids of the kernel threads that work for this process.
fn kernel_threads() -> Res<Vec<String>> {
    let name = format!("vhost-{}", std::process::id());
    let mut v = vec![];
    for p in std::fs::read_dir("/proc")? {
        let p = p?.path();
        let Ok(status) = read_to_string(p.join("status")) else {
            continue;
        };
        let field = |key: &str| {
            let line = status.lines().find(|l| l.starts_with(key));
            line.and_then(|l| l.split_whitespace().last())
        };
        // Kernel threads are children of kthreadd.
        if field("Name:") == Some(&name) && field("PPid:") == Some("2") {
            v.push(p.display().to_string());
        }
    }
    Ok(v)
}

fn own_threads() -> Res<usize> {
    Ok(threads()?
        .iter()
        .filter(|t| t.starts_with("vhost-"))
        .count())
}

fn errors() -> Res {
    let f = sys::open()?;
    check_eq!(fork(&f)?, 1, "the default");
    check_eq!(sys::ioctl(&f, SET_FORK_FROM_OWNER, &2u8), libc::EINVAL);
    check_eq!(sys::ioctl(&f, SET_FORK_FROM_OWNER, NULL), libc::EFAULT);
    check_eq!(sys::ioctl(&f, GET_FORK_FROM_OWNER, NULL), libc::EFAULT);
    check_eq!(fork(&f)?, 1, "after errors");
    check_eq!(sys::ioctl(&f, SET_FORK_FROM_OWNER, &0u8), 0);
    check_eq!(fork(&f)?, 0);
    check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
    check_eq!(sys::ioctl(&f, SET_FORK_FROM_OWNER, &1u8), libc::EBUSY);
    check_eq!(sys::ioctl(&f, SET_FORK_FROM_OWNER, &2u8), libc::EBUSY);
    check_eq!(fork(&f)?, 0, "with an owner");
    check_eq!(sys::ioctl(&f, RESET_OWNER, NULL), 0);
    check_eq!(fork(&f)?, 1, "after RESET_OWNER");
    Ok(())
}

/// Packets go through with either, and the thread is what was asked for.
fn traffic() -> Res {
    for kernel_thread in [true, false, true] {
        let mut g = Guest::new(Config {
            kernel_thread,
            ..Config::default()
        })?;
        check_eq!(own_threads()?, usize::from(!kernel_thread));
        check_eq!(kernel_threads()?.len(), usize::from(kernel_thread));
        for i in 0..50 {
            g.send_all(&[frame(i, 60), frame(i + 1000, 9000)])?;
            g.receive_all(&[frame(i, 60), frame(i + 1000, 1514)])?;
        }
        drop(g);
        check!(
            until(|| kernel_threads().is_ok_and(|t| t.is_empty())),
            "a kernel thread is left"
        );
    }
    Ok(())
}

/// An owner that is killed takes the kernel thread with it.
fn killed() -> Res {
    let (mut here, there) = std::os::unix::net::UnixStream::pair()?;
    // SAFETY: one thread; the child never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        use std::io::Write;
        let run = |mut there: std::os::unix::net::UnixStream| -> Res {
            let mut g = Guest::new(Config {
                kernel_thread: true,
                ..Config::default()
            })?;
            for i in 0.. {
                g.send_all(&[frame(i, 60), frame(i + 1, 3000)])?;
                there.write_all(&[1])?;
            }
            Ok(())
        };
        let _ = run(there);
        // SAFETY: ends the child.
        unsafe { libc::_exit(1) }
    }
    drop(there);
    let mut bytes = [0; 20];
    std::io::Read::read_exact(&mut here, &mut bytes)?;
    let mut status = 0;
    // SAFETY: `pid` is a child of this process.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        check_eq!(libc::waitpid(pid, &mut status, 0), pid);
    }
    check!(libc::WIFSIGNALED(status), "the child ended by itself");
    check!(
        until(|| module_users().is_none_or(|n| n == 0)),
        "{:?} users of the module",
        module_users()
    );
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[("errors", errors), ("traffic", traffic), ("killed", killed)];
    ktap::run(TESTS)
}
