// SPDX-License-Identifier: GPL-2.0

//! When the device calls, and when it asks for a kick.

use std::time::Duration;

use kselftest::feature::*;
use kselftest::ktap::Test;
use kselftest::sys::page_size;
use kselftest::sys::until;
use kselftest::*;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

/// Sends one packet and waits for its completion without asking for a call.
fn send(g: &mut Guest) -> Res {
    let at = g.place(&frame(1, 60));
    g.tx.add(&[Seg::r(at, g.hdr + 60)]);
    g.tx.submit();
    g.tx.spin()?;
    g.peer.recv()?;
    settle(g)
}

/// Receives one packet without asking for a call.
fn receive(g: &mut Guest) -> Res {
    g.peer.send(&frame(1, 60))?;
    g.rx.spin()?;
    settle(g)
}

/// A completion is visible before its call. Both happen under the queue's lock, which this takes.
fn settle(g: &Guest) -> Res {
    g.net.get_vring_base(TX)?;
    g.net.get_vring_base(RX)?;
    Ok(())
}

fn fill_rx(g: &mut Guest) {
    while g.rx.free() > 0 {
        let b = g.buffer(200);
        g.rx.add(&[b]);
    }
    g.rx.submit();
}

/// Calls come exactly when the used index passes the event index.
fn used_event_tx() -> Res {
    for base in [0, 65530, 32760] {
        let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX).base(base))?;
        // The first call after a start may come at any index.
        send(&mut g)?;
        g.tx.calls();
        for far in [1, 2, 10, 50] {
            let event = g.tx.used_idx.wrapping_add(far - 1);
            g.tx.set_used_event(event);
            for i in 1..far {
                send(&mut g)?;
                check_eq!(g.tx.calls(), 0, "calls at packet {i} of {far}");
            }
            send(&mut g)?;
            check_eq!(
                g.tx.calls(),
                1,
                "calls when the event index {event} is passed"
            );
            for _ in 0..5 {
                send(&mut g)?;
            }
            g.stop()?;
            check_eq!(g.tx.calls(), 0, "calls after the event index was passed");
            g.start()?;
            send(&mut g)?;
            g.tx.calls();
        }
    }
    Ok(())
}

fn used_event_rx() -> Res {
    for base in [0, 65530, 32760] {
        let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX).base(base))?;
        fill_rx(&mut g);
        receive(&mut g)?;
        g.rx.calls();
        for far in [1, 2, 10, 50] {
            let event = g.rx.used_idx.wrapping_add(far - 1);
            g.rx.set_used_event(event);
            for i in 1..far {
                receive(&mut g)?;
                check_eq!(g.rx.calls(), 0, "calls at packet {i} of {far}");
            }
            receive(&mut g)?;
            check_eq!(
                g.rx.calls(),
                1,
                "calls when the event index {event} is passed"
            );
            for _ in 0..5 {
                receive(&mut g)?;
            }
            check_eq!(g.rx.calls(), 0, "calls after the event index was passed");
            fill_rx(&mut g);
        }
    }
    Ok(())
}

/// Many packets at once, the event index among them: one call or more, and never none.
fn used_event_in_a_batch() -> Res {
    let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX).base(65400))?;
    send(&mut g)?;
    for i in 0..20 {
        g.tx.calls();
        let event = g.tx.used_idx.wrapping_add(i * 5);
        g.tx.set_used_event(event);
        for _ in 0..100 {
            let at = g.place(&frame(1, 60));
            g.tx.add(&[Seg::r(at, g.hdr + 60)]);
        }
        g.tx.submit();
        for _ in 0..100 {
            g.tx.spin()?;
            g.peer.recv()?;
        }
        settle(&g)?;
        check_eq!(
            g.tx.calls(),
            1,
            "calls with the event {} packets ahead",
            i * 5
        );
    }
    Ok(())
}

/// The event index just behind the used index is as far away as it can be.
fn used_event_behind() -> Res {
    let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX))?;
    send(&mut g)?;
    g.tx.calls();
    g.tx.set_used_event(g.tx.used_idx.wrapping_sub(1));
    for _ in 0..300 {
        send(&mut g)?;
    }
    g.stop()?;
    check_eq!(g.tx.calls(), 0, "calls");
    Ok(())
}

/// An idle TX queue wants to be told of the very next packet.
fn avail_event_tx() -> Res {
    for base in [0, 65530] {
        let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX).base(base))?;
        for i in 0..20 {
            send(&mut g)?;
            check!(
                until(|| g.tx.wants_next()),
                "packet {i}: no wish for the next one"
            );
        }
        check_eq!(g.tx.used_flags() & 1, 0, "the used ring's flags");
    }
    Ok(())
}

