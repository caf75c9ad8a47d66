// SPDX-License-Identifier: GPL-2.0

//! The VMM: sets the device up, and then asks whatever comes to its mind.
//!
//! What it has the device write to is guest memory, the log, or nothing: a ring, a region or a mapping that
//! the device may write lies in a region of the arena, or where nothing is mapped. Else no canary could tell
//! who is to blame.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use kselftest::check;
use kselftest::feature::*;
use kselftest::iotlb;
use kselftest::iotlb::Msg;
use kselftest::sys;
use kselftest::sys::ioctl;
use kselftest::sys::Addr;
use kselftest::sys::Region;
use kselftest::sys::State;
use kselftest::sys::VringFile;
use kselftest::Peer;
use kselftest::Res;
use kselftest::Tap;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::count::call;
use crate::count::kind;
use crate::packed;
use crate::sys::Rng;
use crate::Place;
use crate::World;

/// User addresses where nothing is.
const NOWHERE: u64 = 1 << 44;

/// Sets of features that a guest may accept.
const FEATURES: &[u64] = &[
    VERSION_1,
    VERSION_1 | EVENT_IDX,
    VERSION_1 | EVENT_IDX | INDIRECT | MRG_RXBUF,
    VERSION_1 | MRG_RXBUF,
    VERSION_1 | MRG_RXBUF | LOG_ALL,
    VERSION_1 | EVENT_IDX | MRG_RXBUF | ACCESS_PLATFORM,
    VERSION_1 | EVENT_IDX | ACCESS_PLATFORM | LOG_ALL,
    VERSION_1 | IN_ORDER | MRG_RXBUF,
    VERSION_1 | VHOST_NET_HDR | LOG_ALL,
    VHOST_NET_HDR | MRG_RXBUF | NOTIFY_ON_EMPTY,
    EVENT_IDX,
    0,
];

/// The same of one with packed rings. The last is refused.
const PACKED: &[u64] = &[
    VERSION_1 | RING_PACKED,
    VERSION_1 | RING_PACKED | EVENT_IDX,
    VERSION_1 | RING_PACKED | EVENT_IDX | INDIRECT | MRG_RXBUF,
    VERSION_1 | RING_PACKED | MRG_RXBUF | LOG_ALL,
    VERSION_1 | RING_PACKED | EVENT_IDX | MRG_RXBUF | ACCESS_PLATFORM,
    VERSION_1 | RING_PACKED | ACCESS_PLATFORM | LOG_ALL,
    VERSION_1 | RING_PACKED | IN_ORDER | MRG_RXBUF,
    VERSION_1 | RING_PACKED | IN_ORDER | EVENT_IDX | INDIRECT,
    VERSION_1 | RING_PACKED | VHOST_NET_HDR,
    RING_PACKED | EVENT_IDX,
];

pub struct Vmm<'a> {
    world: &'a World<'a>,
    device: &'a File,
    rng: Rng,
    tap: &'a Tap,
    other: Tap,
    /// How many taps there were.
    taps: u32,
    packet: Peer,
    other_events: Vec<EventFd>,
    /// The size of each queue, and the size up to which it has room where it is.
    num: [u32; 2],
    cap: [u32; 2],
    iotlb: bool,
    /// Packed rings are what is accepted most often; and they are what the device has now.
    likes_packed: bool,
    packed: bool,
    /// Messages are read by somebody else.
    pub reads: bool,
    late: Late,
}

/// Answers that come behind those to later messages.
#[derive(Default)]
pub struct Late(Vec<Msg>);

impl<'a> Vmm<'a> {
    pub fn new(world: &'a World<'a>, device: &'a File, tap: &'a Tap) -> Res<Self> {
        let events = (0..3).map(|_| EventFd::new(EFD_NONBLOCK));
        let mut vmm = Vmm {
            world,
            device,
            rng: Rng::new(world.seed, 3),
            tap,
            other: Tap::new("t0", 12)?,
            taps: 1,
            packet: Peer::new(kselftest::net::index("lo")?, false)?,
            other_events: events.collect::<Result<_, _>>()?,
            num: [1; 2],
            cap: [0; 2],
            iotlb: false,
            likes_packed: false,
            packed: false,
            reads: true,
            late: Late::default(),
        };
        vmm.likes_packed = vmm.rng.one_in(3);
        vmm.publish_tap();
        Ok(vmm)
    }

