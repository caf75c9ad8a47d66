// SPDX-License-Identifier: GPL-2.0

//! The holes that vhost-net had in the past stay shut: a test each, named after it, in the shape of the attack.
//!
//! Each comment ends with how the test was seen to fail: which guard was taken out of which file.

use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use kselftest::dirty::pages_of;
use kselftest::dirty::Bitmap;
use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::iotlb;
use kselftest::iotlb::Msg;
use kselftest::ktap::Test;
use kselftest::mem::BASE;
use kselftest::net::bridge;
use kselftest::net::Plug;
use kselftest::ring::INDIRECT as TABLE;
use kselftest::sys::ioctl;
use kselftest::sys::module_users;
use kselftest::sys::on_c;
use kselftest::sys::reload;
use kselftest::sys::until;
use kselftest::sys::Region;
use kselftest::sys::VringFile;
use kselftest::task::settle;
use kselftest::*;
use vhost::net::VhostNet;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const PAGE: u64 = 4096;

/// Bit 1 of the backend features: messages are of the second version.
const BACKEND_V2: u64 = 1 << 1;

/// Offers packets and buffers that are good, and has them moved.
fn works(g: &mut Guest) -> Res {
    g.send_all(&[frame(1, 60), frame(2, 3000)])?;
    g.receive_all(&[frame(3, 60), frame(4, 3000)])
}

/// The queue has stopped, and nothing was used.
fn stopped(ring: &Ring, what: &str) -> Res {
    ring.wait_err()
        .map_err(|Fail(why)| Fail(format!("{what}: {why}")))?;
    check_eq!(ring.device_idx(), ring.used_idx, "{what}: used index");
    Ok(())
}

/// A buffer that starts in a region and is longer than it: its length was compared with nothing, and what the
/// VMM has behind the region was the guest's to read and write.
///
/// Seen red: `Maps::translate` (memtable.rs) takes all of `left` at once, whatever the map's end.
fn cve_2013_0311() -> Res {
    const SIZE: u64 = 4 << 20;
    let cfg = Config {
        regions: vec![(BASE, SIZE)],
        ..Config::with(VERSION_1 | INDIRECT)
    };
    let mut g = Guest::stopped(cfg)?;
    let at = |gpa: u64| g.mem.hva(gpa).0 as u64;
    // The last page but one is not the guest's: it has the VMM's secret. Where the guest believes it to be,
    // it finds the last page; and behind that, nothing.
    let (end, moved) = (BASE + SIZE - 2 * PAGE, BASE + SIZE - PAGE);
    g.mem.fill(end, PAGE as usize, 0x5c);
    let table = [
        Region {
            gpa: BASE,
            size: SIZE - 2 * PAGE,
            hva: at(BASE),
            flags: 0,
        },
        Region {
            gpa: end,
            size: PAGE,
            hva: at(moved),
            flags: 0,
        },
    ];
    let table = sys::mem_table(2, 0, &table);
    check_eq!(ioctl(&g.net, sys::SET_MEM_TABLE, table.as_ptr()), 0);
    g.start()?;

    for before in [1usize, 11, 12, 13, 100, 599] {
        // Sent: the start from the one region, the rest from the other.
        let p = frame(before as u32, 600);
        let all = [vec![0; g.hdr], p.clone()].concat();
        let start = end - before as u64;
        g.mem.write(start, &all[..before]);
        g.mem.write(moved, &all[before..]);
        g.mem.fill(end, PAGE as usize, 0x5c);
        g.tx.add(&[Seg::r(start, all.len())]);
        g.tx.submit();
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "packet from two regions")?;
        // Received, the same way.
        g.mem.fill(moved, PAGE as usize, 0);
        g.rx.add(&[Seg::w(start, all.len())]);
        g.rx.submit();
        g.peer.send(&p)?;
        check_eq!(g.rx.wait()?.len as usize, all.len());
        let got = [
            g.mem.read(start, before),
            g.mem.read(moved, all.len() - before),
        ]
        .concat();
        same(&got[g.hdr..], &p, "packet into two regions")?;
        secret(&g, end)?;
    }

    // Behind the last region there is nothing, in either direction, and no table either.
    let last = end + PAGE;
    for (before, len) in [
        (1, 100),
        (100, 600),
        (100, 1 << 20),
        (4000, u32::MAX as usize),
    ] {
        let start = last - before;
        for i in 0..3 {
            let base = g.tx.avail_idx;
            let ring = if i == 1 { &mut g.rx } else { &mut g.tx };
            let seg = match i {
                0 => (start, len as u32, 0),
                1 => (start, len as u32, ring::WRITE),
                _ => (start & !15, (len as u32 & !15).max(256), TABLE),
            };
            ring.add_raw(&[seg]);
            ring.submit();
            if i == 1 {
                g.peer.send(&frame(9, 400))?;
            }
            let ring = if i == 1 { &g.rx } else { &g.tx };
            stopped(ring, &format!("{len} bytes, {before} in memory, case {i}"))?;
            check!(g.peer.try_recv().is_none(), "something was sent");
            secret(&g, end)?;
            // The packet that was not received goes first when the queue starts again: it has to have a buffer.
            g.stop()?;
            g.rx.reset(base);
            g.tx.reset(base);
            g.set_vring(RX)?;
            g.set_vring(TX)?;
            if i == 1 {
                let b = g.buffer(1000);
                g.rx.add(&[b]);
                g.rx.submit();
            }
            g.start()?;
            if i == 1 {
                g.rx.wait()?;
            }
        }
    }
    works(&mut g)
}

