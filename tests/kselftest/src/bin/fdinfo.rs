// SPDX-License-Identifier: GPL-2.0

//! What `/proc/PID/fdinfo/FD` says of a device.
//!
//! The C driver says nothing, so this is run only where VHOST_MODULE is `rust`.

use std::io::Write;
use std::os::fd::AsRawFd;

use kselftest::counters::info;
use kselftest::counters::Before;
use kselftest::feature::*;
use kselftest::ktap::Test;
use kselftest::sys::page_size;
use kselftest::task::worker_of;
use kselftest::*;
use vhost::net::VhostNet;
use vhost::VhostBackend;

/// What was there first.
const KEYS: [&str; 8] = [
    "size",
    "backend",
    "packets",
    "bytes",
    "kicks",
    "calls",
    "calls-suppressed",
    "errors",
];

/// What docs/observing.md promises besides, of each queue.
const MORE: &[&str] = &[
    "last-fault",
    "worker",
    "wakeups",
    "turns",
    "multicast",
    "broadcast",
    "iotlb-misses",
    "polls",
    "poll-hits",
    "zerocopy-sent",
    "zerocopy-copied",
    "zerocopy-refused",
    "zerocopy-in-flight",
    "unlogged",
    "drops-short",
    "drops-header",
    "drops-buffers",
    "drops-memory",
    "drops-too-long",
    "drops-backend",
    "stops-malformed",
    "stops-unreachable",
    "stops-denied",
    "stops-pieces",
    "stops-memory",
    "packets-from-0",
    "packets-from-64",
    "packets-from-128",
    "packets-from-256",
    "packets-from-512",
    "packets-from-1024",
    "packets-from-2048",
    "packets-from-4096",
    "packets-from-8192",
    "packets-from-16384",
    "packets-from-32768",
    "packets-from-65536",
];

/// The numbers of one queue.
#[derive(Debug, PartialEq, Clone, Copy)]
struct Count {
    packets: u64,
    bytes: u64,
    kicks: u64,
    calls: u64,
    suppressed: u64,
    errors: u64,
}

fn count(g: &Guest, queue: &str) -> Res<Count> {
    // What a completion counts is counted under the queue's lock, which this takes.
    g.net.get_vring_base(TX)?;
    g.net.get_vring_base(RX)?;
    let map = info(&g.net)?;
    let n = |key: &str| -> Res<u64> {
        match map.get(&format!("{queue}-{key}")).map(|v| v.parse()) {
            Some(Ok(n)) => Ok(n),
            other => bail!("{queue}-{key}: {other:?}"),
        }
    };
    Ok(Count {
        packets: n("packets")?,
        bytes: n("bytes")?,
        kicks: n("kicks")?,
        calls: n("calls")?,
        suppressed: n("calls-suppressed")?,
        errors: n("errors")?,
    })
}

/// How much the numbers of one queue grew.
fn grown(g: &Guest, queue: &str, old: Count) -> Res<Count> {
    let new = count(g, queue)?;
    let sub = |a: u64, b: u64| {
        a.checked_sub(b)
            .ok_or(Fail(format!("{queue}: {new:?} < {old:?}")))
    };
    Ok(Count {
        packets: sub(new.packets, old.packets)?,
        bytes: sub(new.bytes, old.bytes)?,
        kicks: sub(new.kicks, old.kicks)?,
        calls: sub(new.calls, old.calls)?,
        suppressed: sub(new.suppressed, old.suppressed)?,
        errors: sub(new.errors, old.errors)?,
    })
}

/// Sends one packet and waits until it is used, without asking for a call.
fn send(g: &mut Guest, len: usize) -> Res {
    let at = g.place(&frame(1, len));
    g.tx.add(&[Seg::r(at, g.hdr + len)]);
    g.tx.publish();
    g.tx.kick();
    g.tx.spin()?;
    g.peer.recv()?;
    g.net.get_vring_base(TX)?;
    Ok(())
}

