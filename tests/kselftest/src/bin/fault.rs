// SPDX-License-Identifier: GPL-2.0

//! Every allocation and every copy from or to user memory fails in turn: first the first one of an operation, then the
//! second, until there was none left to fail. Each failure has its errno and changes nothing, and the operation succeeds when
//! it is tried again. What is lost with it, the end of each test shows, and kmemleak the end of the VM.
//!
//! Only on the debug kernel. Some of what fails is the kernel's own (a page for the leak detector's notes, for one), and
//! makes no difference.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::ptr::null;
use std::time::Duration;

use kselftest::dirty::Bitmap;
use kselftest::fault::Faults;
use kselftest::fault::Kind;
use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::iotlb;
use kselftest::iotlb::Msg;
use kselftest::ktap::Test;
use kselftest::mem::BASE;
use kselftest::net::index;
use kselftest::net::seq;
use kselftest::sys::ioctl;
use kselftest::sys::*;
use kselftest::task::settle;
use kselftest::*;
use libc::EFAULT;
use libc::EINVAL;
use libc::ENOMEM;
use vhost::net::VhostNet;
use vhost::VhostBackend;

const NULL: *const u64 = null();

/// Failures of allocations and of copies.
type Counts = (u32, u32);

/// What an operation is when it is walked.
struct Walk<'a, S> {
    what: &'a str,
    /// What it fails with.
    errno: fn(Kind) -> i32,
    /// How many allocations and copies it is known to have.
    least: Counts,
    /// What comes before each try.
    prepare: &'a mut dyn FnMut(&mut S) -> Res,
    /// Succeeds with 0, or fails with an errno. Done again when it failed.
    op: &'a mut dyn FnMut(&mut S) -> i32,
    /// Everything works, after a failure (`false`) and after a success.
    check: &'a mut dyn FnMut(&mut S, bool) -> Res,
}

/// The errno that nearly everything fails with.
fn usual(kind: Kind) -> i32 {
    match kind {
        Kind::Alloc => ENOMEM,
        Kind::Copy => EFAULT,
    }
}

/// Whatever fails: what the C driver makes of any failure to set an IOTLB up.
fn fault(_: Kind) -> i32 {
    EFAULT
}

/// So often a fault that makes no difference, or is not reached, is tried.
const TRIES: u32 = 3;

impl<S> Walk<'_, S> {
    fn run(self, s: &mut S) -> Res {
        let Walk {
            what,
            errno,
            least,
            prepare,
            op,
            check,
        } = self;
        let mut faults = Faults::here()?;
        let (mut failed, mut harmless) = ((0, 0), 0);
        let (mut n, mut tries) = (1, 0);
        loop {
            check!(n < 1000, "{what}: no end");
            prepare(s)?;
            faults.arm(n)?;
            let got = op(s);
            let seen = faults.disarm()?;
            let Some(kind) = seen.filter(|_| got != 0) else {
                check_eq!(got, 0, "{what}: errno without a fault (after {n})");
                check(s, true)?;
                // The kernel may have had something else to do in this thread that time.
                tries += 1;
                if tries < TRIES {
                    continue;
                }
                if seen.is_none() {
                    break;
                }
                harmless += 1;
                (n, tries) = (n + 1, 0);
                continue;
            };
            check_eq!(got, errno(kind), "{what}: errno of fault {n}, {kind:?}");
            match kind {
                Kind::Alloc => failed.0 += 1,
                Kind::Copy => failed.1 += 1,
            }
            check(s, false)?;
            check_eq!(
                op(s),
                0,
                "{what}: errno when tried again after fault {n}, {kind:?}"
            );
            check(s, true)?;
            (n, tries) = (n + 1, 0);
        }
        println!(
            "# {what}: {} allocations and {} copies failed, {harmless} made no difference",
            failed.0, failed.1
        );
        check!(
            failed.0 >= least.0 && failed.1 >= least.1,
            "{what}: {failed:?} allocations and copies failed, and it has {least:?}"
        );
        Ok(())
    }
}

fn config(features: u64) -> Config {
    Config {
        regions: vec![(BASE, 16 << 20)],
        ..Config::with(features)
    }
}

/// A packet each way.
fn flow(g: &mut Guest) -> Res {
    g.send_all(&[frame(1, 60)])?;
    g.receive_all(&[frame(2, 60)])
}

/// How many descriptors this process has open.
fn descriptors() -> Res<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// Nothing is left of a guest: not the worker, not the module's use, and nobody has its tap.
fn gone(g: Guest, descriptors_before: usize) -> Res {
    let name = g.tap.name.clone();
    drop(g);
    check!(until(|| index(&name).is_err()), "somebody has the tap");
    check!(
        until(|| module_users().is_none_or(|n| n == 0)),
        "users of the module"
    );
    check!(until(|| worker().is_err()), "a worker");
    check_eq!(descriptors()?, descriptors_before, "descriptors");
    Ok(())
}

/// The worker's thread.
fn worker() -> Res<i32> {
    let folder = sys::thread_named("vhost-")?;
    Ok(folder.file_name().unwrap().to_string_lossy().parse()?)
}

/// When it is set up again, the guest runs.
fn starts(g: &mut Guest, done: bool) -> Res {
    if !done {
        return Ok(());
    }
    g.start()?;
    flow(g)
}

/// Walks an ioctl of a guest that runs, and runs on whether it fails or not.
fn running<T>(g: &mut Guest, what: &str, request: u64, arg: *const T, least: Counts) -> Res {
    Walk {
        what,
        errno: usual,
        least,
        prepare: &mut |_| Ok(()),
        op: &mut |g: &mut Guest| ioctl(&g.net, request, arg),
        check: &mut |g, _| flow(g),
    }
    .run(g)
}

