// SPDX-License-Identifier: GPL-2.0

//! Descriptors that are not available, and chains that no driver may offer.

use kselftest::ring::INDIRECT as INDIRECT_FLAG;
use kselftest::ring::NEXT;
use kselftest::sys::page_size;
use kselftest::sys::until;

use super::chains::table;
use super::*;

/// A descriptor is available if one of its two bits is as the wrap counter is, and the other is not. Everything else is not.
pub fn not_available() -> Res {
    let mut g = Guest::new(config(0, 3))?;
    for base in [0, 1, 3, 5] {
        g.restart(base)?;
        for index in [TX, RX] {
            let spot = ring(&mut g, index).packed().avail;
            for flags in [0, AVAIL, USED, AVAIL | USED] {
                if flags == spot.avail() {
                    continue;
                }
                for i in 0..3 {
                    // Nothing that anybody could do something with.
                    let d = Desc {
                        addr: 0x10,
                        len: 0,
                        id: 7,
                        flags,
                    };
                    ring(&mut g, index).packed().write(spot.after(i), d);
                }
                ring(&mut g, index).kick();
                if index == RX {
                    g.peer.send(&frame(1, 60))?;
                }
                settle(&g)?;
                std::thread::sleep(std::time::Duration::from_millis(5));
                stands(&g)?;
            }
        }
    }
    g.restart(4)?;
    for _ in 0..12 {
        let b = g.buffer(100);
        g.rx.add(&[b]);
        g.rx.submit();
        g.rx.wait()?;
    }
    g.send_all(&[frame(2, 60)])
}

/// A bad chain, behind nothing, on both queues and with both wrap counters: the queue stops, says so, has used nothing, and works
/// after a reset. `put` writes it, the flags of its first descriptor last.
fn bad(features: u64, num: u16, put: impl Fn(&mut Guest, usize, Spot)) -> Res {
    let mut g = Guest::new(config(features, num))?;
    for base in [0, num, num - 1, 2 * num - 2] {
        for index in [TX, RX] {
            g.restart(base)?;
            let spot = ring(&mut g, index).packed().avail;
            put(&mut g, index, spot);
            let r = ring(&mut g, index);
            r.kick();
            if index == RX {
                g.peer.send(&frame(1, 60))?;
            }
            let what = format!("queue {index}, from {base}");
            let why = |Fail(why)| Fail(format!("{what}: {why}"));
            ring(&mut g, index).wait_err().map_err(why)?;
            g.stop()?;
            let used = ring(&mut g, index).packed().used_at(spot);
            check_eq!(used, None, "{what}");
            let (got, want) = (g.net.get_vring_base(index)?, ring(&mut g, index).base());
            check_eq!(got, want, "{what}: the base");
            check!(g.peer.try_recv().is_none(), "{what}: sent");
            g.restart(base)?;
            if index == RX {
                // The packet that met it.
                let b = g.buffer(100);
                g.rx.add(&[b]);
                g.rx.submit();
                g.rx.wait().map_err(why)?;
            }
            works(&mut g).map_err(why)?;
        }
    }
    Ok(())
}

/// Writes a chain of which the one in the middle is not available.
fn put_hole(g: &mut Guest, index: usize, spot: Spot) {
    let s = piece(g, index);
    let part = |n: u64| Seg {
        gpa: s.gpa + 20 * n,
        len: 20,
        ..s
    };
    let packed = ring(g, index).packed();
    packed.write(spot.after(2), desc(&part(2), 1, spot.after(2).avail()));
    let before = spot.after(1).before(packed_num(spot));
    packed.write(spot.after(1), desc(&part(1), 1, before.used() | NEXT));
    packed.write(spot, desc(&part(0), 1, spot.avail() | NEXT));
}

/// How many descriptors a lap has.
fn packed_num(spot: Spot) -> usize {
    (1..)
        .find(|&n| spot.after(n).index() == spot.index())
        .unwrap_or(1)
}

