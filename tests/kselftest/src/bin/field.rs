// SPDX-License-Identifier: GPL-2.0

//! Packets and messages as they were met in the field: one that can't be moved, or a miss that nobody answers, costs what it
//! is itself, and not its queue.
//!
//! What is only a packet's fault drops that packet, which counts as an error, and the next one goes on. A broken ring stops
//! its queue, and the owner is told by the error eventfd, once.

use std::fs::read_to_string;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::time::Duration;

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::iotlb::*;
use kselftest::ktap::Test;
use kselftest::mem::BASE;
use kselftest::net::ip;
use kselftest::net::tc;
use kselftest::net::tcp_frame;
use kselftest::net::ETH;
use kselftest::sys::ioctl;
use kselftest::sys::page_size;
use kselftest::sys::State;
use kselftest::task::settle;
use kselftest::*;
use vhost::net::VhostNet;

/// All that may be on its way through the network stack: as a tap is made, or as limited by QEMU (`sndbuf=`).
const SNDBUFS: [Option<i32>; 2] = [None, Some(1 << 20)];

const FEATURES: &[u64] = &[
    VERSION_1,
    VERSION_1 | EVENT_IDX,
    0,
    VERSION_1 | VHOST_NET_HDR,
];

fn guest(cfg: Config, sndbuf: Option<i32>) -> Res<Guest> {
    let g = Guest::stopped(cfg)?;
    if let Some(bytes) = sndbuf {
        g.tap.sndbuf(bytes)?;
    }
    g.start()?;
    Ok(g)
}

/// All configurations of this kind, and what they are called when one of them fails.
fn each(test: impl Fn(&mut Guest) -> Res) -> Res {
    for sndbuf in SNDBUFS {
        for &features in some(FEATURES) {
            let mut g = guest(Config::with(features), sndbuf)?;
            test(&mut g).map_err(|Fail(why)| {
                Fail(format!("features {features:#x}, sndbuf {sndbuf:?}: {why}"))
            })?;
        }
    }
    Ok(())
}

/// Packets and errors of a queue so far. The C driver does not count.
fn counts(g: &Guest, queue: &str) -> Res<Option<(u64, u64)>> {
    if sys::on_c() {
        return Ok(None);
    }
    settle(g)?;
    let text = read_to_string(format!("/proc/self/fdinfo/{}", g.net.as_raw_fd()))?;
    let number = |key: &str| -> Res<u64> {
        let line = (text.lines()).find_map(|l| l.strip_prefix(&format!("{queue}-{key}:\t")));
        Ok(line.ok_or(Fail(format!("no {queue}-{key}")))?.parse()?)
    };
    Ok(Some((number("packets")?, number("errors")?)))
}

/// So many packets and errors more than `before`.
fn counted(g: &Guest, queue: &str, before: Option<(u64, u64)>, packets: u64, errors: u64) -> Res {
    if let (Some(before), Some(now)) = (before, counts(g, queue)?) {
        let got = (now.0 - before.0, now.1 - before.1);
        check_eq!(got, (packets, errors), "{queue} packets and errors");
    }
    Ok(())
}

/// The worker has nothing to do: it does not try anything again and again.
fn idle(g: &Guest) -> Res {
    settle(g)?;
    let worker = task::worker_of(std::process::id() as i32, g.cfg.kernel_thread)?;
    let window = Duration::from_millis(300);
    let mut used = window;
    // A processor that stands still for a moment counts as one that was used.
    for _ in 0..3 {
        let before = task::cpu_time(&worker)?;
        std::thread::sleep(window);
        used = used.min(task::cpu_time(&worker)? - before);
        if used < window / 4 {
            return Ok(());
        }
    }
    bail!("the worker ran for {used:?} of {window:?} with nothing to do")
}