/// Walks an ioctl of a guest whose queues are stopped.
fn stopped<T>(g: &mut Guest, what: &str, request: u64, arg: *const T, least: Counts) -> Res {
    Walk {
        what,
        errno: usual,
        least,
        prepare: &mut |g: &mut Guest| g.stop(),
        op: &mut |g| ioctl(&g.net, request, arg),
        check: &mut |g, done| match done {
            true => {
                g.start()?;
                flow(g)
            }
            false => Ok(()),
        },
    }
    .run(g)
}

/// The ioctls of the whole device.
fn device() -> Res {
    let before = descriptors()?;
    let mut g = Guest::new(config(VERSION_1))?;
    let mut word = 0u64;
    let word = &raw mut word;
    running(&mut g, "GET_FEATURES", GET_FEATURES, word, (0, 1))?;
    running(&mut g, "SET_FEATURES", SET_FEATURES, &VERSION_1, (0, 1))?;
    let mut array = [2u64, 0, 0];
    running(
        &mut g,
        "GET_FEATURES_ARRAY",
        GET_FEATURES_ARRAY,
        array.as_mut_ptr(),
        (0, 2),
    )?;
    let array = [2, VERSION_1, 0];
    running(
        &mut g,
        "SET_FEATURES_ARRAY",
        SET_FEATURES_ARRAY,
        array.as_ptr(),
        (0, 2),
    )?;
    running(
        &mut g,
        "GET_BACKEND_FEATURES",
        GET_BACKEND_FEATURES,
        word,
        (0, 1),
    )?;
    running(
        &mut g,
        "SET_BACKEND_FEATURES",
        SET_BACKEND_FEATURES,
        &2u64,
        (0, 1),
    )?;
    running(
        &mut g,
        "GET_FORK_FROM_OWNER",
        GET_FORK_FROM_OWNER,
        word,
        (0, 0),
    )?;
    let table = g.view.iter().map(|m| Region {
        gpa: m.gpa,
        size: m.size,
        hva: m.hva,
        flags: 0,
    });
    let table = mem_table(1, 0, &table.collect::<Vec<_>>());
    running(
        &mut g,
        "SET_MEM_TABLE",
        SET_MEM_TABLE,
        table.as_ptr(),
        (1, 2),
    )?;
    let log = Bitmap::new(BASE + (16 << 20), 0)?;
    running(&mut g, "SET_LOG_BASE", SET_LOG_BASE, &log.base, (0, 1))?;
    let event = vmm_sys_util::eventfd::EventFd::new(0)?;
    let allocs = if on_c() { 0 } else { 1 };
    running(
        &mut g,
        "SET_LOG_FD",
        SET_LOG_FD,
        &event.as_raw_fd(),
        (allocs, 1),
    )?;
    drop(event);
    gone(g, before)
}

/// The ioctls of a queue.
fn queue() -> Res {
    let before = descriptors()?;
    let mut g = Guest::new(config(VERSION_1))?;
    for i in [RX, TX] {
        let index = i as u32;
        let ring = |g: &Guest| {
            let r = if i == RX { &g.rx } else { &g.tx };
            (r.kick.as_raw_fd(), r.call.as_raw_fd(), r.err.as_raw_fd())
        };
        let (kick, call, err) = ring(&g);
        let file = |fd| VringFile { index, fd };
        let state = |num| State { index, num };
        let r = if i == RX { &g.rx } else { &g.tx };
        let addr = Addr {
            index,
            desc: g.mem.hva(r.desc).0 as u64,
            used: g.mem.hva(r.used).0 as u64,
            avail: g.mem.hva(r.avail).0 as u64,
            ..Default::default()
        };
        let mut out = state(0);
        let get = &raw mut out;
        running(&mut g, "GET_VRING_BASE", GET_VRING_BASE, get, (0, 2))?;
        running(&mut g, "GET_VRING_ENDIAN", GET_VRING_ENDIAN, get, (0, 2))?;
        running(
            &mut g,
            "GET_VRING_BUSYLOOP_TIMEOUT",
            GET_VRING_BUSYLOOP_TIMEOUT,
            get,
            (0, 2),
        )?;
        running(
            &mut g,
            "SET_VRING_BUSYLOOP_TIMEOUT",
            SET_VRING_BUSYLOOP_TIMEOUT,
            &state(0),
            (0, 2),
        )?;
        running(&mut g, "SET_VRING_ADDR", SET_VRING_ADDR, &addr, (0, 2))?;
        running(
            &mut g,
            "SET_VRING_CALL",
            SET_VRING_CALL,
            &file(call),
            (0, 2),
        )?;
        running(&mut g, "SET_VRING_ERR", SET_VRING_ERR, &file(err), (0, 2))?;
        stopped(&mut g, "SET_VRING_NUM", SET_VRING_NUM, &state(256), (0, 2))?;
        stopped(
            &mut g,
            "SET_VRING_ENDIAN",
            SET_VRING_ENDIAN,
            &state(LITTLE_ENDIAN),
            (0, 2),
        )?;
        // Both rings are as far, whose packets all went through.
        Walk {
            what: "SET_VRING_BASE",
            errno: usual,
            least: (0, 2),
            prepare: &mut |g: &mut Guest| g.stop(),
            op: &mut |g| {
                let ring = if i == RX { &g.rx } else { &g.tx };
                ioctl(&g.net, SET_VRING_BASE, &state(ring.avail_idx.into()))
            },
            check: &mut starts,
        }
        .run(&mut g)?;
        // One that was not there before.
        Walk {
            what: "SET_VRING_KICK",
            errno: usual,
            least: (0, 2),
            prepare: &mut |g: &mut Guest| {
                check_eq!(ioctl(&g.net, SET_VRING_KICK, &file(-1)), 0);
                Ok(())
            },
            op: &mut |g| ioctl(&g.net, SET_VRING_KICK, &file(kick)),
            check: &mut |g, done| if done { flow(g) } else { Ok(()) },
        }
        .run(&mut g)?;
    }
    gone(g, before)
}

