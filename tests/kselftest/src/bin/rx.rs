// SPDX-License-Identifier: GPL-2.0

//! Packets from the tap to the guest.

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::ring::NEXT;
use kselftest::ring::WRITE;
use kselftest::*;
use vhost::VhostBackend;

const SIZES: &[usize] = &[
    14, 15, 18, 59, 60, 61, 64, 100, 128, 256, 511, 1024, 1499, 1500, 1514, 2000, 2048, 3000, 4083,
    4084, 4085, 4095, 4096, 4097, 5000, 8191, 8192, 8193, 9014, 16384, 32768, 40001, 65000, 65535,
];

fn sizes(features: u64) -> Res {
    let mut g = Guest::new(Config::with(features))?;
    for (i, chunk) in SIZES.chunks(9).enumerate() {
        let packets: Vec<_> = chunk
            .iter()
            .enumerate()
            .map(|(j, &n)| frame((16 * i + j) as u32, n))
            .collect();
        g.receive_all(&packets)?;
    }
    g.stop()?;
    check!(g.rx.pop().is_none(), "more packets than were sent");
    check!(g.rx.err.read().is_err(), "an error was signalled");
    Ok(())
}

fn sizes_v1() -> Res {
    sizes(VERSION_1)
}

fn sizes_v1_mrg() -> Res {
    sizes(VERSION_1 | MRG_RXBUF)
}

fn sizes_legacy() -> Res {
    sizes(0)
}

fn sizes_legacy_mrg() -> Res {
    sizes(MRG_RXBUF)
}

fn sizes_event_idx() -> Res {
    sizes(VERSION_1 | EVENT_IDX | INDIRECT)
}

/// The driver makes the header up; the tap has none.
fn sizes_vhost_hdr() -> Res {
    sizes(VERSION_1 | VHOST_NET_HDR)
}

fn sizes_vhost_hdr_legacy() -> Res {
    sizes(VHOST_NET_HDR)
}

fn sizes_vhost_hdr_mrg() -> Res {
    sizes(VHOST_NET_HDR | MRG_RXBUF)
}

/// A buffer of `total` bytes at `at`, cut into pieces; the last takes the rest.
fn cut(at: u64, total: usize, sizes: &[usize]) -> Vec<Seg> {
    let mut v = vec![];
    let mut done = 0;
    for &n in sizes {
        let n = n.min(total - done);
        v.push(Seg::w(at + done as u64, n));
        done += n;
    }
    if done < total {
        v.push(Seg::w(at + done as u64, total - done));
    }
    v
}

fn shapes(features: u64) -> Res {
    let mut g = Guest::new(Config::with(features))?;
    let hdr = g.hdr;
    let mut n = 0;
    for len in [14, 60, 200, 1514, 4000, 9000] {
        let total = hdr + len;
        let few = |size: usize| vec![size; (total / size).min(200)];
        let shapes: Vec<Vec<usize>> = vec![
            vec![total],
            vec![hdr],
            vec![1],
            vec![hdr - 1],
            vec![hdr + 1],
            vec![9, 1, 1, 1],
            vec![hdr, 14],
            vec![4, 4, 4, 4, 4],
            vec![0, hdr, 0, 14, 0],
            few(1),
            few(7),
            few(64),
            few(509),
        ];
        for shape in shapes {
            n += 1;
            let what = format!("{len} bytes into {:?}", &shape[..shape.len().min(6)]);
            let p = frame(n, len);
            // Exactly as much room as the packet needs, or more.
            let room = total + [0, 1, 1000][n as usize % 3];
            let b = g.buffer(room);
            let head = g.rx.add(&cut(b.gpa, room, &shape));
            g.rx.submit();
            g.peer.send(&p)?;
            let u = g.rx.wait()?;
            check_eq!(u.id, u32::from(head), "head, {what}");
            check_eq!(u.len as usize, total, "used length, {what}");
            let got = g.mem.read(b.gpa, room);
            g.check_rx_hdr(&got, 1)?;
            same(&got[hdr..total], &p, &what)?;
            check!(
                got[total..].iter().all(|&x| x == 0xa5),
                "written behind the packet, {what}"
            );
        }
    }
    Ok(())
}

