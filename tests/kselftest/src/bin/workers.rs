// SPDX-License-Identifier: GPL-2.0

//! Devices with several workers: which ioctl says what, and that nothing is lost when a queue moves from one to another.
//!
//! ATTACHES says how often queues move in the two tests that are about that.

use std::fs::File;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::ptr::null;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use libc::{EBUSY, EFAULT, EINVAL, ENOBUFS, ENODEV, ENOMEM, EPERM};
use vhost::VhostBackend;

use kselftest::counters::info;
use kselftest::counters::number;
use kselftest::feature::*;
use kselftest::iotlb;
use kselftest::iotlb::Viommu;
use kselftest::ktap::Test;
use kselftest::sys::*;
use kselftest::task::sleeps;
use kselftest::*;

const NULL: *const u64 = null();
const ALL: [u64; 4] = [
    NEW_WORKER,
    FREE_WORKER,
    ATTACH_VRING_WORKER,
    GET_VRING_WORKER,
];

fn new_worker(fd: &impl AsRawFd) -> Res<u32> {
    let mut id = 77u32;
    check_eq!(ioctl(fd, NEW_WORKER, &raw mut id), 0, "NEW_WORKER");
    Ok(id)
}

fn free(fd: &impl AsRawFd, id: u32) -> i32 {
    ioctl(fd, FREE_WORKER, &id)
}

fn attach(fd: &impl AsRawFd, index: u32, id: u32) -> i32 {
    ioctl(fd, ATTACH_VRING_WORKER, &[index, id])
}

/// The worker that a queue has, or the errno.
fn get(fd: &impl AsRawFd, index: u32) -> Result<u32, i32> {
    let mut what = [index, 77];
    match ioctl(fd, GET_VRING_WORKER, what.as_mut_ptr()) {
        0 if what[0] == index => Ok(what[1]),
        0 => Err(-1),
        errno => Err(errno),
    }
}

/// How many workers this process has.
fn workers() -> Res<usize> {
    let name = format!("vhost-{}", std::process::id());
    Ok(threads()?.iter().filter(|t| **t == name).count())
}

/// The thread that runs a queue, as fdinfo has it, by its folder in /proc.
fn thread_of(g: &Guest, key: &str) -> Res<PathBuf> {
    // A thread tells its number once it runs.
    check!(
        until(|| info(&g.net).is_ok_and(|map| map[key] != "0")),
        "{key} is 0"
    );
    let thread = PathBuf::from(format!("/proc/self/task/{}", info(&g.net)?[key]));
    check!(thread.exists(), "no thread {thread:?}");
    Ok(thread)
}

/// The address of the last word before one that can't be read.
fn last_word() -> *const u32 {
    // SAFETY: two pages of our own.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let page = sys::page_size();
        let at = libc::mmap(std::ptr::null_mut(), 2 * page, prot, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        libc::mprotect(at.add(page), page, libc::PROT_NONE);
        at.add(page - 4).cast()
    }
}

/// Who may ask comes before what is asked.
fn no_owner() -> Res {
    let f = open()?;
    for request in ALL {
        check_eq!(ioctl(&f, request, NULL), EINVAL, "{request:#x}, no owner");
    }
    check_eq!(ioctl(&f, SET_OWNER, NULL), 0);
    for request in ALL {
        check_eq!(ioctl(&f, request, NULL), EFAULT, "{request:#x}, no address");
        let got = in_child(|| ioctl(&f, request, NULL))?;
        check_eq!(got, EPERM, "{request:#x}, of another process");
    }
    check_eq!(ioctl(&f, RESET_OWNER, NULL), 0);
    for request in ALL {
        check_eq!(ioctl(&f, request, NULL), EINVAL, "{request:#x}, afterwards");
    }
    Ok(())
}

