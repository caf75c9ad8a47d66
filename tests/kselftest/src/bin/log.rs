// SPDX-License-Identifier: GPL-2.0

//! The dirty log: exactly the pages that the device wrote are marked in it.

use kselftest::dirty::pages_of;
use kselftest::dirty::Bitmap;
use kselftest::dirty::Pages;
use kselftest::feature::*;
use kselftest::guest::of_format;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::mem::BASE;
use kselftest::sys::ioctl;
use kselftest::sys::until;
use kselftest::sys::Addr;
use kselftest::sys::VringFile;
use kselftest::*;
use libc::EBADF;
use libc::EFAULT;
use libc::EINVAL;
use libc::EOPNOTSUPP;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

const PAGE: u64 = 4096;

/// A guest address of which no memory is: the used ring is logged wherever the VMM says.
///
/// Its last four bytes are the flags and the index of a used ring; the entries start with the next page.
const USED_LOG: u64 = 0x900_0000 - 4;
const USED_PAGE: u64 = USED_LOG / PAGE;

/// As [`USED_LOG`], for the TX queue.
const TX_USED_LOG: u64 = 0xa00_0000 - 4;
const TX_USED_PAGE: u64 = TX_USED_LOG / PAGE;

/// Entries in a page.
const PER_PAGE: u16 = 512;

/// Tells the device where a ring is, and where to log it, if anywhere.
fn set_addr(g: &Guest, index: usize, log: Option<u64>) -> i32 {
    let ring = if index == RX { &g.rx } else { &g.tx };
    let at = |gpa| g.mem.hva(gpa).0 as u64;
    let addr = Addr {
        index: index as u32,
        flags: u32::from(log.is_some()),
        desc: at(ring.desc),
        used: at(ring.used),
        avail: at(ring.avail),
        log: log.unwrap_or(0),
    };
    ioctl(&g.net, sys::SET_VRING_ADDR, &addr)
}

/// All that the device had to do for what happened so far is done: each queue's lock was free since.
fn settle(g: &Guest) -> Res {
    g.net.get_vring_base(TX)?;
    g.net.get_vring_base(RX)?;
    Ok(())
}

/// Waits until the TX queue has nothing to do and has said so to the guest.
fn tx_idle(g: &Guest) -> Res {
    check!(
        until(|| g.tx.wants_next()),
        "the TX queue never asked for a kick"
    );
    settle(g)
}

/// Waits until all that a start woke has run, so that a TX queue runs when it is kicked and only then.
///
/// What was woken before a packet comes has run when the packet is received, but for what runs in the same
/// round; that has run when the next one is.
fn woken(g: &mut Guest) -> Res {
    g.receive_all(&[frame(1, 60)])?;
    g.receive_all(&[frame(2, 60)])?;
    g.send_all(&[frame(3, 60)])?;
    tx_idle(g)
}

/// A guest whose device logs to a bitmap at an odd address, and has not written anything since.
fn logging(cfg: Config, used: bool) -> Res<(Guest, Bitmap)> {
    let g = Guest::stopped(cfg)?;
    let log = Bitmap::new(0x1000_0000, 13)?;
    check_eq!(log.install(&g), 0, "SET_LOG_BASE");
    if used {
        check_eq!(set_addr(&g, RX, Some(USED_LOG)), 0);
        check_eq!(set_addr(&g, TX, Some(TX_USED_LOG)), 0);
    }
    g.start()?;
    Ok((g, log))
}

