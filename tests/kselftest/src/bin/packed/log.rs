// SPDX-License-Identifier: GPL-2.0

//! The dirty log of what a device writes to a packed ring.

use kselftest::dirty::pages_of;
use kselftest::dirty::Bitmap;
use kselftest::dirty::Pages;
use kselftest::iotlb;
use kselftest::sys::ioctl;
use kselftest::sys::until;
use kselftest::sys::Addr;

use super::*;

const PAGE: u64 = 4096;

/// Where a ring is, and whether its writes are logged.
fn address(g: &Guest, index: usize, log: bool) -> i32 {
    let ring = if index == RX { &g.rx } else { &g.tx };
    let at = |gpa| g.mem.hva(gpa).0 as u64;
    let addr = Addr {
        index: index as u32,
        flags: u32::from(log),
        desc: at(ring.desc),
        used: at(ring.used),
        avail: at(ring.avail),
        log: ring.used,
    };
    ioctl(&g.net, sys::SET_VRING_ADDR, &addr)
}

/// A guest of which all is logged, and whose queues have come to rest.
fn logging(features: u64, base: u16) -> Res<(Guest, Bitmap)> {
    let mut g = Guest::stopped(config(features | LOG_ALL, 1024).base(base))?;
    let log = Bitmap::new(0x1000_0000, 13)?;
    check_eq!(log.install(&g), 0);
    for index in [RX, TX] {
        check_eq!(address(&g, index, true), 0);
    }
    g.start()?;
    works(&mut g)?;
    check!(until(|| g.tx.wants_next()), "no wish for a kick");
    settle(&g)?;
    let at_start = log.take()?;
    for ring in [&g.rx, &g.tx] {
        check!(
            at_start.contains(&(ring.used / PAGE)),
            "not the page of the device's event area"
        );
    }
    Ok((g, log))
}

/// All of `want` are marked; of others none but the device's event areas, and those of this queue alone.
#[track_caller]
fn marked(log: &Bitmap, ring: &Ring, mut want: Pages, what: &str) -> Res {
    let at = std::panic::Location::caller();
    let got = log.take()?;
    let missing = !got.is_superset(&want);
    let min = want.clone();
    want.insert(ring.used / PAGE);
    if missing || !got.is_subset(&want) {
        let why = format!("pages {got:x?} of {what}, want {min:x?} and at most {want:x?}");
        return Err(Fail::at(at.file(), at.line(), why));
    }
    Ok(())
}

/// The page of a descriptor.
fn page(ring: &Ring, spot: Spot) -> u64 {
    (ring.desc + 16 * u64::from(spot.index())) / PAGE
}

/// What a device writes of a ring is marked: the descriptors that it uses, and its event area; not the one that the driver
/// writes, and not the descriptors that it reads.
pub fn logged() -> Res {
    for (features, base) in [(0, 250), (EVENT_IDX, 1018), (IN_ORDER, 1020), (0, 2042)] {
        let (mut g, log) = logging(features, base)?;
        for i in 0..12 {
            // Three descriptors, of which the first is written.
            let spot = g.tx.packed().used;
            let p = frame(i, 300);
            let at = g.place(&p);
            g.tx.add(&[
                Seg::r(at, g.hdr),
                Seg::r(at + g.hdr as u64, 100),
                Seg::r(at + g.hdr as u64 + 100, 200),
            ]);
            g.tx.submit();
            g.tx.wait()?;
            same(&g.peer.recv()?, &p, "sent packet")?;
            check!(until(|| g.tx.wants_next()), "no wish for a kick");
            settle(&g)?;
            let want = [page(&g.tx, spot)].into();
            marked(&log, &g.tx, want, &format!("sent packet {i}"))?;

            let spot = g.rx.packed().used;
            let at = g.mem.alloc(4096, PAGE);
            g.rx.add(&[
                Seg::w(at, g.hdr),
                Seg::w(at + 100, 100),
                Seg::w(at + 200, 400),
            ]);
            g.rx.submit();
            g.peer.send(&p)?;
            g.rx.wait()?;
            settle(&g)?;
            let want = [page(&g.rx, spot), at / PAGE].into();
            marked(&log, &g.rx, want, &format!("received packet {i}"))?;
        }
        // The whole ring.
        let packets: Vec<_> = (0..1024).map(|i| frame(i, 60)).collect();
        g.send_all(&packets)?;
        check!(until(|| g.tx.wants_next()), "no wish for a kick");
        settle(&g)?;
        let want: Pages = pages_of(g.tx.desc, 16 * 1024).collect();
        if features & IN_ORDER == 0 {
            marked(&log, &g.tx, want, "a ring that is sent")?;
        }
        check!(g.tx.err.read().is_err(), "an error was signalled");
    }
    Ok(())
}

