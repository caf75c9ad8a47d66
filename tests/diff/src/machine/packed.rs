// SPDX-License-Identifier: GPL-2.0

//! Scripts of any format: the rings are packed where the driver has such, and split elsewhere.
//!
//! What is written down of such a script is what the format does not change: what was used, of what
//! length and in which order, whether the next chain is to be kicked for, and all that has nothing to do
//! with rings. A chain has the same name in both formats, the split one's, and as much room is left for
//! the next one as the split ring has; a base and an event are told as numbers of chains. Neither the
//! rings themselves are looked at, nor the log of them.
//!
//! What only one of the formats has, is refused.

use super::*;
use kselftest::packed::Desc;
use kselftest::packed::DESC;
use kselftest::packed::DISABLE;
use kselftest::packed::ENABLE;

/// Says that the device has packed rings now.
pub const PACKED: &str = "  packed rings";
/// Begins a line that says whether a queue is to be kicked for the next chain.
pub const KICKS: &str = "  kicks";

/// A packed ring's device area is written where nothing is written of a split ring, and logged.
pub const LOG_IN_ANY_FORMAT: &str = "log in any format";

/// The features that are another thing in another format, or not there.
pub const OF_THE_FORMAT: [u64; 4] = [
    feature::VERSION_1,
    feature::EVENT_IDX,
    feature::NOTIFY_ON_EMPTY,
    feature::RING_PACKED,
];

/// No place in any ring: no used descriptor passes it.
const NOWHERE: u16 = 0x7fff;

/// Whether both formats have such a mistake.
pub(super) fn has(verb: &str, kind: u64) -> bool {
    // A link in a table, an available entry, and an available index.
    verb == "bad" && !matches!(kind, 6 | 8 | 9)
}

/// Whether a ring of the other format would be found out elsewhere, or logged there.
pub(super) fn is_other_place(place: u64, log: u64) -> bool {
    // What can't be read is read at another time; a packed ring is logged where the memory table has it.
    matches!(place, 7 | 8) || (place == 1 && log != 0)
}