/// Receives a packet into chains of these buffers, of which it takes as many as it needs. The pages of
/// its bytes are returned.
fn receive(g: &mut Guest, chains: &[Vec<Seg>], packet: &[u8]) -> Res<Pages> {
    let mut heads = vec![];
    for chain in chains {
        for s in chain {
            g.mem.fill(s.gpa, s.len as usize, 0xa5);
        }
        heads.push(g.rx.add(chain));
    }
    g.rx.submit();
    g.peer.send(packet)?;
    let mut pages = Pages::new();
    let mut data = vec![];
    for (chain, head) in chains.iter().zip(heads) {
        let u = g.rx.wait()?;
        check_eq!(u.id, u32::from(head), "head of a received packet");
        let mut left = u.len as usize;
        for s in chain {
            let now = left.min(s.len as usize);
            if now > 0 {
                pages.extend(pages_of(s.gpa, now));
                data.extend(g.mem.read(s.gpa, now));
            }
            left -= now;
        }
        if data.len() == g.hdr + packet.len() {
            break;
        }
    }
    same(&data[g.hdr..], packet, "received packet")?;
    settle(g)?;
    Ok(pages)
}

/// With LOG_ALL alone, exactly the pages of received bytes are marked: not the rest of the buffer, not
/// the rings, and nothing of what is sent.
fn rx_data() -> Res {
    for features in [
        VERSION_1,
        0,
        VERSION_1 | EVENT_IDX,
        VERSION_1 | VHOST_NET_HDR,
    ] {
        let (mut g, log) = logging(Config::with(features | LOG_ALL), false)?;
        let area = g.mem.alloc(64 << 12, PAGE);
        check_eq!(log.take()?, Pages::new(), "pages marked at first");
        for (offset, len) in [
            (0, 60),
            (4000, 60),
            (4095, 14),
            (4096 - 72, 60),
            (4096 - 71, 60),
            (5000, 9000),
            (0, 65535),
            (123, 32768 - 123 - 12),
            (123, 32768 - 123 - 11),
        ] {
            let room = 40 * 4096 - offset as usize;
            let want = receive(&mut g, &[vec![Seg::w(area + offset, room)]], &frame(1, len))?;
            let what = format!("pages of {len} bytes at {offset}");
            check_eq!(log.take()?, want, "{what}");
            g.send_all(&[frame(2, len)])?;
            tx_idle(&g)?;
            check_eq!(log.take()?, Pages::new(), "pages marked by a sent packet");
        }
    }
    Ok(())
}

/// The pages are those of guest addresses, wherever the regions are mapped, and a packet may be in many
/// buffers of many regions.
fn rx_regions() -> Res {
    // The second follows the first in guest memory, not in ours; the last are far from each other.
    let cfg = Config {
        regions: vec![
            (BASE, 8 << 20),
            (BASE + (8 << 20), 1 << 20),
            (0x300_0000, 1 << 20),
            (
                0x7fff_f000,
                0x3000u64.next_multiple_of(sys::page_size() as u64),
            ),
        ],
        ..Config::with(VERSION_1 | LOG_ALL | MRG_RXBUF | EVENT_IDX)
    };
    let mut g = Guest::stopped(cfg)?;
    let log = Bitmap::new(0x8010_0000, 0)?;
    check_eq!(log.install(&g), 0, "SET_LOG_BASE");
    g.start()?;
    let edge = BASE + (8 << 20);
    for round in 0..3 {
        // One buffer, over the edge.
        let chain = vec![Seg::w(edge - 100 - PAGE, 20000)];
        let want = receive(&mut g, &[chain], &frame(round, 9000))?;
        check!(want.contains(&(edge / PAGE)));
        check_eq!(log.take()?, want, "pages over the edge of a region");

        // Several in one chain.
        let chain = vec![
            Seg::w(0x7fff_ffff, 2),
            Seg::w(0x300_0ff0, 40),
            Seg::w(BASE + 0x40_0fff, 1),
            Seg::w(edge, 9000),
        ];
        let want = receive(&mut g, &[chain], &frame(round, 1514))?;
        check_eq!(log.take()?, want, "pages of a chain of four buffers");

        // Several chains: not all of the last, and the one behind it not at all.
        let chains: Vec<_> = [
            0x30f_f000,
            0x7fff_fff0,
            edge - 50,
            0x305_0000,
            edge + 0x8000,
        ]
        .iter()
        .map(|&gpa| vec![Seg::w(gpa, 3000), Seg::w(gpa + 3000, 1096)])
        .collect();
        let want = receive(&mut g, &chains, &frame(round, 4 * 4096 - 500))?;
        check_eq!(log.take()?, want, "pages of four chains");
        // The device has one chain left.
        g.restart(0)?;
    }
    check_eq!(log.take()?, Pages::new(), "pages marked by a restart");
    Ok(())
}

