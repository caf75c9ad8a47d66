// SPDX-License-Identifier: GPL-2.0

//! Packets that are sent from where they lie in the guest's memory, with the module's parameter `experimental_zcopytx`.
//!
//! A full tap behind a bridge ([`Plug`]) keeps packets unread as long as a test likes. A device that was just given its
//! backend takes such packets as they lie; one that found nobody to take them so copies for a while.

use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::ptr::null;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use vhost::net::VhostNet;

use kselftest::counters::Before;
use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::net::bridge;
use kselftest::net::bridge_join;
use kselftest::net::bridge_to;
use kselftest::net::tcp_frame;
use kselftest::net::Plug;
use kselftest::sys::*;
use kselftest::task::settle;
use kselftest::tracefs::Trace;
use kselftest::*;

const FEATURES: &[u64] = &[
    VERSION_1,
    VERSION_1 | EVENT_IDX,
    VHOST_NET_HDR | INDIRECT,
    MRG_RXBUF,
];

/// A guest whose packets wait at the other end.
struct Held {
    // The first to go, or the device would wait for its packets for ever.
    plug: Plug,
    g: Guest,
    /// Length of the header before each packet read from the plug.
    hdr: usize,
    bridge: String,
}

impl Held {
    fn new(cfg: Config) -> Res<Self> {
        Self::with_header(cfg, 0)
    }

    /// Holds twenty packets, which are returned; the small one behind them is used.
    fn twenty() -> Res<(Self, Vec<Vec<u8>>)> {
        let mut h = Self::new(Config::default())?;
        let packets: Vec<_> = (0..20).map(|i| frame(i, 2000)).collect();
        for p in &packets {
            h.offer(p);
        }
        let (small, _) = h.offer(&frame(99, 60));
        h.used(small)?;
        Ok((h, packets))
    }

    fn with_header(cfg: Config, hdr: usize) -> Res<Self> {
        let mut g = Guest::stopped(cfg)?;
        g.peer = Peer::sender(g.tap.index, false)?;
        let plug = Plug::new("tap1", hdr)?;
        if hdr != 0 {
            plug.tap.offload(net::TUN_F_CSUM | net::TUN_F_TSO4)?;
        }
        // A process may need several.
        static BRIDGES: AtomicU16 = AtomicU16::new(0);
        let bridge_name = format!("br{}", BRIDGES.fetch_add(1, SeqCst));
        bridge(&bridge_name, &[&g.tap, &plug.tap])?;
        g.start()?;
        Ok(Held {
            plug,
            g,
            hdr,
            bridge: bridge_name,
        })
    }

    /// Offers a packet.
    fn offer(&mut self, packet: &[u8]) -> (u16, u64) {
        let at = self.g.place(packet);
        let head = self.g.tx.add(&[Seg::r(at, self.g.hdr + packet.len())]);
        self.g.tx.submit();
        (head, at + self.g.hdr as u64)
    }

    fn used(&mut self, head: u16) -> Res {
        let u = self.g.tx.wait()?;
        check_eq!((u.id, u.len), (u32::from(head), 0), "the used buffer");
        Ok(())
    }

    fn arrives(&mut self, packet: &[u8]) -> Res {
        let got = self.plug.recv()?;
        same(&got[self.hdr..], packet, "packet")
    }

    /// Changes the end of a packet in memory.
    fn change(&self, packet: &mut [u8], (_, at): (u16, u64)) {
        let end = packet.len() - 50;
        packet[end..].fill(0x77);
        self.g.mem.write(at, packet);
    }

    /// What was held arrives as it is in memory now, and then its buffer is used.
    fn released(&mut self, mut packet: Vec<u8>, offered: (u16, u64)) -> Res {
        self.change(&mut packet, offered);
        self.arrives(&packet)?;
        self.used(offered.0)
    }
}