/// All keys are there, of an unused device too.
fn keys() -> Res {
    let f = sys::open()?;
    let map = info(&f)?;
    for queue in ["rx", "tx"] {
        for key in KEYS {
            check!(
                map.contains_key(&format!("{queue}-{key}")),
                "no {queue}-{key} in {map:?}"
            );
        }
        check_eq!(map[&format!("{queue}-backend")], "none");
        check_eq!(map[&format!("{queue}-last-fault")], "none");
        for key in KEYS[2..].iter().chain(&MORE[1..]) {
            let value = map.get(&format!("{queue}-{key}"));
            check_eq!(value.map(String::as_str), Some("0"), "{queue}-{key}");
        }
    }
    check_eq!(map["vhost-features"], "0x0");
    // No key that this does not know, and so nobody: whoever adds one says what it is.
    let doc = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/observing.md");
    let doc = std::fs::read_to_string(doc)?;
    for key in map.keys() {
        let Some((queue @ ("rx" | "tx"), short)) = key.split_once('-') else {
            continue;
        };
        check!(
            KEYS.contains(&short) || MORE.contains(&short),
            "{queue}-{short} is new"
        );
        let short = short.trim_end_matches(|c: char| c.is_ascii_digit());
        check!(
            doc.contains(&format!("`{short}")),
            "docs/observing.md has no {short}"
        );
    }
    Ok(())
}

fn settings() -> Res {
    let features = VERSION_1 | EVENT_IDX | MRG_RXBUF;
    let cfg = Config {
        rx_num: 64,
        tx_num: 512,
        ..Config::with(features)
    };
    let g = Guest::new(cfg)?;
    let map = info(&g.net)?;
    check_eq!(map["vhost-features"], format!("{features:#x}"));
    check_eq!(map["rx-size"], "64");
    check_eq!(map["tx-size"], "512");
    check_eq!(map["rx-backend"], "tap");
    check_eq!(map["tx-backend"], "tap");
    g.net.set_backend(RX, None)?;
    check_eq!(info(&g.net)?["rx-backend"], "none");
    check_eq!(info(&g.net)?["tx-backend"], "tap");
    let socket = Peer::new(g.tap.index, false)?;
    g.net.set_backend(RX, Some(&socket.fd))?;
    check_eq!(info(&g.net)?["rx-backend"], "packet");
    g.stop()?;
    check_eq!(info(&g.net)?["tx-backend"], "none");
    Ok(())
}

/// Packets and bytes, every one, and neither header nor the other queue's.
fn packets_and_bytes() -> Res {
    for features in [
        VERSION_1,
        VERSION_1 | EVENT_IDX,
        0,
        VERSION_1 | VHOST_NET_HDR,
    ] {
        let mut g = Guest::new(Config::with(features))?;
        let (tx, rx) = (count(&g, "tx")?, count(&g, "rx")?);
        let sizes = [60, 100, 1514, 4000, 9000, 20000];
        g.send_all(&sizes.map(|n| frame(1, n)))?;
        let t = grown(&g, "tx", tx)?;
        check_eq!((t.packets, t.bytes, t.errors), (6, 34674, 0), "TX");
        check_eq!(grown(&g, "rx", rx)?.packets, 0, "RX while only TX ran");
        g.receive_all(&sizes.map(|n| frame(1, n)))?;
        let r = grown(&g, "rx", rx)?;
        check_eq!((r.packets, r.bytes, r.errors), (6, 34674, 0), "RX");
        check_eq!(grown(&g, "tx", tx)?.packets, 6, "TX after RX ran");
    }
    Ok(())
}

/// As many as a long stream has.
fn stream() -> Res {
    let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX))?;
    let area = g.mem.alloc(Traffic::room(&g), 4096);
    let (tx, rx) = (count(&g, "tx")?, count(&g, "rx")?);
    Traffic::new(&g, area).run(&mut g, 3000)?;
    let t = grown(&g, "tx", tx)?;
    let r = grown(&g, "rx", rx)?;
    let bytes = |f: fn(u64) -> u64| (0..3000u64).map(|i| 60 + f(i) % 1400).sum::<u64>();
    check_eq!(
        (t.packets, t.bytes, t.errors),
        (3000, bytes(|i| i), 0),
        "TX"
    );
    check_eq!(
        (r.packets, r.bytes, r.errors),
        (3000, bytes(|i| 7 * i), 0),
        "RX"
    );
    Ok(())
}