    fn publish_tap(&mut self) {
        self.world.other_tap.store(self.other.index, Relaxed);
    }

    fn ask<T: ?Sized>(&self, call: usize, request: u64, arg: *const T) -> bool {
        self.world
            .counts
            .call(call, ioctl(self.device, request, arg))
            == 0
    }

    fn state(&self, call: usize, request: u64, index: u32, num: u32) -> bool {
        self.ask(call, request, &State { index, num })
    }

    fn file(&self, call: usize, request: u64, index: u32, fd: RawFd) -> bool {
        self.ask(call, request, &VringFile { index, fd })
    }

    /// Asks for a device from scratch. Parts of it may be there already.
    pub fn set_up(&mut self) {
        if self.rng.one_in(2) {
            let fork = self.rng.pick(&[0u8, 1]);
            self.ask(call::FORK, sys::SET_FORK_FROM_OWNER, &fork);
        }
        self.ask(call::OWNER, sys::SET_OWNER, std::ptr::null::<u8>());
        self.mem_table(true);
        self.ask(
            call::LOG_BASE,
            sys::SET_LOG_BASE,
            &self.world.arena.log_base,
        );
        self.features();
        for q in 0..2 {
            self.restart(q);
        }
    }

    /// Makes each call as it ought to be made. The device is new, and nobody else uses it.
    pub fn behave(&mut self) -> Res {
        let nothing = std::ptr::null::<u8>();
        let log_base = self.world.arena.log_base;
        let event = self.other_events[0].as_raw_fd();
        let (tap, other) = (self.tap.fd.as_raw_fd(), self.other.fd.as_raw_fd());
        let packet = self.packet.fd.as_raw_fd();

        self.ask(call::FORK, sys::SET_FORK_FROM_OWNER, &0u8);
        self.ask(call::OWNER, sys::SET_OWNER, nothing);
        self.mem_table(true);
        self.ask(call::LOG_BASE, sys::SET_LOG_BASE, &log_base);
        self.ask(call::LOG_FD, sys::SET_LOG_FD, &event);
        self.ask(
            call::FEATURES,
            sys::SET_FEATURES,
            &(VERSION_1 | MRG_RXBUF | LOG_ALL),
        );
        for q in 0..2 {
            let index = q as u32;
            self.state(
                call::ENDIAN,
                sys::SET_VRING_ENDIAN,
                index,
                sys::LITTLE_ENDIAN,
            );
            self.state(call::BUSYLOOP, sys::SET_VRING_BUSYLOOP_TIMEOUT, index, 0);
            self.renew(q);
            for (what, fd) in [
                (call::TAP, tap),
                (call::NO_SOCKET, event),
                (call::OTHER_TAP, other),
                (call::PACKET, packet),
                (call::NONE, -1),
            ] {
                self.file(what, sys::NET_SET_BACKEND, index, fd);
            }
            self.state(call::GET_BASE, sys::GET_VRING_BASE, index, 0);
        }
        self.getters();
        self.unknown(0x7f);
        self.ask(call::RESET, sys::RESET_OWNER, nothing);

        // And again, behind an IOTLB that is empty at first.
        self.num = [1; 2];
        self.ask(call::OWNER, sys::SET_OWNER, nothing);
        self.ask(call::BACKEND_FEATURES, sys::SET_BACKEND_FEATURES, &2u64);
        // The C driver has one worker for a device.
        for (what, id) in [(0, 1), (2, 1), (3, 1), (2, 0), (1, 1)] {
            if !sys::on_c() {
                self.worker(what, 1, id);
            }
        }
        let words = [1, VERSION_1 | ACCESS_PLATFORM];
        self.iotlb = self.ask(call::FEATURES_ARRAY, sys::SET_FEATURES_ARRAY, &words);
        self.renew(1);
        // It is refused, for the ring is not there, or the worker sees that.
        let _ = ioctl(
            self.device,
            sys::NET_SET_BACKEND,
            &VringFile { index: 1, fd: tap },
        );
        let deadline = Instant::now() + crate::PATIENCE;
        check!(
            sys::readable(self.device, deadline),
            "the device misses nothing"
        );
        let answered = answer(self.world, self.device, &mut self.rng, &mut self.late);
        check!(answered.is_ok(), "no message: {answered:?}");
        let s = self.world.arena.slots[0];
        self.update(call::ANSWER, s.gpa, s.size, s.hva, iotlb::RW);
        self.update(call::UPDATE, s.gpa, s.size, s.hva, iotlb::RW);
        self.send(call::INVALIDATE, &Msg::invalidate(s.gpa, s.size));
        let good = Msg::update(s.gpa, s.size, s.hva, iotlb::RW).v2();
        let n = iotlb::write_raw(self.device, good.bytes().as_ptr(), iotlb::LEN);
        self.world.counts.call(call::WILD_MESSAGE, n.min(0));
        Ok(())
    }

