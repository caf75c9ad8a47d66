// SPDX-License-Identifier: GPL-2.0

//! Owners that die, files that close, and the module that comes and goes.

use std::fs::File;
use std::io::Error;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::ptr::null;

use kselftest::feature::*;
use kselftest::ktap::Test;
use kselftest::sys::*;
use kselftest::*;
use vhost::VhostBackend;

const NULL: *const u64 = null();

fn workers() -> Res<Vec<String>> {
    Ok(threads()?
        .into_iter()
        .filter(|t| t.starts_with("vhost-"))
        .collect())
}

/// The worker is a thread of the owner, named after it, and lives as long as the ownership.
fn worker_thread() -> Res {
    let name = format!("vhost-{}", std::process::id());
    let f = sys::open()?;
    check_eq!(workers()?, Vec::<String>::new(), "before SET_OWNER");
    for _ in 0..3 {
        check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
        check_eq!(workers()?, vec![name.clone()], "after SET_OWNER");
        check_eq!(sys::ioctl(&f, RESET_OWNER, NULL), 0);
        check!(
            until(|| workers().is_ok_and(|w| w.is_empty())),
            "a worker after RESET_OWNER"
        );
    }
    check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
    drop(f);
    check!(
        until(|| workers().is_ok_and(|w| w.is_empty())),
        "a worker after close"
    );
    Ok(())
}

/// It is the worker that moves the packets: it sleeps and wakes with them.
fn worker_works() -> Res {
    let mut g = Guest::new(Config::default())?;
    let path = thread_named("vhost-")?.join("status");
    let switches = || -> Res<u64> {
        let s = std::fs::read_to_string(&path)?;
        let n = |key: &str| -> u64 {
            let line = s.lines().find(|l| l.starts_with(key));
            line.and_then(|l| l.split_whitespace().last()?.parse().ok())
                .unwrap_or(0)
        };
        Ok(n("voluntary_ctxt_switches") + n("nonvoluntary_ctxt_switches"))
    };
    let before = switches()?;
    for i in 0..20 {
        g.send_all(&[frame(i, 60)])?;
    }
    check!(
        until(|| switches().is_ok_and(|n| n >= before + 5)),
        "the worker never slept or woke"
    );
    Ok(())
}

/// Runs a guest with endless traffic in a child, whose death is its end. Returns the child, and the
/// number of its device's descriptor, when the traffic flows.
fn victim(features: u64) -> Res<(i32, i32)> {
    let (mut here, mut there) = UnixStream::pair()?;
    // SAFETY: one thread; the child never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let mut run = || -> Res {
            let mut g = Guest::new(Config::with(features))?;
            let area = g.mem.alloc(Traffic::room(&g), 4096);
            let mut t = Traffic::new(&g, area);
            for i in 1.. {
                t.run(&mut g, 300 * i)?;
                there.write_all(&g.net.as_raw_fd().to_le_bytes())?;
            }
            Ok(())
        };
        if let Err(Fail(e)) = run() {
            println!("# victim: {e}");
        }
        // SAFETY: ends the child.
        unsafe { libc::_exit(1) }
    }
    drop(there);
    let mut fd = [0; 4];
    for _ in 0..3 {
        here.read_exact(&mut fd)?;
    }
    // The child fills the socket and would sleep in it if nobody read.
    std::thread::spawn(move || {
        let mut b = [0; 4096];
        while here.read(&mut b).is_ok_and(|n| n > 0) {}
    });
    Ok((pid, i32::from_le_bytes(fd)))
}

fn kill(pid: i32) -> Res {
    let mut status = 0;
    // SAFETY: `pid` is a child of this process.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        check_eq!(libc::waitpid(pid, &mut status, 0), pid);
    }
    check!(
        libc::WIFSIGNALED(status),
        "the victim ended by itself, status {status:#x}"
    );
    Ok(())
}

fn nobody() -> Res {
    check!(
        until(|| module_users().is_none_or(|n| n == 0)),
        "{:?} users of the module",
        module_users()
    );
    Ok(())
}

