// SPDX-License-Identifier: GPL-2.0

//! Chains used in the order they were made available, and one entry that stands for many.
//!
//! Where the entries are is what the C driver does: one for each packet received, at the place of its
//! first chain, and one for all the packets sent together.

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::ring::Used;
use kselftest::sys::until;
use kselftest::*;
use vhost::VhostBackend;

const V1: u64 = VERSION_1 | IN_ORDER;
const MRG: u64 = V1 | MRG_RXBUF;

/// What no device writes to a used entry.
const UNTOUCHED: Used = Used {
    id: 0xeeee_eeee,
    len: 0xeeee_eeee,
};

fn mark_entries(g: &Guest, ring: &Ring) {
    g.mem.fill(ring.used + 4, 8 * usize::from(ring.num), 0xee);
}

/// Every place of the used ring holds what `want` says, and the others were not written.
fn check_entries(ring: &Ring, want: &[(u16, Used)]) -> Res {
    for slot in 0..ring.num {
        let of_slot = |(idx, _): &&(u16, Used)| idx & (ring.num - 1) == slot;
        let want = want.iter().find(of_slot).map_or(UNTOUCHED, |w| w.1);
        check_eq!(ring.entry(slot), want, "the used entry at {slot}");
    }
    Ok(())
}

/// Waits for an entry of a queue, and takes it and the chains that it stands for.
fn wait_batch(ring: &mut Ring) -> Res<(Used, Vec<u16>)> {
    let mut got = None;
    until(|| {
        got = ring.pop_batch();
        got.is_some()
    });
    match got {
        Some(batch) => Ok(batch),
        None => bail!("nothing used (at {})", ring.used_idx),
    }
}

/// Packets that are there when the device starts are one batch, and one entry says so.
fn tx_one_entry() -> Res {
    for (features, base) in [(V1, 0), (V1, 65500), (V1 | EVENT_IDX, 250), (IN_ORDER, 7)] {
        let mut g = Guest::stopped(Config::with(features).base(base))?;
        for count in [1, 50, 2, 33] {
            mark_entries(&g, &g.tx);
            let at = g.tx.used_idx;
            let packets: Vec<_> = (0..count).map(|i| frame(i, 60 + i as usize)).collect();
            let mut heads = vec![];
            for p in &packets {
                let seg = Seg::r(g.place(p), g.hdr + p.len());
                heads.push(g.tx.add(&[seg]));
            }
            g.tx.submit();
            g.start()?;
            let (used, got) = wait_batch(&mut g.tx)?;
            for (i, p) in packets.iter().enumerate() {
                same(&g.peer.recv()?, p, &format!("packet {i} of {count}"))?;
            }
            g.stop()?;
            check_eq!(got, heads, "the chains of {count} packets");
            check_eq!(used.len, 0);
            check_entries(&g.tx, &[(at, used)])?;
        }
        check!(g.tx.err.read().is_err(), "an error was signalled");
    }
    Ok(())
}

/// More packets than one batch has: each entry is where the chains before it end.
fn tx_many_entries() -> Res {
    for base in [0, 65400] {
        let mut g = Guest::stopped(Config::with(V1).base(base))?;
        mark_entries(&g, &g.tx);
        for i in 0..250 {
            let seg = Seg::r(g.place(&frame(i, 60)), g.hdr + 60);
            g.tx.add(&[seg]);
        }
        g.tx.submit();
        g.start()?;
        let (mut want, mut done) = (vec![], 0);
        while done < 250 {
            let at = g.tx.used_idx;
            let (used, heads) = wait_batch(&mut g.tx)?;
            want.push((at, used));
            done += heads.len();
        }
        for i in 0..250 {
            same(&g.peer.recv()?, &frame(i, 60), &format!("packet {i}"))?;
        }
        g.stop()?;
        check_entries(&g.tx, &want)?;
        check!(
            want.len() <= 10,
            "{} entries for 250 packets that waited",
            want.len()
        );
    }
    Ok(())
}

/// Packets too long for a batch, and those that are not, keep their order and share their entries.
fn tx_sizes() -> Res {
    let mut g = Guest::new(Config::with(V1 | EVENT_IDX).base(65500))?;
    for round in 0..20 {
        let len = |i: u32| [60, 1514, 9000, 4000, 65000, 14][(round + i) as usize % 6];
        let packets: Vec<_> = (0..7).map(|i| frame(10 * round + i, len(i))).collect();
        g.send_all(&packets)?;
    }
    check!(g.tx.err.read().is_err(), "an error was signalled");
    Ok(())
}