/// No one tells the device a guest address of the descriptors: it is that of the memory in which they are, as the table names it
/// now.
pub fn logged_at_user_address() -> Res {
    let (mut g, log) = logging(0, 0)?;
    let m = g.mem.regions()[0];
    // The same memory, and what is in it a second time under other addresses.
    let regions = [m.gpa, 0x400_0000].map(|gpa| sys::Region {
        gpa,
        size: m.size,
        hva: m.hva,
        flags: 0,
    });
    let other = 0x400_0000 - m.gpa;
    for (first, offset) in [(0, 0), (1, other), (0, 0)] {
        let table = sys::mem_table(1, 0, &regions[first..=first]);
        check_eq!(ioctl(&g.net, sys::SET_MEM_TABLE, table.as_ptr()), 0);
        settle(&g)?;
        log.take()?;
        for i in 0..3 {
            let spot = g.tx.packed().used;
            let p = frame(i, 300);
            let at = g.place(&p) + offset;
            g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
            g.tx.submit();
            g.tx.wait()?;
            same(&g.peer.recv()?, &p, "sent packet")?;
            check!(until(|| g.tx.wants_next()), "no wish for a kick");
            settle(&g)?;
            let want = [page(&g.tx, spot) + offset / PAGE].into();
            marked(&log, &g.tx, want, "a sent packet")?;
        }
    }
    Ok(())
}

/// Behind an IOTLB it is the same, and for the device's event area too, wherever the VMM says that that is logged.
pub fn logged_behind_iotlb() -> Res {
    let mut g = Guest::stopped(config(ACCESS_PLATFORM | LOG_ALL, 1024).base(250))?;
    let m = g.mem.regions()[0];
    let first = 0x400_0000;
    let region = sys::Region {
        gpa: first,
        size: m.size,
        hva: m.hva,
        flags: 0,
    };
    let table = sys::mem_table(1, 0, &[region]);
    check_eq!(ioctl(&g.net, sys::SET_MEM_TABLE, table.as_ptr()), 0);
    let log = Bitmap::new(0x1000_0000, 13)?;
    check_eq!(log.install(&g), 0);
    iotlb::update(&g.net, m.gpa, m.size, m.hva, iotlb::RW)?;
    for (index, ring) in [(RX, &g.rx), (TX, &g.tx)] {
        let addr = Addr {
            index: index as u32,
            flags: 1,
            desc: ring.desc,
            used: ring.used,
            avail: ring.avail,
            log: 0,
        };
        check_eq!(ioctl(&g.net, sys::SET_VRING_ADDR, &addr), 0);
    }
    g.start()?;
    works(&mut g)?;
    check!(until(|| g.tx.wants_next()), "no wish for a kick");
    settle(&g)?;
    log.take()?;
    let offset = (first - m.gpa) / PAGE;
    for i in 0..12 {
        let spot = g.tx.packed().used;
        g.send_all(&[frame(i, 300)])?;
        check!(until(|| g.tx.wants_next()), "no wish for a kick");
        settle(&g)?;
        let got = log.take()?;
        let must = page(&g.tx, spot) + offset;
        let may = [must, g.tx.used / PAGE + offset].into();
        check!(
            got.contains(&must) && got.is_subset(&may),
            "pages {got:x?} of a sent packet, want {must:x} and at most {may:x?}"
        );
    }
    Ok(())
}

/// A ring that is not to be logged is not.
pub fn not_logged() -> Res {
    let (mut g, log) = logging(0, 0)?;
    for index in [RX, TX] {
        check_eq!(address(&g, index, false), 0);
    }
    for i in 0..5 {
        g.send_all(&[frame(i, 300)])?;
        check!(until(|| g.tx.wants_next()), "no wish for a kick");
        settle(&g)?;
        check_eq!(log.take()?, Pages::new(), "pages of a sent packet");
    }
    Ok(())
}