/// A queue gets a backend, or another one; if not, it has the one that it had.
fn backend() -> Res {
    let before = descriptors()?;
    let mut g = Guest::new(config(VERSION_1))?;
    let other = Tap::new("tap1", g.hdr)?;
    let mut other_peer = Peer::new(other.index, false)?;
    for i in [RX, TX] {
        let file = |fd: &File| VringFile {
            index: i as u32,
            fd: fd.as_raw_fd(),
        };
        stopped(
            &mut g,
            "NET_SET_BACKEND of two",
            NET_SET_BACKEND,
            &VringFile {
                index: i as u32,
                fd: -1,
            },
            (0, 0),
        )?;
        Walk {
            what: "NET_SET_BACKEND, the first",
            errno: usual,
            least: (1, 1),
            prepare: &mut |g: &mut Guest| g.stop(),
            op: &mut |g| ioctl(&g.net, NET_SET_BACKEND, &file(&g.tap.fd)),
            check: &mut starts,
        }
        .run(&mut g)?;
        Walk {
            what: "NET_SET_BACKEND, another",
            errno: usual,
            least: (1, 1),
            prepare: &mut |g: &mut Guest| g.start(),
            op: &mut |g| ioctl(&g.net, NET_SET_BACKEND, &file(&other.fd)),
            check: &mut |g, done| {
                if done {
                    // The one queue at the other tap.
                    if i == TX {
                        std::mem::swap(&mut g.peer, &mut other_peer);
                        g.send_all(&[frame(3, 60)])?;
                        std::mem::swap(&mut g.peer, &mut other_peer);
                        return g.receive_all(&[frame(4, 60)]);
                    }
                    std::mem::swap(&mut g.peer, &mut other_peer);
                    g.receive_all(&[frame(3, 60)])?;
                    std::mem::swap(&mut g.peer, &mut other_peer);
                    return g.send_all(&[frame(4, 60)]);
                }
                flow(g)
            },
        }
        .run(&mut g)?;
        g.start()?;
    }
    // A queue that has it keeps it.
    g.net.set_backend(TX, Some(&other.fd))?;
    drop((other, other_peer));
    check!(index("tap1").is_ok(), "the tap of a queue is gone");
    g.stop()?;
    check!(
        until(|| index("tap1").is_err()),
        "somebody has the second tap"
    );
    gone(g, before)
}

/// All that a guest has to say to a device that has a new owner.
fn set_up(g: &mut Guest) -> Res {
    g.rx.reset(0);
    g.tx.reset(0);
    g.net.set_features(g.cfg.features)?;
    g.net.set_mem_table(&Mem::table(&g.view))?;
    g.set_vring(RX)?;
    g.set_vring(TX)?;
    g.start()?;
    flow(g)
}

/// Getting an owner and losing it, with either kind of worker.
fn owner() -> Res {
    let before = descriptors()?;
    for kernel_thread in [false, true] {
        let what = |s| {
            format!(
                "{s}{}",
                if kernel_thread {
                    ", a kernel thread"
                } else {
                    ""
                }
            )
        };
        let mut g = Guest::new(Config {
            kernel_thread,
            ..config(VERSION_1)
        })?;
        Walk {
            what: &what("SET_OWNER"),
            errno: usual,
            least: (4, 0),
            prepare: &mut |g: &mut Guest| {
                check_eq!(ioctl(&g.net, RESET_OWNER, NULL), 0);
                let fork = u8::from(!kernel_thread);
                check_eq!(ioctl(&g.net, SET_FORK_FROM_OWNER, &fork), 0);
                Ok(())
            },
            op: &mut |g| ioctl(&g.net, SET_OWNER, NULL),
            check: &mut |g, done| if done { set_up(g) } else { Ok(()) },
        }
        .run(&mut g)?;
        Walk {
            what: &what("RESET_OWNER"),
            errno: usual,
            least: (1, 0),
            prepare: &mut |_| Ok(()),
            op: &mut |g: &mut Guest| ioctl(&g.net, RESET_OWNER, NULL),
            check: &mut |g, done| {
                if !done {
                    return flow(g);
                }
                let fork = u8::from(!kernel_thread);
                check_eq!(ioctl(&g.net, SET_FORK_FROM_OWNER, &fork), 0);
                g.net.set_owner()?;
                set_up(g)
            },
        }
        .run(&mut g)?;
        Walk {
            what: &what("SET_FORK_FROM_OWNER"),
            errno: usual,
            least: (0, 1),
            prepare: &mut |g: &mut Guest| {
                check_eq!(ioctl(&g.net, RESET_OWNER, NULL), 0);
                Ok(())
            },
            op: &mut |g| ioctl(&g.net, SET_FORK_FROM_OWNER, &u8::from(!kernel_thread)),
            check: &mut |g, done| match done {
                true => {
                    g.net.set_owner()?;
                    set_up(g)
                }
                false => Ok(()),
            },
        }
        .run(&mut g)?;
        gone(g, before)?;
    }
    Ok(())
}

