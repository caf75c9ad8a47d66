// SPDX-License-Identifier: GPL-2.0

//! The backend exchanged, taken away and given back while traffic runs.

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::net::seq;
use kselftest::sys::VringFile;
use kselftest::*;
use vhost::net::VhostNet;

/// Packets of 1000 published, and before all are sent the backend is another tap. All arrive, at one of
/// the two, in order.
fn swap_tx() -> Res {
    let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX))?;
    let other = Tap::new("tap1", g.hdr)?;
    let mut peer = Peer::new(other.index, false)?;
    let slots: Vec<_> = (0..256).map(|_| g.mem.alloc(400, 16)).collect();
    let (mut sent, mut used) = (0u32, 0u32);
    let mut next = [0; 2];
    let mut seen = vec![false; 6000];
    let mut which = 0;
    while used < 6000 {
        while sent < 6000 && g.tx.free() > 0 {
            let at = slots[sent as usize % 256];
            g.mem.fill(at, g.hdr, 0);
            g.mem.write(at + g.hdr as u64, &frame(sent, 300));
            g.tx.add(&[Seg::r(at, g.hdr + 300)]);
            sent += 1;
        }
        g.tx.submit();
        which ^= 1;
        g.net
            .set_backend(TX, Some(if which == 0 { &g.tap.fd } else { &other.fd }))?;
        g.tx.wait()?;
        used += 1;
        while g.tx.pop().is_some() {
            used += 1;
        }
        for (i, peer) in [&mut g.peer, &mut peer].into_iter().enumerate() {
            while let Some(p) = peer.try_recv() {
                let n = seq(&p);
                same(&p, &frame(n, 300), "packet")?;
                check!(n >= next[i], "packet {n} of tap {i} after {}", next[i]);
                check!(
                    !std::mem::replace(&mut seen[n as usize], true),
                    "packet {n} came twice"
                );
                next[i] = n + 1;
            }
        }
    }
    let lost = seen.iter().filter(|s| !**s).count();
    check_eq!(lost, 0, "packets lost");
    check!(next[0] > 0 && next[1] > 0, "one of the taps got nothing");
    Ok(())
}

/// Packets to both taps, of which one at a time is the backend. All arrive, in their tap's order.
fn swap_rx() -> Res {
    let mut g = Guest::new(Config::with(VERSION_1))?;
    let other = Tap::new("tap1", g.hdr)?;
    let peer = Peer::new(other.index, false)?;
    let mut place = vec![0; 256];
    let mut spare: Vec<_> = (0..256).map(|_| g.buffer(400).gpa).collect();
    let (mut sent, mut got) = (0u32, 0u32);
    let mut next = [0; 2];
    let mut which = 0;
    // Each packet goes to both: 3000 from each.
    while got < 6000 {
        while let Some(at) = spare.pop() {
            place[usize::from(g.rx.add(&[Seg::w(at, 400)]))] = at;
        }
        g.rx.submit();
        while sent < 3000 && sent - next[0].min(next[1]) < 300 {
            g.peer.send(&frame(sent, 300))?;
            peer.send(&frame(sent | 1 << 31, 300))?;
            sent += 1;
        }
        which ^= 1;
        g.net
            .set_backend(RX, Some(if which == 0 { &g.tap.fd } else { &other.fd }))?;
        let mut u = None;
        // The tap that is the backend now may have nothing more.
        if next[which] < sent {
            u = Some(g.rx.wait()?);
        }
        while let Some(e) = u.take().or_else(|| g.rx.pop()) {
            let at = place[e.id as usize];
            let p = g.mem.read(at + g.hdr as u64, e.len as usize - g.hdr);
            let n = seq(&p);
            let tap = (n >> 31) as usize;
            check_eq!(
                n & !(1 << 31),
                next[tap],
                "number of the packet of tap {tap}"
            );
            same(&p, &frame(n, 300), "packet")?;
            next[tap] += 1;
            got += 1;
            spare.push(at);
        }
    }
    check_eq!(next, [3000, 3000]);
    Ok(())
}

