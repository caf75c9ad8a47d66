// SPDX-License-Identifier: GPL-2.0

//! When the device calls, and when it asks for a kick (section 2.8.10).

use kselftest::sys::until;

use super::*;

/// Always and never, with event indices and without.
pub fn calls_enabled() -> Res {
    for features in [0, EVENT_IDX] {
        let mut g = Guest::new(config(features, 5))?;
        for flags in [ENABLE, DISABLE, ENABLE, DISABLE] {
            for ring in [&g.tx, &g.rx] {
                ring.packed().set_driver_event(flags, 0x8001);
            }
            settle(&g)?;
            let want = u64::from(flags == ENABLE);
            g.tx.calls();
            g.rx.calls();
            for i in 0..11 {
                send(&mut g)?;
                check_eq!(g.tx.calls(), want, "TX calls of packet {i}, {flags}");
                receive(&mut g)?;
                check_eq!(g.rx.calls(), want, "RX calls of packet {i}, {flags}");
            }
        }
    }
    Ok(())
}

/// At one descriptor, wherever it is and whatever the wrap counter: exactly when it is used.
pub fn calls_at() -> Res {
    for num in [5, 8] {
        let mut g = Guest::new(config(EVENT_IDX, num))?;
        // The first call after a start may come at any place.
        send(&mut g)?;
        receive(&mut g)?;
        for i in 0..30 {
            let far = i % usize::from(num);
            for index in [TX, RX] {
                let r = ring(&mut g, index);
                let packed = r.packed();
                packed.call_at(packed.used.after(far));
                r.calls();
            }
            for at in 0..=far {
                send(&mut g)?;
                let want = u64::from(at == far);
                check_eq!(g.tx.calls(), want, "TX calls at {at}, wanted at {far}");
                receive(&mut g)?;
                check_eq!(g.rx.calls(), want, "RX calls at {at}, wanted at {far}");
            }
        }
    }
    Ok(())
}

/// Among several that are there together: one call, and none if it is behind them.
pub fn calls_at_in_a_batch() -> Res {
    let mut g = Guest::new(config(EVENT_IDX, 11))?;
    for i in 0..30 {
        send(&mut g)?;
        let far = i % 10;
        let packed = g.tx.packed();
        packed.call_at(packed.used.after(far));
        g.tx.calls();
        for _ in 0..5 {
            let s = piece(&g, TX);
            g.tx.add(&[s]);
        }
        g.tx.publish();
        g.tx.kick();
        for _ in 0..5 {
            g.tx.spin()?;
            g.peer.recv()?;
        }
        settle(&g)?;
        check_eq!(g.tx.calls(), u64::from(far < 5), "calls, wanted at {far}");
    }
    Ok(())
}

/// At a descriptor within a chain, whose used one is that of its first: it counts as passed when the chain is used.
pub fn calls_at_in_a_chain() -> Res {
    let mut g = Guest::new(config(EVENT_IDX, 7))?;
    for i in 0..30 {
        send(&mut g)?;
        let far = i % 6;
        let packed = g.tx.packed();
        packed.call_at(packed.used.after(far));
        g.tx.calls();
        let at = g.place(&frame(2, 90));
        let segs = [0, 34, 68].map(|from| Seg::r(at + from, 34));
        g.tx.add(&segs);
        g.tx.publish();
        g.tx.kick();
        g.tx.spin()?;
        same(&g.peer.recv()?, &frame(2, 90), "packet")?;
        settle(&g)?;
        check_eq!(g.tx.calls(), u64::from(far < 3), "calls, wanted at {far}");
    }
    Ok(())
}

/// The same index with the other wrap counter is a lap away.
pub fn calls_at_other_wrap() -> Res {
    let num = 5;
    let mut g = Guest::new(config(EVENT_IDX, num))?;
    send(&mut g)?;
    for i in 0..10 {
        let far = usize::from(num) + i % 5;
        let packed = g.tx.packed();
        packed.call_at(packed.used.after(far));
        g.tx.calls();
        for at in 0..=far {
            send(&mut g)?;
            let want = u64::from(at == far);
            check_eq!(g.tx.calls(), want, "calls at {at}, wanted at {far}");
        }
    }
    Ok(())
}