/// A device that is opened.
fn opened() -> Res {
    let before = descriptors()?;
    let mut file: Option<File> = None;
    Walk {
        what: "open",
        errno: usual,
        least: (4, 1),
        prepare: &mut |f: &mut Option<File>| {
            *f = None;
            Ok(())
        },
        op: &mut |f| {
            // SAFETY: a string that ends.
            match unsafe { libc::open(c"/dev/vhost-net".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) }
            {
                -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
                fd => {
                    // SAFETY: the descriptor is new.
                    *f = Some(unsafe { File::from_raw_fd(fd) });
                    0
                }
            }
        },
        check: &mut |f, done| {
            let Some(f) = f.take().filter(|_| done) else {
                // And what makes things fail.
                check_eq!(descriptors()?, before + 1, "descriptors after a failure");
                check!(until(|| module_users() == Some(0)), "users after a failure");
                return Ok(());
            };
            check_eq!(ioctl(&f, SET_OWNER, NULL), 0);
            drop(f);
            check!(until(|| worker().is_err()), "a worker");
            Ok(())
        },
    }
    .run(&mut file)
}

/// A device that is closed while it runs. That can't fail.
fn closed() -> Res {
    let before = descriptors()?;
    let small = || Config {
        regions: vec![(BASE, 1 << 20)],
        ..config(VERSION_1)
    };
    let mut guest = None;
    Walk {
        what: "close",
        errno: |_| 0,
        least: (0, 0),
        prepare: &mut |g: &mut Option<Guest>| {
            let mut new = Guest::new(small())?;
            flow(&mut new)?;
            *g = Some(new);
            Ok(())
        },
        op: &mut |g| {
            let fd = g.as_ref().map_or(-1, |g| g.net.as_raw_fd());
            // SAFETY: what has it will not use it, but forget it.
            unsafe { libc::close(fd) }
        },
        check: &mut |g, _| {
            let Some(g) = g.take() else { bail!("no guest") };
            let Guest {
                net,
                tap,
                peer,
                rx,
                tx,
                view,
                mem,
                ..
            } = g;
            std::mem::forget(net);
            drop((tap, peer, rx, tx, view, mem));
            check!(until(|| index("tap0").is_err()), "somebody has the tap");
            check!(
                until(|| module_users().is_none_or(|n| n == 0)),
                "users of the module"
            );
            check!(until(|| worker().is_err()), "a worker");
            check!(descriptors()? <= before + 1, "descriptors");
            Ok(())
        },
    }
    .run(&mut guest)
}

/// What a guest behind an IOTLB accepts.
const IOTLB: u64 = VERSION_1 | ACCESS_PLATFORM;

/// Maps all of the guest's memory.
fn map_all(g: &Guest) -> Res {
    let m = g.mem.regions()[0];
    iotlb::update(&g.net, m.gpa, m.size, m.hva, iotlb::RW)
}

/// A message or a part of it: 0 if all of it went, or an errno; -1 if nothing did.
fn errno(n: i32) -> i32 {
    match n {
        n if n == iotlb::LEN as i32 => 0,
        n if n < 0 => -n,
        _ => -1,
    }
}

/// Messages to the device.
fn messages() -> Res {
    let before = descriptors()?;
    let mut g = Guest::stopped(config(IOTLB))?;
    map_all(&g)?;
    g.start()?;
    flow(&mut g)?;
    let m = g.mem.regions()[0];
    // With another IOTLB, which knows nothing.
    let fresh = |g: &mut Guest| Ok(g.net.set_features(IOTLB)?);
    Walk {
        what: "SET_FEATURES with an IOTLB",
        errno: fault,
        least: (1, 1),
        prepare: &mut |_| Ok(()),
        op: &mut |g: &mut Guest| ioctl(&g.net, SET_FEATURES, &IOTLB),
        check: &mut |g, done| {
            if done {
                map_all(g)?;
            }
            flow(g)
        },
    }
    .run(&mut g)?;
    for v2 in [false, true] {
        let version = |msg: Msg| if v2 { msg.v2() } else { msg };
        // Of a message that can't be read, nobody knows what it is.
        let errnos = |kind| match kind {
            Kind::Alloc => EFAULT,
            Kind::Copy => EINVAL,
        };
        Walk {
            what: "an update",
            errno: errnos,
            // It does have an allocation, but there is another way to get that.
            least: (0, 2),
            prepare: &mut |g: &mut Guest| fresh(g),
            op: &mut |g| {
                let msg = version(Msg::update(m.gpa, m.size, m.hva, iotlb::RW));
                errno(iotlb::write(&g.net, &msg))
            },
            check: &mut |g, done| if done { flow(g) } else { Ok(()) },
        }
        .run(&mut g)?;
        Walk {
            what: "an invalidation",
            errno: errnos,
            least: (0, 2),
            prepare: &mut |_| Ok(()),
            op: &mut |g: &mut Guest| {
                let msg = version(Msg::invalidate(m.gpa + 4096, 4096));
                errno(iotlb::write(&g.net, &msg))
            },
            check: &mut |g, done| {
                if done {
                    map_all(g)?;
                }
                flow(g)
            },
        }
        .run(&mut g)?;
    }
    gone(g, before)
}

