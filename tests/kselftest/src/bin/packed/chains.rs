// SPDX-License-Identifier: GPL-2.0

//! Descriptors: those that are available, those that are used, and those that are neither.

use kselftest::ring::INDIRECT as INDIRECT_FLAG;
use kselftest::ring::NEXT;
use kselftest::ring::WRITE;
use kselftest::sys::until;

use super::*;

/// Sizes that are no power of two, and those that are, around more than once.
pub fn sizes() -> Res {
    for (i, num) in [1, 2, 3, 5, 7, 8, 100, 255].into_iter().enumerate() {
        let features = if i % 2 == 0 { EVENT_IDX } else { 0 };
        let mut g = Guest::new(config(features, num).base(2 * num - 1))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        Traffic::new(&g, area).run(&mut g, 40 + 3 * u32::from(num))?;
        stands(&g)?;
    }
    Ok(())
}

/// The largest that there may be, from shortly before each end.
pub fn sizes_large() -> Res {
    for num in [32767, 32768] {
        for base in [num - 30, (2 * u32::from(num) - 30) as u16] {
            let mut g = Guest::new(config(EVENT_IDX, num).base(base))?;
            for round in 0..4 {
                let packets: Vec<_> = (0..20).map(|i| frame(20 * round + i, 60)).collect();
                g.send_all(&packets)?;
                g.receive_all(&packets)?;
            }
            stands(&g)?;
        }
    }
    Ok(())
}

/// Chains of all lengths, that begin and end anywhere.
pub fn lengths() -> Res {
    for features in [0, EVENT_IDX, IN_ORDER] {
        let mut g = Guest::new(config(features, 7))?;
        for round in 0..60u32 {
            let parts = 1 + (round * round) as usize % 7;
            let p = frame(round, 68 + round as usize);
            let at = g.place(&p);
            let total = g.hdr + p.len();
            let cut = |write: bool, at: u64| -> Vec<Seg> {
                let size = total / parts;
                let len = |i: usize| {
                    if i + 1 == parts {
                        total - i * size
                    } else {
                        size
                    }
                };
                let seg = |i| Seg {
                    gpa: at + (i * size) as u64,
                    len: len(i) as u32,
                    write,
                };
                (0..parts).map(seg).collect()
            };
            g.tx.add(&cut(false, at));
            g.tx.submit();
            check_eq!(g.tx.wait()?.len, 0);
            same(&g.peer.recv()?, &p, &format!("sent, {parts} parts"))?;
            let b = g.buffer(total);
            g.rx.add(&cut(true, b.gpa));
            g.rx.submit();
            g.peer.send(&p)?;
            check_eq!(g.rx.wait()?.len as usize, total);
            let got = g.mem.read(b.gpa, total);
            g.check_rx_hdr(&got, 1)?;
            same(&got[g.hdr..], &p, &format!("received, {parts} parts"))?;
            stands(&g)?;
        }
    }
    Ok(())
}

/// Streams both ways, with what a Linux guest and QEMU agree on.
pub fn both_ways() -> Res {
    for features in [MRG_RXBUF | EVENT_IDX | INDIRECT, MRG_RXBUF, IN_ORDER] {
        let mut g = Guest::new(config(features, 256).base(200))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        Traffic::new(&g, area).run(&mut g, amount(2000))?;
        stands(&g)?;
    }
    Ok(())
}

/// What was taken for a packet that needs more is given back, also over the ring's end, as often as it likes; and the packet comes
/// when there is enough.
pub fn given_back() -> Res {
    for features in [0, EVENT_IDX, IN_ORDER] {
        let mut g = Guest::new(config(MRG_RXBUF | features, 7))?;
        for round in 0..25 {
            let p = frame(round, 388);
            g.peer.send(&p)?;
            let b = g.buffer(400);
            for i in 0..4u64 {
                check!(until(|| g.rx.wants_next()), "no wish for buffers");
                stands(&g)?;
                let at = b.gpa + i * 100;
                match i {
                    0 | 2 => g.rx.add(&[Seg::w(at, 50), Seg::w(at + 50, 50)]),
                    _ => g.rx.add(&[Seg::w(at, 100)]),
                };
                g.rx.submit();
            }
            for _ in 0..4 {
                check_eq!(g.rx.wait()?.len, 100);
            }
            let got = g.mem.read(b.gpa, 400);
            g.check_rx_hdr(&got, 4)?;
            same(&got[g.hdr..], &p, "packet")?;
            stands(&g)?;
        }
    }
    Ok(())
}