    /// Asks for ever.
    pub fn run(&mut self) -> ! {
        loop {
            if self.world.counts.leave.load(Relaxed) != 0 {
                crate::sys::exit(0);
            }
            self.serve();
            let q = self.rng.below(2) as usize;
            match self.rng.below(100) {
                0..20 => self.restart(q),
                20..25 if self.rng.one_in(4) => self.reset(),
                25..45 => self.backend(q),
                45..50 => self.mem_table(false),
                50..53 => self.features(),
                53..58 => self.events(q),
                58..60 => self.dig(),
                60..72 => self.message(),
                _ => self.odd(q),
            }
            if self.rng.one_in(3) {
                std::thread::sleep(Duration::from_micros(self.rng.below(6000)));
            }
        }
    }

    fn reset(&mut self) {
        if self.ask(call::RESET, sys::RESET_OWNER, std::ptr::null::<u8>()) {
            self.num = [1; 2];
            self.cap = [0; 2];
            self.iotlb = false;
            self.packed = false;
        }
        self.set_up();
    }

    /// Starts a ring anew, somewhere else.
    fn restart(&mut self, q: usize) {
        self.renew(q);
        self.backend(q);
    }

    /// Gives a queue another ring. It has no backend then.
    fn renew(&mut self, q: usize) {
        let index = q as u32;
        self.file(call::NONE, sys::NET_SET_BACKEND, index, -1);
        let num = match self.rng.below(30) {
            0 => 16384,
            1 => 1,
            2 => 2,
            3.. if self.packed && self.rng.one_in(3) => {
                self.rng.pick(&[3, 5, 7, 100, 255, 257, 1000, 16383])
            }
            _ => 1 << (4 + self.rng.below(6)),
        };
        // A refused size leaves the old one in force.
        let place = self.place(q, num.max(self.num[q]));
        let base = self.rng.pick(&[0, 0, 0xfff0, 0x7fff]);
        // No ring while it moves.
        self.world.move_ring(q, None);
        self.addr(q, &place);
        if self.state(call::NUM, sys::SET_VRING_NUM, index, num) {
            self.num[q] = num;
        }
        let place = Place {
            num: self.num[q] as u16,
            base,
            packed: self.packed,
            ..place
        };
        let word = match self.packed {
            true if self.rng.one_in(20) => self.rng.next() as u32,
            true => packed::base(&place),
            false => base.into(),
        };
        self.state(call::BASE, sys::SET_VRING_BASE, index, word);
        self.world
            .arena
            .put(place.used, &[0, 0, base as u8, (base >> 8) as u8]);
        self.world
            .arena
            .put(place.avail, &[0, 0, base as u8, (base >> 8) as u8]);
        if self.packed {
            packed::clear(self.world.arena, &place);
        }
        self.world.move_ring(q, Some(place));
        let world = self.world;
        self.file(
            call::KICK,
            sys::SET_VRING_KICK,
            index,
            world.kick[q].as_raw_fd(),
        );
        self.file(
            call::CALL,
            sys::SET_VRING_CALL,
            index,
            world.call[q].as_raw_fd(),
        );
        self.file(
            call::ERR,
            sys::SET_VRING_ERR,
            index,
            world.err[q].as_raw_fd(),
        );
    }