/// Messages from the device: one that did not reach its reader is read by the next.
fn misses() -> Res {
    let before = descriptors()?;
    let g = Guest::stopped(config(IOTLB))?;
    for r in [&g.rx, &g.tx] {
        for part in [r.desc, r.avail, r.used] {
            iotlb::update(&g.net, part, 4096, g.mem.hva(part).0 as u64, iotlb::RW)?;
        }
    }
    g.start()?;
    struct Asked {
        g: Guest,
        at: u64,
        msg: Option<Msg>,
    }
    let mut asked = Asked {
        g,
        at: 0,
        msg: None,
    };
    Walk {
        what: "reading a miss",
        // As if there were none.
        errno: |kind| if kind == Kind::Copy { -1 } else { ENOMEM },
        least: (0, 1),
        prepare: &mut |s: &mut Asked| {
            s.at = s.g.mem.alloc(4096, 4096);
            s.g.mem.fill(s.at, 4096, 0);
            s.g.mem.write(s.at + s.g.hdr as u64, &frame(1, 60));
            s.g.tx.add(&[Seg::r(s.at, s.g.hdr + 60)]);
            s.g.tx.submit();
            s.g.tx.kick();
            let deadline = deadline();
            check!(readable(&s.g.net, deadline), "no miss");
            Ok(())
        },
        op: &mut |s| match iotlb::read(&s.g.net) {
            Ok(msg) => {
                s.msg = Some(msg);
                0
            }
            Err(n) => errno(n),
        },
        check: &mut |s, done| {
            let Some(msg) = s.msg.take() else {
                check!(!done, "no message");
                return Ok(());
            };
            check_eq!(msg, Msg::miss(s.at, iotlb::RO), "the message");
            iotlb::update(&s.g.net, s.at, 4096, s.g.mem.hva(s.at).0 as u64, iotlb::RO)?;
            s.g.tx.wait()?;
            same(&s.g.peer.recv()?, &frame(1, 60), "the packet")
        },
    }
    .run(&mut asked)?;
    gone(asked.g, before)
}

/// The worker's allocations and copies, one failing after the other.
///
/// An allocation that fails does not stop a queue: whatever it was for is tried again, or the packet is lost. A copy that
/// fails is tried again (the kernel does so where it had begun), stops the queue, with the error signalled, or the packet is
/// lost. The queue goes on with the next kick, and in no case is a buffer lost, or any packet but the one.
struct Data<'a> {
    what: &'a str,
    /// What comes before each try.
    prepare: &'a dyn Fn(&mut Guest, &mut Moves) -> Res,
    /// Moves some packets.
    move_some: &'a dyn Fn(&mut Guest, &mut Moves) -> Res,
    least: Counts,
}

/// What came of some packets.
struct Moves {
    /// The number of the next packet.
    next: u32,
    faults: Faults,
    seen: Option<Kind>,
    stopped: bool,
    lost: usize,
    /// The buffers that the device may write, by the heads of their chains.
    buffers: HashMap<u32, Seg>,
}

impl Data<'_> {
    fn run(self, g: &mut Guest) -> Res {
        let Data {
            what,
            prepare,
            move_some,
            least,
        } = self;
        let mut m = Moves {
            next: 1,
            faults: Faults::of_thread(worker()?)?,
            seen: None,
            stopped: false,
            lost: 0,
            buffers: HashMap::new(),
        };
        let (mut allocs, mut copies, mut stops, mut losses, mut missed) = (0, 0, 0, 0, 0);
        for n in 1.. {
            check!(n < 1000, "{what}: no end");
            prepare(g, &mut m)?;
            (m.seen, m.stopped, m.lost) = (None, false, 0);
            settle(g)?;
            m.faults.arm(n)?;
            move_some(g, &mut m)
                .map_err(|Fail(why)| Fail(format!("{what}, fault {n}, {:?}: {why}", m.seen)))?;
            let (stopped, lost) = (m.stopped, m.lost);
            match m.seen {
                None => {
                    check!(
                        !stopped && lost == 0,
                        "{what}: stopped {stopped}, lost {lost} without a fault"
                    );
                    missed += 1;
                    // The first time it may have been less than usual.
                    if missed == 2 {
                        break;
                    }
                }
                Some(Kind::Alloc) => {
                    allocs += 1;
                    check!(
                        !stopped && lost <= 1,
                        "{what}, allocation {n}: stopped {stopped}, lost {lost}"
                    );
                }
                Some(Kind::Copy) => {
                    copies += 1;
                    check!(
                        lost <= 1,
                        "{what}, copy {n}: stopped {stopped}, lost {lost}"
                    );
                }
            }
            stops += usize::from(stopped);
            losses += lost;
        }
        println!("# {what}: {allocs} allocations and {copies} copies failed, {stops} stops, {losses} packets lost");
        check!(
            allocs >= least.0 && copies >= least.1,
            "{what}: {:?} allocations and copies failed, and it has {least:?}",
            (allocs, copies)
        );
        check!(
            stops + losses > 0,
            "{what}: whatever failed, nobody noticed"
        );
        Ok(())
    }
}

impl Moves {
    /// All is over that was begun: notes what failed, and whether the queue stopped.
    fn over(&mut self, g: &Guest) -> Res {
        settle(g)?;
        self.seen = self.faults.disarm()?;
        self.stopped = g.rx.err.read().is_ok() | g.tx.err.read().is_ok();
        Ok(())
    }

    fn packet(&mut self, len: usize) -> Vec<u8> {
        self.next += 1;
        frame(self.next, len)
    }