/// What is between the regions is as it was.
fn secret(g: &Guest, at: u64) -> Res {
    let page = g.mem.read(at, PAGE as usize);
    check!(
        page.iter().all(|&b| b == 0x5c),
        "the device wrote what is not the guest's"
    );
    Ok(())
}

/// Runs a test with packets that are sent from the guest's memory.
fn with_zerocopy(test: fn() -> Res) -> Res {
    let again = |parameters: &str| -> Res {
        check!(until(|| module_users() == Some(0)), "the module is in use");
        reload(parameters)
    };
    again("experimental_zcopytx=1")?;
    let result = test();
    again("")?;
    result
}

/// The backend is another one while packets are on their way from guest memory: the old one's counter of such
/// packets was freed, and then used by a flush.
///
/// Seen red: `InFlight::wait` (sys/ubuf.rs) returns at once.
fn cve_2013_4127() -> Res {
    with_zerocopy(|| {
        for round in 0..8 {
            swap_in_flight(round)?;
        }
        Ok(())
    })
}

fn swap_in_flight(round: u32) -> Res {
    let mut g = Guest::stopped(Config::default())?;
    g.peer = Peer::sender(g.tap.index, false)?;
    let other = Tap::new("tap2", g.hdr)?;
    let mut other_peer = Peer::new(other.index, false)?;
    let mut plug = Plug::new("tap1", 0)?;
    // The one of the round before may still be there.
    bridge(&format!("br{round}"), &[&g.tap, &plug.tap])?;
    g.start()?;
    let packets: Vec<_> = (0..20).map(|i| frame(100 * round + i, 2000)).collect();
    for p in &packets {
        let at = g.place(p);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
    }
    g.tx.submit();
    // What is copied is used at once: the device has seen the others then.
    let (small, at) = (frame(99, 60), g.place(&frame(99, 60)));
    g.tx.add(&[Seg::r(at, g.hdr + small.len())]);
    g.tx.submit();
    g.tx.wait()?;
    check_eq!(g.tx.device_idx(), 1, "how many were used");

    let (swapped, thread) = (AtomicBool::new(false), AtomicI32::new(0));
    let table = g.mem.regions().to_vec();
    let (early, got, result) = std::thread::scope(|s| {
        let (net, tap, swapped, thread) = (&g.net, &other.fd, &swapped, &thread);
        let swap = s.spawn(move || -> Res {
            // SAFETY: has no arguments.
            thread.store(unsafe { libc::gettid() }, SeqCst);
            net.set_backend(TX, Some(tap))?;
            swapped.store(true, SeqCst);
            // These flush what there is, and what there was.
            for _ in 0..20 {
                net.set_mem_table(&Mem::table(&table))?;
            }
            Ok(())
        });
        let asleep = || sys::asleep_in_ioctl(thread.load(SeqCst));
        let begun = until(|| swapped.load(SeqCst) || asleep());
        // It could be asleep for another reason, for a moment. (A swap that is over still later shows in what was used.)
        std::thread::sleep(std::time::Duration::from_millis(100));
        let early = swapped.load(SeqCst) || !begun;
        let got: Res<Vec<_>> = packets.iter().map(|_| plug.recv()).collect();
        (early, got, swap.join().unwrap())
    });
    result?;
    check!(
        !early,
        "the backend was exchanged while packets were on their way"
    );
    for (got, p) in got?.iter().zip(&packets) {
        same(got, p, "packet that was on its way")?;
    }
    check_eq!(g.tx.device_idx(), 21, "used at the end");
    while g.tx.pop().is_some() {}
    std::mem::swap(&mut g.peer, &mut other_peer);
    // The other tap's peer keeps what it has not read, and reads at once.
    g.send_all(&[frame(1, 60), frame(2, 200)])
}

