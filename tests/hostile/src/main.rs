// SPDX-License-Identifier: GPL-2.0

//! A hostile guest, a hostile VMM and a hostile network, all at once, on one device after the other.
//!
//! Each round is a child process with guest memory among canaries, a device, taps, and threads: a driver that
//! offers good and bad buffers, one that writes to the rings and tables at random while the device reads
//! them, one that floods the taps, and a VMM that asks for whatever comes to its mind. It is killed at a
//! random moment. In every third round the rings are packed, for the most part. Then nobody may hold the module any more, and no canary may have changed. At the end an
//! honest device has to work, and the module to be unloaded and loaded. What the kernel has to say about it
//! is for who looks at its log.
//!
//! With a limit, all of that together gets so many percent of one processor, and the worker with it. Who attacks must die
//! within the same time then.
//!
//!     [HOSTILE_CPU=PERCENT] vhost-net-hostile MINUTES [SEED]

mod arena;
mod count;
mod flood;
mod guest;
mod packed;
mod sys;
mod vmm;

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use kselftest::bail;
use kselftest::cgroup::Group;
use kselftest::check;
use kselftest::feature::*;
use kselftest::net::ip;
use kselftest::sys::in_child;
use kselftest::sys::ioctl;
use kselftest::sys::module_users;
use kselftest::sys::own_network;
use kselftest::sys::reload;
use kselftest::sys::State;
use kselftest::sys::SET_VRING_NUM;
use kselftest::Config;
use kselftest::Fail;
use kselftest::Guest;
use kselftest::Res;
use kselftest::Tap;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use arena::Arena;
use arena::Damage;
use count::call;
use count::Counts;
use sys::Rng;

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(100);
/// How much longer it goes on at most, when not all was done that it is for.
const EXTRA: Duration = Duration::from_secs(600);
/// So many rounds, and the module is unloaded and loaded. Every other stretch is with zero copy.
const STRETCH: u64 = 6;

/// Where a ring is: the addresses at which the guest has it.
#[derive(Clone, Copy, Default)]
pub struct Place {
    /// How many descriptors it has; 0 when there is no ring.
    pub num: u16,
    /// How many there is room for.
    pub cap: u32,
    /// Where its indices start; in a packed ring behind so many descriptors, which may be more than it has.
    pub base: u16,
    /// The device takes it for a packed ring.
    pub packed: bool,
    /// Another number for each ring.
    pub epoch: u64,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// What the device is told is this much further on.
    pub shift: u64,
    /// Where the used ring is logged.
    pub log: u64,
}

/// What the threads of a child share.
pub struct World<'a> {
    pub seed: u64,
    pub arena: &'a Arena,
    pub counts: &'a Counts,
    pub kick: Vec<EventFd>,
    pub call: Vec<EventFd>,
    pub err: &'a [EventFd],
    pub other_tap: AtomicI32,
    rings: [Mutex<Place>; 2],
}

impl<'a> World<'a> {
    fn new(seed: u64, arena: &'a Arena, counts: &'a Counts, err: &'a [EventFd]) -> Res<Self> {
        Ok(World {
            seed,
            arena,
            counts,
            kick: events()?,
            call: events()?,
            err,
            other_tap: AtomicI32::new(0),
            rings: Default::default(),
        })
    }

    pub fn place(&self, q: usize) -> Place {
        *self.rings[q].lock().unwrap()
    }

    pub fn move_ring(&self, q: usize, place: Option<Place>) {
        let mut ring = self.rings[q].lock().unwrap();
        let epoch = ring.epoch + 1;
        *ring = Place {
            epoch,
            ..place.unwrap_or_default()
        };
        if let Some(p) = place {
            self.counts.place(p.used, p.num);
        }
    }

    pub fn resize_ring(&self, q: usize, num: u16) {
        let mut ring = self.rings[q].lock().unwrap();
        if u32::from(num) <= ring.cap {
            ring.num = num;
            self.counts.place(ring.used, num);
        }
    }
}

