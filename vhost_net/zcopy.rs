// SPDX-License-Identifier: GPL-2.0

//! Transmitting without a copy: the network stack sends from the guest's memory.
//!
//! A [`ZeroCopy`] belongs to the backend of a queue that transmits. It says which packets are to
//! go that way, and keeps their chains until the network stack is done with them. That may be in
//! any order and take any time; the driver gets them back in the order in which they were sent.
//! All of it is under the queue's mutex, but for the waiting.

#![forbid(unsafe_code)]

use crate::{
    memtable::Segments,
    sys::{
        poll::Wake,
        socket::Socket,
        uaccess::CurrentMm,
        ubuf::{
            self,
            InFlight,
            Replaced,
            UserBufs,
            MAX_PACKETS, //
        },
    },
    vhost::{
        Stats,
        WorkBits, //
    },
    vring::{
        Deferred,
        RingFormat,
        Take,
        Vring, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Shorter packets, of so many bytes with the backend's header, are copied in less time.
const MIN_LEN: usize = 256;
/// Failures are forgotten after so many packets.
const PERIOD: u32 = 1024;
/// One failure is made good by so many packets.
const PACKETS_A_FAILURE: u32 = 64;

/// The packets of a queue that are sent without a copy.
pub struct ZeroCopy<W: Wake> {
    bufs: UserBufs<W>,
    /// The chain of each packet in `bufs`, in the slot that it has there.
    chains: KVec<Option<Deferred>>,
    /// The packets of this period, whichever way they went.
    packets: u32,
    /// The packets of this period that were copied after all.
    failures: u32,
    /// Somebody waits for all to be done.
    held: bool,
    /// The packet at hand is long enough, and has to be copied all the same.
    refused: bool,
}

impl<W: Wake> ZeroCopy<W> {
    /// Makes it for queue `index`, which `worker` runs: also when some packets are done.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new(index: usize, worker: Arc<W>) -> Result<Self> {
        let mut chains = KVec::with_capacity(MAX_PACKETS, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..MAX_PACKETS {
            chains.push(None, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self {
            bufs: UserBufs::new(worker, WorkBits::ready(index))?,
            chains,
            packets: 0,
            failures: 0,
            held: false,
            refused: false,
        })
    }

    /// Has another worker told that packets are done. What is returned keeps the one before.
    pub fn set_worker(&mut self, worker: Arc<W>) -> Replaced<W> {
        self.bufs.set_target(worker)
    }

    /// This, if a packet of `len` bytes, with the backend's header, is to go without a copy to
    /// `sock`. It is `segments` without their first `skip` bytes, and the ring has `num`
    /// descriptors.
    pub fn if_wanted(
        &mut self,
        sock: &Socket,
        len: usize,
        segments: &Segments,
        skip: usize,
        num: u16,
    ) -> Option<&mut Self> {
        self.refused = false;
        if len < MIN_LEN {
            return None;
        }
        let may_go = ubuf::fits(segments.as_slice(), skip)
            && self.has_room(num)
            && !self.held
            && self.packets / PACKETS_A_FAILURE >= self.failures
            && sock.completes_ubufs();
        self.refused = !may_go;
        may_go.then_some(self)
    }

    /// Whether there may be more packets that are not done: they must not keep all of the `num`
    /// descriptors of the ring.
    pub fn has_room(&self, num: u16) -> bool {
        self.bufs.len() < usize::from(num / 4).clamp(1, MAX_PACKETS)
    }

    /// Sends the packet whose chain is `take`: `segments` without their first `skip` bytes. Then
    /// the chain is kept.
    ///
    /// Returns the chain with the error if that fails, as [`UserBufs::send`].
    pub fn send<'ring, 'mm, F: RingFormat>(
        &mut self,
        mm: CurrentMm<'mm>,
        sock: &Socket,
        take: Take<'ring, CurrentMm<'mm>, F>,
        segments: &Segments,
        skip: usize,
        stats: &Stats,
    ) -> Result<(), (Error, Take<'ring, CurrentMm<'mm>, F>)> {
        // None follows: a tap may keep a packet until the next one, and that may never come.
        match self.bufs.send(mm, sock, segments, skip, false) {
            Ok(slot) => {
                stats.in_flight.add(1);
                if let Some(chain) = self.chains.get_mut(slot) {
                    *chain = take.defer();
                }
                Ok(())
            }
            Err(err) => Err((err, take)),
        }
    }

    /// Counts a packet, whichever way it went, if it was `sent`; and [completes](Self::complete)
    /// those that are done.
    pub fn count(&mut self, sent: bool, ring: &mut Vring, stats: &Stats) {
        if core::mem::take(&mut self.refused) && sent {
            stats.zerocopy_refused.add(1);
        }
        self.packets += 1;
        if self.packets >= PERIOD {
            self.packets = 0;
            self.failures = 0;
        }
        self.complete(ring, stats);
    }

    /// Completes the chains of the packets that are done, up to the first one that is not, and
    /// counts them.
    pub fn complete(&mut self, ring: &mut Vring, stats: &Stats) {
        let (mut sent, mut copied) = (0, 0);
        while let Some(done) = self.bufs.pop() {
            if done.copied {
                self.failures += 1;
                copied += 1;
            } else {
                sent += 1;
            }
            let chain = self.chains.get_mut(done.slot).and_then(Option::take);
            if let Some(chain) = chain {
                ring.complete_deferred(chain);
            }
        }
        if sent + copied > 0 {
            stats.zerocopy_done(sent, copied);
        }
    }

    /// Lets no packet go without a copy until [`Self::go_on`]. Returns those on their way, to be
    /// waited for.
    pub fn hold(&mut self) -> InFlight<W> {
        self.held = true;
        self.in_flight()
    }

    /// Lets packets go without a copy again.
    pub fn go_on(&mut self) {
        self.held = false;
    }

    /// The packets on their way, to be waited for.
    pub fn in_flight(&self) -> InFlight<W> {
        self.bufs.in_flight()
    }
}
