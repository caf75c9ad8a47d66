// SPDX-License-Identifier: GPL-2.0

//! Packets from the guest to the tap.

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::ring::NEXT;
use kselftest::ring::WRITE;
use kselftest::sys::until;
use kselftest::*;
use vhost::VhostBackend;

/// Sizes around every limit on the way: minimum frame, a page and what the driver adds to it, the
/// largest frame.
const SIZES: &[usize] = &[
    14, 15, 17, 18, 42, 59, 60, 61, 64, 65, 100, 128, 256, 511, 1024, 1499, 1500, 1514, 2000, 2048,
    3000, 3500, 3520, 3600, 3648, 3700, 3712, 3776, 3840, 4000, 4083, 4084, 4095, 4096, 4097, 5000,
    8191, 8192, 8193, 9014, 16384, 32768, 40001, 65000, 65535,
];

fn sizes(features: u64) -> Res {
    let mut g = Guest::new(Config::with(features))?;
    for (i, chunk) in SIZES.chunks(9).enumerate() {
        let packets: Vec<_> = chunk
            .iter()
            .enumerate()
            .map(|(j, &n)| frame((16 * i + j) as u32, n))
            .collect();
        g.send_all(&packets)?;
    }
    check!(g.peer.try_recv().is_none(), "more packets than were sent");
    check!(g.tx.err.read().is_err(), "an error was signalled");
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

/// The driver strips the header; the tap has none.
fn sizes_vhost_hdr() -> Res {
    sizes(VERSION_1 | VHOST_NET_HDR)
}

fn sizes_vhost_hdr_legacy() -> Res {
    sizes(VHOST_NET_HDR)
}

/// Packets too short for an Ethernet header are used, not sent, and what follows them is.
fn runts() -> Res {
    let mut g = Guest::new(Config::default())?;
    for n in 1..14 {
        let at = g.place(&frame(0, n));
        g.tx.add(&[Seg::r(at, g.hdr + n)]);
    }
    g.tx.submit();
    for _ in 1..14 {
        check_eq!(g.tx.wait()?.len, 0);
    }
    g.send_all(&[frame(1, 60)])?;
    check!(g.peer.try_recv().is_none(), "a runt was sent");
    Ok(())
}

/// Cuts a packet in guest memory into buffers of the given sizes; the last takes the rest.
fn cut(at: u64, total: usize, sizes: &[usize]) -> Vec<Seg> {
    let mut v = vec![];
    let mut done = 0;
    for &n in sizes {
        let n = n.min(total - done);
        v.push(Seg::r(at + done as u64, n));
        done += n;
    }
    if done < total {
        v.push(Seg::r(at + done as u64, total - done));
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
            vec![hdr, 14],
            vec![4, 4, 4, 4, 4],
            vec![hdr + 14],
            vec![0, hdr, 0, 14, 0],
            few(1),
            few(7),
            few(64),
            few(509),
        ];
        for shape in shapes {
            n += 1;
            let p = frame(n, len);
            let at = g.place(&p);
            g.tx.add(&cut(at, total, &shape));
            g.tx.submit();
            check_eq!(g.tx.wait()?.len, 0);
            let got = g.peer.recv()?;
            same(
                &got,
                &p,
                &format!("{len} bytes as {:?}", &shape[..shape.len().min(6)]),
            )?;
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

fn shapes_vhost_hdr() -> Res {
    shapes(VERSION_1 | VHOST_NET_HDR)
}

/// Every byte in a buffer of its own, as many buffers as a queue has.
fn one_byte_segments() -> Res {
    let mut g = Guest::new(Config::default().num(1024))?;
    let len = 1024 - g.hdr;
    for i in 0..4 {
        let p = frame(i, len);
        let at = g.place(&p);
        g.tx.add(&cut(at, 1024, &[1; 1024]));
        g.tx.submit();
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "1024 buffers of 1 byte")?;
    }
    Ok(())
}

/// Packets that begin in one memory region and end in the next.
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
        for before in [1, 11, 12, 13, 26, 59] {
            n += 1;
            let p = frame(n, len);
            let at = 0x1000_0000 + 2 * r - before;
            g.mem.fill(at, g.hdr, 0);
            g.mem.write(at + g.hdr as u64, &p);
            g.tx.add(&[Seg::r(at, g.hdr + len)]);
            g.tx.submit();
            g.tx.wait()?;
            same(
                &g.peer.recv()?,
                &p,
                &format!("{len} bytes, {before} in the first region"),
            )?;
        }
    }
    Ok(())
}