/// A chain of which a descriptor in the middle is not available.
pub fn hole() -> Res {
    bad(0, 5, put_hole)
}

/// The guest mends it: it is used then, as a whole, without the VMM.
pub fn hole_mended() -> Res {
    let mut g = Guest::new(config(0, 5))?;
    for round in 0..8 {
        let spot = g.tx.packed().avail;
        put_hole(&mut g, TX, spot);
        g.tx.kick();
        g.tx.wait_err()?;
        check_eq!(g.tx.packed().used_at(spot), None, "round {round}");
        let p = frame(round, 90);
        let at = g.place(&p);
        let r = |n: u64, len| Seg::r(at + 34 * n, len);
        let packed = g.tx.packed_mut();
        let flags = |n| spot.after(n).avail();
        packed.write(spot, desc(&r(0, 34), 9, flags(0) | NEXT));
        packed.write(spot.after(2), desc(&r(2, 34), 9, flags(2)));
        packed.write(spot.after(1), desc(&r(1, 34), 9, flags(1) | NEXT));
        packed.avail = spot.after(3);
        g.tx.kick();
        let used = || g.tx.packed().used_at(spot).is_some_and(|u| u.id == 9);
        check!(until(used), "the mended chain was not used");
        g.tx.packed_mut().used = spot.after(3);
        same(&g.peer.recv()?, &p, "packet")?;
        settle(&g)?;
        let _ = g.tx.err.read();
        stands(&g)?;
    }
    Ok(())
}

/// And not longer: all descriptors say that another follows.
pub fn endless() -> Res {
    for num in [1, 5, 8] {
        bad(0, num, |g, index, spot| {
            let s = piece(g, index);
            let packed = ring(g, index).packed();
            for i in (0..usize::from(num)).rev() {
                let at = spot.after(i);
                packed.write(at, desc(&Seg { len: 8, ..s }, 1, at.avail() | NEXT));
            }
        })?;
    }
    Ok(())
}

/// A descriptor that names a table is not one of a chain.
pub fn indirect_and_next() -> Res {
    bad(INDIRECT, 5, |g, index, spot| {
        let (at, s) = table(g, index, 0);
        let named = Seg::r(at, 64);
        let packed = ring(g, index).packed();
        packed.write(spot.after(1), desc(&s, 1, spot.after(1).avail()));
        let flags = spot.avail() | INDIRECT_FLAG | NEXT;
        packed.write(spot, desc(&named, 1, flags));
    })
}

/// A chain has its descriptors in the ring or in a table, not some here and some there.
pub fn indirect_and_direct() -> Res {
    bad(INDIRECT, 5, |g, index, spot| {
        let (at, s) = table(g, index, 0);
        let named = Seg::r(at, 64);
        let packed = ring(g, index).packed();
        let second = spot.after(1);
        packed.write(second, desc(&named, 1, second.avail() | INDIRECT_FLAG));
        packed.write(spot, desc(&s, 1, spot.avail() | NEXT));
    })
}

/// Descriptors that can't be read stop the queue, which goes on when they can.
pub fn unreadable() -> Res {
    let mut g = Guest::new(config(0, 5))?;
    let protect = |g: &Guest, prot: i32| -> Res {
        let (at, _) = g.mem.hva(g.tx.desc);
        // SAFETY: a page of guest memory that nobody but the device touches meanwhile.
        check_eq!(unsafe { libc::mprotect(at.cast(), page_size(), prot) }, 0);
        Ok(())
    };
    for round in 0..7 {
        works(&mut g)?;
        let p = frame(round, 60);
        let at = g.place(&p);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
        g.tx.publish();
        protect(&g, libc::PROT_NONE)?;
        g.tx.kick();
        g.tx.wait_err()?;
        protect(&g, libc::PROT_READ | libc::PROT_WRITE)?;
        g.tx.kick();
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "packet")?;
        settle(&g)?;
        let _ = g.tx.err.read();
    }
    Ok(())
}