/// A thread takes the backend away and gives it back, all the time.
fn away_and_back() -> Res {
    let all = [VERSION_1 | EVENT_IDX, VERSION_1, 0];
    for &features in if packed::by_default() {
        &all[..1]
    } else {
        &all
    } {
        let mut g = Guest::new(Config::with(features).base(65000))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        let tap = g.tap.fd.as_raw_fd();
        let (kick_tx, kick_rx) = (g.tx.kick.try_clone()?, g.rx.kick.try_clone()?);
        // SAFETY: the descriptor is open as long as `g` lives, which is longer than the thread does.
        let fd = unsafe { BorrowedFd::borrow_raw(g.net.as_raw_fd()) };
        let (stop, times, failed) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
        let result = std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(Relaxed) {
                    for (index, backend) in [(TX, -1), (RX, -1), (RX, tap), (TX, tap)] {
                        let f = VringFile {
                            index: index as u32,
                            fd: backend,
                        };
                        let e = sys::ioctl(&fd, sys::NET_SET_BACKEND, &f);
                        failed.fetch_max(e as u32, Relaxed);
                    }
                    kick_tx.write(1).unwrap();
                    kick_rx.write(1).unwrap();
                    times.fetch_add(1, Relaxed);
                }
            });
            let mut t = Traffic::new(&g, area);
            let mut count = 1000;
            let result = loop {
                let r = t.run(&mut g, count);
                if r.is_err() || times.load(Relaxed) >= 100 || failed.load(Relaxed) != 0 {
                    break r;
                }
                count += 200;
            };
            stop.store(true, Relaxed);
            result
        });
        check_eq!(failed.load(Relaxed), 0, "errno of SET_BACKEND");
        println!("# {} times", times.load(Relaxed));
        result?;
    }
    Ok(())
}

/// The device had taken packets from the tap for which there were no buffers. When it stops, they are
/// the tap's again, in order.
fn unused_packets_go_back() -> Res {
    let mut g = Guest::new(Config::default())?;
    for round in 0..3 {
        g.receive_all(&[frame(0, 60)])?;
        let packets: Vec<_> = (0..100)
            .map(|i| frame(1000 * round + i, 60 + i as usize))
            .collect();
        for p in &packets {
            g.peer.send(p)?;
        }
        // It has seen them when it asks for buffers.
        check!(sys::until(|| g.rx.used_flags() == 0), "no kick asked for");
        g.stop()?;
        let mut buf = vec![0; 2000];
        for (i, p) in packets.iter().enumerate() {
            let n = (&g.tap.fd).read(&mut buf)?;
            check!(n > g.hdr, "packet {i} is lost");
            same(&buf[g.hdr..n], p, &format!("packet {i} read from the tap"))?;
        }
        check!(
            (&g.tap.fd).read(&mut buf).is_err(),
            "more packets than were sent"
        );
        g.start()?;
    }
    Ok(())
}

/// The device's own reference keeps the tap alive, and gives it up when told.
fn tap_closed_by_the_vmm() -> Res {
    let mut g = Guest::new(Config::default())?;
    let null = File::open("/dev/null")?;
    let index = g.tap.index;
    drop(std::mem::replace(&mut g.tap.fd, null));
    g.send_all(&[frame(1, 60), frame(2, 5000)])?;
    g.net.set_backend(TX, None)?;
    g.receive_all(&[frame(1, 60)])?;
    g.net.set_backend(RX, None)?;
    check!(
        sys::until(|| Peer::new(index, false).is_err()),
        "the interface is still there"
    );
    Ok(())
}

/// The same backend once more changes nothing.
fn same_again() -> Res {
    let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX))?;
    let area = g.mem.alloc(Traffic::room(&g), 4096);
    let mut t = Traffic::new(&g, area);
    for i in 1..20 {
        t.feed(&mut g, 100 * i)?;
        g.start()?;
        t.run(&mut g, 100 * i)?;
    }
    Ok(())
}

/// One queue without a backend does not disturb the other.
fn one_queue() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.net.set_backend(RX, None)?;
    g.send_all(&[frame(1, 60), frame(2, 5000)])?;
    g.net.set_backend(TX, None)?;
    g.net.set_backend(RX, Some(&g.tap.fd))?;
    g.receive_all(&[frame(3, 60), frame(4, 5000)])
}

/// A packet socket on the tap interface is the backend, and the tap's file is the other end.
struct Raw {
    g: Guest,
    socket: Peer,
    /// The header that the socket carries.
    hdr: usize,
}

impl Raw {
    fn new(features: u64, vnet: bool) -> Res<Self> {
        let g = Guest::stopped(Config {
            peer_vnet: vnet,
            ..Config::with(features)
        })?;
        // The guest's ordinary peer is of no use here, and would take a copy of each packet.
        let mut raw = Raw {
            socket: Peer::new(g.tap.index, vnet)?,
            g,
            hdr: if vnet { 10 } else { 0 },
        };
        raw.g.backend(Some(&raw.socket.fd))?;
        raw.traffic(0)?;
        Ok(raw)
    }

