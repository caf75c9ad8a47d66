// SPDX-License-Identifier: GPL-2.0

//! What `/proc/PID/fdinfo/FD` says of a device.
//!
//! The C driver says nothing, so this is run only where VHOST_MODULE is `rust`.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

use kselftest::feature::*;
use kselftest::ktap::Test;
use kselftest::*;
use vhost::net::VhostNet;
use vhost::VhostBackend;

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

/// The lines that the driver adds, by key.
fn info(fd: &impl AsRawFd) -> Res<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let mut map = BTreeMap::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(":\t") else {
            bail!("not a key, a colon, a tab and a value: {line:?}");
        };
        check!(
            !value.is_empty() && value.trim() == value,
            "the value of {line:?}"
        );
        check!(
            map.insert(key.to_string(), value.to_string()).is_none(),
            "{key} twice"
        );
    }
    Ok(map)
}

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
        for key in &KEYS[2..] {
            check_eq!(map[&format!("{queue}-{key}")], "0", "{queue}-{key}");
        }
    }
    check_eq!(map["vhost-features"], "0x0");
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
    ];
    if std::env::var("VHOST_MODULE").as_deref() != Ok("rust") {
        println!(
            "KTAP version 1\n1..0 # SKIP VHOST_MODULE is not rust: the C driver has no fdinfo"
        );
        return;
    }
    ktap::run(TESTS)
}
