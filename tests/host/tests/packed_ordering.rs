// SPDX-License-Identifier: GPL-2.0

//! The order of what a driver and the device do to a packed ring, in every execution that the memory model
//! of C11 allows. What `ordering.rs` says of its models is true of these: the device is the module's own, each
//! of its barriers and of the driver's is needed, and what is not ordered by them is an error.
//!
//! The second word of a descriptor and the fields of the event areas are atomics, accessed relaxed; a
//! descriptor's address, and the buffers, are plain memory.

use loom::{
    cell::Cell,
    sync::{
        atomic::{fence, AtomicU16, AtomicU32, AtomicU64, Ordering},
        Notify,
    },
};
use std::{
    panic::{catch_unwind, Location},
    sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        Arc,
    },
};
use vhost_net_host_tests::{
    features::Features,
    log::DirtyLog,
    memtable::{GuestAddr, MemTable, Region, Segments},
    packed::{BY_PLACE, DISABLE, ENABLE, F_AVAIL, F_NEXT, F_USED, F_WRITE},
    ring::Vring,
    usermem::{UserAddr, UserMemory},
    vring::{Endian, RingAddrs, UsedLog},
};

use kernel::prelude::*;

/// How many chains the ring has room for; the third one is in the second time around.
const CHAINS: u64 = 2;
/// The most descriptors that a chain has here, and a ring.
const MAX_DESCS: u64 = 2;
const MAX_NUM: usize = (CHAINS * MAX_DESCS) as usize;
const DESC: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const BUFFERS: u64 = 0x4000;
const LOG: u64 = 0x5000;

/// A barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    /// The one in this line of a source file of the module.
    Device(&'static str, u32),
    /// The device's read barrier between the two words of a descriptor, which is in
    /// `read_u64x2_last_first`: in `sys/helpers.c`, and here.
    InDescriptor,
    /// The driver's write barrier between the rest of a chain and the flags of its first descriptor.
    AddBeforeFlags,
    /// The driver's full barrier between these and its look whether a kick is wanted.
    FlagsBeforeKick,
    /// The driver's read barrier between the flags of a used descriptor and all that they show.
    FlagsBeforeRest,
    /// The driver's full barrier between asking for calls and its second look at the descriptor.
    ArmBeforeFlags,
}

const OTHERS: [Barrier; 5] = [
    Barrier::InDescriptor,
    Barrier::AddBeforeFlags,
    Barrier::FlagsBeforeKick,
    Barrier::FlagsBeforeRest,
    Barrier::ArmBeforeFlags,
];

/// The files of the format that have barriers.
const SOURCES: [(&str, &str); 2] = [
    ("/vring/packed.rs", include_str!("../../../vring/packed.rs")),
    (
        "/vring/packed/events.rs",
        include_str!("../../../vring/packed/events.rs"),
    ),
];

/// The others of the format, which have none.
const NO_SOURCES: [&str; 5] = [
    include_str!("../../../vring/packed/ahead.rs"),
    include_str!("../../../vring/packed/desc.rs"),
    include_str!("../../../vring/packed/indirect.rs"),
    include_str!("../../../vring/packed/place.rs"),
    include_str!("../../../vring/packed/taken.rs"),
];

/// The format's barriers, as they are in the source.
fn device_barriers() -> Vec<Barrier> {
    let mut found = Vec::new();
    for (file, source) in SOURCES {
        for (number, line) in source.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if code.contains("_barrier();") {
                found.push(Barrier::Device(file, number as u32 + 1));
            }
        }
    }
    found
}

/// The memory that both sides share.
struct Mem {
    /// How many descriptors a chain has.
    descs: u64,
    /// By descriptor: the address, and the other word.
    addrs: [Cell<u64>; MAX_NUM],
    words: [AtomicU64; MAX_NUM],
    /// The places and the flags of the driver's and the device's area.
    areas: [[AtomicU16; 2]; 2],
    buffers: [Cell<u64>; MAX_NUM],
    log: AtomicU32,
    left_out: Option<Barrier>,
}