    /// Sends three packets, and one more when nothing fails any more, which shows what has arrived before it.
    fn send(&mut self, g: &mut Guest, indirect: bool, lens: [usize; 3]) -> Res {
        let packets = lens.map(|len| self.packet(len));
        for p in &packets {
            let at = g.place(p);
            let (hdr, len) = (g.hdr, p.len());
            let segs = [
                Seg::r(at, hdr),
                Seg::r(at + hdr as u64, len / 2),
                Seg::r(at + (hdr + len / 2) as u64, len - len / 2),
            ];
            match indirect {
                true => {
                    let table = g.mem.alloc(64, 16);
                    g.tx.add_indirect(&segs, table);
                }
                false => {
                    g.tx.add(&segs);
                }
            }
        }
        g.tx.submit();
        g.tx.kick();
        // A packet that was not copied is in use until it is read.
        let (mut used, mut came) = (0, VecDeque::new());
        let mut look = |g: &mut Guest| {
            while g.tx.pop().is_some() {
                used += 1;
            }
            while let Some(p) = g.peer.try_recv() {
                came.push_back(p);
            }
            used
        };
        let ended = until(|| {
            look(g) == packets.len()
                || self.copy_failed() && settle(g).is_ok() && g.tx.device_idx() == g.tx.used_idx
        });
        check!(
            ended,
            "{} of {} used, and {:?} failed",
            look(g),
            packets.len(),
            self.faults.seen()?
        );
        self.over(g)?;
        // Only what has stopped needs this.
        if self.seen == Some(Kind::Copy) {
            g.tx.kick();
        }
        check!(
            until(|| look(g) == packets.len()),
            "{} of {} used at last",
            look(g),
            packets.len()
        );
        let last = self.packet(60);
        let at = g.place(&last);
        g.tx.add(&[Seg::r(at, g.hdr + last.len())]);
        g.tx.submit();
        g.tx.kick();
        check!(
            until(|| look(g) > packets.len()),
            "the last packet is not used"
        );
        let mut left = packets.iter();
        let mut good = 0;
        loop {
            let got = match came.pop_front() {
                Some(got) => got,
                None => g.peer.recv()?,
            };
            if seq(&got) == self.next {
                same(&got, &last, "the last packet")?;
                break;
            }
            let Some(want) = left.find(|p| seq(p) == seq(&got)) else {
                bail!("packet {} out of order, or twice", seq(&got));
            };
            same(&got, want, "a packet")?;
            good += 1;
        }
        self.lost = packets.len() - good;
        check!(
            came.is_empty() && g.peer.try_recv().is_none(),
            "more packets than were sent"
        );
        check!(g.tx.err.read().is_err(), "an error without a fault");
        Ok(())
    }

    fn copy_failed(&self) -> bool {
        self.faults
            .seen()
            .is_ok_and(|seen| seen == Some(Kind::Copy))
    }

    /// Makes buffers of `len` bytes available, so that the device has `count` of them.
    fn offer(&mut self, g: &mut Guest, count: usize, len: usize) -> Res {
        while self.buffers.len() < count {
            let b = g.buffer(len);
            let head = g.rx.add(&[b]);
            self.buffers.insert(u32::from(head), b);
        }
        g.rx.submit();
        g.rx.kick();
        settle(g)
    }

    /// The next packet that the guest has received, of one buffer or more.
    fn received(&mut self, g: &mut Guest) -> Res<Option<Vec<u8>>> {
        // Buffers that could not be written come back empty, and their packet is lost.
        let first = loop {
            let Some(u) = g.rx.pop() else {
                return Ok(None);
            };
            if u.len > 0 {
                break u;
            }
            let known = self.buffers.remove(&u.id).is_some();
            check!(known, "an empty buffer that is not there");
        };
        let mut whole: Vec<u8> = vec![];
        let mut entry = Some(first);
        let mut left = 1;
        while left > 0 {
            let Some(u) = entry else {
                bail!("a packet without its end")
            };
            let Some(b) = self.buffers.remove(&u.id) else {
                bail!("a buffer that is not there")
            };
            check!(u.len <= b.len, "more written than there is room");
            whole.extend(g.mem.read(b.gpa, u.len as usize));
            if left == 1 && whole.len() == u.len as usize {
                left = u16::from_le_bytes([whole[10], whole[11]]);
                check!(left >= 1, "a packet without a buffer");
            }
            left -= 1;
            if left > 0 {
                entry = g.rx.pop();
            }
        }
        Ok(Some(whole.split_off(g.hdr)))
    }

    /// Receives three packets, and one more when nothing fails any more.
    fn receive(&mut self, g: &mut Guest, len: usize) -> Res {
        let packets = [60, 700, 1400].map(|len| self.packet(len));
        for p in &packets {
            g.peer.send(p)?;
        }
        let mut left = VecDeque::from_iter(&packets);
        let (mut came, mut good) = (0, 0);
        let mut result = Ok(());
        let ended = until(|| {
            while result.is_ok() {
                match self.received(g) {
                    Ok(Some(p)) => {
                        let arrived = arrived(&mut left, &p, self.copy_failed());
                        good += usize::from(matches!(arrived, Ok(true)));
                        result = arrived.map(|_| ());
                        came += 1;
                    }
                    Ok(None) => break,
                    Err(e) => result = Err(e),
                }
            }
            came == packets.len()
                || result.is_err()
                || self.copy_failed() && settle(g).is_ok() && g.rx.device_idx() == g.rx.used_idx
        });
        result?;
        check!(
            ended,
            "{came} of {} received, and nothing fails any more",
            packets.len()
        );
        self.over(g)?;
        if self.seen == Some(Kind::Copy) {
            g.rx.kick();
        }
        self.offer(g, 12, len)?;
        let last = self.packet(60);
        g.peer.send(&last)?;
        loop {
            let mut got = Ok(None);
            let done = until(|| {
                got = self.received(g);
                !matches!(got, Ok(None))
            });
            check!(done, "the last packet did not come");
            let Some(p) = got? else { bail!("nothing") };
            if seq(&p) == self.next {
                same(&p, &last, "the last packet")?;
                break;
            }
            good += usize::from(arrived(&mut left, &p, false)?);
        }
        self.lost = packets.len() - good;
        check!(g.rx.err.read().is_err(), "an error without a fault");
        Ok(())
    }
}

