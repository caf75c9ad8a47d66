// SPDX-License-Identifier: GPL-2.0

//! The same script on a split ring and on a packed one: a guest and the other end of the wire do at random what they may and what
//! they may not, and all that they see has to be the same.

use std::collections::BTreeMap;

use kselftest::ring::INDIRECT as INDIRECT_FLAG;
use kselftest::ring::WRITE;
use kselftest::task;

use super::*;

/// Some pseudo-random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Lengths of packets: about a buffer's, a page's, and the largest.
const LENS: [u64; 12] = [14, 60, 61, 88, 89, 188, 300, 1514, 4000, 4096, 9000, 40_000];

/// A guest, and what it and the other end have seen.
struct Run {
    g: Guest,
    random: Random,
    seen: String,
    /// The number of each chain that the device has, and its buffers, by queue and head.
    chains: BTreeMap<(usize, u32), (u32, Vec<Seg>)>,
    /// How many chains there were.
    count: u32,
}

impl Run {
    fn say(&mut self, what: &str) {
        self.seen += what;
        self.seen += "\n";
    }

    /// Offers a chain of these buffers, sometimes in a table.
    fn offer(&mut self, index: usize, segs: Vec<Seg>, table: bool) {
        let at = self.g.mem.alloc(16 * segs.len(), 16);
        let r = ring(&mut self.g, index);
        if r.free() < segs.len() {
            return self.say("no room");
        }
        let head = match table {
            true => r.add_indirect(&segs, at),
            false => r.add(&segs),
        };
        self.count += 1;
        let chain = (self.count, segs);
        self.chains.insert((index, head.into()), chain);
        self.say(&format!("chain {} on queue {index}", self.count));
    }

    /// Cuts what lies at `at` into up to four pieces.
    fn cut(&mut self, at: u64, len: usize, write: bool) -> Vec<Seg> {
        let parts = 1 + self.random.below(4) as usize;
        let size = len / parts;
        let piece = |i: usize| Seg {
            gpa: at + (i * size) as u64,
            len: if i + 1 == parts { len - i * size } else { size } as u32,
            write,
        };
        (0..parts).map(piece).collect()
    }

    fn table(&mut self) -> bool {
        self.g.cfg.features & INDIRECT != 0 && self.random.below(3) == 0
    }

    fn transmit(&mut self) {
        let len = LENS[self.random.below(12) as usize] as usize;
        let p = frame(self.count, len);
        let at = self.g.place(&p);
        let segs = self.cut(at, self.g.hdr + len, false);
        let table = self.table();
        self.offer(TX, segs, table);
    }

    fn receive(&mut self) {
        let len = [40, 100, 200, 1600][self.random.below(4) as usize];
        let b = self.g.buffer(len);
        let segs = self.cut(b.gpa, len, true);
        let table = self.table();
        self.offer(RX, segs, table);
    }

    fn incoming(&mut self) -> Res {
        let len = LENS[self.random.below(9) as usize] as usize;
        self.count += 1;
        self.say(&format!("packet {} of {len} bytes comes", self.count));
        self.g.peer.send(&frame(self.count, len))
    }

    /// A chain that stops its queue.
    fn bad(&mut self) {
        let index = self.random.below(2) as usize;
        let (at, what) = (self.g.mem.alloc(4096, 16), self.random.below(5));
        let own = if index == RX { WRITE } else { 0 };
        let segs = match what {
            0 => (0x10, 100, own),
            1 => (at, 100, own ^ WRITE),
            2 => (u64::MAX - 10, 100, own),
            3 => (at, 100, INDIRECT_FLAG),
            _ => (0x10, 16, INDIRECT_FLAG),
        };
        let r = ring(&mut self.g, index);
        if r.free() > 0 {
            let head = r.add_raw(&[segs]);
            self.count += 1;
            self.chains
                .insert((index, head.into()), (self.count, vec![]));
            self.say(&format!("bad chain {what} on queue {index}"));
        }
    }

