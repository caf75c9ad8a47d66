// SPDX-License-Identifier: GPL-2.0

//! The generic vhost device.
//!
//! A [`Device`] has an owner, a worker thread and queues. User space sets it up through ioctls;
//! the worker then runs a queue when its driver kicks or its backend gets ready. What the device
//! is, a [`Driver`] says: nothing here knows of networking.
//!
//! Lock order: the device's state, then its queues by their index, then the IOTLB, then the
//! misses. All that the worker touches is under its queue's mutex. The worker is never stopped,
//! and never waited for, under the mutex of a queue.

#![forbid(unsafe_code)]

use crate::{
    features::{
        self,
        Features, //
    },
    log::DirtyLog,
    memtable::{
        GuestAddr,
        Iotlb,
        Iova,
        MemTable,
        Region,
        READ_WRITE, //
    },
    messages::Misses,
    sys::{
        eventfd::{
            EventFdCtx,
            EventFdFile, //
        },
        kthread::Kthread,
        poll::{
            self,
            PollEntry,
            Wake, //
        },
        sched::cond_resched,
        uaccess::CurrentMm,
        ubuf::UserBufs,
        vhost_task::{
            VhostTask,
            Work, //
        }, //
    },
    uapi::{
        self,
        Arg, //
    },
    usermem::{
        UserAddr,
        UserMemory, //
    },
    vring::{
        Endian,
        Fault,
        RingAddrs,
        UsedLog,
        Vring, //
    }, //
};
use kernel::{
    fs::File,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    mm::MmWithUser,
    new_condvar,
    new_mutex,
    new_poll_condvar,
    new_spinlock,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        lock::mutex::MutexGuard,
        poll::{
            PollCondVar,
            PollTable, //
        },
        Arc,
        ArcBorrow,
        CondVar,
        Mutex,
        SpinLock, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// The number of queues that a device has.
pub const QUEUES: usize = 2;

/// A kind of vhost device.
pub trait Driver: Sized + Send + Sync + 'static {
    /// The names of the queues in `fdinfo`.
    const QUEUE_NAMES: [&'static CStr; QUEUES];

    /// What the driver keeps for each queue, under the queue's mutex.
    type Queue: QueueState;

    /// Makes the state of queue `index`. Fails with [`ENOMEM`].
    fn new_queue(index: usize) -> Result<Self::Queue>;

    /// Moves what can be moved through queue `index`. Called by the worker.
    fn run(device: &Device<Self>, index: usize, cause: Cause);

    /// Waits until nothing that was begun before uses guest memory any more.
    ///
    /// The caller has the device's state locked, and no queue.
    fn flush(device: &Device<Self>);
}

/// What a [`Driver`] keeps for a queue.
pub trait QueueState: Send + Unpin {
    /// The kind of backend that the queue has, if it has one: then it is running.
    fn backend(&self) -> Option<&'static str>;

    /// What a [reset](Self::reset) leaves to be dropped.
    type Remains;

    /// Lets go of the backend, and of all that depends on the owner. What that has to wait for is
    /// returned, to be dropped when the queue is not locked.
    fn reset(&mut self) -> Self::Remains;
}

/// Why a queue runs.
#[derive(Clone, Copy, Debug)]
pub struct Cause {
    /// Its driver kicked it.
    pub kicked: bool,
    /// Something waits until it has run.
    pub hurried: bool,
}

/// Pieces of work, a bit each, and above them the number of flushes that wait for it.
///
/// One word holds it all, so that a flush comes after the work that was there before it.
#[derive(Clone, Copy)]
struct Word(u32);

static_assert!(2 * QUEUES <= 8);

impl Word {
    const FLUSH: u32 = 1 << 8;

    const fn kick(index: usize) -> u32 {
        1 << index
    }

    const fn ready(index: usize) -> u32 {
        1 << (index + QUEUES)
    }

    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// Whether a queue behind this one has something to do.
    fn has_after(self, index: usize) -> bool {
        (index + 1..QUEUES).any(|index| self.has(Self::kick(index) | Self::ready(index)))
    }

    fn flushes(self) -> u32 {
        self.0 / Self::FLUSH
    }
}

/// How far the flushes of a worker are.
struct Flushes {
    /// The number of flushes that were asked for, which wraps.
    asked: u32,
    /// The number of flushes that are done; they are done in the order they were asked for.
    done: u32,
    /// The worker does nothing any more.
    killed: bool,
}

/// What a worker has to do.
#[pin_data]
struct WorkSet {
    word: Atomic<u32>,
    #[pin]
    flushes: Mutex<Flushes>,
    #[pin]
    flushed: CondVar,
}

impl WorkSet {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                word: Atomic::new(0),
                flushes <- new_mutex!(Flushes { asked: 0, done: 0, killed: false }),
                flushed <- new_condvar!(),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a piece of work. Returns whether it is new.
    fn add(&self, bit: u32) -> bool {
        let mut old = self.word.load(Relaxed);
        loop {
            // Fully ordered also when the bit is there: what the caller did before is seen by the
            // worker, which takes the bit with full order before it looks.
            match self.word.cmpxchg(old, old | bit, Full) {
                Ok(_) => return old & bit == 0,
                Err(now) => old = now,
            }
        }
    }
}

/// What the thread of a [`Worker`] runs.
struct Runner<D: Driver> {
    set: Arc<WorkSet>,
    device: Arc<Device<D>>,
}

impl<D: Driver> Work for Runner<D> {
    type Batch = Word;

    fn take(&self) -> Option<Word> {
        match self.set.word.xchg(0, Full) {
            0 => None,
            word => Some(Word(word)),
        }
    }

    fn run(&self, word: Word) {
        for index in 0..QUEUES {
            let kicked = word.has(Word::kick(index));
            if kicked || word.has(Word::ready(index)) {
                self.device.let_watchers_in();
                let hurried = word.flushes() > 0 || word.has_after(index);
                D::run(&self.device, index, Cause { kicked, hurried });
                cond_resched();
            }
        }
        if word.flushes() > 0 {
            let mut flushes = self.set.flushes.lock();
            flushes.done = flushes.done.wrapping_add(word.flushes());
            self.set.flushed.notify_all();
        }
    }

    fn killed(&self) {
        self.set.flushes.lock().killed = true;
        self.set.flushed.notify_all();
    }
}

/// The thread of a [`Worker`].
enum Thread<D: Driver> {
    /// One of the owner's own: in its cgroups, under its limits, and killed with it.
    Owner(VhostTask<Runner<D>>),
    /// One of the kernel's, in the owner's cgroups.
    Kernel(Kthread<Runner<D>>),
}

impl<D: Driver> Thread<D> {
    fn wake(&self) {
        match self {
            Self::Owner(task) => task.wake(),
            Self::Kernel(task) => task.wake(),
        }
    }
}

/// The thread that runs the queues of a device, named `vhost-PID` after the owner.
pub struct Worker<D: Driver> {
    set: Arc<WorkSet>,
    thread: Thread<D>,
}

impl<D: Driver> Worker<D> {
    /// Makes the worker of a device that belongs to the current process, whose address space is
    /// `mm`. `fork` says that the thread is to be one of that process.
    fn new(device: Arc<Device<D>>, mm: &MmWithUser, fork: bool) -> Result<Arc<Self>> {
        let set = WorkSet::new()?;
        let runner = Arc::new(
            Runner {
                set: set.clone(),
                device,
            },
            GFP_KERNEL,
        )?;
        let name = CString::try_from_fmt(fmt!("vhost-{}", current!().pid()))?;
        let thread = if fork {
            Thread::Owner(VhostTask::spawn(runner, &name)?)
        } else {
            Thread::Kernel(Kthread::spawn(runner, &name, mm.into())?)
        };
        Ok(Arc::new(Self { set, thread }, GFP_KERNEL)?)
    }

    /// Whether there is something to do that was not begun.
    pub fn has_work(&self) -> bool {
        self.set.word.load(Relaxed) != 0
    }

    /// Waits until all work that was there before is done, or never will be.
    fn flush(&self) {
        let mut flushes = self.set.flushes.lock();
        if flushes.killed {
            return;
        }
        flushes.asked = flushes.asked.wrapping_add(1);
        let ours = flushes.asked;
        // Under the lock: the order of the numbers is the order in the word.
        self.set.word.fetch_add(Word::FLUSH, Full);
        self.thread.wake();
        while !flushes.killed && (ours.wrapping_sub(flushes.done) as i32) > 0 {
            self.set.flushed.wait(&mut flushes);
        }
    }
}

impl<D: Driver> Wake for Worker<D> {
    fn wake(&self, bit: u32) {
        if self.set.add(bit) {
            self.thread.wake();
        }
    }
}

/// An entry that makes the worker run a queue when a file gets ready.
pub type QueuePoll<D> = Pin<KBox<PollEntry<Worker<D>>>>;

/// Makes the entry that waits for the backend of queue `index`, for the events of `mask`.
///
/// Fails with [`ENOMEM`].
pub fn backend_poll<D: Driver>(index: usize, mask: u32) -> Result<QueuePoll<D>> {
    KBox::pin_init(PollEntry::new(mask, Word::ready(index)), GFP_KERNEL)
}

/// Makes the keeper of the packets that queue `index` sends from guest memory. `worker` runs the
/// queue when some of them are done.
///
/// Fails with [`ENOMEM`].
pub fn user_bufs<D: Driver>(index: usize, worker: Arc<Worker<D>>) -> Result<UserBufs<Worker<D>>> {
    UserBufs::new(worker, Word::ready(index))
}

/// What a queue did. Printed in `fdinfo`; it only ever grows.
#[derive(Default)]
pub struct Stats {
    /// Packets that went through.
    pub packets: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
    /// Kicks that were seen; several that come close together are seen as one.
    pub kicks: u64,
    /// Calls that were signalled.
    pub calls: u64,
    /// Times that buffers were given back without a call, because the driver asked for none.
    pub calls_suppressed: u64,
    /// Packets that were lost, faults that stopped the queue, and writes that could not be logged.
    pub errors: u64,
}

/// A queue of a device.
pub struct Queue<D: Driver> {
    /// The ring.
    pub ring: Vring<CurrentMm>,
    /// Guest memory, once the owner has described it.
    pub mem: Option<Arc<MemTable>>,
    /// What knows the driver's addresses, if they are not guest physical ones. A turn of the
    /// worker has it locked: who has changed it knows that what was there before is no longer
    /// used, but for packets that are on their way without a copy.
    pub iotlb: Option<Arc<Mutex<Iotlb>>>,
    /// What the driver accepted.
    pub features: Features,
    /// What the device keeps.
    pub state: D::Queue,
    /// What the queue did.
    pub stats: Stats,
    /// Why the queue stopped last.
    last_fault: Option<Fault>,
    index: usize,
    worker: Option<Arc<Worker<D>>>,
    kick: Option<EventFdFile>,
    kick_poll: QueuePoll<D>,
    call: Option<EventFdCtx>,
    err: Option<EventFdCtx>,
    log_event: Option<Arc<EventFdCtx>>,
    log: DirtyLog,
    /// Where the used ring is logged, if that was asked for.
    used_log: Option<GuestAddr>,
    /// The byte order of a legacy driver.
    legacy_endian: Endian,
    busyloop_timeout: u32,
    /// The type of the messages about this queue.
    message_kind: u32,
}

impl<D: Driver> Queue<D> {
    fn new(index: usize) -> Result<Self> {
        Ok(Self {
            ring: Vring::new(CurrentMm)?,
            mem: None,
            iotlb: None,
            features: Features::default(),
            state: D::new_queue(index)?,
            stats: Stats::default(),
            last_fault: None,
            index,
            worker: None,
            kick: None,
            kick_poll: KBox::pin_init(PollEntry::new(poll::IN, Word::kick(index)), GFP_KERNEL)?,
            call: None,
            err: None,
            log_event: None,
            log: DirtyLog::default(),
            used_log: None,
            legacy_endian: Endian::NATIVE,
            busyloop_timeout: 0,
            message_kind: uapi::IOTLB_MSG,
        })
    }

    /// Puts the queue into the state of a new device, but for what the device keeps, which was
    /// reset before. The worker does not run it any more.
    fn reset(&mut self) {
        self.kick_poll.as_mut().stop();
        self.last_fault = None;
        self.ring.reset();
        self.mem = None;
        self.iotlb = None;
        self.features = Features::default();
        self.worker = None;
        self.kick = None;
        self.call = None;
        self.err = None;
        self.log_event = None;
        self.log = DirtyLog::default();
        self.used_log = None;
        self.legacy_endian = Endian::NATIVE;
        self.busyloop_timeout = 0;
        self.message_kind = uapi::IOTLB_MSG;
    }

    /// Whether the queue has a backend.
    fn is_running(&self) -> bool {
        self.state.backend().is_some()
    }

    /// The log of guest memory, if the driver's features ask for it.
    pub fn log(&self) -> Option<DirtyLog> {
        self.features.has(Features::LOG_ALL).then_some(self.log)
    }

    /// Tells the owner that something was logged.
    pub fn signal_log(&self) {
        if let Some(event) = &self.log_event {
            event.signal();
        }
    }

    /// Makes the worker run this queue again, after the others.
    pub fn run_again(&self) {
        if let Some(worker) = &self.worker {
            worker.wake(Word::ready(self.index));
        }
    }

    /// How long the worker looks for work before it waits for it; none if it does not.
    pub fn busyloop_timeout(&self) -> Option<Delta> {
        // A unit is the microsecond of the C driver: 1024 ns.
        let timeout = i64::from(self.busyloop_timeout) << 10;
        (timeout > 0).then_some(Delta::from_nanos(timeout))
    }

    /// The worker that runs this queue, once there is an owner.
    pub fn worker(&self) -> Option<Arc<Worker<D>>> {
        self.worker.clone()
    }

    /// The queue's number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The queue can't go on: tells the owner, and whoever looks at `fdinfo`.
    pub fn fault(&mut self, fault: Fault) {
        self.stats.errors += 1;
        self.last_fault = Some(fault);
        if let Some(err) = &self.err {
            err.signal();
        }
    }

    /// Whether the ring is where the owner put it.
    pub fn is_set_up(&self) -> bool {
        self.ring.addrs() != RingAddrs::default()
    }

    fn try_start(&mut self) -> Result<(), Fault> {
        let endian = if self.features.has(Features::VERSION_1) {
            Endian::Little
        } else {
            self.legacy_endian
        };
        let iotlb = self.iotlb.clone();
        let iotlb = iotlb.as_ref().map(|iotlb| iotlb.lock());
        let started = self.ring.start(endian, iotlb.as_deref());
        self.after_used_write();
        started
    }

    /// Asks the driver not to kick. Fails as [`Vring::disable_kicks`].
    pub fn disable_kicks(&mut self) -> Result<(), Fault> {
        let result = self.ring.disable_kicks();
        self.after_used_write();
        result
    }

    /// Asks the driver to kick. Returns whether it made something available meanwhile; then kicks
    /// are disabled again, and the caller looks for it.
    ///
    /// Fails as [`Vring::enable_kicks`].
    pub fn enable_kicks(&mut self) -> Result<bool, Fault> {
        let more = self.ring.enable_kicks();
        self.after_used_write();
        if let Ok(true) = more {
            self.disable_kicks()?;
        }
        more
    }

    /// Gives the completed chains to the driver, and calls it if it wants that.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written; then they are still completed.
    pub fn publish(&mut self) -> Result<(), Fault> {
        if self.ring.unpublished() == 0 {
            return Ok(());
        }
        let published = self.ring.publish();
        self.after_used_write();
        published?;
        let Some(call) = &self.call else {
            return Ok(());
        };
        // When in doubt, call: a driver that is called for nothing only looks.
        let wanted = self.ring.wants_call();
        if let Ok(false) = wanted {
            self.stats.calls_suppressed += 1;
        } else {
            call.signal();
            self.stats.calls += 1;
        }
        wanted.map(|_| ())
    }

    fn after_used_write(&mut self) {
        if self.ring.logged() {
            self.signal_log();
        }
        if self.ring.log_failed() {
            self.stats.errors += 1;
        }
    }

    /// Whether `mem` may be this queue's memory: all of it is in user space, and so is the part of
    /// the log at `log` that stands for it.
    fn mem_access_ok(&self, mem: Option<&Arc<MemTable>>, log: Option<DirtyLog>) -> bool {
        let Some(mem) = mem else {
            return false;
        };
        mem.access_ok(self.ring.mem())
            && log.is_none_or(|log| {
                mem.ranges()
                    .all(|(addr, len)| log.access_ok(self.ring.mem(), addr, len))
            })
    }

    /// Whether the used ring may be logged at `addr` of `log`.
    fn used_log_access_ok(&self, log: DirtyLog, addr: Option<GuestAddr>) -> bool {
        // With an IOTLB it is found in guest memory, whose log is looked at anyway.
        self.iotlb.is_some()
            || addr.is_none_or(|addr| log.access_ok(self.ring.mem(), addr, self.ring.used_size()))
    }

    /// Whether the log may be at `log`.
    fn log_access_ok(&self, log: DirtyLog) -> bool {
        let all = self.features.has(Features::LOG_ALL).then_some(log);
        self.mem_access_ok(self.mem.as_ref(), all) && self.used_log_access_ok(log, self.used_log)
    }

    /// Whether the ring may be at `addrs`. What an IOTLB says of them is looked at in each turn.
    fn ring_access_ok(&self, addrs: RingAddrs) -> bool {
        self.iotlb.is_some() || self.ring.access_ok(addrs)
    }

    /// Whether all that the queue needs is in user space: it can run.
    pub fn access_ok(&self) -> bool {
        self.log_access_ok(self.log) && self.ring_access_ok(self.ring.addrs())
    }

    fn update_used_log(&mut self) {
        let (log, mem) = (self.log, &self.mem);
        self.ring.set_used_log(self.used_log.map(|addr| UsedLog {
            log,
            addr,
            mem: mem.clone(),
        }));
    }

    /// Goes on with another memory table.
    fn set_mem(&mut self, mem: Arc<MemTable>) {
        self.mem = Some(mem);
        self.update_used_log();
    }

    /// Goes on with another IOTLB, or with none. If there was one and is none, or the other way
    /// round, the addresses that the owner gave mean something else now: they are forgotten.
    fn set_iotlb(&mut self, iotlb: Option<Arc<Mutex<Iotlb>>>) {
        let moved = iotlb.is_some() != self.iotlb.is_some();
        self.ring.set_behind_iotlb(iotlb.is_some());
        self.iotlb = iotlb;
        if moved {
            self.ring.set_addrs(RingAddrs::default());
            self.used_log = None;
            self.update_used_log();
        }
    }

    fn set_num(&mut self, arg: Arg) -> Result {
        if self.is_running() {
            return Err(EBUSY);
        }
        let state: uapi::VringState = arg.read()?;
        self.ring.set_num(state.num)
    }

    fn set_addr(&mut self, arg: Arg) -> Result {
        let addr: uapi::VringAddr = arg.read()?;
        if addr.flags & !uapi::VRING_F_LOG != 0 {
            return Err(EOPNOTSUPP);
        }
        let fits = |addr| usize::try_from(addr).is_ok();
        if !fits(addr.desc_user_addr) || !fits(addr.used_user_addr) || !fits(addr.avail_user_addr) {
            return Err(EFAULT);
        }
        // What the ring's parts are aligned to (virtio 1.3, section 2.7); of the descriptors it is
        // not asked, for these are copied.
        if addr.avail_user_addr % 2 != 0
            || addr.used_user_addr % 4 != 0
            || addr.log_guest_addr % 4 != 0
        {
            return Err(EINVAL);
        }
        let addrs = RingAddrs {
            desc: UserAddr::new(addr.desc_user_addr),
            avail: UserAddr::new(addr.avail_user_addr),
            used: UserAddr::new(addr.used_user_addr),
        };
        let used_log =
            (addr.flags & uapi::VRING_F_LOG != 0).then_some(GuestAddr::new(addr.log_guest_addr));
        // If the queue does not run, its size may not be known yet: it is checked when it starts.
        if self.is_running()
            && !(self.ring_access_ok(addrs) && self.used_log_access_ok(self.log, used_log))
        {
            return Err(EINVAL);
        }
        self.ring.set_addrs(addrs);
        self.used_log = used_log;
        self.update_used_log();
        Ok(())
    }

    fn set_base(&mut self, arg: Arg) -> Result {
        if self.is_running() {
            return Err(EBUSY);
        }
        let state: uapi::VringState = arg.read()?;
        self.ring
            .set_base(u16::try_from(state.num).map_err(|_| EINVAL)?);
        Ok(())
    }

    #[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
    fn set_endian(&mut self, arg: Arg) -> Result {
        if self.is_running() {
            return Err(EBUSY);
        }
        let state: uapi::VringState = arg.read()?;
        self.legacy_endian = match state.num {
            uapi::VRING_LITTLE_ENDIAN => Endian::Little,
            uapi::VRING_BIG_ENDIAN => Endian::Big,
            _ => return Err(EINVAL),
        };
        Ok(())
    }

    #[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
    fn get_endian(&self, arg: Arg) -> Result {
        let endian = match self.legacy_endian {
            Endian::Little => uapi::VRING_LITTLE_ENDIAN,
            Endian::Big => uapi::VRING_BIG_ENDIAN,
        };
        self.write_state(arg, endian)
    }

    fn write_state(&self, arg: Arg, num: u32) -> Result {
        arg.write(&uapi::VringState {
            index: self.index as u32,
            num,
        })
    }

    /// Waits for kicks at another file. Returns whether there was one before, which the worker may
    /// still be at.
    fn set_kick(&mut self, arg: Arg) -> Result<bool> {
        let kick = read_file(arg, EventFdFile::from_fd)?;
        let same = match (&kick, &self.kick) {
            (Some(new), Some(old)) => new.is_same(old),
            (new, old) => new.is_none() && old.is_none(),
        };
        if same {
            return Ok(false);
        }
        self.kick_poll.as_mut().stop();
        let had = core::mem::replace(&mut self.kick, kick).is_some();
        if let (Some(kick), Some(worker)) = (&self.kick, &self.worker) {
            self.kick_poll.as_mut().start(kick, worker.clone())?;
        }
        Ok(had)
    }

    fn show(&self, m: &SeqFile) {
        let name = D::QUEUE_NAMES.get(self.index).copied().unwrap_or(c"queue");
        let backend = self.state.backend().unwrap_or("none");
        let stats = &self.stats;
        seq_print!(m, "{name}-size:\t{}\n", self.ring.num());
        seq_print!(m, "{name}-backend:\t{backend}\n");
        seq_print!(m, "{name}-packets:\t{}\n", stats.packets);
        seq_print!(m, "{name}-bytes:\t{}\n", stats.bytes);
        seq_print!(m, "{name}-kicks:\t{}\n", stats.kicks);
        seq_print!(m, "{name}-calls:\t{}\n", stats.calls);
        seq_print!(m, "{name}-calls-suppressed:\t{}\n", stats.calls_suppressed);
        seq_print!(m, "{name}-errors:\t{}\n", stats.errors);
        let fault = self.last_fault.map_or("none", |fault| fault.why);
        seq_print!(m, "{name}-last-fault:\t{fault}\n");
    }
}

/// Reads a `struct vhost_vring_file`, and opens what it names; [`None`] if that is nothing.
fn read_file<T>(arg: Arg, open: impl FnOnce(i32) -> Result<T>) -> Result<Option<T>> {
    let file: uapi::VringFile = arg.read()?;
    open_file(file.fd, open)
}

fn open_file<T>(fd: i32, open: impl FnOnce(i32) -> Result<T>) -> Result<Option<T>> {
    if fd == uapi::FILE_UNBIND {
        return Ok(None);
    }
    open(fd).map(Some)
}

/// The process that a device belongs to, and what works for it.
struct Owner<D: Driver> {
    mm: ARef<MmWithUser>,
    worker: Arc<Worker<D>>,
}

/// What the owner set for the whole device.
pub struct State<D: Driver> {
    owner: Option<Owner<D>>,
    mem: Option<Arc<MemTable>>,
    iotlb: Option<Arc<Mutex<Iotlb>>>,
    log_event: Option<Arc<EventFdCtx>>,
    /// The next owner's worker is a thread of the owner's process.
    fork: bool,
}

impl<D: Driver> State<D> {
    fn new() -> Self {
        Self {
            owner: None,
            mem: None,
            iotlb: None,
            log_event: None,
            // Without the option to choose, it is one of the owner's.
            fork: cfg!(not(CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL))
                || crate::parameters::fork_from_owner_default(),
        }
    }

    /// Whether the device has an owner.
    pub fn has_owner(&self) -> bool {
        self.owner.is_some()
    }

    /// Fails with [`EPERM`] unless the current task shares the owner's memory.
    pub fn check_owner(&self) -> Result {
        let current = current!();
        match (&self.owner, current.mm()) {
            (Some(owner), Some(mm)) if core::ptr::eq(&*owner.mm, mm) => Ok(()),
            _ => Err(EPERM),
        }
    }

    /// Waits until the worker has done all that it had to do before.
    ///
    /// The caller has no queue locked.
    pub fn flush(&self) {
        if let Some(owner) = &self.owner {
            owner.worker.flush();
        }
    }
}

/// A vhost device.
#[pin_data]
pub struct Device<D: Driver> {
    #[pin]
    state: Mutex<State<D>>,
    #[pin]
    first: Mutex<Queue<D>>,
    #[pin]
    second: Mutex<Queue<D>>,
    /// What the owner is to be told.
    #[pin]
    misses: SpinLock<Misses<QUEUES>>,
    /// Who waits for that.
    #[pin]
    readers: PollCondVar,
    /// How many want to look at the queues.
    watchers: Atomic<u32>,
    /// How many of the owner's threads wait for what the worker may have locked.
    waiters: Atomic<u32>,
}

impl<D: Driver> Device<D> {
    /// Makes a device without an owner. Fails with [`ENOMEM`].
    pub fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                state <- new_mutex!(State::new(), "vhost_device"),
                // A class for each queue: the lock validator knows them apart.
                first <- new_mutex!(Queue::new(0)?, "vhost_first_queue"),
                second <- new_mutex!(Queue::new(1)?, "vhost_second_queue"),
                misses <- new_spinlock!(Misses::new(), "vhost_misses"),
                readers <- new_poll_condvar!("vhost_readers"),
                watchers: Atomic::new(0),
                waiters: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    /// Locks what the owner set.
    pub fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock()
    }

    fn find_queue(&self, index: usize) -> Option<&Mutex<Queue<D>>> {
        match index {
            0 => Some(&self.first),
            1 => Some(&self.second),
            _ => None,
        }
    }

    /// Locks what the worker may have locked, for the owner. A worker that has nothing to do lets
    /// go of it.
    fn lock_soon<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        self.waiters.fetch_add(1, Relaxed);
        let guard = mutex.lock();
        self.waiters.fetch_sub(1, Relaxed);
        guard
    }

    /// Locks a queue, for the owner. Fails with [`ENOBUFS`] if there is none of this index.
    pub fn queue(&self, index: usize) -> Result<MutexGuard<'_, Queue<D>>> {
        Ok(self.lock_soon(self.find_queue(index).ok_or(ENOBUFS)?))
    }

    /// Locks a queue, for the worker.
    pub fn queue_to_run(&self, index: usize) -> Option<MutexGuard<'_, Queue<D>>> {
        Some(self.find_queue(index)?.lock())
    }

    /// Locks the queue beside the one of this index, for a worker that has that one locked. It may
    /// be in use.
    pub fn try_other_queue(&self, index: usize) -> Option<MutexGuard<'_, Queue<D>>> {
        self.find_queue(1usize.checked_sub(index)?)?.try_lock()
    }

    /// Whether somebody waits for what the worker has locked.
    pub fn is_waited_for(&self) -> bool {
        self.waiters.load(Relaxed) > 0 || self.watchers.load(Relaxed) > 0
    }

    /// Calls `f` with each queue locked in turn.
    fn each_queue(&self, mut f: impl FnMut(&mut Queue<D>)) {
        f(&mut self.lock_soon(&self.first));
        f(&mut self.lock_soon(&self.second));
    }

    /// Whether `f` is true of each queue, locked in turn.
    fn all_queues(&self, mut f: impl FnMut(&Queue<D>) -> bool) -> bool {
        f(&self.lock_soon(&self.first)) && f(&self.lock_soon(&self.second))
    }

    /// Makes the current process the owner.
    ///
    /// Fails with [`EBUSY`] if there is one, and with [`ENOMEM`]. `state` is ours, locked.
    pub fn set_owner(this: ArcBorrow<'_, Self>, state: &mut State<D>) -> Result {
        if state.has_owner() {
            return Err(EBUSY);
        }
        let mm = ARef::from(current!().mm().ok_or(EPERM)?);
        // Whatever the reason is that there is no thread to be had, this is what it is called.
        let worker = Worker::new(this.into(), &mm, state.fork).map_err(|_| ENOMEM)?;
        this.each_queue(|queue| queue.worker = Some(worker.clone()));
        state.owner = Some(Owner { mm, worker });
        Ok(())
    }

    /// Makes the device as good as new, but for a memory table, which is empty then.
    ///
    /// Fails with [`EPERM`] unless the current task shares the owner's memory, and with
    /// [`ENOMEM`].
    pub fn reset_owner(&self) -> Result {
        let mut state = self.state.lock();
        state.check_owner()?;
        let mem = Arc::new(MemTable::new([].into_iter())?, GFP_KERNEL)?;
        self.stop(&mut state);
        self.each_queue(|queue| queue.set_mem(mem.clone()));
        state.mem = Some(mem);
        Ok(())
    }

    /// Nobody uses the device any more.
    pub fn release(&self) {
        self.stop(&mut self.state.lock());
    }

    /// Stops the queues and the worker, and lets go of the owner and all that it set.
    fn stop(&self, state: &mut State<D>) {
        // Nothing makes the worker run a queue any more, and then it has run the last time.
        let stop = |queue: &mut Queue<D>| {
            queue.kick_poll.as_mut().stop();
            queue.state.reset()
        };
        let first = stop(&mut self.lock_soon(&self.first));
        let second = stop(&mut self.lock_soon(&self.second));
        state.flush();
        // With no queue locked, since it may wait.
        drop((first, second));
        self.each_queue(Queue::reset);
        *state = State::new();
        self.misses.lock().close();
        self.readers.notify_all();
    }

    /// Sets the features that the driver of each queue accepted. `f` does what the device has to
    /// do for it.
    ///
    /// Fails with [`EFAULT`] if writes to guest memory are to be logged, and the log is not in
    /// user space, and if there is no memory for an IOTLB.
    pub fn set_features(&self, features: Features, mut f: impl FnMut(&mut Queue<D>)) -> Result {
        let mut state = self.state.lock();
        if features.has(Features::LOG_ALL) && !self.mem_access_ok(state.mem.as_ref(), true) {
            return Err(EFAULT);
        }
        // Where there was an IOTLB before, what it knew may be out of date.
        state.iotlb = if features.has(Features::ACCESS_PLATFORM) {
            Some(Self::new_iotlb().map_err(|_| EFAULT)?)
        } else {
            None
        };
        self.each_queue(|queue| {
            queue.set_iotlb(state.iotlb.clone());
            queue.features = features;
            queue.ring.set_features(features);
            f(queue);
        });
        if state.iotlb.is_some() {
            self.misses.lock().open();
        } else {
            self.misses.lock().close();
            self.readers.notify_all();
        }
        Ok(())
    }

    fn new_iotlb() -> Result<Arc<Mutex<Iotlb>>> {
        let limit = crate::parameters::max_iotlb_entries();
        let limit = usize::try_from(limit).ok().filter(|&limit| limit > 0);
        let iotlb = Iotlb::new(limit.ok_or(EINVAL)?);
        Arc::pin_init(new_mutex!(iotlb, "vhost_iotlb"), GFP_KERNEL)
    }

    /// Sets the features of the interface between the owner and the device, of
    /// `VHOST_BACKEND_F_*` numbers.
    pub fn set_backend_features(&self, features: u64) {
        let _state = self.state.lock();
        self.each_queue(|queue| {
            queue.message_kind = if features & uapi::BACKEND_F_IOTLB_MSG_V2 != 0 {
                uapi::IOTLB_MSG_V2
            } else {
                uapi::IOTLB_MSG
            };
        });
    }

    /// Readies a queue's ring for a backend.
    ///
    /// Fails with [`EFAULT`] if the ring can't be accessed, and with [`ENOMEM`]. If that is
    /// because of the IOTLB the owner is told so.
    pub fn start(&self, queue: &mut Queue<D>) -> Result {
        queue.try_start().map_err(|fault| {
            if fault.error == ENOMEM {
                return ENOMEM;
            }
            if queue.iotlb.is_some() {
                self.report_miss(queue, fault);
                queue.fault(fault);
            }
            EFAULT
        })
    }

    /// Forgets what the owner was to be told.
    pub fn forget_misses(&self) {
        self.misses.lock().clear();
    }

    /// The queue can't go on. If that is because of an address that the IOTLB does not know, it
    /// can as soon as the owner has said what is there; for want of memory, it tries again, after
    /// the others; if neither, something is wrong.
    pub fn stand_still(&self, queue: &mut Queue<D>, fault: Fault) {
        if fault.error == ENOMEM {
            queue.run_again();
            return;
        }
        // The driver may mend it.
        queue.ring.forget_heads();
        if !self.report_miss(queue, fault) {
            queue.fault(fault);
        }
    }

    /// Tells the owner of the address that the IOTLB does not know. Returns false if there is
    /// none.
    fn report_miss(&self, queue: &Queue<D>, fault: Fault) -> bool {
        let Some(miss) = fault.miss.filter(|_| queue.iotlb.is_some()) else {
            return false;
        };
        let mut misses = self.misses.lock();
        if misses.add(queue.index, miss, queue.message_kind) {
            self.readers.notify_all();
        }
        true
    }

    /// Whether `mem` may be the memory of all the queues that run.
    fn mem_access_ok(&self, mem: Option<&Arc<MemTable>>, log_all: bool) -> bool {
        self.all_queues(|queue| {
            let log = (log_all || queue.features.has(Features::LOG_ALL)).then_some(queue.log);
            // A queue that does not run is checked when it starts.
            !queue.is_running() || queue.mem_access_ok(mem, log)
        })
    }

    /// The ioctls that every vhost device has, for the device and for its queues.
    ///
    /// Fails with [`EPERM`] unless the current task shares the owner's memory, with [`EFAULT`] if
    /// the argument can't be read or written, with [`ENOBUFS`] if there is no such queue, with
    /// [`ENOIOCTLCMD`] if there is no such ioctl, and as each one says.
    pub fn ioctl(&self, cmd: u32, arg: Arg) -> Result {
        let mut state = self.state.lock();
        #[cfg(CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL)]
        match cmd {
            uapi::SET_FORK_FROM_OWNER => return Self::set_fork(&mut state, arg),
            uapi::GET_FORK_FROM_OWNER => return arg.write(&u8::from(state.fork)),
            _ => {}
        }
        state.check_owner()?;
        let result = match cmd {
            uapi::SET_MEM_TABLE => self.set_mem_table(&mut state, arg),
            uapi::SET_LOG_BASE => self.set_log_base(arg),
            uapi::SET_LOG_FD => self.set_log_fd(&mut state, arg),
            _ => return self.vring_ioctl(&state, cmd, arg),
        };
        state.flush();
        D::flush(self);
        result
    }

    #[cfg(CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL)]
    fn set_fork(state: &mut State<D>, arg: Arg) -> Result {
        if state.has_owner() {
            return Err(EBUSY);
        }
        state.fork = match arg.read::<u8>()? {
            0 => false,
            1 => true,
            _ => return Err(EINVAL),
        };
        Ok(())
    }

    fn set_mem_table(&self, state: &mut State<D>, arg: Arg) -> Result {
        let header: uapi::Memory = arg.read()?;
        if header.padding != 0 {
            return Err(EOPNOTSUPP);
        }
        if header.nregions > u32::from(crate::parameters::max_mem_regions()) {
            return Err(E2BIG);
        }
        if crate::parameters::max_iotlb_entries() <= 0 {
            return Err(EINVAL);
        }
        let count = header.nregions as usize;
        let mut regions = KVVec::with_capacity(count, GFP_KERNEL)?;
        for index in 0..count {
            let offset = size_of::<uapi::Memory>() + index * size_of::<uapi::MemoryRegion>();
            let region: uapi::MemoryRegion = arg.offset(offset).read()?;
            regions.push(
                Region {
                    guest: GuestAddr::new(region.guest_phys_addr),
                    size: region.memory_size,
                    user: UserAddr::new(region.userspace_addr),
                },
                GFP_KERNEL,
            )?;
        }
        let mem = Arc::new(MemTable::new(regions.iter().copied())?, GFP_KERNEL)?;
        if !self.mem_access_ok(Some(&mem), false) {
            return Err(EFAULT);
        }
        // A queue that runs goes on with the new table: each turn looks it up anew.
        self.each_queue(|queue| queue.set_mem(mem.clone()));
        state.mem = Some(mem);
        Ok(())
    }

    fn set_log_base(&self, arg: Arg) -> Result {
        let base: u64 = arg.read()?;
        usize::try_from(base).map_err(|_| EFAULT)?;
        let log = DirtyLog::new(UserAddr::new(base));
        let mut result = Ok(());
        self.each_queue(|queue| {
            if queue.is_running() && !queue.log_access_ok(log) {
                result = Err(EFAULT);
            } else {
                queue.log = log;
                queue.update_used_log();
            }
        });
        result
    }

    fn set_log_fd(&self, state: &mut State<D>, arg: Arg) -> Result {
        let fd: i32 = arg.read()?;
        let event = open_file(fd, EventFdCtx::from_fd)?;
        state.log_event = match event {
            Some(event) => Some(Arc::new(event, GFP_KERNEL)?),
            None => None,
        };
        self.each_queue(|queue| queue.log_event.clone_from(&state.log_event));
        Ok(())
    }

    fn vring_ioctl(&self, state: &State<D>, cmd: u32, arg: Arg) -> Result {
        let index: u32 = arg.read()?;
        let mut queue = self.queue(index as usize)?;
        match cmd {
            uapi::SET_VRING_NUM => queue.set_num(arg),
            uapi::SET_VRING_ADDR => queue.set_addr(arg),
            uapi::SET_VRING_BASE => queue.set_base(arg),
            uapi::GET_VRING_BASE => queue.write_state(arg, u32::from(queue.ring.base())),
            uapi::SET_VRING_KICK => {
                let result = queue.set_kick(arg);
                drop(queue);
                if matches!(result, Ok(true)) {
                    state.flush();
                }
                result.map(|_| ())
            }
            uapi::SET_VRING_CALL => {
                queue.call = read_file(arg, EventFdCtx::from_fd)?;
                Ok(())
            }
            uapi::SET_VRING_ERR => {
                queue.err = read_file(arg, EventFdCtx::from_fd)?;
                Ok(())
            }
            #[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
            uapi::SET_VRING_ENDIAN => queue.set_endian(arg),
            #[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
            uapi::GET_VRING_ENDIAN => queue.get_endian(arg),
            uapi::SET_VRING_BUSYLOOP_TIMEOUT => {
                let timeout: uapi::VringState = arg.read()?;
                queue.busyloop_timeout = timeout.num;
                Ok(())
            }
            uapi::GET_VRING_BUSYLOOP_TIMEOUT => queue.write_state(arg, queue.busyloop_timeout),
            _ => Err(ENOIOCTLCMD),
        }
    }

    /// Reads a message from the device. Waits for one unless `nonblock` is set.
    ///
    /// Returns 0 if `to` is too short for one. Fails with [`EAGAIN`] if there is none and
    /// `nonblock` is set, with [`ERESTARTSYS`] if a signal came first, and with [`EBADFD`] if
    /// there will be none, for there is no IOTLB.
    pub fn read(&self, to: &mut IovIterDest<'_>, nonblock: bool) -> Result<usize> {
        if to.len() < size_of::<uapi::Message>() {
            return Ok(0);
        }
        let (message, number) = self.next_message(nonblock)?;
        let bytes = message.as_bytes();
        let len = to.copy_to_iter(bytes);
        if len != bytes.len() {
            self.misses.lock().unread(number);
            self.readers.notify_all();
        }
        Ok(len)
    }

    fn next_message(&self, nonblock: bool) -> Result<(uapi::Message, u64)> {
        let mut misses = self.misses.lock();
        loop {
            if let Some(message) = misses.read() {
                return Ok(message);
            }
            if nonblock {
                return Err(EAGAIN);
            }
            if current!().signal_pending() {
                return Err(ERESTARTSYS);
            }
            if !misses.is_open() {
                return Err(EBADFD);
            }
            let _ = self.readers.wait_interruptible(&mut misses);
        }
    }

    /// Writes a message to the device.
    ///
    /// Returns the size of a message. Fails with [`EINVAL`] if it is none, or is an update of an
    /// empty range, and with [`EFAULT`] if the device can't follow it: there is no IOTLB, the
    /// range wraps, its user memory is not in user space, or there is no memory to keep it.
    pub fn write(&self, from: &mut IovIterSource<'_>) -> Result<usize> {
        let mut kind = [0; size_of::<u32>()];
        if from.copy_from_iter(&mut kind) != kind.len() {
            return Err(EINVAL);
        }
        if !matches!(
            u32::from_ne_bytes(kind),
            uapi::IOTLB_MSG | uapi::IOTLB_MSG_V2
        ) {
            return Err(EINVAL);
        }
        // A hole, or the address space of a message of the second version: there is one only.
        from.advance(size_of::<u32>());
        let mut message = uapi::IotlbMessage::default();
        let bytes = message.as_mut_bytes();
        if from.copy_from_iter(bytes) != bytes.len() {
            return Err(EINVAL);
        }
        if message.kind == uapi::IOTLB_UPDATE && message.size == 0 {
            return Err(EINVAL);
        }
        self.follow(&message).map_err(|_| EFAULT)?;
        Ok(size_of::<uapi::Message>())
    }

    fn follow(&self, message: &uapi::IotlbMessage) -> Result {
        let state = self.state.lock();
        let iotlb = state.iotlb.as_ref().ok_or(EFAULT)?;
        let (addr, size) = (Iova::new(message.iova), message.size);
        match message.kind {
            uapi::IOTLB_UPDATE => {
                let user = UserAddr::new(message.uaddr);
                let last = message.uaddr.checked_add(size - 1).ok_or(EFAULT)?;
                usize::try_from(last).map_err(|_| EFAULT)?;
                if message.perm & READ_WRITE != 0 && !CurrentMm.access_ok(user, size) {
                    return Err(EFAULT);
                }
                self.lock_soon(iotlb)
                    .update(addr, size, user, message.perm)?;
                self.misses.lock().answer(addr, size, |index| {
                    if let Some(owner) = &state.owner {
                        owner.worker.wake(Word::ready(index));
                    }
                });
            }
            uapi::IOTLB_INVALIDATE => self.lock_soon(iotlb).invalidate(addr, size)?,
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    /// The events that the device is ready for: a message can be read.
    pub fn poll(&self, file: &File, table: PollTable<'_>) -> u32 {
        table.register_wait(file, &self.readers);
        if self.misses.lock().is_readable() {
            poll::IN | poll::RDNORM
        } else {
            0
        }
    }

    /// Prints the features and what each queue did, a key and a value a line.
    ///
    /// A queue that can't be had within a second is only said to be busy.
    pub fn show_fdinfo(&self, m: &SeqFile) {
        self.watchers.fetch_add(1, Relaxed);
        if let Some(queue) = self.watch(&self.first) {
            let [low, high] = queue.features.words();
            seq_print!(m, "vhost-features:\t{low:#x}\n");
            seq_print!(m, "vhost-features-64:\t{high:#x}\n");
        }
        for (queue, name) in [&self.first, &self.second].into_iter().zip(D::QUEUE_NAMES) {
            match self.watch(queue) {
                Some(queue) => queue.show(m),
                None => seq_print!(m, "{name}-state:\tbusy\n"),
            }
        }
        self.watchers.fetch_sub(1, Relaxed);
    }

    /// Locks a queue, but gives up after a second.
    ///
    /// The worker holds the mutex while it accesses the owner's memory, which the owner can make
    /// wait for as long as it likes (`userfaultfd`). Who only looks must not wait with it.
    fn watch<'a>(&self, queue: &'a Mutex<Queue<D>>) -> Option<MutexGuard<'a, Queue<D>>> {
        for _ in 0..1000 {
            if let Some(guard) = queue.try_lock() {
                return Some(guard);
            }
            if current!().signal_pending() {
                break;
            }
            fsleep(Delta::from_millis(1));
        }
        None
    }

    /// Lets those who want to look at a queue have it for a moment, which a worker with much to do
    /// would else never do.
    fn let_watchers_in(&self) {
        if self.watchers.load(Relaxed) > 0 {
            fsleep(Delta::from_millis(2));
        }
    }
}

