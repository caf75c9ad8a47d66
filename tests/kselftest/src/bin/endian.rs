// SPDX-License-Identifier: GPL-2.0

//! Legacy devices of guests with the other byte order.

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::net::tcp_frame;
use kselftest::sys::ioctl;
use kselftest::sys::State;
use kselftest::sys::BIG_ENDIAN;
use kselftest::sys::GET_VRING_ENDIAN;
use kselftest::sys::LITTLE_ENDIAN;
use kselftest::sys::SET_VRING_ENDIAN;
use kselftest::*;
use libc::EBUSY;
use libc::EFAULT;
use libc::EINVAL;
use libc::ENOBUFS;
use libc::ENOTTY;
use libc::EPERM;
use std::os::fd::AsRawFd;
use vhost::VhostBackend;

/// A little-endian machine is what these tests run on.
const NATIVE: u32 = LITTLE_ENDIAN;

fn set(fd: &impl AsRawFd, index: usize, num: u32) -> i32 {
    let index = index as u32;
    ioctl(fd, SET_VRING_ENDIAN, &State { index, num })
}

fn get(fd: &impl AsRawFd, index: usize) -> Res<u32> {
    let index = index as u32;
    let mut state = State {
        index,
        num: 0x5555_5555,
    };
    check_eq!(ioctl(fd, GET_VRING_ENDIAN, &raw mut state), 0, "get");
    check_eq!(state.index, index);
    Ok(state.num)
}

/// Each queue has a byte order of its own, which is the machine's at first.
fn set_and_get() -> Res {
    let f = sys::open()?;
    check_eq!(set(&f, 0, BIG_ENDIAN), EPERM, "set without an owner");
    let state = State::default();
    let got = ioctl(&f, GET_VRING_ENDIAN, &state);
    check_eq!(got, EPERM, "get without an owner");
    check_eq!(ioctl(&f, sys::SET_OWNER, 0 as *const u8), 0);
    check_eq!((get(&f, RX)?, get(&f, TX)?), (NATIVE, NATIVE));
    check_eq!(set(&f, TX, BIG_ENDIAN), 0);
    check_eq!((get(&f, RX)?, get(&f, TX)?), (NATIVE, BIG_ENDIAN));
    check_eq!(set(&f, RX, BIG_ENDIAN), 0);
    check_eq!(set(&f, TX, LITTLE_ENDIAN), 0);
    check_eq!((get(&f, RX)?, get(&f, TX)?), (BIG_ENDIAN, LITTLE_ENDIAN));
    for num in [2, 3, 256, u32::MAX] {
        check_eq!(set(&f, RX, num), EINVAL, "byte order {num:#x}");
        check_eq!(get(&f, RX)?, BIG_ENDIAN, "what it was before");
    }
    for index in [2, 3, 1 << 31] {
        check_eq!(set(&f, index, BIG_ENDIAN), ENOBUFS, "set of queue {index}");
        let state = State {
            index: index as u32,
            num: 0,
        };
        let got = ioctl(&f, GET_VRING_ENDIAN, &state);
        check_eq!(got, ENOBUFS, "get of queue {index}");
    }
    for request in [SET_VRING_ENDIAN, GET_VRING_ENDIAN] {
        check_eq!(ioctl(&f, request, 8 as *const State), EFAULT);
    }
    Ok(())
}

/// A queue that runs keeps its byte order; the other may have its changed.
fn running() -> Res {
    let mut g = Guest::new(Config::default())?;
    for index in [RX, TX] {
        for num in [LITTLE_ENDIAN, BIG_ENDIAN, 77] {
            check_eq!(set(&g.net, index, num), EBUSY, "queue {index} to {num}");
        }
        check_eq!(get(&g.net, index)?, NATIVE);
    }
    g.send_all(&[frame(1, 60)])?;
    g.receive_all(&[frame(1, 60)])?;
    g.stop()?;
    check_eq!(set(&g.net, RX, BIG_ENDIAN), 0);
    check_eq!(set(&g.net, RX, LITTLE_ENDIAN), 0);
    g.start()?;
    g.receive_all(&[frame(2, 60)])
}

/// The device is as new after RESET_OWNER.
fn reset() -> Res {
    let mut g = Guest::new(Config {
        big_endian: true,
        ..Config::with(0)
    })?;
    g.send_all(&[frame(1, 60)])?;
    check_eq!(
        (get(&g.net, RX)?, get(&g.net, TX)?),
        (BIG_ENDIAN, BIG_ENDIAN)
    );
    check_eq!(ioctl(&g.net, sys::RESET_OWNER, 0 as *const u8), 0);
    check_eq!(ioctl(&g.net, sys::SET_OWNER, 0 as *const u8), 0);
    check_eq!((get(&g.net, RX)?, get(&g.net, TX)?), (NATIVE, NATIVE));
    g.cfg.big_endian = false;
    g.rx.big_endian = false;
    g.tx.big_endian = false;
    g.rx.reset(0);
    g.tx.reset(0);
    g.net.set_features(0)?;
    g.net.set_mem_table(&Mem::table(g.mem.regions()))?;
    g.set_vring(RX)?;
    g.set_vring(TX)?;
    g.start()?;
    g.send_all(&[frame(2, 60)])?;
    g.receive_all(&[frame(2, 60)])
}