fn shapes_v1() -> Res {
    shapes(VERSION_1)
}

fn shapes_legacy() -> Res {
    shapes(0)
}

fn shapes_mrg() -> Res {
    shapes(VERSION_1 | MRG_RXBUF)
}

fn shapes_vhost_hdr() -> Res {
    shapes(VERSION_1 | VHOST_NET_HDR)
}

/// Every byte into a buffer of its own.
fn one_byte_segments() -> Res {
    let mut g = Guest::new(Config::default().num(1024))?;
    for i in 0..4 {
        let p = frame(i, 1024 - g.hdr);
        let b = g.buffer(1024);
        g.rx.add(&cut(b.gpa, 1024, &[1; 1024]));
        g.rx.submit();
        g.peer.send(&p)?;
        check_eq!(g.rx.wait()?.len, 1024);
        let got = g.mem.read(b.gpa, 1024);
        g.check_rx_hdr(&got, 1)?;
        same(&got[g.hdr..], &p, "1024 buffers of 1 byte")?;
    }
    Ok(())
}

/// Buffers that begin in one memory region and end in the next.
fn across_regions() -> Res {
    let r = 0x10000;
    let regions = (0..8).map(|i| (0x1000_0000 + i * r, r));
    let cfg = Config {
        regions: [(mem::BASE, 8 << 20)].into_iter().chain(regions).collect(),
        ..Default::default()
    };
    let mut g = Guest::new(cfg)?;
    let mut n = 0;
    for len in [60, 1514, 4096, 65535] {
        for before in [1, 9, 10, 11, 12, 13, 26, 59] {
            n += 1;
            let p = frame(n, len);
            let at = 0x1000_0000 + 2 * r - before;
            g.mem.fill(at, g.hdr + len, 0xa5);
            g.rx.add(&[Seg::w(at, g.hdr + len)]);
            g.rx.submit();
            g.peer.send(&p)?;
            check_eq!(g.rx.wait()?.len as usize, g.hdr + len);
            let got = g.mem.read(at, g.hdr + len);
            g.check_rx_hdr(&got, 1)?;
            same(
                &got[g.hdr..],
                &p,
                &format!("{len} bytes, {before} in the first region"),
            )?;
        }
    }
    Ok(())
}

/// Many packets through a ring of `num`, as many on their way as there are buffers.
fn many(cfg: Config, count: u32, len: impl Fn(u32) -> usize) -> Res {
    let mut g = Guest::new(cfg)?;
    let num = u32::from(g.rx.num);
    let slot = 2048u32;
    let area = g.mem.alloc((num * slot) as usize, 4096);
    let mut at = vec![0; num as usize];
    let mut give = |g: &mut Guest, i: u32| {
        let gpa = area + u64::from(i % num * slot);
        let head = g.rx.add(&[Seg::w(gpa, slot as usize)]);
        at[usize::from(head)] = gpa;
        gpa
    };
    let mut place: Vec<u64> = (0..num).map(|i| give(&mut g, i)).collect();
    g.rx.submit();
    let (mut sent, mut got) = (0, 0);
    let window = num.min(400);
    while got < count {
        while sent < count && sent - got < window {
            g.peer.send(&frame(sent, len(sent)))?;
            sent += 1;
        }
        let mut u = Some(g.rx.wait()?);
        while let Some(e) = u {
            let want = frame(got, len(got));
            check_eq!(e.len as usize, g.hdr + want.len(), "length of packet {got}");
            let data = g.mem.read(place[e.id as usize], e.len as usize);
            g.check_rx_hdr(&data, 1)?;
            same(&data[g.hdr..], &want, &format!("packet {got} of {count}"))?;
            place[e.id as usize] = give(&mut g, got);
            got += 1;
            u = g.rx.pop();
        }
        g.rx.submit();
    }
    g.stop()?;
    check_eq!(g.rx.used_idx, g.cfg.base.wrapping_add(count as u16));
    check_eq!(g.net.get_vring_base(RX)?, g.rx.base());
    check!(g.rx.pop().is_none(), "more packets than were sent");
    Ok(())
}

