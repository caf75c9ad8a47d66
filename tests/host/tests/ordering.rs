// SPDX-License-Identifier: GPL-2.0

//! The order of what a driver and the device do to a ring, in every execution that the memory model of
//! C11 allows (as far as loom knows it: <https://docs.rs/loom>).
//!
//! The device is `vring.rs` itself. Its memory is made of what loom watches: the flags, the indices and
//! the event indices are atomics, accessed relaxed, and all else is plain memory, of which two accesses
//! that nothing orders are an error. So the ring's barriers are the only order there is, and the model
//! can't differ from the code. `smp_rmb()`, `smp_wmb()` and `smp_mb()` are an acquire, a release and a
//! sequentially consistent fence. The driver is this file's, with the barriers that Linux's has
//! (`drivers/virtio/virtio_ring.c`), and so is the VMM that reads the log.
//!
//! That the barriers are enough is half of it. The other half: with any one of them left out, the
//! device's or the other side's, one of the models must find an execution that fails. The device's are
//! looked up in the source, so a new barrier fails here until a model needs it.
//!
//! The models are as small as their question allows, so that no bound on preemptions is needed. What a
//! C11 fence orders more than the kernel's barrier (a release fence also earlier reads) is not seen here,
//! but in `tests/litmus`.

use loom::{
    cell::Cell,
    sync::{
        atomic::{fence, AtomicU16, AtomicU32, Ordering},
        Notify,
    },
};
use std::{
    collections::BTreeMap,
    panic::{catch_unwind, Location},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        Arc,
    },
};
use vhost_net_host_tests::{
    features::Features,
    log::{Dirty, DirtyList, DirtyLog},
    memtable::{
        Access, Ahead, GuestAddr, Iotlb, Iova, MemTable, Miss, Region, Segments, READ_WRITE,
    },
    ring::Vring,
    usermem::{Segment, UserAddr, UserMemory},
    vring::{Endian, RingAddrs, UsedLog, Wanted},
    Tell,
};

use kernel::prelude::*;

/// The number of descriptors.
const NUM: u16 = 2;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
/// So that the entries of the used ring are at multiples of eight.
const USED: u64 = 0x3004;
/// A word for each descriptor.
const BUFFERS: u64 = 0x4000;
const LOG: u64 = 0x5000;
const USED_EVENT: u64 = AVAIL + 4 + 2 * NUM as u64;
const AVAIL_EVENT: u64 = USED + 4 + 8 * NUM as u64;

const F_WRITE: u64 = 2;
const NO_NOTIFY: u16 = 1;
const NO_INTERRUPT: u16 = 1;

/// A barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    /// The one in this line of a source file of the module.
    Device(&'static str, u32),
    /// The driver's write barrier between the chain and the available index.
    AddBeforeIndex,
    /// The driver's full barrier between the available index and its look whether a kick is wanted.
    IndexBeforeKick,
    /// The driver's read barrier between the used index and the entries.
    IndexBeforeEntries,
    /// The driver's full barrier between asking for calls and its second look at the used index.
    ArmBeforeIndex,
    /// The order that the VMM's exchange of the log has.
    Exchange,
}

/// The barriers of the other side.
const OTHERS: [Barrier; 5] = [
    Barrier::AddBeforeIndex,
    Barrier::IndexBeforeKick,
    Barrier::IndexBeforeEntries,
    Barrier::ArmBeforeIndex,
    Barrier::Exchange,
];

/// The files of the module that have barriers, by the end of their path.
const SOURCES: [(&str, &str); 5] = [
    ("/log.rs", include_str!("../../../log.rs")),
    ("/vring/split.rs", include_str!("../../../vring/split.rs")),
    (
        "/vring/split/ahead.rs",
        include_str!("../../../vring/split/ahead.rs"),
    ),
    (
        "/vring/split/events.rs",
        include_str!("../../../vring/split/events.rs"),
    ),
    (
        "/vring/used_log.rs",
        include_str!("../../../vring/used_log.rs"),
    ),
];

