// SPDX-License-Identifier: GPL-2.0

//! Devices that look for work for a while before they wait for it.

use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::ptr::null;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::sys::*;
use kselftest::*;
use vhost::VhostBackend;

const NULL: *const u64 = null();

/// Times for the two queues, in microseconds. On the debug kernel, only those that have both queues looked for.
fn all_times() -> Vec<(u32, u32)> {
    let mut v = vec![(50, 50), (1, 0), (0, 1), (20_000, 20_000), (50, 0), (0, 50)];
    v.extend(long_times());
    some(&v).copied().collect()
}

/// More than an hour, for one queue or both.
///
/// Nothing but other work for its processor makes the C driver stop before the time is over, so it gets less.
fn long_times() -> [(u32, u32); 3] {
    let long = if on_c() { 20_000 } else { u32::MAX };
    [(long, long), (long, 0), (0, long)]
}

const FEATURES: &[u64] = &[VERSION_1, VERSION_1 | EVENT_IDX, MRG_RXBUF | INDIRECT];

fn set(fd: &impl AsRawFd, index: u32, num: u32) -> i32 {
    ioctl(fd, SET_VRING_BUSYLOOP_TIMEOUT, &State { index, num })
}

fn get(fd: &impl AsRawFd, index: u32) -> Res<u32> {
    let mut state = State { index, num: 77 };
    check_eq!(ioctl(fd, GET_VRING_BUSYLOOP_TIMEOUT, &raw mut state), 0);
    check_eq!(state.index, index);
    Ok(state.num)
}

/// A running guest whose device looks so long for work of each queue.
fn guest(cfg: Config, (rx, tx): (u32, u32)) -> Res<Guest> {
    let g = Guest::stopped(cfg)?;
    times(&g, (rx, tx))?;
    g.start()?;
    Ok(g)
}

fn times(g: &Guest, (rx, tx): (u32, u32)) -> Res {
    check_eq!(set(&g.net, RX as u32, rx), 0);
    check_eq!(set(&g.net, TX as u32, tx), 0);
    Ok(())
}

/// Each queue keeps what it was told.
fn values() -> Res {
    let f = open()?;
    for request in [SET_VRING_BUSYLOOP_TIMEOUT, GET_VRING_BUSYLOOP_TIMEOUT] {
        check_eq!(ioctl(&f, request, &State::default()), libc::EPERM);
    }
    check_eq!(ioctl(&f, SET_OWNER, NULL), 0);
    check_eq!((get(&f, 0)?, get(&f, 1)?), (0, 0), "at first");
    let mut before = [0, 0];
    for (index, num) in [(0, 50), (1, 7), (0, u32::MAX), (1, 1 << 31), (0, 0), (1, 1)] {
        check_eq!(set(&f, index, num), 0);
        before[index as usize] = num;
        check_eq!([get(&f, 0)?, get(&f, 1)?], before);
    }
    for request in [SET_VRING_BUSYLOOP_TIMEOUT, GET_VRING_BUSYLOOP_TIMEOUT] {
        for index in [2, 3, u32::MAX] {
            let state = State { index, num: 9 };
            check_eq!(ioctl(&f, request, &state), libc::ENOBUFS);
        }
        check_eq!(ioctl(&f, request, NULL), libc::EFAULT);
    }
    check_eq!([get(&f, 0)?, get(&f, 1)?], before, "after errors");
    check_eq!(ioctl(&f, RESET_OWNER, NULL), 0);
    check_eq!(ioctl(&f, SET_OWNER, NULL), 0);
    check_eq!((get(&f, 0)?, get(&f, 1)?), (0, 0), "after RESET_OWNER");

    let mut g = guest(Config::default(), (100, 200))?;
    for i in 0..3 {
        g.send_all(&[frame(i, 60)])?;
        g.receive_all(&[frame(i, 60)])?;
        check_eq!((get(&g.net, 0)?, get(&g.net, 1)?), (100 + i, 200 - i));
        g.restart(0)?;
        check_eq!((get(&g.net, 0)?, get(&g.net, 1)?), (100 + i, 200 - i));
        times(&g, (101 + i, 199 - i))?;
    }
    Ok(())
}

/// Full rings both ways. The guest kicks only when it is asked to.
fn stream() -> Res {
    for t in all_times() {
        for &features in FEATURES {
            let mut g = guest(Config::with(features).base(65400), t)?;
            let area = g.mem.alloc(Traffic::room(&g), 4096);
            Traffic::new(&g, area).run(&mut g, amount(1000))?;
        }
    }
    Ok(())
}

