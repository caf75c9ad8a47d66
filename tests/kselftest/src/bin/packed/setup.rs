// SPDX-License-Identifier: GPL-2.0

//! What a VMM says and asks: features, sizes, bases, the log, and a device in the place of another.

use std::io::Read;
use std::os::fd::AsRawFd;

use kselftest::counters::info;
use kselftest::counters::number;
use kselftest::dirty::Bitmap;
use kselftest::sys::ioctl;
use kselftest::sys::until;
use kselftest::sys::State;
use libc::EBUSY;
use libc::EFAULT;
use libc::EINVAL;
use libc::ENOBUFS;
use libc::EOPNOTSUPP;
use vhost::vhost_kern::net::Net;

use super::*;

fn set(fd: &impl AsRawFd, request: u64, index: usize, num: u32) -> i32 {
    let index = index as u32;
    ioctl(fd, request, &State { index, num })
}

fn set_base(fd: &impl AsRawFd, index: usize, num: u32) -> i32 {
    set(fd, sys::SET_VRING_BASE, index, num)
}

/// A device with an owner, and these features.
fn device(features: u64) -> Res<std::fs::File> {
    let f = sys::open()?;
    check_eq!(ioctl(&f, sys::SET_OWNER, std::ptr::null::<u8>()), 0);
    check_eq!(ioctl(&f, sys::SET_FEATURES, &features), 0);
    Ok(f)
}

/// The feature is offered, and refused without VERSION_1: legacy devices have no packed rings. What is refused changes nothing.
pub fn features() -> Res {
    let f = device(PACKED)?;
    let mut offered = 0u64;
    check_eq!(ioctl(&f, sys::GET_FEATURES, &raw mut offered), 0);
    check!(offered & RING_PACKED != 0, "offered: {offered:#x}");
    for more in [0, MRG_RXBUF, EVENT_IDX | INDIRECT, IN_ORDER] {
        let bad = RING_PACKED | more;
        let got = ioctl(&f, sys::SET_FEATURES, &bad);
        check_eq!(got, EOPNOTSUPP, "SET_FEATURES {bad:#x}");
        let got = ioctl(&f, sys::SET_FEATURES_ARRAY, &[1, bad]);
        check_eq!(got, EOPNOTSUPP, "SET_FEATURES_ARRAY {bad:#x}");
        check_eq!(set_base(&f, RX, 0x8001_8001), 0, "still packed");
        let good = PACKED | more;
        check_eq!(ioctl(&f, sys::SET_FEATURES, &good), 0, "{good:#x}");
        let got = ioctl(&f, sys::SET_FEATURES_ARRAY, &[1, good]);
        check_eq!(got, 0, "{good:#x}");
    }
    Ok(())
}

/// Any size up to 32768; only a split ring's has to be a power of two.
pub fn numbers() -> Res {
    let f = device(PACKED)?;
    for num in [1, 2, 3, 5, 100, 257, 32767, 32768] {
        check_eq!(set(&f, sys::SET_VRING_NUM, RX, num), 0, "{num}");
    }
    for num in [0, 32769, 65535, 65536, 1 << 31, u32::MAX] {
        check_eq!(set(&f, sys::SET_VRING_NUM, RX, num), EINVAL, "{num}");
    }
    let f = device(VERSION_1)?;
    for num in [0, 3, 5, 100, 257, 32767, 65536] {
        let got = set(&f, sys::SET_VRING_NUM, RX, num);
        check_eq!(got, EINVAL, "{num}, split");
    }
    Ok(())
}

/// Both halves, each an index and a wrap counter, come back as they were set. No value is refused.
pub fn bases() -> Res {
    let g = Guest::stopped(config(0, 256))?;
    for index in [RX, TX] {
        for half in [0x8000u32, 0, 5, 0x8005, 255, 0x80ff] {
            let base = half * 0x1_0001;
            check_eq!(set_base(&g.net, index, base), 0, "{base:#x}");
            check_eq!(g.net.get_vring_base(index)?, base, "queue {index}");
        }
        for base in [u32::MAX, 0x7fff_7fff, 0x8000, 0x0005_8007, 0x100_0100] {
            check_eq!(set_base(&g.net, index, base), 0, "{base:#x}");
        }
    }
    Ok(())
}

