// SPDX-License-Identifier: GPL-2.0

//! Chains whose descriptors lie in tables of their own.

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::ring::INDIRECT;
use kselftest::ring::NEXT;
use kselftest::ring::WRITE;
use kselftest::*;

const IND: u64 = VERSION_1 | INDIRECT_F;
const INDIRECT_F: u64 = feature::INDIRECT;

/// Cuts memory into pieces of `size`, the header apart.
fn cut(at: u64, total: usize, size: usize, write: bool) -> Vec<Seg> {
    let seg = |gpa, len| {
        if write {
            Seg::w(gpa, len)
        } else {
            Seg::r(gpa, len)
        }
    };
    let mut v = vec![seg(at, 12)];
    let mut done = 12;
    while done < total {
        let n = size.min(total - done);
        v.push(seg(at + done as u64, n));
        done += n;
    }
    v
}

/// Lengths of packets, and the sizes of their pieces.
const CUT: [(usize, usize); 7] = [
    (60, 60),
    (60, 1),
    (1000, 1),
    (1514, 700),
    (9000, 9),
    (65535, 65),
    (500, 13),
];

fn table(g: &Guest, n: usize) -> u64 {
    g.mem.alloc(16 * n, 16)
}

/// Packets out, each in a table of 1 to 1024 entries.
fn tx() -> Res {
    for features in [IND, IND | EVENT_IDX] {
        let mut g = Guest::new(Config::with(features))?;
        let mut n = 0;
        for (len, size) in CUT {
            n += 1;
            let p = frame(n, len);
            let segs = cut(g.place(&p), 12 + len, size, false);
            let t = table(&g, segs.len());
            g.tx.add_indirect(&segs, t);
            g.tx.submit();
            g.tx.wait()?;
            same(
                &g.peer.recv()?,
                &p,
                &format!("{len} bytes in {} pieces", segs.len()),
            )?;
        }
    }
    Ok(())
}

/// Packets in.
fn rx() -> Res {
    for features in [IND, IND | EVENT_IDX, IND | MRG_RXBUF] {
        let mut g = Guest::new(Config::with(features))?;
        let mut n = 0;
        for (len, size) in CUT {
            n += 1;
            let p = frame(n, len);
            let b = g.buffer(12 + len + 5);
            let segs = cut(b.gpa, 12 + len + 5, size, true);
            let t = table(&g, segs.len());
            let head = g.rx.add_indirect(&segs, t);
            g.rx.submit();
            g.peer.send(&p)?;
            let u = g.rx.wait()?;
            check_eq!(u.id, u32::from(head));
            check_eq!(u.len as usize, 12 + len);
            let got = g.mem.read(b.gpa, 12 + len + 5);
            g.check_rx_hdr(&got, 1)?;
            same(
                &got[12..12 + len],
                &p,
                &format!("{len} bytes in {} pieces", segs.len()),
            )?;
            check_eq!(got[12 + len..], [0xa5; 5], "behind the packet");
        }
    }
    Ok(())
}

/// A full ring of tables: many more buffers than the ring has entries.
fn full_ring() -> Res {
    let mut g = Guest::new(Config::with(IND | EVENT_IDX).base(65500).num(64))?;
    for round in 0..10 {
        let p: Vec<_> = (0..64)
            .map(|i| frame(100 * round + i, 60 + 10 * i as usize))
            .collect();
        for p in &p {
            let segs = cut(g.place(p), 12 + p.len(), 50, false);
            let t = table(&g, segs.len());
            g.tx.add_indirect(&segs, t);
            let b = g.buffer(12 + p.len());
            let segs = cut(b.gpa, 12 + p.len(), 50, true);
            let t = table(&g, segs.len());
            g.rx.add_indirect(&segs, t);
            g.peer.send(p)?;
        }
        g.tx.submit();
        g.rx.submit();
        for p in &p {
            g.tx.wait()?;
            same(&g.peer.recv()?, p, "sent")?;
            check_eq!(g.rx.wait()?.len as usize, 12 + p.len());
        }
    }
    Ok(())
}