/// One packet at a time, so that the device looks for each: one way, both ways in turn, and with pauses.
fn one_by_one() -> Res {
    for t in all_times() {
        for &features in FEATURES {
            let mut g = guest(Config::with(features), t)?;
            for i in 0..30 {
                g.send_all(&[frame(i, 60)])?;
            }
            for i in 0..30 {
                g.receive_all(&[frame(i, 60)])?;
            }
            for i in 0..30 {
                g.send_all(&[frame(i, 60)])?;
                g.receive_all(&[frame(i, 5000)])?;
                if i % 10 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
    Ok(())
}

/// Packets come first, and then buffers for them.
///
/// The C driver forgets to look for the buffers once it has looked for packets from the guest.
fn no_buffers() -> Res {
    for t in all_times() {
        if on_c() && t.1 != 0 {
            continue;
        }
        for &features in FEATURES {
            let mut g = guest(Config::with(features), t)?;
            let packets: Vec<_> = (0..20).map(|i| frame(i, 100)).collect();
            for group in packets.chunks(3) {
                g.receive_all(&[frame(99, 60)])?;
                for p in group {
                    g.peer.send(p)?;
                }
                g.send_all(&[frame(98, 60)])?;
                for p in group {
                    let b = g.buffer(200);
                    g.rx.add(&[b]);
                    g.rx.submit();
                    check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
                    same(&g.mem.read(b.gpa + g.hdr as u64, p.len()), p, "packet")?;
                }
            }
        }
    }
    Ok(())
}

/// A kernel thread as the worker.
fn kernel_thread() -> Res {
    for t in all_times() {
        let cfg = Config {
            kernel_thread: true,
            ..Config::with(VERSION_1 | EVENT_IDX)
        };
        let mut g = guest(cfg, t)?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        Traffic::new(&g, area).run(&mut g, amount(500))?;
    }
    Ok(())
}

/// A packet socket as the backend.
fn packet_socket() -> Res {
    for t in all_times() {
        let mut g = Guest::stopped(Config::with(VERSION_1 | VHOST_NET_HDR))?;
        times(&g, t)?;
        g.backend(Some(&g.peer.fd))?;
        let mut buf = [0; 2000];
        for i in 0..30 {
            let p = frame(i, 1000);
            let at = g.place(&p);
            g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
            g.tx.submit();
            g.tx.wait()?;
            let mut n = 0;
            until(|| {
                n = (&g.tap.fd).read(&mut buf).unwrap_or(0);
                n != 0
            });
            same(&buf[..n], &p, "sent packet")?;
            let b = g.buffer(g.hdr + p.len());
            g.rx.add(&[b]);
            g.rx.submit();
            check_eq!((&g.tap.fd).write(&p)?, p.len());
            check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
            same(&g.mem.read(b.gpa + g.hdr as u64, p.len()), &p, "packet")?;
        }
    }
    Ok(())
}

/// Does the device send a packet that it was not told of?
fn finds(g: &mut Guest, receive: bool) -> Res<bool> {
    if receive {
        g.receive_all(&[frame(2, 60)])?;
    }
    // In this time, a device that does not look falls asleep.
    std::thread::sleep(Duration::from_millis(2));
    let p = frame(1, 60);
    let at = g.place(&p);
    g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
    g.tx.publish();
    let found = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        g.tx.device_idx() == g.tx.avail_idx
    });
    g.tx.submit();
    g.tx.spin()?;
    Ok(found)
}

/// A device that looks for work finds what it was not told of, whichever queue it looks for.
///
/// It may look for less than its time; so this goes on until it found something several times in a row.
fn without_kick() -> Res {
    for t in [(100_000, 0), (0, 100_000), (100_000, 100_000)] {
        for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
            let mut g = guest(Config::with(features), t)?;
            let mut in_a_row = 0;
            let mut result = Ok(());
            let found = until(|| {
                match finds(&mut g, t.0 != 0) {
                    Ok(true) => in_a_row += 1,
                    Ok(false) => in_a_row = 0,
                    Err(e) => result = Err(e),
                }
                result.is_err() || in_a_row == 5
            });
            result?;
            check!(found, "{t:?}: it does not look for work");
        }
    }
    Ok(())
}

