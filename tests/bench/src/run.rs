// SPDX-License-Identifier: GPL-2.0

//! One case against the driver that is loaded.
//!
//! A batch is made available and kicked, and the guest sleeps until the device has used all of it.
//! Every packet carries a number. Before and after the measurement everything that arrives is compared
//! byte by byte; during it packets are counted, and of each received batch one is compared.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use kselftest::bail;
use kselftest::check;
use kselftest::check_eq;
use kselftest::deadline;
use kselftest::feature::*;
use kselftest::frame;
use kselftest::guest::same;
use kselftest::iotlb;
use kselftest::iotlb::Msg;
use kselftest::net;
use kselftest::ring::INDIRECT as INDIRECT_FLAG;
use kselftest::ring::WRITE;
use kselftest::sys as ioctls;
use kselftest::Config;
use kselftest::Guest;
use kselftest::Peer;
use kselftest::Res;
use kselftest::Ring;
use kselftest::Seg;
use kselftest::RX;
use kselftest::TX;

use crate::case::*;
use crate::sys;

const PAGE: u64 = 4096;
/// What the driver's addresses that cycle are apart by; the guest's are below it.
const WINDOW: u64 = 1 << 32;
/// Before a packet in guest memory.
const HDR: usize = 12;
/// Ethernet, IPv4 and TCP headers of a packet to be segmented.
const TCP: usize = 54;
/// The header of such a packet: checksum to be filled in, TCP over IPv4, segments of 1448 bytes.
const GSO_HEADER: [u8; 10] = [1, 1, TCP as u8, 0, 0xa8, 0x05, 34, 0, 16, 0];

/// Batches to warm up with, each packet of the first ones checked.
const CHECKED: usize = 4;
const WARM_UP: usize = 8;

/// What it cost to move so many packets.
pub struct Cost {
    pub packets: u64,
    /// The worker's processor time.
    pub worker: u64,
    /// All the time, of the guest and the other end of the wire too.
    pub machine: u64,
    /// The time from kicks to the calls that answered them.
    pub span: u64,
    /// Misses of the IOTLB that were read, and how often the thread that reads them, and the worker, waited.
    pub misses: u64,
    pub owner_waits: u64,
    pub worker_waits: u64,
}

/// What [`Bench::serve`] did.
static MISSES: AtomicU64 = AtomicU64::new(0);
static OWNER_WAITS: AtomicU64 = AtomicU64::new(0);

/// The result of a case.
pub enum Outcome {
    Cost(Cost),
    /// The driver does not offer these feature bits.
    Missing(Vec<u32>),
}

/// A descriptor as a driver keeps it: address, length, flags.
type Desc = (u64, u32, u16);

/// A packet's place in a ring, filled in once and made available again and again.
struct Slot {
    heads: Vec<u16>,
    /// The descriptors of each.
    chains: Vec<Vec<Desc>>,
    /// The buffers, without those that the header is in.
    parts: Vec<(u64, usize)>,
    /// Where the number of the packet is mapped.
    seq: *mut [u8; 4],
}

/// One direction.
struct Queue {
    slots: Vec<Slot>,
    /// The packet whose number is filled in for each one sent.
    packet: Vec<u8>,
    /// Where in the packet the number is.
    seq_at: usize,
    /// The number of the next packet.
    seq: u32,
}

struct Bench {
    case: Case,
    guest: Guest,
    tx: Queue,
    rx: Queue,
    /// Receives what the guest sends. Not there while sending is measured: a copy for it would be made
    /// in the worker's time.
    listener: Option<Peer>,
    /// The packet socket that is the backend in a case of that kind.
    raw: Option<Peer>,
    buf: Vec<u8>,
    span: Duration,
    batches: usize,
    /// Of the batch that is out.
    out: Batch,
}

/// A batch that was made available.
struct Batch {
    /// The numbers of its first packets.
    tx_first: u32,
    rx_first: u32,
    /// When it was kicked.
    kicked: Instant,
    checked: bool,
}