/// What the ioctls say, each reason before the next one.
fn errors() -> Res {
    let f = open()?;
    check_eq!(ioctl(&f, SET_OWNER, NULL), 0);
    check_eq!((get(&f, 0), get(&f, 1)), (Ok(0), Ok(0)), "at first");
    check_eq!(get(&f, 2), Err(ENOBUFS));
    check_eq!(get(&f, u32::MAX), Err(ENOBUFS));
    // The number can't be written, and the worker is there.
    check_eq!(workers()?, 1);
    check_eq!(ioctl(&f, NEW_WORKER, NULL), EFAULT);
    check_eq!(
        workers()?,
        2,
        "workers after one without a place for its number"
    );
    check_eq!(new_worker(&f)?, 2);
    check_eq!(free(&f, 1), 0);
    check_eq!(free(&f, 1), ENODEV, "once more");
    check_eq!((free(&f, 3), free(&f, u32::MAX)), (ENODEV, ENODEV));
    check_eq!(free(&f, 0), EBUSY, "the worker of both queues");
    // The lowest number that is free.
    check_eq!((new_worker(&f)?, new_worker(&f)?), (1, 3));

    let word = last_word();
    // SAFETY: a word of our own.
    let index = |n: u32| unsafe { word.cast_mut().write(n) };
    index(2);
    check_eq!(ioctl(&f, ATTACH_VRING_WORKER, word), ENOBUFS);
    check_eq!(ioctl(&f, GET_VRING_WORKER, word), ENOBUFS);
    index(1);
    check_eq!(ioctl(&f, ATTACH_VRING_WORKER, word), EFAULT);
    check_eq!(ioctl(&f, GET_VRING_WORKER, word), EFAULT);
    check_eq!(attach(&f, 2, 9), ENOBUFS);
    check_eq!(attach(&f, 1, 4), ENODEV);
    check_eq!(attach(&f, 1, u32::MAX), ENODEV);
    check_eq!((get(&f, 0), get(&f, 1)), (Ok(0), Ok(0)), "after errors");

    check_eq!(attach(&f, 1, 3), 0);
    check_eq!(attach(&f, 1, 3), 0, "the same again");
    check_eq!((get(&f, 0), get(&f, 1)), (Ok(0), Ok(3)));
    check_eq!((free(&f, 0), free(&f, 3)), (EBUSY, EBUSY));
    // The first one goes like any other.
    check_eq!(attach(&f, 0, 3), 0);
    check_eq!(free(&f, 0), 0);
    check_eq!(attach(&f, 0, 0), ENODEV);
    check_eq!(new_worker(&f)?, 0);
    check_eq!(free(&f, 3), EBUSY);
    // A thread that has ended is there a moment longer.
    check!(
        until(|| workers().is_ok_and(|n| n == 4)),
        "{} workers",
        workers()?
    );
    check_eq!(ioctl(&f, RESET_OWNER, NULL), 0);
    check!(
        until(|| workers().is_ok_and(|n| n == 0)),
        "a worker is left"
    );
    check_eq!(ioctl(&f, SET_OWNER, NULL), 0);
    check_eq!((get(&f, 0), get(&f, 1)), (Ok(0), Ok(0)), "of another owner");
    check_eq!(free(&f, 3), ENODEV);
    drop(f);
    check!(
        until(|| workers().is_ok_and(|n| n == 0)),
        "a worker is left"
    );
    Ok(())
}

/// Kernel threads are counted by no limit of their owner's, so there are no more of these. They can be freed and given.
fn kernel_threads() -> Res {
    let f = open()?;
    check_eq!(ioctl(&f, SET_FORK_FROM_OWNER, &0u8), 0);
    check_eq!(ioctl(&f, SET_OWNER, NULL), 0);
    check_eq!(ioctl(&f, NEW_WORKER, NULL), EFAULT);
    let mut id = 77u32;
    check_eq!(ioctl(&f, NEW_WORKER, &raw mut id), EFAULT);
    check_eq!(id, 77);
    check_eq!((get(&f, 0), get(&f, 1)), (Ok(0), Ok(0)));
    check_eq!((free(&f, 0), free(&f, 1)), (EBUSY, ENODEV));
    check_eq!((attach(&f, 0, 0), attach(&f, 0, 1)), (0, ENODEV));
    Ok(())
}