/// A packet that is sent is used by one descriptor, at the place of its first, that says that nothing was written. The others
/// stay as they are.
pub fn used_sent() -> Res {
    let mut g = Guest::new(config(0, 5))?;
    for i in 0..12 {
        let spot = g.tx.packed().avail;
        let p = frame(i, 300);
        let at = g.place(&p);
        let from = at + g.hdr as u64;
        let segs = [
            Seg::r(at, g.hdr),
            Seg::r(from, 100),
            Seg::r(from + 100, 200),
        ];
        let head = g.tx.add(&segs);
        let before = [1, 2].map(|n| g.tx.packed().read(spot.after(n)));
        g.tx.submit();
        check!(
            until(|| g.tx.packed().used_at(spot).is_some()),
            "packet {i} is not used"
        );
        let used = g.tx.packed().read(spot);
        check_eq!(used.id, head, "packet {i}");
        check_eq!(used.flags & WRITE, 0, "nothing was written");
        check_eq!(used.flags & (AVAIL | USED), spot.used(), "packet {i}");
        let after = [1, 2].map(|n| g.tx.packed().read(spot.after(n)));
        check_eq!(after, before, "the others of packet {i}");
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "packet")?;
    }
    Ok(())
}

/// One that is received: so many bytes were written.
pub fn used_received() -> Res {
    let mut g = Guest::new(config(0, 5))?;
    for i in 0..12 {
        let spot = g.rx.packed().avail;
        let b = g.buffer(600);
        let segs = [Seg::w(b.gpa, 50), Seg::w(b.gpa + 50, 550)];
        let head = g.rx.add(&segs);
        let before = g.rx.packed().read(spot.after(1));
        g.rx.submit();
        let p = frame(i, 60 + i as usize);
        g.peer.send(&p)?;
        check!(
            until(|| g.rx.packed().used_at(spot).is_some()),
            "packet {i} is not used"
        );
        let used = g.rx.packed().read(spot);
        check_eq!((used.id, used.len as usize), (head, g.hdr + p.len()));
        check_eq!(used.flags & WRITE, WRITE, "packet {i}");
        check_eq!(used.flags & (AVAIL | USED), spot.used(), "packet {i}");
        let after = g.rx.packed().read(spot.after(1));
        check_eq!(after, before, "the other one of packet {i}");
        g.rx.wait()?;
    }
    Ok(())
}

/// A buffer's id is any number, that of its last descriptor; in the others it means nothing.
pub fn ids() -> Res {
    let mut g = Guest::new(config(0, 5))?;
    for id in [0xffff, 0, 0x8000, 0x1234, 5, 0xffff, 0xfffe, 1, 1, 0xbeef] {
        for index in [TX, RX] {
            let p = frame(id.into(), 60);
            let s = match index {
                TX => Seg::r(g.place(&p), g.hdr + p.len()),
                _ => g.buffer(g.hdr + p.len()),
            };
            let flags = if s.write { WRITE } else { 0 };
            let list = [
                (s.gpa, 30, flags),
                (s.gpa + 30, 20, flags),
                (s.gpa + 50, s.len - 50, flags),
            ];
            let packed = ring(&mut g, index).packed_mut();
            packed.add(&list, id);
            packed.publish();
            ring(&mut g, index).kick();
            if index == RX {
                g.peer.send(&p)?;
            }
            let packed = ring(&mut g, index).packed_mut();
            let mut used = None;
            until(|| {
                used = packed.used_at(packed.used);
                used.is_some()
            });
            let used = used.ok_or(Fail(format!("queue {index}: {id:#x} is not used")))?;
            check_eq!(used.id, u32::from(id), "queue {index}");
            packed.used = packed.used.after(3);
            if index == TX {
                same(&g.peer.recv()?, &p, "packet")?;
            }
        }
    }
    stands(&g)
}

/// A packet in several buffers: who sees the first of them used sees the others used, too.
///
/// Looked at without a pause, as a driver that polls does.
pub fn first_last() -> Res {
    let mut g = Guest::new(config(MRG_RXBUF, 100).base(150))?;
    for round in 0..amount(200) {
        let b = g.buffer(1200);
        let spot = g.rx.packed().avail;
        for i in 0..12 {
            g.rx.add(&[Seg::w(b.gpa + 100 * i, 100)]);
        }
        g.rx.submit();
        g.peer.send(&frame(round, 1188))?;
        let deadline = deadline();
        while g.rx.packed().used_at(spot).is_none() {
            check!(std::time::Instant::now() < deadline, "nothing is used");
            std::hint::spin_loop();
        }
        let packed = g.rx.packed();
        let there = (0..12).filter(|&i| packed.used_at(spot.after(i)).is_some());
        check_eq!(there.count(), 12, "used when the first one was, {round}");
        for _ in 0..12 {
            check_eq!(g.rx.pop().map(|u| u.len), Some(100));
        }
    }
    Ok(())
}