/// A packet for which there is nothing to copy with is not used before somebody has read it.
fn held() -> Res {
    for &features in some(FEATURES) {
        for &len in some(&[256, 300, 1514, 4000, 5000, 9000, 40_000, 60_000]) {
            let mut h = Held::new(Config::with(features))?;
            let p = frame(1, len);
            let big = h.offer(&p);
            // This is copied and so used at once; the device has seen both then.
            let q = frame(2, 60);
            let small = h.offer(&q);
            h.used(small.0)?;
            check_eq!(h.g.tx.device_idx(), 1, "how many were used");
            h.released(p, big)?;
            h.arrives(&q)?;
        }
    }
    Ok(())
}

/// The shortest that is worth it has 256 bytes, the header of the tap included.
fn limit() -> Res {
    for features in [VERSION_1, 0, VERSION_1 | VHOST_NET_HDR] {
        let mut h = Held::new(Config::with(features))?;
        let hdr = h.g.cfg.backend_hdr();
        for len in [60, 128, 200, 255] {
            let p = frame(1, len - hdr);
            let (head, _) = h.offer(&p);
            h.used(head)?;
        }
        let mut p = frame(2, 256 - hdr);
        let big = h.offer(&p);
        let (small, _) = h.offer(&frame(3, 60));
        h.used(small)?;
        // Now, since the first that is read makes way for many.
        h.change(&mut p, big);
        for len in [60, 128, 200, 255] {
            h.arrives(&frame(1, len - hdr))?;
        }
        h.arrives(&p)?;
        h.used(big.0)?;
    }
    Ok(())
}

/// A large packet for others to cut.
fn gso() -> Res {
    for &features in some(&[VERSION_1, VERSION_1 | EVENT_IDX, 0]) {
        for payload in [2920, 20_000, 60_000] {
            let mut h = Held::with_header(Config::with(features), 10)?;
            let p = tcp_frame(payload, 9);
            let at = h.g.place(&p);
            let hdr = [1, 1, 54, 0, 0xa8, 0x05, 34, 0, 16, 0];
            h.g.mem.write(at, &hdr);
            let head = h.g.tx.add(&[Seg::r(at, h.g.hdr + p.len())]);
            h.g.tx.submit();
            let (small, _) = h.offer(&frame(2, 60));
            h.used(small)?;
            h.released(p, (head, at + h.g.hdr as u64))?;
        }
    }
    Ok(())
}

/// A packet in more pieces than the stack can point to is copied.
fn many_pieces() -> Res {
    let mut h = Held::new(Config::default())?;
    let p = frame(1, 4000);
    let segs: Vec<_> = [vec![0; h.g.hdr], p.clone()]
        .concat()
        .chunks(100)
        .map(|piece| {
            let at = h.g.mem.alloc(4096, 4096);
            h.g.mem.write(at, piece);
            Seg::r(at, piece.len())
        })
        .collect();
    let head = h.g.tx.add(&segs);
    h.g.tx.submit();
    h.used(head)?;
    h.arrives(&p)
}

/// A packet that is done before one that was first: it is used after it.
fn in_turn() -> Res {
    const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 8];
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut h = Held::new(Config::with(features))?;
        let other = Tap::new("tap2", 0)?;
        bridge_join(&h.bridge, &other)?;
        bridge_to(&other, ADDRESS)?;
        bridge_to(&h.plug.tap, [2, 0, 0, 0, 0, 1])?;
        let p = frame(1, 1000);
        let held = h.offer(&p);
        let mut q = frame(2, 1000);
        q[..6].copy_from_slice(&ADDRESS);
        let (free, _) = h.offer(&q);
        let mut buf = [0; 2000];
        let arrived = until(|| (&other.fd).read(&mut buf).is_ok_and(|n| n == q.len()));
        check!(arrived, "no packet came");
        same(&buf[..q.len()], &q, "packet that nobody held")?;
        // One that is copied has the device look at what is done.
        let (small, _) = h.offer(&frame(3, 60));
        h.used(small)?;
        check_eq!(h.g.tx.device_idx(), 1, "how many were used");
        h.released(p, held)?;
        h.used(free)?;
        h.arrives(&frame(3, 60))?;
    }
    Ok(())
}