/// Limits of the owner's are its workers' too.
fn limited() -> Res {
    let f = open()?;
    let child = || -> Res {
        check_eq!(ioctl(&f, SET_OWNER, NULL), 0);
        let one = libc::rlimit {
            rlim_cur: 1,
            rlim_max: 1,
        };
        // SAFETY: plain system calls of a process of our own.
        unsafe {
            check_eq!(libc::setrlimit(libc::RLIMIT_NPROC, &one), 0);
            check_eq!(libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534), 0);
        }
        let mut id = 77u32;
        check_eq!(ioctl(&f, NEW_WORKER, &raw mut id), ENOMEM);
        check_eq!((id, workers()?), (77, 1));
        check_eq!((get(&f, 0), free(&f, 1)), (Ok(0), ENODEV));
        Ok(())
    };
    let status = in_child(|| match child() {
        Ok(()) => 0,
        Err(Fail(why)) => {
            println!("# the child: {why}");
            1
        }
    })?;
    check_eq!(status, 0);
    Ok(())
}

/// Each queue is run by the thread that it has, and by no other: kicks, and packets that come, wake that.
fn follows() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut g = Guest::new(Config::with(features))?;
        check_eq!(new_worker(&g.net)?, 1);
        check_eq!(new_worker(&g.net)?, 2);
        for (rx, tx) in [(0, 1), (1, 0), (2, 2), (0, 0), (1, 2)] {
            check_eq!(attach(&g.net, 0, rx), 0);
            check_eq!(attach(&g.net, 1, tx), 0);
            check_eq!((get(&g.net, 0), get(&g.net, 1)), (Ok(rx), Ok(tx)));
            let [rx_thread, tx_thread] = [thread_of(&g, "rx-worker")?, thread_of(&g, "tx-worker")?];
            check_eq!(rx_thread == tx_thread, rx == tx, "the same thread");
            g.send_all(&[frame(1, 60)])?;
            g.receive_all(&[frame(2, 60)])?;

            let before = [sleeps(&rx_thread)?, sleeps(&tx_thread)?];
            for i in 0..20 {
                g.send_all(&[frame(i, 60)])?;
            }
            let after = [sleeps(&rx_thread)?, sleeps(&tx_thread)?];
            check!(
                after[1] - before[1] >= 4,
                "{before:?}, {after:?} after sending"
            );
            if rx != tx {
                check!(
                    after[0] - before[0] <= 2,
                    "{before:?}, {after:?} after sending"
                );
            }
            for i in 0..20 {
                g.receive_all(&[frame(i, 60)])?;
            }
            let last = [sleeps(&rx_thread)?, sleeps(&tx_thread)?];
            check!(
                last[0] - after[0] >= 4,
                "{after:?}, {last:?} after receiving"
            );
            if rx != tx {
                check!(
                    last[1] - after[1] <= 2,
                    "{after:?}, {last:?} after receiving"
                );
            }
        }
        check_eq!(workers()?, 3);
    }
    Ok(())
}

/// Has the queues of a device move between its workers, of which some come and go, until `over`. Returns how often they moved.
fn move_around(fd: &impl AsRawFd, over: &AtomicBool, moves: &AtomicU32) -> Res {
    let (a, b) = (new_worker(fd)?, new_worker(fd)?);
    check_eq!((a, b), (1, 2));
    let mut at = [0, 0];
    let mut random = 0x1234_5678u32;
    while !over.load(SeqCst) {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (index, to) = ((random >> 16) as usize % 2, (random >> 20) % 3);
        check_eq!(
            attach(fd, index as u32, to),
            0,
            "queue {index} to worker {to}"
        );
        if at[index] != to {
            moves.fetch_add(1, SeqCst);
        }
        at[index] = to;
        if (random >> 24) % 16 == 0 {
            // The one that nobody has is another one from now on.
            let free_one = (0..3).find(|id| !at.contains(id)).unwrap();
            check_eq!(free(fd, free_one), 0);
            check_eq!(new_worker(fd)?, free_one);
        }
    }
    Ok(())
}

/// How often queues are to move while packets go both ways.
fn attaches() -> u32 {
    let said = std::env::var("ATTACHES").ok().and_then(|n| n.parse().ok());
    said.unwrap_or(amount(3000))
}

