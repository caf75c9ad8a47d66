// SPDX-License-Identifier: GPL-2.0

//! Headers of 24 bytes, which tell of large packets in UDP tunnels.

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::net::bridge;
use kselftest::net::tcp_frame;
use kselftest::net::tunnel_frame;
use kselftest::sys::ioctl;
use kselftest::sys::SET_FEATURES_ARRAY;
use kselftest::*;
use libc::EOPNOTSUPP;
use vhost::net::VhostNet;

const BOTH: u64 = GUEST_TUNNEL | HOST_TUNNEL;

fn config(features: u64, tunnel: u64) -> Config {
    Config {
        tunnel,
        ..Config::with(features)
    }
}

/// Either bit makes the header 24 bytes long; other bits of the word don't exist.
fn features() -> Res {
    for tunnel in [GUEST_TUNNEL, HOST_TUNNEL, BOTH] {
        let mut g = Guest::new(config(VERSION_1, tunnel))?;
        check_eq!(g.hdr, 24);
        g.send_all(&[frame(1, 60)])?;
        g.receive_all(&[frame(1, 60)])?;
        // And it is 12 again without.
        g.stop()?;
        let features = [2, VERSION_1, 0u64];
        check_eq!(ioctl(&g.net, SET_FEATURES_ARRAY, &features), 0);
        g.hdr = 12;
        let tap = Tap::new("tap1", 12)?;
        g.peer = Peer::new(tap.index, false)?;
        g.backend(Some(&tap.fd))?;
        g.send_all(&[frame(2, 60)])?;
        g.receive_all(&[frame(2, 60)])?;
    }
    let g = Guest::stopped(Config::default())?;
    for bit in (0..64).filter(|bit| BOTH >> bit & 1 == 0) {
        let features = [2, VERSION_1, 1 << bit];
        let got = ioctl(&g.net, SET_FEATURES_ARRAY, &features);
        check_eq!(got, EOPNOTSUPP, "feature {}", 64 + bit);
    }
    Ok(())
}

/// Packets of all sizes both ways, with such headers.
fn stream() -> Res {
    for (features, base) in [
        (VERSION_1, 0),
        (VERSION_1 | EVENT_IDX, 65400),
        (VERSION_1 | MRG_RXBUF, 7),
    ] {
        let mut g = Guest::new(config(features, BOTH).base(base))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        Traffic::new(&g, area).run(&mut g, 1000)?;
        drop(g);

        let mut g = Guest::new(config(features, BOTH).base(base))?;
        for len in [14, 3700, 3800, 4000, 4072, 4096, 9000, 65535] {
            g.send_all(&[frame(1, len)])?;
            g.receive_all(&[frame(1, len)])?;
        }
    }
    Ok(())
}

/// The number of buffers is where it always is, wherever the buffers end.
fn mergeable() -> Res {
    let mut g = Guest::new(config(VERSION_1 | MRG_RXBUF, BOTH))?;
    for size in [1, 5, 10, 11, 12, 23, 24, 25, 100] {
        let p = frame(1, 90);
        g.receive_in_pieces(&p, size)?;
    }
    Ok(())
}

/// The device makes and strips the header, as long as it is. (The C driver leaves its last half as it was.)
fn own_header() -> Res {
    let mut g = Guest::new(config(VERSION_1 | VHOST_NET_HDR, BOTH))?;
    for len in [14, 60, 1514, 5000] {
        let p = frame(1, len);
        g.send_all(&[p.clone()])?;
        let b = g.buffer(24 + len + 10);
        g.rx.add(&[b]);
        g.rx.submit();
        g.peer.send(&p)?;
        check_eq!(g.rx.wait()?.len as usize, 24 + len);
        let got = g.mem.read(b.gpa, 24 + len + 10);
        check_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        same(&got[24..24 + len], &p, "received packet")?;
        check_eq!(got[24 + len..], [0xa5; 10]);
    }
    Ok(())
}

