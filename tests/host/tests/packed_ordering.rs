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
    packed::{BY_PLACE, DISABLE, ENABLE, F_AVAIL, F_USED, F_WRITE},
    ring::Vring,
    usermem::{UserAddr, UserMemory},
    vring::{Endian, RingAddrs, UsedLog},
};

use kernel::prelude::*;

/// The number of descriptors; the third chain is in the second time around.
const NUM: u64 = 2;
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
    /// By descriptor: the address, and the other word.
    addrs: [Cell<u64>; NUM as usize],
    words: [AtomicU64; NUM as usize],
    /// The places and the flags of the driver's and the device's area.
    areas: [[AtomicU16; 2]; 2],
    buffers: [Cell<u64>; NUM as usize],
    log: AtomicU32,
    left_out: Option<Barrier>,
}

impl Mem {
    fn new(left_out: Option<Barrier>) -> Self {
        Self {
            addrs: [0; NUM as usize].map(Cell::new),
            words: [0; NUM as usize].map(AtomicU64::new),
            areas: [[0; 2]; 2].map(|area| area.map(AtomicU16::new)),
            buffers: [0; NUM as usize].map(Cell::new),
            log: AtomicU32::new(0),
            left_out,
        }
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

/// The place of the `n`-th descriptor that a side comes to.
fn place(n: u64) -> u16 {
    (n % NUM) as u16 | if (n / NUM) % 2 == 0 { 0x8000 } else { 0 }
}

/// The flags by which the `n`-th descriptor is available, and used.
fn available(n: u64) -> u16 {
    if place(n) & 0x8000 != 0 {
        F_AVAIL
    } else {
        F_USED
    }
}

fn used(n: u64) -> u16 {
    if place(n) & 0x8000 != 0 {
        F_AVAIL | F_USED
    } else {
        0
    }
}

fn buffer(n: u64) -> u64 {
    BUFFERS + 8 * (n % NUM)
}

/// Every chain has another length and id.
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

/// The driver's side of the ring: each of its chains is one descriptor.
struct Driver {
    mem: Arc<Mem>,
    event_idx: bool,
    added: u64,
    reaped: u64,
}

impl Driver {
    /// Adds a chain and makes it available. Returns whether a kick is wanted (`virtqueue_add_packed`,
    /// `virtqueue_kick_prepare_packed`).
    fn add(&mut self, writable: bool) -> bool {
        let (mem, n) = (&self.mem, self.added);
        let index = (n % NUM) as usize;
        if !writable {
            mem.buffer(buffer(n)).set(sent(n));
        }
        mem.addrs[index].set(buffer(n));
        let flags = available(n) | if writable { F_WRITE } else { 0 };
        mem.fence(Barrier::AddBeforeFlags, Ordering::Release);
        mem.words[index].store(word(n, flags), Ordering::Relaxed);
        self.added += 1;
        mem.fence(Barrier::FlagsBeforeKick, Ordering::SeqCst);
        match mem.area(DEVICE + 2).load(Ordering::Relaxed) {
            ENABLE => true,
            DISABLE => false,
            BY_PLACE => mem.area(DEVICE).load(Ordering::Relaxed) == place(n),
            other => panic!("flags {other}"),
        }
    }

    fn used_word(&self, n: u64) -> Option<u64> {
        let word = self.mem.words[(n % NUM) as usize].load(Ordering::Relaxed);
        let flags = (word >> 48) as u16;
        (flags & (F_AVAIL | F_USED) == used(n) && n < self.added).then_some(word)
    }

    /// Takes back what is used (`virtqueue_get_buf_ctx_packed`). `batch` says that all of it was
    /// published at once.
    fn reap(&mut self, batch: bool) {
        while let Some(found) = self.used_word(self.reaped) {
            let n = self.reaped;
            self.mem.fence(Barrier::FlagsBeforeRest, Ordering::Acquire);
            assert_eq!(found, word(n, used(n) | F_WRITE), "a used descriptor");
            assert_eq!(
                self.mem.buffer(buffer(n)).get(),
                received(n),
                "what the device wrote"
            );
            self.reaped += 1;
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
            .store(place(self.reaped), Ordering::Relaxed);
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
        ring.set_num(NUM as u32).unwrap();
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

    /// Takes a chain, looks at it, reads or writes its buffer, and completes it. Returns whether there
    /// was one.
    fn take(&mut self) -> bool {
        let n = self.taken;
        let mut segments = Segments::new().unwrap();
        let mut take = self.ring.take();
        let chain = take.next_chain(self.table.maps(), &mut segments, None);
        let Some(chain) = chain.expect("the ring is as it should be") else {
            return false;
        };
        assert_eq!(u64::from(chain.head), id(n), "an id");
        let [segment] = segments.as_slice() else {
            panic!("a descriptor");
        };
        assert_eq!(
            (segment.addr().get(), segment.len() as u64),
            (buffer(n), len(n)),
            "a descriptor"
        );
        if chain.writable == 0 {
            assert_eq!(
                self.mem.buffer(buffer(n)).get(),
                sent(n),
                "what the driver wrote"
            );
        } else {
            self.mem.buffer(buffer(n)).set(received(n));
            take.set_written(len(n) as u32);
        }
        take.complete();
        self.taken += 1;
        true
    }

    /// Publishes what is completed; returns whether to call the driver.
    fn publish(&mut self) -> bool {
        self.ring.publish().unwrap();
        self.ring.wants_call().unwrap()
    }
}

/// What is checked; as in `ordering.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    Kicks {
        event_idx: bool,
    },
    Calls {
        event_idx: bool,
    },
    /// The device uses several chains at once, and the driver sees all of them or none.
    Batch,
    /// A VMM that clears the log reads the used descriptor that was written before it was marked.
    UsedLog,
}

const MODELS: [Model; 6] = [
    Model::Kicks { event_idx: false },
    Model::Kicks { event_idx: true },
    Model::Calls { event_idx: false },
    Model::Calls { event_idx: true },
    Model::Batch,
    Model::UsedLog,
];

fn setup(event_idx: bool, left_out: Option<Barrier>) -> (Driver, Host) {
    let mem = Arc::new(Mem::new(left_out));
    let host = Host::new(&mem, event_idx);
    let driver = Driver {
        mem,
        event_idx,
        added: 0,
        reaped: 0,
    };
    (driver, host)
}

fn kicks(event_idx: bool, left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(event_idx, left_out);
    let kick = Arc::new(Notify::new());
    let other = kick.clone();
    let device = loom::thread::spawn(move || {
        host.ring.disable_kicks().unwrap();
        while host.taken < NUM {
            if host.take() {
                continue;
            }
            if !host.ring.enable_kicks().unwrap() {
                other.wait();
            }
            host.ring.disable_kicks().unwrap();
        }
    });
    for _ in 0..NUM {
        if driver.add(false) {
            kick.notify();
        }
    }
    device.join().unwrap();
}

fn calls(event_idx: bool, left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(event_idx, left_out);
    // The first call is made whatever the place says; that is over when the threads start.
    driver.enable_calls();
    driver.add(true);
    assert!(host.take());
    host.publish();
    driver.reap(false);
    driver.disable_calls();
    for _ in 0..NUM {
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

fn batch(left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(false, left_out);
    for _ in 0..NUM {
        driver.add(true);
    }
    let device = loom::thread::spawn(move || {
        while host.take() {}
        host.ring.publish().unwrap();
    });
    while driver.reaped < driver.added {
        driver.reap(true);
        loom::thread::yield_now();
    }
    device.join().unwrap();
}

fn used_log(left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(false, left_out);
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
                Model::Kicks { event_idx } => kicks(event_idx, left_out),
                Model::Calls { event_idx } => calls(event_idx, left_out),
                Model::Batch => batch(left_out),
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
    holds(Model::Kicks { event_idx: false });
}

#[test]
fn kicks_by_place() {
    holds(Model::Kicks { event_idx: true });
}

#[test]
fn calls_by_flags() {
    holds(Model::Calls { event_idx: false });
}

#[test]
fn calls_by_place() {
    holds(Model::Calls { event_idx: true });
}

#[test]
fn batches_and_logs() {
    holds(Model::Batch);
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
        let fails = MODELS.map(|model| match run(model, Some(barrier)) {
            Ok(_) => false,
            Err(why) if is_of_order(&why) => {
                println!("{model:?} without {barrier:?}: {why}");
                true
            }
            Err(why) => panic!("{model:?} without {barrier:?}: {why}"),
        });
        assert!(fails.contains(&true), "nothing fails without {barrier:?}");
        assert!(
            fails[0] == fails[1] && fails[2] == fails[3],
            "{barrier:?}: {fails:?}"
        );
    }
}