/// Buffers in indirect tables; the table itself is not written.
fn rx_indirect() -> Res {
    let (mut g, log) = logging(Config::with(VERSION_1 | LOG_ALL | INDIRECT), false)?;
    let area = g.mem.alloc(64 << 12, PAGE);
    let table = g.mem.alloc(4096, PAGE);
    for i in 0..20 {
        let segs: Vec<_> = (0..30)
            .map(|j| Seg::w(area + (31 - j) * 2 * PAGE + 7 * j, 100))
            .collect();
        g.rx.add_indirect(&segs, table);
        g.rx.submit();
        let p = frame(i, 100 + 100 * i as usize);
        g.peer.send(&p)?;
        let mut left = g.rx.wait()?.len as usize;
        settle(&g)?;
        let mut want = Pages::new();
        for s in &segs {
            let now = left.min(100);
            if now > 0 {
                want.extend(pages_of(s.gpa, now));
            }
            left -= now;
        }
        check_eq!(log.take()?, want, "pages of {} bytes", p.len());
    }
    Ok(())
}

/// The pages of the used ring that a packet at index `idx` marks: the index, and the entry.
fn used_pages(first: u64, idx: u16) -> Pages {
    [first, first + 1 + u64::from(idx / PER_PAGE)].into()
}

/// With VRING_F_LOG alone, exactly the pages of the used ring that were written are marked, and nothing
/// of the data.
fn used_ring() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX, 0] {
        for base in [0, 2 * PER_PAGE - 3, PER_PAGE - 3, 300] {
            let cfg = Config::with(features).num(2 * PER_PAGE).base(base);
            used_ring_from(cfg)?;
        }
    }
    Ok(())
}

fn used_ring_from(cfg: Config) -> Res {
    let (mut g, log) = logging(cfg, true)?;
    // The flags, by the start.
    settle(&g)?;
    let mut at_start = log.take()?;
    check!(at_start.remove(&USED_PAGE), "the RX queue's flags");
    check!(at_start.remove(&TX_USED_PAGE), "the TX queue's flags");
    // A TX queue that starts finds nothing, and asks for kicks.
    at_start.remove(&(TX_USED_PAGE + 3));
    check_eq!(at_start, Pages::new(), "pages marked by the start");
    woken(&mut g)?;
    log.take()?;

    for i in 0..6 {
        let at = g.rx.used_idx % (2 * PER_PAGE);
        g.receive_all(&[frame(i, 60)])?;
        settle(&g)?;
        let want = used_pages(USED_PAGE, at);
        check_eq!(log.take()?, want, "pages of the RX used ring at {at}");

        let at = g.tx.used_idx % (2 * PER_PAGE);
        g.send_all(&[frame(i, 60)])?;
        tx_idle(&g)?;
        let mut want = used_pages(TX_USED_PAGE, at);
        if g.tx.event_idx {
            // Behind the entries: the avail event.
            want.insert(TX_USED_PAGE + 3);
        }
        check_eq!(log.take()?, want, "pages of the TX used ring at {at}");
    }
    Ok(())
}