/// Packets that come before there are buffers wait for them, in order.
fn no_buffers() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut g = Guest::new(Config::with(features))?;
        for round in 0..3 {
            let packets: Vec<_> = (0..100)
                .map(|i| frame(1000 * round + i, 100 + i as usize))
                .collect();
            for p in &packets {
                g.peer.send(p)?;
            }
            // Fewer buffers at a time than packets, the last only when all others are used.
            for group in packets.chunks(7) {
                check!(g.rx.pop().is_none(), "used a buffer that it was not given");
                let b: Vec<_> = group.iter().map(|_| g.buffer(300)).collect();
                b.iter().for_each(|b| {
                    g.rx.add(&[*b]);
                });
                g.rx.submit();
                for (b, p) in b.iter().zip(group) {
                    check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
                    let got = g.mem.read(b.gpa, g.hdr + p.len());
                    same(&got[g.hdr..], p, "packet that waited")?;
                }
            }
        }
    }
    Ok(())
}

/// Buffers that were there first: no kick is needed when packets come.
fn buffers_first() -> Res {
    let mut g = Guest::new(Config::default())?;
    let b: Vec<_> = (0..100).map(|_| g.buffer(300)).collect();
    for b in &b {
        g.rx.add(&[*b]);
    }
    g.rx.submit();
    for (i, b) in b.iter().enumerate() {
        let p = frame(i as u32, 60 + i);
        g.peer.send(&p)?;
        check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
        same(&g.mem.read(b.gpa + g.hdr as u64, p.len()), &p, "packet")?;
    }
    Ok(())
}

/// Both directions at once, full rings.
fn both_ways() -> Res {
    for features in [VERSION_1 | EVENT_IDX, 0, MRG_RXBUF | INDIRECT] {
        let mut g = Guest::new(Config::with(features))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        Traffic::new(&g, area).run(&mut g, 4000)?;
    }
    Ok(())
}

/// A checksum left to the guest, that can do it, and one that is made before, for a guest that can't.
fn checksum() -> Res {
    let hdr = [1, 0, 54, 0, 0, 0, 34, 0, 16, 0];
    for able in [true, false] {
        let mut g = Guest::new(Config {
            peer_vnet: true,
            ..Default::default()
        })?;
        g.tap.offload(if able { net::TUN_F_CSUM } else { 0 })?;
        for payload in [1, 1000, 1460] {
            let p = net::tcp_frame(payload, 7);
            let b = g.buffer(2000);
            g.rx.add(&[b]);
            g.rx.submit();
            g.peer.send(&[&hdr[..], &p].concat())?;
            check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
            let got = g.mem.read(b.gpa, g.hdr + p.len());
            check_eq!(got[0] & 1, u8::from(able), "NEEDS_CSUM");
            check_eq!(got[10..12], [1, 0], "num_buffers");
            let got_p = &got[g.hdr..];
            if able {
                check_eq!(got[6..10], [34, 0, 16, 0], "checksum start and offset");
                same(got_p, &p, "packet with a partial checksum")?;
            } else {
                check!(got_p[50..52] != p[50..52], "the checksum was not made");
                same(&got_p[..50], &p[..50], "packet before its checksum")?;
                same(&got_p[52..], &p[52..], "packet after its checksum")?;
            }
        }
    }
    Ok(())
}