/// Many at once, again and again: what the device does not keep is copied, all arrive in order, all are used once.
fn many() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut h = Held::new(Config::with(features).base(65000))?;
        let slots: Vec<_> = (0..150).map(|_| h.g.mem.alloc(1024, 1024)).collect();
        for round in 0..20 {
            let packets: Vec<_> = (0..150).map(|i| frame(200 * round + i, 400)).collect();
            let before = h.g.tx.used_idx;
            let first = h.g.tx.free();
            for (at, p) in slots.iter().zip(&packets) {
                h.g.mem.fill(*at, h.g.hdr, 0);
                h.g.mem.write(*at + h.g.hdr as u64, p);
                h.g.tx.add(&[Seg::r(*at, h.g.hdr + p.len())]);
            }
            h.g.tx.submit();
            for p in &packets {
                h.arrives(p)?;
                let used = h.g.tx.device_idx().wrapping_sub(before);
                check!(used <= 150, "{used} used of 150");
            }
            for _ in &packets {
                h.g.tx.wait()?;
            }
            check_eq!(h.g.tx.free(), first, "free descriptors");
            check!(h.plug.try_recv().is_none(), "a packet came twice");
            // Given its backend anew, the device takes packets as they lie again, and the plug is read empty.
            h.g.stop()?;
            h.plug.fill()?;
            h.g.start()?;
        }
    }
    Ok(())
}

/// Who may not go on before what is held was read.
fn waits(what: &str, end: impl Fn(&BorrowedFd) -> i32 + Sync) -> Res {
    let (mut h, packets) = Held::twenty()?;
    check_eq!(h.g.tx.device_idx(), 1, "how many were used");
    // SAFETY: the descriptor is open as long as `h` lives, which is longer than the thread does.
    let fd = unsafe { BorrowedFd::borrow_raw(h.g.net.as_raw_fd()) };
    let (thread, done, used) = (AtomicI32::new(0), AtomicI32::new(-1), AtomicU16::new(0));
    let Held { plug, g, .. } = &mut h;
    let tx = &g.tx;
    let (waited, got) = std::thread::scope(|s| {
        s.spawn(|| {
            // SAFETY: has no arguments.
            thread.store(unsafe { libc::gettid() }, SeqCst);
            let e = end(&fd);
            used.store(tx.device_idx(), SeqCst);
            done.store(e, SeqCst);
        });
        let asleep = || sys::asleep_in_ioctl(thread.load(SeqCst));
        let waited = until(|| asleep() || done.load(SeqCst) >= 0) && done.load(SeqCst) < 0;
        // In any case, since the thread could not end otherwise.
        let got: Res<Vec<_>> = packets.iter().map(|_| plug.recv()).collect();
        (waited, got)
    });
    for (got, p) in got?.iter().zip(&packets) {
        same(got, p, "packet")?;
    }
    check!(waited, "{what} did not wait");
    check_eq!(done.load(SeqCst), 0, "errno of {what}");
    if what != "RESET_OWNER" {
        check_eq!(used.load(SeqCst), 21, "used at the end of {what}");
    }
    Ok(())
}

/// A backend that goes is waited for, and so is whatever else could take the memory away.
fn wait_for_all() -> Res {
    waits("SET_BACKEND", |fd| {
        let none = VringFile { index: 1, fd: -1 };
        ioctl(fd, NET_SET_BACKEND, &none)
    })?;
    waits("RESET_OWNER", |fd| ioctl(fd, RESET_OWNER, null::<u64>()))
}