/// What is kept from round to round.
struct Hostile {
    seed: u64,
    arena: Arena,
    counts: &'static Counts,
    err: Vec<EventFd>,
    rounds: u64,
    kills: u64,
    marked: u64,
    damage: Vec<String>,
    /// Where the children are that have a limit.
    group: Option<Group>,
    /// How many times as long a round takes with the limit.
    slowness: u64,
}

fn open(wait: bool) -> Res<File> {
    let flags = if wait { 0 } else { libc::O_NONBLOCK };
    let mut how = OpenOptions::new();
    how.read(true).write(true).custom_flags(flags);
    Ok(how.open("/dev/vhost-net")?)
}

fn events() -> Res<Vec<EventFd>> {
    Ok(vec![
        EventFd::new(EFD_NONBLOCK)?,
        EventFd::new(EFD_NONBLOCK)?,
    ])
}

/// The child: never returns, unless something is wrong with the test.
fn child(world: &World, wait: bool, device: Option<&File>) -> Res {
    own_network()?;
    ip("link set lo up")?;
    let own;
    let device = match device {
        Some(device) => device,
        None => {
            own = open(wait)?;
            &own
        }
    };
    let tap = Tap::new("tap0", 12)?;
    let mut vmm = vmm::Vmm::new(world, device, &tap)?;
    vmm.reads = !wait;
    std::thread::scope(|s| {
        s.spawn(|| guest::Guest::new(world, 1).drive());
        s.spawn(|| guest::Guest::new(world, 2).poke());
        s.spawn(|| trouble(world, flood::run(world, tap.index)));
        s.spawn(|| watch(device));
        if wait {
            s.spawn(|| answer(world, device));
        }
        vmm.set_up();
        world.counts.ready.store(1, Relaxed);
        vmm.run()
    })
}

fn trouble(world: &World, result: Res) {
    if let Err(Fail(why)) = result {
        println!("# {why}");
        world.counts.trouble.fetch_add(1, Relaxed);
        sys::exit(98);
    }
}

/// Looks at the device for ever.
fn watch(device: &File) -> ! {
    let path = format!("/proc/self/fdinfo/{}", device.as_raw_fd());
    loop {
        let _ = std::fs::read_to_string(&path);
        std::thread::sleep(Duration::from_millis(7));
    }
}

