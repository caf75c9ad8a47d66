// SPDX-License-Identifier: GPL-2.0

//! A macvtap or an ipvtap as the backend; the other end is the far side of a veth.

use std::os::fd::AsRawFd;

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::net::index;
use kselftest::net::ip;
use kselftest::net::ip_lines;
use kselftest::net::tcp_frame;
use kselftest::net::Plug;
use kselftest::net::ETH;
use kselftest::sys::ioctl;
use kselftest::sys::until;
use kselftest::sys::VringFile;
use kselftest::sys::NET_SET_BACKEND;
use kselftest::*;

/// The kinds of backend, as `ip link` knows them.
const KINDS: &[&str] = &[
    "macvtap mode vepa",
    "macvtap mode passthru",
    "ipvtap mode l2",
];

/// A running guest on such a backend.
fn guest(cfg: Config, kind: &str) -> Res<Guest> {
    let g = stopped(cfg, kind)?;
    g.start()?;
    Ok(g)
}

fn stopped(cfg: Config, kind: &str) -> Res<Guest> {
    let mut g = Guest::stopped(cfg)?;
    // An ipvtap has the address of what is below it, a macvtap one of its own.
    let below = if kind.starts_with("ipvtap") { 1 } else { 9 };
    ip_lines(&[
        "link add wire0 mtu 65535 type veth peer name wire1 mtu 65535",
        &format!("link set wire0 address 02:00:00:00:00:0{below} up"),
        "link set wire1 up",
    ])?;
    let vtap = add("vtap0", "wire0", kind, g.cfg.backend_hdr())?;
    g.peer = Peer::new(index("wire1")?, g.cfg.peer_vnet)?;
    g.tap = vtap;
    Ok(g)
}

/// Such an interface, up, with the addresses that the frames of these tests are for.
fn add(name: &str, below: &str, kind: &str, hdr: usize) -> Res<Tap> {
    let up = format!("link set {name} up");
    if kind.starts_with("ipvtap") {
        ip_lines(&[
            &format!("link add link {below} name {name} type {kind}"),
            &format!("address add 192.0.2.2/24 dev {name}"),
            &up,
        ])?;
    } else {
        let address = "address 02:00:00:00:00:01";
        let link = format!("link add link {below} name {name} {address} type {kind}");
        ip_lines(&[&link, &up])?;
    }
    Tap::of_link(name, hdr)
}

/// A frame of `len` bytes, of 34 or more, with an IPv4 packet for 192.0.2.2: an ipvtap takes no other.
fn ip_frame(seq: u32, len: usize) -> Vec<u8> {
    let mut f = frame(seq, len);
    let header = &tcp_frame(len.saturating_sub(ETH + 40), 0)[12..ETH + 20];
    f[12..ETH + 20].copy_from_slice(header);
    f
}

/// All sizes, both ways.
fn sizes() -> Res {
    for kind in KINDS {
        for features in [VERSION_1 | EVENT_IDX, MRG_RXBUF, VHOST_NET_HDR] {
            let mut g = guest(Config::with(features), kind)?;
            let lens = [60, 61, 100, 1514, 3500, 3700, 3800, 4000, 4096, 9000, 65000];
            for chunk in lens.chunks(4) {
                let packets: Vec<_> = chunk.iter().map(|&n| ip_frame(n as u32, n)).collect();
                g.send_all(&packets)?;
                g.receive_all(&packets)?;
            }
            ip("link del wire0")?;
        }
    }
    Ok(())
}

/// A stream each way, with the send buffer that such a tap has at first, with none, and with a small one.
fn stream() -> Res {
    for (features, sndbuf) in [
        (VERSION_1, None),
        (VERSION_1 | EVENT_IDX, Some(i32::MAX)),
        (0, Some(3000)),
        (VERSION_1 | MRG_RXBUF | IN_ORDER, None),
        (VERSION_1 | VHOST_NET_HDR, Some(i32::MAX)),
    ] {
        let mut g = stopped(Config::with(features).base(65400), KINDS[1])?;
        if let Some(bytes) = sndbuf {
            g.tap.sndbuf(bytes)?;
        }
        g.start()?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        Traffic::new(&g, area).run(&mut g, amount(700))?;
        ip("link del wire0")?;
    }
    Ok(())
}

/// A header of 24 bytes.
fn long_header() -> Res {
    for kind in KINDS {
        for features in [VERSION_1, VERSION_1 | MRG_RXBUF] {
            let cfg = Config {
                tunnel: GUEST_TUNNEL | HOST_TUNNEL,
                ..Config::with(features)
            };
            let mut g = guest(cfg, kind)?;
            check_eq!(g.hdr, 24);
            for len in [60, 3700, 5000, 65000] {
                g.send_all(&[ip_frame(1, len)])?;
                g.receive_all(&[ip_frame(2, len)])?;
            }
            ip("link del wire0")?;
        }
    }
    Ok(())
}