/// Sends a chain that must be dropped and a packet behind it, which must arrive. Nothing is signalled as an error.
fn dropped(g: &mut Guest, bad: &[Seg], what: &str) -> Res {
    let why = |Fail(why)| Fail(format!("{what}: {why}"));
    let good = frame(g.tx.avail_idx.into(), 60);
    let at = g.place(&good);
    let bad = g.tx.add(bad);
    let next = g.tx.add(&[Seg::r(at, g.hdr + good.len())]);
    g.tx.submit();
    for head in [bad, next] {
        check_eq!(
            g.tx.wait().map_err(why)?.id,
            u32::from(head),
            "{what}: used"
        );
    }
    same(
        &g.peer.recv().map_err(why)?,
        &good,
        &format!("the packet behind {what}"),
    )?;
    check!(
        g.tx.err.read().is_err(),
        "{what}: an error was signalled for a packet that was dropped"
    );
    Ok(())
}

/// How many MiB a packet must have for the tap to refuse it: a packet is one allocation, and behind it pages that are a fraction
/// of that.
fn too_many_mib() -> Res<usize> {
    Ok((sys::largest_allocation()? * 5 / 4) >> 20)
}

/// A packet longer than any network takes: the tap refuses it each time, and is always ready for it.
fn too_long() -> Res {
    each(|g| {
        let area = g.mem.alloc(1 << 20, 4096);
        g.mem.fill(area, 64, 0);
        g.send_all(&[frame(1, 60)])?;
        let before = counts(g, "tx")?;
        let least = too_many_mib()?;
        let lengths = [least, least + 12, 200];
        for mib in lengths {
            // The header, and the same again and again.
            let mut chain = vec![Seg::r(area, g.hdr)];
            chain.extend(vec![Seg::r(area, 1 << 20); mib]);
            dropped(g, &chain, &format!("a packet of {mib} MiB"))?;
            idle(g)?;
        }
        let n = lengths.len() as u64;
        counted(g, "tx", before, n, n)
    })
}

/// The same, where it comes last: the worker must not be kept by it.
fn too_long_and_last() -> Res {
    each(|g| {
        let area = g.mem.alloc(1 << 20, 4096);
        g.mem.fill(area, 64, 0);
        g.tx.add(&vec![Seg::r(area, 1 << 20); too_many_mib()? + 1]);
        g.tx.submit();
        g.tx.wait()?;
        idle(g)?;
        g.receive_all(&[frame(1, 60)])?;
        g.send_all(&[frame(2, 60)])
    })
}

/// Packets that end before their header does, or before that of the network.
fn too_short() -> Res {
    each(|g| {
        let at = g.mem.alloc(4096, 4096);
        g.mem.fill(at, 4096, 0);
        g.send_all(&[frame(1, 60)])?;
        let hdr = g.hdr;
        for len in [1, 5, hdr - 1, hdr, hdr + 1, hdr + ETH - 1] {
            let before = counts(g, "tx")?;
            dropped(g, &[Seg::r(at, len)], &format!("a packet of {len} bytes"))?;
            if len < hdr {
                counted(g, "tx", before, 1, 1)?;
            }
        }
        for len in [5, hdr - 1] {
            let one = [Seg::r(at, 2), Seg::r(at + 100, len - 2)];
            dropped(g, &one, &format!("a packet of 2 and {} bytes", len - 2))?;
        }
        idle(g)
    })
}

/// A header that asks for a checksum behind the end of its packet.
fn bad_checksum() -> Res {
    let mut g = guest(Config::default(), None)?;
    let before = counts(&g, "tx")?;
    let at = g.place(&frame(1, 60));
    // Two bytes at 80 + 9.
    g.mem.write(at, &[1, 0, 0, 0, 0, 0, 80, 0, 9, 0]);
    let len = g.hdr + 60;
    dropped(&mut g, &[Seg::r(at, len)], "a checksum behind the packet")?;
    counted(&g, "tx", before, 1, 1)
}