/// An RX queue that ran out of buffers wants to be told of the very next one; one that has some does not.
fn avail_event_rx() -> Res {
    let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX))?;
    for i in 0..20 {
        let b = g.buffer(200);
        g.rx.add(&[b]);
        g.rx.submit();
        g.peer.send(&frame(1, 60))?;
        g.rx.spin()?;
        g.peer.send(&frame(2, 60))?;
        check!(
            until(|| g.rx.wants_next()),
            "packet {i}: no wish for a kick"
        );
        let b = [g.buffer(200), g.buffer(200), g.buffer(200)];
        for b in b {
            g.rx.add(&[b]);
        }
        g.rx.submit();
        g.rx.spin()?;
        check!(
            !g.rx.wants_next(),
            "packet {i}: a wish for kicks while there are buffers"
        );
        g.peer.send(&frame(1, 60))?;
        g.peer.send(&frame(1, 60))?;
        g.rx.spin()?;
        g.rx.spin()?;
    }
    Ok(())
}

/// Without event indices, an idle TX queue clears the flag that says "no kicks".
fn no_notify_tx() -> Res {
    let mut g = Guest::new(Config::default())?;
    for _ in 0..20 {
        send(&mut g)?;
        check!(
            until(|| g.tx.used_flags() == 0),
            "used flags {:#x}",
            g.tx.used_flags()
        );
    }
    Ok(())
}

/// An RX queue sets the flag while it has buffers, and clears it when it runs out of them.
fn no_notify_rx() -> Res {
    let mut g = Guest::new(Config::default())?;
    for _ in 0..20 {
        let b = g.buffer(200);
        g.rx.add(&[b]);
        g.rx.submit();
        check!(
            until(|| g.rx.used_flags() == 1),
            "used flags {:#x} with a buffer",
            g.rx.used_flags()
        );
        g.peer.send(&frame(1, 60))?;
        g.rx.spin()?;
        check_eq!(g.rx.used_flags(), 1, "used flags while no packet waits");
        g.peer.send(&frame(1, 60))?;
        check!(
            until(|| g.rx.used_flags() == 0),
            "used flags {:#x} without one",
            g.rx.used_flags()
        );
        let b = g.buffer(200);
        g.rx.add(&[b]);
        g.rx.submit();
        g.rx.spin()?;
    }
    Ok(())
}

/// The guest wants no calls, and gets none.
fn no_interrupt() -> Res {
    let mut g = Guest::new(Config::default())?;
    fill_rx(&mut g);
    for want in [false, true, false] {
        g.tx.set_avail_flags(u16::from(!want));
        g.rx.set_avail_flags(u16::from(!want));
        g.tx.calls();
        g.rx.calls();
        for i in 0..50 {
            send(&mut g)?;
            check_eq!(g.tx.calls(), u64::from(want), "TX calls of packet {i}");
            receive(&mut g)?;
            check_eq!(g.rx.calls(), u64::from(want), "RX calls of packet {i}");
        }
    }
    Ok(())
}

/// With event indices the flag means nothing.
fn no_interrupt_ignored() -> Res {
    let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX))?;
    g.tx.set_avail_flags(1);
    for _ in 0..20 {
        let event = g.tx.used_idx;
        g.tx.set_used_event(event);
        send(&mut g)?;
        check_eq!(g.tx.calls(), 1, "calls");
    }
    Ok(())
}

/// A call when the ring runs empty, wanted or not; none before.
fn notify_on_empty() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let mut g = Guest::new(Config::with(features | NOTIFY_ON_EMPTY))?;
        send(&mut g)?;
        g.tx.set_avail_flags(1);
        g.tx.calls();
        for i in 0..20 {
            g.tx.set_used_event(g.tx.used_idx.wrapping_sub(1));
            send(&mut g)?;
            check_eq!(
                g.tx.calls(),
                1,
                "TX calls of packet {i}, which empties the ring"
            );
        }
        for _ in 0..10 {
            let b = g.buffer(200);
            g.rx.add(&[b]);
        }
        g.rx.submit();
        receive(&mut g)?;
        g.rx.set_avail_flags(1);
        g.rx.calls();
        for i in 1..9 {
            g.rx.set_used_event(g.rx.used_idx.wrapping_sub(1));
            receive(&mut g)?;
            check_eq!(
                g.rx.calls(),
                0,
                "RX calls of packet {i}, when there are more buffers"
            );
        }
        receive(&mut g)?;
        check_eq!(g.rx.calls(), 1, "RX calls of the last buffer");
    }
    Ok(())
}