/// The device's barriers, as they are in the source.
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
    /// What is accessed while the other side may do so, too.
    words: BTreeMap<u64, AtomicU16>,
    log: AtomicU32,
    /// The rest, in words of eight bytes, and of two in the available ring.
    plain: BTreeMap<u64, Cell<u64>>,
    left_out: Option<Barrier>,
}

impl Mem {
    fn new(left_out: Option<Barrier>) -> Self {
        let words = [AVAIL, AVAIL + 2, USED_EVENT, USED, USED + 2, AVAIL_EVENT];
        let mut plain = Vec::new();
        for i in 0..u64::from(NUM) {
            plain.extend([DESC + 16 * i, DESC + 16 * i + 8]);
            plain.extend([AVAIL + 4 + 2 * i, USED + 4 + 8 * i, BUFFERS + 8 * i]);
        }
        Self {
            words: words.map(|at| (at, AtomicU16::new(0))).into(),
            log: AtomicU32::new(0),
            plain: plain.into_iter().map(|at| (at, Cell::new(0))).collect(),
            left_out,
        }
    }

    fn word(&self, addr: u64) -> &AtomicU16 {
        &self.words[&addr]
    }

    fn load(&self, addr: u64) -> u16 {
        self.word(addr).load(Ordering::Relaxed)
    }

    fn store(&self, addr: u64, value: u16) {
        self.word(addr).store(value, Ordering::Relaxed);
    }

    fn get(&self, addr: u64) -> u64 {
        self.plain[&addr].get()
    }

    fn put(&self, addr: u64, value: u64) {
        self.plain[&addr].set(value);
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
        let file = file.expect("a barrier outside the files that have some");
        self.0.fence(Barrier::Device(file, at.line()), order);
    }
}

impl UserMemory for &Device {
    fn access_ok(&self, _: UserAddr, _: u64) -> bool {
        true
    }

    fn read(&self, addr: UserAddr, buf: &mut [u8]) -> Result {
        let mut at = addr.get();
        let size = if at & !0xfff == AVAIL { 2 } else { 8 };
        for piece in buf.chunks_mut(size) {
            piece.copy_from_slice(&self.0.get(at).to_le_bytes()[..size]);
            at += size as u64;
        }
        Ok(())
    }

    fn write(&self, addr: UserAddr, buf: &[u8]) -> Result {
        let mut at = addr.get();
        for piece in buf.chunks(8) {
            self.0
                .put(at, u64::from_le_bytes(piece.try_into().unwrap()));
            at += 8;
        }
        Ok(())
    }

    fn load_u16(&self, addr: UserAddr) -> Result<u16> {
        let addr = addr.get();
        Ok(match self.0.words.get(&addr) {
            Some(word) => word.load(Ordering::Relaxed),
            // An entry of the available ring.
            None => self.0.get(addr) as u16,
        })
    }

    fn store_u16(&self, addr: UserAddr, value: u16) -> Result {
        self.0.store(addr.get(), value);
        Ok(())
    }

    fn read_u64x2_last_first(&self, _addr: UserAddr) -> Result<[u64; 2]> {
        Err(EFAULT)
    }

    fn store_u64(&self, _addr: UserAddr, _value: u64) -> Result {
        Err(EFAULT)
    }