fn under_traffic_of(cfg: Config, wanted: u32) -> Res {
    let mut g = Guest::new(cfg)?;
    let area = g.mem.alloc(Traffic::room(&g), 4096);
    let mut traffic = Traffic::new(&g, area);
    let (over, moves) = (AtomicBool::new(false), AtomicU32::new(0));
    let fd = iotlb::dup(&g.net)?;
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| move_around(&fd, &over, &moves));
        let mut run = || -> Res {
            let mut packets = 0;
            while moves.load(SeqCst) < wanted && !mover.is_finished() {
                packets += 200;
                traffic.run(&mut g, packets)?;
            }
            Ok(())
        };
        let result = run();
        over.store(true, SeqCst);
        mover.join().map_err(|_| Fail("the mover died".into()))??;
        result
    })?;
    println!(
        "# {} moves, {} packets each way",
        moves.load(SeqCst),
        traffic.tx_out
    );
    Ok(())
}

/// Queues move while packets go both ways, each numbered: none is lost, none comes twice.
fn under_traffic() -> Res {
    under_traffic_of(Config::with(VERSION_1 | EVENT_IDX), attaches() / 2)
}

/// The same with a driver that is called, and kicks, each time.
fn under_traffic_with_all_calls() -> Res {
    under_traffic_of(Config::with(MRG_RXBUF), attaches() / 2)
}

/// The same behind an IOMMU: who waits for an answer is woken by it, whoever runs the queue by then.
fn behind_iommu() -> Res {
    // Each page of it is one for the device, in two places.
    let mut g = Guest::stopped(Config {
        regions: vec![(mem::BASE, 2 << 20)],
        ..Config::with(VERSION_1 | ACCESS_PLATFORM)
    })?;
    let io = &Viommu::new(&g)?;
    iotlb::nonblocking(&g.net, true);
    let area = g.mem.alloc(Traffic::room(&g), 4096);
    let (over, moves) = (AtomicBool::new(false), AtomicU32::new(0));
    let fd = iotlb::dup(&g.net)?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| io.serve());
        let mover = scope.spawn(|| move_around(&fd, &over, &moves));
        let mut run = || -> Res {
            // What a device needs to start is not asked for.
            for at in [g.rx.used, g.tx.used] {
                io.map(at, iotlb::RW)?;
            }
            g.start()?;
            let mut traffic = Traffic::new(&g, area);
            for packets in (0..amount(2000)).step_by(50) {
                traffic.run(&mut g, packets)?;
                // All of it is asked for again.
                for page in 0..8 {
                    io.take(area + page * 4096)?;
                }
            }
            Ok(())
        };
        let result = run();
        over.store(true, SeqCst);
        io.stop();
        mover.join().map_err(|_| Fail("the mover died".into()))??;
        server
            .join()
            .map_err(|_| Fail("the server died".into()))??;
        result
    })?;
    println!("# {} moves", moves.load(SeqCst));
    Ok(())
}

/// A queue that waits for an address keeps no worker that it has no longer: not by the socket, which would wake it.
fn freed_while_waiting() -> Res {
    let mut g = Guest::stopped(Config {
        regions: vec![(mem::BASE, 2 << 20)],
        ..Config::with(VERSION_1 | ACCESS_PLATFORM)
    })?;
    let io = Viommu::new(&g)?;
    iotlb::nonblocking(&g.net, true);
    for page in 0..io.pages() as u64 {
        io.map(mem::BASE + page * 4096, iotlb::RW)?;
    }
    g.start()?;
    check_eq!(new_worker(&g.net)?, 1);
    g.receive_all(&[frame(1, 60)])?;
    g.send_all(&[frame(2, 60)])?;
    // It waits for packets. Its turn does not come to the point where it would not.
    let misses = number(&info(&g.net)?, "rx-iotlb-misses")?;
    io.take(g.rx.avail)?;
    g.rx.kick();
    check!(
        until(|| info(&g.net)
            .and_then(|i| number(&i, "rx-iotlb-misses"))
            .is_ok_and(|n| n > misses)),
        "no miss"
    );
    check_eq!((attach(&g.net, 0, 1), attach(&g.net, 1, 1)), (0, 0));
    check_eq!(free(&g.net, 0), 0);
    check!(
        until(|| workers().is_ok_and(|n| n == 1)),
        "the worker is there"
    );
    io.map(g.rx.avail, iotlb::RW)?;
    g.receive_all(&[frame(3, 60)])?;
    g.send_all(&[frame(4, 60)])
}