/// A ring does not start outside itself, and does where it is told then.
pub fn bases_outside() -> Res {
    let mut g = Guest::stopped(config(0, 5))?;
    let outside = [5u32, 0x8005, 0x7fff, 0xffff].map(|half| half * 0x1_0001);
    // One half outside, and both inside, but further apart than the ring is long.
    for base in [outside.as_slice(), &[0x5_8000, 0x8000_0005, 0x8001_0002]].concat() {
        for index in [RX, TX] {
            g.set_base(index, base)?;
            let file = sys::VringFile {
                index: index as u32,
                fd: g.tap.fd.as_raw_fd(),
            };
            let got = ioctl(&g.net, sys::NET_SET_BACKEND, &file);
            check_eq!(got, EFAULT, "queue {index}, from {base:#x}");
        }
    }
    g.restart(7)?;
    works(&mut g)
}

/// A split ring's base has 16 bits, and none changes while the queue runs.
pub fn bases_refused() -> Res {
    let f = device(VERSION_1)?;
    for base in [0x1_0000, 0x8000_8000, u32::MAX] {
        check_eq!(set_base(&f, RX, base), EINVAL, "{base:#x}, split");
    }
    let mut g = Guest::new(config(0, 256))?;
    check_eq!(set_base(&g.net, 2, 0x8000_8000), ENOBUFS);
    for index in [RX, TX] {
        check_eq!(set_base(&g.net, index, 0x8000_8000), EBUSY);
    }
    works(&mut g)
}

/// Descriptors that are written word by word have to lie so; a split ring's may lie anywhere.
pub fn addresses() -> Res {
    let g = Guest::stopped(config(0, 256))?;
    for index in [RX, TX] {
        let ring = if index == RX { &g.rx } else { &g.tx };
        for offset in [16u64, 8, 4, 1, 0] {
            let at = |gpa| g.mem.hva(gpa).0 as u64;
            let addr = sys::Addr {
                index: index as u32,
                desc: at(ring.desc) + offset,
                used: at(ring.used),
                avail: at(ring.avail),
                ..Default::default()
            };
            for (features, aligned) in [(VERSION_1, true), (PACKED, offset % 16 == 0)] {
                g.net.set_features(features)?;
                let want = if aligned { 0 } else { EINVAL };
                let got = ioctl(&g.net, sys::SET_VRING_ADDR, &addr);
                check_eq!(got, want, "{features:#x}, {offset} bytes off");
            }
            // Set when the ring was a split one.
            g.net.set_features(VERSION_1)?;
            check_eq!(ioctl(&g.net, sys::SET_VRING_ADDR, &addr), 0);
            g.net.set_features(PACKED)?;
            let file = sys::VringFile {
                index: index as u32,
                fd: g.tap.fd.as_raw_fd(),
            };
            let want = if offset % 16 == 0 { 0 } else { EFAULT };
            let got = ioctl(&g.net, sys::NET_SET_BACKEND, &file);
            check_eq!(got, want, "{offset} bytes off, the format after it");
            let none = sys::VringFile { fd: -1, ..file };
            check_eq!(ioctl(&g.net, sys::NET_SET_BACKEND, &none), 0);
        }
    }
    Ok(())
}

/// A ring begins wherever it is told, with either wrap counter.
pub fn every_base() -> Res {
    let mut g = Guest::new(config(0, 5))?;
    for base in 0..11 {
        g.restart(base)?;
        stands(&g)?;
        for _ in 0..4 {
            works(&mut g)?;
        }
    }
    drop(g);
    for (num, base) in [(256, 255), (256, 511), (32768, 32767), (3, 65535)] {
        let mut g = Guest::new(config(EVENT_IDX, num).base(base))?;
        for _ in 0..2 {
            works(&mut g)?;
        }
        g.stop()?;
        stands(&g)?;
    }
    Ok(())
}

/// DPDK's virtio-user sets the half of what is available and leaves the other 0: what is used is as far.
pub fn base_without_used() -> Res {
    let mut g = Guest::stopped(config(0, 256))?;
    g.set_base(RX, 0x8000)?;
    g.set_base(TX, 0x8000)?;
    g.start()?;
    for _ in 0..20 {
        works(&mut g)?;
    }
    g.stop()?;
    stands(&g)
}

/// A ring whose device was told no base begins with both wrap counters 1.
pub fn without_base() -> Res {
    let mut g = Guest::unowned(config(0, 100))?;
    g.net.set_owner()?;
    g.net.set_features(g.cfg.features)?;
    g.net.set_mem_table(&Mem::table(&g.view))?;
    for index in [RX, TX] {
        check_eq!(set(&g.net, sys::SET_VRING_NUM, index, 100), 0);
        g.set_place(index)?;
        check_eq!(g.net.get_vring_base(index)?, 0x8000_8000);
    }
    g.start()?;
    works(&mut g)
}

