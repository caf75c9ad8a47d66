// SPDX-License-Identifier: GPL-2.0

//! The worker and its owner: what limits, stops, freezes, interrupts or replaces the owner, and what a worker may cost it.

use std::fs::read_to_string;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr::null;
use std::ptr::null_mut;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use kselftest::cgroup::Group;
use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::sys::*;
use kselftest::task::*;
use kselftest::*;
use vhost::net::VhostNet;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const NULL: *const u64 = null();

/// How long what must come "at once" may take on a machine that is emulated and shared. What is wrong takes for ever, or
/// tens of seconds.
fn at_once() -> Duration {
    Duration::from_secs(if on_debug_kernel() { 30 } else { 5 })
}

fn config(kernel_thread: bool) -> Config {
    Config {
        regions: vec![(mem::BASE, 8 << 20)],
        kernel_thread,
        ..Config::default()
    }
}

/// This process has nothing to do with the device any more; only who inherited it has.
fn let_go(g: &Guest) -> Res {
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: both are open; what was behind the second is closed.
    let r = unsafe { libc::dup3(null.as_raw_fd(), g.net.as_raw_fd(), libc::O_CLOEXEC) };
    check!(r >= 0, "dup3");
    Ok(())
}

/// What a VMM is told to do, a byte each. It answers with the same byte when it is done.
mod order {
    pub const START: u8 = b's';
    pub const PING: u8 = b'p';
    /// Gives the device back, and away: its descriptor, and where its rings stand.
    pub const GIVE: u8 = b'g';
    /// Takes such a device.
    pub const TAKE: u8 = b't';
    pub const EXEC: u8 = b'x';
    /// The device stays open.
    pub const EXEC_OPEN: u8 = b'X';
    pub const DUMP: u8 = b'd';
}

/// A VMM in a process of its own. Its guest is in this one, and is neither limited, stopped nor killed with it.
struct Vmm {
    child: Child,
    sock: UnixStream,
}

impl Vmm {
    /// The VMM of a guest whose device has no owner. It is in `group`, if there is one.
    fn new(g: &Guest, group: Option<&Group>) -> Res<Self> {
        Self::started(g, group, true)
    }

    /// A VMM that is to take a device over.
    fn without_device(g: &Guest) -> Res<Self> {
        Self::started(g, None, false)
    }

    fn started(g: &Guest, group: Option<&Group>, device: bool) -> Res<Self> {
        let (here, there) = UnixStream::pair()?;
        let child = Child::new(|| {
            if let Some(group) = group {
                group.enter()?;
            }
            if !device {
                let_go(g)?;
            }
            obey(g, &there)
        })?;
        here.set_read_timeout(Some(patience()))?;
        Ok(Vmm { child, sock: here })
    }

    fn tell(&self, what: u8) -> Res {
        Ok((&self.sock).write_all(&[what])?)
    }

    /// Waits for its answer.
    fn answer(&self, what: u8) -> Res {
        let mut byte = [0];
        let got = (&self.sock).read(&mut byte);
        check!(
            matches!(got, Ok(1)) && byte[0] == what,
            "the VMM was told {:?}: {got:?}, {}",
            what as char,
            states(self.child.pid)
        );
        Ok(())
    }

    fn ask(&self, what: u8) -> Res {
        self.tell(what)?;
        self.answer(what)
    }

    fn worker(&self, g: &Guest) -> Res<std::path::PathBuf> {
        worker_of(self.child.pid, g.cfg.kernel_thread)
    }
}

/// A VMM, until the other end of its socket is closed.
fn obey(g: &Guest, mut sock: &UnixStream) -> Res {
    let mut byte = [0];
    // A device that another VMM gives away comes with its byte.
    while let (1, device) = sock.recv_with_fd(&mut byte)? {
        match byte[0] {
            order::START => {
                g.set_up()?;
                g.start()?;
            }
            order::GIVE => {
                g.stop()?;
                let bases = [g.net.get_vring_base(RX)?, g.net.get_vring_base(TX)?];
                check_eq!(ioctl(&g.net, RESET_OWNER, NULL), 0);
                let bases = bases.map(|b| (b as u16).to_le_bytes()).concat();
                sock.send_with_fd(&[order::GIVE][..], g.net.as_raw_fd())?;
                sock.write_all(&bases)?;
                let_go(g)?;
                continue;
            }
            order::TAKE => {
                let device = device.ok_or(Fail("no device".into()))?;
                let mut bases = [0; 4];
                sock.read_exact(&mut bases)?;
                // SAFETY: both are open; what was behind the second is closed.
                let r =
                    unsafe { libc::dup3(device.as_raw_fd(), g.net.as_raw_fd(), libc::O_CLOEXEC) };
                check!(r >= 0, "dup3");
                drop(device);
                g.set_up()?;
                // Its memory is elsewhere.
                g.net.set_mem_table(&Mem::table(&g.mem.map_again()?))?;
                for (index, b) in [RX, TX].into_iter().zip(bases.chunks(2)) {
                    let base = u16::from_le_bytes([b[0], b[1]]);
                    g.net.set_vring_base(index, base)?;
                }
                g.start()?;
            }
            order::EXEC | order::EXEC_OPEN => {
                if byte[0] == order::EXEC_OPEN {
                    // SAFETY: takes the descriptor's only flag away.
                    unsafe { libc::fcntl(g.net.as_raw_fd(), libc::F_SETFD, 0) };
                }
                let args = [c"sleep".as_ptr(), c"1000".as_ptr(), null()];
                // SAFETY: strings that end, in a list that ends.
                unsafe { libc::execv(c"/bin/sleep".as_ptr(), args.as_ptr()) };
                return Err(std::io::Error::last_os_error().into());
            }
            order::DUMP => {
                let all = libc::rlimit {
                    rlim_cur: libc::RLIM_INFINITY,
                    rlim_max: libc::RLIM_INFINITY,
                };
                // SAFETY: a valid structure; the process ends.
                unsafe {
                    libc::setrlimit(libc::RLIMIT_CORE, &all);
                    libc::abort()
                }
            }
            _ => {}
        }
        sock.write_all(&byte)?;
    }
    Ok(())
}