/// A process that shares our memory, and owns a device by its open file.
struct Sharer(i32);

static SHARED_FD: AtomicI32 = AtomicI32::new(-1);
static OWNED: AtomicI32 = AtomicI32::new(-1);

extern "C" fn own_and_wait(_: *mut libc::c_void) -> i32 {
    let errno = {
        // SAFETY: an open file.
        let r = unsafe { libc::ioctl(SHARED_FD.load(SeqCst), SET_OWNER as _, 0) };
        i32::from(r != 0)
    };
    OWNED.store(errno, SeqCst);
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

impl Sharer {
    fn new(fd: &impl AsRawFd) -> Res<Self> {
        SHARED_FD.store(fd.as_raw_fd(), SeqCst);
        OWNED.store(-1, SeqCst);
        let stack = Box::leak(vec![0u64; 1 << 13].into_boxed_slice());
        let top = stack.as_mut_ptr_range().end;
        // SAFETY: it has a stack of its own, and does nothing but system calls.
        let pid = unsafe {
            libc::clone(
                own_and_wait,
                top.cast(),
                libc::CLONE_VM | libc::CLONE_FILES | libc::SIGCHLD,
                std::ptr::null_mut(),
            )
        };
        check!(pid > 0, "clone: {}", std::io::Error::last_os_error());
        check!(until(|| OWNED.load(SeqCst) != -1), "no owner");
        check_eq!(OWNED.load(SeqCst), 0, "SET_OWNER");
        Ok(Sharer(pid))
    }

    /// Its worker dies with it.
    fn kill(self) -> Res {
        let mut status = 0;
        // SAFETY: a child of ours.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            check_eq!(libc::waitpid(self.0, &mut status, 0), self.0);
        }
        check!(libc::WIFSIGNALED(status), "status {status:#x}");
        Ok(())
    }
}

/// A worker that is killed, which is when its process is, runs nothing. Who shares that's memory can give its queues another.
fn killed() -> Res {
    let mut g = Guest::unowned(Config::default())?;
    let sharer = Sharer::new(&g.net)?;
    g.net.set_features(g.cfg.features)?;
    g.net.set_mem_table(&Mem::table(&g.view))?;
    g.set_vring(RX)?;
    g.set_vring(TX)?;
    g.start()?;
    g.send_all(&[frame(1, 60)])?;
    g.receive_all(&[frame(2, 60)])?;
    check_eq!(workers()?, 0, "workers of this process");
    sharer.kill()?;
    check!(
        until(|| get(&g.net, 0) == Err(EINVAL)),
        "the worker is there"
    );
    check_eq!((get(&g.net, 0), get(&g.net, 1)), (Err(EINVAL), Err(EINVAL)));
    let map = info(&g.net)?;
    check_eq!((&*map["rx-worker"], &*map["tx-worker"]), ("0", "0"));
    check_eq!(free(&g.net, 0), EBUSY, "FREE_WORKER of one that was killed");
    check_eq!(attach(&g.net, 0, 0), 0, "ATTACH to one that was killed");
    check_eq!(get(&g.net, 0), Err(EINVAL));

    // Nobody sends this, or receives that.
    let at = g.place(&frame(3, 60));
    g.tx.add(&[Seg::r(at, g.hdr + 60)]);
    g.tx.submit();
    let buffer = g.buffer(2000);
    g.rx.add(&[buffer]);
    g.rx.submit();
    g.peer.send(&frame(4, 60))?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    check!(
        g.tx.pop().is_none() && g.rx.pop().is_none(),
        "a dead worker"
    );

    check_eq!(new_worker(&g.net)?, 1);
    check_eq!(attach(&g.net, 1, 1), 0);
    g.tx.wait()?;
    check_eq!((get(&g.net, 0), get(&g.net, 1)), (Err(EINVAL), Ok(1)));
    check_eq!(attach(&g.net, 1, 0), 0, "back to the dead one");
    check_eq!(get(&g.net, 1), Ok(1));
    check_eq!(attach(&g.net, 0, 1), 0);
    g.rx.wait()?;
    check_eq!(g.peer.recv()?.len(), 60);
    for i in 0..20 {
        g.send_all(&[frame(i, 60)])?;
        g.receive_all(&[frame(i, 60)])?;
    }
    check_eq!(
        free(&g.net, 0),
        EBUSY,
        "it stays until the device is closed"
    );
    Ok(())
}