/// Descriptors of the ring before an indirect one, in one chain.
fn mixed() -> Res {
    let mut g = Guest::new(Config::with(IND))?;
    for i in 0..20 {
        let p = frame(i, 300);
        let at = g.place(&p);
        let t = table(&g, 3);
        g.tx.put_table(
            t,
            &[
                Seg::r(at + 30, 70),
                Seg::r(at + 100, 1),
                Seg::r(at + 101, 211),
            ],
        );
        g.tx.add_raw(&[(at, 12, 0), (at + 12, 18, 0), (t, 48, INDIRECT)]);
        g.tx.submit();
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "sent packet")?;

        let b = g.buffer(312);
        let t = table(&g, 2);
        g.rx.put_table(t, &[Seg::w(b.gpa + 20, 100), Seg::w(b.gpa + 120, 192)]);
        g.rx.add_raw(&[(b.gpa, 20, WRITE), (t, 32, INDIRECT)]);
        g.rx.submit();
        g.peer.send(&p)?;
        check_eq!(g.rx.wait()?.len, 312);
        same(&g.mem.read(b.gpa + 12, 300), &p, "received packet")?;
    }
    Ok(())
}

/// A table that begins in one memory region and ends in another.
fn across_regions() -> Res {
    let r = sys::page_size() as u64;
    let regions = (0..8).map(|i| (0x1000_0000 + i * r, r));
    let cfg = Config {
        regions: [(mem::BASE, 8 << 20)].into_iter().chain(regions).collect(),
        ..Config::with(IND)
    };
    let mut g = Guest::new(cfg)?;
    for (before, pieces) in [(16, 1), (8, 1), (1, 7), (20, 1), (32, 3), (100, 1)] {
        let p = frame(1, 900);
        let t = 0x1000_0000 + 3 * r - before;
        let segs = cut(g.place(&p), 912, pieces, false);
        g.tx.add_indirect(&segs, t);
        g.tx.submit();
        g.tx.wait()?;
        same(
            &g.peer.recv()?,
            &p,
            &format!("table {before} bytes before a region's end"),
        )?;
    }
    Ok(())
}

/// A table in which the chain is shorter than the table, and one whose entries say nothing.
fn longer_than_its_chain() -> Res {
    let mut g = Guest::new(Config::with(IND))?;
    let p = frame(1, 200);
    let at = g.place(&p);
    let t = table(&g, 8);
    g.mem.fill(t, 128, 0xff);
    g.tx.put_table(t, &[Seg::r(at, 12), Seg::r(at + 12, 200)]);
    g.tx.add_raw(&[(t, 128, INDIRECT)]);
    g.tx.submit();
    g.tx.wait()?;
    same(&g.peer.recv()?, &p, "packet")
}

/// As many entries as a chain may have.
fn entries_1024() -> Res {
    let mut g = Guest::new(Config::with(IND))?;
    let p = frame(1, 2000);
    let at = g.place(&p);
    let mut segs: Vec<_> = (0..1023).map(|i| Seg::r(at + i, 1)).collect();
    segs.push(Seg::r(at + 1023, 2012 - 1023));
    let t = table(&g, 1024);
    g.tx.add_indirect(&segs, t);
    g.tx.submit();
    g.tx.wait()?;
    same(&g.peer.recv()?, &p, "packet")
}

/// A bad table, on both queues in turn: the queue stops, says so, and works after a reset.
fn bad(put: impl Fn(&Guest, bool) -> (u64, u32, u16)) -> Res {
    let mut g = Guest::new(Config::with(IND))?;
    let used = (g.tx.device_idx(), g.rx.device_idx());
    let d = put(&g, false);
    g.tx.add_raw(&[d]);
    g.tx.submit();
    g.tx.wait_err()?;
    check!(g.rx.err.read().is_err(), "an error of the other queue");
    let d = put(&g, true);
    g.rx.add_raw(&[d]);
    g.rx.submit();
    g.peer.send(&frame(1, 100))?;
    g.rx.wait_err()?;
    g.stop()?;
    check_eq!((g.tx.device_idx(), g.rx.device_idx()), used, "used indices");
    check!(g.peer.try_recv().is_none(), "something was sent");
    g.restart(9)?;
    let b = g.buffer(112);
    g.rx.add(&[b]);
    g.rx.submit();
    check_eq!(g.rx.wait()?.len, 112);
    same(
        &g.mem.read(b.gpa + 12, 100),
        &frame(1, 100),
        "the packet that met the bad table",
    )?;
    g.send_all(&[frame(2, 60)])?;
    g.receive_all(&[frame(3, 60)])
}

/// A table of one good entry for a frame of 100 bytes, as (address, length, flags).
fn good(g: &Guest, write: bool) -> (u64, u32, u16) {
    let at = g.place(&frame(9, 100));
    let t = table(g, 4);
    g.tx.put_desc(t, 0, at, 112, if write { WRITE } else { 0 }, 0);
    (t, 16, INDIRECT)
}