/// Each completion either calls or is counted as suppressed.
fn calls() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.send_all(&[frame(1, 60)])?;
    g.net.get_vring_base(TX)?;
    g.tx.calls();
    for no_interrupt in [1, 0, 1] {
        g.tx.set_avail_flags(no_interrupt);
        let old = count(&g, "tx")?;
        for _ in 0..10 {
            send(&mut g, 60)?;
        }
        let t = grown(&g, "tx", old)?;
        let want = if no_interrupt == 1 { (0, 10) } else { (10, 0) };
        check_eq!((t.calls, t.suppressed), want, "flag {no_interrupt}");
        check_eq!(g.tx.calls(), t.calls, "signals at the eventfd");
    }
    Ok(())
}

/// Kicks with a completion between them are seen one by one.
fn kicks() -> Res {
    let mut g = Guest::new(Config::default())?;
    send(&mut g, 60)?;
    // The start itself may have made the queue run once more.
    g.net.set_mem_table(&Mem::table(g.mem.regions()))?;
    let old = count(&g, "tx")?;
    for _ in 0..20 {
        send(&mut g, 60)?;
        check!(sys::until(|| g.tx.used_flags() == 0), "no kick asked for");
        g.net.set_mem_table(&Mem::table(g.mem.regions()))?;
    }
    check_eq!(grown(&g, "tx", old)?.kicks, 20);
    Ok(())
}

/// A fault is an error, and a packet that does not fit is one.
fn errors() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.send_all(&[frame(1, 60)])?;
    let old = count(&g, "tx")?;
    g.tx.add(&[Seg::r(0x10, 100)]);
    g.tx.publish();
    g.tx.kick();
    g.tx.wait_err()?;
    check!(grown(&g, "tx", old)?.errors >= 1, "no error counted");
    check_eq!(grown(&g, "tx", old)?.packets, 0);
    g.restart(0)?;
    let old = count(&g, "rx")?;
    let b = g.buffer(100);
    g.rx.add(&[b]);
    g.rx.submit();
    g.peer.send(&frame(1, 500))?;
    g.peer.send(&frame(2, 60))?;
    g.rx.wait()?;
    let r = grown(&g, "rx", old)?;
    check_eq!(
        (r.packets, r.bytes, r.errors),
        (1, 60, 1),
        "one packet too large, one that fits"
    );
    Ok(())
}

/// Another process may look, and sees the same.
fn from_outside() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.send_all(&[frame(1, 60), frame(2, 60)])?;
    let path = format!("/proc/{}/fdinfo/{}", std::process::id(), g.net.as_raw_fd());
    let seen = sys::in_child(|| {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        i32::from(!text.contains("tx-packets:\t2\n"))
    })?;
    check_eq!(seen, 0, "tx-packets as another process sees them");
    Ok(())
}

/// Packets by their length, at each border of a class, and in all as many as there were packets.
fn sizes() -> Res {
    let lengths = [
        (60, "0"),
        (63, "0"),
        (64, "64"),
        (127, "64"),
        (128, "128"),
        (255, "128"),
        (256, "256"),
        (511, "256"),
        (512, "512"),
        (1023, "512"),
        (1024, "1024"),
        (1514, "1024"),
        (2047, "1024"),
        (2048, "2048"),
        (4095, "2048"),
        (4096, "4096"),
        (8192, "8192"),
        (16384, "16384"),
        (32768, "32768"),
        (65000, "32768"),
    ];
    for sndbuf in [None, Some(1 << 20)] {
        let mut g = Guest::stopped(Config::default())?;
        if let Some(bytes) = sndbuf {
            g.tap.sndbuf(bytes)?;
        }
        g.start()?;
        for (len, class) in lengths {
            for (queue, way) in [
                ("tx", Guest::send_all as fn(&mut Guest, &[Vec<u8>]) -> Res),
                ("rx", Guest::receive_all),
            ] {
                let before = Before::of(&g)?;
                way(&mut g, &[frame(1, len), frame(2, len), frame(3, len)])?;
                let class = format!("packets-from-{class}");
                let bytes = 3 * len as u64;
                let want = [("packets", 3), ("bytes", bytes), (&class, 3)];
                let why = |Fail(why)| Fail(format!("{len} bytes: {why}"));
                before
                    .only(&g, queue, &["packets", "bytes", "errors", "drops"], &want)
                    .map_err(why)?;
            }
        }
    }
    Ok(())
}