/// A chain of a packet that is wrong, behind one that is right: the error was taken for a number of chains.
///
/// Seen red: `receive` (vhost_net.rs) takes an error of `next_chain` for the end of the ring; and with
/// `Take::drop` (vring.rs) that does not give back what was taken.
fn cve_2014_0055() -> Res {
    for features in [
        MRG_RXBUF | VERSION_1,
        MRG_RXBUF | EVENT_IDX,
        MRG_RXBUF | INDIRECT,
    ] {
        let mut g = Guest::new(Config::with(features))?;
        for i in 0..60u32 {
            let p = frame(i, 3000);
            let good: Vec<_> = (0..3).map(|_| g.buffer(1500)).collect();
            let heads: Vec<_> = good.iter().map(|b| g.rx.add(&[*b])).collect();
            // The second or the third of three is out of memory, in one of several ways.
            let bad = heads[1 + i as usize % 2];
            let b = good[1 + i as usize % 2];
            let (addr, len, flags, next) = match i / 2 % 6 {
                0 => (1 << 40, 1500, ring::WRITE, 0),
                1 => (u64::MAX - 10, 1500, ring::WRITE, 0),
                2 => (b.gpa, u32::MAX, ring::WRITE, 0),
                3 => (b.gpa, 100, ring::WRITE | ring::NEXT, g.rx.num),
                4 => (b.gpa, 100, ring::WRITE | ring::NEXT, bad),
                _ => (b.gpa, 17, TABLE, 0),
            };
            g.rx.put_desc(g.rx.desc, bad, addr, len, flags, next);
            g.rx.submit();
            g.peer.send(&p)?;
            stopped(&g.rx, &format!("case {i}"))?;
            // No packet was lost by that, and no buffer: made good, they have it.
            g.rx.put_desc(g.rx.desc, bad, b.gpa, b.len, ring::WRITE, 0);
            g.rx.kick();
            let mut got = vec![];
            for (head, b) in heads.iter().zip(&good) {
                let u = g.rx.wait()?;
                check_eq!(u.id, u32::from(*head), "case {i}: the order of the buffers");
                got.extend(g.mem.read(b.gpa, u.len as usize));
            }
            g.check_rx_hdr(&got, 3)?;
            same(&got[g.hdr..], &p, "packet")?;
            while g.rx.err.read().is_ok() {}
        }
        g.send_all(&[frame(1, 60)])?;
    }
    Ok(())
}

/// A packet that is longer than the buffers there are: without mergeable buffers nobody looked, and the rest
/// was written behind them.
///
/// Seen red: `receive` (vhost_net.rs) goes on when `room < len`.
fn cve_2014_0077() -> Res {
    for features in [
        VERSION_1,
        0,
        VHOST_NET_HDR,
        VHOST_NET_HDR | VERSION_1,
        EVENT_IDX,
    ] {
        let mut g = Guest::new(Config::with(features))?;
        for (room, len) in [
            (20, 60),
            (100, 100),
            (100, 5000),
            (1500, 1514),
            (1500, 65000),
            (60, 60),
        ] {
            let area = g.mem.alloc(1 << 17, PAGE);
            g.mem.fill(area, 1 << 17, 0xa5);
            let head = g.rx.add(&[Seg::w(area, room)]);
            g.rx.submit();
            g.peer.send(&frame(1, len))?;
            if room > 40 {
                // What fits comes behind it, and has the buffer that the first one did not get.
                let small = frame(2, room - g.hdr - 10);
                g.peer.send(&small)?;
                let u = g.rx.wait()?;
                check_eq!(
                    (u.id, u.len as usize),
                    (u32::from(head), g.hdr + small.len())
                );
                let got = g.mem.read(area, 1 << 17);
                same(&got[g.hdr..room - 10], &small, "the packet that fits")?;
                check!(
                    got[room..].iter().all(|&b| b == 0xa5),
                    "{len} bytes ran over {room}"
                );
            } else {
                settle(&g)?;
                check_eq!(g.rx.device_idx(), g.rx.used_idx, "used index");
                let got = g.mem.read(area, 1 << 17);
                // The C driver writes one byte of what it drops.
                let from = usize::from(on_c());
                check!(
                    got[from..].iter().all(|&b| b == 0xa5),
                    "{len} bytes ran into {room}"
                );
                g.restart(0)?;
            }
        }
        works(&mut g)?;
    }
    // With them: more than all of them hold, which can't be known before all were taken.
    let mut g = Guest::new(Config::with(VERSION_1 | MRG_RXBUF))?;
    let area = g.mem.alloc(1 << 16, PAGE);
    g.mem.fill(area, 1 << 16, 0xa5);
    for i in 0..4 {
        g.rx.add(&[Seg::w(area + 0x1000 * i, 500)]);
    }
    g.rx.submit();
    g.peer.send(&frame(1, 2500))?;
    settle(&g)?;
    check_eq!(g.rx.device_idx(), 0, "used index");
    check!(
        g.mem.read(area, 1 << 16).iter().all(|&b| b == 0xa5),
        "a packet in part"
    );
    g.rx.add(&[Seg::w(area + 0x4000, 1000)]);
    g.rx.submit();
    let lens: Vec<_> = (0..5)
        .map(|_| g.rx.wait().map(|u| u.len))
        .collect::<Res<_>>()?;
    check_eq!(lens, [500, 500, 500, 500, 2500 + g.hdr as u32 - 2000]);
    let got = g.mem.read(area, 1 << 16);
    for i in 0..5 {
        let end = if i == 4 { lens[4] as usize } else { 500 };
        let behind = &got[0x1000 * i + end..0x1000 * (i + 1)];
        check!(behind.iter().all(|&b| b == 0xa5), "bytes behind buffer {i}");
    }
    Ok(())
}