/// A guest that never stops sending: whatever of its ring was used is available again at once, as soon as it looks. It takes
/// little of a processor itself.
struct Flood {
    chains: u16,
}

impl Flood {
    /// Fills the ring. Nobody reads what is sent.
    fn prepare(g: &mut Guest) -> Res<Self> {
        g.peer = Peer::sender(g.tap.index, false)?;
        let at = g.place(&frame(1, 60));
        for _ in 0..g.tx.num {
            g.tx.add(&[Seg::r(at, g.hdr + 60)]);
        }
        // A device that is set up later begins with the first of them.
        g.tx.avail_idx = g.tx.used_idx;
        Ok(Flood { chains: g.tx.num })
    }

    /// Goes on until `stop`. Returns how many packets were sent.
    fn run(&self, tx: &Ring, stop: &AtomicBool) -> u64 {
        let (mut sent, mut last) = (0, tx.device_idx());
        while !stop.load(Relaxed) {
            let used = tx.device_idx();
            sent += u64::from(used.wrapping_sub(last));
            last = used;
            tx.publish_idx(used.wrapping_add(self.chains));
            if tx.used_flags() & 1 == 0 {
                tx.kick();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        sent
    }
}

/// Runs `f` while the guest sends all the time. Returns how many packets it sent, too.
fn flooded<T>(g: &Guest, flood: &Flood, f: impl FnOnce() -> Res<T>) -> Res<(T, u64)> {
    let stop = AtomicBool::new(false);
    let tx = &g.tx;
    std::thread::scope(|s| {
        let flooder = s.spawn(|| flood.run(tx, &stop));
        let result = f();
        stop.store(true, Relaxed);
        let sent = flooder.join().expect("the flood");
        Ok((result?, sent))
    })
}

/// Waits until so many packets were sent that a test of `amount(1000)` has seen them, however slow the kernel is.
fn let_flow(g: &Guest, flood: &Flood) -> Res {
    let (first, wanted) = (g.tx.device_idx(), amount(1000) as u16 + 2 * flood.chains);
    check!(
        until(|| g.tx.device_idx().wrapping_sub(first) > wanted),
        "nothing is sent"
    );
    Ok(())
}

/// A VMM that may use a tenth of a CPU, and a guest that has its worker send all the time.
fn limited<T>(kernel_thread: bool, f: impl FnOnce(&mut Vmm, &Group, &Guest) -> Res<T>) -> Res<T> {
    let group = Group::new("vhost-limited")?;
    let mut g = Guest::unowned(config(kernel_thread))?;
    let flood = Flood::prepare(&mut g)?;
    let mut vmm = Vmm::new(&g, Some(&group))?;
    vmm.ask(order::START)?;
    let_go(&g)?;
    let (result, sent) = flooded(&g, &flood, || {
        group.limit(10)?;
        std::thread::sleep(Duration::from_secs(2));
        let result = f(&mut vmm, &group, &g);
        // Whatever there is of debt is forgiven, so that all can end.
        group.set("cpu.max", "max")?;
        result
    })?;
    check!(
        sent > u64::from(amount(1000)),
        "only {sent} packets were sent"
    );
    vmm.child.signal(libc::SIGKILL);
    vmm.child.wait(0, patience());
    Ok(result)
}

/// The group gets no more than it may.
fn cpu_share(kernel_thread: bool) -> Res {
    limited(kernel_thread, |vmm, group, g| {
        let worker = vmm.worker(g)?;
        let (begin, usage, time) = (Instant::now(), group.usage()?, cpu_time(&worker)?);
        std::thread::sleep(Duration::from_secs(10));
        let elapsed = begin.elapsed().as_secs_f64();
        let share = (group.usage()? - usage).as_secs_f64() / elapsed;
        let worker = (cpu_time(&worker)? - time).as_secs_f64() / elapsed;
        println!("# the group used {share:.3} of a CPU, the worker {worker:.3}");
        check!(
            share <= if on_debug_kernel() { 0.2 } else { 0.12 },
            "{share:.3} of a CPU, of which the worker {worker:.3}, where 0.10 is allowed"
        );
        check!(share > 0.03, "only {share:.3} of a CPU was used");
        Ok(())
    })
}

fn cpu_share_owner() -> Res {
    cpu_share(false)
}

fn cpu_share_kernel() -> Res {
    cpu_share(true)
}

/// How long the VMM takes to answer, many times: in the middle, and at worst.
fn answers(vmm: &Vmm) -> Res<(Duration, Duration)> {
    vmm.sock.set_read_timeout(Some(at_once()))?;
    let mut times = vec![];
    for _ in 0..20 {
        let begin = Instant::now();
        vmm.ask(order::PING)?;
        times.push(begin.elapsed());
        std::thread::sleep(Duration::from_millis(73));
    }
    times.sort();
    Ok((times[times.len() / 2], times[times.len() - 1]))
}

/// The same where it is a thread of its own that runs all the time, as a vCPU does.
fn answers_beside_vcpu() -> Res<(Duration, Duration)> {
    let group = Group::new("vhost-vcpu")?;
    let g = Guest::unowned(config(false))?;
    let (here, there) = UnixStream::pair()?;
    let child = Child::new(|| {
        group.enter()?;
        std::thread::spawn(|| loop {
            std::hint::spin_loop()
        });
        obey(&g, &there)
    })?;
    let vmm = Vmm { child, sock: here };
    group.limit(10)?;
    std::thread::sleep(Duration::from_secs(1));
    answers(&vmm)
}

/// The VMM's own threads get as much of it as they would beside a vCPU.
fn cpu_latency(kernel_thread: bool) -> Res {
    let (usual, _) = answers_beside_vcpu()?;
    limited(kernel_thread, |vmm, _, _| {
        let (middle, worst) = answers(vmm)?;
        println!("# answers after {middle:?}, at worst {worst:?}; beside a vCPU {usual:?}");
        // There a turn alone takes what several periods allow.
        let most = match on_debug_kernel() {
            true => at_once(),
            false => Duration::from_millis(300),
        };
        check!(
            middle <= 3 * usual + most,
            "answers after {middle:?}, beside a vCPU {usual:?}"
        );
        Ok(())
    })
}

fn cpu_latency_owner() -> Res {
    cpu_latency(false)
}

fn cpu_latency_kernel() -> Res {
    cpu_latency(true)
}

/// SIGKILL ends the VMM at once, with all that its device has.
fn cpu_killed(kernel_thread: bool) -> Res {
    limited(kernel_thread, |vmm, group, _| {
        let begin = Instant::now();
        vmm.child.signal(libc::SIGKILL);
        let status = vmm.child.wait(0, at_once());
        let (states, time) = (states(vmm.child.pid), begin.elapsed());
        check!(
            status.is_some(),
            "not ended at once after SIGKILL: {states}"
        );
        println!("# ended after {time:?}");
        check!(time < at_once() / 2, "ended {time:?} after SIGKILL");
        group.set("cpu.max", "max")?;
        check!(
            until(|| module_users().is_none_or(|n| n == 0)),
            "{:?} users of the module",
            module_users()
        );
        Ok(())
    })
}

fn cpu_killed_owner() -> Res {
    cpu_killed(false)
}

fn cpu_killed_kernel() -> Res {
    cpu_killed(true)
}

/// Numbers that children share with this process.
fn shared() -> Res<&'static AtomicU64> {
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new mapping that stays, of which the first bytes are used as a number.
    unsafe {
        let p = libc::mmap(null_mut(), page_size(), prot, flags, -1, 0);
        check!(p != libc::MAP_FAILED, "mmap");
        Ok(&*p.cast())
    }
}

/// A VMM that makes the same call again and again.
struct Caller {
    g: Guest,
    taps: [Tap; 2],
    events: [EventFd; 2],
}

impl Caller {
    fn new(kernel_thread: bool) -> Res<Self> {
        let g = Guest::new(config(kernel_thread))?;
        let hdr = g.cfg.backend_hdr();
        Ok(Caller {
            g,
            taps: [Tap::new("tap1", hdr)?, Tap::new("tap2", hdr)?],
            events: [
                EventFd::new(libc::EFD_NONBLOCK)?,
                EventFd::new(libc::EFD_NONBLOCK)?,
            ],
        })
    }
}

/// A call, of so many that were made before. It fails if the device says anything but yes.
type Call = fn(&Caller, usize) -> Res;

fn mem_table(c: &Caller, _: usize) -> Res {
    let r = c.g.mem.regions()[0];
    let region = Region {
        gpa: r.gpa,
        size: r.size,
        hva: r.hva,
        flags: 0,
    };
    let table = mem_table_of(&region);
    check_eq!(
        ioctl(&c.g.net, SET_MEM_TABLE, table.as_ptr()),
        0,
        "SET_MEM_TABLE"
    );
    Ok(())
}

fn mem_table_of(region: &Region) -> Vec<u64> {
    sys::mem_table(1, 0, std::slice::from_ref(region))
}

fn backend(c: &Caller, n: usize) -> Res {
    let file = VringFile {
        index: TX as u32,
        fd: c.taps[n % 2].fd.as_raw_fd(),
    };
    check_eq!(
        ioctl(&c.g.net, NET_SET_BACKEND, &file),
        0,
        "NET_SET_BACKEND"
    );
    Ok(())
}

fn kick(c: &Caller, n: usize) -> Res {
    let file = VringFile {
        index: RX as u32,
        fd: c.events[n % 2].as_raw_fd(),
    };
    check_eq!(ioctl(&c.g.net, SET_VRING_KICK, &file), 0, "SET_VRING_KICK");
    Ok(())
}

fn log_fd(c: &Caller, _: usize) -> Res {
    check_eq!(ioctl(&c.g.net, SET_LOG_FD, &-1i32), 0, "SET_LOG_FD");
    Ok(())
}

fn owner(c: &Caller, _: usize) -> Res {
    check_eq!(ioctl(&c.g.net, RESET_OWNER, NULL), 0, "RESET_OWNER");
    let fork = u8::from(!c.g.cfg.kernel_thread);
    check_eq!(ioctl(&c.g.net, SET_FORK_FROM_OWNER, &fork), 0);
    check_eq!(ioctl(&c.g.net, SET_OWNER, NULL), 0, "SET_OWNER");
    Ok(())
}

fn reopen(c: &Caller, _: usize) -> Res {
    let f = sys::open()?;
    let fork = u8::from(!c.g.cfg.kernel_thread);
    check_eq!(ioctl(&f, SET_FORK_FROM_OWNER, &fork), 0);
    check_eq!(ioctl(&f, SET_OWNER, NULL), 0, "SET_OWNER");
    Ok(())
}

/// Freezes a VMM a hundred times while its threads make these calls.
fn freezes(kernel_thread: bool, calls: &[Call]) -> Res {
    let group = Group::new("vhost-frozen")?;
    let count = shared()?;
    let mut child = Child::new(|| {
        group.enter()?;
        let c = Caller::new(kernel_thread)?;
        std::thread::scope(|s| {
            let each = |&call: &Call| {
                let c = &c;
                s.spawn(move || -> Res {
                    for n in 0.. {
                        call(c, n)?;
                        count.fetch_add(1, Relaxed);
                    }
                    Ok(())
                })
            };
            let threads: Vec<_> = calls.iter().map(each).collect();
            threads.into_iter().try_for_each(|t| t.join().unwrap())
        })
    })?;
    let mut worst = Duration::ZERO;
    let times = if on_debug_kernel() { 20 } else { 100 };
    for n in 0..times {
        let before = count.load(Relaxed);
        let mut ended = None;
        let goes_on = until(|| {
            ended = child.wait(0, Duration::ZERO);
            ended.is_some() || count.load(Relaxed) > before + 2
        });
        check!(
            goes_on && ended.is_none(),
            "no calls before freeze {n}: status {ended:?}, {}",
            states(child.pid)
        );
        // Any moment of a call.
        std::thread::sleep(Duration::from_micros(n * 37 % 1000));
        let Some(time) = group.freeze(kernel_thread.then_some(child.pid), at_once())? else {
            let states = states(child.pid);
            group.thaw()?;
            bail!("freeze {n} did not end: {states}");
        };
        worst = worst.max(time);
        group.thaw()?;
    }
    println!("# {times} freezes, each in {worst:?} or less");
    Ok(())
}

fn freeze_mem_table() -> Res {
    freezes(false, &[mem_table])
}

fn freeze_backend() -> Res {
    freezes(false, &[backend])
}

fn freeze_kick() -> Res {
    freezes(false, &[kick])
}

fn freeze_log_fd() -> Res {
    freezes(false, &[log_fd])
}

/// One thread waits for the device while another has it.
fn freeze_two_threads() -> Res {
    freezes(false, &[mem_table, backend, kick])
}

fn freeze_owner() -> Res {
    freezes(false, &[owner])
}

fn freeze_reopen() -> Res {
    freezes(false, &[reopen])
}

fn freeze_kernel() -> Res {
    freezes(true, &[mem_table, backend, kick])
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: i32) {
    SIGNALS.fetch_add(1, Relaxed);
}

/// Runs `f` while a signal comes every 50 microseconds, whose handler has these flags. Returns how many came, too.
fn interrupted<T>(flags: i32, f: impl FnOnce() -> Res<T>) -> Res<(T, u64)> {
    let timer = |us| {
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: us,
        };
        let timer = libc::itimerval {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: a valid structure.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, null_mut()) }
    };
    // SAFETY: all zero is a valid action, but for the handler, which only counts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_signal as extern "C" fn(i32) as usize;
        action.sa_flags = flags;
        libc::sigaction(libc::SIGALRM, &action, null_mut());
    }
    let before = SIGNALS.load(Relaxed);
    timer(50);
    let result = f();
    timer(0);
    Ok((result?, SIGNALS.load(Relaxed) - before))
}