/// A packet socket has no memory for a packet, it says, when its interface, which has no queue, takes none. That is tried again,
/// by itself and not for ever: then it costs this packet.
fn no_memory() -> Res {
    let mut g = Guest::stopped(Config::with(VERSION_1 | VHOST_NET_HDR))?;
    let slow = Tap::new("slow", 0)?;
    ip("link set slow txqueuelen 2")?;
    tc("qdisc replace dev slow root noqueue")?;
    let filler = Peer::sender(slow.index, false)?;
    let full = |_| {
        let sent = (&filler.fd).write(&frame(0, 60));
        sent.is_err_and(|e| e.raw_os_error() == Some(libc::ENOBUFS))
    };
    check!((0..20_000).any(full), "the interface takes all");
    let socket = Peer::sender(slow.index, false)?;
    g.backend(Some(&socket.fd))?;
    let before = counts(&g, "tx")?;
    for n in 0..3 {
        let p = frame(n, 60);
        let at = g.place(&p);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
    }
    g.tx.submit();
    let mut buf = [0; 100];
    let mut next = || {
        (&slow.fd)
            .read(&mut buf)
            .map(|len| buf[..len].to_vec())
            .ok()
    };
    if sys::on_c() {
        // It waits for room, as long as that takes.
        std::thread::sleep(Duration::from_millis(100));
        while next().is_some() {}
    }
    for _ in 0..3 {
        g.tx.wait()?;
    }
    counted(&g, "tx", before, 0, 3)?;
    idle(&g)?;
    while next().is_some() {}
    let p = frame(9, 60);
    let at = g.place(&p);
    g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
    g.tx.submit();
    g.tx.wait()?;
    let mut got = None;
    sys::until(|| {
        got = next();
        got.as_ref() == Some(&p)
    });
    check_eq!(got, Some(p), "the packet behind");
    Ok(())
}

/// How a page of the VMM's can't be used.
#[derive(Clone, Copy, Debug)]
enum Gone {
    Protected,
    ReadOnly,
    Unmapped,
}