/// What was set means something else in another format: the ring begins anew. Other features leave it where it is.
pub fn format_changes() -> Res {
    let mut g = Guest::stopped(config(0, 64))?;
    for index in [RX, TX] {
        check_eq!(set_base(&g.net, index, 0x8005_8005), 0);
        g.net.set_features(PACKED | EVENT_IDX)?;
        g.net.set_features(PACKED)?;
        let same = g.net.get_vring_base(index)?;
        check_eq!(same, 0x8005_8005, "with other features");
        g.net.set_features(VERSION_1)?;
        check_eq!(g.net.get_vring_base(index)?, 0, "as a split ring's");
        check_eq!(set_base(&g.net, index, 0x1_0000), EINVAL);
        check_eq!(set_base(&g.net, index, 0xfffe), 0);
        g.net.set_features(PACKED)?;
        let new = g.net.get_vring_base(index)?;
        check_eq!(new, 0x8000_8000, "as a packed ring's");
    }
    g.start()?;
    works(&mut g)
}

/// A size that only a packed ring may have is none that a split one has.
pub fn format_changes_size() -> Res {
    for size in [100, 128] {
        let mut g = Guest::stopped(config(0, size))?;
        for key in ["rx-size", "tx-size"] {
            check_eq!(number(&info(&g.net)?, key)?, u64::from(size), "{key}");
        }
        g.net.set_features(VERSION_1)?;
        for key in ["rx-size", "tx-size"] {
            let now = number(&info(&g.net)?, key)?;
            check!(now.is_power_of_two(), "{key} of a split ring is {now}");
        }
        g.net.set_features(PACKED)?;
        g.rx.reset(0);
        g.tx.reset(0);
        g.set_vring(RX)?;
        g.set_vring(TX)?;
        g.start()?;
        works(&mut g)?;
    }
    Ok(())
}

/// Whatever a ring that runs becomes, with buffers of the other format: it can be stopped, and set up again.
pub fn format_changes_while_running() -> Res {
    let mut g = Guest::new(config(0, 128))?;
    for round in 0..10 {
        while g.rx.free() > 0 {
            let b = g.buffer(200);
            g.rx.add(&[b]);
        }
        g.rx.submit();
        for i in 0..3 {
            g.peer.send(&frame(i, 60))?;
            let s = piece(&g, TX);
            g.tx.add(&[s]);
            g.tx.publish();
            g.tx.kick();
        }
        let _ = ioctl(&g.net, sys::SET_FEATURES, &VERSION_1);
        for _ in 0..3 {
            g.tx.kick();
            g.rx.kick();
            g.peer.send(&frame(9, 60))?;
        }
        settle(&g)?;
        if round % 2 == 0 {
            g.stop()?;
        }
        let _ = ioctl(&g.net, sys::SET_FEATURES, &PACKED);
        g.stop()?;
        while (&g.tap.fd).read(&mut [0; 1000]).is_ok() || g.peer.try_recv().is_some() {}
        g.restart(round)?;
        works(&mut g)?;
    }
    Ok(())
}

/// Who owns the device next has split rings until it says otherwise.
pub fn format_reset() -> Res {
    let mut g = Guest::new(config(0, 100))?;
    works(&mut g)?;
    g.net.reset_owner()?;
    check_eq!(ioctl(&g.net, sys::SET_OWNER, std::ptr::null::<u8>()), 0);
    check_eq!(set(&g.net, sys::SET_VRING_NUM, RX, 100), EINVAL);
    check_eq!(set_base(&g.net, RX, 0x8000_8000), EINVAL);
    check_eq!(g.net.get_vring_base(RX)?, 0);
    g.net.set_features(PACKED)?;
    check_eq!(g.net.get_vring_base(RX)?, 0x8000_8000);
    Ok(())
}

/// Features that have nothing to do with the format may change under a ring that runs.
pub fn features_while_running() -> Res {
    let mut g = Guest::new(config(EVENT_IDX, 7))?;
    let log = Bitmap::new(0x1000_0000, 0)?;
    check_eq!(log.install(&g), 0);
    for i in 0..20 {
        works(&mut g)?;
        let more = if i % 2 == 0 { LOG_ALL } else { 0 };
        g.net.set_features(PACKED | EVENT_IDX | more)?;
    }
    Ok(())
}

