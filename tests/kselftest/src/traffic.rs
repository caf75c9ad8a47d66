// SPDX-License-Identifier: GPL-2.0

//! Both directions at once, every byte checked.

use crate::check;
use crate::check_eq;
use crate::guest::same;
use crate::net::frame;
use crate::Guest;
use crate::Res;
use crate::Seg;

/// Room for a packet and its header.
const ROOM: usize = 1600;

/// A stream of numbered packets each way, through full rings.
pub struct Traffic {
    out: Vec<u64>,
    /// Free buffers.
    spare: Vec<u64>,
    /// Where the buffer of each chain is.
    place: Vec<u64>,
    pub tx_in: u32,
    pub tx_out: u32,
    pub rx_in: u32,
    pub rx_out: u32,
    /// Kick at every submission, wanted or not.
    pub always_kick: bool,
}

impl Traffic {
    /// How much guest memory the buffers take.
    pub fn room(g: &Guest) -> usize {
        ROOM * (usize::from(g.rx.num) + usize::from(g.tx.num))
    }

    /// A stream whose buffers lie at `area`.
    pub fn new(g: &Guest, area: u64) -> Self {
        let at = |i: u16| area + u64::from(i) * ROOM as u64;
        let n = g.rx.num;
        Traffic {
            out: (n..n + g.tx.num).map(at).collect(),
            spare: (0..n).map(at).collect(),
            place: vec![0; usize::from(n)],
            tx_in: 0,
            tx_out: 0,
            rx_in: 0,
            rx_out: 0,
            always_kick: false,
        }
    }

    fn tx_frame(i: u32) -> Vec<u8> {
        frame(i, 60 + i as usize % 1400)
    }

    fn rx_frame(i: u32) -> Vec<u8> {
        frame(i ^ 1 << 31, 60 + (7 * i) as usize % 1400)
    }

    /// Fills both rings and the wire, up to this many packets each way in all.
    pub fn feed(&mut self, g: &mut Guest, limit: u32) -> Res {
        while let Some(at) = self.spare.pop() {
            let head = g.rx.add(&[Seg::w(at, ROOM)]);
            self.place[usize::from(head)] = at;
        }
        g.rx.submit();
        while self.tx_in < limit && g.tx.free() > 0 {
            let p = Self::tx_frame(self.tx_in);
            let at = self.out[self.tx_in as usize % self.out.len()];
            g.mem.fill(at, g.hdr, 0);
            g.mem.write(at + g.hdr as u64, &p);
            g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
            self.tx_in += 1;
        }
        g.tx.submit();
        if self.always_kick {
            g.rx.kick();
            g.tx.kick();
        }
        while self.rx_in < limit && self.rx_in - self.rx_out < 200 {
            g.peer.send(&Self::rx_frame(self.rx_in))?;
            self.rx_in += 1;
        }
        Ok(())
    }

    /// Waits for a completion each way, where one is due, and takes all that are there.
    pub fn drain(&mut self, g: &mut Guest) -> Res {
        if self.tx_out < self.tx_in {
            g.tx.wait()?;
            let mut n = 1;
            while g.tx.pop().is_some() {
                n += 1;
            }
            for _ in 0..n {
                let want = Self::tx_frame(self.tx_out);
                same(
                    &g.peer.recv()?,
                    &want,
                    &format!("sent packet {}", self.tx_out),
                )?;
                self.tx_out += 1;
            }
        }
        if self.rx_out < self.rx_in {
            let mut u = Some(g.rx.wait()?);
            while let Some(e) = u {
                let want = Self::rx_frame(self.rx_out);
                let what = format!("received packet {}", self.rx_out);
                check_eq!(e.len as usize, g.hdr + want.len(), "used length of {what}");
                let at = self.place[e.id as usize];
                let data = g.mem.read(at, e.len as usize);
                g.check_rx_hdr(&data, 1)?;
                same(&data[g.hdr..], &want, &what)?;
                self.spare.push(at);
                self.rx_out += 1;
                u = g.rx.pop();
            }
        }
        Ok(())
    }

    /// Runs until this many packets went each way.
    pub fn run(&mut self, g: &mut Guest, count: u32) -> Res {
        while self.tx_out < count || self.rx_out < count {
            self.feed(g, count)?;
            self.drain(g)?;
        }
        check!(g.peer.try_recv().is_none(), "more packets than were sent");
        check!(
            g.tx.err.read().is_err() && g.rx.err.read().is_err(),
            "an error was signalled"
        );
        Ok(())
    }
}