/// Measures a case. `times`: as many times the packets that the case names. `pinned`: guest and worker
/// get a processor each.
pub fn run(case: Case, times: usize, pinned: bool) -> Res<Outcome> {
    ioctls::own_network()?;
    sys::many_files()?;
    let case = if ioctls::on_c() { case.split() } else { case };
    let missing = missing(case.features)?;
    if !missing.is_empty() {
        return Ok(Outcome::Missing(missing));
    }
    let mut benches = (0..case.devices)
        .map(|_| Bench::new(case))
        .collect::<Res<Vec<_>>>()?;
    let workers = sys::workers()?;
    if pinned {
        sys::pin(0, 0)?;
        // The guest sleeps while several work.
        for (worker, cpu) in workers.iter().rev().zip([1, 0]) {
            sys::pin(*worker, cpu)?;
        }
    }
    let runtimes = || {
        workers
            .iter()
            .map(|&worker| sys::runtime(worker))
            .sum::<Res<u64>>()
    };
    for _ in 0..CHECKED {
        round(&mut benches, true)?;
    }
    if case.flow != Flow::RoundTrip {
        benches.iter_mut().for_each(|b| b.listener = None);
    }
    for _ in 0..WARM_UP {
        round(&mut benches, false)?;
    }

    let batches = (times * case.packets).div_ceil(case.devices * case.per_batch());
    benches.iter_mut().for_each(|b| b.span = Duration::ZERO);
    let received = |benches: &[Bench]| {
        let taps = benches.iter().map(|b| &b.guest.tap.name);
        taps.map(|name| sys::received(name)).sum::<Res<u64>>()
    };
    let arrived = received(&benches)?;
    let runtime = runtimes()?;
    let counts = || -> Res<[u64; 3]> {
        let mut waits = 0;
        for worker in &workers {
            let thread = format!("/proc/self/task/{worker}");
            waits += kselftest::task::sleeps(thread.as_ref())?;
        }
        Ok([MISSES.load(Relaxed), OWNER_WAITS.load(Relaxed), waits])
    };
    let before = counts()?;
    let start = Instant::now();
    for _ in 0..batches {
        round(&mut benches, false)?;
    }
    let machine = start.elapsed();
    let runtime = runtimes()? - runtime;
    let after = counts()?;
    let arrived = received(&benches)? - arrived;

    let sent = match case.sends() && !case.raw {
        true => case.devices * batches * case.batch,
        false => 0,
    };
    check_eq!(arrived, sent as u64, "packets that reached the taps");
    for b in &mut benches {
        b.listener = Some(Peer::new(b.guest.tap.index, false)?);
    }
    round(&mut benches, true)?;
    for b in &benches {
        check!(b.guest.tx.err.read().is_err(), "an error was signalled");
        check!(b.guest.rx.err.read().is_err(), "an error was signalled");
        if case.features & LOG_ALL != 0 {
            b.check_log()?;
        }
    }
    Ok(Outcome::Cost(Cost {
        packets: (case.devices * batches * case.per_batch()) as u64,
        worker: runtime,
        machine: machine.as_nanos() as u64,
        span: benches.iter().map(|b| b.span.as_nanos() as u64).sum(),
        misses: after[0] - before[0],
        owner_waits: after[1] - before[1],
        worker_waits: after[2] - before[2],
    }))
}

/// Moves a batch through each device, all of them at once. `checked`: compares all that arrives.
fn round(benches: &mut [Bench], checked: bool) -> Res {
    for b in benches.iter_mut() {
        b.give(checked)?;
    }
    benches.iter_mut().try_for_each(Bench::take_back)
}

/// The numbers of the features that the driver does not offer.
fn missing(features: u64) -> Res<Vec<u32>> {
    let device = ioctls::open()?;
    let mut offered = 0u64;
    check_eq!(
        ioctls::ioctl(&device, ioctls::GET_FEATURES, &raw mut offered),
        0
    );
    Ok((0..64)
        .filter(|bit| features & !offered & 1 << bit != 0)
        .collect())
}

/// The dirty log, which the device finds by its address. 1 bit a page; for the whole process's life.
static LOG: [std::sync::atomic::AtomicU64; 4096] =
    [const { std::sync::atomic::AtomicU64::new(0) }; 4096];