/// The number that an eventfd has while anyone holds it.
fn id(event: &EventFd) -> Res<u32> {
    let path = format!("/proc/self/fdinfo/{}", event.as_raw_fd());
    let text = std::fs::read_to_string(path)?;
    let line = text.lines().find_map(|l| l.strip_prefix("eventfd-id:"));
    Ok(line.unwrap_or_default().trim().parse()?)
}

/// How many files the machine has open.
fn files() -> Res<i64> {
    let text = std::fs::read_to_string("/proc/sys/fs/file-nr")?;
    Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
}

/// Each eventfd that the log was to be signalled at stayed open for ever: the reference was kept. An
/// eventfd's number is given to another one when the last who held it lets go.
///
/// Seen red: `EventFdCtx` (sys/eventfd.rs) without its `Drop`; and `EventFdFile` without its `Drop`.
fn cve_2015_6252() -> Res {
    const TIMES: u32 = 600;
    let g = Guest::new(Config::default())?;
    let index = |fd: i32| VringFile { index: 0, fd };
    for what in 0..4 {
        let (first, open) = (id(&EventFd::new(EFD_NONBLOCK)?)?, files()?);
        for i in 0..TIMES {
            let event = EventFd::new(EFD_NONBLOCK)?;
            let fd = event.as_raw_fd();
            let e = match what {
                0 => ioctl(&g.net, sys::SET_LOG_FD, &fd),
                1 => ioctl(&g.net, sys::SET_VRING_CALL, &index(fd)),
                2 => ioctl(&g.net, sys::SET_VRING_ERR, &index(fd)),
                _ => ioctl(&g.net, sys::SET_VRING_KICK, &index(fd)),
            };
            check_eq!(e, 0, "eventfd {i} of kind {what}");
            drop(event);
            // A thing that is no eventfd, or is not there, changes nothing.
            if what == 0 {
                let e = ioctl(&g.net, sys::SET_LOG_FD, &g.tap.fd.as_raw_fd());
                check_eq!(e, libc::EINVAL, "a tap for an eventfd");
                check_eq!(ioctl(&g.net, sys::SET_LOG_FD, &9999), libc::EBADF);
            }
        }
        let now = id(&EventFd::new(EFD_NONBLOCK)?)?;
        check!(
            now < first + TIMES / 3,
            "kind {what}: {} eventfds are held",
            now - first
        );
        let more = files()? - open;
        check!(
            more < i64::from(TIMES) / 3,
            "kind {what}: {more} files more than before"
        );
    }
    Ok(())
}

/// A guest that has everything but the mapping of what it sends.
fn unmapped() -> Res<Guest> {
    let g = Guest::stopped(Config {
        regions: vec![(BASE, 4 << 20)],
        ..Config::with(VERSION_1 | ACCESS_PLATFORM)
    })?;
    map_rings(&g)?;
    g.start()?;
    iotlb::nonblocking(&g.net, true);
    Ok(g)
}

fn map_rings(g: &Guest) -> Res {
    for ring in [&g.rx, &g.tx] {
        for at in [ring.desc, ring.avail, ring.used] {
            iotlb::update(&g.net, at, PAGE, g.mem.hva(at).0 as u64, iotlb::RW)?;
        }
    }
    Ok(())
}