    /// What has happened since this was last asked.
    fn look(&mut self) -> Res {
        task::settle(&self.g)?;
        let mut errors = [false; 2];
        for index in [RX, TX] {
            while let Some(u) = ring(&mut self.g, index).pop() {
                let chain = self.chains.remove(&(index, u.id));
                let Some((number, segs)) = chain else {
                    bail!("chain {} of queue {index} is used twice", u.id)
                };
                let mut line = format!("used {number} with {}", u.len);
                if index == RX {
                    let parts = segs.iter().map(|s| self.g.mem.read(s.gpa, s.len as usize));
                    let data = parts.collect::<Vec<_>>().concat();
                    let sum = data
                        .iter()
                        .fold(0u64, |sum, &b| sum.rotate_left(5).wrapping_add(b.into()));
                    line += &format!(", sum {sum:x}");
                }
                self.say(&line);
            }
            errors[index] = ring(&mut self.g, index).err.read().is_ok();
        }
        while let Some(p) = self.g.peer.try_recv() {
            let number = if p.len() < 18 { 0 } else { net::seq(&p) };
            self.say(&format!("packet {number} of {} bytes", p.len()));
        }
        if errors != [false; 2] {
            self.say(&format!("errors {errors:?}"));
            let base = self.random.below(500) as u16;
            self.g.restart(base)?;
            self.chains.clear();
        }
        Ok(())
    }

    fn step(&mut self) -> Res {
        match self.random.below(40) {
            0..12 => self.transmit(),
            12..24 => self.receive(),
            24..34 => self.incoming()?,
            34 | 35 => self.bad(),
            36 => {
                self.g.stop()?;
                self.g.start()?;
            }
            _ => return Ok(()),
        }
        // Some are told of together.
        if self.random.below(3) == 0 {
            return Ok(());
        }
        self.g.rx.submit();
        self.g.tx.submit();
        self.look()
    }
}

/// What is seen of a script.
fn script(features: u64, num: u16, seed: u64, steps: u32) -> Res<String> {
    let cfg = Config {
        regions: vec![(mem::BASE, 64 << 20)],
        ..Config::with(VERSION_1 | features).num(num)
    };
    let mut run = Run {
        g: Guest::new(cfg)?,
        random: Random(seed),
        seen: String::new(),
        chains: BTreeMap::new(),
        count: 0,
    };
    run.look()?;
    for _ in 0..steps {
        run.step()?;
    }
    run.g.rx.submit();
    run.g.tx.submit();
    run.look()?;
    Ok(run.seen)
}

/// Nobody sees the format.
pub fn same_as_split() -> Res {
    let (mut all, mut found) = (0, [false; 3]);
    let words = [("used", 0), ("packet", 1), ("errors", 2)];
    for (i, features) in [
        0,
        MRG_RXBUF | INDIRECT,
        MRG_RXBUF | EVENT_IDX | INDIRECT,
        MRG_RXBUF | IN_ORDER,
        IN_ORDER | EVENT_IDX | INDIRECT,
        VHOST_NET_HDR | EVENT_IDX,
    ]
    .into_iter()
    .enumerate()
    {
        for (num, seed) in [(8, 1), (64, 2)] {
            let seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed + 2 * i as u64);
            let steps = amount(200);
            let split = script(features, num, seed, steps)?;
            let packed = script(features | RING_PACKED, num, seed, steps)?;
            let lines = split.lines().zip(packed.lines());
            for (n, (a, b)) in lines.enumerate() {
                check_eq!(
                    b,
                    a,
                    "features {features:#x}, {num} descriptors, seed {seed:#x}, line {n} on a packed ring"
                );
            }
            check_eq!(packed.len(), split.len(), "features {features:#x}, length");
            all += split.lines().count();
            for word in words {
                found[word.1] |= split.contains(word.0);
            }
        }
    }
    check_eq!(found, [true; 3], "whether there was each of {words:?}");
    println!("# {all} lines are the same");
    Ok(())
}