/// The memory table changes when nothing is on its way, and then all goes on.
fn new_memory_table() -> Res {
    let mut h = Held::new(Config::default())?;
    for i in 0..5 {
        let p = frame(i, 3000);
        let (head, _) = h.offer(&p);
        let (small, _) = h.offer(&frame(9, 60));
        // They are on their way.
        settle(&h.g)?;
        let table: Vec<_> = h.g.mem.regions().to_vec();
        std::thread::scope(|s| {
            let net = &h.g.net;
            let plug = &mut h.plug;
            let changing =
                s.spawn(move || vhost::VhostBackend::set_mem_table(net, &Mem::table(&table)));
            std::thread::sleep(Duration::from_millis(50));
            check!(!changing.is_finished(), "replaced under a packet");
            let (a, b) = (plug.recv(), plug.recv());
            changing.join().unwrap()?;
            same(&a?, &p, "packet")?;
            same(&b?, &frame(9, 60), "packet")
        })?;
        let ids = [h.g.tx.wait()?.id, h.g.tx.wait()?.id];
        check!(
            ids.contains(&head.into()) && ids.contains(&small.into()),
            "{ids:?}"
        );
        h.g.stop()?;
        h.plug.fill()?;
        h.g.start()?;
    }
    Ok(())
}

/// Closed while packets are held: what is read later is what was sent.
fn closed() -> Res {
    for _ in 0..5 {
        let (h, packets) = Held::twenty()?;
        let Held { mut plug, g, .. } = h;
        let Guest { net, .. } = g;
        let got = std::thread::scope(|s| {
            s.spawn(|| drop(net));
            packets.iter().map(|_| plug.recv()).collect::<Res<Vec<_>>>()
        });
        let_go(&got?, &packets)?;
    }
    Ok(())
}

/// The packets that were held are right, and nobody has the device any more.
fn let_go(got: &[Vec<u8>], packets: &[Vec<u8>]) -> Res {
    for (got, p) in got.iter().zip(packets) {
        same(got, p, "packet")?;
    }
    let free = until(|| module_users().is_none_or(|n| n == 0));
    check!(free, "{:?} users of the module", module_users());
    Ok(())
}

/// The owner is killed while packets are held by somebody else.
fn killed() -> Res {
    let mut plug = Plug::new("tap1", 0)?;
    let (mut here, mut there) = std::os::unix::net::UnixStream::pair()?;
    let packets: Vec<_> = (0..20).map(|i| frame(i, 2000)).collect();
    // SAFETY: one thread; the child never returns.
    let pid = unsafe { libc::fork() };
    check!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let mut run = || -> Res {
            let mut g = Guest::stopped(Config::default())?;
            g.peer = Peer::sender(g.tap.index, false)?;
            bridge("br0", &[&g.tap, &plug.tap])?;
            g.start()?;
            for p in packets.iter().chain([&frame(99, 60)]) {
                let at = g.place(p);
                g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
            }
            g.tx.submit();
            g.tx.wait()?;
            there.write_all(&[g.tx.device_idx() as u8])?;
            loop {
                std::thread::park();
            }
        };
        if let Err(Fail(e)) = run() {
            println!("# {e}");
        }
        // SAFETY: ends the child.
        unsafe { libc::_exit(1) }
    }
    drop(there);
    let mut used = [0];
    here.read_exact(&mut used)?;
    // SAFETY: `pid` is a child of this process.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let mut status = 0;
    let got: Res<Vec<_>> = packets.iter().map(|_| plug.recv()).collect();
    // SAFETY: as above.
    check_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    check!(libc::WIFSIGNALED(status), "the child ended by itself");
    check_eq!(used, [1], "how many were used");
    let_go(&got?, &packets)
}

/// There is room for few packets, held or not: the others wait, and keep their order.
fn full() -> Res {
    for &features in FEATURES {
        let mut h = Held::new(Config::with(features))?;
        h.g.tap.sndbuf(20_000)?;
        let len = |i| [60, 500, 1500, 300, 5000, 64][i as usize % 6];
        let packets: Vec<_> = (0..120).map(|i| frame(i, len(i))).collect();
        for p in &packets {
            h.offer(p);
        }
        for _ in 0..30 {
            h.g.tx.kick();
            std::thread::yield_now();
        }
        for p in &packets {
            h.arrives(p)?;
        }
        for _ in &packets {
            check_eq!(h.g.tx.wait()?.len, 0);
        }
        check!(h.plug.try_recv().is_none(), "a packet came twice");
    }
    Ok(())
}