/// Messages of a version say what they are to say, and have nothing else in them.
fn messages(version: u64) -> Res {
    let mut g = unmapped()?;
    check_eq!(ioctl(&g.net, sys::SET_BACKEND_FEATURES, &version), 0);
    for i in 0..200u32 {
        let p = frame(i, 100);
        let at = g.place(&p);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
        g.tx.submit();
        let got = iotlb::wait_miss(&g.net)?;
        let want = Msg::miss(at, iotlb::RO);
        let want = if version == 0 { want } else { want.v2() };
        check_eq!(got.bytes(), want.bytes(), "message {i}");
        let (from, len) = (at, (g.hdr + p.len()) as u64);
        iotlb::update(&g.net, from, len, g.mem.hva(at).0 as u64, iotlb::RO)?;
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "packet")?;
        iotlb::invalidate(&g.net, from, len)?;
    }
    Ok(())
}

/// A message that was read had bytes of the kernel's heap behind what it says.
///
/// Seen red: `Misses::read` (messages.rs) with other bytes than zeroes in the message's `padding`.
fn cve_2018_1118() -> Res {
    messages(0)
}

/// The same, in the hole of a message of the second version.
///
/// Seen red: `Misses::read` (messages.rs) with an `asid`, and with a `padding` in the inner structure, that
/// is not 0.
fn cve_2024_0340() -> Res {
    messages(BACKEND_V2)
}

