// SPDX-License-Identifier: GPL-2.0

//! What only packed virtqueues have (virtio 1.3, section 2.8). What both formats have runs in both, in the other areas.

mod bad;
mod chains;
mod events;
mod log;
mod same;
mod setup;

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::packed::*;
use kselftest::*;
use vhost::VhostBackend;

/// What every guest here has.
const PACKED: u64 = VERSION_1 | RING_PACKED;

fn config(features: u64, num: u16) -> Config {
    Config {
        regions: vec![(mem::BASE, 16 << 20)],
        ..Config::with(PACKED | features).num(num)
    }
}

/// All that the device had to do for what happened so far is done: each queue's lock was free since.
fn settle(g: &Guest) -> Res {
    g.net.get_vring_base(TX)?;
    g.net.get_vring_base(RX)?;
    Ok(())
}

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
    let b = g.buffer(200);
    g.rx.add(&[b]);
    g.rx.submit();
    g.peer.send(&frame(1, 60))?;
    g.rx.spin()?;
    settle(g)
}

/// A packet each way, and a position that says so.
fn works(g: &mut Guest) -> Res {
    g.send_all(&[frame(1, 60), frame(2, 3000)][..g.tx.free().min(2)])?;
    g.receive_all(&[frame(3, 60), frame(4, 3000)][..g.rx.free().min(2)])?;
    stands(g)
}

/// Both halves of both bases say what was used, and nobody signalled an error.
#[track_caller]
fn stands(g: &Guest) -> Res {
    let at = std::panic::Location::caller();
    for (index, ring) in [(RX, &g.rx), (TX, &g.tx)] {
        let (got, want) = (g.net.get_vring_base(index)?, ring.base());
        if got != want || ring.err.read().is_ok() {
            let why = format!("queue {index}: base {got:#x}, want {want:#x}, or an error");
            return Err(Fail::at(at.file(), at.line(), why));
        }
    }
    Ok(())
}

/// The queue of this index.
fn ring(g: &mut Guest, index: usize) -> &mut Ring {
    match index {
        RX => &mut g.rx,
        _ => &mut g.tx,
    }
}

/// A buffer for a queue: one to be written, or a packet of 60 bytes with its header.
fn piece(g: &Guest, index: usize) -> Seg {
    match index {
        RX => g.buffer(200),
        _ => Seg::r(g.place(&frame(1, 60)), g.hdr + 60),
    }
}

/// As a descriptor of a queue is written, without the flags that say whose it is.
fn desc(s: &Seg, id: u16, flags: u16) -> Desc {
    Desc {
        addr: s.gpa,
        len: s.len,
        id,
        flags: flags | if s.write { ring::WRITE } else { 0 },
    }
}

fn main() {
    const TESTS: &[Test] = &[
        ("features", setup::features),
        ("numbers", setup::numbers),
        ("bases", setup::bases),
        ("bases_outside", setup::bases_outside),
        ("bases_refused", setup::bases_refused),
        ("addresses", setup::addresses),
        ("every_base", setup::every_base),
        ("base_without_used", setup::base_without_used),
        ("without_base", setup::without_base),
        ("format_changes", setup::format_changes),
        ("format_changes_size", setup::format_changes_size),
        (
            "format_changes_while_running",
            setup::format_changes_while_running,
        ),
        ("format_reset", setup::format_reset),
        ("features_while_running", setup::features_while_running),
        ("endian_ignored", setup::endian_ignored),
        ("stopped", setup::stopped),
        ("stopped_in_a_packet", setup::stopped_in_a_packet),
        ("moved", setup::moved),
        ("logged", log::logged),
        ("logged_at_user_address", log::logged_at_user_address),
        ("logged_behind_iotlb", log::logged_behind_iotlb),
        ("not_logged", log::not_logged),
        ("seen", setup::seen),
        ("calls_enabled", events::calls_enabled),
        ("calls_at", events::calls_at),
        ("calls_at_in_a_batch", events::calls_at_in_a_batch),
        ("calls_at_in_a_chain", events::calls_at_in_a_chain),
        ("calls_at_other_wrap", events::calls_at_other_wrap),
        ("calls_reserved", events::calls_reserved),
        ("calls_on_empty", events::calls_on_empty),
        ("kicks_without_event_idx", events::kicks_without_event_idx),
        ("kicks_with_event_idx", events::kicks_with_event_idx),
        ("area_rewritten", events::area_rewritten),
        ("sizes", chains::sizes),
        ("sizes_large", chains::sizes_large),
        ("lengths", chains::lengths),
        ("both_ways", chains::both_ways),
        ("given_back", chains::given_back),
        ("used_sent", chains::used_sent),
        ("used_received", chains::used_received),
        ("ids", chains::ids),
        ("first_last", chains::first_last),
        ("in_order_sent", chains::in_order_sent),
        ("in_order_received", chains::in_order_received),
        ("not_available", bad::not_available),
        ("hole", bad::hole),
        ("hole_mended", bad::hole_mended),
        ("whole_ring", chains::whole_ring),
        ("endless", bad::endless),
        ("indirect", chains::indirect),
        ("indirect_and_next", bad::indirect_and_next),
        ("indirect_and_direct", bad::indirect_and_direct),
        ("unreadable", bad::unreadable),
        ("same_as_split", same::same_as_split),
    ];
    if sys::on_c() {
        println!("KTAP version 1\n1..0 # SKIP the C driver has no packed rings");
        return;
    }
    ktap::run(TESTS)
}