/// Many packets through a ring of `num`, all of it used at a time.
fn many(cfg: Config, count: u32, len: impl Fn(u32) -> usize) -> Res {
    let mut g = Guest::new(cfg)?;
    let num = u32::from(g.tx.num);
    let slot = 2048;
    let area = g.mem.alloc((num * slot) as usize, 4096);
    let (mut sent, mut used, mut got) = (0, 0, 0);
    while got < count {
        while sent < count && g.tx.free() > 0 {
            let p = frame(sent, len(sent));
            let at = area + u64::from(sent % num * slot);
            g.mem.fill(at, g.hdr, 0);
            g.mem.write(at + g.hdr as u64, &p);
            g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
            sent += 1;
        }
        g.tx.submit();
        g.tx.wait()?;
        used += 1;
        while g.tx.pop().is_some() {
            used += 1;
        }
        while got < used {
            let p = g.peer.recv()?;
            same(
                &p,
                &frame(got, len(got)),
                &format!("packet {got} of {count}"),
            )?;
            got += 1;
        }
    }
    check_eq!(used, count);
    check_eq!(g.tx.used_idx, g.cfg.base.wrapping_add(count as u16));
    check_eq!(g.net.get_vring_base(TX)?, g.tx.base());
    check!(g.peer.try_recv().is_none(), "more packets than were sent");
    Ok(())
}

/// A checksum that the guest left to the device.
fn checksum() -> Res {
    for features in [VERSION_1, 0] {
        let mut g = Guest::new(Config {
            peer_vnet: true,
            ..Config::with(features)
        })?;
        for payload in [1, 1000, 1460, 3000, 8000] {
            let p = net::tcp_frame(payload, 7);
            let at = g.place(&p);
            // NEEDS_CSUM, no segmentation, header 54, checksum starts at 34 and goes to 34 + 16.
            g.mem.write(at, &[1, 0, 54, 0, 0, 0, 34, 0, 16, 0]);
            g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
            g.tx.submit();
            g.tx.wait()?;
            let got = g.peer.recv()?;
            check_eq!(got[0], 1, "flags of a packet of {payload}");
            check_eq!(got[1], 0, "GSO type");
            check_eq!(got[6..10], [34, 0, 16, 0], "checksum start and offset");
            same(&got[10..], &p, "packet with a partial checksum")?;
        }
    }
    Ok(())
}

/// The header length is less than where the checksum ends: the driver puts it right.
fn checksum_short_hdr_len() -> Res {
    let mut g = Guest::new(Config {
        peer_vnet: true,
        ..Default::default()
    })?;
    let p = net::tcp_frame(200, 7);
    let at = g.place(&p);
    g.mem.write(at, &[1, 0, 0, 0, 0, 0, 34, 0, 16, 0]);
    g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
    g.tx.submit();
    g.tx.wait()?;
    let got = g.peer.recv()?;
    check_eq!(got[0], 1, "flags");
    check_eq!(got[6..10], [34, 0, 16, 0], "checksum start and offset");
    same(&got[10..], &p, "packet")
}

/// Segmentation left to the device: the segment size arrives with the packet.
fn gso() -> Res {
    for features in [VERSION_1, VERSION_1 | MRG_RXBUF, 0] {
        let mut g = Guest::new(Config {
            peer_vnet: true,
            ..Config::with(features)
        })?;
        for (payload, mss) in [
            (2000, 1000),
            (2920, 1460),
            (3500, 536),
            (20000, 1448),
            (64000, 1448),
        ] {
            let p = net::tcp_frame(payload, 9);
            let at = g.place(&p);
            let [a, b] = (mss as u16).to_le_bytes();
            g.mem.write(at, &[1, 1, 54, 0, a, b, 34, 0, 16, 0]);
            g.tx.add(&cut(at, g.hdr + p.len(), &[g.hdr, 54, 1000]));
            g.tx.submit();
            g.tx.wait()?;
            let got = g.peer.recv()?;
            check_eq!(got[0] & 1, 1, "flags of a packet of {payload}");
            check_eq!(got[1], 1, "GSO type of a packet of {payload}");
            check_eq!(got[4..6], [a, b], "GSO size of a packet of {payload}");
            check_eq!(got[6..10], [34, 0, 16, 0], "checksum start and offset");
            same(&got[10..], &p, "GSO packet")?;
        }
    }
    Ok(())
}

