// SPDX-License-Identifier: GPL-2.0

//! What becomes of a tap while it is the backend: it is full, loses a queue, goes down, or away.

use std::io::Read;

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::net::bridge;
use kselftest::net::ip;
use kselftest::net::Plug;
use kselftest::sys::ioctl;
use kselftest::sys::until;
use kselftest::sys::VringFile;
use kselftest::sys::NET_SET_BACKEND;
use kselftest::*;
use std::os::fd::AsRawFd;
use vhost::net::VhostNet;
use vhost::VhostBackend;

const FEATURES: &[u64] = &[
    VERSION_1,
    VERSION_1 | EVENT_IDX,
    VHOST_NET_HDR | INDIRECT,
    MRG_RXBUF,
    VERSION_1 | IN_ORDER | EVENT_IDX,
];

/// A tap that lets only so much be on its way: one packet at a time, or some.
fn limited_sndbuf() -> Res {
    for &features in FEATURES {
        for bytes in [1, 3000, 1 << 20] {
            let mut g = Guest::stopped(Config::with(features).base(65500))?;
            g.tap.sndbuf(bytes)?;
            g.start()?;
            let area = g.mem.alloc(Traffic::room(&g), 4096);
            Traffic::new(&g, area).run(&mut g, amount(500))?;
            for len in [14, 60, 3700, 4000, 9000, 65535] {
                g.send_all(&[frame(1, len), frame(2, 60)])?;
            }
        }
    }
    Ok(())
}

/// A tap that keeps packets as long as more are said to follow has none left when none does.
fn coalesced() -> Res {
    let mut g = Guest::stopped(Config::default())?;
    g.tap.sndbuf(1 << 20)?;
    g.tap.coalesce(64)?;
    g.start()?;
    for count in [1, 2, 5, 63, 64, 65, 200] {
        let packets: Vec<_> = (0..count).map(|n| frame(n, 60)).collect();
        g.send_all(&packets)?;
    }
    Ok(())
}

/// A limit that comes while the device runs, and goes.
fn limit_changes() -> Res {
    let mut g = Guest::new(Config::default())?;
    let area = g.mem.alloc(Traffic::room(&g), 4096);
    let mut t = Traffic::new(&g, area);
    let step = amount(200);
    for i in 1..20 {
        t.feed(&mut g, step * i)?;
        g.tap.sndbuf(if i % 2 == 0 { i32::MAX } else { 2000 })?;
        t.run(&mut g, step * i)?;
    }
    Ok(())
}

/// A guest whose packets wait at the other end, and whose tap takes few of them.
struct Full {
    plug: Plug,
    g: Guest,
    packets: Vec<Vec<u8>>,
    heads: Vec<u16>,
}

/// Many more than the tap takes.
const COUNT: u32 = 120;

impl Full {
    /// The guest, and its device at a packet for which there is no room.
    fn new(cfg: Config) -> Res<Self> {
        let mut g = Guest::stopped(cfg)?;
        g.peer = Peer::sender(g.tap.index, false)?;
        g.tap.sndbuf(20_000)?;
        let plug = Plug::new("tap1", 0)?;
        bridge(&format!("br{:x}", g.cfg.features), &[&g.tap, &plug.tap])?;
        g.start()?;
        let len = |i| [60, 500, 1500, 300, 5000, 64][i as usize % 6];
        let packets: Vec<_> = (0..COUNT).map(|i| frame(i, len(i))).collect();
        let place = |p: &Vec<u8>| Seg::r(g.place(p), g.hdr + p.len());
        let places: Vec<_> = packets.iter().map(place).collect();
        let heads = places.iter().map(|s| g.tx.add(&[*s])).collect();
        g.tx.submit();
        check!(until(|| g.tx.device_idx() != 0), "nothing was sent");
        // It tries again and again, and can't.
        for _ in 0..30 {
            g.tx.kick();
            std::thread::yield_now();
        }
        Ok(Full {
            plug,
            g,
            packets,
            heads,
        })
    }

    /// Nobody reads, so most packets are still the guest's.
    fn stands(&self) -> Res {
        let used = u32::from(self.g.tx.device_idx().wrapping_sub(self.g.tx.used_idx));
        check!(used < COUNT / 2, "{used} packets of {COUNT} were used");
        Ok(())
    }

    /// All packets arrive once, in order, and come back in order.
    fn flows(&mut self) -> Res {
        for (i, p) in self.packets.iter().enumerate() {
            same(&self.plug.recv()?, p, &format!("packet {i}"))?;
        }
        for head in &self.heads {
            check_eq!(self.g.tx.wait()?.id, u32::from(*head), "a used buffer");
        }
        check!(self.plug.try_recv().is_none(), "a packet came twice");
        Ok(())
    }
}