/// The same packet to another station.
fn to(destination: [u8; 6]) -> Vec<u8> {
    let mut f = frame(1, 100);
    f[..6].copy_from_slice(&destination);
    f
}

/// Packets to many, and to all.
fn groups() -> Res {
    let packets = [
        to([2, 0, 0, 0, 0, 1]),
        to([0x33, 0x33, 0, 0, 0, 1]),
        to([0xff; 6]),
        to([1, 0, 0x5e, 0, 0, 1]),
        to([0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]),
        to([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ];
    let keys = &["packets", "multicast", "broadcast"];
    let want = &[
        ("packets", 6),
        ("packets-from-64", 6),
        ("multicast", 3),
        ("broadcast", 1),
    ];
    let mut g = Guest::new(Config::default())?;
    let before = Before::of(&g)?;
    g.send_all(&packets)?;
    before.only(&g, "tx", keys, want)?;
    g.receive_all(&packets)?;
    before.only(&g, "rx", keys, want)?;

    // Out of a packet socket, whose packets may begin with anything.
    drop(g);
    let mut g = Guest::stopped(Config::with(VERSION_1 | VHOST_NET_HDR))?;
    let other = Tap::new("tap9", 0)?;
    let socket = Peer::new(other.index, false)?;
    g.net.set_backend(RX, Some(&socket.fd))?;
    let before = Before::of(&g)?;
    for p in &packets {
        let b = g.buffer(500);
        g.rx.add(&[b]);
        g.rx.submit();
        (&other.fd).write_all(p)?;
        g.rx.wait()?;
    }
    before.only(&g, "rx", keys, &[("packets", 6), ("packets-from-64", 6)])?;

    drop(g);
    // What has no Ethernet header has no destination, whatever its first byte.
    let mut g = Guest::stopped(Config::default())?;
    g.tap = Tap::tun("tun0", g.cfg.backend_hdr())?;
    g.peer = Peer::new(g.tap.index, false)?;
    g.start()?;
    let before = Before::of(&g)?;
    let packet = net::tcp_frame(60, 1).split_off(net::ETH);
    g.send_all(&[packet.clone()])?;
    g.receive_all(&[packet])?;
    before.only(&g, "tx", &["multicast", "broadcast"], &[])?;
    before.only(&g, "rx", &["multicast", "broadcast"], &[])
}

/// Packets that are lost, by reason; all together are the errors.
fn drops() -> Res {
    for sndbuf in [None, Some(1 << 20)] {
        let mut g = Guest::stopped(Config::default())?;
        if let Some(bytes) = sndbuf {
            g.tap.sndbuf(bytes)?;
        }
        g.start()?;
        g.send_all(&[frame(1, 60)])?;
        let before = Before::of(&g)?;
        let page = page_size();
        let wall = g.mem.alloc(page, page as u64);
        // SAFETY: a page of guest memory that nobody but the device touches any more.
        check_eq!(unsafe { libc::munmap(g.mem.hva(wall).0.cast(), page) }, 0);
        g.tx.add(&[Seg::r(wall, g.hdr + 60)]);
        g.tx.submit();
        g.tx.wait()?;
        let keys = ["drops-", "stops-", "errors", "packets"];
        before.only(&g, "tx", &keys, &[("drops-buffers", 1), ("errors", 1)])?;
        let before = Before::of(&g)?;
        g.rx.add(&[Seg::w(wall, 500)]);
        g.rx.submit();
        g.peer.send(&frame(1, 60))?;
        g.rx.wait()?;
        before.only(&g, "rx", &keys, &[("drops-buffers", 1), ("errors", 1)])?;
        let before = Before::of(&g)?;
        net::ip("link del tap0")?;
        let at = g.place(&frame(1, 60));
        g.tx.add(&[Seg::r(at, g.hdr + 60)]);
        g.tx.submit();
        g.tx.wait()?;
        before.only(
            &g,
            "tx",
            &["drops-", "stops-", "errors"],
            &[("drops-backend", 1), ("errors", 1)],
        )?;
    }
    Ok(())
}

/// Queues that stop, by reason.
fn stops() -> Res {
    let mut g = Guest::new(Config::default())?;
    let area = g.mem.alloc(4096, 4096);
    for (what, reason) in [
        (Seg::r(0x10, 100), "stops-unreachable"),
        (Seg::w(area, 100), "stops-malformed"),
    ] {
        g.send_all(&[frame(1, 60)])?;
        let before = Before::of(&g)?;
        g.tx.add(&[what]);
        g.tx.submit();
        g.tx.wait_err()?;
        before.only(
            &g,
            "tx",
            &["drops-", "stops-", "errors"],
            &[(reason, 1), ("errors", 1)],
        )?;
        g.restart(0)?;
    }
    Ok(())
}

/// Turns are counted by what caused them.
fn turns() -> Res {
    let mut g = Guest::new(Config::default())?;
    send(&mut g, 60)?;
    let before = Before::of(&g)?;
    for _ in 0..20 {
        send(&mut g, 60)?;
        task::settle(&g)?;
    }
    let keys = ["kicks", "wakeups", "turns"];
    let want = [("kicks", 20), ("wakeups", 20), ("turns", 20)];
    before.only(&g, "tx", &keys, &want)?;
    before.only(&g, "rx", &keys, &[])
}

/// The worker's number is the thread's, as the one who reads sees it.
fn worker() -> Res {
    for kernel_thread in [false, true] {
        let mut g = Guest::new(Config {
            kernel_thread,
            ..Config::default()
        })?;
        g.send_all(&[frame(1, 60)])?;
        let pid = std::process::id();
        let thread = worker_of(pid as i32, kernel_thread)?;
        let thread = thread.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let map = info(&g.net)?;
        check_eq!(map["rx-worker"], thread);
        check_eq!(map["tx-worker"], thread);
        // Nobody is to be seen from a namespace below.
        let path = format!("/proc/{pid}/fdinfo/{}", g.net.as_raw_fd());
        let seen = sys::in_child(|| {
            // SAFETY: this process has one thread.
            if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
                return 8;
            }
            let inner = sys::in_child(|| {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                i32::from(!text.contains("rx-worker:\t0\n"))
            });
            inner.unwrap_or(9)
        })?;
        check_eq!(seen, 0, "rx-worker as another namespace sees it");
        check_eq!(
            sys::ioctl(&g.net, sys::RESET_OWNER, std::ptr::null::<u8>()),
            0
        );
        check_eq!(info(&g.net)?["rx-worker"], "0", "after RESET_OWNER");
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("keys", keys),
        ("settings", settings),
        ("packets_and_bytes", packets_and_bytes),
        ("stream", stream),
        ("calls", calls),
        ("kicks", kicks),
        ("errors", errors),
        ("from_outside", from_outside),
        ("sizes", sizes),
        ("groups", groups),
        ("drops", drops),
        ("stops", stops),
        ("turns", turns),
        ("worker", worker),
    ];
    if std::env::var("VHOST_MODULE").as_deref() != Ok("rust") {
        println!(
            "KTAP version 1\n1..0 # SKIP VHOST_MODULE is not rust: the C driver has no fdinfo"
        );
        return;
    }
    ktap::run(TESTS)
}