    /// A place for a ring of up to `cap` entries, within one region.
    fn place(&mut self, q: usize, cap: u32) -> Place {
        let slot = self.world.arena.slots[q ^ usize::from(self.rng.one_in(20))];
        let cap = u64::from(cap);
        // By which addresses the device knows it. Without an IOTLB nothing is mapped at those of the guest.
        let view = match self.iotlb && self.rng.one_in(2) {
            true => slot.gpa,
            false => slot.hva,
        };
        let align = |offset: u64, to: u64| (view + offset).next_multiple_of(to) - view;
        let desc = align(self.rng.below(slot.size / 8), self.rng.pick(&[16, 16, 1]));
        let avail = align(desc + 16 * cap, if self.packed { 4 } else { 2 });
        let mut used = align(avail + 8 + 2 * cap, 4);
        let size = 8 + 8 * cap;
        if self.rng.one_in(2) {
            // The last byte is the region's last, if it can be.
            used = align(slot.size - size - 3, 4);
        }
        assert!(used + size <= slot.size);
        Place {
            num: 0,
            cap: cap as u32,
            base: 0,
            packed: self.packed,
            epoch: 0,
            desc: slot.hva + desc,
            avail: slot.hva + avail,
            used: slot.hva + used,
            shift: view.wrapping_sub(slot.hva),
            log: slot.gpa.next_multiple_of(4),
        }
    }

    fn addr(&mut self, q: usize, p: &Place) -> bool {
        let addr = Addr {
            index: q as u32,
            flags: self.rng.below(2) as u32,
            desc: p.desc.wrapping_add(p.shift),
            used: p.used.wrapping_add(p.shift),
            avail: p.avail.wrapping_add(p.shift),
            log: p.log,
        };
        let ok = self.ask(call::ADDR, sys::SET_VRING_ADDR, &addr);
        if ok {
            self.cap[q] = p.cap;
        }
        ok
    }

    fn backend(&mut self, q: usize) {
        let (what, fd) = match self.rng.below(16) {
            0..9 => (call::TAP, self.tap.fd.as_raw_fd()),
            9..12 => (call::OTHER_TAP, self.other.fd.as_raw_fd()),
            12 | 13 => (call::PACKET, self.packet.fd.as_raw_fd()),
            14 => (call::NONE, -1),
            _ => {
                let device = self.device.as_raw_fd();
                let fds = [
                    self.world.kick[0].as_raw_fd(),
                    device,
                    0,
                    9999,
                    -2,
                    i32::MIN,
                ];
                (call::NO_SOCKET, self.rng.pick(&fds))
            }
        };
        self.file(what, sys::NET_SET_BACKEND, q as u32, fd);
    }

    /// A memory table: all regions, or such a one as never was.
    fn mem_table(&mut self, all: bool) {
        let slots = &self.world.arena.slots;
        let mut regions: Vec<_> = (self.world.arena.everything())
            .map(|s| s.region())
            .collect();
        if !all && !self.rng.one_in(3) {
            regions.retain(|_| !self.rng.one_in(4));
            for r in &mut regions {
                match self.rng.below(12) {
                    // The end is missing.
                    0 | 1 => r.size -= self.rng.below(r.size),
                    // The start is.
                    2 => {
                        let n = self.rng.below(r.size);
                        (r.gpa, r.hva, r.size) = (r.gpa + n, r.hva + n, r.size - n);
                    }
                    // Another region's memory in its place.
                    3 => {
                        let s = self.rng.pick(slots);
                        (r.hva, r.size) = (s.hva, r.size.min(s.size));
                    }
                    4 if self.rng.one_in(4) => {
                        let end = u64::MAX - 4095;
                        *r = self.rng.pick(&[
                            Region {
                                gpa: 0,
                                size: 0,
                                hva: r.hva,
                                flags: 0,
                            },
                            Region {
                                gpa: end,
                                size: 4097,
                                hva: r.hva,
                                flags: 0,
                            },
                            Region {
                                gpa: 0,
                                size: u64::MAX,
                                hva: NOWHERE,
                                flags: 0,
                            },
                            Region {
                                gpa: r.gpa,
                                size: 1 << 30,
                                hva: NOWHERE,
                                flags: 0,
                            },
                            Region {
                                gpa: r.gpa,
                                size: r.size,
                                hva: end,
                                flags: 7,
                            },
                        ]);
                    }
                    _ => {}
                }
            }
        }
        let count = match self.rng.below(30) {
            0 if !all => self.rng.pick(&[65, 0xffff_ffff, 0]),
            _ => regions.len() as u32,
        };
        let padding = u32::from(!all && self.rng.one_in(40));
        let table = sys::mem_table(count, padding, &regions);
        self.ask(call::MEM_TABLE, sys::SET_MEM_TABLE, table.as_ptr());
    }