/// SIGKILL under traffic frees everything, and the next owner finds it all as new.
fn killed() -> Res {
    for features in [
        VERSION_1,
        VERSION_1 | EVENT_IDX,
        0,
        VERSION_1 | MRG_RXBUF,
        VHOST_NET_HDR,
    ] {
        let (pid, _) = victim(features)?;
        check!(
            module_users().is_none_or(|n| n > 0),
            "nobody uses the module"
        );
        kill(pid)?;
        nobody()?;
        // Its tap is gone too: the name is free.
        let mut g = Guest::new(Config::with(features))?;
        g.send_all(&[frame(1, 60)])?;
        g.receive_all(&[frame(1, 60)])?;
    }
    Ok(())
}

/// The owner is killed, but somebody else still has the file. He can do nothing with it but close it.
fn killed_but_shared() -> Res {
    for _ in 0..3 {
        let (pid, fd) = victim(VERSION_1)?;
        // SAFETY: plain system calls, whose results are checked.
        let file = unsafe {
            let p = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
            check!(p >= 0, "pidfd_open: {}", Error::last_os_error());
            let p = OwnedFd::from_raw_fd(p);
            let f = libc::syscall(libc::SYS_pidfd_getfd, p.as_raw_fd(), fd, 0) as i32;
            check!(f >= 0, "pidfd_getfd: {}", Error::last_os_error());
            File::from_raw_fd(f)
        };
        kill(pid)?;
        check_eq!(sys::ioctl(&file, SET_OWNER, NULL), libc::EBUSY);
        check_eq!(sys::ioctl(&file, RESET_OWNER, NULL), libc::EPERM);
        check_eq!(
            sys::ioctl(&file, NET_SET_BACKEND, &VringFile { index: 0, fd: -1 }),
            libc::EPERM
        );
        check!(
            module_users().is_none_or(|n| n > 0),
            "nobody uses the module"
        );
        drop(file);
        nobody()?;
    }
    Ok(())
}

/// Closed in the middle of traffic, in every state that falls on the way.
fn closed_under_traffic() -> Res {
    let rounds = if sys::on_debug_kernel() { 12 } else { 40 };
    for i in 0..rounds {
        let mut g = Guest::new(Config::with(if i % 2 == 0 {
            VERSION_1
        } else {
            VERSION_1 | EVENT_IDX
        }))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        let mut t = Traffic::new(&g, area);
        t.run(&mut g, i % 3 * 100)?;
        t.feed(&mut g, i % 3 * 100 + 200)?;
        drop(g);
    }
    nobody()
}

/// Open and close, again and again, leaves nothing behind.
fn open_and_close() -> Res {
    let fds = || Ok::<_, Fail>(std::fs::read_dir("/proc/self/fd")?.count());
    let before = fds()?;
    for i in 0..100 {
        let f = sys::open()?;
        if i % 2 == 0 {
            check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
        }
        if i % 4 == 0 {
            check_eq!(sys::ioctl(&f, RESET_OWNER, NULL), 0);
        }
    }
    check_eq!(fds()?, before, "open files");
    check!(
        until(|| threads().is_ok_and(|t| t.len() == 1)),
        "threads left: {:?}",
        threads()?
    );
    nobody()
}

/// Many devices of one owner at once.
fn many_devices() -> Res {
    let v = (0..30).map(|_| sys::open()).collect::<Res<Vec<_>>>()?;
    for f in &v {
        check_eq!(sys::ioctl(f, SET_OWNER, NULL), 0);
    }
    check_eq!(workers()?.len(), 30, "workers");
    let mut g = Guest::new(Config::default())?;
    g.send_all(&[frame(1, 60)])?;
    if let Some(n) = module_users() {
        check_eq!(n, 31, "users of the module");
    }
    drop(v);
    check!(
        until(|| workers().is_ok_and(|w| w.len() == 1)),
        "workers left: {:?}",
        workers()?
    );
    g.send_all(&[frame(2, 60)])?;
    g.receive_all(&[frame(3, 60)])
}