/// A queue without a call eventfd works, and calls again when it has one.
fn no_call_fd() -> Res {
    let mut g = Guest::new(Config::default())?;
    let unbind = sys::VringFile {
        index: TX as u32,
        fd: -1,
    };
    check_eq!(sys::ioctl(&g.net, sys::SET_VRING_CALL, &unbind), 0);
    for _ in 0..5 {
        send(&mut g)?;
    }
    check_eq!(g.tx.calls(), 0);
    g.net.set_vring_call(TX, &g.tx.call)?;
    send(&mut g)?;
    check_eq!(g.tx.calls(), 1);
    Ok(())
}

/// A kick that came before the kick eventfd was given to the device is not lost.
fn kick_before_bind() -> Res {
    let mut g = Guest::new(Config::default())?;
    let unbind = sys::VringFile {
        index: TX as u32,
        fd: -1,
    };
    for _ in 0..5 {
        check_eq!(sys::ioctl(&g.net, sys::SET_VRING_KICK, &unbind), 0);
        // The turn that the last packet, or the backend, was the reason for is over.
        task::settle(&g)?;
        let at = g.place(&frame(1, 60));
        g.tx.add(&[Seg::r(at, g.hdr + 60)]);
        g.tx.publish();
        g.tx.kick();
        g.net.get_vring_base(TX)?;
        check_eq!(g.tx.device_idx(), g.tx.used_idx, "used without a kick");
        g.net.set_vring_kick(TX, &g.tx.kick)?;
        g.tx.wait()?;
        g.peer.recv()?;
        // The device never reads the eventfd: the VMM does, when it takes it back.
        let _ = g.tx.kick.read();
    }
    Ok(())
}

/// Another kick eventfd in the place of the one that is waited for: from then on only that counts.
fn kick_exchanged() -> Res {
    let mut g = Guest::new(Config::default())?;
    let events = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK));
    let [first, second] = events;
    let (first, second) = (first?, second?);
    for (old, new) in [(&first, &second), (&second, &first)].repeat(3) {
        g.net.set_vring_kick(TX, new)?;
        task::settle(&g)?;
        let at = g.place(&frame(1, 60));
        g.tx.add(&[Seg::r(at, g.hdr + 60)]);
        g.tx.publish();
        old.write(1)?;
        std::thread::sleep(Duration::from_millis(20));
        check_eq!(g.tx.device_idx(), g.tx.used_idx, "used by the old kick");
        // Both were never read: a new one is ready at once when it is given next.
        let _ = (old.read(), new.write(1)?);
        g.tx.wait()?;
        g.peer.recv()?;
        let _ = new.read();
    }
    Ok(())
}

/// Where the driver says when it wants a call can't be read: it is called, and the error told.
fn unreadable() -> Res {
    let page = page_size();
    // The entries are whole pages.
    let num = (page / 2).max(4096);
    let mut g = Guest::new(Config::with(VERSION_1 | EVENT_IDX).num(num as u16))?;
    // Calls from now on are for an index that was passed.
    send(&mut g)?;
    g.tx.calls();
    // The last page of the available ring, which has just the end of the entries, and the event index; or the page of what a
    // packed ring has for events.
    let before = if packed::by_default() { 0 } else { 2 * num };
    let (at, _) = g.mem.hva(g.tx.avail + before as u64);
    // SAFETY: a page of guest memory that nobody but the device touches any more.
    let r = unsafe { libc::mprotect(at.cast(), page, libc::PROT_NONE) };
    check_eq!(r, 0, "mprotect");
    let p = frame(2, 60);
    let at = g.place(&p);
    g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
    g.tx.publish();
    g.tx.kick();
    g.tx.spin()?;
    check!(until(|| g.tx.calls() > 0), "no call when in doubt");
    g.tx.wait_err()
}

fn main() {
    const TESTS: &[Test] = &[
        ("used_event_tx", used_event_tx),
        ("used_event_rx", used_event_rx),
        ("used_event_in_a_batch", used_event_in_a_batch),
        ("used_event_behind", used_event_behind),
        ("avail_event_tx", avail_event_tx),
        ("avail_event_rx", avail_event_rx),
        ("no_notify_tx", no_notify_tx),
        ("no_notify_rx", no_notify_rx),
        ("no_interrupt", no_interrupt),
        ("no_interrupt_ignored", no_interrupt_ignored),
        ("notify_on_empty", notify_on_empty),
        ("no_call_fd", no_call_fd),
        ("kick_before_bind", kick_before_bind),
        ("kick_exchanged", kick_exchanged),
        ("unreadable", unreadable),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &[
        "used_event_tx",
        "used_event_rx",
        "used_event_in_a_batch",
        "used_event_behind",
        "avail_event_tx",
        "avail_event_rx",
        "no_notify_tx",
        "no_notify_rx",
        "no_interrupt",
        "kick_before_bind",
        "unreadable",
    ];
    ktap::run_formats(TESTS, PACKED)
}