    fn features(&mut self) {
        let bits = match self.rng.below(12) {
            0 => self.rng.next(),
            1.. if self.likes_packed != self.rng.one_in(8) => self.rng.pick(PACKED),
            _ => self.rng.pick(FEATURES),
        };
        let ok = match self.rng.below(4) {
            0 => {
                let tunnel = self.rng.pick(&[0, 0, GUEST_TUNNEL, HOST_TUNNEL, 1 << 60]);
                let words = [self.rng.pick(&[1, 2, 2, 3]), bits, tunnel, 0];
                self.ask(call::FEATURES_ARRAY, sys::SET_FEATURES_ARRAY, &words)
            }
            _ => self.ask(call::FEATURES, sys::SET_FEATURES, &bits),
        };
        if ok {
            self.iotlb = bits & ACCESS_PLATFORM != 0;
            self.format(bits & RING_PACKED != 0);
        }
        if self.iotlb && !self.rng.one_in(4) {
            for s in self.world.arena.everything() {
                self.update(call::UPDATE, s.gpa, s.size, s.hva, iotlb::RW);
                self.update(call::UPDATE, s.hva, s.size, s.hva, iotlb::RW);
            }
        }
    }

    /// The rings, where they are, are of this format from now on. Where one starts that was of another, the guest guesses.
    fn format(&mut self, packed: bool) {
        if std::mem::replace(&mut self.packed, packed) == packed {
            return;
        }
        for q in 0..2 {
            let place = self.world.place(q);
            if place.num != 0 {
                let base = 0;
                self.world.move_ring(
                    q,
                    Some(Place {
                        base,
                        packed,
                        ..place
                    }),
                );
            }
        }
    }

    fn update(&self, call: usize, iova: u64, size: u64, uaddr: u64, perm: u8) {
        self.send(call, &Msg::update(iova, size, uaddr, perm));
    }

    fn send(&self, call: usize, msg: &Msg) {
        send(self.world, self.device, call, msg);
    }

    /// Answers the device's questions.
    fn serve(&mut self) {
        // As many as there may be, or some of them.
        let count = self.rng.pick(&[1, 8, 200]);
        for _ in 0..count {
            if !self.reads {
                return;
            }
            if answer_or_not(self.world, self.device, &mut self.rng, &mut self.late).is_err() {
                return;
            }
        }
    }

    /// A message that nobody asked for.
    fn message(&mut self) {
        let s = self.rng.pick(&self.world.arena.slots);
        let top = u64::MAX;
        match self.rng.below(12) {
            0..3 => self.update(call::UPDATE, s.gpa, s.size, s.hva, iotlb::RW),
            3 => self.update(call::UPDATE, s.hva, s.size, s.hva, iotlb::RW),
            // The device may read all that there is, and must not write it.
            4 => {
                let first = self.rng.pick(&[0, s.gpa, s.hva, 1 << 12]);
                self.update(
                    call::UPDATE,
                    first,
                    1 << 32,
                    s.hva & !0xffff_ffff,
                    iotlb::RO,
                );
            }
            5 => {
                let (user, perm) = (self.rng.pick(&[0, NOWHERE]), self.rng.pick(&[0, iotlb::RO]));
                self.update(call::UPDATE, 0, top, user, perm);
            }
            6 => {
                let (iova, size) =
                    self.rng
                        .pick(&[(0, 0), (top, 1), (top, 2), (1, top), (1 << 63, 1 << 63)]);
                self.update(call::UPDATE, iova, size, NOWHERE, iotlb::RW);
            }
            7 => self.send(call::INVALIDATE, &Msg::invalidate(s.gpa, s.size)),
            8 => {
                let size = self.rng.pick(&[top, 0, 1 << 40]);
                self.send(call::INVALIDATE, &Msg::invalidate(0, size).v2());
            }
            9 => self.send(call::INVALIDATE, &Msg::invalidate(s.hva + s.size / 2, 1)),
            _ => {
                let mut bytes = Msg::update(s.gpa, s.size, s.hva, iotlb::RW).bytes();
                // The type of the message, or what it asks for: never where it leads.
                let at = self.rng.pick(&[0, 1, 4, 32, 33, 34, 71]);
                bytes[at] = self.rng.next() as u8;
                let len = self.rng.pick(&[72, 72, 71, 40, 39, 8, 4, 3, 0]);
                let n = iotlb::write_raw(self.device, bytes.as_ptr(), len);
                self.world.counts.call(call::WILD_MESSAGE, n.min(0));
            }
        }
    }