/// In order is in order: what was copied is not used before what is held.
///
/// (It is by the C driver.)
fn in_order() -> Res {
    if on_c() {
        return Ok(());
    }
    let mut h = Held::new(Config::with(VERSION_1 | IN_ORDER))?;
    let mut offered = vec![];
    for i in 0..20 {
        let p = frame(i, [2000, 60, 300][i as usize % 3]);
        offered.push((h.offer(&p).0, p));
    }
    for (_, p) in &offered {
        h.arrives(p)?;
    }
    for (head, _) in &offered {
        check_eq!(h.g.tx.wait()?.id, u32::from(*head), "the used buffer");
    }
    Ok(())
}

/// A packet socket keeps packets as they lie, too, if it is the only one: what it has not read is not used.
fn unread() -> Res {
    for &features in FEATURES {
        let mut g = Guest::new(Config::with(features))?;
        g.peer = Peer::sender(g.tap.index, false)?;
        // Closed before the device, which would wait for its packets for ever.
        let mut peer = Peer::new(g.tap.index, false)?;
        for _ in 0..3 {
            let packets: Vec<_> = (0..20).map(|i| frame(i, 2000)).collect();
            for p in &packets {
                let at = g.place(p);
                g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
            }
            let at = g.place(&frame(99, 60));
            let small = g.tx.add(&[Seg::r(at, g.hdr + 60)]);
            g.tx.submit();
            check_eq!(g.tx.wait()?.id, u32::from(small), "the first that was used");
            for p in &packets {
                same(&peer.recv()?, p, "packet")?;
            }
            same(&peer.recv()?, &frame(99, 60), "packet")?;
            for _ in &packets {
                g.tx.wait()?;
            }
        }
    }
    Ok(())
}

/// A backend for which all is copied takes the place of one for which nothing is, and goes again: each of them has what
/// it took used, and nothing else. (The C driver fails: it takes the number of packets that were not copied for the
/// number of those that wait to be used.)
fn another_backend() -> Res {
    for features in [VERSION_1 | VHOST_NET_HDR, MRG_RXBUF | VHOST_NET_HDR] {
        let mut g = Guest::new(Config::with(features))?;
        g.peer = Peer::sender(g.tap.index, false)?;
        let mut peer = Peer::new(g.tap.index, false)?;
        let wire = Peer::sender(g.tap.index, false)?;
        for round in 1..4 {
            let packets: Vec<_> = (0..20).map(|i| frame(i, 2000)).collect();
            for p in &packets {
                let at = g.place(p);
                g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
            }
            g.tx.submit();
            for p in &packets {
                same(&peer.recv()?, p, "packet")?;
            }
            for _ in &packets {
                g.tx.wait()?;
            }
            g.stop()?;

            g.net.set_backend(TX, Some(&wire.fd))?;
            let packets: Vec<_> = (0..3).map(|i| frame(100 + i, 300)).collect();
            let heads: Vec<_> = (packets.iter())
                .map(|p| {
                    let at = g.place(p);
                    g.tx.add(&[Seg::r(at, g.hdr + p.len())])
                })
                .collect();
            g.tx.submit();
            for (head, p) in heads.into_iter().zip(&packets) {
                check_eq!(g.tx.wait()?.id, u32::from(head), "what was used");
                let mut buf = [0; 1000];
                let arrived = until(|| (&g.tap.fd).read(&mut buf).is_ok_and(|n| n == p.len()));
                check!(arrived, "no packet came");
                same(&buf[..p.len()], p, "packet that was copied")?;
            }
            g.stop()?;
            check_eq!(g.tx.device_idx(), 23 * round, "how many were used");
            g.start()?;
        }
    }
    Ok(())
}