impl Gone {
    /// From now on, for the pages from `gpa` on.
    fn apply(self, g: &Guest, gpa: u64, len: usize) -> Res {
        let at = g.mem.hva(gpa).0.cast();
        // SAFETY: whole pages of guest memory that nobody but the device touches any more.
        let r = unsafe {
            match self {
                Gone::Protected => libc::mprotect(at, len, libc::PROT_NONE),
                Gone::ReadOnly => libc::mprotect(at, len, libc::PROT_READ),
                Gone::Unmapped => libc::munmap(at, len),
            }
        };
        check_eq!(r, 0, "{self:?}: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

/// Packets that can't be read, all of them or their ends, short ones and such as are too long for a batch.
fn unreadable() -> Res {
    each(|g| {
        g.send_all(&[frame(1, 60)])?;
        let hdr = g.hdr;
        let before = counts(g, "tx")?;
        let mut n = 0;
        for how in [Gone::Protected, Gone::Unmapped] {
            // Two good pages, and two bad ones behind them.
            let page = page_size();
            let at = g.mem.alloc(4 * page, page as u64);
            g.mem.fill(at, 2 * page, 0);
            let wall = at + 2 * page as u64;
            how.apply(g, wall, 2 * page)?;
            let chains = [
                ("all of it", vec![Seg::r(wall, hdr + 60)]),
                ("all of a long one", vec![Seg::r(wall, hdr + 5000)]),
                (
                    "all but the header",
                    vec![Seg::r(at, hdr), Seg::r(wall, 60)],
                ),
                (
                    "all of a long one but the header",
                    vec![Seg::r(at, hdr), Seg::r(wall, 5000)],
                ),
                ("the end", vec![Seg::r(wall - 100, hdr + 300)]),
                ("the end of a long one", vec![Seg::r(wall - 5000, 5100)]),
                ("half the header", vec![Seg::r(wall - 5, hdr + 60)]),
            ];
            for (what, chain) in chains {
                dropped(g, &chain, &format!("{how:?}, {what}"))?;
                n += 1;
            }
            // A header that the device itself makes need not be read.
            if g.cfg.backend_hdr() > 0 {
                let chain = [Seg::r(wall, hdr), Seg::r(at, 60)];
                dropped(g, &chain, &format!("{how:?}, the header"))?;
                n += 1;
            }
        }
        counted(g, "tx", before, n, n)?;
        idle(g)
    })
}

/// A chain that is outside the memory table is a broken ring: the queue stops and says so, whatever the tap is like.
fn broken_ring() -> Res {
    for sndbuf in SNDBUFS {
        let mut g = guest(Config::default(), sndbuf)?;
        for round in 0..2 {
            g.send_all(&[frame(1, 60)])?;
            let used = g.tx.device_idx();
            g.tx.add(&[Seg::r(0x10, 100)]);
            let at = g.place(&frame(2, 60));
            g.tx.add(&[Seg::r(at, g.hdr + 60)]);
            g.tx.submit();
            g.tx.wait_err()?;
            idle(&g)?;
            g.stop()?;
            check_eq!(g.tx.device_idx(), used, "the used index");
            check!(
                g.peer.try_recv().is_none(),
                "a packet behind the broken chain was sent"
            );
            g.restart(round * 100)?;
        }
        g.send_all(&[frame(3, 60)])?;
        g.receive_all(&[frame(4, 60)])?;
    }
    Ok(())
}

/// The lengths of the packets that come.
const LEN: usize = 900;

/// Buffers that can't be written, and good ones behind them: the packets that would have been in them are lost, each buffer
/// comes back empty, and the next packet is in the next one.
fn unwritable(features: u64) -> Res {
    let mergeable = features & MRG_RXBUF != 0;
    for how in [Gone::Protected, Gone::ReadOnly, Gone::Unmapped] {
        for (what, good) in [("all of it", 0), ("all but the header", 1), ("the end", 2)] {
            let mut g = Guest::new(Config::with(features))?;
            let name = format!("{how:?}, {what}");
            let name = name.as_str();
            g.receive_all(&[frame(1, LEN)])?;
            let before = counts(&g, "rx")?;

            // A good page, and a bad one behind it.
            let page = page_size();
            let at = g.mem.alloc(2 * page, page as u64);
            let wall = at + page as u64;
            how.apply(&g, wall, page)?;
            let hdr = g.hdr;
            // Mergeable buffers are smaller than packets, so that the bad one is among good ones.
            let size = if mergeable { 400 } else { hdr + LEN };
            let mut lost = vec![];
            if mergeable {
                let first = g.buffer(size);
                lost.push(g.rx.add(&[first]));
            }
            let head = hdr.min(size);
            let bad: &[Seg] = match good {
                0 => &[Seg::w(wall, size)],
                1 => &[Seg::w(at, head), Seg::w(wall, size - head)],
                _ => &[Seg::w(wall - 200, size)],
            };
            lost.push(g.rx.add(bad));
            if mergeable {
                let last = g.buffer(hdr + LEN - 2 * size);
                lost.push(g.rx.add(&[last]));
            }
            let next: Vec<_> = (0..2).map(|_| g.buffer(hdr + LEN)).collect();
            let heads: Vec<_> = next.iter().map(|b| g.rx.add(&[*b])).collect();
            g.rx.submit();
            for i in 1..4 {
                g.peer.send(&frame(i, LEN))?;
            }
            let why = |Fail(why)| Fail(format!("{name}: {why}"));
            for head in lost {
                let u = g.rx.wait().map_err(why)?;
                check_eq!(
                    (u.id, u.len),
                    (u32::from(head), 0),
                    "{name}: the bad buffer"
                );
            }
            for ((i, b), head) in (2..).zip(&next).zip(heads) {
                let u = g.rx.wait().map_err(why)?;
                check_eq!(u.id, u32::from(head), "{name}: the buffer of packet {i}");
                check_eq!(u.len as usize, hdr + LEN, "{name}: length of packet {i}");
                let got = g.mem.read(b.gpa, hdr + LEN);
                g.check_rx_hdr(&got, 1).map_err(why)?;
                let what = format!("{name}: packet {i}");
                same(&got[hdr..], &frame(i, LEN), &what)?;
            }
            check!(g.rx.err.read().is_err(), "{name}: an error was signalled");
            counted(&g, "rx", before, 2, 1).map_err(why)?;
            idle(&g)?;
            g.send_all(&[frame(9, 60)])?;
        }
    }
    Ok(())
}

fn unwritable_single() -> Res {
    unwritable(VERSION_1)
}

fn unwritable_mergeable() -> Res {
    unwritable(VERSION_1 | MRG_RXBUF)
}

fn unwritable_own_header() -> Res {
    unwritable(VERSION_1 | VHOST_NET_HDR)
}

/// All buffers of a ring can't be written: each packet is lost, each buffer comes back, and then good ones are filled.
fn unwritable_all() -> Res {
    all_unwritable(VERSION_1)
}

/// The same where each buffer that has no used entry of its own counts as full.
fn unwritable_in_order() -> Res {
    all_unwritable(VERSION_1 | IN_ORDER)
}

fn all_unwritable(features: u64) -> Res {
    let mut g = Guest::new(Config::with(features).num(64))?;
    let page = page_size();
    let at = g.mem.alloc(page, page as u64);
    Gone::Protected.apply(&g, at, page)?;
    for i in 0..64 {
        g.rx.add(&[Seg::w(at, 500)]);
        g.peer.send(&frame(i, 100))?;
    }
    g.rx.submit();
    for _ in 0..64 {
        check_eq!(g.rx.wait()?.len, 0);
    }
    idle(&g)?;
    g.receive_all(&[frame(1, 60)])
}

/// An IP packet without an Ethernet header.
fn ip_packet(len: usize, seed: u32) -> Vec<u8> {
    tcp_frame(len - 40, seed).split_off(ETH)
}

/// An interface without Ethernet headers: every byte arrives, both ways.
fn tun() -> Res {
    for sndbuf in SNDBUFS {
        for features in [
            VERSION_1,
            0,
            VERSION_1 | MRG_RXBUF | EVENT_IDX,
            VERSION_1 | VHOST_NET_HDR,
        ] {
            let name = format!("features {features:#x}, sndbuf {sndbuf:?}");
            let why = |Fail(why)| Fail(format!("{name}: {why}"));
            let mut g = Guest::stopped(Config::with(features))?;
            g.tap = Tap::tun("tun0", g.cfg.backend_hdr())?;
            g.peer = Peer::new(g.tap.index, false)?;
            if let Some(bytes) = sndbuf {
                g.tap.sndbuf(bytes)?;
            }
            // One that can't work is refused here, and not used.
            g.start().map_err(why)?;
            for round in 0..3 {
                let packets: Vec<_> = [60, 61, 576, 1500, 4000, 9000, 60]
                    .into_iter()
                    .zip(round * 10..)
                    .map(|(len, i)| ip_packet(len, i))
                    .collect();
                g.send_all(&packets).map_err(why)?;
                g.receive_all(&packets).map_err(why)?;
            }
            check!(g.tx.err.read().is_err(), "{name}: an error was signalled");
        }
    }
    Ok(())
}

fn busy_poll(g: &Guest, us: u32) -> Res {
    for index in [RX as u32, TX as u32] {
        let state = State { index, num: us };
        check_eq!(ioctl(&g.net, sys::SET_VRING_BUSYLOOP_TIMEOUT, &state), 0);
    }
    Ok(())
}

/// A ring that is broken is told of once, however often the other queue looks at it while it polls.
fn told_once() -> Res {
    for kernel_thread in [false, true] {
        let mut g = Guest::stopped(Config {
            kernel_thread,
            ..Config::default()
        })?;
        g.start()?;
        g.send_all(&[frame(1, 60)])?;
        // Nobody polls yet, or a look before the kick would be told of as well.
        g.rx.publish_idx(g.rx.avail_idx.wrapping_add(g.rx.num + 1));
        g.rx.kick();
        g.peer.send(&frame(1, 60))?;
        let deadline = deadline();
        check!(sys::readable(&g.rx.err, deadline), "no error was signalled");
        let mut told = g.rx.err.read().unwrap_or(0);
        busy_poll(&g, 100)?;
        let before = counts(&g, "rx")?;
        for i in 0..amount(1000) {
            g.send_all(&[frame(i, 60)])?;
        }
        settle(&g)?;
        told += g.rx.err.read().unwrap_or(0);
        println!("# kernel thread {kernel_thread}: told {told} times");
        check_eq!(told, 1, "errors told of one broken ring");
        counted(&g, "rx", before, 0, 0)?;
        // Mended, it runs again, with the packet that waited.
        g.restart(0)?;
        let b = g.buffer(200);
        g.rx.add(&[b]);
        g.rx.submit();
        g.rx.wait()?;
        let got = g.mem.read(b.gpa + g.hdr as u64, 60);
        same(&got, &frame(1, 60), "the packet that waited")?;
        g.send_all(&[frame(1, 60)])?;
        g.receive_all(&[frame(2, 60)])?;
    }
    Ok(())
}

/// The same, where packets come for the broken ring.
fn told_once_of_packets() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.rx.publish_idx(g.rx.avail_idx.wrapping_add(g.rx.num + 1));
    g.rx.kick();
    g.peer.send(&frame(0, 60))?;
    let deadline = deadline();
    check!(sys::readable(&g.rx.err, deadline), "no error was signalled");
    // The kick and the packet may each have had a look.
    settle(&g)?;
    let _ = g.rx.err.read();
    let mut told = 0;
    for i in 1..200 {
        g.peer.send(&frame(i, 60))?;
        settle(&g)?;
        told += g.rx.err.read().unwrap_or(0);
    }
    check_eq!(told, 0, "errors told again of one broken ring");
    g.restart(0)?;
    g.send_all(&[frame(1, 60)])
}

/// A batch that the tap refuses counts as errors, and as nothing else. The guest has its buffers back.
fn refused_batch() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.send_all(&[frame(1, 60)])?;
    let before = counts(&g, "tx")?;
    ip("link del tap0")?;
    let at = g.place(&frame(1, 60));
    for _ in 0..10 {
        g.tx.add(&[Seg::r(at, g.hdr + 60)]);
    }
    g.tx.submit();
    for _ in 0..10 {
        g.tx.wait()?;
    }
    counted(&g, "tx", before, 0, 10)?;
    idle(&g)
}

/// A guest behind an IOMMU whose rings are mapped, and nothing else.
fn behind_iommu() -> Res<Guest> {
    let g = Guest::stopped(Config {
        regions: vec![(BASE, 4 << 20)],
        ..Config::with(VERSION_1 | ACCESS_PLATFORM)
    })?;
    let map = |gpa, len, perm| update(&g.net, gpa, len, g.mem.hva(gpa).0 as u64, perm);
    for r in [&g.rx, &g.tx] {
        let n = u64::from(r.num);
        map(r.used, 4 + 8 * n, RW)?;
        map(r.avail, 4 + 2 * n, RO)?;
        map(r.desc, 16 * n, RO)?;
    }
    nonblocking(&g.net, true);
    g.start()?;
    settle(&g)?;
    Ok(g)
}

/// Offers a packet that is not mapped, and kicks.
fn send_unmapped(g: &mut Guest, p: &[u8]) -> Seg {
    let s = Seg::r(g.place(p), g.hdr + p.len());
    g.tx.add(&[s]);
    g.tx.publish();
    g.tx.kick();
    s
}

fn map(g: &Guest, s: &Seg) -> Res {
    let perm = if s.write { WO } else { RO };
    let hva = g.mem.hva(s.gpa).0 as u64;
    update(&g.net, s.gpa, u64::from(s.len), hva, perm)
}

/// The miss of this buffer is there to be read.
#[track_caller]
fn asked_for(g: &Guest, s: &Seg) -> Res {
    let want = Msg::miss(s.gpa, if s.write { WO } else { RO });
    check_eq!(wait_miss(&g.net)?, want);
    Ok(())
}

/// Nothing is there to be read.
fn nothing_asked(g: &Guest, what: &str) -> Res {
    settle(g)?;
    check_eq!(read(&g.net), Err(-libc::EAGAIN), "{what}");
    Ok(())
}

/// Takes one queue's backend away while the other one waits for an address: what that one asked for is still there, and its
/// answer makes it go on, without a kick.
fn miss_of_its_queue() -> Res {
    for read_before in [false, true] {
        let p = frame(1, 100);
        let mut g = behind_iommu()?;
        let s = send_unmapped(&mut g, &p);
        settle(&g)?;
        if read_before {
            asked_for(&g, &s)?;
        }
        g.net.set_backend(RX, None)?;
        if !read_before {
            asked_for(&g, &s)?;
        }
        map(&g, &s)?;
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "sent packet")?;

        // The other way round.
        drop(g);
        let mut g = behind_iommu()?;
        let b = g.buffer(300);
        g.rx.add(&[b]);
        g.rx.publish();
        g.rx.kick();
        g.peer.send(&p)?;
        settle(&g)?;
        if read_before {
            asked_for(&g, &b)?;
        }
        g.net.set_backend(TX, None)?;
        if !read_before {
            asked_for(&g, &b)?;
        }
        map(&g, &b)?;
        check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
    }
    Ok(())
}

