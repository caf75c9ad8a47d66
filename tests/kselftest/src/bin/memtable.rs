// SPDX-License-Identifier: GPL-2.0

//! The memory table replaced while traffic runs.
//!
//! The guest's memory is mapped three times: once for the guest and twice for the device. The two take
//! turns in the table, and the one that is not in it can't be accessed: whoever uses an old table after
//! SET_MEM_TABLE has returned gets a fault, and the packet is lost.

use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::mem::Mapped;
use kselftest::sys::Region;
use kselftest::*;

/// Where the packets are; the rings are elsewhere, and stay there.
const AREA: u64 = 0x1000_0000;
const SIZE: u64 = 2 << 20;

fn config(features: u64) -> Config {
    let regions = vec![(mem::BASE, 4 << 20), (AREA, SIZE)];
    Config {
        regions,
        ..Config::with(features)
    }
}

fn protect(m: &Mapped, on: bool) {
    let prot = if on {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_NONE
    };
    // SAFETY: the mapping is one of the device's, that this process does not touch.
    assert_eq!(
        unsafe { libc::mprotect(m.hva as *mut _, m.size as usize, prot) },
        0
    );
}

/// A table of the rings' region and of the packets' in `pieces` parts.
fn table(rings: &Mapped, packets: &Mapped, pieces: u64) -> Vec<u64> {
    let region = |m: &Mapped| Region {
        gpa: m.gpa,
        size: m.size,
        hva: m.hva,
        flags: 0,
    };
    let size = (packets.size / pieces) & !4095;
    let piece = |i: u64| Region {
        gpa: packets.gpa + i * size,
        size: if i + 1 == pieces {
            packets.size - i * size
        } else {
            size
        },
        hva: packets.hva + i * size,
        flags: 0,
    };
    let mut v = vec![region(rings)];
    v.extend((0..pieces).map(piece));
    sys::mem_table(v.len() as u32, 0, &v)
}

/// Traffic each way, while another thread replaces the table as often as it can.
fn replaced(features: u64, pieces: &[u64]) -> Res {
    let cfg = Config {
        apart: true,
        ..config(features)
    };
    let mut g = Guest::new(cfg)?;
    let rings = g.mem.regions()[0];
    let views = [g.mem.map_again()?[1], g.mem.map_again()?[1]];
    // SAFETY: the descriptor is open as long as `g` lives, which is longer than the thread does.
    let fd = unsafe { BorrowedFd::borrow_raw(g.net.as_raw_fd()) };
    check_eq!(
        sys::ioctl(
            &fd,
            sys::SET_MEM_TABLE,
            table(&rings, &views[0], 1).as_ptr()
        ),
        0
    );
    protect(&views[1], false);
    protect(&g.view[1], false);
    let (stop, times) = (AtomicBool::new(false), AtomicU32::new(0));
    let failed = AtomicU32::new(0);
    let result = std::thread::scope(|s| {
        s.spawn(|| {
            for i in 1.. {
                if stop.load(Relaxed) {
                    break;
                }
                let (new, old) = (&views[i % 2], &views[(i + 1) % 2]);
                protect(new, true);
                let t = table(&rings, new, pieces[i % pieces.len()]);
                let e = sys::ioctl(&fd, sys::SET_MEM_TABLE, t.as_ptr());
                if e != 0 {
                    failed.store(e as u32, Relaxed);
                    break;
                }
                protect(old, false);
                times.fetch_add(1, Relaxed);
            }
        });
        let mut t = Traffic::new(&g, AREA + 100);
        let mut count = amount(2000);
        let result = loop {
            let r = t.run(&mut g, count);
            if r.is_err() || times.load(Relaxed) >= amount(200) || failed.load(Relaxed) != 0 {
                break r;
            }
            count += amount(500);
        };
        stop.store(true, Relaxed);
        result
    });
    check_eq!(failed.load(Relaxed), 0, "errno of SET_MEM_TABLE");
    println!("# {} tables", times.load(Relaxed));
    result
}

fn moved() -> Res {
    replaced(VERSION_1 | EVENT_IDX, &[1])
}

fn moved_legacy() -> Res {
    replaced(0, &[1])
}

fn more_and_fewer_regions() -> Res {
    replaced(VERSION_1, &[1, 2, 7, 31])
}

fn regions_64() -> Res {
    replaced(VERSION_1 | MRG_RXBUF, &[63])
}