/// A second socket, for which all packets are copied, and which reads nothing.
fn copier(g: &Guest) -> Res<Peer> {
    Peer::new(g.tap.index, false)
}

/// Headers that make no sense, and good ones between.
fn bad_header() -> Res {
    let mut g = Guest::new(Config::default())?;
    let _copier = copier(&g)?;
    let no_such_type = [0, 0x1f, 54, 0, 0, 5, 34, 0, 16, 0];
    let segments_of_nothing = [1, 1, 54, 0, 0, 0, 34, 0, 16, 0];
    for hdr in [no_such_type, segments_of_nothing, no_such_type] {
        let p = tcp_frame(6000, 3);
        let at = g.place(&p);
        g.mem.write(at, &hdr);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
        g.tx.submit();
        check_eq!(g.tx.wait()?.len, 0);
        g.send_all(&[frame(1, 300), frame(2, 5000), frame(3, 60)])?;
    }
    check!(g.peer.try_recv().is_none(), "a bad packet was sent");
    Ok(())
}

/// All sizes, all at once and one by one, to a socket that copies them at once.
fn sizes() -> Res {
    for &features in some(FEATURES) {
        let mut g = Guest::new(Config::with(features))?;
        let _copier = copier(&g)?;
        for chunk in [
            &[60, 240, 243, 244, 245, 246, 255, 256, 257, 512][..],
            &[1514, 3000, 4083, 4096, 4097, 8192, 8193],
            &[16384, 32768, 40001, 65000, 65535],
        ] {
            let packets: Vec<_> = chunk.iter().map(|&n| frame(n as u32, n)).collect();
            for p in &packets {
                g.send_all(&[p.clone()])?;
            }
            g.send_all(&packets)?;
            g.stop()?;
            g.start()?;
        }
    }
    Ok(())
}

/// A stream each way, past the counts after which the device decides anew.
fn stream() -> Res {
    let features = if packed::by_default() {
        &FEATURES[1..2]
    } else {
        FEATURES
    };
    for &features in some(features) {
        let workers = [(false, 0), (true, 0), (false, 50)];
        let count = if packed::by_default() { 1 } else { 3 };
        for (kernel_thread, time) in workers.into_iter().take(count) {
            let cfg = Config {
                kernel_thread,
                ..Config::with(features).base(64000)
            };
            let mut g = Guest::stopped(cfg)?;
            for index in [0, 1] {
                let state = State { index, num: time };
                check_eq!(ioctl(&g.net, SET_VRING_BUSYLOOP_TIMEOUT, &state), 0);
            }
            g.start()?;
            let _copier = copier(&g)?;
            let area = g.mem.alloc(Traffic::room(&g), 4096);
            let mut t = Traffic::new(&g, area);
            // In all more than 1024.
            let step = if on_debug_kernel() { 300 } else { 600 };
            for i in 1..5 {
                t.run(&mut g, step * i)?;
                g.stop()?;
                g.start()?;
            }
        }
    }
    Ok(())
}

/// Who runs a queue by the time that its packets are done is told of it, and who did when they were sent may be gone.
fn another_worker() -> Res {
    if on_c() {
        return Ok(());
    }
    let (mut h, packets) = Held::twenty()?;
    let (mut id, fd) = (77u32, h.g.net.as_raw_fd());
    check_eq!(ioctl(&fd, NEW_WORKER, &raw mut id), 0);
    check_eq!(id, 1);
    for index in [1, 0u32] {
        check_eq!(ioctl(&fd, ATTACH_VRING_WORKER, &[index, 1]), 0);
    }
    check_eq!(ioctl(&fd, FREE_WORKER, &0u32), 0);
    let one = || threads().is_ok_and(|all| all.len() == 2);
    check!(until(one), "threads of this process: {:?}", threads()?);
    let before = Before::of(&h.g)?;
    for p in &packets {
        h.arrives(p)?;
    }
    // Nothing else wakes the worker than that they are done.
    for _ in &packets {
        h.g.tx.wait()?;
    }
    before.only(&h.g, "tx", &["kicks"], &[])?;
    let p = frame(100, 60);
    let (head, _) = h.offer(&p);
    h.used(head)
}