/// A queue without a backend asks for nothing: its own miss goes with its backend.
fn miss_goes_with_backend() -> Res {
    let mut g = behind_iommu()?;
    let p = frame(1, 100);
    send_unmapped(&mut g, &p);
    settle(&g)?;
    g.net.set_backend(TX, None)?;
    nothing_asked(&g, "after the backend went")
}

/// A miss that was read and not answered is asked for again when the queue is kicked, as often as it is kicked and not oftener:
/// no more than one message waits.
fn unanswered() -> Res {
    let mut g = behind_iommu()?;
    let p = frame(1, 100);
    let s = send_unmapped(&mut g, &p);
    asked_for(&g, &s)?;
    nothing_asked(&g, "without a kick")?;
    for round in 0..20 {
        g.tx.kick();
        let again = asked_for(&g, &s);
        again.map_err(|Fail(why)| Fail(format!("kick {round}: {why}")))?;
        nothing_asked(&g, "twice for one kick")?;
    }
    // Kicks without a reader heap nothing up.
    for _ in 0..200 {
        g.tx.kick();
        settle(&g)?;
    }
    asked_for(&g, &s)?;
    nothing_asked(&g, "more than one message for many kicks")?;
    // Nor is the queue at it when nobody kicks.
    idle(&g)?;
    nothing_asked(&g, "by itself")?;
    map(&g, &s)?;
    g.tx.wait()?;
    same(&g.peer.recv()?, &p, "sent packet")
}