impl Mem {
    fn new(descs: u64, left_out: Option<Barrier>) -> Self {
        Self {
            descs,
            addrs: [0; MAX_NUM].map(Cell::new),
            words: [0; MAX_NUM].map(AtomicU64::new),
            areas: [[0; 2]; 2].map(|area| area.map(AtomicU16::new)),
            buffers: [0; MAX_NUM].map(Cell::new),
            log: AtomicU32::new(0),
            left_out,
        }
    }

    /// The number of descriptors in the ring.
    fn num(&self) -> u64 {
        CHAINS * self.descs
    }

    fn index(&self, n: u64) -> usize {
        (n % self.num()) as usize
    }

    /// The place of the `n`-th descriptor that a side comes to.
    fn place(&self, n: u64) -> u16 {
        self.index(n) as u16 | if self.wrap(n) { 0x8000 } else { 0 }
    }

    fn wrap(&self, n: u64) -> bool {
        (n / self.num()) % 2 == 0
    }

    /// The flags by which the `n`-th descriptor is available, and used.
    fn available(&self, n: u64) -> u16 {
        if self.wrap(n) {
            F_AVAIL
        } else {
            F_USED
        }
    }

    fn used(&self, n: u64) -> u16 {
        if self.wrap(n) {
            F_AVAIL | F_USED
        } else {
            0
        }
    }

    fn buffer_at(&self, n: u64) -> u64 {
        BUFFERS + 8 * self.index(n) as u64
    }

    fn area(&self, addr: u64) -> &AtomicU16 {
        let of_device = usize::from(addr & !0xfff == DEVICE);
        &self.areas[of_device][(addr & 0xfff) as usize / 2]
    }

    fn buffer(&self, addr: u64) -> &Cell<u64> {
        &self.buffers[(addr - BUFFERS) as usize / 8]
    }

    /// A barrier, unless it is the one that is left out.
    fn fence(&self, barrier: Barrier, order: Ordering) {
        if self.left_out != Some(barrier) {
            fence(order);
        }
    }
}

/// What [`Vring`] sees of it.
#[derive(Clone)]
struct Device(Arc<Mem>);

impl Device {
    fn fence(&self, at: &Location<'_>, order: Ordering) {
        let file = SOURCES.iter().map(|(file, _)| *file);
        let file = file.into_iter().find(|file| at.file().ends_with(file));
        // Those of any format are the other file's.
        self.0
            .fence(Barrier::Device(file.unwrap_or("other"), at.line()), order);
    }
}

impl UserMemory for &Device {
    fn access_ok(&self, _: UserAddr, _: u64) -> bool {
        true
    }

    fn read(&self, _: UserAddr, _: &mut [u8]) -> Result {
        Err(EFAULT)
    }

    fn write(&self, _: UserAddr, _: &[u8]) -> Result {
        Err(EFAULT)
    }

    fn load_u16(&self, addr: UserAddr) -> Result<u16> {
        let addr = addr.get();
        if addr & !0xfff == DESC {
            assert_eq!(addr % 16, 14);
            let word = self.0.words[(addr - DESC) as usize / 16].load(Ordering::Relaxed);
            return Ok((word >> 48) as u16);
        }
        Ok(self.0.area(addr).load(Ordering::Relaxed))
    }

    fn store_u16(&self, addr: UserAddr, value: u16) -> Result {
        self.0.area(addr.get()).store(value, Ordering::Relaxed);
        Ok(())
    }

    fn read_u64x2_last_first(&self, addr: UserAddr) -> Result<[u64; 2]> {
        let index = (addr.get() - DESC) as usize / 16;
        let word = self.0.words[index].load(Ordering::Relaxed);
        self.0.fence(Barrier::InDescriptor, Ordering::Acquire);
        // What the driver may be writing just now, and means nothing then, is not looked at.
        let flags = (word >> 48) as u16;
        let addr = match flags & (F_AVAIL | F_USED) {
            F_AVAIL | F_USED => self.0.addrs[index].get(),
            _ => 0,
        };
        Ok([addr, word])
    }