/// Packets that go without a copy are counted when they are done, and those that could not, at once.
fn counted() -> Res {
    if on_c() {
        return Ok(());
    }
    let mut h = Held::new(Config::default().num(16))?;
    // At most a quarter of the ring is lent.
    let before = Before::of(&h.g)?;
    let trace = Trace::new()?;
    let packets: Vec<_> = (0..6).map(|i| frame(i, 2000)).collect();
    let offered: Vec<_> = packets.iter().map(|p| h.offer(p)).collect();
    for p in 4..6 {
        h.used(offered[p].0)?;
    }
    let keys = ["zerocopy"];
    let want = [("zerocopy-refused", 2), ("zerocopy-in-flight", 4)];
    before.only(&h.g, "tx", &keys, &want)?;
    for p in &packets {
        h.arrives(p)?;
    }
    for p in 0..4 {
        h.used(offered[p].0)?;
    }
    // The tap that they end in copies them, at the latest possible moment.
    let want = [("zerocopy-refused", 2), ("zerocopy-copied", 4)];
    before.only(&h.g, "tx", &keys, &want)?;
    let mut copied = 0;
    for e in trace.of_queue(TX)? {
        if e.name == "zerocopy_done" {
            copied += e.number("copied")?;
            check_eq!(e.number("sent")?, 0);
        }
    }
    check_eq!(copied, 4, "as traced");
    Ok(())
}

/// A long packet that could not go without a copy, and had to wait, is a short one when its turn comes: none was refused.
fn refused_and_shortened() -> Res {
    if on_c() {
        return Ok(());
    }
    // One packet may be lent of such a ring, and the tap takes no other meanwhile.
    let mut h = Held::new(Config::default().num(4))?;
    h.g.tap.sndbuf(2000)?;
    let before = Before::of(&h.g)?;
    let (first, second) = (frame(1, 2000), frame(2, 2000));
    let offered = [h.offer(&first), h.offer(&second)];
    settle(&h.g)?;
    let len = h.g.hdr as u32 + 60;
    let desc = h.g.tx.desc + 16 * u64::from(offered[1].0);
    h.g.mem.write(desc + 8, &len.to_le_bytes());
    h.arrives(&first)?;
    h.arrives(&second[..60])?;
    // Whichever is done with first.
    for _ in offered {
        check_eq!(h.g.tx.wait()?.len, 0);
    }
    let want = [("zerocopy-copied", 1)];
    before.only(&h.g, "tx", &["zerocopy"], &want)
}

fn main() {
    const TESTS: &[Test] = &[
        ("held", held),
        ("limit", limit),
        ("gso", gso),
        ("many_pieces", many_pieces),
        ("in_turn", in_turn),
        ("many", many),
        ("wait_for_all", wait_for_all),
        ("new_memory_table", new_memory_table),
        ("closed", closed),
        ("killed", killed),
        ("full", full),
        ("in_order", in_order),
        ("unread", unread),
        ("another_backend", another_backend),
        ("bad_header", bad_header),
        ("sizes", sizes),
        ("stream", stream),
        ("another_worker", another_worker),
        ("counted", counted),
        ("refused_and_shortened", refused_and_shortened),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &[
        "in_turn",
        "in_order",
        "wait_for_all",
        "another_backend",
        "stream",
    ];
    if let Err(Fail(why)) = reload("experimental_zcopytx=1") {
        eprintln!("{why}");
        std::process::exit(1);
    }
    let good = ktap::all_formats(TESTS, PACKED);
    if let Err(Fail(why)) = reload("") {
        eprintln!("{why}");
        std::process::exit(1);
    }
    std::process::exit(!good as i32)
}