/// A device gets its owner, whatever signals come. As with `clone()`, of which it is made, that needs no `SA_RESTART`.
fn signal_set_owner(kernel_thread: bool, flags: i32) -> Res {
    let fork = u8::from(!kernel_thread);
    let test = || -> Res<(u32, Vec<i32>)> {
        let deadline = Instant::now() + Duration::from_secs(6);
        let (mut count, mut errors) = (0, vec![]);
        while count < amount(1600) && Instant::now() < deadline {
            let f = sys::open()?;
            check_eq!(ioctl(&f, SET_FORK_FROM_OWNER, &fork), 0);
            let r = ioctl(&f, SET_OWNER, NULL);
            if r != 0 {
                errors.push(r);
            }
            count += 1;
        }
        Ok((count, errors))
    };
    let ((count, mut errors), signals) = interrupted(flags, test)?;
    println!(
        "# {count} devices, {signals} signals, {} errors",
        errors.len()
    );
    check!(
        signals > u64::from(count) / 4 && count >= 50,
        "{count} devices, {signals} signals"
    );
    errors.sort();
    check!(
        errors.is_empty(),
        "{} errors from {count} SET_OWNER, the first {:?}",
        errors.len(),
        errors.first()
    );
    Ok(())
}

fn signal_set_owner_restarting() -> Res {
    signal_set_owner(false, libc::SA_RESTART)
}