/// A packet cut into buffers of `size`, and the last takes the rest.
fn cut(at: u64, total: usize, parts: usize) -> Vec<Seg> {
    let size = total / parts;
    (0..parts)
        .map(|i| {
            let len = if i + 1 == parts {
                total - i * size
            } else {
                size
            };
            Seg::r(at + (i * size) as u64, len)
        })
        .collect()
}

/// Chains of several descriptors, some of them over the end of the table, and indirect ones: the next
/// chain starts where the last one ended.
fn tx_chains() -> Res {
    for features in [
        V1 | INDIRECT,
        V1 | INDIRECT | EVENT_IDX,
        IN_ORDER | INDIRECT,
    ] {
        let mut g = Guest::new(Config::with(features).num(16).base(5))?;
        let table = g.mem.alloc(4096, 16);
        let mut n = 0;
        for round in 0..100 {
            let mut packets = vec![];
            let mut parts = 1 + round % 5;
            while parts <= g.tx.free() {
                let p = frame(n, 60 + n as usize % 700);
                let segs = cut(g.place(&p), g.hdr + p.len(), parts);
                if n % 4 == 3 {
                    g.tx.add_indirect(&segs, table + 256 * u64::from(n % 16));
                } else {
                    g.tx.add(&segs);
                }
                packets.push(p);
                n += 1;
                parts = 1 + (parts + 2) % 5;
            }
            g.tx.submit();
            for p in &packets {
                check_eq!(g.tx.wait()?.len, 0);
                same(&g.peer.recv()?, p, &format!("packet of round {round}"))?;
            }
        }
        check!(g.tx.err.read().is_err(), "an error was signalled");
    }
    Ok(())
}

/// Both ways through rings of all kinds of sizes, around many times.
fn stream() -> Res {
    for (features, num, base) in [
        (V1, 256, 0),
        (V1 | EVENT_IDX, 64, 65500),
        (V1 | EVENT_IDX, 1, 65530),
        (V1, 2, 3),
        (IN_ORDER | EVENT_IDX, 1024, 100),
        (V1 | VHOST_NET_HDR, 128, 77),
    ]
    .into_iter()
    .take(if packed::by_default() { 3 } else { 6 })
    {
        let mut g = Guest::new(Config::with(features).num(num).base(base))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        let count = if num < 64 { 300 } else { amount(2000) };
        Traffic::new(&g, area).run(&mut g, count)?;
    }
    Ok(())
}

/// The buffers of an RX queue, by the head of their chain.
struct Rx {
    g: Guest,
    place: Vec<Vec<Seg>>,
}

impl Rx {
    fn new(g: Guest) -> Self {
        let place = vec![vec![]; usize::from(g.rx.num)];
        Rx { g, place }
    }

    /// Makes a chain of buffers of these sizes available, all or some of them in an indirect table.
    fn add(&mut self, sizes: &[usize], indirect: bool) -> u16 {
        let segs: Vec<_> = sizes.iter().map(|&s| self.g.buffer(s)).collect();
        let head = if indirect {
            let table = self.g.mem.alloc(16 * segs.len(), 16);
            self.g.rx.add_indirect(&segs, table)
        } else {
            self.g.rx.add(&segs)
        };
        self.place[usize::from(head)] = segs;
        head
    }

    /// Takes a packet without its header, and checks that one entry stands for it: at the place of its
    /// first chain, with the head of its last and what that holds.
    fn take(&mut self, len: usize) -> Res<(Vec<u8>, Used)> {
        let (used, heads) = wait_batch(&mut self.g.rx)?;
        let mut data = vec![];
        let mut before = 0;
        for head in &heads {
            before = data.len();
            for s in &self.place[usize::from(*head)] {
                data.extend(self.g.mem.read(s.gpa, s.len as usize));
            }
        }
        let end = before + used.len as usize;
        check_eq!(end, self.g.hdr + len, "bytes in {} chains", heads.len());
        check!(
            data[end..].iter().all(|&b| b == 0xa5),
            "bytes written behind the packet"
        );
        self.g.check_rx_hdr(&data, heads.len() as u16)?;
        Ok((data[self.g.hdr..end].to_vec(), used))
    }
}

/// Packets that fit one chain: an entry for each.
fn rx_entries() -> Res {
    for (features, base) in [(V1, 0), (V1 | EVENT_IDX, 65530), (IN_ORDER, 250), (MRG, 9)] {
        let mut rx = Rx::new(Guest::stopped(Config::with(features).base(base))?);
        for round in 0..30 {
            mark_entries(&rx.g, &rx.g.rx);
            for _ in 0..20 {
                rx.add(&[1000, 600], round % 2 == 1);
            }
            rx.g.rx.submit();
            let packets: Vec<_> = (0..20).map(|i| frame(i, 60 + 70 * i as usize)).collect();
            for p in &packets {
                rx.g.peer.send(p)?;
            }
            rx.g.start()?;
            let mut want = vec![];
            for p in &packets {
                let at = rx.g.rx.used_idx;
                let (data, used) = rx.take(p.len())?;
                same(&data, p, "packet")?;
                want.push((at, used));
            }
            rx.g.stop()?;
            check_entries(&rx.g.rx, &want)?;
        }
        check!(rx.g.rx.err.read().is_err(), "an error was signalled");
    }
    Ok(())
}