/// A guest that makes packets available for ever, or a host that has packets for ever, kept the worker in one
/// queue for ever.
///
/// Seen red: `Moved::is_enough` (vhost_net.rs) returns false.
fn cve_2019_3900() -> Res {
    // Sent: as soon as there is room it is full again. The kicks are for a feeder that was too slow, and found the
    // device asleep.
    for &features in some(&[VERSION_1, VERSION_1 | EVENT_IDX, 0]) {
        let mut g = Guest::new(Config::with(features))?;
        g.peer = Peer::sender(g.tap.index, false)?;
        let p = [vec![0; g.hdr], frame(1, 60)].concat();
        let at = g.mem.alloc(4096, 4096);
        g.mem.write(at, &p);
        for _ in 0..g.tx.num {
            g.tx.add(&[Seg::r(at, p.len())]);
        }
        let (stop, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
        let Guest {
            tx,
            rx,
            net,
            peer,
            mem,
            ..
        } = &mut g;
        let (tx, net) = (&*tx, &*net);
        let result = std::thread::scope(|s| {
            let feeder = || {
                let mut idx = tx.avail_idx;
                while !stop.load(SeqCst) {
                    let next = tx.device_idx().wrapping_add(tx.num);
                    if next != idx {
                        idx = next;
                        tx.publish_idx(idx);
                        tx.kick();
                        rounds.fetch_add(1, SeqCst);
                    }
                }
            };
            s.spawn(feeder);
            tx.publish_idx(tx.avail_idx);
            tx.kick();
            let result = (|| -> Res {
                check!(
                    until(|| rounds.load(SeqCst) > 50),
                    "the guest can't keep the device busy"
                );
                // The other queue has its turn, the VMM its queue, and the counters go on.
                for i in 0..20 {
                    let b = mem.alloc(1600, 16);
                    rx.add(&[Seg::w(b, 1600)]);
                    rx.submit();
                    peer.send(&frame(i, 100))?;
                    rx.wait()?;
                    net.set_vring_call(TX, &tx.call)?;
                    net.get_vring_base(TX)?;
                    check_eq!(ioctl(net, sys::SET_LOG_FD, &-1i32), 0);
                }
                net.set_backend(TX, None)?;
                Ok(())
            })();
            stop.store(true, SeqCst);
            result
        });
        result?;
        check!(g.tx.err.read().is_err(), "an error was signalled");
    }
    endless_rx()?;
    // And a process may end while it does so.
    for _ in some(&[(); 5]) {
        let status = sys::in_child(|| {
            let busy = || -> Res {
                let mut g = Guest::new(Config::default())?;
                let at = g.place(&frame(1, 60));
                for _ in 0..g.tx.num {
                    g.tx.add(&[Seg::r(at, g.hdr + 60)]);
                }
                g.tx.submit();
                for _ in 0..amount(200_000) {
                    g.tx.publish_idx(g.tx.device_idx().wrapping_add(g.tx.num));
                }
                Ok(())
            };
            i32::from(busy().is_err())
        })?;
        check_eq!(status, 0, "the busy child");
    }
    Ok(())
}

/// A packet socket with more packets than a turn moves: the other queue does not wait for the last.
fn endless_rx() -> Res {
    const COUNT: u16 = 16384;
    for attempt in 0..20 {
        let mut g = Guest::stopped(Config {
            rx_num: COUNT,
            ..Config::with(VERSION_1 | VHOST_NET_HDR)
        })?;
        let socket = Peer::new(g.tap.index, false)?;
        let area = g.mem.alloc(256 * usize::from(COUNT), PAGE);
        for i in 0..COUNT {
            g.rx.add(&[Seg::w(area + 256 * u64::from(i), 256)]);
        }
        g.rx.publish();
        // What is written to the tap's file comes in at its interface.
        let p = frame(1, 60);
        for _ in 0..COUNT {
            check_eq!(std::io::Write::write(&mut (&g.tap.fd), &p)?, p.len());
        }
        let sent = g.place(&frame(2, 60));
        g.tx.add(&[Seg::r(sent, g.hdr), Seg::r(sent + g.hdr as u64, 60)]);
        g.net.set_backend(TX, Some(&socket.fd))?;
        g.net.set_backend(RX, Some(&socket.fd))?;
        let begun = until(|| g.rx.device_idx() > 0);
        check!(begun, "nothing was received");
        g.tx.submit();
        g.tx.kick();
        let late = g.rx.device_idx();
        g.tx.spin()?;
        let then = g.rx.device_idx();
        println!("# attempt {attempt}: kicked after {late} packets, sent after {then}");
        check!(
            until(|| g.rx.device_idx() == COUNT),
            "not all were received"
        );
        // A machine that was busy with something else proves nothing.
        if then < COUNT {
            return Ok(());
        }
    }
    bail!("nothing was sent while there was something to receive");
}

/// While the guest's memory is logged: more buffers in a table than the list of what was written has room
/// for. Empty ones took no room among the buffers, but some there.
///
/// Seen red: `Parts::add` (vring.rs) without its `filter`, so that empty buffers are listed.
fn cve_2019_14835() -> Res {
    for mrg in [0, MRG_RXBUF] {
        let mut g = Guest::stopped(Config::with(VERSION_1 | INDIRECT | LOG_ALL | mrg))?;
        let log = Bitmap::new(0x1000_0000, 5)?;
        check_eq!(log.install(&g), 0, "SET_LOG_BASE");
        g.start()?;
        let table = g.mem.alloc(16 << 14, PAGE);
        let area = g.mem.alloc(1 << 20, PAGE);
        for (i, empty) in [0usize, 1, 1023, 1024, 1025, 4000, 16000]
            .into_iter()
            .enumerate()
        {
            let mut segs = vec![Seg::w(area + 64, 0); empty];
            // What is not empty lies at the end, far behind where the list would have ended.
            segs.push(Seg::w(area + 0x8000, 50));
            segs.push(Seg::w(area + 0x1_0000, 2000));
            log.take()?;
            g.rx.add_indirect(&segs, table);
            g.rx.submit();
            let p = frame(i as u32, 1000);
            g.peer.send(&p)?;
            let u = g.rx.wait()?;
            check_eq!(
                u.len as usize,
                g.hdr + p.len(),
                "used, behind {empty} empty buffers"
            );
            let got = [
                g.mem.read(area + 0x8000, 50),
                g.mem.read(area + 0x1_0000, 2000),
            ]
            .concat();
            same(&got[g.hdr..u.len as usize], &p, "packet")?;
            settle(&g)?;
            let rest = u.len as usize - 50;
            let want = pages_of(area + 0x8000, 50)
                .chain(pages_of(area + 0x1_0000, rest))
                .collect();
            check_eq!(log.take()?, want, "pages, behind {empty} empty buffers");
        }
        // More than there is room for that are not empty: refused, and nothing is marked.
        for count in [1025usize, 2000, 16000] {
            let segs: Vec<_> = (0..count).map(|i| Seg::w(area + 8 * i as u64, 1)).collect();
            g.rx.add_indirect(&segs, table);
            g.rx.submit();
            g.peer.send(&frame(7, 1000))?;
            stopped(&g.rx, &format!("{count} buffers of a byte"))?;
            settle(&g)?;
            check!(log.take()?.is_empty(), "pages of nothing");
            g.restart(0)?;
            // The packet is still there.
            let b = g.buffer(2000);
            g.rx.add(&[b]);
            g.rx.submit();
            check_eq!(g.rx.wait()?.len as usize, g.hdr + 1000);
            settle(&g)?;
            log.take()?;
        }
    }
    Ok(())
}

/// A socket of a family and a type, bound if `name` is given.
fn socket(family: i32, kind: i32, protocol: i32, name: &[u8]) -> Res<OwnedFd> {
    // SAFETY: creates a descriptor.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    check!(
        fd >= 0,
        "socket {family} {kind}: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: the descriptor is new.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if !name.is_empty() {
        // SAFETY: the name is of that length.
        let r = unsafe { libc::bind(fd.as_raw_fd(), name.as_ptr().cast(), name.len() as u32) };
        check!(r == 0, "bind: {}", std::io::Error::last_os_error());
    }
    Ok(fd)
}