impl Bench {
    fn new(case: Case) -> Res<Self> {
        // 2 MiB apart, so that the driver can't make one of them.
        let regions = match case.regions {
            1 => vec![(kselftest::mem::BASE, 64 << 20)],
            n => (0..n)
                .map(|i| (kselftest::mem::BASE + (i << 21), 1 << 20))
                .collect(),
        };
        let mut cfg = Config {
            regions,
            tap: "tap%d",
            ..Config::with(case.features).num(case.ring)
        };
        if case.features & IN_ORDER != 0 {
            // The descriptors must be used in the order of their table, all of them.
            cfg = cfg.num(case.batch as u16);
        }
        let mut guest = Guest::stopped(cfg)?;
        check_eq!(guest.hdr, HDR);
        if case.gso() {
            guest.tap.offload(net::TUN_F_CSUM | net::TUN_F_TSO4)?;
        }
        let sender = Peer::sender(guest.tap.index, case.gso())?;
        // The library's guest may not keep a socket that listens.
        let listener = std::mem::replace(&mut guest.peer, sender);
        let raw = match case.raw {
            true => Some(Peer::sender(guest.tap.index, false)?),
            false => None,
        };
        let mut b = Bench {
            case,
            tx: Queue::new(case, TX, &mut guest),
            rx: Queue::new(case, RX, &mut guest),
            guest,
            listener: Some(listener),
            raw,
            buf: vec![0; 1 << 17],
            span: Duration::ZERO,
            batches: 0,
            out: Batch {
                tx_first: 0,
                rx_first: 0,
                kicked: Instant::now(),
                checked: false,
            },
        };
        b.start()?;
        Ok(b)
    }

    /// What the library's guest does not know: the log, the IOTLB, and a backend per direction.
    fn start(&mut self) -> Res {
        let g = &self.guest;
        if self.case.features & LOG_ALL != 0 {
            let base = LOG.as_ptr() as u64;
            check_eq!(ioctls::ioctl(&g.net, ioctls::SET_LOG_BASE, &base), 0);
        }
        if self.case.features & ACCESS_PLATFORM != 0 {
            let v2 = 1u64 << 1;
            check_eq!(ioctls::ioctl(&g.net, ioctls::SET_BACKEND_FEATURES, &v2), 0);
            self.map_pages()?;
        }
        if self.case.features & (LOG_ALL | ACCESS_PLATFORM) != 0 {
            for (index, ring) in [(RX, &g.rx), (TX, &g.tx)] {
                let place = |gpa| match self.case.features & ACCESS_PLATFORM {
                    0 => g.mem.hva(gpa).0 as u64,
                    _ => gpa,
                };
                let addr = ioctls::Addr {
                    index: index as u32,
                    flags: u32::from(self.case.features & LOG_ALL != 0),
                    desc: place(ring.desc),
                    used: place(ring.used),
                    avail: place(ring.avail),
                    log: ring.used,
                };
                check_eq!(ioctls::ioctl(&g.net, ioctls::SET_VRING_ADDR, &addr), 0);
            }
        }
        if self.case.known != Known::All {
            self.serve()?;
        }
        match self.case.watched {
            Some(Watched::Device) => watch(self.guest.net.as_raw_fd())?,
            Some(Watched::Other) => watch(self.guest.tap.fd.as_raw_fd())?,
            None => {}
        }
        let mut id = 0u32;
        if self.case.two_workers
            && ioctls::ioctl(&self.guest.net, ioctls::NEW_WORKER, &raw mut id) == 0
        {
            let to_send = [TX as u32, id];
            let net = &self.guest.net;
            check_eq!(ioctls::ioctl(net, ioctls::ATTACH_VRING_WORKER, &to_send), 0);
        }
        let g = &self.guest;
        let backend = self.raw.as_ref().map_or(&g.tap.fd, |raw| &raw.fd);
        for (index, used) in [(TX, self.case.sends()), (RX, self.case.receives())] {
            if used {
                let file = ioctls::VringFile {
                    index: index as u32,
                    fd: backend.as_raw_fd(),
                };
                check_eq!(ioctls::ioctl(&g.net, ioctls::NET_SET_BACKEND, &file), 0);
            }
        }
        Ok(())
    }