/// A header that makes no sense costs its packet and nothing else.
fn bad_header() -> Res {
    let mut g = Guest::new(Config::default())?;
    let no_such_type = [0, 0x1f, 54, 0, 0, 5, 34, 0, 16, 0];
    let segments_of_nothing = [1, 1, 54, 0, 0, 0, 34, 0, 16, 0];
    for hdr in [no_such_type, segments_of_nothing] {
        let p = net::tcp_frame(600, 3);
        let at = g.place(&p);
        g.mem.write(at, &hdr);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
        g.tx.submit();
        check_eq!(g.tx.wait()?.len, 0);
        g.send_all(&[frame(1, 100), frame(2, 5000)])?;
    }
    check!(
        g.peer.try_recv().is_none(),
        "a packet with a bad header was sent"
    );
    Ok(())
}

/// Kicked once for many packets of very different sizes, so that batches are cut short again and again.
fn mixed_batch() -> Res {
    let mut g = Guest::new(Config::default())?;
    for round in 0..8 {
        let packets: Vec<_> = (0..200u32)
            .map(|i| {
                let n = match i % 7 {
                    0 => 5000 + i as usize,
                    3 => 20000,
                    x => 60 + 200 * x as usize,
                };
                frame(1000 * round + i, n)
            })
            .take(if round % 2 == 0 { 200 } else { 129 })
            .collect();
        g.send_all(&packets)?;
    }
    Ok(())
}

/// What was published while no backend was set is sent when one is.
fn published_before_backend() -> Res {
    let mut g = Guest::stopped(Config::default())?;
    let packets: Vec<_> = (0..50).map(|i| frame(i, 200)).collect();
    for p in &packets {
        let at = g.place(p);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
    }
    g.tx.publish();
    g.tx.kick();
    g.start()?;
    for p in &packets {
        g.tx.wait()?;
        same(&g.peer.recv()?, p, "packet")?;
    }
    Ok(())
}

/// Does something bad to the ring, and checks that the queue stops without using the chain, says so,
/// and works again once the VMM has reset it.
///
/// The three packets before the bad chain are sent: nothing is wrong with them.
fn bad(cfg: Config, error: bool, poison: impl Fn(&mut Guest)) -> Res {
    let mut g = Guest::new(cfg)?;
    for round in 0u16..2 {
        let base = g.tx.avail_idx;
        g.send_all(&[frame(1, 60)])?;
        let good: Vec<_> = (0..3).map(|i| frame(i, 300)).collect();
        for p in &good {
            let at = g.place(p);
            g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
        }
        poison(&mut g);
        g.tx.kick();
        for p in &good {
            g.tx.wait()?;
            same(&g.peer.recv()?, p, "packet before the bad chain")?;
        }
        if error {
            g.tx.wait_err()?;
        }
        g.stop()?;
        check_eq!(g.tx.device_idx(), base.wrapping_add(4), "the used index");
        check!(
            g.peer.try_recv().is_none(),
            "something was sent for a bad chain"
        );
        g.restart(round * 500)?;
        g.send_all(&[frame(7, 60), frame(8, 5000), frame(9, 1514)])?;
        g.receive_all(&[frame(10, 60)])?;
        check!(g.tx.err.read().is_err(), "an error after the restart");
    }
    Ok(())
}

fn bad_writable() -> Res {
    bad(Config::default(), true, |g| {
        let b = g.buffer(100);
        g.tx.add(&[b]);
        g.tx.publish();
    })
}

fn bad_writable_in_the_middle() -> Res {
    bad(Config::default(), true, |g| {
        let b = g.buffer(100);
        let r = Seg { write: false, ..b };
        g.tx.add(&[r, b, r]);
        g.tx.publish();
    })
}

fn bad_writable_last() -> Res {
    bad(Config::default(), true, |g| {
        let b = g.buffer(100);
        let r = Seg { write: false, ..b };
        g.tx.add(&[r, b]);
        g.tx.publish();
    })
}