/// While a worker polls for one queue, the other queue's does not wait for it.
fn busy_polling() -> Res {
    let mut g = Guest::stopped(Config::default())?;
    // An hour, but other work for its processor ends it.
    let state = State {
        index: RX as u32,
        num: u32::MAX,
    };
    check_eq!(ioctl(&g.net, SET_VRING_BUSYLOOP_TIMEOUT, &state), 0);
    g.start()?;
    check_eq!(new_worker(&g.net)?, 1);
    check_eq!(attach(&g.net, TX as u32, 1), 0);
    let kicks = number(&info(&g.net)?, "tx-kicks")?;
    for i in 0..50 {
        g.receive_all(&[frame(i, 60)])?;
        g.send_all(&[frame(i, 60), frame(i, 1000)])?;
    }
    let map = info(&g.net)?;
    check!(number(&map, "rx-polls")? > 0, "no polling");
    // Who polls for both queues wants no kicks of the other.
    let kicks = number(&map, "tx-kicks")? - kicks;
    check!(
        kicks >= 40,
        "{kicks} turns by a kick for 50 times of sending"
    );
    check_eq!(attach(&g.net, TX as u32, 0), 0);
    for i in 0..50 {
        g.receive_all(&[frame(i, 60)])?;
        g.send_all(&[frame(i, 60), frame(i, 1000)])?;
    }
    Ok(())
}

/// With the module's parameter a device has two workers from the start, of either kind.
fn per_virtqueue() -> Res {
    reload("worker_per_virtqueue=1")?;
    let path = "/sys/module/vhost_net/parameters/worker_per_virtqueue";
    check_eq!(std::fs::read_to_string(path)?, "Y\n");
    for kernel_thread in [false, true] {
        let cfg = Config {
            kernel_thread,
            ..Config::with(VERSION_1 | EVENT_IDX)
        };
        let mut g = Guest::new(cfg)?;
        check_eq!((get(&g.net, 0), get(&g.net, 1)), (Ok(0), Ok(1)));
        check!(
            until(|| info(&g.net).is_ok_and(|i| i["rx-worker"] != "0" && i["tx-worker"] != "0")),
            "workers that do not run"
        );
        let map = info(&g.net)?;
        check!(map["rx-worker"] != map["tx-worker"], "one thread for both");
        check_eq!(workers()?, if kernel_thread { 0 } else { 2 });
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        let mut traffic = Traffic::new(&g, area);
        traffic.run(&mut g, amount(1000))?;
        // They can be given like others.
        check_eq!(attach(&g.net, 0, 1), 0);
        check_eq!(free(&g.net, 0), 0);
        traffic.run(&mut g, amount(1000) + 100)?;
        check_eq!(ioctl(&g.net, RESET_OWNER, NULL), 0);
        check_eq!(ioctl(&g.net, SET_OWNER, NULL), 0);
        check_eq!((get(&g.net, 0), get(&g.net, 1)), (Ok(0), Ok(1)));
    }
    Ok(())
}

/// How many bytes of memory are free.
fn free_memory() -> Res<i64> {
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemFree:"));
    let kib = line.and_then(|l| l.split_whitespace().next());
    Ok(kib.ok_or(Fail("no MemFree".into()))?.parse::<i64>()? * 1024)
}

/// That many at a time.
const DEVICES: i64 = 200;