/// What finds no room waits for it, whatever the guest does meanwhile.
fn full() -> Res {
    for &features in FEATURES {
        let mut f = Full::new(Config::with(features))?;
        f.stands()?;
        f.flows()?;
    }
    Ok(())
}

/// The other queue is served meanwhile.
fn full_and_receiving() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut f = Full::new(Config::with(features))?;
        for i in 0..50 {
            f.g.receive_all(&[frame(i, 60), frame(i, 3000)])?;
        }
        f.stands()?;
        f.flows()?;
    }
    Ok(())
}

/// A device that waits for room stops when told, with what was not sent still the guest's, and goes on without a
/// kick.
fn full_and_stopped() -> Res {
    let mut f = Full::new(Config::default())?;
    for _ in 0..5 {
        f.g.stop()?;
        f.stands()?;
        let next = f.g.net.get_vring_base(TX)?;
        check_eq!(next, f.g.tx.device_base(), "the next packet to be sent");
        f.g.start()?;
    }
    f.flows()
}

/// There is room again while nobody is there to see it.
fn room_while_stopped() -> Res {
    let mut f = Full::new(Config::default())?;
    f.g.stop()?;
    let sent = usize::from(f.g.tx.device_idx());
    for (i, p) in f.packets.drain(..sent).enumerate() {
        same(&f.plug.recv()?, &p, &format!("packet {i}"))?;
    }
    check!(f.plug.try_recv().is_none(), "more than was used");
    f.g.start()?;
    f.flows()
}

/// A device that waits for room can be closed.
fn full_and_closed() -> Res {
    let f = Full::new(Config::default())?;
    f.stands()?;
    let Full { mut plug, g, .. } = f;
    let Guest { net, tx, .. } = g;
    drop(net);
    for i in 0..u32::from(tx.device_idx()) {
        check_eq!(net::seq(&plug.recv()?), i, "number of the packet");
    }
    check!(plug.try_recv().is_none(), "more than was used");
    Ok(())
}

/// The interface goes down while packets wait for room: the guest gets all buffers back, and when it is up again all
/// is well.
fn full_and_down() -> Res {
    let mut f = Full::new(Config::default())?;
    ip("link set tap0 down")?;
    let mut next = 0;
    let mut used = 0;
    let done = until(|| {
        while let Some(p) = f.plug.try_recv() {
            next = next.max(net::seq(&p) + 1);
        }
        f.g.tx.kick();
        used += std::iter::from_fn(|| f.g.tx.pop()).count();
        used == COUNT as usize
    });
    check!(done, "{used} of {COUNT} packets were used");
    // Those that were not yet out of the interface are gone with it, which may be all.
    check!(next <= COUNT, "what arrived ends at {next}");
    ip("link set tap0 up")?;
    let p = frame(7, 5000);
    let at = f.g.place(&p);
    let s = Seg::r(at, f.g.hdr + p.len());
    check!(
        until(|| {
            f.g.tx.add(&[s]);
            f.g.tx.submit();
            f.g.tx.wait().is_ok() && f.plug.try_recv().is_some_and(|got| got == p)
        }),
        "nothing arrives once the interface is up again"
    );
    Ok(())
}

/// A queue that does not take part receives nothing, still sends, and takes part again.
fn queue_detached() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut g = Guest::stopped(Config::with(features))?;
        g.tap = Tap::one_queue("tap1", g.hdr)?;
        g.peer = Peer::new(g.tap.index, false)?;
        let other = Tap::one_queue("tap1", g.hdr)?;
        g.start()?;
        for i in 0..10 {
            g.tap.take_part(false)?;
            g.send_all(&[frame(i, 60), frame(i, 5000)])?;
            let p = frame(i, 300);
            g.peer.send(&p)?;
            let mut buf = [0; 1000];
            let mut n = 0;
            until(|| {
                n = (&other.fd).read(&mut buf).unwrap_or(0);
                n != 0
            });
            same(&buf[g.hdr.min(n)..n], &p, "packet to the other queue")?;
            g.tap.take_part(true)?;
            other.take_part(false)?;
            g.receive_all(&[frame(i, 60), frame(i, 5000)])?;
            g.send_all(&[frame(i, 60), frame(i, 5000)])?;
            other.take_part(true)?;
        }
    }
    Ok(())
}