/// A packet of `len` bytes, which is too short: it is dropped, and the next one is sent. The C driver stops at it, and says
/// so if `error`.
fn short(cfg: Config, error: bool, len: usize) -> Res {
    if sys::on_c() {
        return bad(cfg, error, |g| {
            g.tx.add(&[Seg::r(mem::BASE, len)]);
            g.tx.publish();
        });
    }
    let mut g = Guest::new(cfg)?;
    for _ in 0..3 {
        g.send_all(&[frame(1, 60)])?;
        g.tx.add(&[Seg::r(mem::BASE, len)]);
        g.tx.submit();
        check_eq!(g.tx.wait()?.len, 0);
        check!(g.tx.err.read().is_err(), "an error was signalled");
    }
    g.send_all(&[frame(2, 60)])?;
    check!(g.peer.try_recv().is_none(), "a short packet was sent");
    Ok(())
}

fn bad_empty() -> Res {
    short(Config::default(), true, 0)
}

/// Shorter than the header that the driver is to strip.
fn bad_short_vhost_hdr() -> Res {
    short(Config::with(VERSION_1 | VHOST_NET_HDR), true, 11)
}

/// Exactly the header and nothing behind it.
fn bad_only_vhost_hdr() -> Res {
    short(Config::with(VHOST_NET_HDR), true, 10)
}

/// Shorter than the header that the tap expects. The C driver does not say so by the error eventfd.
fn bad_short_tap_hdr() -> Res {
    short(Config::default(), false, 11)
}

fn bad_address() -> Res {
    bad(Config::default(), true, |g| {
        g.tx.add(&[Seg::r(0x10, 100)]);
        g.tx.publish();
    })
}

fn bad_address_behind_the_end() -> Res {
    bad(Config::default(), true, |g| {
        let r = g.mem.regions()[0];
        g.tx.add(&[Seg::r(r.gpa + r.size - 50, 51)]);
        g.tx.publish();
    })
}

/// The first part is good, the second lies outside.
fn bad_address_second() -> Res {
    bad(Config::default(), true, |g| {
        let at = g.place(&frame(1, 100));
        g.tx.add(&[Seg::r(at, 112), Seg::r(1 << 40, 100)]);
        g.tx.publish();
    })
}

fn bad_address_wraps() -> Res {
    bad(Config::default(), true, |g| {
        g.tx.add(&[Seg::r(u64::MAX - 10, 100)]);
        g.tx.publish();
    })
}

fn bad_length_4g() -> Res {
    bad(Config::default(), true, |g| {
        g.tx.add_raw(&[(mem::BASE, u32::MAX, 0)]);
        g.tx.publish();
    })
}

fn bad_head() -> Res {
    bad(Config::default(), true, |g| {
        g.tx.offer(256);
        g.tx.publish();
    })
}

fn bad_head_65535() -> Res {
    bad(Config::default(), true, |g| {
        g.tx.offer(65535);
        g.tx.publish();
    })
}

fn bad_next() -> Res {
    bad(Config::default(), true, |g| {
        g.tx.put_desc(g.tx.desc, 200, mem::BASE, 100, NEXT, 256);
        g.tx.offer(200);
        g.tx.publish();
    })
}

fn bad_loop_of_one() -> Res {
    bad(Config::default(), true, |g| {
        g.tx.put_desc(g.tx.desc, 200, mem::BASE, 100, NEXT, 200);
        g.tx.offer(200);
        g.tx.publish();
    })
}

fn bad_loop_of_three() -> Res {
    bad(Config::default(), true, |g| {
        for (i, next) in [(200, 210), (210, 220), (220, 210)] {
            g.tx.put_desc(g.tx.desc, i, mem::BASE, 100, NEXT, next);
        }
        g.tx.offer(200);
        g.tx.publish();
    })
}

/// The avail index jumps further than the ring is long.
fn bad_avail_jump() -> Res {
    let mut g = Guest::new(Config::default())?;
    for round in 0..2 {
        g.send_all(&[frame(1, 60)])?;
        let used = g.tx.device_idx();
        g.tx.publish_idx(g.tx.avail_idx.wrapping_add(257));
        g.tx.kick();
        g.tx.wait_err()?;
        g.stop()?;
        check_eq!(g.tx.device_idx(), used, "the used index");
        g.restart(round * 77)?;
        g.send_all(&[frame(2, 60)])?;
    }
    Ok(())
}