/// Many entries that are published together, and that wrap, are all marked.
fn used_ring_batches() -> Res {
    for base in [0, PER_PAGE - 20, 2 * PER_PAGE - 20] {
        let cfg = Config::with(VERSION_1).num(2 * PER_PAGE).base(base);
        let (mut g, log) = logging(cfg, true)?;
        tx_idle(&g)?;
        log.take()?;
        let packets: Vec<_> = (0..40).map(|i| frame(i, 60)).collect();
        g.send_all(&packets)?;
        tx_idle(&g)?;
        let mut want = Pages::new();
        for i in 0..40 {
            want.extend(used_pages(TX_USED_PAGE, (base + i) % (2 * PER_PAGE)));
        }
        check_eq!(log.take()?, want, "pages of 40 entries from {base}");
    }
    Ok(())
}

/// An RX queue that runs out of buffers asks for a kick: by its flags, or by the avail event.
fn kick_wish() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let cfg = Config::with(features).num(2 * PER_PAGE);
        let (mut g, log) = logging(cfg, true)?;
        woken(&mut g)?;
        log.take()?;
        let before = g.rx.avail_event();
        g.peer.send(&frame(2, 60))?;
        let wished = until(|| match g.rx.event_idx {
            true => g.rx.avail_event() != before,
            false => g.rx.used_flags() == 0,
        });
        check!(wished, "the device never asked for a kick");
        settle(&g)?;
        let page = USED_PAGE + if g.rx.event_idx { 3 } else { 0 };
        check_eq!(log.take()?, [page].into(), "pages of the wish for a kick");
    }
    Ok(())
}

/// Data and rings together, and both in the same pages of guest memory where they are: what a VMM asks for
/// when a guest migrates.
fn all() -> Res {
    for features in [
        VERSION_1,
        VERSION_1 | EVENT_IDX,
        MRG_RXBUF,
        VERSION_1 | IN_ORDER,
    ] {
        let mut g = Guest::new(Config::with(features))?;
        let log = Bitmap::new(0x1000_0000, 5)?;
        woken(&mut g)?;

        // Switched on while it runs.
        check_eq!(log.install(&g), 0, "SET_LOG_BASE");
        g.net.set_features(features | LOG_ALL)?;
        check_eq!(set_addr(&g, RX, Some(g.rx.used)), 0);
        check_eq!(set_addr(&g, TX, Some(g.tx.used)), 0);
        for i in 0..10 {
            let area = g.mem.alloc(4 << 12, PAGE);
            let p = frame(i, 60 + 300 * i as usize);
            let mut want = receive(&mut g, &[vec![Seg::w(area + 4000, 8000)]], &p)?;
            want.insert(g.rx.used / PAGE);
            check_eq!(log.take()?, want, "pages of packet {i}");
            g.send_all(&[p])?;
            tx_idle(&g)?;
            let want = [g.tx.used / PAGE].into();
            check_eq!(log.take()?, want, "pages of sent packet {i}");
        }

        // And off.
        g.net.set_features(features)?;
        check_eq!(set_addr(&g, RX, None), 0);
        check_eq!(set_addr(&g, TX, None), 0);
        for i in 0..10 {
            g.receive_all(&[frame(i, 1000)])?;
            g.send_all(&[frame(i, 1000)])?;
        }
        tx_idle(&g)?;
        check_eq!(log.take()?, Pages::new(), "pages marked after the end");
    }
    Ok(())
}

/// The log moves under a device that runs: what comes later is in the new one.
fn moved() -> Res {
    let (mut g, first) = logging(Config::with(VERSION_1 | LOG_ALL), true)?;
    let mut logs = vec![first];
    for skew in [0, 1, 3, 4, 7, 8, 4095, 64, 100] {
        logs.push(Bitmap::new(0x1000_0000, skew)?);
    }
    woken(&mut g)?;
    for (i, log) in logs.iter().enumerate() {
        check_eq!(log.install(&g), 0, "SET_LOG_BASE");
        for other in &logs {
            other.take()?;
        }
        let area = g.mem.alloc(4 << 12, PAGE);
        let chain = vec![Seg::w(area + 100, 10000)];
        let mut want = receive(&mut g, &[chain], &frame(1, 5000))?;
        want.extend(used_pages(USED_PAGE, 0));
        check_eq!(log.take()?, want, "pages in log {i}");
        for other in &logs {
            check_eq!(other.take()?, Pages::new(), "pages in another than {i}");
        }
    }
    Ok(())
}