/// Packed rings are little-endian, whatever the VMM says of legacy ones.
pub fn endian_ignored() -> Res {
    let mut g = Guest::stopped(config(0, 10))?;
    for index in [RX, TX] {
        // Not every kernel has such.
        let got = set(&g.net, sys::SET_VRING_ENDIAN, index, sys::BIG_ENDIAN);
        check!(got == 0 || got == libc::ENOTTY, "errno {got}");
    }
    g.start()?;
    works(&mut g)
}

/// Stopped with buffers that it has not used, a device has none of them in flight, and goes on with them: with the base that it
/// said, and without one.
pub fn stopped() -> Res {
    for (num, again) in [(5, true), (5, false), (256, true)] {
        let mut g = Guest::new(config(0, num))?;
        let mut place = vec![];
        for i in 0..30 {
            while g.rx.free() > 0 {
                let b = g.buffer(200);
                place.push((g.rx.add(&[b]), b));
            }
            g.rx.submit();
            let p = frame(i, 60 + i as usize);
            g.peer.send(&p)?;
            let (head, b) = place.remove(0);
            check_eq!(g.rx.wait()?.id, u32::from(head));
            let got = g.mem.read(b.gpa + g.hdr as u64, p.len());
            same(&got, &p, "packet")?;
            g.stop()?;
            stands(&g)?;
            if again {
                g.set_base(RX, g.rx.base())?;
                g.set_base(TX, g.tx.base())?;
            }
            g.start()?;
        }
        g.send_all(&[frame(9, 60)])?;
    }
    Ok(())
}

/// The buffers of a packet for which there are too few, chains of two around the ring's end, are not in flight either.
pub fn stopped_in_a_packet() -> Res {
    let mut g = Guest::new(config(MRG_RXBUF, 7))?;
    for i in 0..20 {
        let b = g.buffer(300);
        let seg = |n: u64| {
            [
                Seg::w(b.gpa + n * 100, 60),
                Seg::w(b.gpa + n * 100 + 60, 40),
            ]
        };
        g.rx.add(&seg(0));
        g.rx.add(&seg(1));
        g.rx.submit();
        let p = frame(i, 250);
        g.peer.send(&p)?;
        check!(until(|| g.rx.wants_next()), "no wish for more buffers");
        stands(&g)?;
        g.stop()?;
        stands(&g)?;
        g.start()?;
        g.rx.add(&seg(2));
        g.rx.submit();
        for _ in 0..3 {
            g.rx.wait()?;
        }
        let got = g.mem.read(b.gpa, g.hdr + p.len());
        g.check_rx_hdr(&got, 3)?;
        same(&got[g.hdr..], &p, "packet")?;
        stands(&g)?;
    }
    Ok(())
}

/// Another device goes on where one stopped, on another host: the area that the first one wrote says that it wants no kicks.
pub fn moved() -> Res {
    for features in [0, EVENT_IDX] {
        let mut g = Guest::new(config(features, 11))?;
        let mut place = vec![];
        for i in 0..12 {
            while g.rx.free() > 0 {
                let b = g.buffer(200);
                place.push((g.rx.add(&[b]), b));
            }
            g.rx.submit();
            g.send_all(&[frame(i, 60), frame(i, 200)])?;
            g.stop()?;
            stands(&g)?;
            for r in [&g.rx, &g.tx] {
                r.packed().set_device_event(DISABLE, 0x8003);
            }
            g.net = Net::new(g.mem.as_vm_memory()?)?;
            g.set_up()?;
            // What it does not know it must not have been told by the ring.
            let p = frame(i, 100);
            let at = g.place(&p);
            g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
            g.tx.submit();
            g.start()?;
            g.tx.wait()?;
            same(&g.peer.recv()?, &p, "sent packet")?;
            g.peer.send(&p)?;
            let (head, b) = place.remove(0);
            check_eq!(g.rx.wait()?.id, u32::from(head));
            let got = g.mem.read(b.gpa + g.hdr as u64, p.len());
            same(&got, &p, "received packet")?;
        }
    }
    Ok(())
}

/// The format is seen from outside.
pub fn seen() -> Res {
    let g = Guest::new(config(0, 100))?;
    let map = info(&g.net)?;
    check_eq!(map["vhost-features"], format!("{PACKED:#x}"));
    check!(PACKED & 0x4_0000_0000 != 0);
    Ok(())
}
