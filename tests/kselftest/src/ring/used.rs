// SPDX-License-Identifier: GPL-2.0

//! What the driver's side has back: chains that were used, and waiting for them.

use crate::deadline;
use crate::packed::Packed;
use crate::packed::Spot;
use crate::patience;
use crate::ring::Ring;
use crate::ring::Used;
use crate::sys::readable;
use crate::Fail;
use crate::Res;

impl Ring {
    /// The used ring's index: how many chains the device has ever completed.
    pub fn device_idx(&self) -> u16 {
        match &self.packed {
            Some(packed) => self.used_by_device(packed).0,
            None => self.get_u16(self.used + 2),
        }
    }

    /// What GET_VRING_BASE says of a device that has taken nothing but what it has used.
    pub fn device_base(&self) -> u32 {
        match &self.packed {
            Some(packed) => self.used_by_device(packed).1.base(),
            None => self.device_idx().into(),
        }
    }

    /// How far the device has come in a packed ring, whose used descriptors say it one by one.
    fn used_by_device(&self, packed: &Packed) -> (u16, Spot) {
        let length = |head: u32| self.chains.get(head as usize).map_or(0, Vec::len);
        let waiting: usize = self.batch.iter().map(|u| length(u.id)).sum();
        let (mut spot, mut count) = (packed.used.after(waiting), self.batch.len());
        // No more than there are: what it says of others is for who takes it.
        while count < self.order.len() {
            let Some(used) = packed.used_at(spot) else {
                break;
            };
            let heads = match self.in_order {
                true => self.until_head(used.id, count),
                false => vec![used.id as u16],
            };
            let lengths = heads.iter().map(|&h| length(h.into()));
            spot = spot.after(lengths.sum::<usize>().max(1));
            count += heads.len().max(1);
        }
        (self.used_idx.wrapping_add(count as u16), spot)
    }

    /// The heads that the device has, in order, behind the first `from`, up to that of this id.
    fn until_head(&self, id: u32, from: usize) -> Vec<u16> {
        let rest = self.order.iter().copied().skip(from);
        let at = rest.clone().position(|h| u32::from(h) == id);
        rest.take(at.map_or(0, |at| at + 1)).collect()
    }

    /// The entry of the used ring that `idx` falls on.
    pub fn entry(&self, idx: u16) -> Used {
        self.split();
        let slot = self.used + 4 + 8 * u64::from(idx & (self.num - 1));
        Used {
            id: self.get_u32(slot),
            len: self.get_u32(slot + 4),
        }
    }

    /// Takes one chain off the used ring, if there is one.
    pub fn pop(&mut self) -> Option<Used> {
        if self.in_order {
            return self.pop_in_order();
        }
        let used = self.peek()?;
        self.used_idx = self.used_idx.wrapping_add(1);
        let at = self.order.iter().position(|&h| u32::from(h) == used.id);
        at.and_then(|at| self.order.remove(at));
        let ids = self.take_chain(used.id);
        self.free.extend(ids.iter().rev());
        Some(used)
    }

    /// The next used entry.
    fn peek(&self) -> Option<Used> {
        match &self.packed {
            Some(packed) => packed.used_at(packed.used),
            None if self.device_idx() == self.used_idx => None,
            None => Some(self.entry(self.used_idx)),
        }
    }

    /// As [`Self::pop`], where an entry may stand for chains before the one that it names: those are
    /// full.
    fn pop_in_order(&mut self) -> Option<Used> {
        if self.batch.is_empty() {
            let (last, heads) = self.peek_batch()?;
            for head in heads {
                let len = match u32::from(head) == last.id {
                    true => last.len,
                    false => self.room[usize::from(head)],
                };
                let id = u32::from(head);
                self.batch.push_back(Used { id, len });
            }
        }
        let used = self.batch.pop_front()?;
        self.release(used.id);
        Some(used)
    }

    /// Takes one entry off the used ring of a device that uses in order, and all the chains that it
    /// stands for.
    pub fn pop_batch(&mut self) -> Option<(Used, Vec<u16>)> {
        let (used, heads) = self.peek_batch()?;
        for &head in &heads {
            self.release(u32::from(head));
        }
        Some((used, heads))
    }

    fn peek_batch(&self) -> Option<(Used, Vec<u16>)> {
        let used = self.peek()?;
        let at = self.order.iter().position(|&h| u32::from(h) == used.id);
        let Some(at) = at else {
            panic!("the device used chain {} that it does not have", used.id);
        };
        let there = self.device_idx().wrapping_sub(self.used_idx);
        assert!(
            at < usize::from(there),
            "an entry for {} chains, and an index for {there}",
            at + 1
        );
        Some((used, self.order.iter().take(at + 1).copied().collect()))
    }

    /// Frees the oldest chain; its descriptors are the last that will be taken again.
    fn release(&mut self, head: u32) {
        self.used_idx = self.used_idx.wrapping_add(1);
        self.order.pop_front();
        let ids = self.take_chain(head);
        self.free.splice(0..0, ids.into_iter().rev());
    }

    fn take_chain(&mut self, id: u32) -> Vec<u16> {
        let chain = match self.chains.get_mut(id as usize) {
            Some(c) if !c.is_empty() => std::mem::take(c),
            _ => panic!("the device used chain {id} that it does not have"),
        };
        if let Some(packed) = &mut self.packed {
            packed.used = packed.used.after(chain.len());
        }
        chain
    }

    /// Sleeps until the device has used a chain, and takes it.
    ///
    /// It sleeps on the call eventfd, having asked for a call as the specification says: a device that
    /// forgets to call makes this fail.
    pub fn wait(&mut self) -> Res<Used> {
        let deadline = deadline();
        loop {
            if let Some(u) = self.pop() {
                return Ok(u);
            }
            if self.event_idx {
                self.set_used_event(self.used_idx);
                if let Some(u) = self.pop() {
                    return Ok(u);
                }
            }
            if !readable(&self.call, deadline) {
                let late = if self.peek().is_none() {
                    "nor used"
                } else {
                    "but used"
                };
                let errs = self.err.read().unwrap_or(0);
                return Err(Fail(format!(
                    "no call in {:?}, {late} (avail {}, used {}, errors {errs})",
                    patience(),
                    self.avail_idx,
                    self.used_idx
                )));
            }
            let _ = self.call.read();
        }
    }

    /// Waits until the device has used a chain without asking for a call, and takes it.
    pub fn spin(&mut self) -> Res<Used> {
        let mut got = None;
        crate::sys::until(|| {
            got = self.pop();
            got.is_some()
        });
        got.ok_or_else(|| {
            Fail(format!(
                "nothing used in {:?} (at {})",
                patience(),
                self.used_idx
            ))
        })
    }

    /// Waits for the error eventfd. Its count is consumed.
    pub fn wait_err(&self) -> Res {
        let deadline = deadline();
        crate::check!(readable(&self.err, deadline), "no error signalled");
        let _ = self.err.read();
        Ok(())
    }

    /// How many calls came since this was last asked.
    pub fn calls(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }
}