/// A packet that the guest is to take as a whole: the segment size arrives in its header.
fn gso() -> Res {
    for features in [VERSION_1, 0] {
        let mut g = Guest::new(Config {
            peer_vnet: true,
            ..Config::with(features)
        })?;
        g.tap.offload(net::TUN_F_CSUM | net::TUN_F_TSO4)?;
        for (payload, mss) in [(2000, 1000), (2920, 1460), (20000, 1448), (64000, 1448)] {
            let p = net::tcp_frame(payload, 9);
            let [x, y] = (mss as u16).to_le_bytes();
            let hdr = [1, 1, 54, 0, x, y, 34, 0, 16, 0];
            let b = g.buffer(66000);
            g.rx.add(&cut(b.gpa, 66000, &[g.hdr, 100]));
            g.rx.submit();
            g.peer.send(&[&hdr[..], &p].concat())?;
            check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
            let got = g.mem.read(b.gpa, g.hdr + p.len());
            check_eq!(got[0] & 1, 1, "NEEDS_CSUM");
            check_eq!(got[1], 1, "GSO type");
            check_eq!(got[4..6], [x, y], "GSO size");
            check_eq!(got[6..10], [34, 0, 16, 0], "checksum start and offset");
            same(&got[g.hdr..], &p, "GSO packet")?;
        }
    }
    Ok(())
}

/// Does something bad to the ring, behind three good buffers, and sends five packets: three arrive, the
/// queue stops, the error is signalled, and after a reset by the VMM the other two arrive.
fn bad(features: u64, poison: impl Fn(&mut Guest)) -> Res {
    let mut g = Guest::new(Config::with(features))?;
    for round in 0u16..2 {
        let base = g.rx.avail_idx;
        g.receive_all(&[frame(1, 60)])?;
        let b: Vec<_> = (0..3).map(|_| g.buffer(400)).collect();
        for b in &b {
            g.rx.add(&[*b]);
        }
        poison(&mut g);
        g.rx.kick();
        let p: Vec<_> = (0..5).map(|i| frame(i, 300 + i as usize)).collect();
        for p in &p {
            g.peer.send(p)?;
        }
        for (b, p) in b.iter().zip(&p) {
            g.rx.wait()?;
            same(
                &g.mem.read(b.gpa + g.hdr as u64, p.len()),
                p,
                "packet before the bad chain",
            )?;
        }
        g.rx.wait_err()?;
        g.stop()?;
        check_eq!(g.rx.device_idx(), base.wrapping_add(4), "the used index");
        g.restart(round * 500)?;
        let b: Vec<_> = (0..2).map(|_| g.buffer(400)).collect();
        for b in &b {
            g.rx.add(&[*b]);
        }
        g.rx.submit();
        for (b, p) in b.iter().zip(&p[3..]) {
            g.rx.wait()?;
            same(
                &g.mem.read(b.gpa + g.hdr as u64, p.len()),
                p,
                "packet after the reset",
            )?;
        }
        g.receive_all(&[frame(7, 60), frame(8, 5000)])?;
        g.send_all(&[frame(9, 60)])?;
        check!(g.rx.err.read().is_err(), "an error after the restart");
    }
    Ok(())
}

fn bad_readable() -> Res {
    bad(VERSION_1, |g| {
        let b = g.buffer(400);
        g.rx.add(&[Seg { write: false, ..b }]);
        g.rx.publish();
    })
}

fn bad_readable_first() -> Res {
    bad(VERSION_1, |g| {
        let b = g.buffer(400);
        g.rx.add(&[Seg { write: false, ..b }, b]);
        g.rx.publish();
    })
}

fn bad_readable_last() -> Res {
    bad(VERSION_1, |g| {
        let b = g.buffer(400);
        g.rx.add(&[b, Seg { write: false, ..b }]);
        g.rx.publish();
    })
}