/// One of the packets that are `left` has come, and those before it do not come any more. Returns false if it is the
/// next one, but spoilt: a tap does not look whether a packet could be copied to its reader.
fn arrived(left: &mut VecDeque<&Vec<u8>>, got: &[u8], may_be_spoilt: bool) -> Res<bool> {
    if let Some(at) = left.iter().position(|want| *want == got) {
        left.drain(..=at);
        return Ok(true);
    }
    match left.pop_front() {
        Some(want) if may_be_spoilt && want.len() == got.len() => Ok(false),
        _ => bail!(
            "a packet of {} bytes that is wrong, out of order, or there twice",
            got.len()
        ),
    }
}

fn nothing(_: &mut Guest, _: &mut Moves) -> Res {
    Ok(())
}

/// Of these the last is too long for a batch.
const LENS: [usize; 3] = [60, 1400, 9000];

fn tx() -> Res {
    let before = descriptors()?;
    for (what, features, indirect) in [
        ("sending", VERSION_1, false),
        (
            "sending with event indices, indirect",
            VERSION_1 | EVENT_IDX | INDIRECT,
            true,
        ),
        ("sending without headers, legacy", VHOST_NET_HDR, false),
    ] {
        let mut g = Guest::new(config(features))?;
        Data {
            what,
            prepare: &nothing,
            move_some: &|g, m| m.send(g, indirect, LENS),
            least: (2, 4),
        }
        .run(&mut g)?;
        // Not in batches.
        g.tap.sndbuf(100_000)?;
        g.stop()?;
        g.start()?;
        Data {
            what: &format!("{what}, one by one"),
            prepare: &nothing,
            move_some: &|g, m| m.send(g, indirect, LENS),
            least: (2, 4),
        }
        .run(&mut g)?;
        gone(g, before)?;
    }
    Ok(())
}

fn rx() -> Res {
    let before = descriptors()?;
    for (what, features, len) in [
        ("receiving", VERSION_1, 2048),
        (
            "receiving into several buffers",
            VERSION_1 | MRG_RXBUF | EVENT_IDX,
            300,
        ),
    ] {
        let mut g = Guest::new(config(features))?;
        let mut log = None;
        for logged in [false, true] {
            if logged {
                let bitmap = Bitmap::new(BASE + (16 << 20), 0)?;
                check_eq!(bitmap.install(&g), 0);
                g.net.set_features(guest::of_format(features | LOG_ALL))?;
                log = Some(bitmap);
            }
            Data {
                what: &format!("{what}{}", if logged { ", logged" } else { "" }),
                prepare: &|g, m| m.offer(g, 12, len),
                move_some: &|g, m| m.receive(g, len),
                least: (0, 3),
            }
            .run(&mut g)?;
            g.restart(0)?;
        }
        gone(g, before)?;
        drop(log);
    }
    Ok(())
}

/// A half of a ring's part, whose other half is elsewhere.
struct Half {
    gpa: u64,
    hva: u64,
}

impl Half {
    fn map(&self, g: &Guest) -> Res {
        iotlb::update(&g.net, self.gpa, 2048, self.hva, iotlb::RW)
    }

    /// The device has to look for its rings again.
    fn moved(&self, g: &Guest) -> Res {
        iotlb::invalidate(&g.net, self.gpa, 1)?;
        self.map(g)
    }
}

/// Maps a guest's memory, so that all parts of its rings are in two pieces. Returns one of these.
fn pieces(g: &mut Guest) -> Res<Half> {
    let m = g.mem.regions()[0];
    let elsewhere = g.mem.map_again()?[0];
    let parts: Vec<u64> = [&g.rx, &g.tx]
        .iter()
        .flat_map(|r| [r.desc, r.avail, r.used])
        .collect();
    let half = |gpa: u64, view: u64| Half {
        gpa,
        hva: view + (gpa - m.gpa),
    };
    for &part in &parts {
        half(part, m.hva).map(g)?;
        half(part + 2048, elsewhere.hva).map(g)?;
    }
    let rest = parts.iter().max().unwrap() + 4096;
    iotlb::update(
        &g.net,
        rest,
        m.gpa + m.size - rest,
        m.hva + (rest - m.gpa),
        iotlb::RW,
    )?;
    Ok(half(parts[0], m.hva))
}

/// A guest behind an IOTLB, whose rings are in pieces, which the device has to look for, and keep, before each try.
fn behind_iotlb() -> Res {
    let before = descriptors()?;
    let mut g = Guest::stopped(config(IOTLB))?;
    let ring = pieces(&mut g)?;
    g.start()?;
    flow(&mut g)?;
    Data {
        what: "sending behind an IOTLB",
        prepare: &|g, _| ring.moved(g),
        move_some: &|g, m| m.send(g, false, LENS),
        least: (2, 4),
    }
    .run(&mut g)?;
    Data {
        what: "receiving behind an IOTLB",
        prepare: &|g, m| {
            m.offer(g, 12, 2048)?;
            ring.moved(g)
        },
        move_some: &|g, m| m.receive(g, 2048),
        least: (2, 3),
    }
    .run(&mut g)?;
    gone(g, before)
}