/// Packets over several chains: an entry for each packet, and none for the chains behind its first.
fn rx_mergeable() -> Res {
    let small = 100;
    for (features, base, sizes, indirect) in [
        (MRG, 0, &[small][..], false),
        (MRG | EVENT_IDX, 65400, &[small], false),
        (MRG | INDIRECT, 200, &[30, 50, 20], true),
        (MRG, 250, &[30, 50, 20], false),
        (IN_ORDER | MRG_RXBUF, 33, &[1, 99], false),
        (MRG | VHOST_NET_HDR, 100, &[small], false),
    ] {
        let cfg = Config::with(features).base(base).num(128);
        let mut rx = Rx::new(Guest::stopped(cfg)?);
        for round in 0..12 {
            mark_entries(&rx.g, &rx.g.rx);
            while rx.g.rx.free() >= sizes.len() {
                rx.add(sizes, indirect);
            }
            rx.g.rx.submit();
            let packets: Vec<_> = [60, 500, 88, 89, 1000, 188, 60, 289]
                .iter()
                .map(|&len| frame(len as u32, len + round))
                .collect();
            for p in &packets {
                rx.g.peer.send(p)?;
            }
            rx.g.start()?;
            let mut want = vec![];
            for p in &packets {
                let at = rx.g.rx.used_idx;
                let (data, used) = rx.take(p.len())?;
                same(&data, p, "packet")?;
                want.push((at, used));
                let chains = rx.g.rx.used_idx.wrapping_sub(at);
                let per: usize = sizes.iter().sum();
                check_eq!(usize::from(chains), (rx.g.hdr + p.len()).div_ceil(per));
            }
            rx.g.stop()?;
            check_entries(&rx.g.rx, &want)?;
        }
        check!(rx.g.rx.err.read().is_err(), "an error was signalled");
    }
    Ok(())
}

/// The largest packet, over hundreds of chains: more than are published together otherwise.
fn rx_largest() -> Res {
    let mut rx = Rx::new(Guest::new(Config::with(MRG).num(1024).base(600))?);
    for i in 0..4 {
        while rx.g.rx.free() > 0 {
            rx.add(&[128], false);
        }
        rx.g.rx.submit();
        for len in [65000 + i, 60] {
            let p = frame(len, len as usize);
            rx.g.peer.send(&p)?;
            let (data, _) = rx.take(p.len())?;
            same(&data, &p, "packet")?;
        }
    }
    Ok(())
}

/// A packet for which there are too few buffers gives back those that there are, with all of their
/// descriptors, and arrives when there are more.
fn rx_too_few() -> Res {
    for features in [MRG, MRG | EVENT_IDX, MRG | INDIRECT] {
        let cfg = Config::with(features).num(32).base(20);
        let mut rx = Rx::new(Guest::new(cfg)?);
        for round in 0..10 {
            let indirect = features & INDIRECT != 0;
            for _ in 0..3 {
                rx.add(&[40, 30, 30], indirect);
            }
            rx.g.rx.submit();
            let p = frame(round, 500);
            rx.g.peer.send(&p)?;
            // The device asks for a kick when it has seen that there are too few.
            let asked = until(|| rx.g.rx.wants_next());
            check!(asked, "the device never asked for a kick");
            check_eq!(rx.g.rx.device_idx(), rx.g.rx.used_idx, "used index");
            for _ in 0..4 {
                rx.add(&[40, 60], indirect);
            }
            rx.g.rx.submit();
            let (data, _) = rx.take(p.len())?;
            same(&data, &p, "packet that waited")?;
            // One chain is left over.
            let p = frame(round, 60);
            rx.g.peer.send(&p)?;
            let (data, _) = rx.take(p.len())?;
            same(&data, &p, "packet behind it")?;
        }
        check!(rx.g.rx.err.read().is_err(), "an error was signalled");
    }
    Ok(())
}

