// SPDX-License-Identifier: GPL-2.0

//! The module's tracepoints: each event once for what it is about, in order, with the numbers that belong to it.
//!
//! The C driver has none, so this is run only where VHOST_MODULE is `rust`.

use std::time::Duration;

use kselftest::counters::Before;
use kselftest::feature::*;
use kselftest::iotlb::*;
use kselftest::ktap::Test;
use kselftest::mem::BASE;
use kselftest::sys::ioctl;
use kselftest::sys::State;
use kselftest::task::settle;
use kselftest::task::worker_of;
use kselftest::tracefs::Event;
use kselftest::tracefs::Trace;
use kselftest::*;

/// The events of a name.
fn named<'a>(events: &'a [Event], name: &str) -> Vec<&'a Event> {
    events.iter().filter(|e| e.name == name).collect()
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|e| e.name.as_str()).collect()
}

fn sum(events: &[Event], name: &str, field: &str) -> Res<u64> {
    named(events, name).iter().map(|e| e.number(field)).sum()
}

/// What tools were written for comes first, by its old name.
fn fields() -> Res {
    let trace = Trace::new()?;
    let ends = ["total_len", "owner", "queue", "avail", "used"];
    let want: [(&str, &[&str]); 9] = [
        ("rx_end", &[&["recv_pkts"], &ends[..]].concat()),
        ("tx_end", &[&["sent_pkts"], &ends[..]].concat()),
        ("kick", &["owner", "worker", "queue"]),
        ("work", &["owner", "queue", "cause", "since_kick"]),
        ("call", &["owner", "queue", "used", "signalled"]),
        ("drop", &["owner", "queue", "reason", "packets", "len"]),
        ("stop", &["owner", "queue", "error", "reason"]),
        ("iotlb_miss", &["owner", "queue", "iova", "access"]),
        (
            "zerocopy_done",
            &["owner", "queue", "sent", "copied", "in_flight"],
        ),
    ];
    for (event, fields) in want {
        check_eq!(trace.fields(event)?, fields, "{event}");
    }
    Ok(())
}

/// A packet at a time: its kick, the turn that it causes, the end of that, the call.
fn order() -> Res {
    for kernel_thread in [false, true] {
        let mut g = Guest::new(Config {
            kernel_thread,
            ..Config::default()
        })?;
        g.send_all(&[frame(1, 60)])?;
        settle(&g)?;
        let trace = Trace::new()?;
        let worker = worker_of(std::process::id() as i32, kernel_thread)?;
        let worker = worker.file_name().and_then(|n| n.to_str()?.parse().ok());
        let worker: i32 = worker.ok_or(Fail("no worker".into()))?;
        for i in 0..20 {
            trace.clear()?;
            let before = g.tx.device_idx();
            let len = 60 + i;
            g.send_all(&[frame(i as u32, len)])?;
            settle(&g)?;
            let events = trace.of_queue(TX)?;
            check_eq!(names(&events), ["kick", "work", "tx_end", "call"], "{i}");
            let [kick, work, end, call] = &events[..] else {
                bail!("not four events");
            };
            check_eq!(kick.number("worker")?, worker as u64);
            check_eq!(kick.thread, std::process::id() as i32, "who kicked");
            for e in [work, end, call] {
                check_eq!(e.thread, worker, "who passed {}", e.name);
            }
            check_eq!(work.field("cause")?, "kick|woken");
            let since = Duration::from_nanos(work.number("since_kick")?);
            check!(
                !since.is_zero() && since < patience(),
                "{since:?} since the kick"
            );
            check_eq!(end.number("sent_pkts")?, 1);
            check_eq!(end.number("total_len")?, len as u64);
            check_eq!(end.number("avail")?, u64::from(g.tx.avail_idx));
            // It is given to the guest behind the end.
            check_eq!(end.number("used")?, u64::from(before));
            check_eq!(call.number("used")?, u64::from(g.tx.device_idx()));
            check!(call.text.ends_with("signalled"), "{}", call.text);
        }
    }
    Ok(())
}