/// Waits for messages, and answers them, for ever.
fn answer(world: &World, device: &File) -> ! {
    let (mut rng, mut late) = (Rng::new(world.seed, 5), vmm::Late::default());
    loop {
        if vmm::answer_or_not(world, device, &mut rng, &mut late).is_err() {
            // There is no IOTLB now.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Hostile {
    fn new(seed: u64, percent: Option<u32>) -> Res<Self> {
        let group = match percent {
            Some(percent) => {
                let group = Group::new("vhost-hostile")?;
                group.limit(percent)?;
                Some(group)
            }
            None => None,
        };
        Ok(Hostile {
            seed,
            arena: Arena::new()?,
            counts: Counts::new()?,
            err: events()?,
            rounds: 0,
            kills: 0,
            marked: 0,
            damage: vec![],
            group,
            slowness: percent.map_or(1, |percent| u64::from(100 / percent.max(1)).max(1) * 2),
        })
    }

    /// How often the limit held the children up, if there is one.
    fn throttled(&self) -> Option<u64> {
        let group = self.group.as_ref()?;
        Some(group.number("cpu.stat", "nr_throttled ").unwrap_or(0))
    }

    /// One child, from its start to its end.
    fn round(&mut self) -> Res {
        let seed = Rng::new(self.seed, self.rounds).next();
        let files = open_files()?;
        let mut rng = Rng::new(seed, 0);
        self.rounds += 1;
        self.arena.lay_out(&mut rng);
        self.counts.forget_places();
        self.counts.ready.store(0, Relaxed);
        self.counts.leave.store(0, Relaxed);
        // Sometimes the device stays open when its owner is dead, and sometimes who reads messages waits for
        // them.
        let wait = rng.one_in(3);
        let kept = if rng.one_in(5) {
            Some(open(wait)?)
        } else {
            None
        };
        let (arena, counts, err, group) = (&self.arena, self.counts, &self.err, &self.group);
        let pid = sys::fork(|| {
            // Each of the threads goes on for ever, or the rest would attack without it.
            std::panic::set_hook(Box::new(|panic| {
                println!("# {panic}");
                counts.trouble.fetch_add(1, Relaxed);
                sys::exit(96);
            }));
            let run = || -> Res {
                if let Some(group) = group {
                    group.enter()?;
                }
                let world = World::new(seed, arena, counts, err)?;
                child(&world, wait, kept.as_ref())
            };
            let why = run().err();
            println!(
                "# {}",
                why.map_or("the child is done".into(), |Fail(why)| why)
            );
            97
        })?;
        let what = format!("round {} (seed {seed:#x})", self.rounds);
        let begin = Instant::now();
        while self.counts.ready.load(Relaxed) == 0 {
            if let Some(status) = sys::reap(pid, Duration::ZERO) {
                bail!("{what}: the child ended while it set up: status {status:#x}");
            }
            if begin.elapsed() > PATIENCE {
                let stacks = stacks(pid);
                sys::kill(pid);
                bail!("{what}: the child does not get its device set up: {stacks}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // With a limit all of it takes as much longer.
        let most = rng.pick(&[50, 1000, 6000]) * self.slowness;
        std::thread::sleep(Duration::from_millis(5 + rng.below(most)));
        if rng.one_in(6) {
            self.counts.leave.store(1, Relaxed);
            std::thread::sleep(Duration::from_millis(rng.below(30)));
        }
        sys::kill(pid);
        let Some(status) = sys::reap(pid, PATIENCE) else {
            bail!("{what}: the child does not die: {}", stacks(pid));
        };
        let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
        let left = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
        check!(
            killed || left,
            "{what}: the child died by itself: status {status:#x}"
        );
        self.kills += u64::from(killed);
        for q in 0..2 {
            let stops = self.err[q].read().unwrap_or(0);
            self.counts.stops[q].fetch_add(stops, Relaxed);
        }
        if let Some(device) = kept {
            // Not ours, with a dead owner or without one.
            let num = State { index: 0, num: 64 };
            let e = ioctl(&device, SET_VRING_NUM, &num);
            check!(
                e == libc::EPERM,
                "{what}: errno {e} for who is not the owner"
            );
        }
        unused(&what)?;
        closed(&what, files)?;
        self.marked += self.arena.marked();
        if let Some(Damage { what: damage, hva }) = self.arena.damage() {
            let rings = hva.map_or(vec![], |hva| self.counts.rings_before(hva));
            println!("# {what}: {damage}; used rings that end there have {rings:?} entries");
            self.damage.push(damage);
        }
        Ok(())
    }
}

/// Waits until nobody holds the module any more.
fn unused(what: &str) -> Res {
    let begin = Instant::now();
    while let Some(n) = module_users().filter(|n| *n != 0) {
        check!(
            begin.elapsed() < PATIENCE,
            "{what}: the module still has {n} users"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// How many files are open, in all processes and the kernel.
fn open_files() -> Res<u64> {
    let text = std::fs::read_to_string("/proc/sys/fs/file-nr")?;
    let first = text.split_whitespace().next().and_then(|n| n.parse().ok());
    first.ok_or(Fail(format!("no number of files: {text}")))
}

/// Waits until no more files are open than before: nobody has kept a tap, a socket or an eventfd.
fn closed(what: &str, before: u64) -> Res {
    let begin = Instant::now();
    loop {
        let now = open_files()?;
        if now <= before {
            return Ok(());
        }
        check!(
            begin.elapsed() < PATIENCE,
            "{what}: {} files are still open, which were not before",
            now - before
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Each of the calls that the attack makes, by the same code, but as it ought to be made: all have to succeed.
fn every_call(hostile: &mut Hostile) -> Res {
    let counts = Counts::new()?;
    let files = open_files()?;
    hostile.arena.lay_out(&mut Rng::new(0, 0));
    let (arena, err) = (&hostile.arena, &hostile.err);
    let run = || -> Res {
        own_network()?;
        ip("link set lo up")?;
        let world = World::new(0, arena, counts, err)?;
        let device = open(false)?;
        let tap = Tap::new("tap0", 12)?;
        vmm::Vmm::new(&world, &device, &tap)?.behave()
    };
    apart(run)?;
    for (call, name) in count::CALLS.iter().enumerate() {
        let want = match call {
            call::NO_SOCKET => libc::ENOTSOCK,
            call::UNKNOWN => libc::ENOTTY,
            // Where the kernel has no such rings.
            call::ENDIAN if !kselftest::sys::configured("CONFIG_VHOST_CROSS_ENDIAN_LEGACY")? => {
                libc::ENOTTY
            }
            call::NEW_WORKER.. if kselftest::sys::on_c() => continue,
            _ => 0,
        };
        check!(
            counts.only(call, want),
            "{name}: {}, but all should be {want}",
            counts.results(call)
        );
    }
    unused("the honest VMM")?;
    closed("the honest VMM", files)?;
    match hostile.arena.damage() {
        Some(Damage { what, .. }) => Err(Fail(what)),
        None => Ok(()),
    }
}

/// Runs `f` in a process of its own.
fn apart(f: impl Fn() -> Res) -> Res {
    let status = in_child(
        || match std::panic::catch_unwind(std::panic::AssertUnwindSafe(&f)) {
            Ok(Ok(())) => 0,
            Ok(Err(Fail(why))) => {
                println!("# {why}");
                1
            }
            Err(_) => 2,
        },
    )?;
    check!(status == 0, "the process ended with {status}");
    Ok(())
}

/// Where the threads of a process are.
fn stacks(pid: i32) -> String {
    let mut all = String::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for file in ["comm", "stack"] {
            all += &std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        }
    }
    all.replace('\n', "; ")
}

/// An honest guest, with packets of many sizes both ways.
fn honest() -> Res {
    let files = open_files()?;
    let all = || -> Res {
        own_network()?;
        let mut all = vec![VERSION_1 | EVENT_IDX | INDIRECT, VERSION_1 | MRG_RXBUF, 0];
        if !kselftest::sys::on_c() {
            all.push(VERSION_1 | RING_PACKED | EVENT_IDX | INDIRECT);
        }
        for features in all {
            let mut g = Guest::new(Config::with(features))?;
            let packets: Vec<_> = (0..100)
                .map(|i| kselftest::frame(i, 60 + 14 * i as usize))
                .collect();
            g.receive_all(&packets)?;
            g.send_all(&packets)?;
            g.stop()?;
            check!(
                g.tx.err.read().is_err() && g.rx.err.read().is_err(),
                "an error was signalled"
            );
        }
        Ok(())
    };
    apart(all)?;
    unused("the honest device")?;
    closed("the honest device", files)
}

/// Prints results, as KTAP does.
#[derive(Default)]
struct Results {
    passed: u32,
    failed: u32,
}

impl Results {
    fn add(&mut self, name: &str, result: Res) -> bool {
        let ok = result.is_ok();
        let number = self.passed + self.failed + 1;
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok {number} {name}");
            }
            Err(Fail(why)) => {
                self.failed += 1;
                println!("not ok {number} {name} # {why}");
            }
        }
        let _ = std::io::stdout().flush();
        ok
    }
}

/// Rounds until the time is over, and until there was something of everything.
fn rounds(hostile: &mut Hostile, time: Duration) -> Res {
    let begin = Instant::now();
    let mut said = 0;
    while begin.elapsed() < time || lack(hostile).is_some() && begin.elapsed() < time + EXTRA {
        // Every other stretch sends from the guest's memory.
        if hostile.rounds % STRETCH == 0 {
            let zerocopy = hostile.rounds / STRETCH % 2;
            reload(&format!("experimental_zcopytx={zerocopy}"))?;
        }
        hostile.round()?;
        let minutes = begin.elapsed().as_secs() / 60;
        if minutes > said {
            said = minutes;
            let c = hostile.counts;
            let stops = c.stops[0].load(Relaxed) + c.stops[1].load(Relaxed);
            let packets = c.sent.load(Relaxed) + c.received.load(Relaxed);
            println!(
                "# {minutes} min: {} rounds, {packets} packets, {stops} stops",
                hostile.rounds
            );
            let _ = std::io::stdout().flush();
        }
    }
    Ok(())
}

/// What has not happened yet, of that for which the rounds are.
fn lack(h: &Hostile) -> Option<&'static str> {
    let c = h.counts;
    let some = |count: &AtomicU64| count.load(Relaxed) > 0;
    let all = [
        (h.rounds >= 2 * STRETCH, "rounds of both kinds"),
        (h.kills > 0, "a child that was killed"),
        (some(&c.sent), "a packet to a tap"),
        (some(&c.received), "a packet from a tap"),
        (some(&c.used[0]) && some(&c.used[1]), "used buffers"),
        (some(&c.stops[0]) && some(&c.stops[1]), "queues that stop"),
        (
            kselftest::sys::on_c() || some(&c.packed[0]) && some(&c.packed[1]),
            "used buffers of packed rings",
        ),
        (h.marked > 0, "a page that is logged"),
        (h.throttled() != Some(0), "a limit that held anybody up"),
    ];
    let never = all.iter().find(|(there, _)| !there).map(|(_, what)| *what);
    never.or_else(|| c.missing_kind())
}

/// Was there something of everything?
fn pressure(h: &Hostile) -> Res {
    check!(
        h.counts.trouble.load(Relaxed) == 0,
        "the test was in trouble"
    );
    match lack(h) {
        Some(what) => Err(Fail(format!("never: {what}"))),
        None => Ok(()),
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let minutes: f64 = args
        .next()
        .map_or(2.0, |s| s.parse().expect("MINUTES is a number"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = args.next().map(|s| s.parse().expect("SEED is a number"));
    let seed = seed.unwrap_or(now.map_or(1, |d| d.as_micros() as u64));
    println!("# seed {seed}, {minutes} minutes");
    let mut results = Results::default();
    let percent = std::env::var("HOSTILE_CPU").ok();
    let percent = percent.filter(|percent| !percent.is_empty());
    let percent = percent.map(|s| s.parse().expect("HOSTILE_CPU is a number"));
    let mut hostile = match Hostile::new(seed, percent) {
        Ok(hostile) => hostile,
        Err(why) => {
            results.add("start", Err(why));
            println!("0 passed, 1 failed");
            std::process::exit(1);
        }
    };
    results.add("every call", every_call(&mut hostile));
    let survived = rounds(&mut hostile, Duration::from_secs_f64(60.0 * minutes));
    let ok = results.add("rounds", survived);
    let damage = match hostile.damage.first() {
        None => Ok(()),
        Some(first) => Err(Fail(format!(
            "{} rounds, the first: {first}",
            hostile.damage.len()
        ))),
    };
    results.add("canaries", damage);
    results.add("pressure", pressure(&hostile));
    if ok {
        // With zero copy, a packet that nobody has read is in use for as long.
        results.add("plain module", reload(""));
        results.add("honest device", honest());
        results.add("module unloads and loads", reload(""));
        results.add("honest device again", honest());
    }
    let c = hostile.counts;
    println!(
        "# seed {seed}: {} rounds, {} kills",
        hostile.rounds, hostile.kills
    );
    let pair = |two: &[AtomicU64; 2]| two.each_ref().map(|n| n.load(Relaxed));
    println!(
        "# packets: {} to the taps, {} from them; {} sent at them; used buffers (rx, tx) {:?}, of packed rings {:?}",
        c.sent.load(Relaxed),
        c.received.load(Relaxed),
        c.flood.load(Relaxed),
        pair(&c.used),
        pair(&c.packed)
    );
    println!(
        "# stops (rx, tx) {:?}; rings filled {} times, written at random {} times; {} pages logged",
        pair(&c.stops),
        c.steps.load(Relaxed),
        c.pokes.load(Relaxed),
        hostile.marked
    );
    if let (Some(percent), Some(times), Some(group)) =
        (percent, hostile.throttled(), &hostile.group)
    {
        let used = group.usage().unwrap_or_default();
        println!("# limit: {percent} % of a CPU; used {used:?}, held up {times} times");
    }
    println!("# calls: {}", c.sum());
    c.print();
    println!("{} passed, {} failed", results.passed, results.failed);
    std::process::exit((results.failed > 0) as i32);
}