    fn store_u64(&self, addr: UserAddr, value: u64) -> Result {
        let at = addr.get() - DESC;
        assert_eq!(at % 16, 8);
        self.0.words[at as usize / 16].store(value, Ordering::Relaxed);
        Ok(())
    }

    fn set_bits(&self, _: UserAddr, mask: u32) -> Result {
        self.0.log.fetch_or(mask, Ordering::Relaxed);
        Ok(())
    }

    #[track_caller]
    fn read_barrier(&self) {
        self.fence(Location::caller(), Ordering::Acquire);
    }

    #[track_caller]
    fn write_barrier(&self) {
        self.fence(Location::caller(), Ordering::Release);
    }

    #[track_caller]
    fn full_barrier(&self) {
        self.fence(Location::caller(), Ordering::SeqCst);
    }
}

/// Every descriptor has another length. A chain's id is that of its last one.
fn len(n: u64) -> u64 {
    8 - n
}

fn id(n: u64) -> u64 {
    0x70 + n
}

fn sent(n: u64) -> u64 {
    0x100 + n
}

fn received(n: u64) -> u64 {
    0x200 + n
}

fn word(n: u64, flags: u16) -> u64 {
    len(n) | id(n) << 32 | u64::from(flags) << 48
}

/// What the device writes of the chain from `first` to `last`.
fn used_word(first: u64, last: u64, flags: u16, writable: bool) -> u64 {
    let (len, flags) = match writable {
        true => (written(first), flags | F_WRITE),
        false => (0, flags),
    };
    len | id(last) << 32 | u64::from(flags) << 48
}

/// How many bytes it says that it wrote.
fn written(first: u64) -> u64 {
    0x100 + first
}

/// The driver's side of the ring. Both sides count descriptors.
struct Driver {
    mem: Arc<Mem>,
    event_idx: bool,
    added: u64,
    reaped: u64,
    /// What was added last is for the device to write, and so is all that is reaped.
    writable: bool,
}

impl Driver {
    /// Adds a chain and makes it available. Returns whether a kick is wanted (`virtqueue_add_packed`,
    /// `virtqueue_kick_prepare_packed`).
    fn add(&mut self, writable: bool) -> bool {
        let (mem, first) = (&self.mem, self.added);
        let end = first + mem.descs;
        let write = if writable { F_WRITE } else { 0 };
        let word_of = |n: u64| {
            let next = if n + 1 < end { F_NEXT } else { 0 };
            word(n, mem.available(n) | write | next)
        };
        for n in first..end {
            if !writable {
                mem.buffer(mem.buffer_at(n)).set(sent(n));
            }
            mem.addrs[mem.index(n)].set(mem.buffer_at(n));
            if n > first {
                mem.words[mem.index(n)].store(word_of(n), Ordering::Relaxed);
            }
        }
        mem.fence(Barrier::AddBeforeFlags, Ordering::Release);
        mem.words[mem.index(first)].store(word_of(first), Ordering::Relaxed);
        self.added = end;
        self.writable = writable;
        mem.fence(Barrier::FlagsBeforeKick, Ordering::SeqCst);
        match mem.area(DEVICE + 2).load(Ordering::Relaxed) {
            ENABLE => true,
            DISABLE => false,
            BY_PLACE => {
                let place = mem.area(DEVICE).load(Ordering::Relaxed);
                (first..end).any(|n| mem.place(n) == place)
            }
            other => panic!("flags {other}"),
        }
    }

    fn used_word(&self, n: u64) -> Option<u64> {
        let word = self.mem.words[self.mem.index(n)].load(Ordering::Relaxed);
        let flags = (word >> 48) as u16;
        (flags & (F_AVAIL | F_USED) == self.mem.used(n) && n < self.added).then_some(word)
    }