    fn set_bits(&self, addr: UserAddr, mask: u32) -> Result {
        assert_eq!(addr.get(), LOG);
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

/// The driver's side of the ring. Its chain `n` has one buffer, and is the `n`-th that it adds.
struct Driver {
    mem: Arc<Mem>,
    event_idx: bool,
    added: u16,
    reaped: u16,
}

/// The descriptor of chain `n`, which is not that of the slot with its number.
fn head(n: u16) -> u16 {
    (n + 1) % NUM
}

/// Every chain has another length.
fn len(n: u16) -> u16 {
    8 - n
}

fn buffer(n: u16) -> u64 {
    BUFFERS + 8 * u64::from(head(n))
}

/// What the driver puts into the buffer of chain `n`, and what the device does.
fn sent(n: u16) -> u64 {
    0x100 + u64::from(n)
}

fn received(n: u16) -> u64 {
    0x200 + u64::from(n)
}

impl Driver {
    /// Adds a chain, which the device may write if `writable`, and makes it available. Returns whether
    /// a kick is wanted (`virtqueue_add_split`, `virtqueue_kick_prepare_split`).
    fn add(&mut self, writable: bool) -> bool {
        let (mem, n) = (&self.mem, self.added);
        if !writable {
            mem.put(buffer(n), sent(n));
        }
        let flags = if writable { F_WRITE } else { 0 };
        let desc = DESC + 16 * u64::from(head(n));
        mem.put(desc, buffer(n));
        mem.put(desc + 8, u64::from(len(n)) | flags << 32);
        mem.put(AVAIL + 4 + 2 * u64::from(n % NUM), u64::from(head(n)));

        mem.fence(Barrier::AddBeforeIndex, Ordering::Release);
        self.added += 1;
        mem.store(AVAIL + 2, self.added);
        mem.fence(Barrier::IndexBeforeKick, Ordering::SeqCst);
        if self.event_idx {
            // The index came past the one that the device named.
            mem.load(AVAIL_EVENT) == n
        } else {
            mem.load(USED) & NO_NOTIFY == 0
        }
    }

    /// Whether another used entry is there (`more_used_split`).
    fn has_used(&self) -> bool {
        self.mem.load(USED + 2) != self.reaped
    }

    /// Takes back what is used (`virtqueue_get_buf_ctx_split`).
    fn reap(&mut self) {
        while self.has_used() {
            let (mem, n) = (&self.mem, self.reaped);
            mem.fence(Barrier::IndexBeforeEntries, Ordering::Acquire);
            let elem = mem.get(USED + 4 + 8 * u64::from(n % NUM));
            assert_eq!(
                elem,
                u64::from(head(n)) | u64::from(len(n)) << 32,
                "a used entry"
            );
            assert_eq!(mem.get(buffer(n)), received(n), "what the device wrote");
            self.reaped += 1;
        }
    }

    /// Asks for calls; returns whether there is more already (`virtqueue_enable_cb_prepare_split`,
    /// `virtqueue_poll_split`).
    fn enable_calls(&self) -> bool {
        if self.event_idx {
            self.mem.store(USED_EVENT, self.reaped);
        } else {
            self.mem.store(AVAIL, 0);
        }
        self.mem.fence(Barrier::ArmBeforeIndex, Ordering::SeqCst);
        self.has_used()
    }

    /// Asks for none (`virtqueue_disable_cb_split`).
    fn disable_calls(&self) {
        if !self.event_idx {
            self.mem.store(AVAIL, NO_INTERRUPT);
        }
    }
}

/// The device's side: the ring of the module, and what `vhost_net.rs` does with it.
struct Host {
    ring: Vring<Device>,
    table: Arc<MemTable>,
    mem: Arc<Mem>,
    taken: u16,
}

impl Host {
    fn new(mem: &Arc<Mem>, event_idx: bool) -> Self {
        // Guest addresses are user addresses.
        let region = Region {
            guest: GuestAddr::new(0),
            size: 0x10000,
            user: UserAddr::new(0),
        };
        let mut ring = Vring::new(Device(mem.clone())).unwrap();
        ring.set_num(u32::from(NUM)).unwrap();
        ring.set_features(match event_idx {
            true => Features::of(&[Features::VERSION_1, Features::EVENT_IDX]),
            false => Features::of(&[Features::VERSION_1]),
        });
        ring.set_addrs(RingAddrs {
            desc: UserAddr::new(DESC),
            avail: UserAddr::new(AVAIL),
            used: UserAddr::new(USED),
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
        assert_eq!(chain.head, head(n), "an available entry");
        let [segment] = segments.as_slice() else {
            panic!("a descriptor");
        };
        assert_eq!(
            (segment.addr().get(), segment.len()),
            (buffer(n), usize::from(len(n))),
            "a descriptor"
        );
        if chain.writable == 0 {
            assert_eq!(self.mem.get(buffer(n)), sent(n), "what the driver wrote");
        } else {
            self.mem.put(buffer(n), received(n));
            take.set_written(u32::from(len(n)));
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

/// What is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    /// The driver makes chains available, one at a time, and kicks if that is wanted. The device takes
    /// them, and sleeps when there is none. Nobody sleeps for ever, and the device sees the chains.
    Kicks { event_idx: bool },
    /// The device uses chains, one at a time, and calls if that is wanted. The driver takes them back,
    /// and sleeps when there is none. Nobody sleeps for ever, and the driver sees the entries.
    Calls { event_idx: bool },
    /// The driver makes chains available, whose buffers no map holds. The device looks ahead, and sees
    /// the chains.
    Ahead,
    /// The device uses a chain and logs what it writes to the ring. A VMM that clears the log reads
    /// what was written before it was marked.
    UsedLog,
    /// The same with the buffer of a packet, whose guest or user address is known.
    PacketLog { user: bool },
}

const MODELS: [Model; 8] = [
    Model::Kicks { event_idx: false },
    Model::Kicks { event_idx: true },
    Model::Calls { event_idx: false },
    Model::Calls { event_idx: true },
    Model::Ahead,
    Model::UsedLog,
    Model::PacketLog { user: false },
    Model::PacketLog { user: true },
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
        // As `run` and `Queue::enable_kicks` of the module.
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
    // The first call is made whatever the driver says; that is over when the threads start.
    driver.add(true);
    assert!(host.take());
    host.publish();
    driver.reap();
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
        driver.reap();
    }
    device.join().unwrap();
}

fn ahead(left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(false, left_out);
    let device = loom::thread::spawn(move || {
        let mut iotlb = Iotlb::new(1);
        let (ring, perm) = (Iova::new(DESC), READ_WRITE);
        iotlb
            .tell(ring, BUFFERS - DESC, UserAddr::new(DESC), perm)
            .unwrap();
        host.ring.find(&iotlb).unwrap();
        let mut ahead = Ahead::new().unwrap();
        let first = Miss {
            addr: Iova::new(0),
            access: Access::Read,
        };
        ahead.begin(1024);
        ahead.push(first);
        host.ring.look_ahead(&iotlb, Wanted::default(), &mut ahead);
        // All buffers are in one page.
        let told: Vec<_> = ahead.iter().map(|(miss, _)| miss.addr.get()).collect();
        assert!([0, 1].contains(&(told.len() - 1)), "a look ahead");
        if let Some(&addr) = told.get(1) {
            assert_eq!(addr, buffer(0), "a descriptor");
        }
    });
    for _ in 0..NUM {
        driver.add(false);
    }
    device.join().unwrap();
}

/// Clears the log, and returns whether it was marked.
fn exchange(mem: &Mem) -> bool {
    mem.log.swap(
        0,
        match mem.left_out {
            Some(Barrier::Exchange) => Ordering::Relaxed,
            _ => Ordering::AcqRel,
        },
    ) != 0
}

fn used_log(left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(false, left_out);
    driver.add(true);
    assert!(host.take());
    host.ring.set_used_log(Some(UsedLog {
        log: DirtyLog::new(UserAddr::new(LOG)),
        addr: GuestAddr::new(USED),
        mem: None,
    }));
    let device = loom::thread::spawn(move || host.ring.publish().unwrap());

    let mem = driver.mem;
    let mut copied = 0;
    if exchange(&mem) {
        // The first mark is that of the entry.
        assert_eq!(
            mem.get(USED + 4),
            u64::from(head(0)) | u64::from(len(0)) << 32
        );
        copied = mem.load(USED + 2);
    }
    device.join().unwrap();
    if !exchange(&mem) {
        assert_eq!(copied, 1, "a clean page was not copied as it is");
    }
}

fn packet_log(user: bool, left_out: Option<Barrier>) {
    let (mut driver, mut host) = setup(false, left_out);
    driver.add(true);
    let device = loom::thread::spawn(move || {
        assert!(host.take());
        let (log, len) = (DirtyLog::new(UserAddr::new(LOG)), len(0));
        if user {
            let segment = Segment::new(UserAddr::new(buffer(0)), u64::from(len));
            let segments = [segment.unwrap()];
            log.mark_segments(host.ring.mem(), &host.table, &segments, usize::from(len))
        } else {
            let mut dirty = DirtyList::new().unwrap();
            let range = Dirty {
                addr: GuestAddr::new(buffer(0)),
                len: u64::from(len),
            };
            dirty.push(range).unwrap();
            log.mark_packet(host.ring.mem(), &dirty, usize::from(len))
        }
        .unwrap();
    });
    let mem = driver.mem;
    if exchange(&mem) {
        assert_eq!(mem.get(buffer(0)), received(0), "a packet");
    }
    device.join().unwrap();
}

/// How far to look for an execution that fails; each is among the first hundred.
const SEARCH: usize = 1000;

/// Runs every execution of a model, or without a barrier the first [`SEARCH`]. Returns how many that
/// were, or what one failed with.
fn run(model: Model, left_out: Option<Barrier>) -> Result<usize, String> {
    let executions = Arc::new(AtomicUsize::new(0));
    let count = executions.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = None;
    builder.max_permutations = left_out.map(|_| SEARCH);
    // When it looks whether that is reached.
    builder.checkpoint_interval = SEARCH;
    builder.max_duration = None;
    catch_unwind(move || {
        builder.check(move || {
            count.fetch_add(1, SeqCst);
            match model {
                Model::Kicks { event_idx } => kicks(event_idx, left_out),
                Model::Calls { event_idx } => calls(event_idx, left_out),
                Model::Ahead => ahead(left_out),
                Model::UsedLog => used_log(left_out),
                Model::PacketLog { user } => packet_log(user, left_out),
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

/// What the execution that lacks a barrier fails with: somebody sleeps for ever, two accesses are not in
/// order, or a value is not what it has to be.
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
fn kicks_by_index() {
    holds(Model::Kicks { event_idx: true });
}

#[test]
fn calls_by_flags() {
    holds(Model::Calls { event_idx: false });
}

#[test]
fn calls_by_index() {
    holds(Model::Calls { event_idx: true });
}

#[test]
fn looks_ahead() {
    holds(Model::Ahead);
}

#[test]
fn logs() {
    holds(Model::UsedLog);
    holds(Model::PacketLog { user: false });
    holds(Model::PacketLog { user: true });
}

/// The files of a folder of the module, and those of the rooms in it: folders beside a file of their name.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let room = path.with_extension("");
            if room.is_dir() {
                found.extend(sources(&room));
            }
            found.push(path);
        }
    }
    found
}

#[test]
fn no_barrier_is_elsewhere() {
    let module = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let sources = sources(module);
    assert!(sources.len() > SOURCES.len());
    for path in sources {
        let name = path.to_str().unwrap();
        // Of packed rings there is a file of its own.
        let packed = name.contains("/vring/packed");
        if packed || SOURCES.iter().any(|(file, _)| name.ends_with(file)) {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        assert!(
            !source.contains("_barrier();"),
            "{path:?} has a barrier without a model"
        );
    }
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
        // Kicks and calls are suppressed in two ways, and neither can do without it.
        assert!(
            fails[0] == fails[1] && fails[2] == fails[3],
            "{barrier:?}: {fails:?}"
        );
    }
}