/// The times change under traffic.
fn changed() -> Res {
    for &features in FEATURES {
        let mut g = guest(Config::with(features), (0, 0))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        let times = all_times();
        // SAFETY: the descriptor is open as long as `g` lives, which is longer than the thread does.
        let fd = unsafe { BorrowedFd::borrow_raw(g.net.as_raw_fd()) };
        let (stop, rounds, failed) = (AtomicBool::new(false), AtomicU32::new(0), AtomicI32::new(0));
        let result = std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(Relaxed) {
                    for &(rx, tx) in &times {
                        failed.fetch_max(set(&fd, RX as u32, rx), Relaxed);
                        failed.fetch_max(set(&fd, TX as u32, tx), Relaxed);
                    }
                    rounds.fetch_add(1, Relaxed);
                }
            });
            let mut t = Traffic::new(&g, area);
            let mut count = 0;
            let result = loop {
                count += 500;
                let r = t.run(&mut g, count);
                if r.is_err() || rounds.load(Relaxed) >= 3 {
                    break r;
                }
            };
            stop.store(true, Relaxed);
            result
        });
        check_eq!(
            failed.load(Relaxed),
            0,
            "errno of SET_VRING_BUSYLOOP_TIMEOUT"
        );
        result?;
    }
    Ok(())
}

/// A device that would look for hours stops when it is told, and starts again.
fn stops() -> Res {
    for t in long_times() {
        for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
            let mut g = guest(Config::with(features), t)?;
            for i in 0..5 {
                g.send_all(&[frame(i, 60)])?;
                g.receive_all(&[frame(i, 60)])?;
                check_eq!(
                    g.net.get_vring_base(TX)?,
                    g.tx.base(),
                    "the next packet to be sent"
                );
                g.stop()?;
                g.start()?;
                g.send_all(&[frame(i, 60)])?;
                g.net.set_mem_table(&Mem::table(g.mem.regions()))?;
                g.receive_all(&[frame(i, 60)])?;
                g.net.set_vring_call(TX, &g.tx.call)?;
                g.send_all(&[frame(i, 60)])?;
                g.restart(7)?;
            }
            g.send_all(&[frame(1, 60)])?;
            g.net.reset_owner()?;
        }
    }
    Ok(())
}

/// It can be closed, whatever it looks for.
fn closed() -> Res {
    for t in long_times() {
        for i in 0..10 {
            let mut g = guest(Config::with(VERSION_1 | EVENT_IDX), t)?;
            let b = g.buffer(200);
            g.rx.add(&[b]);
            g.rx.submit();
            g.send_all(&[frame(i, 60)])?;
            drop(g);
            let free = until(|| module_users().is_none_or(|n| n == 0));
            check!(free, "{:?} users of the module", module_users());
        }
    }
    Ok(())
}

/// Its owner is killed while it looks.
fn killed() -> Res {
    for kernel_thread in [false, true] {
        for t in long_times() {
            let (mut here, mut there) = std::os::unix::net::UnixStream::pair()?;
            // SAFETY: one thread; the child never returns.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let mut run = || -> Res {
                    let cfg = Config {
                        kernel_thread,
                        ..Config::default()
                    };
                    let mut g = guest(cfg, t)?;
                    g.receive_all(&[frame(1, 60)])?;
                    g.send_all(&[frame(1, 60)])?;
                    there.write_all(&[1])?;
                    loop {
                        std::thread::park();
                    }
                };
                let _ = run();
                // SAFETY: ends the child.
                unsafe { libc::_exit(1) }
            }
            drop(there);
            here.read_exact(&mut [0])?;
            let mut status = 0;
            // SAFETY: `pid` is a child of this process.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                check_eq!(libc::waitpid(pid, &mut status, 0), pid);
            }
            check!(libc::WIFSIGNALED(status), "the child ended by itself");
            let free = until(|| module_users().is_none_or(|n| n == 0));
            check!(free, "{:?} users of the module", module_users());
        }
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("values", values),
        ("stream", stream),
        ("one_by_one", one_by_one),
        ("no_buffers", no_buffers),
        ("kernel_thread", kernel_thread),
        ("packet_socket", packet_socket),
        ("without_kick", without_kick),
        ("changed", changed),
        ("stops", stops),
        ("closed", closed),
        ("killed", killed),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &["without_kick"];
    ktap::run_formats(TESTS, PACKED)
}