fn signal_set_owner_plain() -> Res {
    signal_set_owner(false, 0)
}

fn signal_set_owner_kernel() -> Res {
    signal_set_owner(true, libc::SA_RESTART)
}

/// No call of a VMM that restarts its calls tells it of a signal, or does its work twice.
fn signal_calls() -> Res {
    for kernel_thread in [false, true] {
        let mut c = Caller::new(kernel_thread)?;
        let all: [Call; 6] = [mem_table, backend, kick, log_fd, reopen, owner];
        for (what, call) in all.iter().enumerate() {
            if what + 1 == all.len() {
                // All is as it was, until now.
                c.g.restart(0)?;
                c.g.send_all(&[frame(1, 60)])?;
                c.g.receive_all(&[frame(2, 60)])?;
            }
            let deadline = Instant::now() + Duration::from_secs(3);
            let before = SIGNALS.load(Relaxed);
            let (_, signals) = interrupted(libc::SA_RESTART, || {
                // Often, and until signals came; but they may come so fast that the calls are few.
                let enough = |n| n >= amount(300) as usize && SIGNALS.load(Relaxed) > before + 20;
                for n in 0.. {
                    call(&c, n)?;
                    if enough(n) || Instant::now() > deadline {
                        break;
                    }
                }
                Ok(())
            })?;
            check!(signals > 10, "call {what}: {signals} signals");
        }
    }
    Ok(())
}

/// What a window of some length costs who sends.
struct Window {
    /// How often the worker waited for something.
    sleeps: u64,
    packets: u64,
    reads: u64,
}

fn fdinfo(g: &Guest) -> Res<String> {
    let path = format!("/proc/self/fdinfo/{}", g.net.as_raw_fd());
    Ok(read_to_string(path)?)
}

/// A second of sending, with a thread beside it that does `read` again and again.
fn window(g: &Guest, flood: &Flood, read: Option<&(dyn Fn() -> Res + Sync)>) -> Res<Window> {
    let worker = worker_of(std::process::id() as i32, g.cfg.kernel_thread)?;
    let stop = AtomicBool::new(false);
    let ((sleeps, reads), packets) = flooded(g, flood, || {
        std::thread::scope(|s| {
            let reader = s.spawn(|| -> Res<u64> {
                let mut n = 0;
                while let (Some(read), false) = (read, stop.load(Relaxed)) {
                    read()?;
                    n += 1;
                }
                Ok(n)
            });
            std::thread::sleep(Duration::from_millis(100));
            let before = sleeps(&worker)?;
            std::thread::sleep(Duration::from_secs(1));
            let after = sleeps(&worker)?;
            stop.store(true, Relaxed);
            Ok((after - before, reader.join().unwrap()?))
        })
    })?;
    Ok(Window {
        sleeps,
        packets,
        reads,
    })
}