/// Without mergeable buffers, a packet too large takes no chain with it.
fn rx_too_large() -> Res {
    for features in [V1, IN_ORDER, V1 | EVENT_IDX, V1 | VHOST_NET_HDR] {
        let mut rx = Rx::new(Guest::new(Config::with(features).num(8).base(6))?);
        for round in 0..10 {
            rx.add(&[200, 50], false);
            rx.add(&[100, 50, 100], false);
            rx.g.rx.submit();
            for (i, len) in [1000, 60, 9000, 250, 200].into_iter().enumerate() {
                rx.g.peer.send(&frame(10 * round + i as u32, len))?;
            }
            for (i, len) in [(1, 60), (4, 200)] {
                let (data, _) = rx.take(len)?;
                same(&data, &frame(10 * round + i, len), "packet that fits")?;
            }
        }
        rx.g.stop()?;
        check!(rx.g.rx.pop_batch().is_none(), "a packet too large arrived");
    }
    Ok(())
}

/// A completion is visible before its call. Both happen under the queue's lock, which this takes.
fn settle(g: &Guest) -> Res {
    g.net.get_vring_base(TX)?;
    g.net.get_vring_base(RX)?;
    Ok(())
}

/// The index that the guest waits for may be that of a chain within a batch: the entry that stands for
/// it is called for once.
fn event_in_a_batch() -> Res {
    let mut g = Guest::stopped(Config::with(V1 | EVENT_IDX).base(65500))?;
    // The first call after a start may come at any index; and so with each start.
    for (event, want) in [(0, 1), (25, 1), (49, 1), (50, 0), (255, 0)] {
        g.start()?;
        g.send_all(&[frame(1, 60)])?;
        settle(&g)?;
        g.tx.calls();
        g.tx.set_used_event(g.tx.used_idx.wrapping_add(event));
        for i in 0..50 {
            let seg = Seg::r(g.place(&frame(i, 60)), g.hdr + 60);
            g.tx.add(&[seg]);
        }
        g.tx.submit();
        let mut done = 0;
        while done < 50 {
            done += wait_batch(&mut g.tx)?.1.len();
        }
        for i in 0..50 {
            same(&g.peer.recv()?, &frame(i, 60), &format!("packet {i}"))?;
        }
        settle(&g)?;
        check_eq!(g.tx.calls(), want, "calls, with the event {event} ahead");
        g.stop()?;
    }
    Ok(())
}

/// The same with a received packet over ten chains.
fn event_in_a_packet() -> Res {
    for (event, want) in [(0, 1), (5, 1), (9, 1), (10, 0), (100, 0)] {
        let cfg = Config::with(MRG | EVENT_IDX).base(65530);
        let mut rx = Rx::new(Guest::new(cfg)?);
        for _ in 0..11 {
            rx.add(&[100], false);
        }
        rx.g.rx.submit();
        rx.g.peer.send(&frame(1, 60))?;
        rx.take(60)?;
        settle(&rx.g)?;
        rx.g.rx.calls();
        let idx = rx.g.rx.used_idx.wrapping_add(event);
        rx.g.rx.set_used_event(idx);
        rx.g.peer.send(&frame(2, 988))?;
        let (data, _) = rx.take(988)?;
        same(&data, &frame(2, 988), "packet")?;
        settle(&rx.g)?;
        check_eq!(rx.g.rx.calls(), want, "calls, with the event {event} ahead");
    }
    Ok(())
}

/// A device that stops goes on with the next descriptor; one that is set up anew, with the one that the
/// base names.
fn restart() -> Res {
    let mut g = Guest::new(Config::with(V1).num(64))?;
    let three = |g: &mut Guest, i: u32| -> Res {
        let p = frame(i, 200);
        let segs = cut(g.place(&p), g.hdr + 200, 3);
        g.tx.add(&segs);
        g.tx.submit();
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "packet")
    };
    for (round, base) in [3, 65535, 64, 40].into_iter().enumerate() {
        for i in 0..30 {
            three(&mut g, i)?;
            g.receive_all(&[frame(i, 60)])?;
            if i % 7 == round as u32 {
                g.stop()?;
                g.start()?;
            }
        }
        check!(g.tx.err.read().is_err(), "an error was signalled");
        g.restart(base)?;
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("tx_one_entry", tx_one_entry),
        ("tx_many_entries", tx_many_entries),
        ("tx_sizes", tx_sizes),
        ("tx_chains", tx_chains),
        ("stream", stream),
        ("rx_entries", rx_entries),
        ("rx_mergeable", rx_mergeable),
        ("rx_largest", rx_largest),
        ("rx_too_few", rx_too_few),
        ("rx_too_large", rx_too_large),
        ("event_in_a_batch", event_in_a_batch),
        ("event_in_a_packet", event_in_a_packet),
        ("restart", restart),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &[
        "tx_sizes",
        "tx_chains",
        "stream",
        "rx_largest",
        "rx_too_few",
        "rx_too_large",
        "event_in_a_batch",
        "event_in_a_packet",
        "restart",
    ];
    ktap::run_formats(TESTS, PACKED)
}