/// On and off, with the log somewhere else each time, under traffic: no packet is lost, and at the end all is
/// as it was.
fn under_traffic() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut g = Guest::new(Config::with(features))?;
        let area = g.mem.alloc(Traffic::room(&g), PAGE);
        let buffers = area / PAGE..(area + Traffic::room(&g) as u64).div_ceil(PAGE);
        let logs = [
            Bitmap::new(0x1000_0000, 3)?,
            Bitmap::new(0x1000_0000, 0)?,
            Bitmap::new(0x1000_0000, 4090)?,
        ];
        check_eq!(logs[0].install(&g), 0, "SET_LOG_BASE");
        let mut traffic = Traffic::new(&g, area);
        let mut marked = Pages::new();
        let rounds = if sys::on_debug_kernel() { 18 } else { 60 };
        for i in 0..rounds {
            traffic.feed(&mut g, u32::MAX)?;
            let on = i % 3 != 2;
            let log_all = if on { LOG_ALL } else { 0 };
            g.net.set_features(features | log_all)?;
            for index in [RX, TX] {
                let used = if index == RX { g.rx.used } else { g.tx.used };
                check_eq!(set_addr(&g, index, on.then_some(used)), 0);
            }
            check_eq!(logs[i % 3].install(&g), 0, "SET_LOG_BASE");
            traffic.drain(&mut g)?;
            marked.extend(logs[i % 3].take()?);
        }
        while traffic.rx_out < traffic.rx_in || traffic.tx_out < traffic.tx_in {
            traffic.drain(&mut g)?;
        }
        for log in &logs {
            marked.extend(log.take()?);
        }
        check!(marked.remove(&(g.rx.used / PAGE)), "no RX used ring");
        check!(marked.remove(&(g.tx.used / PAGE)), "no TX used ring");
        check!(!marked.is_empty(), "no buffer");
        check!(
            marked.iter().all(|page| buffers.contains(page)),
            "pages {marked:x?} of buffers in {buffers:x?}"
        );
    }
    Ok(())
}

/// While the log is on, no page is received into without its mark: what was taken from the log is never
/// behind the data that was seen before.
fn nothing_missed() -> Res {
    let cfg = Config::with(VERSION_1 | LOG_ALL | EVENT_IDX).num(128);
    let (mut g, log) = logging(cfg, true)?;
    let area = g.mem.alloc(128 << 12, PAGE);
    let (mut sent, mut got) = (0u32, 0u32);
    let mut marked = Pages::new();
    let mut place = vec![0; 128];
    let mut next = 0;
    while got < 2000 {
        while g.rx.free() > 0 {
            let at = area + next % 128 * PAGE;
            next += 1;
            let head = g.rx.add(&[Seg::w(at, 2000)]);
            place[usize::from(head)] = at;
        }
        g.rx.submit();
        while sent - got < 60 {
            g.peer.send(&frame(sent, 300))?;
            sent += 1;
        }
        let mut seen = vec![g.rx.wait()?];
        seen.extend(std::iter::from_fn(|| g.rx.pop()));
        // The marks of a packet may come after its entry, but not after the queue's turn.
        settle(&g)?;
        marked.extend(log.take()?);
        for u in seen {
            let at = place[u.id as usize];
            let p = g.mem.read(at + g.hdr as u64, 300);
            same(&p, &frame(got, 300), "packet")?;
            check!(
                marked.remove(&(at / PAGE)),
                "packet {got} is not in the log"
            );
            got += 1;
        }
    }
    Ok(())
}