    /// Takes back what is used (`virtqueue_get_buf_ctx_packed`). `batch` says that all of it was
    /// published at once.
    fn reap(&mut self, batch: bool) {
        while let Some(found) = self.used_word(self.reaped) {
            let (first, end) = (self.reaped, self.reaped + self.mem.descs);
            self.mem.fence(Barrier::FlagsBeforeRest, Ordering::Acquire);
            let want = used_word(first, end - 1, self.mem.used(first), self.writable);
            assert_eq!(found, want, "a used descriptor");
            for n in (first..end).filter(|_| self.writable) {
                let buffer = self.mem.buffer(self.mem.buffer_at(n));
                assert_eq!(buffer.get(), received(n), "what the device wrote");
            }
            self.reaped = end;
            if batch && self.reaped < self.added {
                let seen = self.used_word(self.reaped).is_some();
                assert_eq!(seen, true, "all of a batch");
            }
        }
    }

    /// Asks for calls; returns whether there is more already (`virtqueue_enable_cb_prepare_packed`,
    /// `virtqueue_poll_packed`).
    fn enable_calls(&self) -> bool {
        let flags = if self.event_idx { BY_PLACE } else { ENABLE };
        self.mem
            .area(DRIVER)
            .store(self.mem.place(self.reaped), Ordering::Relaxed);
        self.mem.area(DRIVER + 2).store(flags, Ordering::Relaxed);
        self.mem.fence(Barrier::ArmBeforeFlags, Ordering::SeqCst);
        self.used_word(self.reaped).is_some()
    }

    fn disable_calls(&self) {
        self.mem.area(DRIVER + 2).store(DISABLE, Ordering::Relaxed);
    }
}

/// The device's side: the ring of the module, and what `vhost_net.rs` does with it.
struct Host {
    ring: Vring<Device>,
    table: Arc<MemTable>,
    mem: Arc<Mem>,
    taken: u64,
}

impl Host {
    fn new(mem: &Arc<Mem>, event_idx: bool) -> Self {
        // Guest addresses are user addresses.
        let region = Region {
            guest: GuestAddr::new(0),
            size: 0x10000,
            user: UserAddr::new(0),
        };
        let mut bits = vec![Features::VERSION_1, Features::RING_PACKED];
        if event_idx {
            bits.push(Features::EVENT_IDX);
        }
        let features = Features::of(&bits);
        let mut ring = Vring::new(Device(mem.clone())).unwrap();
        ring.make_room(features).unwrap();
        ring.set_features(features);
        ring.set_num(mem.num() as u32).unwrap();
        ring.set_addrs(RingAddrs {
            desc: UserAddr::new(DESC),
            avail: UserAddr::new(DRIVER),
            used: UserAddr::new(DEVICE),
        });
        ring.start(Endian::Little, None).unwrap();
        Self {
            ring,
            table: Arc::new(MemTable::new([region].into_iter()).unwrap()),
            mem: mem.clone(),
            taken: 0,
        }
    }

    /// Takes a chain, looks at it, reads or writes its buffers, and completes it. Returns whether there
    /// was one.
    fn take(&mut self) -> bool {
        let (first, end) = (self.taken, self.taken + self.mem.descs);
        let mut segments = Segments::new().unwrap();
        let mut take = self.ring.take();
        let chain = take.next_chain(self.table.maps(), &mut segments, None);
        let Some(chain) = chain.expect("the ring is as it should be") else {
            return false;
        };
        assert_eq!(u64::from(chain.head), id(end - 1), "an id");
        let found: Vec<_> = (segments.as_slice().iter())
            .map(|segment| (segment.addr().get(), segment.len() as u64))
            .collect();
        let want: Vec<_> = (first..end)
            .map(|n| (self.mem.buffer_at(n), len(n)))
            .collect();
        assert_eq!(found, want, "a chain");
        for n in first..end {
            let buffer = self.mem.buffer(self.mem.buffer_at(n));
            if chain.writable == 0 {
                assert_eq!(buffer.get(), sent(n), "what the driver wrote");
            } else {
                buffer.set(received(n));
            }
        }
        if chain.writable > 0 {
            take.set_written(written(first) as u32);
        }
        take.complete();
        self.taken = end;
        true
    }

    /// Publishes what is completed; returns whether to call the driver.
    fn publish(&mut self) -> bool {
        self.ring.publish().unwrap();
        self.ring.wants_call().unwrap()
    }
}