/// What a guest leaves to the device, and what the device leaves to a guest: checksums and segmentation, in one
/// buffer and in many.
fn offload() -> Res {
    for kind in KINDS {
        for features in [VERSION_1, VERSION_1 | MRG_RXBUF, 0] {
            let cfg = Config {
                peer_vnet: true,
                ..Config::with(features)
            };
            let mut g = guest(cfg, kind)?;
            g.tap.offload(net::TUN_F_CSUM | net::TUN_F_TSO4)?;
            for (payload, mss) in [(1000, 0u16), (2920, 1460), (20_000, 1448), (64_000, 1448)] {
                let p = tcp_frame(payload, 9);
                let [x, y] = mss.to_le_bytes();
                let hdr = [1, u8::from(mss != 0), 54, 0, x, y, 34, 0, 16, 0];
                let at = g.place(&p);
                g.mem.write(at, &hdr);
                g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
                g.tx.submit();
                g.tx.wait()?;
                let got = g.peer.recv()?;
                check_eq!(got[..2], hdr[..2], "flags and GSO type of {payload} sent");
                check_eq!(
                    got[4..10],
                    hdr[4..],
                    "GSO size and checksum of {payload} sent"
                );
                same(&got[10..], &p, "sent packet")?;

                let parts = if features & MRG_RXBUF != 0 { 50 } else { 1 };
                let size = (g.hdr + p.len()).div_ceil(parts);
                let b = g.buffer(size * parts);
                for i in 0..parts {
                    g.rx.add(&[Seg::w(b.gpa + (i * size) as u64, size)]);
                }
                g.rx.submit();
                g.peer.send(&[&hdr[..], &p].concat())?;
                let mut len = 0;
                let mut used = 0;
                while len < g.hdr + p.len() {
                    len += g.rx.wait()?.len as usize;
                    used += 1;
                }
                check_eq!(len, g.hdr + p.len(), "used length");
                let got = g.mem.read(b.gpa, len);
                check_eq!(
                    got[..2],
                    hdr[..2],
                    "flags and GSO type of {payload} received"
                );
                check_eq!(
                    got[4..10],
                    hdr[4..],
                    "GSO size and checksum of {payload} received"
                );
                if g.hdr >= 12 {
                    check_eq!(got[10..12], (used as u16).to_le_bytes(), "num_buffers");
                }
                same(&got[g.hdr..], &p, "received packet")?;
                // The buffers that were not needed are not wanted for the next.
                g.restart(0)?;
            }
            ip("link del wire0")?;
        }
    }
    Ok(())
}

/// A guest that takes no large packets gets small ones.
fn no_offload() -> Res {
    for kind in KINDS {
        let cfg = Config {
            peer_vnet: true,
            ..Config::with(VERSION_1)
        };
        let mut g = guest(cfg, kind)?;
        g.tap.offload(0)?;
        let b: Vec<_> = (0..4).map(|_| g.buffer(2000)).collect();
        b.iter().for_each(|b| {
            g.rx.add(&[*b]);
        });
        g.rx.submit();
        let p = tcp_frame(4000, 3);
        let hdr = [1, 1, 54, 0, 0xe8, 0x03, 34, 0, 16, 0];
        g.peer.send(&[&hdr[..], &p].concat())?;
        for (b, part) in b.iter().zip(p[54..].chunks(1000)) {
            check_eq!(g.rx.wait()?.len as usize, g.hdr + 54 + 1000);
            let got = g.mem.read(b.gpa, g.hdr + 54 + 1000);
            g.check_rx_hdr(&got, 1)?;
            same(&got[g.hdr + 54..], part, "segment")?;
        }
        ip("link del wire0")?;
    }
    Ok(())
}

/// The tag of a VLAN is kept beside the packet, and is counted where the length is.
fn vlan() -> Res {
    for features in [VERSION_1, 0, VHOST_NET_HDR] {
        let mut g = guest(Config::with(features), KINDS[1])?;
        for len in [60, 1514, 9000] {
            let mut p = frame(1, len);
            p.splice(12..12, [0x81, 0, 0, 42]);
            g.receive_all(&[p, frame(2, len)])?;
        }
        ip("link del wire0")?;
    }
    // Cut anywhere: in the tag, before and behind it.
    for &size in some(&[1, 13, 14, 23, 24, 25, 26, 27, 28, 29, 60]) {
        let mut g = guest(Config::with(VERSION_1 | MRG_RXBUF), KINDS[1])?;
        let mut p = frame(1, 100);
        p.splice(12..12, [0x81, 0, 0, 42]);
        g.receive_in_pieces(&p, size)?;
        ip("link del wire0")?;
    }
    Ok(())
}