impl Run<'_> {
    /// Makes the script one of any format.
    pub(super) fn begin_packed(&mut self) -> String {
        if self.owner || self.features != [0; 2] {
            return SKIPPED.into();
        }
        let mut f = [0u64];
        let r = ioctl(&self.dev, sys::GET_FEATURES, f.as_mut_ptr());
        self.any_format = true;
        self.offered = f[0] & feature::RING_PACKED != 0;
        done(r)
    }

    /// Whether the rings are packed, with a driver that has such.
    pub(super) fn is_packed(&self) -> bool {
        self.any_format && self.has(feature::VERSION_1)
    }

    /// Whether they are.
    pub(super) fn drives_packed(&self) -> bool {
        self.is_packed() && self.offered
    }

    /// The features that are set when the script says these.
    pub(super) fn with_format(&self, bits: u64) -> u64 {
        match self.any_format && self.offered {
            true => bits | feature::RING_PACKED,
            false => bits,
        }
    }

    /// Whether these may be set in any format.
    pub(super) fn may_have_in_any(&self, bits: u64) -> bool {
        bits & feature::VERSION_1 != 0
            && bits & (feature::NOTIFY_ON_EMPTY | feature::RING_PACKED) == 0
            // A ring that runs keeps its format, and how it asks for kicks.
            && (!self.runs()
                || self.is_packed() && (bits ^ self.features[0]) & feature::EVENT_IDX == 0)
    }

    /// The device has forgotten what it knew of the rings.
    pub(super) fn change_format(&mut self) {
        for queue in &mut self.queues {
            queue.fresh = false;
            queue.packed = None;
        }
        if self.drives_packed() {
            let _ = writeln!(self.out, "{PACKED}");
        }
    }

    /// What SET_VRING_BASE says of a ring that starts at chain `n`. None if it is not the same in both formats.
    pub(super) fn format_base(&self, q: u64, n: u64) -> Option<u32> {
        let Some(queue) = self.queues.get(q as usize).filter(|_| self.is_packed()) else {
            return Some(n as u32);
        };
        let spot = (n <= 0xffff && queue.num <= 0x8000).then(|| Spot::new(n, queue.num as u16))?;
        Some(match self.offered {
            true => spot.base(),
            false => n as u32,
        })
    }

    /// The guest starts its packed ring again, where chain `n` would be if each had one descriptor.
    pub(super) fn restart_packed(&mut self, q: usize, n: u16) {
        let mem = &self.m.mem;
        let queue = &mut self.queues[q];
        let at = ring(q);
        queue.packed = (queue.num <= NUM).then(|| {
            let num = queue.num as u16;
            let mut packed = Packed::new(mem, num, at, at + AVAIL, at + queue.used);
            packed.reset(n.into());
            packed
        });
        (queue.descs, queue.armed) = (0, ((ENABLE, 0), 0));
    }

    /// GET_VRING_BASE, and of a packed ring the number of the chain that is there.
    pub(super) fn get_base(&self, q: u64) -> String {
        let text = self.get_state(sys::GET_VRING_BASE, q);
        let Some(queue) = self.queues.get(q as usize).filter(|_| self.is_packed()) else {
            return text;
        };
        if !queue.fresh || queue.num > NUM || !text.starts_with("0 ") {
            return "of another ring".into();
        }
        let Some(packed) = &queue.packed else {
            return text;
        };
        let base: u32 = text
            .rsplit(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        let behind =
            (queue.chains.iter().filter_map(|c| c.spot)).position(|(spot, _)| spot.base() == base);
        match behind {
            Some(place) => format!("0 {q} {}", queue.seen.wrapping_add(place as u16)),
            None if packed.avail.base() == base => format!("0 {q} {}", queue.avail_idx),
            None => format!("0 {q} in no place: {base:#x}"),
        }
    }

    /// Writes a chain to the packed ring; `table` is the flags of its table, if it has one. The device sees it
    /// when it is offered.
    pub(super) fn post_packed(
        &mut self,
        q: usize,
        head: u16,
        table: Option<u16>,
        segs: &[(u64, u64)],
    ) -> Option<(Spot, usize)> {
        let write = if q == 0 { WRITE } else { 0 };
        let addr = |offset: u64| self.gpa.wrapping_add(offset);
        let mut list: Vec<_> = segs
            .iter()
            .map(|s| (addr(s.0), s.1 as u32, write))
            .collect();
        if let Some(flags) = table {
            // All in the table, or none.
            let own = tables(q) + u64::from(head) * 16 * TABLE as u64;
            for (i, s) in list.iter().enumerate() {
                self.table_desc(own, i as u64, s.0, s.1.into(), s.2, 0);
            }
            list = vec![(addr(own), 16 * list.len() as u32, flags)];
        }
        self.add_packed(q, &list, head)
    }

    /// Writes a chain of one descriptor to the packed ring, whatever that is.
    pub(super) fn post_desc(
        &mut self,
        q: usize,
        desc: (u64, u32, u16),
        head: u16,
    ) -> Option<(Spot, usize)> {
        self.add_packed(q, &[desc], head)
    }

    fn add_packed(
        &mut self,
        q: usize,
        list: &[(u64, u32, u16)],
        head: u16,
    ) -> Option<(Spot, usize)> {
        let queue = &mut self.queues[q];
        let packed = queue.packed.as_mut()?;
        let spot = packed.avail;
        packed.add(list, head);
        queue.descs += list.len() as u64;
        Some((spot, list.len()))
    }

    /// Makes available what was written.
    pub(super) fn publish_packed(&mut self, q: usize) {
        if let Some(packed) = &mut self.queues[q].packed {
            packed.publish();
        }
        // The chain whose use is to be told may be there now.
        self.ask_packed(q);
    }

    /// Makes a chain of one descriptor a good one.
    pub(super) fn mend_packed(&self, q: usize, spot: Spot, at: u64, len: u64, id: u16) {
        let write = if q == 0 { WRITE } else { 0 };
        if let Some(packed) = &self.queues[q].packed {
            let desc = Desc {
                addr: self.gpa.wrapping_add(at),
                len: len as u32,
                id,
                flags: write | spot.avail(),
            };
            packed.write(spot, desc);
        }
    }

    /// Asks for calls, as the guest does of a split ring: the place is that of the chain which it names.
    pub(super) fn ask_packed(&self, q: usize) {
        let queue = &self.queues[q];
        let Some(packed) = &queue.packed else {
            return;
        };
        let (flags, event) = queue.asks;
        if !self.has(feature::EVENT_IDX) {
            packed.set_driver_event(if flags & 1 != 0 { DISABLE } else { ENABLE }, NOWHERE);
            return;
        }
        let ahead = usize::from(event.wrapping_sub(queue.seen));
        let spot = match queue.chains.get(ahead) {
            Some(chain) => chain.spot.map(|(spot, _)| spot),
            None => (ahead == queue.chains.len()).then_some(packed.avail),
        };
        packed.set_driver_event(DESC, spot.map_or(NOWHERE, Spot::half));
    }

    /// Writes down what was used of a ring, and whether the next chain is to be kicked for.
    pub(super) fn look_in_any_format(&mut self, q: usize) {
        if !self.queues[q].fresh {
            return;
        }
        let packed = self.drives_packed();
        if packed {
            self.take_used_packed(q);
        } else {
            let idx = self.get16(ring(q) + self.queues[q].used + 2);
            if idx != self.queues[q].seen {
                let _ = write!(self.out, "  queue {q}: used");
                self.take_used(q, idx);
            }
        }
        if self.queues[q].backend == 0 {
            return;
        }
        let wants = match packed {
            true => self.wants_kick_packed(q),
            false => match self.wants_kick_split(q) {
                true => "yes",
                false => "no",
            },
        };
        let _ = writeln!(self.out, "{KICKS} {q}: {wants}");
    }

    fn take_used_packed(&mut self, q: usize) {
        let mut unwritten = false;
        let mut any = false;
        while let Some(packed) = &self.queues[q].packed {
            let Some(used) = packed.used_at(packed.used) else {
                break;
            };
            if !any {
                let _ = write!(self.out, "  queue {q}: used");
            }
            any = true;
            let Some((count, descs)) = self.take_chains(q, used.id, used.len, &mut unwritten)
            else {
                break;
            };
            let queue = &mut self.queues[q];
            queue.seen = queue.seen.wrapping_add(count as u16);
            if let Some(packed) = &mut queue.packed {
                packed.used = packed.used.after(descs);
            }
        }
        if any {
            let _ = writeln!(self.out);
            // What is told of was perhaps used.
            self.ask_packed(q);
        }
        if unwritten {
            let _ = writeln!(self.out, "  header not written");
        }
    }

    fn wants_kick_split(&self, q: usize) -> bool {
        let queue = &self.queues[q];
        let used = ring(q) + queue.used;
        match self.has(feature::EVENT_IDX) {
            true => self.get16(used + 4 + 8 * queue.num) == queue.avail_idx,
            false => self.get16(used) & 1 == 0,
        }
    }

    fn wants_kick_packed(&mut self, q: usize) -> &'static str {
        let by_place = self.has(feature::EVENT_IDX);
        let queue = &mut self.queues[q];
        let Some(packed) = &queue.packed else {
            return "no";
        };
        let event = packed.device_event();
        if event != queue.armed.0 {
            queue.armed = (event, queue.descs);
        }
        let around = queue.descs - queue.armed.1 >= queue.num;
        match (by_place, packed.wants_next()) {
            // Until it asks by place, a split ring has an index there that means nothing.
            (true, _) if event.0 != DESC => "perhaps",
            // The place comes again two times around later: it may be what was left there then.
            (true, true) if around => "perhaps",
            (_, true) => "yes",
            (_, false) => "no",
        }
    }
}