/// A socket of another family for a backend: its name was written to a place for a name of packet sockets,
/// which is shorter.
///
/// Seen red: `Socket::packet_from_fd` (sys/socket.rs) without its look at the type and the family.
fn cve_2020_10942() -> Res {
    let mut g = Guest::new(Config::default())?;
    // The longest name that there is, and one that no file system has.
    let mut unix = vec![0x41; 110];
    unix[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
    unix[2] = 0;
    let (stream, datagram, raw) = (libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW);
    let mut sockets = vec![
        ("unix stream", socket(libc::AF_UNIX, stream, 0, &unix)?),
        ("unix raw", socket(libc::AF_UNIX, raw, 0, &[])?),
        ("ip stream", socket(libc::AF_INET, stream, 0, &[])?),
        ("ip datagram", socket(libc::AF_INET, datagram, 0, &[])?),
        (
            "ip raw",
            socket(libc::AF_INET, raw, libc::IPPROTO_ICMP, &[])?,
        ),
        (
            "netlink raw",
            socket(libc::AF_NETLINK, raw, libc::NETLINK_ROUTE, &[])?,
        ),
        (
            "packet datagram",
            socket(libc::AF_PACKET, datagram, 0, &[])?,
        ),
    ];
    unix[20] = 0x42;
    sockets.push(("unix datagram", socket(libc::AF_UNIX, datagram, 0, &unix)?));
    for _ in 0..20 {
        for (name, fd) in &sockets {
            for index in [RX, TX] {
                let f = VringFile {
                    index: index as u32,
                    fd: fd.as_raw_fd(),
                };
                let e = ioctl(&g.net, sys::NET_SET_BACKEND, &f);
                check_eq!(e, libc::ENOTSOCK, "{name} for a backend");
            }
        }
    }
    // What it had is what it has.
    works(&mut g)?;
    // Nobody holds them: what they were bound to is free when they are closed.
    drop(sockets);
    socket(libc::AF_UNIX, datagram, 0, &unix).map(drop)
}

/// The file behind a descriptor is another one while the backend is set: it was looked up twice, and what the
/// one was had nothing to do with what was put.
///
/// Seen red: `Socket::tap_from_fd` (sys/socket.rs) gives its reference back and keeps the pointer. It is the kernel
/// that complains then, and the VM that fails.
fn cve_2023_1838() -> Res {
    let mut g = Guest::new(Config::default())?;
    let others = [Tap::new("tap1", g.hdr)?, Tap::new("tap2", g.hdr)?];
    let raw = Peer::new(kselftest::net::index("tap2")?, false)?;
    let event = EventFd::new(EFD_NONBLOCK)?;
    let null = std::fs::File::open("/dev/null")?;
    let slot = null.try_clone()?;
    let (n, stop) = (slot.as_raw_fd(), AtomicBool::new(false));
    let times = AtomicU32::new(0);
    let results = std::thread::scope(|s| {
        s.spawn(|| {
            let (a, b, raw) = (
                others[0].fd.as_raw_fd(),
                others[1].fd.as_raw_fd(),
                raw.fd.as_raw_fd(),
            );
            let (event, null) = (event.as_raw_fd(), null.as_raw_fd());
            let list = [g.tap.fd.as_raw_fd(), a, event, raw, b, null];
            while !stop.load(SeqCst) {
                for fd in list {
                    // SAFETY: the number is `slot`'s, which nothing is done with while this goes on.
                    unsafe {
                        libc::dup2(fd, n);
                        if times.fetch_add(1, SeqCst) % 3 == 0 {
                            libc::close(n);
                        }
                    }
                }
            }
        });
        let mut results = std::collections::BTreeMap::new();
        // Both have to get somewhere, and to meet.
        let end = deadline();
        for i in 0u32.. {
            let met = results.get(&0).is_some_and(|&good| good >= 100);
            if (met && i >= 6000 && times.load(SeqCst) > 2000) || std::time::Instant::now() > end {
                break;
            }
            let f = VringFile {
                index: i & 1,
                fd: n,
            };
            *results
                .entry(ioctl(&g.net, sys::NET_SET_BACKEND, &f))
                .or_insert(0u32) += 1;
        }
        stop.store(true, SeqCst);
        results
    });
    println!("# {results:?}, {} descriptors", times.load(SeqCst));
    // SAFETY: two open descriptors; `slot` is one again.
    unsafe { libc::dup2(null.as_raw_fd(), n) };
    check!(
        results.keys().all(|e| [0, libc::ENOTSOCK].contains(e)),
        "errnos {results:?}"
    );
    check!(
        results.len() == 2 && results[&0] >= 100 && times.load(SeqCst) > 2000,
        "there was no race: {results:?}"
    );
    g.start()?;
    // What another backend has put in the tap's way is of no interest.
    while g.peer.try_recv().is_some() {}
    works(&mut g)?;
    // No reference is left, and none too few: closed, the taps are gone, and only then.
    g.stop()?;
    let indices = others.each_ref().map(|tap| tap.index);
    for &index in &indices {
        check!(
            Peer::new(index, false).is_ok(),
            "a tap is gone while it is open"
        );
    }
    drop((others, raw));
    let gone = || {
        indices
            .iter()
            .all(|&index| Peer::new(index, false).is_err())
    };
    check!(until(gone), "a tap is still there");
    Ok(())
}

/// A mapping of all addresses that there are: its size, 2^64, is 0 as a number, and who went through it step
/// by step never came to its end. (It has no number of its own.)
///
/// Seen red: `Device::write` (vhost.rs) and `Iotlb::update` (memtable.rs) take a size of 0 for 2^64.
fn iotlb_whole_space() -> Res {
    let mut g = unmapped()?;
    let p = frame(1, 500);
    let at = g.place(&p);
    let len = g.hdr + p.len();
    for perm in [iotlb::RW, iotlb::RO, iotlb::WO, 0] {
        for iova in [0, 1, at, 1 << 63, u64::MAX] {
            // From 0 on it would be all; from elsewhere it ends before it starts.
            let none = Msg::update(iova, 0, 0, perm);
            check_eq!(
                iotlb::write(&g.net, &none),
                -libc::EINVAL,
                "no bytes from {iova:#x}"
            );
            let wraps = Msg::update(iova.max(2), u64::MAX, 0, perm);
            check_eq!(
                iotlb::write(&g.net, &wraps),
                -libc::EFAULT,
                "2^64 - 1 from {iova:#x}"
            );
        }
    }
    // Without any right, all but a byte may be mapped, in one piece or in two.
    let halves = [(0, 1 << 63), (1 << 63, (1 << 63) - 1)];
    let most = [(0, u64::MAX)];
    let end = [(1, u64::MAX - 1)];
    for maps in [&halves[..], &most, &end] {
        for &(iova, size) in maps {
            let e = iotlb::write(&g.net, &Msg::update(iova, size, 0, 0));
            check_eq!(e, iotlb::LEN as i32, "{size:#x} from {iova:#x}");
        }
        // The worker looks its rings and a buffer up, and comes back.
        g.tx.add(&[Seg::r(at, len)]);
        g.tx.submit();
        g.tx.kick();
        settle(&g)?;
        check!(g.peer.try_recv().is_none(), "something was sent");
        for &(iova, size) in maps {
            iotlb::invalidate(&g.net, iova, size)?;
        }
        // All other mappings went with it.
        map_rings(&g)?;
        iotlb::update(&g.net, at, len as u64, g.mem.hva(at).0 as u64, iotlb::RO)?;
        g.tx.kick();
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "packet")?;
        iotlb::invalidate(&g.net, at, len as u64)?;
        while iotlb::read(&g.net).is_ok() {}
        while g.tx.err.read().is_ok() {}
    }
    // A region of the memory table may not be all of it either, nor end before it starts.
    for (gpa, size) in [(0, 0), (1, 0), (0, u64::MAX), (1, u64::MAX), (u64::MAX, 2)] {
        let region = Region {
            gpa,
            size,
            hva: 0,
            flags: 0,
        };
        let table = sys::mem_table(1, 0, &[region]);
        let e = ioctl(&g.net, sys::SET_MEM_TABLE, table.as_ptr());
        check_eq!(e, libc::EFAULT, "a region of {size:#x} bytes at {gpa:#x}");
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("cve_2013_0311", cve_2013_0311),
        ("cve_2013_4127", cve_2013_4127),
        ("cve_2014_0055", cve_2014_0055),
        ("cve_2014_0077", cve_2014_0077),
        ("cve_2015_6252", cve_2015_6252),
        ("cve_2018_1118", cve_2018_1118),
        ("cve_2019_14835", cve_2019_14835),
        ("cve_2019_3900", cve_2019_3900),
        ("cve_2020_10942", cve_2020_10942),
        ("cve_2023_1838", cve_2023_1838),
        ("cve_2024_0340", cve_2024_0340),
        ("iotlb_whole_space", iotlb_whole_space),
    ];
    ktap::run(TESTS)
}