/// Three windows with such a reader and three without, in turn: those with it are as the others.
fn no_difference(g: &Guest, flood: &Flood, read: &(dyn Fn() -> Res + Sync)) -> Res {
    let (mut with, mut without) = (vec![], vec![]);
    for _ in 0..3 {
        without.push(window(g, flood, None)?);
        with.push(window(g, flood, Some(read))?);
    }
    let sum = |v: &[Window], f: fn(&Window) -> u64| v.iter().map(f).sum::<u64>();
    let reads = sum(&with, |w| w.reads);
    let sleeps = (sum(&without, |w| w.sleeps), sum(&with, |w| w.sleeps));
    let packets = (sum(&without, |w| w.packets), sum(&with, |w| w.packets));
    println!("# {reads} reads; without and with them: waits of the worker {sleeps:?}, packets {packets:?}");
    check!(reads > 30, "only {reads} reads");
    // A worker that always has packets to send sleeps for nothing else.
    check!(
        sleeps.1 <= 2 * sleeps.0 + 30,
        "the worker waited {} times, and {} without the {reads} reads",
        sleeps.1,
        sleeps.0
    );
    // How many were sent in that time is a matter of what else the host does.
    check!(packets.1 > 0, "no packet was sent");
    Ok(())
}

/// A guest that has more to send than its device has sent by the time that it looks again: the worker never has to wait.
fn endless(kernel_thread: bool) -> Config {
    Config {
        tx_num: 32768,
        ..config(kernel_thread)
    }
}

/// Who looks at a device a thousand times a second changes nothing.
fn fdinfo_often() -> Res {
    for kernel_thread in [false, true] {
        let mut g = Guest::new(endless(kernel_thread))?;
        let flood = Flood::prepare(&mut g)?;
        no_difference(&g, &flood, &|| {
            fdinfo(&g)?;
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        })?;
    }
    Ok(())
}

/// Puts a thread on one processor.
fn pin(thread: i32, cpu: usize) {
    // SAFETY: all zero is a valid set, to which a processor is added.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(thread, size_of_val(&set), &set);
    }
}

/// Nor does who looks when nothing else is to be done, and is interrupted all the time.
fn fdinfo_preempted() -> Res {
    let mut g = Guest::new(endless(false))?;
    let flood = Flood::prepare(&mut g)?;
    let worker = worker_of(std::process::id() as i32, false)?;
    let id = worker.file_name().and_then(|n| n.to_str()?.parse().ok());
    pin(id.ok_or(Fail("no worker".into()))?, 0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        // Leaves a processor to others for moments.
        s.spawn(|| {
            pin(0, 1);
            while !stop.load(Relaxed) {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(800) {
                    std::hint::spin_loop();
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let result = no_difference(&g, &flood, &|| {
            pin(0, 1);
            let lowest = libc::sched_param { sched_priority: 0 };
            // SAFETY: a valid structure; the calling thread.
            unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &lowest) };
            fdinfo(&g).map(|_| ())
        });
        stop.store(true, Relaxed);
        result
    })
}

/// A page that is not there until it is served.
struct Missing {
    fd: OwnedFd,
    page: u64,
}

impl Missing {
    /// Takes a page of guest memory away.
    fn new(g: &Guest, gpa: u64) -> Res<Self> {
        const API: u64 = 0xc018_aa3f;
        const REGISTER: u64 = 0xc020_aa00;
        let page = g.mem.hva(gpa).0;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let api = [0xaau64, 0, 0];
        let register = [page as u64, page_size() as u64, 1, 0];
        // SAFETY: a page of guest memory, in place of which another one is mapped; valid structures.
        unsafe {
            let p = libc::mmap(page.cast(), page_size(), prot, flags, -1, 0);
            check!(p == page.cast(), "mmap");
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
            let fd = libc::syscall(libc::SYS_userfaultfd, flags);
            check!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd as i32);
            check_eq!(ioctl(&fd, API, &api), 0, "UFFDIO_API");
            check_eq!(ioctl(&fd, REGISTER, &register), 0, "UFFDIO_REGISTER");
            Ok(Missing {
                fd,
                page: page as u64,
            })
        }
    }

    /// Waits until somebody waits for it.
    fn wanted(&self) -> Res {
        check!(readable(&self.fd, deadline()), "nobody wants the page");
        Ok(())
    }

    fn serve(&self) -> Res {
        const ZEROPAGE: u64 = 0xc020_aa04;
        let zero = [self.page, page_size() as u64, 0, 0];
        check_eq!(ioctl(&self.fd, ZEROPAGE, &zero), 0, "UFFDIO_ZEROPAGE");
        Ok(())
    }
}

/// A guest whose worker waits for a page while it receives; what it sends has no backend yet.
fn waiting(kernel_thread: bool) -> Res<(Guest, Missing)> {
    let mut g = Guest::stopped(config(kernel_thread))?;
    g.net.set_backend(RX, Some(&g.tap.fd))?;
    let page = page_size();
    let at = g.mem.alloc(page, page as u64);
    let missing = Missing::new(&g, at)?;
    g.rx.add(&[Seg::w(at, 4096)]);
    g.rx.submit();
    g.peer.send(&frame(1, 60))?;
    missing.wanted()?;
    Ok((g, missing))
}