/// The same of the queue that receives: a packet comes, a kick asks again.
fn unanswered_rx() -> Res {
    let mut g = behind_iommu()?;
    let p = frame(1, 100);
    let b = g.buffer(300);
    g.rx.add(&[b]);
    g.rx.publish();
    g.rx.kick();
    g.peer.send(&p)?;
    asked_for(&g, &b)?;
    for _ in 0..5 {
        nothing_asked(&g, "without a kick")?;
        g.rx.kick();
        asked_for(&g, &b)?;
    }
    map(&g, &b)?;
    check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
    same(
        &g.mem.read(b.gpa + g.hdr as u64, p.len()),
        &p,
        "received packet",
    )
}

fn main() {
    const TESTS: &[Test] = &[
        ("too_long", too_long),
        ("too_long_and_last", too_long_and_last),
        ("too_short", too_short),
        ("bad_checksum", bad_checksum),
        ("no_memory", no_memory),
        ("unreadable", unreadable),
        ("broken_ring", broken_ring),
        ("unwritable_single", unwritable_single),
        ("unwritable_mergeable", unwritable_mergeable),
        ("unwritable_own_header", unwritable_own_header),
        ("unwritable_all", unwritable_all),
        ("unwritable_in_order", unwritable_in_order),
        ("told_once_of_packets", told_once_of_packets),
        ("miss_goes_with_backend", miss_goes_with_backend),
        ("tun", tun),
        ("told_once", told_once),
        ("refused_batch", refused_batch),
        ("miss_of_its_queue", miss_of_its_queue),
        ("unanswered", unanswered),
        ("unanswered_rx", unanswered_rx),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &["unwritable_all", "unwritable_in_order"];
    ktap::run_formats(TESTS, PACKED)
}