/// Packets wait for buffers, and go back when the device stops.
fn waiting() -> Res {
    let mut g = guest(Config::default(), KINDS[0])?;
    let packets: Vec<_> = (0..100).map(|i| frame(i, 200)).collect();
    for round in 0..3 {
        for p in &packets {
            g.peer.send(p)?;
        }
        if round > 0 {
            g.stop()?;
            g.start()?;
        }
        let b: Vec<_> = packets.iter().map(|_| g.buffer(400)).collect();
        b.iter().for_each(|b| {
            g.rx.add(&[*b]);
        });
        g.rx.submit();
        for (b, p) in b.iter().zip(&packets) {
            check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
            same(&g.mem.read(b.gpa + g.hdr as u64, p.len()), p, "packet")?;
        }
    }
    Ok(())
}

/// From a tap to a macvtap and back.
fn exchanged() -> Res {
    let mut g = guest(Config::with(VERSION_1 | EVENT_IDX), KINDS[0])?;
    let mut tap = Tap::new("tap1", g.hdr)?;
    let mut peer = Peer::new(tap.index, false)?;
    for i in 0..6 {
        g.send_all(&[frame(i, 60), frame(i, 4000)])?;
        g.receive_all(&[frame(i, 60), frame(i, 4000)])?;
        std::mem::swap(&mut g.tap, &mut tap);
        std::mem::swap(&mut g.peer, &mut peer);
        g.start()?;
    }
    Ok(())
}

/// Packets for which there is no room wait for it, and keep their order.
fn full() -> Res {
    let mut g = Guest::stopped(Config::default())?;
    let mut plug = Plug::new("tap1", 0)?;
    g.tap = add("vtap0", "tap1", KINDS[0], g.hdr)?;
    g.tap.sndbuf(20_000)?;
    g.start()?;
    let len = |i| [60, 500, 1500, 300, 5000, 64][i as usize % 6];
    let packets: Vec<_> = (0..120).map(|i| frame(i, len(i))).collect();
    let place = |p: &Vec<u8>| Seg::r(g.place(p), g.hdr + p.len());
    let places: Vec<_> = packets.iter().map(place).collect();
    for s in places {
        g.tx.add(&[s]);
    }
    g.tx.submit();
    check!(until(|| g.tx.device_idx() != 0), "nothing was sent");
    for _ in 0..30 {
        g.tx.kick();
        std::thread::yield_now();
    }
    let used = g.tx.device_idx();
    check!(used < 60, "{used} of 120 packets were used");
    for (i, p) in packets.iter().enumerate() {
        same(&plug.recv()?, p, &format!("packet {i}"))?;
        check_eq!(g.tx.wait()?.len, 0);
    }
    check!(plug.try_recv().is_none(), "a packet came twice");
    Ok(())
}

/// The interface goes down and up.
fn down() -> Res {
    let mut g = guest(Config::default(), KINDS[1])?;
    for i in 0..3 {
        g.send_all(&[frame(i, 60), frame(i, 5000)])?;
        g.receive_all(&[frame(i, 60), frame(i, 5000)])?;
        ip("link set vtap0 down")?;
        for len in [60, 5000] {
            let at = g.place(&frame(i, len));
            g.tx.add(&[Seg::r(at, g.hdr + len)]);
            g.tx.submit();
            check_eq!(g.tx.wait()?.len, 0);
        }
        check!(g.peer.try_recv().is_none(), "a packet was sent");
        ip("link set vtap0 up")?;
    }
    Ok(())
}

/// The interface is deleted under the device: the buffers come back, and another backend takes its place.
fn away() -> Res {
    for kind in KINDS {
        let mut g = guest(Config::default(), kind)?;
        g.send_all(&[ip_frame(1, 60)])?;
        g.receive_all(&[ip_frame(1, 60)])?;
        ip("link del vtap0")?;
        for len in [60, 5000] {
            let at = g.place(&ip_frame(2, len));
            g.tx.add(&[Seg::r(at, g.hdr + len)]);
            g.tx.submit();
            check_eq!(g.tx.wait()?.len, 0);
        }
        check!(g.tx.err.read().is_err(), "an error was signalled");
        let file = VringFile {
            index: TX as u32,
            fd: g.tap.fd.as_raw_fd(),
        };
        check_eq!(ioctl(&g.net, NET_SET_BACKEND, &file), 0);
        g.tap = add("vtap0", "wire0", kind, g.hdr)?;
        g.start()?;
        g.send_all(&[ip_frame(3, 60), ip_frame(4, 5000)])?;
        g.receive_all(&[ip_frame(5, 60), ip_frame(6, 5000)])?;
        ip("link del wire0")?;
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("sizes", sizes),
        ("stream", stream),
        ("long_header", long_header),
        ("offload", offload),
        ("no_offload", no_offload),
        ("vlan", vlan),
        ("waiting", waiting),
        ("exchanged", exchanged),
        ("full", full),
        ("down", down),
        ("away", away),
    ];
    ktap::run(TESTS)
}