/// The eventfd says that something was logged.
fn eventfd() -> Res {
    let (mut g, _log) = logging(Config::with(VERSION_1 | LOG_ALL), true)?;
    let event = EventFd::new(EFD_NONBLOCK)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&event);
    let zero = std::fs::File::open("/dev/zero")?;
    let other = std::os::fd::AsRawFd::as_raw_fd(&zero);
    for (fd, want) in [(fd, 0), (-2, EBADF), (12345, EBADF), (other, EINVAL)] {
        check_eq!(ioctl(&g.net, sys::SET_LOG_FD, &fd), want, "fd {fd}");
    }
    let signalled = || event.read().is_ok();
    tx_idle(&g)?;
    signalled();
    // RX: data, and the used ring.
    g.receive_all(&[frame(1, 60)])?;
    settle(&g)?;
    check!(signalled(), "nothing said of a received packet");
    // TX: the used ring alone.
    g.send_all(&[frame(1, 60)])?;
    tx_idle(&g)?;
    check!(signalled(), "nothing said of the TX used ring");
    // Data alone.
    check_eq!(set_addr(&g, RX, None), 0);
    check_eq!(set_addr(&g, TX, None), 0);
    g.receive_all(&[frame(1, 60)])?;
    settle(&g)?;
    check!(signalled(), "nothing said of received data");
    g.send_all(&[frame(1, 60)])?;
    tx_idle(&g)?;
    check!(!signalled(), "a word about sent data");
    // Nothing at all.
    g.net.set_features(of_format(VERSION_1))?;
    g.receive_all(&[frame(1, 60)])?;
    settle(&g)?;
    check!(!signalled(), "a word about nothing");
    // No eventfd.
    g.net.set_features(of_format(VERSION_1 | LOG_ALL))?;
    check_eq!(ioctl(&g.net, sys::SET_LOG_FD, &-1i32), 0);
    g.receive_all(&[frame(1, 60)])?;
    settle(&g)?;
    check!(!signalled(), "a word to an eventfd that was taken away");
    Ok(())
}

/// A log that can't be in user space is refused when a queue runs, or when it starts.
fn errors() -> Res {
    let (kernel, end) = (0xffff_8880_0000_0000u64, sys::user_end()?);
    let outside = [kernel, u64::MAX, 1 << 63, end, end - 16];
    for base in outside {
        // Set while nothing runs: said when the device starts.
        let g = Guest::stopped(Config::with(VERSION_1 | LOG_ALL))?;
        check_eq!(ioctl(&g.net, sys::SET_LOG_BASE, &base), 0, "{base:#x}");
        for index in [RX, TX] {
            let file = VringFile {
                index: index as u32,
                fd: std::os::fd::AsRawFd::as_raw_fd(&g.tap.fd),
            };
            let got = ioctl(&g.net, sys::NET_SET_BACKEND, &file);
            check_eq!(got, EFAULT, "a backend with a log at {base:#x}");
        }
        // Without LOG_ALL nobody cares, until it comes.
        g.net.set_features(VERSION_1)?;
        g.start()?;
        let features = VERSION_1 | LOG_ALL;
        let got = ioctl(&g.net, sys::SET_FEATURES, &features);
        check_eq!(got, EFAULT, "SET_FEATURES with a log at {base:#x}");
    }
    for base in outside {
        let (mut g, log) = logging(Config::with(VERSION_1 | LOG_ALL), false)?;
        let got = ioctl(&g.net, sys::SET_LOG_BASE, &base);
        check_eq!(got, EFAULT, "SET_LOG_BASE {base:#x} while it runs");
        // The old one is in use still.
        g.receive_all(&[frame(1, 60)])?;
        settle(&g)?;
        check!(!log.take()?.is_empty(), "the log is lost");
        g.net.set_features(VERSION_1)?;
        let got = ioctl(&g.net, sys::SET_LOG_BASE, &base);
        check_eq!(got, 0, "SET_LOG_BASE {base:#x} while there is no log");
        let got = set_addr(&g, RX, Some(0x10_0000));
        check_eq!(got, EINVAL, "a used ring logged at {base:#x}");
        check_eq!(set_addr(&g, RX, None), 0);
        g.receive_all(&[frame(1, 60)])?;
    }
    let g = Guest::new(Config::default())?;
    check_eq!(ioctl(&g.net, sys::SET_LOG_BASE, 8 as *const u64), EFAULT);
    check_eq!(ioctl(&g.net, sys::SET_LOG_FD, 8 as *const i32), EFAULT);
    Ok(())
}