/// A packet that is published just when the device asks for a kick: it comes too late to be found, and too early to be kicked
/// for. Here that moment is as long as a page is missing.
fn published_beside_fault() -> Res {
    for kernel_thread in [false, true] {
        let cfg = Config {
            features: VERSION_1 | EVENT_IDX,
            ..config(kernel_thread)
        };
        // Where the device asks is alone in the last page of the used ring, but for an entry.
        let num = (page_size() / 8).max(1024);
        let mut g = Guest::stopped(cfg.num(num as u16))?;
        let missing = Missing::new(&g, g.tx.used + 8 * num as u64)?;
        g.net.set_backend(TX, Some(&g.tap.fd))?;
        missing.wanted()?;
        let p = frame(1, 60);
        let at = g.place(&p);
        g.tx.add(&[Seg::r(at, g.hdr + p.len())]);
        g.tx.publish();
        missing.serve()?;
        g.tx.wait()?;
        same(&g.peer.recv()?, &p, "the packet")?;
    }
    Ok(())
}

/// The second queue gets its backend while the worker waits for a page in the first one's, which the same thread may have to
/// serve.
fn bind_beside_fault() -> Res {
    for kernel_thread in [false, true] {
        let (mut g, missing) = waiting(kernel_thread)?;
        let done = AtomicBool::new(false);
        let errno = AtomicI32::new(-1);
        let (net, tap) = (g.net.as_raw_fd(), g.tap.fd.as_raw_fd());
        let in_time = std::thread::scope(|s| -> Res<bool> {
            let (done, errno) = (&done, &errno);
            s.spawn(move || {
                // A backend that it has not is taken away, one is given.
                for fd in [-1, tap] {
                    let file = VringFile {
                        index: TX as u32,
                        fd,
                    };
                    errno.store(ioctl(&net, NET_SET_BACKEND, &file), Relaxed);
                }
                done.store(true, Relaxed);
            });
            let begin = Instant::now();
            while !done.load(Relaxed) && begin.elapsed() < at_once() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let in_time = done.load(Relaxed);
            missing.serve()?;
            Ok(in_time)
        })?;
        check_eq!(errno.load(Relaxed), 0, "NET_SET_BACKEND");
        check!(in_time, "the bind waited for the other queue");
        check_eq!(g.rx.wait()?.len as usize, g.hdr + 60);
        g.send_all(&[frame(2, 60)])?;
        g.receive_all(&[frame(3, 60)])?;
    }
    Ok(())
}

/// Who looks at a device whose worker waits is told all, and at once.
fn fdinfo_beside_fault() -> Res {
    if on_c() {
        println!("# the C driver has no fdinfo");
        return Ok(());
    }
    for kernel_thread in [false, true] {
        let (mut g, missing) = waiting(kernel_thread)?;
        let mut worst = Duration::ZERO;
        let mut text = String::new();
        for _ in 0..10 {
            let begin = Instant::now();
            text = fdinfo(&g)?;
            worst = worst.max(begin.elapsed());
        }
        missing.serve()?;
        g.rx.wait()?;
        for key in [
            "vhost-features",
            "rx-packets",
            "rx-backend",
            "rx-last-fault",
            "tx-size",
            "tx-packets",
        ] {
            check!(text.contains(&format!("{key}:\t")), "no {key} in {text:?}");
        }
        check!(!text.contains("busy"), "busy: {text:?}");
        check!(worst < Duration::from_millis(500), "a look took {worst:?}");
    }
    Ok(())
}

/// Has numbered packets go both ways while `trouble` happens to the VMM: none is lost, none comes twice, all are whole.
fn under_traffic(g: &mut Guest, trouble: impl FnOnce() -> Res + Send) -> Res {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let area = g.mem.alloc(Traffic::room(g), 4096);
    let mut t = Traffic::new(g, area);
    let mut count = 300;
    t.run(g, count)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let trouble = s.spawn(|| {
            let _done = Done(&done);
            trouble()
        });
        let mut result = Ok(());
        while !done.load(Relaxed) && result.is_ok() {
            count += 1000;
            result = t.run(g, count);
        }
        let trouble = trouble.join().unwrap_or(Err(Fail("panic".into())));
        match (trouble, result) {
            (Err(Fail(one)), Err(Fail(other))) => Err(Fail(format!("{one}; {other}"))),
            (one, other) => one.and(other),
        }
    })?;
    println!("# {count} packets each way");
    t.run(g, count + 300)
}