/// Each of 64 regions holds what was written there.
fn all_of_64_regions() -> Res {
    let page = sys::page_size() as u64;
    let regions: Vec<_> = [(mem::BASE, 4 << 20)]
        .into_iter()
        // From high to low, with gaps.
        .chain((0..63).rev().map(|i| (AREA + i * 0x10_0000, 2 * page)))
        .collect();
    let mut g = Guest::new(Config {
        regions: regions.clone(),
        ..Default::default()
    })?;
    for (i, &(gpa, _)) in regions[1..].iter().enumerate() {
        let p = frame(i as u32, 600);
        let at = gpa + 1000;
        g.mem.fill(at, g.hdr, 0);
        g.mem.write(at + g.hdr as u64, &p);
        g.tx.add(&[Seg::r(at, g.hdr + 600)]);
        g.tx.submit();
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "sent packet")?;
        let at = gpa + page - 96;
        g.rx.add(&[Seg::w(at, g.hdr + 600)]);
        g.rx.submit();
        g.peer.send(&p)?;
        g.rx.wait()?;
        same(&g.mem.read(at + g.hdr as u64, 600), &p, "received packet")?;
    }
    Ok(())
}

/// A table that is refused leaves the old one in force.
fn refused() -> Res {
    let mut g = Guest::new(config(VERSION_1))?;
    let r = g.mem.regions().to_vec();
    let wraps = [
        Region {
            gpa: AREA,
            size: SIZE,
            hva: r[1].hva + 4096,
            flags: 0,
        },
        Region {
            gpa: u64::MAX - 4095,
            size: 8192,
            hva: r[0].hva,
            flags: 0,
        },
    ];
    let kernel = [Region {
        gpa: AREA,
        size: SIZE,
        hva: 0xffff_8880_0000_0000,
        flags: 0,
    }];
    let mut t = Traffic::new(&g, AREA);
    for count in [500, 1000] {
        check_eq!(
            sys::ioctl(
                &g.net,
                sys::SET_MEM_TABLE,
                sys::mem_table(2, 0, &wraps).as_ptr()
            ),
            libc::EFAULT
        );
        check_eq!(
            sys::ioctl(
                &g.net,
                sys::SET_MEM_TABLE,
                sys::mem_table(1, 0, &kernel).as_ptr()
            ),
            libc::EFAULT
        );
        t.run(&mut g, count)?;
    }
    Ok(())
}

/// Memory taken away under a packet stops the queue; given back, and kicked, it goes on with that packet.
fn taken_away() -> Res {
    let mut g = Guest::new(config(VERSION_1))?;
    let r = g.mem.regions().to_vec();
    let full = sys::mem_table(
        2,
        0,
        &[r[0], r[1]].map(|m| Region {
            gpa: m.gpa,
            size: m.size,
            hva: m.hva,
            flags: 0,
        }),
    );
    let less = table(
        &r[0],
        &Mapped {
            gpa: AREA + 0x1000,
            size: 0x1000,
            hva: r[1].hva + 0x1000,
        },
        1,
    );
    for i in 0..10 {
        check_eq!(sys::ioctl(&g.net, sys::SET_MEM_TABLE, less.as_ptr()), 0);
        let p = frame(i, 500);
        g.mem.fill(AREA, g.hdr, 0);
        g.mem.write(AREA + g.hdr as u64, &p);
        g.tx.add(&[Seg::r(AREA, g.hdr + 500)]);
        g.rx.add(&[Seg::w(AREA + 0x4000, 600)]);
        g.tx.publish();
        g.tx.kick();
        g.rx.publish();
        g.rx.kick();
        g.peer.send(&p)?;
        g.tx.wait_err()?;
        g.rx.wait_err()?;
        check_eq!(sys::ioctl(&g.net, sys::SET_MEM_TABLE, full.as_ptr()), 0);
        check!(
            g.tx.pop().is_none() && g.rx.pop().is_none(),
            "used without memory"
        );
        g.tx.kick();
        g.rx.kick();
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "sent packet")?;
        g.rx.wait()?;
        same(
            &g.mem.read(AREA + 0x4000 + g.hdr as u64, 500),
            &p,
            "received packet",
        )?;
        // An error may have been signalled more than once.
        let _ = g.tx.err.read();
        let _ = g.rx.err.read();
    }
    Ok(())
}

/// Replaced between stop and start.
fn replaced_when_stopped() -> Res {
    let mut g = Guest::new(config(VERSION_1))?;
    let area = AREA;
    let mut t = Traffic::new(&g, area);
    for count in [100, 200, 300] {
        t.run(&mut g, count)?;
        g.stop()?;
        let rings = g.mem.regions()[0];
        let packets = g.mem.map_again()?[1];
        check_eq!(
            sys::ioctl(
                &g.net,
                sys::SET_MEM_TABLE,
                table(&rings, &packets, 5).as_ptr()
            ),
            0
        );
        g.start()?;
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("moved", moved),
        ("moved_legacy", moved_legacy),
        ("more_and_fewer_regions", more_and_fewer_regions),
        ("regions_64", regions_64),
        ("all_of_64_regions", all_of_64_regions),
        ("refused", refused),
        ("taken_away", taken_away),
        ("replaced_when_stopped", replaced_when_stopped),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &["taken_away", "replaced_when_stopped"];
    ktap::run_formats(TESTS, PACKED)
}