fn bad_empty() -> Res {
    bad(VERSION_1, |g| {
        g.rx.add(&[Seg::w(mem::BASE, 0)]);
        g.rx.publish();
    })
}

fn bad_address() -> Res {
    bad(VERSION_1, |g| {
        g.rx.add(&[Seg::w(0x10, 400)]);
        g.rx.publish();
    })
}

fn bad_address_mrg() -> Res {
    bad(VERSION_1 | MRG_RXBUF, |g| {
        let b = g.buffer(50);
        g.rx.add(&[b]);
        g.rx.add(&[Seg::w(u64::MAX - 4096, 400)]);
        g.rx.publish();
    })
}

fn bad_address_wraps() -> Res {
    bad(VERSION_1, |g| {
        g.rx.add(&[Seg::w(u64::MAX - 10, 400)]);
        g.rx.publish();
    })
}

fn bad_head() -> Res {
    bad(VERSION_1, |g| {
        g.rx.offer(256);
        g.rx.publish();
    })
}

fn bad_next() -> Res {
    bad(VERSION_1, |g| {
        g.rx.put_desc(g.rx.desc, 200, mem::BASE, 100, NEXT | WRITE, 0x8000);
        g.rx.offer(200);
        g.rx.publish();
    })
}

fn bad_loop() -> Res {
    bad(VERSION_1, |g| {
        g.rx.put_desc(g.rx.desc, 200, mem::BASE, 1, NEXT | WRITE, 201);
        g.rx.put_desc(g.rx.desc, 201, mem::BASE, 1, NEXT | WRITE, 200);
        g.rx.offer(200);
        g.rx.publish();
    })
}

fn main() {
    const TESTS: &[Test] = &[
        ("sizes_v1", sizes_v1),
        ("sizes_v1_mrg", sizes_v1_mrg),
        ("sizes_legacy", sizes_legacy),
        ("sizes_legacy_mrg", sizes_legacy_mrg),
        ("sizes_event_idx", sizes_event_idx),
        ("sizes_vhost_hdr", sizes_vhost_hdr),
        ("sizes_vhost_hdr_legacy", sizes_vhost_hdr_legacy),
        ("sizes_vhost_hdr_mrg", sizes_vhost_hdr_mrg),
        ("shapes_v1", shapes_v1),
        ("shapes_legacy", shapes_legacy),
        ("shapes_mrg", shapes_mrg),
        ("shapes_vhost_hdr", shapes_vhost_hdr),
        ("one_byte_segments", one_byte_segments),
        ("across_regions", across_regions),
        ("ring_1", || rings::ring_1(many)),
        ("ring_2", || rings::ring_2(many)),
        ("ring_256", || rings::ring_256(many)),
        ("ring_32768", || rings::ring_32768(many)),
        ("index_wrap", || rings::index_wrap(many)),
        ("index_wrap_long", || rings::index_wrap_long(many)),
        ("no_buffers", no_buffers),
        ("buffers_first", buffers_first),
        ("both_ways", both_ways),
        ("checksum", checksum),
        ("gso", gso),
        ("bad_readable", bad_readable),
        ("bad_readable_first", bad_readable_first),
        ("bad_readable_last", bad_readable_last),
        ("bad_empty", bad_empty),
        ("bad_address", bad_address),
        ("bad_address_mrg", bad_address_mrg),
        ("bad_address_wraps", bad_address_wraps),
        ("bad_head", bad_head),
        ("bad_next", bad_next),
        ("bad_loop", bad_loop),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &[
        "sizes_v1",
        "sizes_event_idx",
        "sizes_vhost_hdr_mrg",
        "shapes_v1",
        "shapes_mrg",
        "one_byte_segments",
        "across_regions",
        "ring_256",
        "no_buffers",
        "gso",
        "bad_readable",
        "bad_readable_last",
        "bad_empty",
        "bad_address_mrg",
        "bad_address_wraps",
    ];
    ktap::run_formats(TESTS, PACKED)
}