/// A guest with the other byte order, and a legacy device.
fn big(features: u64) -> Config {
    Config {
        big_endian: true,
        ..Config::with(features)
    }
}

/// A stream each way; the rings wrap, and so do the indices.
fn stream() -> Res {
    for (features, num, base) in [
        (0, 256, 0),
        (EVENT_IDX, 64, 65500),
        (MRG_RXBUF, 128, 0x1234),
        (VHOST_NET_HDR, 256, 250),
        (EVENT_IDX | MRG_RXBUF | IN_ORDER, 512, 77),
    ] {
        let mut g = Guest::new(big(features).num(num).base(base))?;
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        Traffic::new(&g, area).run(&mut g, amount(1000))?;
    }
    Ok(())
}

/// Descriptors in tables, and all sizes.
fn indirect() -> Res {
    let mut g = Guest::new(big(INDIRECT))?;
    let table = g.mem.alloc(4096, 4096);
    for len in [14, 60, 1514, 9000, 65000] {
        let p = frame(1, len);
        let at = g.place(&p);
        let segs = [
            Seg::r(at, 3),
            Seg::r(at + 3, g.hdr),
            Seg::r(at + 3 + g.hdr as u64, len - 3),
        ];
        g.tx.add_indirect(&segs, table);
        g.tx.submit();
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "sent packet")?;

        let b = g.buffer(g.hdr + len);
        let rest = g.hdr + len - 5;
        let segs = [Seg::w(b.gpa, 5), Seg::w(b.gpa + 5, rest)];
        let head = g.rx.add_indirect(&segs, table + 1024);
        g.rx.submit();
        g.peer.send(&p)?;
        let u = g.rx.wait()?;
        check_eq!((u.id, u.len as usize), (u32::from(head), g.hdr + len));
        let got = g.mem.read(b.gpa, g.hdr + len);
        g.check_rx_hdr(&got, 1)?;
        same(&got[g.hdr..], &p, "received packet")?;
    }
    Ok(())
}

/// A packet over several chains: their number is in the guest's byte order too.
fn mergeable() -> Res {
    let mut g = Guest::new(big(MRG_RXBUF))?;
    for count in [1, 2, 3, 100] {
        let b = g.buffer(200 * count);
        for i in 0..count {
            g.rx.add(&[Seg::w(b.gpa + 200 * i as u64, 200)]);
        }
        g.rx.submit();
        let p = frame(1, 200 * count - g.hdr);
        g.peer.send(&p)?;
        for _ in 0..count {
            check_eq!(g.rx.wait()?.len, 200);
        }
        let got = g.mem.read(b.gpa, 200 * count);
        g.check_rx_hdr(&got, count as u16)?;
        same(&got[g.hdr..], &p, "received packet")?;
    }
    Ok(())
}

/// A header of 10 bytes with these fields, in one byte order or the other.
fn header(big: bool, kind: [u8; 2], fields: [u16; 4]) -> Vec<u8> {
    let bytes = |v: u16| {
        if big {
            v.to_be_bytes()
        } else {
            v.to_le_bytes()
        }
    };
    [&kind[..], &fields.map(bytes).concat()].concat()
}

/// Checksums and segmentation left to the device: what the header says of them is in the guest's byte order at the
/// guest, and in the machine's at the other end. How long the headers are, the device has to find out where the guest
/// does not say it.
fn offload() -> Res {
    for features in [0, MRG_RXBUF, EVENT_IDX | INDIRECT] {
        let mut g = Guest::stopped(Config {
            peer_vnet: true,
            ..big(features)
        })?;
        g.tap.big_endian()?;
        g.tap.offload(net::TUN_F_CSUM | net::TUN_F_TSO4)?;
        g.start()?;
        for (payload, mss) in [
            (1, 0),
            (1000, 0),
            (3000, 0),
            (8000, 0),
            (2920, 1460),
            (60_000, 1448),
        ] {
            let p = tcp_frame(payload, 7);
            let kind = [1, u8::from(mss != 0)];
            for hdr_len in [0, 40, 54] {
                let at = g.place(&p);
                g.mem.write(at, &header(true, kind, [hdr_len, mss, 34, 16]));
                g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
                g.tx.submit();
                g.tx.wait()?;
                let got = g.peer.recv()?;
                let want = header(false, kind, [0, mss, 34, 16]);
                check_eq!(got[..2], want[..2], "flags and GSO type of {payload} sent");
                check_eq!(
                    got[4..10],
                    want[4..],
                    "GSO size and checksum of {payload} sent"
                );
                same(&got[10..], &p, "sent packet")?;
            }
            let b = g.buffer(g.hdr + p.len());
            g.rx.add(&[b]);
            g.rx.submit();
            let hdr = header(false, kind, [54, mss, 34, 16]);
            g.peer.send(&[&hdr[..], &p].concat())?;
            check_eq!(g.rx.wait()?.len as usize, g.hdr + p.len());
            let got = g.mem.read(b.gpa, g.hdr + p.len());
            let want = header(true, kind, [0, mss, 34, 16]);
            check_eq!(
                got[..2],
                want[..2],
                "flags and GSO type of {payload} received"
            );
            check_eq!(
                got[4..10],
                want[4..],
                "GSO size and checksum of {payload} received"
            );
            if g.hdr == 12 {
                check_eq!(got[10..12], [0, 1], "num_buffers");
            }
            same(&got[g.hdr..], &p, "received packet")?;
        }
        check!(g.tx.err.read().is_err(), "an error was signalled");
    }
    Ok(())
}