/// The device holds the tap while it is the backend, and not a moment longer.
fn tap_released() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.tap.persist(true)?;
    let null = File::open("/dev/null")?;
    drop(std::mem::replace(&mut g.tap.fd, null));
    check!(
        Tap::attach("tap0", 12).is_err(),
        "the tap could be attached to twice"
    );
    g.send_all(&[frame(1, 60)])?;
    g.stop()?;
    let tap = Tap::attach("tap0", 12)?;
    g.backend(Some(&tap.fd))?;
    drop(tap);
    g.send_all(&[frame(2, 60)])?;
    check!(
        Tap::attach("tap0", 12).is_err(),
        "the tap could be attached to twice"
    );
    g.net.reset_owner()?;
    let tap = Tap::attach("tap0", 12)?;
    drop(tap);
    drop(g);
    // Closed while it still is the backend.
    let mut g = Guest::new(Config::default())?;
    let null = File::open("/dev/null")?;
    drop(std::mem::replace(&mut g.tap.fd, null));
    check!(
        Tap::attach("tap0", 12).is_err(),
        "the tap could be attached to twice"
    );
    drop(g);
    Tap::attach("tap0", 12)?.persist(false)
}

/// The device keeps the call eventfd alive that the VMM has closed.
fn call_eventfd_kept_alive() -> Res {
    let mut g = Guest::new(Config::default())?;
    let fresh = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK)?;
    let mine = fresh.try_clone()?;
    g.net.set_vring_call(TX, &fresh)?;
    drop(fresh);
    let at = g.place(&frame(1, 60));
    g.tx.add(&[Seg::r(at, 72)]);
    g.tx.submit();
    g.tx.spin()?;
    check!(until(|| mine.read().is_ok()), "no call");
    check_eq!(g.tx.calls(), 0, "calls to the old eventfd");
    Ok(())
}

/// Puts the module back, whatever happens in between.
struct Back(String);

impl Back {
    fn insert(&self) -> Res {
        if std::path::Path::new("/sys/module/vhost_net").exists() {
            return Ok(());
        }
        load(std::path::Path::new(&self.0), "")
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        let _ = self.insert();
    }
}

/// The module can't go while it is used, and goes and comes when it is not.
fn module_unload() -> Res {
    let Ok(path) = std::env::var("VHOST_MODULE_PATH") else {
        bail!("VHOST_MODULE_PATH does not say where vhost_net.ko is, so it can't be unloaded");
    };
    let back = Back(path);
    let node = std::path::Path::new("/dev/vhost-net");
    for _ in 0..3 {
        let f = sys::open()?;
        check_eq!(
            delete_module("vhost_net"),
            libc::EAGAIN,
            "rmmod while the device is open"
        );
        check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
        check_eq!(
            delete_module("vhost_net"),
            libc::EAGAIN,
            "rmmod while the device has an owner"
        );
        drop(f);
        let (pid, _) = victim(VERSION_1 | EVENT_IDX)?;
        for _ in 0..20 {
            check_eq!(
                delete_module("vhost_net"),
                libc::EAGAIN,
                "rmmod under traffic"
            );
        }
        kill(pid)?;
        nobody()?;
        check_eq!(delete_module("vhost_net"), 0, "rmmod of the unused module");
        check!(
            !std::path::Path::new("/sys/module/vhost_net").exists(),
            "still in sysfs"
        );
        check!(until(|| !node.exists()), "the device node is still there");
        back.insert()?;
        check!(until(|| node.exists()), "no device node");
        let mut g = Guest::new(Config::default())?;
        g.send_all(&[frame(1, 60)])?;
        g.receive_all(&[frame(1, 60)])?;
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("worker_thread", worker_thread),
        ("worker_works", worker_works),
        ("killed", killed),
        ("killed_but_shared", killed_but_shared),
        ("closed_under_traffic", closed_under_traffic),
        ("open_and_close", open_and_close),
        ("many_devices", many_devices),
        ("tap_released", tap_released),
        ("call_eventfd_kept_alive", call_eventfd_kept_alive),
        ("module_unload", module_unload),
    ];
    ktap::run(TESTS)
}