/// What a guest says of a packet reaches the other end, when the packet is sent in a batch and when it is too
/// long for that.
fn offload() -> Res {
    let mut g = Guest::new(Config {
        peer_vnet: true,
        ..config(VERSION_1, BOTH)
    })?;
    for payload in [500, 2920, 20000] {
        let p = tcp_frame(payload, 9);
        let at = g.place(&p);
        let gso = if payload > 1448 { 1 } else { 0 };
        let [x, y] = (1448u16 * gso).to_le_bytes();
        g.mem.write(at, &[1, gso as u8, 54, 0, x, y, 34, 0, 16, 0]);
        g.tx.add(&[Seg::r(at, 24 + p.len())]);
        g.tx.submit();
        g.tx.wait()?;
        let got = g.peer.recv()?;
        check_eq!(got[..2], [1, gso as u8], "flags and GSO type");
        check_eq!(got[4..10], [x, y, 34, 0, 16, 0], "GSO size, checksum");
        same(&got[10..], &p, "sent packet")?;
    }
    Ok(())
}

/// A large packet in a tunnel, from a guest through a bridge to a guest: all that the header says of it is as it
/// was, and the number of buffers is the receiver's.
fn through() -> Res {
    for features in [VERSION_1, VERSION_1 | MRG_RXBUF] {
        let mut g = Guest::stopped(config(features, BOTH))?;
        let other = Tap::new("tap1", 24)?;
        let offloads = net::TUN_F_CSUM
            | net::TUN_F_TSO4
            | net::TUN_F_UDP_TUNNEL_GSO
            | net::TUN_F_UDP_TUNNEL_GSO_CSUM;
        g.tap.offload(offloads)?;
        other.offload(offloads)?;
        bridge(&format!("br{features:x}"), &[&g.tap, &other])?;
        g.net.set_backend(TX, Some(&g.tap.fd))?;
        g.net.set_backend(RX, Some(&other.fd))?;
        for payload in [2000, 2900, 3100, 30000] {
            let (p, [outer, inner, tcp]) = tunnel_frame(payload, 5);
            let mut hdr = [0u8; 24];
            // NEEDS_CSUM; TCPV4 and UDP_TUNNEL_IPV4.
            hdr[..2].copy_from_slice(&[1, 1 | 0x20]);
            for (at, value) in [
                (2, tcp + 20),
                (4, 1400),
                (6, tcp),
                (8, 16),
                (20, outer),
                (22, inner),
            ] {
                hdr[at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
            let at = g.place(&p);
            g.mem.write(at, &hdr);
            g.tx.add(&[Seg::r(at, 24 + p.len())]);
            let parts = if features & MRG_RXBUF != 0 { 20 } else { 1 };
            let size = (24 + p.len()).div_ceil(parts);
            let b = g.buffer(size * parts);
            for i in 0..parts {
                g.rx.add(&[Seg::w(b.gpa + (i * size) as u64, size)]);
            }
            g.rx.submit();
            g.tx.submit();
            g.tx.wait()?;
            let mut len = 0;
            for _ in 0..parts {
                len += g.rx.wait()?.len as usize;
            }
            check_eq!(len, 24 + p.len(), "used length");
            let mut got = g.mem.read(b.gpa, len);
            check_eq!(got[10..12], [parts as u8, 0], "num_buffers");
            got[10..12].fill(0);
            // How long the headers are, is the kernel's guess: at least as long as was said.
            let hdr_len = u16::from_le_bytes([got[2], got[3]]);
            check!(hdr_len >= tcp + 20, "header length {hdr_len}");
            got[2..4].copy_from_slice(&hdr[2..4]);
            check_eq!(got[..24], hdr, "header of a packet of {payload} bytes");
            same(&got[24..], &p, "packet in a tunnel")?;
        }
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("features", features),
        ("stream", stream),
        ("mergeable", mergeable),
        ("own_header", own_header),
        ("offload", offload),
        ("through", through),
    ];
    ktap::run(TESTS)
}
