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

/// The control group of a task, by the folder that /proc has of it.
fn group_of(task: &str) -> Res<String> {
    let text = read_to_string(format!("{task}/cgroup"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("0::"));
    line.map(str::to_string)
        .ok_or(Fail(format!("no group: {text}")))
}

/// Mounts the control groups where only this process sees them.
fn groups() -> Res<std::path::PathBuf> {
    let at = std::env::temp_dir();
    let path = std::ffi::CString::new(at.as_os_str().as_encoded_bytes()).unwrap();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: strings that end; the process has one thread.
    let good = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(null(), c"/".as_ptr(), null(), private, null()) == 0
            && libc::mount(null(), path.as_ptr(), c"cgroup2".as_ptr(), 0, null()) == 0
    };
    check!(good, "mount: {}", std::io::Error::last_os_error());
    Ok(at)
}

/// Either worker is in its owner's control group. A kernel thread stays in the one where it was made.
fn control_group() -> Res {
    let all = groups()?;
    let [first, second] = ["vhost-first", "vhost-second"].map(|name| all.join(name));
    for path in [&first, &second] {
        if !path.exists() {
            std::fs::create_dir(path)?;
        }
    }
    let enter = |path: &std::path::Path| -> Res {
        let me = std::process::id().to_string();
        Ok(std::fs::write(path.join("cgroup.procs"), me)?)
    };
    let test = |kernel_thread: bool| -> Res {
        enter(&first)?;
        let mut g = Guest::new(Config {
            kernel_thread,
            ..Config::default()
        })?;
        let worker = match kernel_thread {
            true => kernel_threads()?.pop().ok_or(Fail("no worker".into()))?,
            false => thread_named("vhost-")?.display().to_string(),
        };
        check_eq!(group_of(&worker)?, "/vhost-first", "group of {worker}");
        g.send_all(&[frame(1, 60)])?;
        enter(&second)?;
        let want = if kernel_thread {
            "/vhost-first"
        } else {
            "/vhost-second"
        };
        check_eq!(group_of(&worker)?, want, "group of {worker}, later");
        g.send_all(&[frame(2, 60)])
    };
    let result = test(true).and_then(|_| test(false));
    enter(&all)?;
    result?;
    for path in [&first, &second] {
        check!(
            until(|| std::fs::remove_dir(path).is_ok()),
            "somebody is left in {path:?}"
        );
    }
    Ok(())
}

/// Loads the module with a parameter. The C driver has this one in vhost.ko, which lies beside it.
fn load(parameter: &str) -> Res {
    if !on_c() {
        // Its parameters would count.
        without("vhost")?;
        return reload(parameter);
    }
    unload("vhost_net")?;
    unload("vhost")?;
    sys::load(&beside("vhost.ko"), parameter)?;
    sys::load(&beside("vhost_net.ko"), "")
}

/// The module's parameter is what devices start with, and start with again after RESET_OWNER.
fn default() -> Res {
    let test = |value: &str, default: u8| -> Res {
        load(&format!("fork_from_owner_default={value}"))?;
        for other in [1 - default, default] {
            let f = sys::open()?;
            check_eq!(fork(&f)?, default, "at first, with {value}");
            check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
            check_eq!(own_threads()?, usize::from(default), "own threads");
            check_eq!(
                kernel_threads()?.len(),
                usize::from(1 - default),
                "kernel threads"
            );
            check_eq!(sys::ioctl(&f, RESET_OWNER, NULL), 0);
            check_eq!(fork(&f)?, default, "after RESET_OWNER");
            check_eq!(sys::ioctl(&f, SET_FORK_FROM_OWNER, &other), 0);
            check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
            check_eq!(
                kernel_threads()?.len(),
                usize::from(1 - other),
                "kernel threads"
            );
            drop(f);
            check!(
                until(
                    || own_threads().is_ok_and(|n| n == 0) && module_users().is_none_or(|n| n == 0)
                ),
                "a worker is left"
            );
        }
        Ok(())
    };
    let values = [("0", 0), ("1", 1), ("N", 0), ("Y", 1)];
    let result = values
        .into_iter()
        .try_for_each(|(value, want)| test(value, want));
    load("")?;
    result
}

fn main() {
    const TESTS: &[Test] = &[
        ("errors", errors),
        ("traffic", traffic),
        ("killed", killed),
        ("control_group", control_group),
        ("default", default),
    ];
    ktap::run(TESTS)
}