/// A chain of a bad kind that the guest repairs: the VMM need not help.
///
/// It continues behind the bad chain or with it, as the driver likes; what comes later is sent.
fn repaired_by_the_guest() -> Res {
    let mut g = Guest::new(Config::default())?;
    g.tx.put_desc(g.tx.desc, 200, 0x10, 100, 0, 0);
    g.tx.offer(200);
    g.tx.publish();
    g.tx.kick();
    g.tx.wait_err()?;
    let p = frame(1, 100);
    let at = g.place(&p);
    g.tx.put_desc(g.tx.desc, 200, at, 112, 0, 0);
    g.tx.kick();
    same(&g.peer.recv()?, &p, "the repaired packet")?;
    check!(
        until(|| g.tx.device_idx() == 1),
        "the repaired chain was not used"
    );
    Ok(())
}

/// One of several entries names no chain; the driver mends it where it is.
fn repaired_entry() -> Res {
    let mut g = Guest::new(Config::default())?;
    let packets: Vec<_> = (0..5).map(|n| frame(n, 100)).collect();
    for p in &packets {
        let at = g.place(p);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
    }
    // The third.
    let entry = g.tx.avail + 4 + 2 * 2;
    let good = g.mem.read(entry, 2);
    g.mem.write(entry, &[0xff, 0xff]);
    g.tx.publish();
    g.tx.kick();
    g.tx.wait_err()?;
    check_eq!(g.tx.device_idx(), 2, "used before the wild one");
    g.mem.write(entry, &good);
    g.tx.kick();
    for p in &packets {
        same(&g.peer.recv()?, p, "packet")?;
        g.tx.spin()?;
    }
    check!(g.tx.err.read().is_err(), "an error for what was mended");
    Ok(())
}

/// Descriptor flags that mean nothing here are ignored.
fn unknown_flags() -> Res {
    let mut g = Guest::new(Config::default())?;
    let p = frame(1, 100);
    let at = g.place(&p);
    g.tx.add_raw(&[(at, 12, 0xfff8 & !WRITE & !NEXT), (at + 12, 100, 0xff00)]);
    g.tx.submit();
    g.tx.wait()?;
    same(&g.peer.recv()?, &p, "packet")
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
        ("runts", runts),
        ("shapes_v1", shapes_v1),
        ("shapes_legacy", shapes_legacy),
        ("shapes_vhost_hdr", shapes_vhost_hdr),
        ("one_byte_segments", one_byte_segments),
        ("across_regions", across_regions),
        ("ring_1", || rings::ring_1(many)),
        ("ring_2", || rings::ring_2(many)),
        ("ring_256", || rings::ring_256(many)),
        ("ring_32768", || rings::ring_32768(many)),
        ("index_wrap", || rings::index_wrap(many)),
        ("index_wrap_long", || rings::index_wrap_long(many)),
        ("checksum", checksum),
        ("checksum_short_hdr_len", checksum_short_hdr_len),
        ("gso", gso),
        ("bad_header", bad_header),
        ("mixed_batch", mixed_batch),
        ("published_before_backend", published_before_backend),
        ("unknown_flags", unknown_flags),
        ("bad_writable", bad_writable),
        ("bad_writable_in_the_middle", bad_writable_in_the_middle),
        ("bad_writable_last", bad_writable_last),
        ("bad_empty", bad_empty),
        ("bad_short_vhost_hdr", bad_short_vhost_hdr),
        ("bad_only_vhost_hdr", bad_only_vhost_hdr),
        ("bad_short_tap_hdr", bad_short_tap_hdr),
        ("bad_address", bad_address),
        ("bad_address_behind_the_end", bad_address_behind_the_end),
        ("bad_address_second", bad_address_second),
        ("bad_address_wraps", bad_address_wraps),
        ("bad_length_4g", bad_length_4g),
        ("bad_head", bad_head),
        ("bad_head_65535", bad_head_65535),
        ("bad_next", bad_next),
        ("bad_loop_of_one", bad_loop_of_one),
        ("bad_loop_of_three", bad_loop_of_three),
        ("bad_avail_jump", bad_avail_jump),
        ("repaired_by_the_guest", repaired_by_the_guest),
        ("repaired_entry", repaired_entry),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &[
        "sizes_v1",
        "sizes_event_idx",
        "sizes_vhost_hdr",
        "runts",
        "shapes_v1",
        "one_byte_segments",
        "across_regions",
        "ring_256",
        "gso",
        "bad_header",
        "mixed_batch",
        "published_before_backend",
        "bad_writable_in_the_middle",
        "bad_writable_last",
        "bad_empty",
        "bad_short_tap_hdr",
        "bad_address",
        "bad_address_second",
        "bad_length_4g",
    ];
    ktap::run_formats(TESTS, PACKED)
}
