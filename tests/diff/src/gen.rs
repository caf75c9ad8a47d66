// SPDX-License-Identifier: GPL-2.0

//! Makes scripts: mostly what a VMM and its guest do, in random order and sizes, with mistakes.
//!
//! What is left out, because the C driver does not end or the two are known to differ there, is refused
//! in machine.rs, so that a script stays harmless however it is shortened; docs/differences.md names
//! it.

use kselftest::feature;

use crate::machine::IOCTLS;
use crate::machine::OF_THE_FORMAT;
use crate::script::action;
use crate::script::Script;

/// Random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True in `n` of 100 cases.
    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    fn pick(&mut self, from: &[u64]) -> u64 {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What a script is made for.
struct Gen {
    r: Random,
    script: Script,
    /// The features that the guest accepts.
    features: u64,
    tunnel: u64,
    gpa: u64,
    num: [u64; 2],
    /// The backend of both queues.
    backend: u64,
    big: bool,
    /// The rings are packed where the driver has such.
    packed: bool,
}

/// Every so many scripts one is run with packed rings, by the driver that has them.
const PACKED_EVERY: u64 = 5;

/// Whether the script of a number is one of those.
pub fn is_packed(number: u64) -> bool {
    number % PACKED_EVERY == PACKED_EVERY - 1
}

const GPAS: [u64; 4] = [0x10_0000, 0, 0xffff_0000, 1 << 36];

/// The script of a number.
pub fn script(seed: u64, number: u64) -> Script {
    let mut r = Random(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
    let r0 = r.next();
    let mut g = Gen {
        r: Random(r0),
        script: vec![],
        features: 0,
        tunnel: 0,
        gpa: 0x10_0000,
        num: [1; 2],
        backend: 1,
        big: false,
        packed: is_packed(number),
    };
    if g.packed {
        g.put("packed", &[]);
    }
    if g.r.percent(15) {
        g.chaos();
    } else {
        g.guest();
    }
    g.script
}

impl Gen {
    fn put(&mut self, verb: &str, args: &[u64]) {
        self.script.push(action(verb, args));
    }

    /// A device that is set up as a VMM does, and a guest at work.
    fn guest(&mut self) {
        self.decide();
        if self.r.percent(3) {
            self.put("fork", &[0]);
        }
        self.put("owner", &[]);
        self.set_features();
        let layout = match self.r.below(10) {
            0..=5 => 0,
            6..=8 => 1 + self.r.below(3),
            _ => self.r.pick(&[5, 6, 9]),
        };
        let iotlb = self.features & feature::ACCESS_PLATFORM != 0;
        let layout = if iotlb { layout & 1 } else { layout };
        self.put("mem", &[layout, self.gpa]);
        if self.r.percent(if self.features & feature::LOG_ALL != 0 {
            95
        } else {
            20
        }) {
            let place = u64::from(self.r.percent(20));
            self.put("log-base", &[place]);
            self.put("log-fd", &[1]);
        }
        if self.tap_header() != 12 {
            self.put("header", &[self.tap_header()]);
        }
        if self.r.percent(8) {
            let n = self.r.pick(&[1, 2000, 100_000]);
            self.put("sndbuf", &[n]);
        }
        let log = if self.r.percent(30) {
            1 + self.r.below(2)
        } else {
            0
        };
        for q in 0..2 {
            self.put("num", &[q, self.num[q as usize]]);
            let base = match self.r.below(4) {
                _ if self.big => 0,
                0 => self.r.below(0x10000),
                1 => 0xfff0 + self.r.below(16),
                _ => 0,
            };
            let place = match self.r.below(20) {
                0 => 1,
                1..=2 if self.features & feature::IN_ORDER == 0 => 2,
                _ => 0,
            };
            self.put("addr", &[q, place, log]);
            self.put("base", &[q, base, 1]);
            if self.big {
                self.put("endian", &[q, 1]);
            }
            self.put("call-fd", &[q, 1]);
            self.put("err-fd", &[q, 1]);
            self.put("kick-fd", &[q, 1]);
        }
        if self.big {
            self.put("guest-endian", &[1]);
        }
        if self.features & feature::ACCESS_PLATFORM != 0 {
            self.iotlb_setup();
        }
        // Packets that are there before the device is.
        if self.r.percent(20) {
            self.incoming();
        }
        // A worker for each queue.
        if self.r.percent(10) {
            self.put("worker", &[0, 0, 0]);
            self.put("worker", &[2, 1, 1]);
        }
        let first = self.r.below(2);
        self.put("backend", &[first, self.backend]);
        self.put("backend", &[1 - first, self.backend]);
        for _ in 0..4 + self.r.below(22) {
            self.step();
        }
    }

    /// What the device and its guest are like.
    fn decide(&mut self) {
        let r = &mut self.r;
        let mut f = 0;
        if r.percent(75) {
            f |= feature::VERSION_1;
        }
        for (bit, chance) in [
            (feature::MRG_RXBUF, 50),
            (feature::EVENT_IDX, 45),
            (feature::INDIRECT, 50),
            (feature::NOTIFY_ON_EMPTY, 8),
            (feature::LOG_ALL, 20),
            (feature::IN_ORDER, 20),
            (feature::VHOST_NET_HDR, 15),
        ] {
            if r.percent(chance) {
                f |= bit;
            }
        }
        if r.percent(15) {
            f |= feature::ACCESS_PLATFORM;
        }
        if self.packed {
            f |= feature::VERSION_1;
            f &= !feature::NOTIFY_ON_EMPTY;
        }
        self.big = f & feature::VERSION_1 == 0 && r.percent(25);
        self.tunnel = match r.below(20) {
            0 => r.pick(&[feature::GUEST_TUNNEL, feature::HOST_TUNNEL, 10]),
            _ => 0,
        };
        self.features = f;
        self.gpa = r.pick(&GPAS);
        self.backend = match f & feature::VHOST_NET_HDR != 0 {
            _ if r.percent(5) => 1 + r.below(4),
            true => r.pick(&[2, 2, 3]),
            false => r.pick(&[1, 1, 1, 1, 4]),
        };
        for q in 0..2 {
            self.num[q] = match self.big {
                // Or an index in the other byte order could be taken for a good one.
                true => self.r.pick(&[1, 2, 8, 64]),
                false => self.r.pick(&[1, 2, 4, 8, 16, 32, 64, 128, 256]),
            };
        }
    }

    fn tap_header(&self) -> u64 {
        match (
            self.tunnel,
            self.features & (feature::VERSION_1 | feature::MRG_RXBUF),
        ) {
            (0, 0) => 10,
            (0, _) => 12,
            _ => 24,
        }
    }

    fn set_features(&mut self) {
        if self.tunnel != 0 {
            self.put("features-array", &[self.features, self.tunnel]);
        } else {
            self.put("features", &[self.features]);
        }
    }

    fn iotlb_setup(&mut self) {
        if self.r.percent(70) {
            self.put("backend-features", &[2]);
        }
        match self.r.below(3) {
            // All of it at once.
            0 => self.update(self.gpa, 0x40000, 0, 3),
            // The rings.
            1 => self.update(self.gpa, 0x8000, 0, 3),
            _ => {}
        }
    }

    fn update(&mut self, iova: u64, size: u64, address: u64, perm: u64) {
        let version = 1 + self.r.below(2);
        self.put("message", &[version, 72, 2, iova, size, address, perm]);
    }

    /// One thing that a guest, its VMM or the network does.
    fn step(&mut self) {
        match self.r.below(100) {
            0..=24 => {
                for _ in 0..1 + self.r.below(4) {
                    self.tx();
                }
                self.maybe_kick(1);
            }
            25..=46 => {
                for _ in 0..1 + self.r.below(5) {
                    self.rx();
                }
                self.maybe_kick(0);
            }
            47..=66 => self.incoming(),
            67..=71 => {
                let q = self.r.below(2);
                self.put("kick", &[q]);
            }
            72..=75 => {
                let q = self.r.below(2);
                let (count, len) = (2 + self.r.below(150), 60 + self.r.below(300));
                self.put("many", &[q, count, len]);
                self.maybe_kick(q);
            }
            76..=80 => self.notifications(),
            81..=84 => self.mistake(),
            85..=90 => self.vmm(),
            91..=93 => self.restart(),
            94 | 95 if self.features & feature::ACCESS_PLATFORM != 0 => self.iotlb_event(),
            94 => {
                let b = self.r.pick(&[1, 2]);
                self.put("steal", &[b]);
            }
            95 | 96 => {
                let n = self.r.pick(&[0, 0, 1, 2000]);
                self.put("sndbuf", &[n]);
            }
            97 => {
                let (b, up) = (self.r.pick(&[1, 2]), self.r.below(2));
                self.put("link", &[b, up]);
            }
            _ => self.ioctl(),
        }
    }

    fn maybe_kick(&mut self, q: u64) {
        if self.r.percent(90) {
            self.put("kick", &[q]);
        }
    }

    /// How a chain is laid out, and the lengths of its segments.
    fn segments(&mut self, total: u64) -> Vec<u64> {
        let indirect = self.features & feature::INDIRECT != 0;
        let table = match self.r.below(10) {
            0..=4 if indirect => 1 + self.r.below(4),
            // A device takes a table whatever the features are.
            5 => 1,
            _ => 0,
        };
        let mut args = vec![table];
        let mut left = total;
        for _ in 0..self.r.pick(&[0, 0, 0, 1, 1, 2, 3, 6]) {
            let len = match self.r.below(5) {
                0 => 0,
                1 => 12,
                2 => 10,
                _ => 1 + self.r.below(left.max(1)),
            };
            args.push(len.min(left));
            left -= len.min(left);
        }
        args.push(left);
        args
    }

    fn tx(&mut self) {
        let total = match self.r.below(20) {
            0..=1 => 25 + self.r.below(10),
            2..=3 => 3400 + self.r.below(800),
            4 => 4000 + self.r.below(12000),
            _ => 60 + self.r.below(1500),
        };
        let header = match self.r.below(10) {
            0 => 1,
            1 => 2,
            _ => 0,
        };
        let mut args = vec![header];
        args.extend(self.segments(total));
        self.put("tx", &args);
    }

    fn rx(&mut self) {
        let total = match self.r.below(20) {
            0 => 1 + self.r.below(20),
            1..=6 => 64 + self.r.below(300),
            7 => 4000 + self.r.below(5000),
            _ => 1600,
        };
        let args = self.segments(total);
        self.put("rx", &args);
    }

    fn incoming(&mut self) {
        let b = match self.backend {
            _ if self.r.percent(5) => 1 + self.r.below(3),
            4 => 3,
            b => b,
        };
        let len = match self.r.below(10) {
            0 => 14 + self.r.below(10),
            1 => 1500 + self.r.below(3000),
            2 => 200,
            _ => 60 + self.r.below(1400),
        };
        let count = match self.r.below(10) {
            0 => 1 + self.r.below(100),
            1..=3 => 1 + self.r.below(5),
            _ => 1,
        };
        let kind = self.r.pick(&[0, 0, 0, 0, 1, 2]);
        self.put("in", &[b, kind, len, count]);
    }

    fn notifications(&mut self) {
        let q = self.r.below(2);
        if self.features & feature::EVENT_IDX != 0 {
            let n = match self.r.below(4) {
                0 => 0,
                1 => 0x8000,
                _ => self.r.below(6),
            };
            self.put("used-event", &[q, n]);
        } else {
            let n = self.r.below(2);
            self.put("avail-flags", &[q, n]);
        }
    }

    /// A guest that is wrong, and then sees it.
    fn mistake(&mut self) {
        let q = self.r.below(2);
        if self.r.percent(30) && !self.packed {
            let n = 0x1000 + self.r.below(0xe000);
            self.put("jump", &[q, n]);
            self.put("kick", &[q]);
            self.put("jump", &[q, 0]);
        } else {
            let kind = match self.packed {
                true => self.r.pick(&[0, 1, 2, 3, 4, 5, 7, 10]),
                false => self.r.below(11),
            };
            self.put("bad", &[q, kind]);
            self.put("kick", &[q]);
            if self.r.percent(30) {
                self.incoming();
            }
            self.put("mend", &[q]);
        }
        self.maybe_kick(q);
    }

    /// A VMM stops a queue, and starts it again.
    fn restart(&mut self) {
        let q = self.r.below(2);
        self.put("backend", &[q, 0]);
        self.put("get-base", &[q]);
        if self.r.percent(30) {
            self.incoming();
        }
        if self.r.percent(40) {
            let n = self.num[q as usize];
            self.put("num", &[q, n]);
            let base = match self.big {
                true => 0,
                false => self.r.below(0x10000),
            };
            self.put("base", &[q, base, 1]);
        }
        if self.r.percent(20) {
            // Somewhere else first, where it need not work.
            let place = self.r.pick(&[1, 6, 7, 8, 9, 11]);
            self.put("addr", &[q, place, 0]);
            self.put("backend", &[q, self.backend]);
            self.put("kick", &[q]);
            self.put("backend", &[q, 0]);
            self.put("addr", &[q, 0, 0]);
        }
        let b = match self.r.percent(80) {
            true => self.backend,
            false => 1 + self.r.below(4),
        };
        self.put("backend", &[q, b]);
    }

    /// What a VMM does while the guest runs.
    fn vmm(&mut self) {
        let q = self.r.below(2);
        match self.r.below(12) {
            0 => {
                let fd = 1 + self.r.below(2);
                self.put("kick-fd", &[q, fd]);
            }
            1 => {
                let fd = self.r.below(3);
                self.put("call-fd", &[q, fd]);
            }
            2 => {
                let fd = self.r.below(2);
                self.put("err-fd", &[q, fd]);
            }
            3 => {
                let layout = self.r.below(15);
                self.put("mem", &[layout, self.gpa]);
            }
            4 => self.put("mem", &[0, self.gpa]),
            5..=6 => {
                self.features ^= feature::LOG_ALL;
                self.put("log-base", &[0]);
                self.set_features();
            }
            7 => {
                let mut bits = vec![
                    feature::EVENT_IDX,
                    feature::MRG_RXBUF,
                    feature::NOTIFY_ON_EMPTY,
                    feature::IN_ORDER,
                    feature::VERSION_1,
                    feature::VHOST_NET_HDR,
                ];
                // Of a packed ring the machine refuses the others.
                bits.retain(|bit| !self.packed || !OF_THE_FORMAT.contains(bit));
                let bit = self.r.pick(&bits);
                self.features ^= bit;
                self.set_features();
            }
            8 => {
                let (place, log) = (self.r.below(3), self.r.below(3));
                self.put("addr", &[q, place, log]);
            }
            9 => {
                let fd = self.r.below(2);
                self.put("log-fd", &[fd]);
            }
            10 => self.put("get-base", &[q]),
            _ => {
                self.put("kick-fd", &[q, 0]);
                self.put("kick-fd", &[q, 1]);
            }
        }
    }

    fn iotlb_event(&mut self) {
        let offset = self.r.below(0x40) * 0x1000;
        let size = self.r.pick(&[1, 0x1000, 0x4000, 0x40000]);
        match self.r.below(4) {
            0 => self.put("message", &[1, 72, 3, self.gpa, 0x40000, 0, 0]),
            1..=2 => self.put("message", &[2, 72, 3, self.gpa + offset, size, 0, 0]),
            // For both, as answers are: a device that looks ahead may know the page already.
            _ => {
                let size = size.min(0x40000 - offset);
                self.update(self.gpa + offset, size, offset, 3);
            }
        }
    }

    /// Any ioctl with any argument, right or wrong.
    fn ioctl(&mut self) {
        let q = self.r.pick(&[0, 0, 0, 1, 1, 1, 2, 0xffff_ffff]);
        let fd = self.r.below(5);
        match self.r.below(38) {
            0 => self.put("owner", &[]),
            1 => self.put("get-features", &[]),
            2..=3 => {
                let mut f = self.r.pick(&[
                    0,
                    self.features,
                    self.features,
                    feature::VERSION_1,
                    1 << 5,
                    1 << 34,
                    1 << 63,
                ]);
                f ^= self.r.pick(&[
                    0,
                    feature::LOG_ALL,
                    feature::IN_ORDER,
                    feature::EVENT_IDX,
                    feature::MRG_RXBUF,
                    1 << 40,
                ]);
                self.put("features", &[f]);
            }
            4 => {
                let n = self.r.below(6);
                self.put("get-features-array", &[n]);
            }
            5 => {
                let count = self.r.below(6);
                let f = self.features;
                let words: Vec<u64> = (0..count)
                    .map(|i| match i {
                        0 => f,
                        1 => self.r.pick(&[0, 2, 8, 10, 1]),
                        _ => self.r.pick(&[0, 0, 1]),
                    })
                    .collect();
                self.put("features-array", &words);
            }
            6 => self.put("get-backend-features", &[]),
            7 => {
                let f = self.r.pick(&[0, 2, 1, 4, 8]);
                self.put("backend-features", &[f]);
            }
            8 => {
                let n = self.r.below(3);
                self.put("fork", &[n]);
            }
            9 => self.put("get-fork", &[]),
            10..=12 => {
                let layout = self.r.below(15);
                self.put("mem", &[layout, self.gpa]);
            }
            13..=14 => {
                let n = self
                    .r
                    .pick(&[0, 1, 2, 3, 16, 255, 256, 32768, 65535, 65536, 1 << 31]);
                self.put("num", &[q, n]);
            }
            15..=16 => {
                let n = self.r.pick(&[0, 1, 7, 0xffff, 0x10000, 1 << 31]);
                let reset = self.r.below(2);
                self.put("base", &[q, n, reset]);
            }
            17 => self.put("get-base", &[q]),
            18..=20 => {
                let (place, log) = (self.r.below(13), self.r.below(3));
                self.put("addr", &[q, place, log]);
            }
            21 => self.put("kick-fd", &[q, fd]),
            22 => self.put("call-fd", &[q, fd]),
            23 => self.put("err-fd", &[q, fd]),
            24 => self.put("log-fd", &[fd]),
            25 => {
                let n = self.r.below(4);
                self.put("log-base", &[n]);
            }
            26 => {
                let n = match self.big {
                    true => 1 + self.r.below(2),
                    false => self.r.pick(&[0, 2, 3]),
                };
                self.put("endian", &[q, n]);
            }
            27 => self.put("get-endian", &[q]),
            28 => {
                let n = self.r.pick(&[0, 1, 30]);
                self.put("busyloop", &[q, n]);
            }
            29 => self.put("get-busyloop", &[q]),
            30..=31 => {
                let b = self.r.below(8);
                self.put("backend", &[q, b]);
            }
            32..=33 => {
                let n = self.r.below(IOCTLS.len() as u64);
                self.put("fault", &[n]);
            }
            34 => {
                let mut bytes = self.r.pick(&[0, 3, 71, 72, 100]);
                if self.features & feature::ACCESS_PLATFORM != 0 {
                    // Those that are whole are the machine's to read, which answers them.
                    bytes = bytes.min(71);
                }
                self.put("read", &[bytes]);
            }
            35..=36 => {
                let (kind, n) = (self.r.below(4), self.r.below(3));
                self.put("worker", &[kind, q, n]);
            }
            _ => {
                let version = self.r.below(4);
                let bytes = self.r.pick(&[2, 4, 8, 39, 40, 72, 72]);
                let kind = self.r.below(6);
                let size = self.r.pick(&[0, 0x1000]);
                self.put("message", &[version, bytes, kind, self.gpa, size, 0, 3]);
            }
        }
    }

    /// Ioctls without sense.
    fn chaos(&mut self) {
        self.decide();
        if self.r.percent(80) {
            self.put("owner", &[]);
        }
        for _ in 0..5 + self.r.below(30) {
            match self.r.below(10) {
                0 => self.step(),
                1 => {
                    let q = self.r.below(2);
                    let n = self.num[q as usize];
                    self.put("num", &[q, n]);
                    self.put("addr", &[q, 0, 0]);
                    self.put("base", &[q, 0, 1]);
                }
                2 if self.r.percent(30) => self.put("reset-owner", &[]),
                3 => self.put("mem", &[0, self.gpa]),
                _ => self.ioctl(),
            }
        }
    }
}