/// What is checked; as in `ordering.rs`. Each chain has so many descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Kicks {
        event_idx: bool,
        descs: u64,
    },
    Calls {
        event_idx: bool,
    },
    /// The device uses several chains at once, and the driver sees all of them or none.
    Batch {
        descs: u64,
    },
    /// A VMM that clears the log reads the used descriptor that was written before it was marked.
    UsedLog,
}

const KICKS: [Model; 4] = [
    Model::Kicks {
        event_idx: false,
        descs: 1,
    },
    Model::Kicks {
        event_idx: true,
        descs: 1,
    },
    Model::Kicks {
        event_idx: false,
        descs: 2,
    },
    Model::Kicks {
        event_idx: true,
        descs: 2,
    },
];
const CALLS: [Model; 2] = [
    Model::Calls { event_idx: false },
    Model::Calls { event_idx: true },
];
const BATCHES: [Model; 2] = [Model::Batch { descs: 1 }, Model::Batch { descs: 2 }];

fn setup(event_idx: bool, descs: u64, left_out: Option<Barrier>) -> (Driver, Host) {
    let mem = Arc::new(Mem::new(descs, left_out));
    let host = Host::new(&mem, event_idx);
    let driver = Driver {
        mem,
        event_idx,
        added: 0,
        reaped: 0,
        writable: false,
    };
    (driver, host)
}

fn kicks(event_idx: bool, descs: u64, left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(event_idx, descs, left_out);
    if descs > 1 {
        // What is left of a chain behind its first descriptor is none the next time around.
        (0..CHAINS).for_each(|_| assert!(driver.add(true) && host.take()));
        host.publish();
        driver.reap(true);
    }
    let kick = Arc::new(Notify::new());
    let other = kick.clone();
    let end = host.taken + host.mem.num();
    let device = loom::thread::spawn(move || {
        host.ring.disable_kicks().unwrap();
        while host.taken < end {
            if host.take() {
                continue;
            }
            if !host.ring.enable_kicks().unwrap() {
                other.wait();
            }
            host.ring.disable_kicks().unwrap();
        }
    });
    for _ in 0..CHAINS {
        if driver.add(false) {
            kick.notify();
        }
    }
    device.join().unwrap();
}

fn calls(event_idx: bool, left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(event_idx, 1, left_out);
    // The first call is made whatever the place says; that is over when the threads start.
    driver.enable_calls();
    driver.add(true);
    assert!(host.take());
    host.publish();
    driver.reap(false);
    driver.disable_calls();
    for _ in 0..CHAINS {
        driver.add(true);
    }

    let call = Arc::new(Notify::new());
    let other = call.clone();
    let device = loom::thread::spawn(move || {
        while host.take() {
            if host.publish() {
                other.notify();
            }
        }
    });
    while driver.reaped < driver.added {
        if !driver.enable_calls() {
            call.wait();
        }
        driver.disable_calls();
        driver.reap(false);
    }
    device.join().unwrap();
}

fn batch(descs: u64, left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(false, descs, left_out);
    for _ in 0..CHAINS {
        // Of those of several descriptors nothing is looked at but whether they are there.
        driver.add(descs == 1);
    }
    // Orders nothing. Of each atomic loom knows the last access only: that the device has read a word
    // before it writes it would hide that the driver may read it after that. And behind a yield the
    // driver would see what is newest.
    let over = Arc::new(AtomicU32::new(0));
    let other = over.clone();
    let device = loom::thread::spawn(move || {
        while host.take() {}
        host.ring.publish().unwrap();
        other.store(1, Ordering::Relaxed);
    });
    if over.load(Ordering::Relaxed) != 0 {
        driver.reap(true);
    }
    device.join().unwrap();
    driver.reap(true);
    assert_eq!(driver.reaped, driver.added, "all of a batch");
}