/// In order, one descriptor stands for all the packets that are sent together: at the place of the first, with the id of the last.
pub fn in_order_sent() -> Res {
    for base in [0, 95, 199] {
        let mut g = Guest::stopped(config(IN_ORDER, 100).base(base))?;
        for count in [1, 50, 2, 33] {
            let spot = g.tx.packed().avail;
            let packets: Vec<_> = (0..count).map(|i| frame(i, 60 + i as usize)).collect();
            let mut heads = vec![];
            for p in &packets {
                let s = Seg::r(g.place(p), g.hdr + p.len());
                heads.push(g.tx.add(&[s]));
            }
            g.tx.submit();
            g.start()?;
            let mut got = None;
            until(|| {
                got = g.tx.pop_batch();
                got.is_some()
            });
            let (used, all) = got.ok_or(Fail("nothing used".into()))?;
            check_eq!(all, heads, "the chains of {count} packets");
            check_eq!(used.len, 0);
            for p in &packets {
                same(&g.peer.recv()?, p, "packet")?;
            }
            g.stop()?;
            stands(&g)?;
            for i in 1..count as usize {
                let spot = spot.after(i);
                let flags = g.tx.packed().read(spot).flags;
                check_eq!(flags & (AVAIL | USED), spot.avail(), "descriptor {i}");
            }
        }
    }
    Ok(())
}

/// And for all the buffers of a packet that is received.
pub fn in_order_received() -> Res {
    let mut g = Guest::new(config(IN_ORDER | MRG_RXBUF, 7).base(5))?;
    for round in 0..20 {
        let b = g.buffer(400);
        let spot = g.rx.packed().avail;
        let heads: Vec<_> = (0..4)
            .map(|i| g.rx.add(&[Seg::w(b.gpa + 100 * i, 100)]))
            .collect();
        g.rx.submit();
        let p = frame(round, 350);
        g.peer.send(&p)?;
        let mut got = None;
        until(|| {
            got = g.rx.pop_batch();
            got.is_some()
        });
        let (used, all) = got.ok_or(Fail("nothing used".into()))?;
        check_eq!(all, heads, "the chains of a packet");
        check_eq!(used.len as usize, g.hdr + 350 - 300, "bytes in the last");
        let got = g.mem.read(b.gpa, g.hdr + 350);
        g.check_rx_hdr(&got, 4)?;
        same(&got[g.hdr..], &p, "packet")?;
        for i in 1..4 {
            let spot = spot.after(i);
            let flags = g.rx.packed().read(spot).flags;
            check_eq!(flags & (AVAIL | USED), spot.avail(), "descriptor {i}");
        }
        settle(&g)?;
        stands(&g)?;
    }
    Ok(())
}

/// A chain may be as long as the ring.
pub fn whole_ring() -> Res {
    let mut g = Guest::new(config(0, 8))?;
    for round in 0..20 {
        // From here and there.
        g.restart(round % 16)?;
        let p = frame(round.into(), 68);
        let at = g.place(&p);
        let segs: Vec<_> = (0..8).map(|i| Seg::r(at + 10 * i, 10)).collect();
        g.tx.add(&segs);
        g.tx.submit();
        check_eq!(g.tx.wait()?.len, 0);
        same(&g.peer.recv()?, &p, "packet")?;
        stands(&g)?;
    }
    Ok(())
}

/// A table of descriptors for a queue, each with these flags more and an id, and how long it is.
pub fn table(g: &Guest, index: usize, flags: u16) -> (u64, Seg) {
    let at = g.mem.alloc(64, 16);
    let s = piece(g, index);
    let write = if s.write { WRITE } else { 0 };
    for i in 0..4u16 {
        let len = if i == 3 { s.len - 60 } else { 20 };
        let from = s.gpa + 20 * u64::from(i);
        g.tx.put_desc(at, i, from, len, flags | write, 0x1111 * i);
    }
    (at, s)
}

/// In a table only WRITE means something: all of its descriptors are the chain, whatever else they say. Of the descriptor that
/// names it, WRITE means nothing.
pub fn indirect() -> Res {
    let mut g = Guest::new(config(INDIRECT, 5))?;
    for flags in [0, NEXT, AVAIL, USED, AVAIL | USED | NEXT, 0x7f78] {
        for outer in [0, WRITE] {
            for index in [TX, RX] {
                let what = format!("queue {index}, {flags:#x} within, {outer:#x} outside");
                let why = |Fail(why)| Fail(format!("{what}: {why}"));
                let (at, s) = table(&g, index, flags);
                let r = ring(&mut g, index);
                let head = r.add_raw(&[(at, 64, INDIRECT_FLAG | outer)]);
                r.submit();
                if index == RX {
                    g.peer.send(&frame(2, 150))?;
                }
                let used = ring(&mut g, index).wait().map_err(why)?;
                check_eq!(used.id, u32::from(head), "{what}");
                if index == RX {
                    check_eq!(used.len as usize, g.hdr + 150, "{what}");
                    let got = g.mem.read(s.gpa + g.hdr as u64, 150);
                    same(&got, &frame(2, 150), &what)?;
                } else {
                    same(&g.peer.recv()?, &frame(1, 60), &what)?;
                }
                stands(&g).map_err(why)?;
            }
        }
    }
    Ok(())
}