/// A modern device is little-endian, whatever a VMM says.
fn modern() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX | MRG_RXBUF] {
        let mut g = Guest::stopped(Config::with(features))?;
        check_eq!(set(&g.net, RX, BIG_ENDIAN), 0);
        check_eq!(set(&g.net, TX, BIG_ENDIAN), 0);
        g.start()?;
        check_eq!(get(&g.net, TX)?, BIG_ENDIAN);
        let area = g.mem.alloc(Traffic::room(&g), 4096);
        Traffic::new(&g, area).run(&mut g, 300)?;
    }
    Ok(())
}

/// One queue in one order and one in the other: no guest does that, and nothing is shared between them.
fn one_of_each() -> Res {
    let mut g = Guest::stopped(Config::with(0))?;
    check_eq!(set(&g.net, TX, BIG_ENDIAN), 0);
    g.tx.big_endian = true;
    g.tx.reset(0x102);
    g.set_vring(TX)?;
    g.start()?;
    for i in 0..20 {
        g.send_all(&[frame(i, 600)])?;
        g.receive_all(&[frame(i, 600)])?;
    }
    Ok(())
}

/// The order of bytes counts from the next start on; what is set meanwhile does not touch a queue that is
/// stopped in the midst.
fn restart() -> Res {
    let mut g = Guest::new(big(0).base(65530))?;
    for i in 0..6 {
        g.send_all(&[frame(i, 60)])?;
        g.receive_all(&[frame(i, 60)])?;
        g.stop()?;
        if i % 2 == 1 {
            let big = !g.cfg.big_endian;
            g.cfg.big_endian = big;
            g.rx.big_endian = big;
            g.tx.big_endian = big;
            for index in [RX, TX] {
                let num = if big { BIG_ENDIAN } else { LITTLE_ENDIAN };
                check_eq!(set(&g.net, index, num), 0);
            }
            g.restart(i as u16 * 0x1001)?;
        } else {
            g.start()?;
        }
    }
    Ok(())
}

/// Without the option for it there are no such requests, and what is wrong otherwise is said first.
fn absent() -> Res {
    let f = sys::open()?;
    for owned in [false, true] {
        if owned {
            check_eq!(ioctl(&f, sys::SET_OWNER, 0 as *const u8), 0);
        }
        for (index, errno) in [(RX, ENOTTY), (TX, ENOTTY), (2, ENOBUFS)] {
            let errno = if owned { errno } else { EPERM };
            for num in [LITTLE_ENDIAN, BIG_ENDIAN, 2] {
                check_eq!(set(&f, index, num), errno, "set of queue {index}");
            }
            let index = index as u32;
            let got = ioctl(&f, GET_VRING_ENDIAN, &State { index, num: 0 });
            check_eq!(got, errno, "get of queue {index}");
        }
    }
    Ok(())
}

/// A legacy device then has the byte order of the machine.
fn native() -> Res {
    let mut g = Guest::new(Config::with(0))?;
    g.send_all(&[frame(0, 60), frame(1, 1500)])?;
    g.receive_all(&[frame(2, 60), frame(3, 1500)])
}

fn main() {
    const WITHOUT: &[Test] = &[("absent", absent), ("native", native)];
    match sys::configured("CONFIG_VHOST_CROSS_ENDIAN_LEGACY") {
        Ok(true) => (),
        Ok(false) => ktap::run(WITHOUT),
        Err(Fail(why)) => panic!("{why}"),
    }
    const TESTS: &[Test] = &[
        ("set_and_get", set_and_get),
        ("running", running),
        ("reset", reset),
        ("stream", stream),
        ("indirect", indirect),
        ("mergeable", mergeable),
        ("offload", offload),
        ("modern", modern),
        ("one_of_each", one_of_each),
        ("restart", restart),
    ];
    ktap::run(TESTS)
}