/// The same for packets to the guest, whose turn is the tap's doing.
fn order_to_the_guest() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.receive_all(&[frame(1, 60)])?;
    let b = g.buffer(2000);
    g.rx.add(&[b]);
    g.rx.submit();
    settle(&g)?;
    let trace = Trace::new()?;
    for i in 0..20 {
        trace.clear()?;
        g.peer.send(&frame(i, 100))?;
        g.rx.wait()?;
        settle(&g)?;
        let events = trace.of_queue(RX)?;
        check_eq!(names(&events)[..3], ["work", "rx_end", "call"], "{i}");
        check_eq!(events[0].field("cause")?, "ready|woken");
        check_eq!(events[0].number("since_kick")?, 0);
        check_eq!(sum(&events, "rx_end", "recv_pkts")?, 1);
        check_eq!(sum(&events, "rx_end", "total_len")?, 100);
        check_eq!(named(&events, "call").len(), 1);
        let b = g.buffer(2000);
        g.rx.add(&[b]);
        g.rx.submit();
        settle(&g)?;
    }
    Ok(())
}

/// A stream each way: the events add up to what was sent, and to what the counters say.
fn stream() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut g = Guest::new(Config::with(features))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        let mut traffic = Traffic::new(&g, area);
        let before = Before::of(&g)?;
        let trace = Trace::new()?;
        traffic.run(&mut g, 500)?;
        settle(&g)?;
        for (queue, name, end, packets) in [
            (RX, "rx", "rx_end", "recv_pkts"),
            (TX, "tx", "tx_end", "sent_pkts"),
        ] {
            let events = trace.of_queue(queue)?;
            let grown = |key: &str| before.grown(&g, &format!("{name}-{key}"));
            check_eq!(sum(&events, end, packets)?, 500, "{name}");
            check_eq!(grown("packets")?, 500, "{name}");
            check_eq!(sum(&events, end, "total_len")?, grown("bytes")?, "{name}");
            let calls = named(&events, "call");
            let signalled = calls.iter().filter(|e| e.text.ends_with("signalled"));
            let signalled = signalled.count() as u64;
            check_eq!(signalled, grown("calls")?, "{name}");
            let suppressed = calls.len() as u64 - signalled;
            check_eq!(suppressed, grown("calls-suppressed")?, "{name}");
            let work = named(&events, "work");
            check_eq!(work.len() as u64, grown("turns")?, "{name}");
            let of = |cause: &str| {
                let has = |e: &&&Event| e.field("cause").is_ok_and(|c| c.contains(cause));
                work.iter().filter(has).count() as u64
            };
            check_eq!(of("kick"), grown("kicks")?, "{name}");
            check_eq!(of("woken"), grown("wakeups")?, "{name}");
            // Those that come close together cause one turn.
            let kicks = named(&events, "kick").len() as u64;
            check!(kicks >= grown("kicks")?, "{name}: {kicks} kicks");
            // Each turn ends, before anything is called.
            let mut ended = true;
            for e in &events {
                match e.name.as_str() {
                    "work" => {
                        check!(ended, "{name}: a turn without an end");
                        ended = false;
                    }
                    name if name == end => ended = true,
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

/// Packets that are lost, by reason.
fn drops() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.send_all(&[frame(1, 60)])?;
    let before = Before::of(&g)?;
    let trace = Trace::new()?;
    let good = frame(2, 60);
    // Shorter than its header.
    let at = g.place(&good);
    g.tx.add(&[Seg::r(at, 5)]);
    g.tx.submit();
    g.tx.wait()?;
    // A checksum far outside.
    let at = g.place(&good);
    g.mem.write(at, &[1, 0, 0, 0, 0, 0, 0xff, 0x7f, 0, 0]);
    g.tx.add(&[Seg::r(at, g.hdr + good.len())]);
    g.tx.submit();
    g.tx.wait()?;
    // Too long for its buffer.
    let b = g.buffer(100);
    g.rx.add(&[b]);
    g.rx.submit();
    g.peer.send(&frame(1, 500))?;
    g.peer.send(&frame(2, 60))?;
    g.rx.wait()?;
    settle(&g)?;
    let events = trace.events()?;
    let drops = named(&events, "drop");
    let told: Vec<_> = drops.iter().map(|e| e.text.clone()).collect();
    let want = [(1, "short"), (1, "header"), (0, "too-long")];
    check_eq!(drops.len(), want.len(), "{told:?}");
    for (e, (queue, reason)) in drops.iter().zip(want) {
        check_eq!(e.number("queue")?, queue, "{told:?}");
        check_eq!(e.field("reason")?, reason, "{told:?}");
        check_eq!(e.number("packets")?, 1, "{told:?}");
    }
    check_eq!(drops[2].number("len")?, 500);
    before.only(
        &g,
        "tx",
        &["drops-"],
        &[("drops-short", 1), ("drops-header", 1)],
    )?;
    before.only(&g, "rx", &["drops-"], &[("drops-too-long", 1)])
}

/// A ring that is broken, with its reason in words.
fn stop() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.send_all(&[frame(1, 60)])?;
    let before = Before::of(&g)?;
    let trace = Trace::new()?;
    let at = g.mem.alloc(64, 16);
    g.tx.add(&[Seg::w(at, 64)]);
    g.tx.submit();
    g.tx.wait_err()?;
    settle(&g)?;
    let events = trace.of_queue(TX)?;
    let stops = named(&events, "stop");
    check_eq!(stops.len(), 1, "{:?}", names(&events));
    check_eq!(
        stops[0].text,
        format!(
            "owner={} queue=1 error=-22 reason=a buffer to transmit is writable",
            std::process::id()
        )
    );
    before.only(&g, "tx", &["stops-"], &[("stops-malformed", 1)])
}

/// Addresses that the IOTLB does not know.
fn miss() -> Res {
    let mut g = Guest::stopped(Config {
        regions: vec![(BASE, 4 << 20)],
        ..Config::with(VERSION_1 | ACCESS_PLATFORM)
    })?;
    for r in [&g.rx, &g.tx] {
        let n = u64::from(r.num);
        for (gpa, len) in [(r.used, 4 + 8 * n), (r.avail, 4 + 2 * n), (r.desc, 16 * n)] {
            update(&g.net, gpa, len, g.mem.hva(gpa).0 as u64, RW)?;
        }
    }
    nonblocking(&g.net, true);
    g.start()?;
    let before = Before::of(&g)?;
    let trace = Trace::new()?;
    let at = g.place(&frame(1, 60));
    g.tx.add(&[Seg::r(at, g.hdr + 60)]);
    g.tx.submit();
    check_eq!(wait_miss(&g.net)?, Msg::miss(at, RO));
    settle(&g)?;
    let events = trace.of_queue(TX)?;
    let misses = named(&events, "iotlb_miss");
    check_eq!(misses.len(), 1, "{:?}", names(&events));
    check_eq!(misses[0].field("iova")?, format!("{at:#x}"));
    check_eq!(misses[0].field("access")?, "read");
    before.only(
        &g,
        "tx",
        &["iotlb-misses", "stops-"],
        &[("iotlb-misses", 1)],
    )
}

/// What comes while a queue is polled needs no kick, and is a stretch of the same turn.
fn polling() -> Res {
    let mut g = Guest::stopped(Config::default())?;
    let state = State {
        index: TX as u32,
        num: 1_000_000,
    };
    check_eq!(ioctl(&g.net, sys::SET_VRING_BUSYLOOP_TIMEOUT, &state), 0);
    g.start()?;
    let trace = Trace::new()?;
    let at: Vec<_> = (0..10).map(|i| g.place(&frame(i, 60))).collect();
    for (i, at) in at.into_iter().enumerate() {
        g.tx.add(&[Seg::r(at, g.hdr + 60)]);
        g.tx.publish();
        if i == 0 {
            g.tx.kick();
        }
        g.tx.spin()?;
    }
    let map = counters::info(&g.net)?;
    check!(counters::number(&map, "tx-poll-hits")? >= 9, "{map:?}");
    let events = trace.of_queue(TX)?;
    check_eq!(sum(&events, "tx_end", "sent_pkts")?, 10);
    check_eq!(named(&events, "kick").len(), 1);
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("fields", fields),
        ("order", order),
        ("order_to_the_guest", order_to_the_guest),
        ("stream", stream),
        ("drops", drops),
        ("stop", stop),
        ("miss", miss),
        ("polling", polling),
    ];
    if sys::on_c() {
        println!("KTAP version 1\n1..0 # SKIP the C driver has no tracepoints");
        return;
    }
    ktap::run(TESTS)
}