    fn events(&mut self, q: usize) {
        let index = q as u32;
        let other = &self.other_events[self.rng.below(3) as usize];
        let fd = match self.rng.below(5) {
            0 => -1,
            1 => self.rng.pick(&[0, 9999, -2, self.tap.fd.as_raw_fd()]),
            _ => other.as_raw_fd(),
        };
        match self.rng.below(4) {
            0 => self.file(call::KICK, sys::SET_VRING_KICK, index, fd),
            1 => self.file(call::CALL, sys::SET_VRING_CALL, index, fd),
            2 => self.file(call::ERR, sys::SET_VRING_ERR, index, fd),
            _ => self.ask(call::LOG_FD, sys::SET_LOG_FD, &fd),
        };
    }

    /// Changes what can be done with some of guest memory.
    fn dig(&mut self) {
        if self.world.arena.dig(&mut self.rng).is_err() {
            self.world.counts.trouble.fetch_add(1, Relaxed);
        }
    }

    /// Things that are asked less often.
    fn odd(&mut self, q: usize) {
        let index = q as u32;
        match self.rng.below(17) {
            0 => {
                let log = self.world.arena.log_base;
                let base = self
                    .rng
                    .pick(&[log, log, 0, 1 << 63, u64::MAX, (1 << 47) - 64]);
                self.ask(call::LOG_BASE, sys::SET_LOG_BASE, &base);
            }
            1 => {
                // Never more than there is room for where the ring is.
                let num = self
                    .rng
                    .pick(&[0, 3, 65536, u32::MAX, self.cap[q], self.cap[q] / 2]);
                if self.state(call::NUM, sys::SET_VRING_NUM, index, num) {
                    self.num[q] = num;
                    self.world.resize_ring(q, num as u16);
                }
            }
            2 => {
                let base = self.rng.next() as u32 & self.rng.pick(&[0xff, 0xffff, 0x1_ffff]);
                self.state(call::BASE, sys::SET_VRING_BASE, index, base);
            }
            3 => {
                self.state(call::GET_BASE, sys::GET_VRING_BASE, index, 0);
            }
            4 => {
                // While it runs: to another place, or to none.
                let mut p = self.place(q, self.num[q]);
                match self.rng.below(4) {
                    0 => p.shift = 1 << 63,
                    1 => p.shift = NOWHERE.wrapping_sub(p.desc),
                    _ => {}
                }
                if self.addr(q, &p) {
                    let mut state = State { index, num: 0 };
                    self.ask(call::GET_BASE, sys::GET_VRING_BASE, &raw mut state);
                    let num = self.num[q] as u16;
                    let base = match self.packed {
                        true => packed::position(state.num, num),
                        false => state.num as u16,
                    };
                    self.world.move_ring(q, Some(Place { num, base, ..p }));
                }
            }
            5 => {
                let order = self.rng.pick(&[0, 1, 2]);
                self.state(call::ENDIAN, sys::SET_VRING_ENDIAN, index, order);
            }
            6 | 7 => {
                let time = self.rng.pick(&[0, 0, 50, 1000, 20000]);
                let ok = self.state(call::BUSYLOOP, sys::SET_VRING_BUSYLOOP_TIMEOUT, index, time);
                if ok && time > 0 {
                    self.world.counts.kind(kind::POLLING);
                }
            }
            8 => {
                self.getters();
                self.ask(call::GET, sys::GET_FEATURES, (1u64 << 63) as *const u8);
            }
            9 => {
                let features = self.rng.pick(&[0u64, 2, 2, 6, u64::MAX]);
                self.ask(call::BACKEND_FEATURES, sys::SET_BACKEND_FEATURES, &features);
            }
            10 => {
                let fork = self.rng.pick(&[0u8, 1, 2]);
                self.ask(call::FORK, sys::SET_FORK_FROM_OWNER, &fork);
                self.ask(call::OWNER, sys::SET_OWNER, std::ptr::null::<u8>());
            }
            11 => {
                let nr = self
                    .rng
                    .pick(&[0x02u64, 0x08, 0x09, 0x16, 0x26, 0x40, 0x60, 0x70, 0x7f]);
                self.unknown(nr);
            }
            12..15 => {
                let (what, id) = (self.rng.below(4), self.rng.below(5));
                self.worker(what as usize, index, id as u32);
            }
            _ => self.another_tap(),
        }
    }