fn used_log(left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(false, 1, left_out);
    driver.add(true);
    assert!(host.take());
    let table = host.table.clone();
    host.ring.set_used_log(Some(UsedLog {
        log: DirtyLog::new(UserAddr::new(LOG)),
        addr: GuestAddr::new(DEVICE),
        mem: Some(table),
    }));
    let device = loom::thread::spawn(move || host.ring.publish().unwrap());
    let mem = driver.mem.clone();
    if mem.log.swap(0, Ordering::AcqRel) != 0 {
        let word = driver.used_word(0);
        assert_eq!(word.is_some(), true, "a page is clean before it is written");
    }
    device.join().unwrap();
}

/// How far to look for an execution that fails.
const SEARCH: usize = 2000;

/// Runs every execution of a model, or without a barrier the first [`SEARCH`]. Returns how many that
/// were, or what one failed with.
fn run(model: Model, left_out: Option<Barrier>) -> Result<usize, String> {
    let executions = Arc::new(AtomicUsize::new(0));
    let count = executions.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = None;
    builder.max_permutations = left_out.map(|_| SEARCH);
    builder.checkpoint_interval = SEARCH;
    builder.max_duration = None;
    catch_unwind(move || {
        builder.check(move || {
            count.fetch_add(1, SeqCst);
            match model {
                Model::Kicks { event_idx, descs } => kicks(event_idx, descs, left_out),
                Model::Calls { event_idx } => calls(event_idx, left_out),
                Model::Batch { descs } => batch(descs, left_out),
                Model::UsedLog => used_log(left_out),
            }
        })
    })
    .map_err(|payload| match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => payload
            .downcast::<&str>()
            .map_or("?".into(), |s| s.to_string()),
    })?;
    Ok(executions.load(SeqCst))
}

/// What the execution that lacks a barrier fails with.
fn is_of_order(why: &str) -> bool {
    let reasons = [
        "deadlock",
        "Causality violation",
        // A chain of which a part is not there.
        "the ring is as it should be",
        "assertion `left == right` failed",
    ];
    reasons.iter().any(|reason| why.contains(reason))
}

fn holds(model: Model) {
    let executions = run(model, None).unwrap_or_else(|why| panic!("{model:?}: {why}"));
    println!("{model:?}: {executions} executions");
    assert!(executions > 1, "{model:?}");
}

#[test]
fn kicks_by_flags() {
    holds(KICKS[0]);
}

#[test]
fn kicks_by_place() {
    holds(KICKS[1]);
}

#[test]
fn kicks_for_chains_by_flags() {
    holds(KICKS[2]);
}

#[test]
fn kicks_for_chains_by_place() {
    holds(KICKS[3]);
}

#[test]
fn calls_by_flags() {
    holds(CALLS[0]);
}

#[test]
fn calls_by_place() {
    holds(CALLS[1]);
}

#[test]
fn batches_and_logs() {
    BATCHES.into_iter().for_each(holds);
    holds(Model::UsedLog);
}

#[test]
fn no_barrier_is_elsewhere() {
    for source in NO_SOURCES {
        assert!(!source.contains("_barrier();"), "a barrier without a model");
    }
    let room = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vring/packed");
    assert_eq!(
        std::fs::read_dir(room).unwrap().count(),
        SOURCES.len() - 1 + NO_SOURCES.len()
    );
}

#[test]
fn every_barrier_is_needed() {
    let device = device_barriers();
    assert!(!device.is_empty());
    for barrier in device.into_iter().chain(OTHERS) {
        let fails = |model| match run(model, Some(barrier)) {
            Ok(_) => false,
            Err(why) if is_of_order(&why) => {
                println!("{model:?} without {barrier:?}: {why}");
                true
            }
            Err(why) => panic!("{model:?} without {barrier:?}: {why}"),
        };
        let (kicks, calls, batches) = (KICKS.map(fails), CALLS.map(fails), BATCHES.map(fails));
        let log = fails(Model::UsedLog);
        assert!(
            kicks[0] || calls[0] || batches[0] || log,
            "nothing fails without {barrier:?}"
        );
        // However long the chains are, and whatever kicks and calls are asked for by.
        for same in [&kicks[..], &calls[..], &batches[..]] {
            assert!(
                same.iter().all(|fails| *fails == same[0]),
                "{barrier:?}: {same:?}"
            );
        }
    }
}