/// Where the used ring may be logged.
fn used_log_errors() -> Res {
    let (mut g, log) = logging(Config::with(VERSION_1), false)?;
    for addr in [1, 2, 3, 0x1001] {
        check_eq!(set_addr(&g, RX, Some(addr)), EINVAL, "at {addr:#x}");
    }
    // The bit of the guest address may be behind the end of user space.
    let end = sys::user_end()?;
    let bit = |addr: u64| log.base + addr / PAGE / 8;
    for addr in [1 << 63, (1 << 63) - 4, 1 << 62, u64::MAX - 3] {
        let want = if bit(addr) >= end { EINVAL } else { 0 };
        check_eq!(set_addr(&g, RX, Some(addr)), want, "at {addr:#x}");
    }
    check_eq!(set_addr(&g, RX, Some(USED_LOG)), 0);
    let addr = Addr {
        flags: 2,
        ..Addr::default()
    };
    let got = ioctl(&g.net, sys::SET_VRING_ADDR, &addr);
    check_eq!(got, EOPNOTSUPP, "a flag that does not exist");
    tx_idle(&g)?;
    log.take()?;
    g.receive_all(&[frame(1, 60)])?;
    settle(&g)?;
    check_eq!(log.take()?, used_pages(USED_PAGE, 0), "pages");
    Ok(())
}

/// Memory whose log is behind the end of user space can't be added while all is logged.
fn mem_table_errors() -> Res {
    let (g, log) = logging(Config::with(VERSION_1 | LOG_ALL), false)?;
    let (m, end) = (g.mem.regions()[0], sys::user_end()?);
    let region = |gpa| sys::Region {
        gpa,
        size: m.size,
        hva: m.hva,
        flags: 0,
    };
    for gpa in [m.gpa, 1 << 40, 1 << 62, 1 << 63] {
        let outside = log.base + gpa / PAGE / 8 >= end;
        let want = if outside { EFAULT } else { 0 };
        let table = sys::mem_table(1, 0, &[region(gpa)]);
        let got = ioctl(&g.net, sys::SET_MEM_TABLE, table.as_ptr());
        check_eq!(got, want, "a region at {gpa:#x}");
    }
    Ok(())
}

/// A log that is not mapped is the VMM's mistake: the packets arrive all the same.
fn not_mapped() -> Res {
    let (mut g, _log) = logging(Config::with(VERSION_1 | LOG_ALL | EVENT_IDX), true)?;
    let nowhere = Bitmap::new(PAGE, 0)?.base + PAGE;
    check_eq!(ioctl(&g.net, sys::SET_LOG_BASE, &nowhere), 0);
    for i in 0..20 {
        g.receive_all(&[frame(i, 1000)])?;
        g.send_all(&[frame(i, 1000)])?;
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("rx_data", rx_data),
        ("rx_regions", rx_regions),
        ("rx_indirect", rx_indirect),
        ("used_ring", used_ring),
        ("used_ring_batches", used_ring_batches),
        ("kick_wish", kick_wish),
        ("all", all),
        ("moved", moved),
        ("under_traffic", under_traffic),
        ("nothing_missed", nothing_missed),
        ("eventfd", eventfd),
        ("errors", errors),
        ("used_log_errors", used_log_errors),
        ("mem_table_errors", mem_table_errors),
        ("not_mapped", not_mapped),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &["rx_indirect", "nothing_missed", "eventfd", "not_mapped"];
    ktap::run_formats(TESTS, PACKED)
}