/// A VMM that is stopped and goes on.
fn stopped() -> Res {
    for kernel_thread in [false, true] {
        let mut g = Guest::unowned(config(kernel_thread))?;
        let mut vmm = Vmm::new(&g, None)?;
        vmm.ask(order::START)?;
        let_go(&g)?;
        under_traffic(&mut g, || {
            for n in 0..20 {
                vmm.child.signal(libc::SIGSTOP);
                let status = vmm.child.wait(libc::WUNTRACED, at_once());
                let is = status.is_some_and(|s| libc::WIFSTOPPED(s));
                check!(is, "stop {n}: {status:?}, {}", states(vmm.child.pid));
                std::thread::sleep(Duration::from_millis(n * 7 % 30));
                vmm.child.signal(libc::SIGCONT);
                let status = vmm.child.wait(libc::WCONTINUED, at_once());
                let is = status.is_some_and(|s| libc::WIFCONTINUED(s));
                check!(is, "continue {n}: {status:?}");
                vmm.ask(order::PING)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The owner is stopped, and somebody else has the last reference to the device: closing it does not wait until the owner goes on.
fn stopped_and_closed() -> Res {
    let device = sys::open()?;
    let ready = shared()?;
    let child = Child::new(|| {
        check_eq!(ioctl(&device, SET_OWNER, NULL), 0, "SET_OWNER");
        // All of them together are waited for as one is.
        for _ in 0..if on_c() { 0 } else { 20 } {
            let mut id = 0u32;
            check_eq!(ioctl(&device, NEW_WORKER, &raw mut id), 0, "NEW_WORKER");
        }
        // SAFETY: the child's own descriptor, which it uses no more.
        unsafe { libc::close(device.as_raw_fd()) };
        ready.store(1, Relaxed);
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    })?;
    check!(until(|| ready.load(Relaxed) == 1), "no owner");
    let worker = worker_of(child.pid, false)?;
    child.signal(libc::SIGSTOP);
    let all_stopped = || !states(child.pid).split(", ").any(|s| !s.contains(" T "));
    check!(until(all_stopped), "{}", states(child.pid));
    let closing = std::thread::spawn(move || drop(device));
    let begin = Instant::now();
    while !closing.is_finished() && begin.elapsed() < at_once() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (closed, time) = (closing.is_finished(), begin.elapsed());
    let there = worker.exists();
    child.signal(libc::SIGCONT);
    let _ = closing.join();
    check!(closed, "closing waits for a worker that is stopped");
    println!("# closed in {time:?}");
    check!(there, "a thread that is stopped ended");
    check!(until(|| !worker.exists()), "the worker is still there");
    check!(nobody(), "{:?} users of the module", module_users());
    Ok(())
}

/// A VMM that is frozen and thawed.
fn frozen(kernel_thread: bool) -> Res {
    let group = Group::new("vhost-frozen")?;
    let mut g = Guest::unowned(config(kernel_thread))?;
    let vmm = Vmm::new(&g, Some(&group))?;
    vmm.ask(order::START)?;
    let_go(&g)?;
    under_traffic(&mut g, || {
        for n in 0..20 {
            let frozen = group.freeze(kernel_thread.then_some(vmm.child.pid), at_once())?;
            std::thread::sleep(Duration::from_millis(n * 7 % 30));
            let states = states(vmm.child.pid);
            group.thaw()?;
            check!(frozen.is_some(), "freeze {n} did not end: {states}");
            vmm.ask(order::PING)?;
        }
        Ok(())
    })
}

fn frozen_owner() -> Res {
    frozen(false)
}

fn frozen_kernel() -> Res {
    frozen(true)
}

/// Two VMMs that hand a device to each other, as QEMU does when it is replaced by another one.
fn handed_over() -> Res {
    for kernel_thread in [false, true] {
        for features in [VERSION_1, VERSION_1 | EVENT_IDX | MRG_RXBUF] {
            let mut g = Guest::unowned(Config {
                features,
                // Packets wait for buffers, so the device has some in hand when it is handed over.
                rx_num: 32,
                base: 65000,
                ..config(kernel_thread)
            })?;
            let vmms = [Vmm::new(&g, None)?, Vmm::without_device(&g)?];
            vmms[0].ask(order::START)?;
            let_go(&g)?;
            under_traffic(&mut g, || {
                for n in 0..12 {
                    let (old, new) = (&vmms[n % 2], &vmms[(n + 1) % 2]);
                    old.tell(order::GIVE)?;
                    let (mut byte, mut bases) = ([0], [0; 4]);
                    let (len, device) = old.sock.recv_with_fd(&mut byte)?;
                    check!(len == 1 && byte[0] == order::GIVE, "hand-over {n}");
                    let device = device.ok_or(Fail(format!("hand-over {n}: no device")))?;
                    (&old.sock).read_exact(&mut bases)?;
                    // For a moment the device belongs to nobody.
                    std::thread::sleep(Duration::from_millis(n as u64 % 4));
                    new.sock
                        .send_with_fd(&[order::TAKE][..], device.as_raw_fd())?;
                    (&new.sock).write_all(&bases)?;
                    drop(device);
                    new.answer(order::TAKE)?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A worker that was woken, and gets no processor before its owner has given the device away, has nothing to do with the queues
/// of the next owner, which are in that one's memory.
fn handed_over_late() -> Res {
    let mut g = Guest::unowned(config(false))?;
    let vmms = [Vmm::new(&g, None)?, Vmm::without_device(&g)?];
    vmms[0].ask(order::START)?;
    let_go(&g)?;
    let area = g.mem.alloc(Traffic::room(&g), 4096);
    let mut t = Traffic::new(&g, area);
    t.run(&mut g, 100)?;
    let worker = vmms[0].worker(&g)?;
    check!(
        until(|| !states(vmms[0].child.pid).contains(" R ")),
        "the VMM does not come to rest"
    );
    let id = worker.file_name().and_then(|n| n.to_str()?.parse().ok());
    let id = id.ok_or(Fail("no worker".into()))?;
    // All but the worker use the other processor, and the worker its own only when nobody else wants it.
    for thread in [
        std::process::id() as i32,
        vmms[0].child.pid,
        vmms[1].child.pid,
    ] {
        pin(thread, 1);
    }
    pin(id, 0);
    let lowest = libc::sched_param { sched_priority: 0 };
    // SAFETY: a valid structure; a thread of a child of this process.
    check_eq!(
        unsafe { libc::sched_setscheduler(id, libc::SCHED_IDLE, &lowest) },
        0
    );
    let kicks = |device: &std::fs::File| -> Res<String> {
        let text = read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()))?;
        let line = text.lines().find(|line| line.starts_with("tx-kicks:"));
        Ok(line.ok_or(Fail("no kicks".into()))?.to_string())
    };
    let ready = AtomicBool::new(false);
    let stop = AtomicBool::new(false);
    let (before, device) = std::thread::scope(|s| {
        s.spawn(|| {
            pin(0, 0);
            // SAFETY: the calling thread, which may get in front of all others of its kind.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
            ready.store(true, Relaxed);
            while !stop.load(Relaxed) {
                std::hint::spin_loop();
            }
        });
        let result = (|| {
            check!(until(|| ready.load(Relaxed)), "nobody spins");
            // It may have looked for work already when it loses the processor: then there is more.
            let kicked = until(|| {
                g.tx.kick();
                let before = read_to_string(worker.join("schedstat")).unwrap_or_default();
                g.tx.kick();
                std::thread::sleep(Duration::from_millis(20));
                let after = read_to_string(worker.join("schedstat")).unwrap_or_default();
                before == after && states(vmms[0].child.pid).contains(" R ")
            });
            check!(kicked, "the first worker always gets a processor");
            vmms[0].tell(order::GIVE)?;
            let (mut byte, mut bases) = ([0], [0; 4]);
            let (_, device) = vmms[0].sock.recv_with_fd(&mut byte)?;
            let device = device.ok_or(Fail("no device".into()))?;
            (&vmms[0].sock).read_exact(&mut bases)?;
            vmms[1]
                .sock
                .send_with_fd(&[order::TAKE][..], device.as_raw_fd())?;
            (&vmms[1].sock).write_all(&bases)?;
            vmms[1].answer(order::TAKE)?;
            // What waited for the next owner's own worker is no work of the first one's.
            let rests = || !states(vmms[1].child.pid).contains(" R ");
            check!(until(rests), "the second worker does not come to rest");
            // It is still on its way.
            check!(worker.exists(), "the first worker is gone already");
            Ok((kicks(&device)?, device))
        })();
        stop.store(true, Relaxed);
        result
    })?;
    check!(until(|| !worker.exists()), "the first worker does not end");
    check_eq!(
        kicks(&device)?,
        before,
        "the first worker has run the next owner's queue"
    );
    Ok(())
}

/// The owner becomes another program, with and without the device, while its guest sends.
fn executed() -> Res {
    for kernel_thread in [false, true] {
        for what in [order::EXEC, order::EXEC_OPEN] {
            let mut g = Guest::unowned(config(kernel_thread))?;
            let flood = Flood::prepare(&mut g)?;
            let vmm = Vmm::new(&g, None)?;
            vmm.ask(order::START)?;
            let_go(&g)?;
            let name = format!("/proc/{}/comm", vmm.child.pid);
            let is = |name: &str, what: &str| -> bool {
                read_to_string(name).is_ok_and(|text| text.trim() == what)
            };
            let (_, sent) = flooded(&g, &flood, || {
                let_flow(&g, &flood)?;
                vmm.tell(what)?;
                let executed = until(|| is(&name, "sleep"));
                check!(executed, "not executed: {}", states(vmm.child.pid));
                let threads = format!("/proc/{}/task", vmm.child.pid);
                check_eq!(std::fs::read_dir(threads)?.count(), 1, "its threads");
                if what == order::EXEC {
                    check!(nobody(), "{:?} users of the module", module_users());
                } else {
                    check!(module_users() != Some(0), "nobody has the device");
                }
                Ok(())
            })?;
            check!(
                sent > u64::from(amount(1000)),
                "only {sent} packets were sent"
            );
            drop(vmm);
            check!(nobody(), "{:?} users of the module", module_users());
        }
    }
    Ok(())
}

fn nobody() -> bool {
    until(|| module_users().is_none_or(|n| n == 0))
}

/// The owner dumps its core while its guest sends.
fn dumped() -> Res {
    let pattern = Path::new("/proc/sys/kernel/core_pattern");
    let before = read_to_string(pattern)?;
    let core = std::env::temp_dir().join("vhost-core");
    std::fs::write(pattern, core.as_os_str().as_encoded_bytes())?;
    let test = |kernel_thread: bool| -> Res {
        let _ = std::fs::remove_file(&core);
        let mut g = Guest::unowned(config(kernel_thread))?;
        let flood = Flood::prepare(&mut g)?;
        let mut vmm = Vmm::new(&g, None)?;
        vmm.ask(order::START)?;
        let_go(&g)?;
        let (_, sent) = flooded(&g, &flood, || {
            let_flow(&g, &flood)?;
            vmm.tell(order::DUMP)?;
            let status = vmm.child.wait(0, 3 * patience());
            let status =
                status.ok_or_else(|| Fail(format!("no end: {}", states(vmm.child.pid))))?;
            check!(
                libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT,
                "status {status:#x}"
            );
            check!(libc::WCOREDUMP(status), "no core: status {status:#x}");
            let len = std::fs::metadata(&core)?.len();
            println!("# a core of {len} bytes");
            // With guest memory in it.
            check!(len > 8 << 20, "a core of {len} bytes");
            check!(nobody(), "{:?} users of the module", module_users());
            Ok(())
        })?;
        check!(
            sent > u64::from(amount(1000)),
            "only {sent} packets were sent"
        );
        Ok(())
    };
    let result = test(false).and_then(|()| test(true));
    std::fs::write(pattern, before)?;
    let _ = std::fs::remove_file(&core);
    result
}

fn main() {
    const TESTS: &[Test] = &[
        ("stopped", stopped),
        ("stopped_and_closed", stopped_and_closed),
        ("handed_over", handed_over),
        ("handed_over_late", handed_over_late),
        ("executed", executed),
        ("dumped", dumped),
        ("freeze_kernel", freeze_kernel),
        ("signal_set_owner_kernel", signal_set_owner_kernel),
        ("frozen_owner", frozen_owner),
        ("frozen_kernel", frozen_kernel),
        ("cpu_share_owner", cpu_share_owner),
        ("cpu_latency_owner", cpu_latency_owner),
        ("cpu_killed_owner", cpu_killed_owner),
        ("freeze_mem_table", freeze_mem_table),
        ("freeze_backend", freeze_backend),
        ("freeze_kick", freeze_kick),
        ("freeze_log_fd", freeze_log_fd),
        ("freeze_two_threads", freeze_two_threads),
        ("freeze_owner", freeze_owner),
        ("freeze_reopen", freeze_reopen),
        ("signal_set_owner_restarting", signal_set_owner_restarting),
        ("signal_set_owner_plain", signal_set_owner_plain),
        ("signal_calls", signal_calls),
        ("fdinfo_often", fdinfo_often),
        ("fdinfo_preempted", fdinfo_preempted),
        ("published_beside_fault", published_beside_fault),
        ("bind_beside_fault", bind_beside_fault),
        ("fdinfo_beside_fault", fdinfo_beside_fault),
    ];
    // What the kernel has no way for: a kernel thread is charged to a group that can't hold it.
    const PENDING: &[Test] = &[
        ("cpu_share_kernel", cpu_share_kernel),
        ("cpu_latency_kernel", cpu_latency_kernel),
        ("cpu_killed_kernel", cpu_killed_kernel),
    ];
    ktap::run_and(TESTS, PENDING)
}