    fn traffic(&mut self, n: u32) -> Res {
        let g = &mut self.g;
        let tap_hdr = g.cfg.backend_hdr();
        check_eq!(
            g.hdr - g.cfg.backend_hdr(),
            g.hdr - self.hdr,
            "the test's own headers"
        );
        let mut buf = vec![0; 10000];
        for (i, len) in [60, 100, 1514, 4000, 9000].into_iter().enumerate() {
            let p = frame(n + i as u32, len);
            let at = g.place(&p);
            g.tx.add(&[Seg::r(at, g.hdr), Seg::r(at + g.hdr as u64, len)]);
            g.tx.submit();
            check_eq!(g.tx.wait()?.len, 0);
            let mut got = 0;
            sys::until(|| {
                got = (&g.tap.fd).read(&mut buf).unwrap_or(0);
                got != 0
            });
            same(&buf[tap_hdr.min(got)..got], &p, "sent packet")?;

            let b = g.buffer(g.hdr + len);
            g.rx.add(&[b]);
            g.rx.submit();
            let mut data = vec![0; tap_hdr];
            data.extend(&p);
            check_eq!((&g.tap.fd).write(&data)?, data.len(), "written to the tap");
            check_eq!(g.rx.wait()?.len as usize, g.hdr + len);
            let got = g.mem.read(b.gpa, g.hdr + len);
            g.check_rx_hdr(&got, 1)?;
            same(&got[g.hdr..], &p, "received packet")?;
        }
        Ok(())
    }
}

/// The driver makes the header up and strips it.
fn packet_socket() -> Res {
    for features in [
        VHOST_NET_HDR | VERSION_1,
        VHOST_NET_HDR,
        VHOST_NET_HDR | MRG_RXBUF,
    ] {
        Raw::new(features, false)?;
    }
    Ok(())
}

/// The socket has a header itself.
fn packet_socket_vnet_hdr() -> Res {
    Raw::new(0, true)?;
    Ok(())
}

/// From a packet socket to a tap and back.
fn packet_socket_and_tap() -> Res {
    let mut r = Raw::new(VHOST_NET_HDR | VERSION_1, false)?;
    for i in 0..5 {
        // What the tap's file got as well, while a socket was the backend, is nobody's.
        while r.socket.try_recv().is_some() || r.g.peer.try_recv().is_some() {}
        r.g.start()?;
        r.g.receive_all(&[frame(1, 60), frame(2, 3000)])?;
        r.g.send_all(&[frame(1, 60), frame(2, 3000)])?;
        while r.socket.try_recv().is_some() {}
        r.g.backend(Some(&r.socket.fd))?;
        r.traffic(100 * i)?;
    }
    Ok(())
}

/// A backend that is refused leaves the old one as it was, also a queue that waits for it.
fn refused() -> Res {
    let mut g = Guest::new(Config::default())?;
    // A tap's file that is attached to no interface has nothing to wait for.
    let none = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    for n in 0..3 {
        let b = g.buffer(g.hdr + 100);
        g.rx.add(&[b]);
        g.rx.submit();
        // The queue has found its buffer, and the tap empty.
        task::settle(&g)?;
        for index in [RX, TX] {
            check!(
                g.net.set_backend(index, Some(&none)).is_err(),
                "a backend that is none"
            );
        }
        let p = frame(n, 100);
        g.peer.send(&p)?;
        check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
        let got = g.mem.read(b.gpa + g.hdr as u64, p.len());
        same(&got, &p, "received packet")?;
        g.send_all(&[frame(n, 60)])?;
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("swap_tx", swap_tx),
        ("swap_rx", swap_rx),
        ("away_and_back", away_and_back),
        ("unused_packets_go_back", unused_packets_go_back),
        ("tap_closed_by_the_vmm", tap_closed_by_the_vmm),
        ("same_again", same_again),
        ("one_queue", one_queue),
        ("refused", refused),
        ("packet_socket", packet_socket),
        ("packet_socket_vnet_hdr", packet_socket_vnet_hdr),
        ("packet_socket_and_tap", packet_socket_and_tap),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &["away_and_back", "unused_packets_go_back"];
    ktap::run_formats(TESTS, PACKED)
}