fn bad_length() -> Res {
    for n in [1, 15, 17, 31] {
        bad(|g, w| {
            let (t, _, f) = good(g, w);
            (t, n, f)
        })?;
    }
    Ok(())
}

fn bad_length_zero() -> Res {
    bad(|g, w| {
        let (t, _, f) = good(g, w);
        (t, 0, f)
    })
}

fn bad_length_huge() -> Res {
    bad(|g, w| {
        let (t, _, f) = good(g, w);
        (t, 16 * 65537, f)
    })
}

fn bad_length_4g() -> Res {
    bad(|g, w| {
        let (t, _, f) = good(g, w);
        (t, u32::MAX - 15, f)
    })
}

fn bad_address() -> Res {
    bad(|_, _| (0x10, 16, INDIRECT))
}

fn bad_address_wraps() -> Res {
    bad(|_, _| (u64::MAX - 20, 32, INDIRECT))
}

fn bad_nested() -> Res {
    bad(|g, w| {
        let (inner, ..) = good(g, w);
        let t = table(g, 1);
        g.tx.put_desc(t, 0, inner, 16, INDIRECT, 0);
        (t, 16, INDIRECT)
    })
}

fn bad_nested_second() -> Res {
    bad(|g, w| {
        let (inner, ..) = good(g, w);
        let t = table(g, 2);
        g.tx.put_desc(t, 0, mem::BASE, 12, NEXT | if w { WRITE } else { 0 }, 1);
        g.tx.put_desc(t, 1, inner, 16, INDIRECT, 0);
        (t, 32, INDIRECT)
    })
}

/// The last entry says that another follows.
fn bad_no_end() -> Res {
    bad(|g, w| {
        let (t, ..) = good(g, w);
        g.tx.put_desc(t, 0, mem::BASE, 100, NEXT | if w { WRITE } else { 0 }, 1);
        (t, 16, INDIRECT)
    })
}

fn bad_entry_address() -> Res {
    bad(|g, w| {
        let t = table(g, 1);
        g.tx.put_desc(t, 0, 1 << 50, 100, if w { WRITE } else { 0 }, 0);
        (t, 16, INDIRECT)
    })
}

/// Readable for the queue that writes, and the other way round.
fn bad_direction() -> Res {
    bad(|g, w| good(g, !w))
}

fn bad_readable_behind_writable() -> Res {
    bad(|g, _| {
        let t = table(g, 2);
        g.tx.put_table(t, &[Seg::w(mem::BASE, 100), Seg::r(mem::BASE, 100)]);
        (t, 32, INDIRECT)
    })
}

/// More buffers than a chain may have.
fn bad_entries_1025() -> Res {
    bad(|g, w| {
        let t = table(g, 1025);
        let at = g.place(&frame(9, 1025));
        let segs: Vec<_> = (0..1025)
            .map(|i| Seg {
                gpa: at + i,
                len: 1,
                write: w,
            })
            .collect();
        g.tx.put_table(t, &segs);
        (t, 16 * 1025, INDIRECT)
    })
}

fn main() {
    const TESTS: &[Test] = &[
        ("tx", tx),
        ("rx", rx),
        ("full_ring", full_ring),
        ("mixed", mixed),
        ("across_regions", across_regions),
        ("longer_than_its_chain", longer_than_its_chain),
        ("entries_1024", entries_1024),
        ("bad_length", bad_length),
        ("bad_length_zero", bad_length_zero),
        ("bad_length_huge", bad_length_huge),
        ("bad_length_4g", bad_length_4g),
        ("bad_address", bad_address),
        ("bad_address_wraps", bad_address_wraps),
        ("bad_nested", bad_nested),
        ("bad_nested_second", bad_nested_second),
        ("bad_no_end", bad_no_end),
        ("bad_entry_address", bad_entry_address),
        ("bad_direction", bad_direction),
        ("bad_readable_behind_writable", bad_readable_behind_writable),
        ("bad_entries_1025", bad_entries_1025),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &[
        "tx",
        "rx",
        "full_ring",
        "across_regions",
        "entries_1024",
        "bad_length",
        "bad_length_zero",
        "bad_length_huge",
        "bad_length_4g",
        "bad_address",
        "bad_address_wraps",
        "bad_entry_address",
        "bad_direction",
        "bad_readable_behind_writable",
        "bad_entries_1025",
    ];
    ktap::run_formats(TESTS, PACKED)
}