/// The words of a `VHOST_GET_FEATURES_ARRAY` or `VHOST_SET_FEATURES_ARRAY` argument.
///
/// It starts with their number, and user space may have more or fewer than the kernel.
pub struct FeaturesArg {
    arg: Arg,
    count: u64,
}

impl FeaturesArg {
    /// After how many words it looks for a signal.
    const PAUSE: u64 = 4096;

    /// Reads the number of words. Fails with [`EFAULT`].
    pub fn new(arg: Arg) -> Result<Self> {
        Ok(Self {
            arg: arg.offset(size_of::<u64>()),
            count: arg.read()?,
        })
    }

    fn word(&self, index: u64) -> Arg {
        self.arg
            .offset((index as usize).wrapping_mul(size_of::<u64>()))
    }

    /// Called for each word after those that there is a meaning for. User space says how many they
    /// are, and must not be kept from ending meanwhile. Fails with [`EINTR`], but not among the
    /// first [`Self::PAUSE`].
    fn pause(index: u64) -> Result {
        cond_resched();
        if index % Self::PAUSE == 0 && current!().signal_pending() {
            return Err(EINTR);
        }
        Ok(())
    }

    /// Writes `features`, as many words as there is room for, and zeroes into the rest of the
    /// room.
    ///
    /// Fails with [`EFAULT`], and with [`EINTR`] if the room is large.
    pub fn write(&self, features: Features) -> Result {
        for (index, word) in (0..self.count).zip(features.words()) {
            self.word(index).write(&word)?;
        }
        let ours = features::WORDS as u64;
        let Some(rest) = self.count.checked_sub(ours) else {
            return Ok(());
        };
        let size = rest.saturating_mul(size_of::<u64>() as u64);
        if !CurrentMm.access_ok(UserAddr::new(self.word(ours).addr()), size) {
            return Err(EFAULT);
        }
        for index in ours..self.count {
            self.word(index).write(&0u64)?;
            Self::pause(index)?;
        }
        Ok(())
    }

    /// Reads the words. Fails with [`EFAULT`], with [`EOPNOTSUPP`] if a bit is set that
    /// [`Features`] has no place for, and with [`EINTR`] if there are many.
    pub fn read(&self) -> Result<Features> {
        let mut words = [0; features::WORDS];
        for (index, word) in (0..self.count).zip(words.iter_mut()) {
            *word = self.word(index).read()?;
        }
        for index in features::WORDS as u64..self.count {
            if self.word(index).read::<u64>()? != 0 {
                return Err(EOPNOTSUPP);
            }
            Self::pause(index)?;
        }
        Ok(Features::from_words(words))
    }
}