    fn getters(&self) {
        let mut words = [3u64, 0, 0, 0, 0];
        for request in [
            sys::GET_FEATURES_ARRAY,
            sys::GET_FEATURES,
            sys::GET_BACKEND_FEATURES,
            sys::GET_FORK_FROM_OWNER,
        ] {
            self.ask(call::GET, request, words.as_mut_ptr());
        }
    }

    /// Asks for something about a worker. Few numbers are named, so workers are freed as fast as they are made.
    fn worker(&self, what: usize, index: u32, id: u32) {
        let (mut of_device, mut of_queue) = (id, [index, id]);
        match what {
            0 => self.ask(call::NEW_WORKER, sys::NEW_WORKER, &raw mut of_device),
            1 => self.ask(call::FREE_WORKER, sys::FREE_WORKER, &raw mut of_device),
            2 => self.ask(
                call::ATTACH_WORKER,
                sys::ATTACH_VRING_WORKER,
                of_queue.as_mut_ptr(),
            ),
            _ => self.ask(
                call::GET_WORKER,
                sys::GET_VRING_WORKER,
                of_queue.as_mut_ptr(),
            ),
        };
    }

    fn unknown(&self, nr: u64) {
        let room = [0u64; 64];
        self.ask(call::UNKNOWN, 0x4008_af00 | nr, room.as_ptr());
    }

    /// The VMM lets go of a tap, which the device may have, and takes a new one.
    fn another_tap(&mut self) {
        let (name, hdr) = (format!("t{}", self.taps), self.rng.pick(&[12, 12, 10, 0]));
        let tun = self.rng.one_in(4);
        let made = match tun {
            true => Tap::tun(&name, hdr),
            false => Tap::new(&name, hdr),
        };
        let Ok(tap) = made else {
            return;
        };
        if tun {
            self.world.counts.kind(kind::TUN);
        }
        self.taps += 1;
        if self.rng.one_in(3) {
            let _ = tap.sndbuf(20000);
        }
        self.other = tap;
        self.publish_tap();
    }
}

fn send(world: &World, device: &File, call: usize, msg: &Msg) {
    let n = iotlb::write(device, msg);
    world.counts.call(call, n.min(0));
}

/// Reads a message, and answers it most often. Fails as [`answer`].
pub fn answer_or_not(
    world: &World,
    device: &File,
    rng: &mut Rng,
    late: &mut Late,
) -> Result<(), i32> {
    if rng.one_in(4) {
        for msg in late.0.drain(..) {
            send(world, device, call::ANSWER, &msg);
        }
    }
    if !rng.one_in(8) {
        return answer(world, device, rng, late);
    }
    // A VMM drops one that it can't serve.
    iotlb::read(device)?;
    world.counts.call(call::READ, 0);
    world.counts.kind(kind::UNANSWERED);
    Ok(())
}

/// Reads a message and answers it, more or less, also late or twice. Fails with the negative errno if there is none.
fn answer(world: &World, device: &File, rng: &mut Rng, late: &mut Late) -> Result<(), i32> {
    let miss = iotlb::read(device)?;
    world.counts.call(call::READ, 0);
    let by_gpa = (world.arena.everything()).find(|s| miss.iova.wrapping_sub(s.gpa) < s.size);
    let by_hva = (world.arena.everything()).find(|s| miss.iova.wrapping_sub(s.hva) < s.size);
    let (first, slot) = match (by_gpa, by_hva) {
        (Some(s), _) => (s.gpa, s),
        (_, Some(s)) => (s.hva, s),
        _ => {
            if rng.one_in(2) {
                let nothing = Msg::update(miss.iova, 1 << 12, NOWHERE, iotlb::RW);
                send(world, device, call::ANSWER, &nothing);
            }
            return Ok(());
        }
    };
    let offset = miss.iova - first;
    // All of it, or part of it from here or before.
    let from = rng.pick(&[0, offset, offset & !4095]);
    let size = match rng.below(3) {
        0 => slot.size - from,
        _ => (offset - from + 1 + rng.below(8192)).min(slot.size - from),
    };
    let perm = rng.pick(&[iotlb::RW, iotlb::RW, miss.perm, 0]);
    let update = Msg::update(first + from, size, slot.hva + from, perm);
    match rng.below(12) {
        0 if late.0.len() < 100 => late.0.push(update),
        1 => {
            send(world, device, call::ANSWER, &update);
            send(world, device, call::ANSWER, &update);
        }
        _ => send(world, device, call::ANSWER, &update),
    }
    Ok(())
}