/// What is reserved, or not negotiated, stops nothing; and when it is mended, calls come.
pub fn calls_reserved() -> Res {
    for (features, flags) in [(0, RESERVED), (EVENT_IDX, RESERVED), (0, DESC), (0, 0xfffc)] {
        let mut g = Guest::new(config(features, 5))?;
        for _ in 0..8 {
            for ring in [&g.tx, &g.rx] {
                ring.packed().set_driver_event(flags, 0xffff);
            }
            for _ in 0..3 {
                send(&mut g)?;
                receive(&mut g)?;
            }
            for ring in [&g.tx, &g.rx] {
                ring.packed().set_driver_event(ENABLE, 0);
            }
            while g.tx.err.read().is_ok() || g.rx.err.read().is_ok() {}
            g.send_all(&[frame(1, 60)])?;
            g.receive_all(&[frame(1, 60)])?;
        }
    }
    Ok(())
}

/// A legacy feature that packed rings have not: no call when a ring runs empty.
pub fn calls_on_empty() -> Res {
    let mut g = Guest::new(config(NOTIFY_ON_EMPTY, 5))?;
    for ring in [&g.tx, &g.rx] {
        ring.packed().set_driver_event(DISABLE, 0);
    }
    settle(&g)?;
    g.tx.calls();
    g.rx.calls();
    for i in 0..11 {
        send(&mut g)?;
        receive(&mut g)?;
        check_eq!((g.tx.calls(), g.rx.calls()), (0, 0), "calls, packet {i}");
    }
    Ok(())
}

/// The device asks for no kick at one place where that was not negotiated.
pub fn kicks_without_event_idx() -> Res {
    let mut g = Guest::new(config(0, 5))?;
    for i in 0..30 {
        send(&mut g)?;
        receive(&mut g)?;
        for ring in [&g.tx, &g.rx] {
            let (flags, _) = ring.packed().device_event();
            check!(flags == ENABLE || flags == DISABLE, "packet {i}: {flags}");
        }
        check!(until(|| g.tx.wants_next()), "packet {i}: no wish");
    }
    Ok(())
}

/// Where it was, an idle queue asks for the next one, which a kick then follows; and one with buffers asks for none.
pub fn kicks_with_event_idx() -> Res {
    let mut g = Guest::new(config(EVENT_IDX, 5))?;
    for i in 0..30 {
        check!(until(|| g.tx.wants_next()), "packet {i}: no wish");
        send(&mut g)?;
        let (flags, place) = g.tx.packed().device_event();
        check!(flags != RESERVED, "packet {i}: the reserved value");
        check!(
            flags != DESC || place & 0x7fff < 5,
            "packet {i}: {place:#x}"
        );

        let b = [g.buffer(100), g.buffer(100)];
        for b in b {
            g.rx.add(&[b]);
        }
        g.rx.submit();
        for left in [1, 0] {
            g.peer.send(&frame(1, 60))?;
            g.rx.spin()?;
            settle(&g)?;
            check!(left == 0 || !g.rx.wants_next(), "packet {i}: a wish");
        }
        g.peer.send(&frame(1, 60))?;
        check!(until(|| g.rx.wants_next()), "packet {i}: no wish for one");
        let b = g.buffer(100);
        g.rx.add(&[b]);
        check!(g.rx.wants_kick(), "packet {i}: told of what it asked for");
        g.rx.submit();
        g.rx.spin()?;
    }
    Ok(())
}

/// Whatever stands in the device's event area when it starts, it is the device's to write.
pub fn area_rewritten() -> Res {
    for features in [0, EVENT_IDX] {
        let mut g = Guest::stopped(config(features, 5))?;
        for i in 0..12 {
            let flags = [DISABLE, RESERVED, DESC, 0xffff][i % 4];
            for ring in [&g.tx, &g.rx] {
                ring.packed().set_device_event(flags, 0x7003);
            }
            g.start()?;
            check!(
                until(|| g.tx.wants_next()),
                "no wish for a kick, after {flags:#x}"
            );
            works(&mut g)?;
            g.stop()?;
        }
    }
    Ok(())
}