    /// Tells the device where each page of guest memory that is in use is: an IOTLB entry a page.
    fn map_pages(&self) -> Res {
        let g = &self.guest;
        let first = g.mem.regions()[0].gpa;
        let end = g.mem.alloc(0, PAGE);
        for page in (first..end).step_by(PAGE as usize) {
            let hva = g.mem.hva(page).0 as u64;
            tell(&sys::file(&g.net), Msg::update(page, PAGE, hva, iotlb::RW))?;
        }
        Ok(())
    }

    /// Answers misses as QEMU does, for as long as the process lives: its main loop waits for the device, then takes messages
    /// until there are none, and answers each with the page that it is about.
    fn serve(&self) -> Res {
        let mem = self.guest.mem.clone();
        let device = iotlb::dup(&self.guest.net)?;
        std::thread::spawn(move || loop {
            OWNER_WAITS.fetch_add(1, Relaxed);
            ioctls::readable(&device, Instant::now() + Duration::from_secs(3600));
            while let Ok(miss) = iotlb::read(&device) {
                let page = miss.iova & !(PAGE - 1);
                let hva = mem.hva(page % WINDOW).0 as u64;
                let answer = Msg::update(page, PAGE, hva, iotlb::RW).v2();
                assert_eq!(iotlb::write(&device, &answer), iotlb::LEN as i32);
                MISSES.fetch_add(1, Relaxed);
            }
        });
        Ok(())
    }