/// No memory for some time: the queue gets on by itself when there is some again. It is told of the packet once only.
fn starved() -> Res {
    let before = descriptors()?;
    let mut g = Guest::stopped(config(IOTLB))?;
    let ring = pieces(&mut g)?;
    g.start()?;
    flow(&mut g)?;
    let mut faults = Faults::of_thread(worker()?)?;
    for count in [1, 2, 5, 10, 20, 50] {
        ring.moved(&g)?;
        settle(&g)?;
        let p = frame(count, 60);
        let at = g.place(&p);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
        faults.starved(count, || {
            g.tx.submit();
            g.tx.wait()
                .map_err(|Fail(why)| Fail(format!("{count} failures: {why}")))?;
            Ok(())
        })?;
        check!(
            g.tx.err.read().is_err(),
            "{count} failures: the queue was stopped"
        );
        // It may have been the packet itself that there was no memory for.
        while let Some(got) = g.peer.try_recv() {
            same(&got, &p, "the packet")?;
        }
    }
    drop(faults);
    flow(&mut g)?;
    gone(g, before)
}

/// A guest with a packet that the device will send as soon as it has found its ring again, and the device's worker.
fn hungry() -> Res<(Guest, Vec<u8>, i32)> {
    let mut g = Guest::stopped(config(IOTLB))?;
    let ring = pieces(&mut g)?;
    g.start()?;
    flow(&mut g)?;
    ring.moved(&g)?;
    settle(&g)?;
    let p = frame(1, 60);
    let at = g.place(&p);
    g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
    Ok((g, p, worker()?))
}

/// More failures than anyone will wait for.
const ENDLESS: u32 = 1 << 29;

/// No memory for a long time: the queue tries again, but not all the time, and gets on by itself when there is some.
fn starved_for_long() -> Res {
    let before = descriptors()?;
    let (mut g, p, worker) = hungry()?;
    let thread = PathBuf::from(format!("/proc/self/task/{worker}"));
    let mut faults = Faults::of_thread(worker)?;
    faults.starved(ENDLESS, || {
        g.tx.submit();
        std::thread::sleep(Duration::from_millis(500));
        let (window, begin) = (Duration::from_secs(3), task::cpu_time(&thread)?);
        std::thread::sleep(window);
        let used = task::cpu_time(&thread)? - begin;
        println!("# the worker ran for {used:?} of {window:?}");
        check!(
            used < window / 4,
            "without memory the worker ran for {used:?} of {window:?}"
        );
        check!(g.tx.pop().is_none(), "a packet was sent without memory");
        // The owner's own calls do not wait for it.
        settle(&g)
    })?;
    drop(faults);
    g.tx.wait()?;
    same(&g.peer.recv()?, &p, "the packet")?;
    flow(&mut g)?;
    gone(g, before)
}

/// Nor does it live longer than its owner.
fn starved_and_killed() -> Res {
    let (mut here, mut there) = std::os::unix::net::UnixStream::pair()?;
    let mut child = task::Child::new(|| {
        let (mut g, _, worker) = hungry()?;
        Faults::of_thread(worker)?.starved(ENDLESS, || {
            g.tx.submit();
            there.write_all(&[1])?;
            std::thread::sleep(Duration::from_secs(1000));
            Ok(())
        })
    })?;
    let ready = here.read_exact(&mut [0]);
    std::thread::sleep(Duration::from_secs(1));
    child.signal(libc::SIGKILL);
    let status = child.wait(0, Duration::from_secs(20));
    let states = task::states(child.pid);
    Faults::calm()?;
    ready?;
    check!(status.is_some(), "not ended by SIGKILL: {states}");
    Ok(())
}

/// Packets that lie where they are until they are sent, and get their pages copied at the other end.
fn zero_copy() -> Res {
    let before = descriptors()?;
    reload("experimental_zcopytx=1")?;
    let result = (|| {
        let mut g = Guest::new(config(VERSION_1))?;
        // With a second socket that sees them, packets are not in use until they are read.
        let copier = Peer::new(g.tap.index, false)?;
        let walked = Data {
            what: "sending without a copy",
            // A device that was just started does not remember that it was in vain the last time.
            prepare: &|g, _| {
                g.stop()?;
                g.start()
            },
            move_some: &|g, m| m.send(g, false, [300, 1400, 9000]),
            least: (4, 2),
        }
        .run(&mut g);
        // First who may have packets that the device waits for.
        g.peer = Peer::sender(g.tap.index, false)?;
        drop(copier);
        walked?;
        gone(g, before)
    })();
    reload("")?;
    result
}

fn main() {
    const TESTS: &[Test] = &[
        ("opened", opened),
        ("closed", closed),
        ("device", device),
        ("queue", queue),
        ("backend", backend),
        ("owner", owner),
        ("messages", messages),
        ("misses", misses),
        ("tx", tx),
        ("rx", rx),
        ("behind_iotlb", behind_iotlb),
        ("starved", starved),
        ("starved_for_long", starved_for_long),
        ("starved_and_killed", starved_and_killed),
        ("zero_copy", zero_copy),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &["tx", "rx", "behind_iotlb", "zero_copy"];
    ktap::run_formats(TESTS, PACKED)
}