/// What a device with an owner and both queues bound takes of memory: here a part of what the C driver takes.
fn memory() -> Res {
    let g = Guest::new(Config::default())?;
    let regions: Vec<_> = g
        .mem
        .regions()
        .iter()
        .map(|r| Region {
            gpa: r.gpa,
            size: r.size,
            hva: r.hva,
            flags: 0,
        })
        .collect();
    let table = mem_table(regions.len() as u32, 0, &regions);
    let one = || -> Res<File> {
        let f = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/vhost-net")?;
        check_eq!(ioctl(&f, SET_OWNER, NULL), 0);
        check_eq!(ioctl(&f, SET_FEATURES, &g.cfg.features), 0);
        check_eq!(ioctl(&f, SET_MEM_TABLE, table.as_ptr()), 0);
        for (index, ring) in [(0, &g.rx), (1, &g.tx)] {
            let num = State { index, num: 256 };
            check_eq!(ioctl(&f, SET_VRING_NUM, &num), 0);
            let at = |gpa| g.mem.hva(gpa).0 as u64;
            let addr = Addr {
                index,
                desc: at(ring.desc),
                used: at(ring.used),
                avail: at(ring.avail),
                ..Default::default()
            };
            check_eq!(ioctl(&f, SET_VRING_ADDR, &addr), 0);
            for (request, event) in [(SET_VRING_KICK, &ring.kick), (SET_VRING_CALL, &ring.call)] {
                let fd = event.as_raw_fd();
                check_eq!(ioctl(&f, request, &VringFile { index, fd }), 0);
            }
            let fd = g.tap.fd.as_raw_fd();
            check_eq!(ioctl(&f, NET_SET_BACKEND, &VringFile { index, fd }), 0);
        }
        Ok(f)
    };
    // The first ones fill what caches have free; all stay until the end.
    let (mut all, mut bytes) = (vec![], vec![]);
    // What the debug kernel takes for one is not the driver's doing.
    let devices = if on_debug_kernel() { 20 } else { DEVICES };
    for _ in 0..4 {
        let before = free_memory()?;
        for _ in 0..devices {
            all.push(one()?);
        }
        bytes.push((before - free_memory()?) / devices);
    }
    println!("# bytes a device: {bytes:?}");
    let typical = (bytes[2] + bytes[3]) / 2;
    if !on_c() && !on_debug_kernel() {
        check!(typical <= 100_000, "{typical} bytes a device");
    }
    Ok(())
}

/// What opening a device takes is charged to who opens it, also without an owner.
fn charged() -> Res {
    let Some(group) = cgroup::Group::with_memory("vhost-memory")? else {
        println!("# this kernel does not count the memory of groups");
        return Ok(());
    };
    let child = || -> Res {
        group.enter()?;
        // What a process takes for itself comes first.
        let mut files = vec![open()?];
        let before = group.memory()?;
        for _ in 0..DEVICES {
            files.push(open()?);
        }
        let each = (group.memory()? - before) / DEVICES;
        println!("# bytes charged for an open device: {each}");
        check!(each >= 6000, "{each} bytes a device are charged");
        Ok(())
    };
    let mut child = task::Child::new(child)?;
    check_eq!(child.wait(0, patience()), Some(0), "the child's status");
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("no_owner", no_owner),
        ("errors", errors),
        ("kernel_threads", kernel_threads),
        ("limited", limited),
        ("follows", follows),
        ("under_traffic", under_traffic),
        ("under_traffic_with_all_calls", under_traffic_with_all_calls),
        ("behind_iommu", behind_iommu),
        ("freed_while_waiting", freed_while_waiting),
        ("killed", killed),
        ("busy_polling", busy_polling),
        ("memory", memory),
        ("charged", charged),
    ];
    const ONCE: &[Test] = &[("per_virtqueue", per_virtqueue)];
    // The C driver has none of it.
    if on_c() {
        ktap::run(&[("memory", memory)]);
    }
    let good = ktap::all(&[TESTS, ONCE].concat());
    if let Err(Fail(why)) = reload("") {
        eprintln!("{why}");
        std::process::exit(1);
    }
    std::process::exit(!good as i32)
}