    /// Makes the IOTLB know what it is to know of the next batch.
    fn forget(&mut self) -> Res {
        match self.case.known {
            Known::All => {}
            Known::Nothing => {
                let device = sys::file(&self.guest.net);
                for (first, pages) in [&self.tx, &self.rx].iter().flat_map(|q| q.pages()) {
                    for page in 0..pages {
                        tell(&device, Msg::invalidate(first + page * PAGE, PAGE))?;
                    }
                }
            }
            Known::Cycling(windows) => {
                let window = self.batches as u64 % windows + 1;
                for slot in &self.tx.slots {
                    let at = self.guest.tx.desc + 16 * u64::from(slot.heads[0]);
                    let addr = slot.parts[0].0 - HDR as u64 + window * WINDOW;
                    self.guest.mem.write(at, &addr.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    /// Makes a batch available. `checked`: all that arrives will be compared.
    fn give(&mut self, checked: bool) -> Res {
        self.batches += 1;
        self.forget()?;
        (self.out.tx_first, self.out.rx_first) = (self.tx.seq, self.rx.seq);
        self.out.checked = checked;
        if self.case.waits_in_tap() {
            self.rx.send(&self.guest.peer, self.case)?;
        }
        if self.case.receives() {
            self.rx.offer(&mut self.guest.rx);
        }
        if self.case.sends() {
            self.tx.fill();
            self.tx.offer(&mut self.guest.tx);
        }
        self.out.kicked = Instant::now();
        if self.case.receives() {
            self.guest.rx.submit();
        }
        if self.case.flow == Flow::RoundTrip {
            // It begins with the request.
            self.out.kicked = Instant::now();
        }
        if self.case.sends() {
            self.guest.tx.submit();
        }
        Ok(())
    }

    /// Waits until the device has used the batch, and looks at what came.
    fn take_back(&mut self) -> Res {
        match self.case.flow {
            Flow::RoundTrip => self.answer()?,
            Flow::Paced(gap) => self.send_paced(Duration::from_micros(gap))?,
            _ => {}
        }
        if self.case.sends() {
            finished(&mut self.guest.tx)?;
        }
        if self.case.receives() {
            finished(&mut self.guest.rx)?;
        }
        self.span += self.out.kicked.elapsed();

        let Batch {
            tx_first,
            rx_first,
            checked,
            ..
        } = self.out;
        if self.case.receives() {
            match checked {
                true => {
                    for i in 0..self.case.batch {
                        self.check_received(rx_first, i)?;
                    }
                    self.check_lengths()?;
                }
                false => self.check_received(rx_first, self.batches * 7 % self.case.batch)?,
            }
        }
        if self.case.raw {
            self.check_raw(tx_first)?;
        } else if let (true, true, Some(listener)) = (
            checked && self.case.flow != Flow::RoundTrip,
            self.case.sends(),
            &mut self.listener,
        ) {
            for i in 0..self.case.batch as u32 {
                let want = self.tx.expected(tx_first.wrapping_add(i));
                same(&listener.recv()?, &want, "sent packet")?;
            }
        }
        Ok(())
    }

    /// Answers the packet that was sent.
    fn answer(&mut self) -> Res {
        let Some(listener) = &mut self.listener else {
            bail!("nobody to answer")
        };
        let asked = listener.recv()?;
        self.tx.check_seq(&asked, self.out.tx_first)?;
        self.rx.send(&self.guest.peer, self.case)?;
        if self.out.checked {
            same(&asked, &self.tx.expected(self.out.tx_first), "request")?;
        }
        Ok(())
    }

    /// Sends the packets of a batch to the tap, one after each `gap`.
    fn send_paced(&mut self, gap: Duration) -> Res {
        let start = Instant::now();
        for i in 0..self.case.batch as u32 {
            while start.elapsed() < gap * i {
                std::hint::spin_loop();
            }
            self.rx.send_one(&self.guest.peer, self.case)?;
        }
        Ok(())
    }

    /// Compares the received packet in a slot with what the last batch sent.
    fn check_received(&mut self, first: u32, slot: usize) -> Res {
        let want = self.rx.expected(first.wrapping_add(slot as u32));
        let mut got = Vec::with_capacity(want.len() + 2048);
        for &(gpa, len) in &self.rx.slots[slot].parts {
            let now = len.min(want.len() - got.len());
            got.extend(self.guest.mem.read(gpa, now));
        }
        same(&got, &want, "received packet")
    }

    /// The used lengths of the last batch received must add up. With the feature "in order" there may be
    /// one entry for all of them.
    fn check_lengths(&self) -> Res {
        if self.case.features & IN_ORDER != 0 {
            return Ok(());
        }
        let ring = &self.guest.rx;
        let heads: usize = self.rx.slots.iter().map(|s| s.heads.len()).sum();
        let mut sum = 0;
        if self.case.packed() {
            let chains = || self.rx.slots.iter().flat_map(|s| &s.chains);
            let all = chains().map(Vec::len).sum();
            let mut spot = ring.packed().used.before(all);
            for chain in chains() {
                sum += ring.packed().used_at(spot).map_or(0, |u| u.len as usize);
                spot = spot.after(chain.len());
            }
        }
        for i in 1..=if self.case.packed() { 0 } else { heads as u16 } {
            let entry = ring.used_idx.wrapping_sub(i) & (ring.num - 1);
            let e = self.guest.mem.read(ring.used + 4 + 8 * u64::from(entry), 8);
            sum += u32::from_le_bytes(e[4..].try_into().unwrap()) as usize;
        }
        check_eq!(
            sum,
            self.case.batch * (HDR + self.case.len),
            "sum of the used lengths"
        );
        Ok(())
    }

    /// Takes what went through the packet socket from the tap that it is bound to.
    fn check_raw(&mut self, first: u32) -> Res {
        for i in 0..self.case.batch as u32 {
            let n = (&self.guest.tap.fd).read(&mut self.buf)?;
            let want = self.tx.expected(first.wrapping_add(i));
            same(&self.buf[..n], &want, "packet through the packet socket")?;
        }
        Ok(())
    }

    /// The pages that the device wrote must be in the log.
    fn check_log(&self) -> Res {
        let mut pages = vec![];
        if self.case.receives() {
            pages.push(self.guest.rx.used);
            pages.extend(self.rx.slots.iter().map(|s| s.parts[0].0));
        }
        if self.case.sends() {
            pages.push(self.guest.tx.used);
        }
        for gpa in pages {
            let page = (gpa / PAGE) as usize;
            let word = LOG[page / 64].load(std::sync::atomic::Ordering::Relaxed);
            check!(
                word >> (page % 64) & 1 == 1,
                "page {page:#x} is not in the dirty log"
            );
        }
        Ok(())
    }
}

impl Queue {
    fn new(case: Case, index: usize, guest: &mut Guest) -> Self {
        let (packet, seq_at) = match case.gso() {
            true => (net::tcp_frame(case.len - TCP, 1), TCP),
            false => (frame(1, case.len), net::ETH),
        };
        let used = match index {
            TX => case.sends(),
            _ => case.receives(),
        };
        let slots = match used {
            true => (0..case.batch)
                .map(|i| Slot::new(case, index, i, seq_at, guest))
                .collect(),
            false => vec![],
        };
        let mut q = Queue {
            slots,
            packet,
            seq_at,
            seq: 1,
        };
        // The slots have been offered while they were made; they are not, before the first batch.
        let ring = if index == TX {
            &mut guest.tx
        } else {
            &mut guest.rx
        };
        ring.take_back();
        if index == TX {
            q.place(guest, case);
        }
        q
    }

    /// Copies the packet, and its header, to each slot.
    fn place(&mut self, guest: &Guest, case: Case) {
        for slot in &self.slots {
            let (first, _) = slot.parts[0];
            // The header is before the packet, wherever that is.
            guest.mem.fill(first - HDR as u64, HDR, 0);
            if case.gso() {
                guest.mem.write(first - HDR as u64, &GSO_HEADER);
            }
            let mut rest = &self.packet[..];
            for &(gpa, len) in &slot.parts {
                let (now, later) = rest.split_at(len.min(rest.len()));
                guest.mem.write(gpa, now);
                rest = later;
            }
        }
    }

    /// The first page of each slot, and how many there are.
    fn pages(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.slots.iter().map(|slot| {
            let (first, last) = (slot.parts[0].0 - HDR as u64, slot.parts.last().unwrap());
            let page = first / PAGE * PAGE;
            (page, (last.0 + last.1 as u64 - page).div_ceil(PAGE))
        })
    }

    /// Gives each packet in guest memory its number.
    fn fill(&mut self) {
        for slot in &self.slots {
            // SAFETY: four bytes of guest memory, which stays mapped until the process ends.
            unsafe { slot.seq.write_volatile(self.seq.to_be_bytes()) };
            self.seq = self.seq.wrapping_add(1);
        }
    }

    /// Sends as many packets to the tap as there are slots.
    fn send(&mut self, sender: &Peer, case: Case) -> Res {
        (0..self.slots.len()).try_for_each(|_| self.send_one(sender, case))
    }

    /// Sends a packet to the tap.
    fn send_one(&mut self, sender: &Peer, case: Case) -> Res {
        let seq = self.seq.to_be_bytes();
        self.packet[self.seq_at..self.seq_at + 4].copy_from_slice(&seq);
        match case.gso() {
            true => sender.send(&[&GSO_HEADER[..], &self.packet].concat())?,
            false => sender.send(&self.packet)?,
        }
        self.seq = self.seq.wrapping_add(1);
        Ok(())
    }

    /// Makes all slots available, but does not yet tell the device.
    fn offer(&self, ring: &mut Ring) {
        for slot in &self.slots {
            for (&head, chain) in slot.heads.iter().zip(&slot.chains) {
                ring.offer_again(head, chain);
            }
        }
        // Call when the last one is used.
        ring.set_used_event(ring.avail_idx.wrapping_sub(1));
    }

    /// The packet of this number.
    fn expected(&self, seq: u32) -> Vec<u8> {
        let mut p = self.packet.clone();
        p[self.seq_at..self.seq_at + 4].copy_from_slice(&seq.to_be_bytes());
        p
    }

    fn check_seq(&self, packet: &[u8], seq: u32) -> Res {
        check_eq!(packet.len(), self.packet.len());
        check_eq!(packet[self.seq_at..self.seq_at + 4], seq.to_be_bytes());
        Ok(())
    }
}

impl Slot {
    /// Makes slot number `i` of a queue.
    fn new(case: Case, index: usize, i: usize, seq_at: usize, guest: &mut Guest) -> Self {
        let whole = HDR + case.len;
        let size = match case.layout {
            Layout::Merged => 1536 * whole.div_ceil(1536),
            _ => whole.max(1536).next_multiple_of(PAGE as usize),
        };
        // Each slot begins a page; a long one in pages that are mapped for it begins within one, as a guest's do.
        let skew = match case.known == Known::Nothing && case.gso() {
            true => PAGE / 2,
            false => 0,
        };
        let at = match case.regions {
            1 => guest.mem.alloc(size + 2 * skew as usize, PAGE) + skew,
            n => {
                // A queue's own half of the region that is next; the first has the rings at its start.
                let half = (1 << 18) * (2 + index as u64);
                guest.mem.regions()[i % n as usize].gpa + half + (i as u64 / n) * 2 * PAGE
            }
        };
        let seg = |from: usize, len: usize| match index {
            TX => Seg::r(at + from as u64, len),
            _ => Seg::w(at + from as u64, len),
        };
        let end = match index {
            TX => whole,
            _ => size,
        };
        let segs = match case.layout {
            Layout::Single => vec![seg(0, end)],
            Layout::Four => vec![
                seg(0, HDR),
                seg(HDR, 20),
                seg(HDR + 20, 20),
                seg(HDR + 40, end - HDR - 40),
            ],
            Layout::Indirect => vec![seg(0, HDR), seg(HDR, end - HDR)],
            Layout::Large => {
                let mut v = vec![seg(0, HDR + TCP)];
                for from in (HDR + TCP..end).step_by(32768) {
                    v.push(seg(from, 32768.min(end - from)));
                }
                v
            }
            Layout::Merged => (0..size)
                .step_by(1536)
                .map(|from| seg(from, 1536))
                .collect(),
        };
        let table = match case.layout {
            Layout::Indirect => Some(guest.mem.alloc(16 * segs.len(), 16)),
            _ => None,
        };
        let ring = if index == TX {
            &mut guest.tx
        } else {
            &mut guest.rx
        };
        let desc = |s: &Seg| (s.gpa, s.len, if s.write { WRITE } else { 0 });
        let chains: Vec<Vec<Desc>> = match (case.layout, table) {
            (Layout::Merged, _) => segs.iter().map(|s| vec![desc(s)]).collect(),
            (_, Some(table)) => {
                ring.put_table(table, &segs);
                vec![vec![(table, 16 * segs.len() as u32, INDIRECT_FLAG)]]
            }
            _ => vec![segs.iter().map(desc).collect()],
        };
        let heads = chains.iter().map(|chain| ring.add_raw(chain)).collect();
        // The header ends in the first buffer.
        let mut parts: Vec<_> = segs.iter().map(|s| (s.gpa, s.len as usize)).collect();
        parts[0] = (parts[0].0 + HDR as u64, parts[0].1 - HDR);
        parts.retain(|p| p.1 > 0);
        // The number is never cut in two. Of a large packet it follows the headers, in the second part.
        let seq = match parts[0] {
            (_, len) if seq_at >= len => parts[1].0 + (seq_at - len) as u64,
            (gpa, _) => gpa + seq_at as u64,
        };
        let seq = guest.mem.hva(seq).0.cast();
        Slot {
            heads,
            chains,
            parts,
            seq,
        }
    }
}

/// Tells the device something of its IOTLB.
fn tell(device: &File, msg: Msg) -> Res {
    let taken = iotlb::write(device, &msg.v2());
    check_eq!(taken, iotlb::LEN as i32, "bytes of a message taken");
    Ok(())
}

/// Sleeps until the device has used all that it was given.
fn finished(ring: &mut Ring) -> Res {
    let deadline = deadline();
    while ring.device_idx() != ring.avail_idx {
        if !ioctls::readable(&ring.call, deadline) {
            bail!(
                "no call: {} of the last batch not used",
                ring.avail_idx.wrapping_sub(ring.device_idx())
            );
        }
        let _ = ring.call.read();
    }
    ring.take_all();
    Ok(())
}

/// Reads the fdinfo of a file all the time, a thousand times a second.
fn watch(fd: i32) -> Res {
    let mut file = File::open(format!("/proc/self/fdinfo/{fd}"))?;
    std::thread::spawn(move || {
        // Beside the guest: what it takes of a processor is not the worker's.
        sys::pin(0, 0).expect("there is a processor");
        let mut text = [0; 8192];
        // At the end the device is gone before this is.
        while file.rewind().is_ok() && file.read(&mut text).is_ok_and(|len| len > 0) {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    Ok(())
}