/// What is sent to an interface that is down is lost, but the buffers come back; when it is up again, all is well.
fn interface_down() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut g = Guest::new(Config::with(features))?;
        for i in 0..5 {
            ip("link set tap0 down")?;
            for len in [60, 5000, 300] {
                let at = g.place(&frame(i, len));
                g.tx.add(&[Seg::r(at, g.hdr + len)]);
            }
            g.tx.submit();
            for _ in 0..3 {
                check_eq!(g.tx.wait()?.len, 0);
            }
            ip("link set tap0 up")?;
            // The first thing that the socket says is that the interface was down.
            check!(g.peer.try_recv().is_none(), "a packet was sent");
            g.send_all(&[frame(i, 60), frame(i, 5000)])?;
            g.receive_all(&[frame(i, 60), frame(i, 5000)])?;
        }
        check!(g.tx.err.read().is_err(), "an error was signalled");
    }
    Ok(())
}

/// The interface is deleted under the device. Packets go nowhere, their file is no backend any more, and another is.
///
/// (Buffers of packets that the C driver would have sent in a batch do not come back, so the large one is first.)
fn interface_away() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut g = Guest::new(Config::with(features))?;
        g.send_all(&[frame(1, 60)])?;
        g.receive_all(&[frame(2, 60)])?;
        let b = g.buffer(1000);
        g.rx.add(&[b]);
        g.rx.submit();
        ip("link del tap0")?;
        let at = g.place(&frame(1, 5000));
        g.tx.add(&[Seg::r(at, g.hdr + 5000)]);
        g.tx.submit();
        check_eq!(g.tx.wait()?.len, 0);
        g.tx.add(&[Seg::r(at, g.hdr + 60)]);
        g.tx.submit();
        g.rx.kick();
        g.stop()?;
        for index in [RX, TX] {
            let file = VringFile {
                index: index as u32,
                fd: g.tap.fd.as_raw_fd(),
            };
            check_eq!(ioctl(&g.net, NET_SET_BACKEND, &file), libc::EINVAL);
        }
        g.tap = Tap::new("tap1", g.hdr)?;
        g.peer = Peer::new(g.tap.index, false)?;
        g.restart(0)?;
        g.send_all(&[frame(3, 60), frame(4, 5000)])?;
        g.receive_all(&[frame(5, 60), frame(6, 5000)])?;
    }
    Ok(())
}

/// Another tap takes the place of one that was deleted, without a stop between.
fn away_and_replaced() -> Res {
    let mut g = Guest::new(Config::default())?;
    for i in 1..5 {
        ip(&format!("link del {}", g.tap.name))?;
        g.tap = Tap::new(&format!("tap{i}"), g.hdr)?;
        g.peer = Peer::new(g.tap.index, false)?;
        g.net.set_backend(TX, Some(&g.tap.fd))?;
        g.net.set_backend(RX, Some(&g.tap.fd))?;
        g.send_all(&[frame(3, 60), frame(4, 5000)])?;
        g.receive_all(&[frame(5, 60), frame(6, 5000)])?;
    }
    Ok(())
}

/// Packets that wait in an interface, for it was told that its tap is full, come as soon as the device has made room.
fn backpressure() -> Res {
    const MORE: u32 = 50;
    let plug = kselftest::net::Plug::new("plug", 12)?;
    let sender = Peer::sender(plug.tap.index, false)?;
    for n in 0..MORE {
        sender.send(&frame(n, 60))?;
    }
    let mut g = Guest::stopped(Config::default())?;
    for _ in 0..250 {
        let b = g.buffer(g.hdr + 60);
        g.rx.add(&[b]);
    }
    g.rx.submit();
    g.net.set_backend(RX, Some(&plug.tap.fd))?;
    for n in 0..250 {
        let wait = g.rx.wait();
        wait.map_err(|Fail(why)| Fail(format!("packet {n}: {why}")))?;
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("limited_sndbuf", limited_sndbuf),
        ("limit_changes", limit_changes),
        ("full", full),
        ("full_and_receiving", full_and_receiving),
        ("full_and_stopped", full_and_stopped),
        ("room_while_stopped", room_while_stopped),
        ("full_and_closed", full_and_closed),
        ("full_and_down", full_and_down),
        ("backpressure", backpressure),
        ("coalesced", coalesced),
        ("queue_detached", queue_detached),
        ("interface_down", interface_down),
        ("interface_away", interface_away),
        ("away_and_replaced", away_and_replaced),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &["full_and_stopped", "coalesced", "backpressure"];
    ktap::run_formats(TESTS, PACKED)
}
