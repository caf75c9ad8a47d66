// SPDX-License-Identifier: GPL-2.0

//! Runs a script against the device and writes down all that can be seen.
//!
//! The worker is a thread of this process on the same processor, and has a higher real-time priority:
//! when a system call that wakes it returns, it has done all that it can do. So nothing here waits or
//! asks the driver to wait, what is seen depends on no clock, and a wake-up that is lost is seen. A
//! worker that is a kernel thread gets the same processor and priority as soon as it is there.
//!
//! What this refuses to do, whatever the script says, is what makes the C driver run without end or the
//! two differ as docs/differences.md says. It then writes "skipped".

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Error;
use std::io::Read;
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use kselftest::check;
use kselftest::check_eq;
use kselftest::feature;
use kselftest::frame;
use kselftest::net::tcp_frame;
use kselftest::net::TUN_F_CSUM;
use kselftest::net::TUN_F_TSO4;
use kselftest::packed::Packed;
use kselftest::packed::Spot;
use kselftest::sys;
use kselftest::sys::ioctl;
use kselftest::Fail;
use kselftest::Mem;
use kselftest::Peer;
use kselftest::Res;
use kselftest::Tap;

use crate::script::Action;

mod packed;

pub use packed::KICKS;
pub use packed::LOG_IN_ANY_FORMAT;
pub use packed::OF_THE_FORMAT;
pub use packed::PACKED;

/// The guest's memory: the places of both rings, their indirect tables, and buffers.
const ARENA: u64 = 0x20_0000_0000;
const SIZE: u64 = 0x40000;
/// The same memory once more.
const ALIAS: u64 = 0x20_1000_0000;
const LOG: u64 = 0x20_2000_0000;
const LOG_SIZE: u64 = 0x40_0000;
/// Nothing is mapped here, nor between the others.
const HOLE: u64 = 0x20_3000_0000;
const RESERVED: u64 = 0x1_0000_0000;
/// Not user space.
const KERNEL: u64 = 0xffff_8880_0000_0000;

/// The most descriptors that a ring has here.
const NUM: u64 = 256;
/// Where a queue's descriptors, its rings and its indirect tables are.
const fn ring(q: usize) -> u64 {
    q as u64 * 0x4000
}
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// A used ring that has a page boundary in it.
const USED_ACROSS: u64 = 0x2c00;
const fn tables(q: usize) -> u64 {
    0x8000 + q as u64 * 0x8000
}
/// The most descriptors of a table.
const TABLE: usize = 8;
/// Where a queue's buffers are, from and to.
const BUFFERS: [(u64, u64); 2] = [(0x18000, 0x2c000), (0x2c000, SIZE)];
const BUFFER_PAGES: std::ops::Range<u64> = BUFFERS[0].0 / 0x1000..BUFFERS[1].1 / 0x1000;

/// What the device signals; how often is written behind it.
pub const EVENTFDS: [&str; 8] = [
    "call 0",
    "call 1",
    "error 0",
    "error 1",
    "log",
    LOG_BY_IOTLB,
    LOG_IN_ANY_FORMAT,
    "spare",
];
pub const LOG_BY_IOTLB: &str = "log by IOTLB";
/// Begins a line that says what the device missed.
pub const MISS: &str = "  miss";
/// How long a worker may outlive its device. Shorter than a script may take (driver.rs).
const CLOSED: Duration = Duration::from_secs(50);
/// What follows the name of one that may have been signalled needlessly.
pub const PERHAPS: &str = " perhaps";

/// The pages of the buffers to receive into.
pub const RX_PAGES: std::ops::Range<u64> = BUFFERS[0].0 / 0x1000..BUFFERS[0].1 / 0x1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const SET_BUSYLOOP: u64 = 0x4008_af23;
const GET_BUSYLOOP: u64 = 0x4008_af24;
/// Those of the verb `worker`.
const WORKER_IOCTLS: [u64; 4] = [sys::NEW_WORKER, 0x4004_af09, 0x4008_af15, 0xc008_af16];
const TUNSETSNDBUF: u64 = 0x4004_54d4;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;

/// The ioctls of the verb `fault`.
pub const IOCTLS: &[u64] = &[
    sys::GET_FEATURES,
    sys::SET_FEATURES,
    sys::SET_MEM_TABLE,
    sys::SET_LOG_BASE,
    sys::SET_LOG_FD,
    sys::SET_VRING_NUM,
    sys::SET_VRING_ADDR,
    sys::SET_VRING_BASE,
    sys::GET_VRING_BASE,
    sys::SET_VRING_ENDIAN,
    sys::GET_VRING_ENDIAN,
    sys::SET_VRING_KICK,
    sys::SET_VRING_CALL,
    sys::SET_VRING_ERR,
    SET_BUSYLOOP,
    GET_BUSYLOOP,
    sys::SET_BACKEND_FEATURES,
    sys::GET_BACKEND_FEATURES,
    sys::NET_SET_BACKEND,
    sys::GET_FEATURES_ARRAY,
    sys::SET_FEATURES_ARRAY,
    sys::SET_FORK_FROM_OWNER,
    sys::GET_FORK_FROM_OWNER,
    0xaf7f,
    0x1234,
];

/// The scheduling priorities: the worker's is that of its owner when it is made.
const PRIORITY: i32 = 5;
const WORKER_PRIORITY: i32 = 10;

/// Gives the calling thread a real-time priority.
pub fn priority(value: i32) -> Res {
    let param = libc::sched_param {
        sched_priority: value,
    };
    // SAFETY: the structure is valid.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &param) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error().into()),
    }
}

/// Gives the worker of this process, a kernel thread, this thread's processor and the priority of workers.
fn raise_kernel_thread() -> Res {
    let name = format!("vhost-{}\n", std::process::id());
    // The youngest of that name: an older one is about to end.
    let youngest = std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == name)
        })
        .max();
    let Some(pid) = youngest else {
        return Err(Fail(format!("no kernel thread {}", name.trim())));
    };
    let param = libc::sched_param {
        sched_priority: WORKER_PRIORITY,
    };
    // SAFETY: all zero is a valid set, and both structures are valid and of their sizes.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&set), &mut set);
        if libc::sched_setaffinity(pid, size_of_val(&set), &set) != 0
            || libc::sched_setscheduler(pid, libc::SCHED_FIFO, &param) != 0
        {
            return Err(Error::last_os_error().into());
        }
    }
    Ok(())
}

fn eventfd() -> Res<File> {
    // SAFETY: creates a descriptor, which is owned by nobody else.
    unsafe {
        match libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) {
            -1 => Err(Error::last_os_error().into()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// A mapping at a given place.
fn map(at: u64, size: u64, prot: i32, flags: i32, fd: i32) -> Res {
    let flags = flags | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: this part of the address space is used for nothing else.
    match unsafe { libc::mmap(at as *mut _, size as usize, prot, flags, fd, 0) } {
        libc::MAP_FAILED => Err(Error::last_os_error().into()),
        _ => Ok(()),
    }
}

/// What lasts from one script to the next.
pub struct Machine {
    tap: Tap,
    plain: Tap,
    /// The packet sockets' interface; its far end is the tap.
    wire: Tap,
    peer: Peer,
    plain_peer: Peer,
    packet: Peer,
    packet_vnet: Peer,
    udp: UdpSocket,
    kick: [File; 2],
    call: [File; 2],
    err: [File; 2],
    log: File,
    /// A kick, and something that is signalled: a device that kicks itself does not end.
    spare: [File; 2],
    /// The arena, for who drives a packed ring.
    mem: Arc<Mem>,
    buf: Vec<u8>,
}

impl Machine {
    /// Makes the network and the memory.
    pub fn new() -> Res<Self> {
        sys::own_network()?;
        map(
            ARENA,
            RESERVED,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
        )?;
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a valid name; the descriptor is new.
        let file =
            unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(SIZE)?;
        map(ARENA, SIZE, rw, libc::MAP_SHARED, file.as_raw_fd())?;
        map(ALIAS, SIZE, rw, libc::MAP_SHARED, file.as_raw_fd())?;
        let mem = Arc::new(Mem::mapped(file, 0, SIZE, ARENA));
        map(
            LOG,
            LOG_SIZE,
            rw,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
        )?;

        let tap = Tap::new("tap0", 12)?;
        tap.offload(TUN_F_CSUM | TUN_F_TSO4)?;
        let plain = Tap::new("tap1", 0)?;
        let wire = Tap::new("tap2", 0)?;
        let packet_vnet = Peer::new(wire.index, true)?;
        const PACKET_VNET_HDR_SZ: i32 = 24;
        // SAFETY: the value is of that length.
        unsafe {
            libc::setsockopt(
                packet_vnet.fd.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_VNET_HDR_SZ,
                &12i32 as *const i32 as *const _,
                4,
            )
        };
        let machine = Machine {
            peer: Peer::new(tap.index, true)?,
            plain_peer: Peer::new(plain.index, false)?,
            packet: Peer::new(wire.index, false)?,
            packet_vnet,
            tap,
            plain,
            wire,
            udp: UdpSocket::bind("0.0.0.0:0")?,
            kick: [eventfd()?, eventfd()?],
            call: [eventfd()?, eventfd()?],
            err: [eventfd()?, eventfd()?],
            log: eventfd()?,
            spare: [eventfd()?, eventfd()?],
            mem,
            buf: vec![0; 1 << 17],
        };
        priority(PRIORITY)?;
        Ok(machine)
    }

    /// Runs a script on a device of its own. Returns what was seen. `at` is told the number of each action.
    pub fn run(&mut self, script: &[Action], at: &AtomicUsize) -> Res<String> {
        // SAFETY: both are mapped, and no device is open that could write there. What is private and
        // given up is zero when it is read next.
        unsafe {
            std::ptr::write_bytes(ARENA as *mut u8, 0, SIZE as usize);
            if libc::madvise(LOG as *mut _, LOG_SIZE as usize, libc::MADV_DONTNEED) != 0 {
                return Err(Error::last_os_error().into());
            }
        }
        let dev = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/vhost-net")?;
        let mut run = Run {
            m: self,
            dev,
            features: [0; 2],
            owner: false,
            kernel_thread: false,
            unanswered: false,
            gpa: 0,
            layout: 0,
            log_at: LOG,
            windows: vec![],
            queues: [Queue::default(), Queue::default()],
            big: false,
            legacy_big: false,
            checksums: false,
            in_order: false,
            on_empty: false,
            down: vec![],
            number: 0,
            any_format: false,
            offered: false,
            open: true,
            out: String::new(),
        };
        run.empty();
        run.out.clear();
        for (number, action) in script.iter().enumerate() {
            at.store(number + 1, Ordering::Relaxed);
            let _ = writeln!(run.out, "{action}");
            let result = run.act(action);
            let _ = writeln!(run.out, "  = {result}");
            run.serve();
            run.look();
        }
        at.store(script.len() + 1, Ordering::Relaxed);
        run.end()?;
        run.out.push_str("bye\n");
        Ok(run.out)
    }
}

/// A chain that the device has.
#[derive(Clone, Default)]
struct Chain {
    head: u16,
    /// Its descriptors in the ring.
    descs: u64,
    /// Offsets and lengths.
    segs: Vec<(u64, u64)>,
    /// Where it is in a packed ring, and how many descriptors it has there.
    spot: Option<(Spot, usize)>,
}

/// The driver's side of a queue.
struct Queue {
    num: u64,
    /// Where the used ring is, as an offset.
    used: u64,
    avail_idx: u16,
    /// The next descriptor of the table to use; it wraps.
    next_desc: u16,
    /// The used index up to which entries were taken.
    seen: u16,
    chains: VecDeque<Chain>,
    /// The malformed one's head and available index.
    bad: Option<(u16, u16)>,
    /// That is an available entry, which the device may have read before it comes to it.
    bad_entry: bool,
    /// An error was signalled since then.
    erred: bool,
    /// The next free byte of its buffers.
    buffer: u64,
    /// Which eventfd the device waits for, see the verb.
    kick: u64,
    backend: u64,
    /// The ring is of one size all through.
    fresh: bool,
    /// The place of the ring is one that a device can run with.
    placed: bool,
    /// Where the device was told that its areas are.
    addrs: [u64; 3],
    /// The byte order that the device was told of.
    big: bool,
    /// It polls before it sleeps.
    polls: bool,
    flags: u16,
    event: u16,
    /// What the guest asks for: the available ring's flags, and the index of the chain whose use is to be told.
    asks: (u16, u16),
    packed: Option<Packed>,
    /// What stands in the packed ring's device area, and how many descriptors were available when that was seen first.
    armed: ((u16, u16), u64),
    /// How many descriptors were made available in the packed ring.
    descs: u64,
}

impl Default for Queue {
    fn default() -> Self {
        Queue {
            num: 1,
            used: USED,
            avail_idx: 0,
            next_desc: 0,
            seen: 0,
            chains: VecDeque::new(),
            bad: None,
            bad_entry: false,
            erred: false,
            buffer: 0,
            kick: 0,
            backend: 0,
            fresh: true,
            placed: true,
            addrs: [0; 3],
            big: false,
            polls: false,
            flags: 0,
            event: 0,
            asks: (0, 0),
            packed: None,
            armed: ((0, 0), 0),
            descs: 0,
        }
    }
}

struct Run<'a> {
    m: &'a mut Machine,
    dev: File,
    features: [u64; 2],
    owner: bool,
    kernel_thread: bool,
    /// A miss was read that is not answered: a kick asks this driver's device for it again, and the C driver's for nothing.
    unanswered: bool,
    /// Where the guest sees the arena, and how.
    gpa: u64,
    layout: u64,
    log_at: u64,
    /// The parts of the log that were in use.
    windows: Vec<u64>,
    queues: [Queue; 2],
    /// The guest's byte order.
    big: bool,
    /// The device was told of that order at some time.
    legacy_big: bool,
    /// A header asked for a checksum.
    checksums: bool,
    /// Queue 1 was in order at some time.
    in_order: bool,
    /// It was called when its ring was empty, whatever event it asked for, at some time. From such a call
    /// no event counts, so how many calls there were before makes the number of the next.
    on_empty: bool,
    /// The interfaces that were taken down.
    down: Vec<u64>,
    /// Of the next packet.
    number: u32,
    /// The script is one of any format (packed.rs), and the driver has packed rings.
    any_format: bool,
    offered: bool,
    /// The device is.
    open: bool,
    out: String,
}

/// What follows an action that the device or the script does not get through with.
const SKIPPED: &str = "skipped";

fn done(errno: i32) -> String {
    match errno {
        0 => "0".into(),
        e => format!("errno {e}"),
    }
}

fn hash(data: &[u8]) -> u32 {
    let mut h = 0x9e37_79b9_7f4a_7c15u64 ^ data.len() as u64;
    let mut chunks = data.chunks_exact(8);
    let mut mix = |word: u64| {
        h = (h ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^= h >> 29;
    };
    for c in &mut chunks {
        mix(u64::from_le_bytes(c.try_into().unwrap()));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(u64::from_le_bytes(last));
    (h >> 32) as u32
}

fn memory(at: u64, len: u64) -> &'static [u8] {
    assert!(at + len <= SIZE);
    // SAFETY: that part of the arena is mapped, and the worker, which could write there, sleeps.
    unsafe { std::slice::from_raw_parts((ARENA + at) as *const u8, len as usize) }
}

fn store(at: u64, data: &[u8]) {
    assert!(at + data.len() as u64 <= SIZE);
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), (ARENA + at) as *mut u8, data.len()) }
}

impl Run<'_> {
    fn act(&mut self, action: &Action) -> String {
        let small = |n: u64| n as u32;
        match (action.verb, &action.args[..]) {
            ("packed", []) => self.begin_packed(),
            ("owner", []) => {
                let _ = priority(WORKER_PRIORITY);
                let r = ioctl(&self.dev, sys::SET_OWNER, std::ptr::null::<u8>());
                let _ = priority(PRIORITY);
                self.owner |= r == 0;
                if r == 0 && self.kernel_thread {
                    if let Err(Fail(why)) = raise_kernel_thread() {
                        return why;
                    }
                }
                done(r)
            }
            ("reset-owner", []) => {
                let r = ioctl(&self.dev, sys::RESET_OWNER, std::ptr::null::<u8>());
                if r == 0 {
                    self.owner = false;
                    self.kernel_thread = false;
                    self.unanswered = false;
                    self.features = [0; 2];
                    self.log_at = 0;
                    for q in &mut self.queues {
                        q.packed = None;
                        q.num = 1;
                        q.kick = 0;
                        q.backend = 0;
                        q.fresh = false;
                        q.placed = true;
                        q.addrs = [0; 3];
                        q.big = false;
                        q.polls = false;
                    }
                }
                done(r)
            }
            ("get-features", []) => {
                let mut f = [0u64];
                let r = ioctl(&self.dev, sys::GET_FEATURES, f.as_mut_ptr());
                format!("{} {:#x}", done(r), f[0] & !feature::RING_PACKED)
            }
            ("get-features-array", &[count @ 0..=8]) => {
                let mut f = [u64::MAX; 10];
                f[0] = count;
                let r = ioctl(&self.dev, sys::GET_FEATURES_ARRAY, f.as_mut_ptr());
                if count > 0 && r == 0 {
                    f[1] &= !feature::RING_PACKED;
                }
                format!("{} {f:x?}", done(r))
            }
            ("features", &[bits]) => {
                if !self.may_have(bits) {
                    return SKIPPED.into();
                }
                let r = ioctl(&self.dev, sys::SET_FEATURES, &self.with_format(bits));
                self.set_features(r, [bits, 0])
            }
            ("features-array", words) if words.len() <= 8 => {
                let low = words.first().copied().unwrap_or(0);
                if !self.may_have(low) {
                    return SKIPPED.into();
                }
                let mut f = vec![words.len() as u64];
                f.extend(words);
                if let Some(low) = f.get_mut(1) {
                    *low = self.with_format(*low);
                }
                let r = ioctl(&self.dev, sys::SET_FEATURES_ARRAY, f.as_ptr());
                self.set_features(r, [low, words.get(1).copied().unwrap_or(0)])
            }
            ("get-backend-features", []) => {
                let mut f = [0u64];
                let r = ioctl(&self.dev, sys::GET_BACKEND_FEATURES, f.as_mut_ptr());
                format!("{} {:#x}", done(r), f[0])
            }
            ("backend-features", &[bits]) => {
                done(ioctl(&self.dev, sys::SET_BACKEND_FEATURES, &bits))
            }
            ("fork", &[byte]) => {
                let r = ioctl(&self.dev, sys::SET_FORK_FROM_OWNER, &(byte as u8));
                if r == 0 {
                    self.kernel_thread = byte == 0;
                }
                done(r)
            }
            ("get-fork", []) => {
                let mut byte = [0xffu8];
                let r = ioctl(&self.dev, sys::GET_FORK_FROM_OWNER, byte.as_mut_ptr());
                format!("{} {}", done(r), byte[0])
            }
            // What the driver made available before would be asked for by addresses that no longer mean anything, by a
            // device that does not look ahead.
            ("mem", &[_, gpa])
                if gpa != self.gpa && self.has(feature::ACCESS_PLATFORM) && self.runs() =>
            {
                SKIPPED.into()
            }
            ("mem", &[layout, gpa]) => self.mem(layout, gpa),
            ("num", &[_, n]) if self.any_format && !n.is_power_of_two() => SKIPPED.into(),
            ("num", &[q, n]) => {
                let state = sys::State {
                    index: small(q),
                    num: small(n),
                };
                let r = ioctl(&self.dev, sys::SET_VRING_NUM, &state);
                if let (0, Some(queue)) = (r, self.queues.get_mut(q as usize)) {
                    queue.fresh &= queue.num == n;
                    queue.num = n;
                }
                done(r)
            }
            ("base", &[q, n, reset]) => self.base(q, n, reset != 0),
            ("get-base", &[q]) => self.get_base(q),
            ("addr", &[q, place, log]) => self.addr(q, place, log),
            // It may hold a kick.
            ("kick-fd", _) if self.unanswered => SKIPPED.into(),
            ("kick-fd", &[q, fd]) => {
                let own = |m: &Machine, q: usize| [m.kick[q].as_raw_fd(), m.spare[0].as_raw_fd()];
                let r = self.vring_file(sys::SET_VRING_KICK, q, own, fd);
                if let (0, Some(queue)) = (r, self.queues.get_mut(q as usize)) {
                    queue.kick = fd;
                }
                done(r)
            }
            ("call-fd", &[q, fd]) => {
                let own = |m: &Machine, q: usize| [m.call[q].as_raw_fd(), m.spare[1].as_raw_fd()];
                done(self.vring_file(sys::SET_VRING_CALL, q, own, fd))
            }
            ("err-fd", &[q, fd]) => {
                let own = |m: &Machine, q: usize| [m.err[q].as_raw_fd(), m.spare[1].as_raw_fd()];
                done(self.vring_file(sys::SET_VRING_ERR, q, own, fd))
            }
            ("log-fd", &[fd]) => {
                let fd = self.eventfd_number([self.m.log.as_raw_fd(); 2], fd);
                done(ioctl(&self.dev, sys::SET_LOG_FD, &fd))
            }
            ("log-base", &[place @ 0..=3]) => {
                let at = [LOG, LOG + 3, HOLE, KERNEL][place as usize];
                let r = ioctl(&self.dev, sys::SET_LOG_BASE, &at);
                if r == 0 {
                    self.log_at = at;
                }
                done(r)
            }
            ("endian", &[q, n]) => {
                if n == 1 && self.checksums {
                    return SKIPPED.into();
                }
                let state = sys::State {
                    index: small(q),
                    num: small(n),
                };
                let r = ioctl(&self.dev, sys::SET_VRING_ENDIAN, &state);
                if let (0, Some(queue)) = (r, self.queues.get_mut(q as usize)) {
                    queue.big = n == 1;
                    self.legacy_big |= n == 1;
                }
                done(r)
            }
            ("get-endian", &[q]) => self.get_state(sys::GET_VRING_ENDIAN, q),
            ("busyloop", &[q, n]) => {
                let state = sys::State {
                    index: small(q),
                    num: small(n),
                };
                // Whether a queue wants kicks while another polls is not the same.
                if n != 0 && self.queues.iter().any(|q| q.backend != 0) {
                    return SKIPPED.into();
                }
                let r = ioctl(&self.dev, SET_BUSYLOOP, &state);
                if let (0, Some(queue)) = (r, self.queues.get_mut(q as usize)) {
                    queue.polls = n != 0;
                }
                done(r)
            }
            ("get-busyloop", &[q]) => self.get_state(GET_BUSYLOOP, q),
            ("worker", &[kind @ 0..=3, q, n]) => {
                let mut arg = match kind {
                    0 | 1 => [small(n), 0],
                    _ => [small(q), small(n)],
                };
                let _ = priority(WORKER_PRIORITY);
                // Only this driver has more than one.
                ioctl(&self.dev, WORKER_IOCTLS[kind as usize], arg.as_mut_ptr());
                let _ = priority(PRIORITY);
                SKIPPED.into()
            }
            ("backend", &[q, b]) => self.backend(q, b),
            ("fault", &[n]) if (n as usize) < IOCTLS.len() => {
                // Where no program has anything.
                done(ioctl(&self.dev, IOCTLS[n as usize], HOLE as *const u8))
            }
            // With a ring that may not be used as one, this driver signals the error eventfd.
            ("message", &[_, _, 2, iova, _, _, perm])
                if perm != 3 && iova.wrapping_sub(self.gpa) < tables(0) =>
            {
                SKIPPED.into()
            }
            ("message", &[version, bytes, kind, iova, size, address, perm]) => {
                let mut message = [0; 72];
                message[..4].copy_from_slice(&(version as u32).to_le_bytes());
                message[8..16].copy_from_slice(&iova.to_le_bytes());
                message[16..24].copy_from_slice(&size.to_le_bytes());
                message[24..32].copy_from_slice(&ARENA.wrapping_add(address).to_le_bytes());
                message[32] = perm as u8;
                message[33] = kind as u8;
                let bytes = (bytes as usize).min(message.len());
                match self.dev.write(&message[..bytes]) {
                    Ok(n) => format!("{n}"),
                    Err(e) => done(e.raw_os_error().unwrap_or(-1)),
                }
            }
            ("read", &[bytes]) => {
                let mut message = [0; 100];
                let bytes = (bytes as usize).min(message.len());
                match self.dev.read(&mut message[..bytes]) {
                    Ok(n) => {
                        self.unanswered |= n == 72;
                        format!("{n} {}", Self::message(&message[..n]))
                    }
                    Err(e) => done(e.raw_os_error().unwrap_or(-1)),
                }
            }
            ("tx", &[header, table @ 0..=4, ref lens @ ..]) => self.tx(header, table, lens),
            ("rx", &[table @ 0..=4, ref lens @ ..]) => self.rx(table, lens),
            ("many", &[0, count, len]) => self.many(count, |s| s.rx(0, &[len])),
            ("many", &[1, count, len]) => self.many(count, |s| s.tx(0, 0, &[len])),
            ("bad" | "jump", &[_, kind]) if self.any_format && !packed::has(action.verb, kind) => {
                SKIPPED.into()
            }
            ("bad", &[q @ 0..=1, kind @ 0..=10]) => self.bad(q as usize, kind),
            ("mend", &[q @ 0..=1]) => self.mend(q as usize),
            ("jump", &[q @ 0..=1, n]) if n == 0 || (0x1000..0xf000).contains(&n) => {
                let idx = self.queues[q as usize].avail_idx.wrapping_add(n as u16);
                self.put16(ring(q as usize) + AVAIL + 2, idx);
                "0".into()
            }
            ("kick", &[0..=1]) if self.unanswered => SKIPPED.into(),
            ("kick", &[q @ 0..=1]) => {
                let file = match self.queues[q as usize].kick {
                    1 => &self.m.kick[q as usize],
                    2 => &self.m.spare[0],
                    _ => return SKIPPED.into(),
                };
                match (&*file).write(&1u64.to_ne_bytes()) {
                    Ok(_) => "0".into(),
                    Err(_) => "full".into(),
                }
            }
            ("avail-flags", &[q @ 0..=1, n]) => {
                self.queues[q as usize].asks.0 = n as u16;
                if self.drives_packed() {
                    self.ask_packed(q as usize);
                } else {
                    self.put16(ring(q as usize) + AVAIL, n as u16);
                }
                "0".into()
            }
            ("used-event", &[q @ 0..=1, n]) => {
                let queue = &mut self.queues[q as usize];
                if queue.num > NUM {
                    return SKIPPED.into();
                }
                let (event, at) = (queue.seen.wrapping_add(n as u16), 4 + 2 * queue.num);
                queue.asks.1 = event;
                if self.drives_packed() {
                    self.ask_packed(q as usize);
                } else {
                    self.put16(ring(q as usize) + AVAIL + at, event);
                }
                "0".into()
            }
            ("guest-endian", &[n]) => {
                if self.queues.iter().any(|q| q.backend != 0) {
                    return SKIPPED.into();
                }
                // On a kernel without cross-endian rings the queues stay as they are, and so does the guest.
                self.big = n == 1 && self.queues.iter().all(|q| q.big);
                "0".into()
            }
            ("in", &[b, kind, len, count]) => self.incoming(b, kind, len, count),
            ("steal", &[b @ 1..=2]) => {
                let tap = if b == 1 { &self.m.tap } else { &self.m.plain };
                match (&tap.fd).read(&mut self.m.buf) {
                    Ok(n) => format!("{n}#{:08x}", hash(&self.m.buf[..n])),
                    Err(e) => done(e.raw_os_error().unwrap_or(-1)),
                }
            }
            ("header", &[bytes]) => done(ioctl(&self.m.tap.fd, TUNSETVNETHDRSZ, &(bytes as i32))),
            ("sndbuf", &[bytes]) => self.sndbuf(bytes),
            ("link", &[b @ 1..=2, up]) => self.link(b, up != 0),
            _ => panic!("no such action: {action}"),
        }
    }

    fn set_features(&mut self, r: i32, words: [u64; 2]) -> String {
        if r == 0 {
            let had = self.has(feature::ACCESS_PLATFORM);
            let was = self.is_packed();
            self.features = words;
            if self.is_packed() != was {
                self.change_format();
            }
            if had != self.has(feature::ACCESS_PLATFORM) {
                // The device has forgotten where the rings are.
                for q in &mut self.queues {
                    q.placed = false;
                }
            }
            self.in_order |= self.has(feature::IN_ORDER);
            self.on_empty |= self.has(feature::NOTIFY_ON_EMPTY) && self.has(feature::EVENT_IDX);
        }
        done(r)
    }

    fn runs(&self) -> bool {
        self.queues.iter().any(|q| q.backend != 0)
    }

    fn has(&self, feature: u64) -> bool {
        self.features[0] & feature != 0
    }

    /// Whether the features are such that both drivers do the same.
    fn may_have(&self, bits: u64) -> bool {
        // The C driver takes the base for the place of the next descriptor, and logs another range.
        let in_order = self.queues.iter().all(|q| q.fresh && q.used == USED);
        // See `mem`.
        (in_order || bits & feature::IN_ORDER == 0)
            // Without the other bit both refuse it.
            && (bits & feature::RING_PACKED == 0 || bits & feature::VERSION_1 == 0)
            && (self.layout < 2 || bits & feature::ACCESS_PLATFORM == 0)
            && (!self.any_format || self.may_have_in_any(bits))
    }

    fn header(&self) -> usize {
        if self.features[1] != 0 {
            24
        } else if self.has(feature::MRG_RXBUF | feature::VERSION_1) {
            12
        } else {
            10
        }
    }

    fn put16(&self, at: u64, value: u16) {
        store(
            at,
            &if self.big {
                value.to_be_bytes()
            } else {
                value.to_le_bytes()
            },
        );
    }

    fn get16(&self, at: u64) -> u16 {
        let b = memory(at, 2).try_into().unwrap();
        if self.big {
            u16::from_be_bytes(b)
        } else {
            u16::from_le_bytes(b)
        }
    }

    fn get32(&self, at: u64) -> u32 {
        let b = memory(at, 4).try_into().unwrap();
        if self.big {
            u32::from_be_bytes(b)
        } else {
            u32::from_le_bytes(b)
        }
    }

    /// Writes a descriptor.
    fn desc(&self, table: u64, i: u64, addr: u64, len: u64, flags: u16, next: u16) {
        let mut d = [0; 16];
        d[..8].copy_from_slice(&addr.to_le_bytes());
        d[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        d[12..14].copy_from_slice(&flags.to_le_bytes());
        d[14..].copy_from_slice(&next.to_le_bytes());
        if self.big {
            for field in [0..8, 8..12, 12..14, 14..16] {
                d[field].reverse();
            }
        }
        store(table + 16 * i, &d);
    }

    /// Writes a descriptor of an indirect table; `next` is 0 behind the last.
    fn table_desc(&self, table: u64, i: u64, addr: u64, len: u64, flags: u16, next: u16) {
        if self.drives_packed() {
            // In memory the flags come last; all in the table are the chain's.
            self.desc(table, i, addr, len, 0, flags);
        } else {
            let more = if next != 0 { NEXT } else { 0 };
            self.desc(table, i, addr, len, flags | more, next);
        }
    }

    /// Writes down what the guest asks of the device, where that looks.
    fn ask(&self, q: usize) {
        let queue = &self.queues[q];
        if self.drives_packed() {
            self.ask_packed(q);
            return;
        }
        self.put16(ring(q) + AVAIL, queue.asks.0);
        if queue.num <= NUM {
            self.put16(ring(q) + AVAIL + 4 + 2 * queue.num, queue.asks.1);
        }
    }

    /// Memory tables. Where the buffers to transmit are mapped they are readable, or the C driver would
    /// try to read them for ever.
    fn mem(&mut self, layout: u64, gpa: u64) -> String {
        let at = |from: u64, to: u64, hva: u64| sys::Region {
            gpa: gpa.wrapping_add(from),
            size: to - from,
            hva: hva.wrapping_add(from),
            flags: 0,
        };
        let (rx, rx_end) = BUFFERS[0];
        let mut padding = 0;
        let regions = match layout {
            0 => vec![at(0, SIZE, ARENA)],
            // Two that follow each other everywhere.
            1 => vec![at(0, 0x20000, ARENA), at(0x20000, SIZE, ARENA)],
            // That follow each other in the guest only.
            2 => vec![
                at(0, 0x1c100, ARENA),
                at(0x1c100, 0x2f001, ALIAS),
                at(0x2f001, 0x34000, ARENA),
                at(0x34000, SIZE, ALIAS),
            ],
            // As many as there can be.
            3 => (0..64)
                .rev()
                .map(|i| i * (SIZE / 64))
                .map(|a| {
                    at(
                        a,
                        a + SIZE / 64,
                        if a & 0x1000 == 0 { ARENA } else { ALIAS },
                    )
                })
                .collect(),
            4 => vec![at(0, 0x1000, ARENA); 65],
            // One over another, that shows another part.
            5 => vec![
                at(0, SIZE, ARENA),
                sys::Region {
                    gpa: gpa + 0x1a000,
                    size: 0x4000,
                    hva: ARENA + 0x1e000,
                    flags: 0,
                },
            ],
            6 => vec![at(0, rx, ARENA), at(rx_end, SIZE, ARENA)],
            7 => vec![at(0, rx_end, ARENA)],
            // Where a packed ring is logged, only the table says.
            8 if self.any_format => return SKIPPED.into(),
            8 => vec![],
            // Buffers to receive that can't be written: to the C driver they count as filled.
            9 => return SKIPPED.into(),
            10 => vec![at(0, SIZE, ARENA), at(0x1000, 0x1000, ARENA)],
            11 => vec![sys::Region {
                gpa: u64::MAX - 0xfff,
                size: 0x2000,
                hva: ARENA,
                flags: 0,
            }],
            12 => vec![at(0, SIZE, KERNEL)],
            13 => {
                padding = 1;
                vec![]
            }
            14 => vec![sys::Region {
                gpa: 0,
                size: 0,
                hva: ARENA,
                flags: 0,
            }],
            _ => return SKIPPED.into(),
        };
        // Where the log of a mapping can't be found, the C driver does not look for the others.
        if self.has(feature::ACCESS_PLATFORM) && layout > 1 {
            return SKIPPED.into();
        }
        let table = sys::mem_table(regions.len() as u32, padding, &regions);
        let r = ioctl(&self.dev, sys::SET_MEM_TABLE, table.as_ptr());
        if r == 0 {
            self.gpa = gpa;
            self.layout = layout;
            if !self.windows.contains(&gpa) {
                self.windows.push(gpa);
            }
        }
        done(r)
    }

    fn get_state(&self, request: u64, q: u64) -> String {
        let mut state = [sys::State {
            index: q as u32,
            num: u32::MAX,
        }];
        let r = ioctl(&self.dev, request, state.as_mut_ptr());
        format!("{} {} {}", done(r), state[0].index, state[0].num)
    }

    fn base(&mut self, q: u64, n: u64, reset: bool) -> String {
        if !reset && (self.has(feature::IN_ORDER) || self.any_format) {
            return SKIPPED.into();
        }
        let state = sys::State {
            index: q as u32,
            num: match self.format_base(q, n) {
                Some(num) => num,
                None => return SKIPPED.into(),
            },
        };
        let r = ioctl(&self.dev, sys::SET_VRING_BASE, &state);
        if r != 0 {
            return done(r);
        }
        if reset && q == 0 {
            self.first_bytes();
        }
        let queue = &mut self.queues[q as usize];
        // A guest that does not know of it has other descriptors in its ring than these.
        queue.fresh = reset;
        if reset {
            let n = n as u16;
            queue.avail_idx = n;
            queue.next_desc = n;
            queue.seen = n;
            queue.chains.clear();
            queue.bad = None;
            queue.buffer = 0;
            let used = queue.used;
            if self.drives_packed() {
                self.restart_packed(q as usize, n);
            } else {
                self.put16(ring(q as usize) + AVAIL + 2, n);
                self.put16(ring(q as usize) + used + 2, n);
            }
            if self.any_format {
                self.ask(q as usize);
            }
        }
        done(r)
    }

    fn addr(&mut self, q: u64, place: u64, log: u64) -> String {
        let running = self.queues.get(q as usize).is_some_and(|q| q.backend != 0);
        let in_order = self.has(feature::IN_ORDER);
        // Completions that can't be written are kept by one driver and lost by the other.
        // In a ring that moves while it runs, what was used before is not where the guest looks for it.
        let moves = self.queues[q as usize & 1].used != if place == 2 { USED_ACROSS } else { USED };
        if ((place == 9 || moves) && running) || (place == 2 && in_order) {
            return SKIPPED.into();
        }
        if self.any_format && packed::is_other_place(place, log) {
            return SKIPPED.into();
        }
        let offset = ring(q as usize & 1);
        let mut arena = if place == 1 { ALIAS } else { ARENA };
        if self.has(feature::ACCESS_PLATFORM) {
            arena = self.gpa;
        }
        let used = if place == 2 { USED_ACROSS } else { USED };
        let mut addr = sys::Addr {
            index: q as u32,
            flags: (log != 0).into(),
            desc: arena + offset,
            avail: arena + offset + AVAIL,
            used: arena + offset + used,
            log: match log {
                2 => self.gpa.wrapping_add(SIZE + 0x10000),
                _ => self.gpa.wrapping_add(offset + used),
            },
        };
        match place {
            0..=2 => {}
            3 => addr.avail += 1,
            4 => addr.used += 2,
            5 => addr.log += 2,
            6 => addr.desc = KERNEL,
            7 => addr.desc = HOLE,
            8 => addr.avail = HOLE,
            9 => addr.used = HOLE,
            10 => addr.flags = 2,
            11 => addr.used = KERNEL,
            12 => addr.log = u64::MAX - 0xfff,
            _ => return SKIPPED.into(),
        }
        let r = ioctl(&self.dev, sys::SET_VRING_ADDR, &addr);
        if let (0, Some(queue)) = (r, self.queues.get_mut(q as usize)) {
            queue.fresh &= !self.any_format || queue.used == used;
            queue.used = used;
            queue.placed = true;
            queue.addrs = [addr.desc, addr.avail, addr.used];
        }
        done(r)
    }

    fn eventfd_number(&self, own: [i32; 2], fd: u64) -> i32 {
        match fd {
            0 => -1,
            1 | 2 => own[fd as usize - 1],
            3 => self.m.plain.fd.as_raw_fd(),
            _ => 9999,
        }
    }

    fn vring_file(
        &self,
        request: u64,
        q: u64,
        own: impl Fn(&Machine, usize) -> [i32; 2],
        fd: u64,
    ) -> i32 {
        let file = sys::VringFile {
            index: q as u32,
            fd: self.eventfd_number(own(self.m, q as usize & 1), fd),
        };
        ioctl(&self.dev, request, &file)
    }

    fn backend(&mut self, q: u64, b: u64) -> String {
        if self.queues.iter().any(|q| q.polls) && b != 0 {
            return SKIPPED.into();
        }
        // The C driver forgets what the other queue has to say.
        if b == 0 && (self.unanswered || self.has(feature::ACCESS_PLATFORM) && self.has_message()) {
            return SKIPPED.into();
        }
        if let (Some(queue), 1..=4) = (self.queues.get(q as usize), b) {
            // With a ring that changed under it, the device would take for chains what are none.
            let big = queue.big && !self.has(feature::VERSION_1);
            if queue.num > NUM || !queue.fresh || !queue.placed || big != self.big {
                return SKIPPED.into();
            }
            // One of the devices says nothing more after a miss that is never answered.
            let outside = |addr: &u64| addr.wrapping_sub(self.gpa) >= SIZE;
            if self.has(feature::ACCESS_PLATFORM) && queue.addrs.iter().any(outside) {
                return SKIPPED.into();
            }
        }
        let m = &*self.m;
        let fd = match b {
            0 => -1,
            1 => m.tap.fd.as_raw_fd(),
            2 => m.plain.fd.as_raw_fd(),
            3 => m.packet.fd.as_raw_fd(),
            4 => m.packet_vnet.fd.as_raw_fd(),
            5 => m.spare[0].as_raw_fd(),
            6 => m.udp.as_raw_fd(),
            _ => 9999,
        };
        let file = sys::VringFile {
            index: q as u32,
            fd,
        };
        let r = ioctl(&self.dev, sys::NET_SET_BACKEND, &file);
        if let (0, Some(queue)) = (r, self.queues.get_mut(q as usize)) {
            queue.backend = b;
        }
        done(r)
    }

    fn message(m: &[u8]) -> String {
        let word = |at: usize| {
            m[at..at + 8]
                .iter()
                .rev()
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
        };
        if m.len() < 72 {
            return String::new();
        }
        format!(
            "type {}, iova {}, size {}, address {}, {}#{:08x}",
            m[0],
            word(8),
            word(16),
            word(24),
            word(32),
            hash(m)
        )
    }

    /// Whether there is a message to read.
    fn has_message(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.dev.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid structure.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    /// Answers IOTLB misses until there are no more. How many of them a device tells at a time is its choice: one whose
    /// queue waits is never seen.
    fn serve(&mut self) {
        if !self.open || !self.has(feature::ACCESS_PLATFORM) {
            return;
        }
        for _ in 0..4000 {
            let mut m = [0; 72];
            if !matches!(self.dev.read(&mut m), Ok(72)) {
                break;
            }
            let _ = writeln!(self.out, "{MISS} {}", Self::message(&m));
            let iova = u64::from_le_bytes(m[8..16].try_into().unwrap()) & !0xfff;
            let offset = iova.wrapping_sub(self.gpa);
            if offset >= SIZE {
                self.unanswered = true;
                continue;
            }
            m[16..24].copy_from_slice(&0x1000u64.to_le_bytes());
            m[8..16].copy_from_slice(&iova.to_le_bytes());
            m[24..32].copy_from_slice(&(ARENA + offset).to_le_bytes());
            m[32] = 3;
            m[33] = 2;
            if let Err(e) = self.dev.write(&m) {
                let _ = writeln!(self.out, "  answer: {e}");
            }
        }
    }

    /// Takes memory for segments of these lengths.
    fn place(&mut self, q: usize, lens: &[u64]) -> Option<Vec<(u64, u64)>> {
        let (from, to) = BUFFERS[q];
        let queue = &mut self.queues[q];
        let size: u64 = lens.iter().map(|len| len + 3).sum();
        if queue.buffer == 0 || (queue.buffer + size > to && queue.chains.is_empty()) {
            queue.buffer = from;
        }
        if queue.buffer + size > to {
            return None;
        }
        let mut at = queue.buffer;
        queue.buffer += size;
        Some(
            lens.iter()
                .map(|&len| {
                    let seg = (at, len);
                    at += len + 3;
                    seg
                })
                .collect(),
        )
    }

    /// Makes a chain available.
    fn post(&mut self, q: usize, table: u64, segs: Vec<(u64, u64)>) -> String {
        let n = segs.len();
        // Those that are in the table.
        let inside = match (table, n) {
            (0, _) | (2 | 3, 1) => n..n,
            (2, _) => 1..n,
            (3, _) => 0..n - 1,
            _ => 0..n,
        };
        let descs = (n - inside.len() + usize::from(!inside.is_empty())) as u64;
        let queue = &self.queues[q];
        let num = queue.num;
        let out: u64 = queue.chains.iter().map(|c| c.descs).sum();
        if num > NUM || out + descs > num || n > TABLE {
            return "no room".into();
        }
        // To a bad one that says that more follows, in a packed ring it would.
        if self.any_format && queue.bad.is_some() {
            return "no room".into();
        }
        let head = (u64::from(queue.next_desc) & (num - 1)) as u16;
        let flags = match table {
            4 => INDIRECT | WRITE,
            _ => INDIRECT,
        };
        let spot = match self.drives_packed() {
            true => self.post_packed(q, head, (!inside.is_empty()).then_some(flags), &segs),
            false => {
                self.post_split(q, descs, &segs, inside, flags);
                None
            }
        };
        let chain = Chain {
            head,
            descs,
            segs,
            spot,
        };
        self.offer(q, chain)
    }

    /// Writes a chain of so many descriptors to a split ring, and its table, if it has one.
    fn post_split(
        &self,
        q: usize,
        descs: u64,
        segs: &[(u64, u64)],
        inside: std::ops::Range<usize>,
        flags: u16,
    ) {
        let queue = &self.queues[q];
        let id = |i: u64| (u64::from(queue.next_desc) + i) & (queue.num - 1);
        let write = if q == 0 { WRITE } else { 0 };
        let mut at = 0;
        let mut put = |addr: u64, len: u64, flags: u16| {
            let next = if at + 1 < descs { NEXT } else { 0 };
            let to = id(at + 1) as u16;
            self.desc(ring(q), id(at), addr, len, flags | next, to);
            at += 1;
        };
        let addr = |offset: u64| self.gpa.wrapping_add(offset);
        for s in &segs[..inside.start] {
            put(addr(s.0), s.1, write);
        }
        if !inside.is_empty() {
            let own = tables(q) + id(0) * 16 * TABLE as u64;
            for (i, s) in segs[inside.clone()].iter().enumerate() {
                let next = if i + 1 < inside.len() { i + 1 } else { 0 };
                self.table_desc(own, i as u64, addr(s.0), s.1, write, next as u16);
            }
            put(addr(own), 16 * inside.len() as u64, flags);
        }
        for s in &segs[inside.end..] {
            put(addr(s.0), s.1, write);
        }
    }

    fn offer(&mut self, q: usize, chain: Chain) -> String {
        let queue = &mut self.queues[q];
        let head = chain.head;
        queue.next_desc = queue.next_desc.wrapping_add(chain.descs as u16);
        let slot = u64::from(queue.avail_idx) & (queue.num - 1);
        queue.avail_idx = queue.avail_idx.wrapping_add(1);
        queue.chains.push_back(chain);
        let idx = queue.avail_idx;
        if self.drives_packed() {
            self.publish_packed(q);
        } else {
            self.put16(ring(q) + AVAIL + 4 + 2 * slot, head);
            self.put16(ring(q) + AVAIL + 2, idx);
        }
        format!("head {head}")
    }

    fn tx(&mut self, header: u64, table: u64, lens: &[u64]) -> String {
        let total: u64 = lens.iter().sum();
        // Shorter than the longest header, and the C driver would try to send it for ever. The segments
        // are few enough for any of the rings here.
        if total < 25 || lens.len() > TABLE {
            return SKIPPED.into();
        }
        let Some(segs) = self.place(1, lens) else {
            return "no room".into();
        };
        let hdr = self.header();
        let len = total as usize - hdr;
        let mut packet = vec![0; hdr];
        // For a checksum outside the packet the C driver would try for ever; it depends on the byte order.
        if header > 0 && len > 60 && !self.legacy_big && !self.big {
            self.checksums = true;
            packet[0] = 1;
            packet[6] = 34;
            packet[8] = 16;
            if header == 2 {
                packet[1] = 1;
                packet[2] = 54;
                packet[4..6].copy_from_slice(&500u16.to_le_bytes());
            }
            packet.extend(tcp_frame(len - 54, self.number));
        } else {
            packet.extend(frame(self.number, len));
        }
        self.number += 1;
        let mut rest = &packet[..];
        for s in &segs {
            store(s.0, &rest[..s.1 as usize]);
            rest = &rest[s.1 as usize..];
        }
        self.post(1, table, segs)
    }

    fn rx(&mut self, table: u64, lens: &[u64]) -> String {
        // A chain without a byte is taken by the C driver and never used.
        let total: u64 = lens.iter().sum();
        // Where the C driver leaves part of a header as it was, one chain has to have all of it.
        let part = self.header() == 24 && self.has(feature::VHOST_NET_HDR) && total < 24;
        if total == 0 || part || lens.len() > TABLE {
            return SKIPPED.into();
        }
        let Some(segs) = self.place(0, lens) else {
            return "no room".into();
        };
        for s in &segs {
            store(s.0, &vec![0xa5; s.1 as usize]);
        }
        self.post(0, table, segs)
    }

    fn many(&mut self, count: u64, mut f: impl FnMut(&mut Self) -> String) -> String {
        let mut last = String::new();
        for _ in 0..count.min(NUM) {
            last = f(self);
            if !last.starts_with("head") {
                break;
            }
        }
        last
    }

    fn bad(&mut self, q: usize, kind: u64) -> String {
        let queue = &self.queues[q];
        let num = queue.num;
        let out: u64 = queue.chains.iter().map(|c| c.descs).sum();
        let head_is_read = !self.has(feature::IN_ORDER);
        if num > NUM || out + 1 > num || queue.bad.is_some() || (kind == 9 && !head_is_read) {
            return SKIPPED.into();
        }
        // An address that is never answered: a device that looks ahead asks for it earlier.
        if self.has(feature::ACCESS_PLATFORM) && matches!(kind, 2 | 3 | 7) {
            return SKIPPED.into();
        }
        let Some(segs) = self.place(q, &[200]) else {
            return "no room".into();
        };
        let queue = &self.queues[q];
        let head = (u64::from(queue.next_desc) & (num - 1)) as u16;
        let index = queue.avail_idx;
        let write = if q == 0 { WRITE } else { 0 };
        let own = tables(q) + u64::from(head) * 16 * TABLE as u64;
        let (data, table) = (self.gpa.wrapping_add(segs[0].0), self.gpa.wrapping_add(own));
        store(segs[0].0, &[if q == 0 { 0xa5 } else { 0 }; 200]);
        let (addr, len, flags, next) = match kind {
            0 => (data, 100, write | NEXT, head),
            1 => (data, 100, write | NEXT, num as u16),
            2 => (1 << 45, 100, write, 0),
            3 => (data, 0xffff_ffff, write, 0),
            4 => (table, 24, INDIRECT, 0),
            5 => (table, 0, INDIRECT, 0),
            6 => {
                self.desc(own, 0, data, 100, write | INDIRECT, 0);
                (table, 16, INDIRECT, 0)
            }
            7 => (1 << 45, 32, INDIRECT, 0),
            8 => {
                self.desc(own, 0, data, 50, write | NEXT, 0);
                self.desc(own, 1, data, 50, write | NEXT, 0);
                (table, 32, INDIRECT, 0)
            }
            9 => (data, 100, write, 0),
            _ => {
                self.table_desc(own, 0, data, 50, WRITE, 1);
                self.table_desc(own, 1, data, 50, 0, 0);
                (table, 32, INDIRECT, 0)
            }
        };
        let spot = match self.drives_packed() {
            true => self.post_desc(q, (addr, len as u32, flags), head),
            false => {
                self.desc(ring(q), u64::from(head), addr, len, flags, next);
                None
            }
        };
        let queue = &mut self.queues[q];
        queue.bad = Some((head, index));
        (queue.bad_entry, queue.erred) = (kind == 9, false);
        let chain = Chain {
            head,
            descs: 1,
            segs,
            spot,
        };
        let text = self.offer(q, chain);
        if kind == 9 {
            let slot = u64::from(index) & (num - 1);
            self.put16(ring(q) + AVAIL + 4 + 2 * slot, num as u16);
        }
        text
    }

    fn mend(&mut self, q: usize) -> String {
        let queue = &mut self.queues[q];
        // How early a device reads an entry is its own business, so a driver never changes one.
        if queue.bad_entry && !queue.erred {
            return SKIPPED.into();
        }
        let Some((head, index)) = queue.bad.take() else {
            return SKIPPED.into();
        };
        let Some(chain) = queue.chains.iter().rev().find(|c| c.head == head) else {
            return SKIPPED.into();
        };
        let (at, len) = chain.segs[0];
        if let Some((spot, _)) = chain.spot {
            self.mend_packed(q, spot, at, len, head);
            return "0".into();
        }
        let slot = u64::from(index) & (queue.num - 1);
        let write = if q == 0 { WRITE } else { 0 };
        self.desc(
            ring(q),
            head.into(),
            self.gpa.wrapping_add(at),
            len,
            write,
            0,
        );
        self.put16(ring(q) + AVAIL + 4 + 2 * slot, head);
        "0".into()
    }

    fn incoming(&mut self, b: u64, kind: u64, len: u64, count: u64) -> String {
        for _ in 0..count.min(200) {
            let len = (len as usize).clamp(14, 40000);
            let mut packet = vec![];
            let plain = kind == 0 || len < 60 || b != 1;
            if b == 1 {
                packet = vec![0; 10];
                if !plain {
                    packet[0] = 1;
                    packet[6] = 34;
                    packet[8] = 16;
                }
                if !plain && kind == 2 {
                    packet[1] = 1;
                    packet[2] = 54;
                    packet[4..6].copy_from_slice(&500u16.to_le_bytes());
                }
            }
            self.number += 1;
            packet.extend(match plain {
                true => frame(self.number, len),
                false => tcp_frame(len - 54, self.number),
            });
            let m = &*self.m;
            let fd = match b {
                1 => m.peer.fd.as_raw_fd(),
                2 => m.plain_peer.fd.as_raw_fd(),
                _ => m.wire.fd.as_raw_fd(),
            };
            // SAFETY: the bytes are valid.
            if unsafe { libc::write(fd, packet.as_ptr().cast(), packet.len()) } < 0 {
                return done(Error::last_os_error().raw_os_error().unwrap_or(-1));
            }
        }
        "0".into()
    }

    fn sndbuf(&mut self, bytes: u64) -> String {
        let value = if bytes == 0 { i32::MAX } else { bytes as i32 };
        let a = ioctl(&self.m.tap.fd, TUNSETSNDBUF, &value);
        let b = ioctl(&self.m.plain.fd, TUNSETSNDBUF, &value);
        format!("{a} {b}")
    }

    fn link(&mut self, b: u64, up: bool) -> String {
        let mut request = [0u8; 40];
        let name = if b == 1 { b"tap0" } else { b"tap1" };
        request[..4].copy_from_slice(name);
        if !up {
            self.down.push(b);
        }
        request[16] = if up { libc::IFF_UP as u8 } else { 0 };
        done(ioctl(&self.m.udp, libc::SIOCSIFFLAGS as u64, &request))
    }

    /// Writes down what changed.
    fn look(&mut self) {
        for q in 0..2 {
            self.look_at_ring(q);
        }
        self.look_at_files();
        self.look_at_log();
    }

    fn look_at_ring(&mut self, q: usize) {
        let queue = &self.queues[q];
        if queue.num > NUM {
            return;
        }
        if self.any_format {
            self.look_in_any_format(q);
            return;
        }
        let used = ring(q) + queue.used;
        let num = queue.num;
        let flags = self.get16(used);
        let idx = self.get16(used + 2);
        let event = self.get16(used + 4 + 8 * num);
        let new = idx.wrapping_sub(queue.seen);
        if (flags, event, new) == (queue.flags, queue.event, 0) {
            return;
        }
        let _ = write!(
            self.out,
            "  queue {q}: flags {flags}, event {event}, used {idx}"
        );
        self.take_used(q, idx);
        let queue = &mut self.queues[q];
        queue.flags = flags;
        queue.event = event;
    }

    /// Takes what a split ring says is used up to `idx`, and ends the line.
    fn take_used(&mut self, q: usize, idx: u16) {
        let queue = &self.queues[q];
        let (used, num) = (ring(q) + queue.used, queue.num);
        let mut new = u64::from(idx.wrapping_sub(queue.seen));
        if new > num || new > queue.chains.len() as u64 {
            let _ = write!(self.out, " (impossible)");
            new = 0;
        }
        let mut unwritten = false;
        let mut at = queue.seen;
        while new > 0 {
            let entry = used + 4 + 8 * (u64::from(at) & (num - 1));
            let (id, len) = (self.get32(entry), self.get32(entry + 4));
            let chains = self.take_chains(q, id, len, &mut unwritten);
            let count = chains.map_or(1, |(count, _)| count);
            if count > new {
                let _ = write!(self.out, "(too many)");
            }
            at = at.wrapping_add(count as u16);
            new = new.saturating_sub(count);
        }
        let _ = writeln!(self.out);
        if unwritten {
            let _ = writeln!(self.out, "  header not written");
        }
        self.queues[q].seen = idx;
    }

    /// Takes the chains that a used entry stands for, and writes down what it says. Returns how many
    /// they are, and how many descriptors a packed ring has of them.
    fn take_chains(
        &mut self,
        q: usize,
        id: u32,
        len: u32,
        unwritten: &mut bool,
    ) -> Option<(u64, usize)> {
        let in_order = self.has(feature::IN_ORDER);
        let queue = &mut self.queues[q];
        let place = queue.chains.iter().position(|c| u32::from(c.head) == id);
        let used: Vec<Chain> = match place {
            Some(place) if in_order => queue.chains.drain(..=place).collect(),
            Some(place) => queue.chains.remove(place).into_iter().collect(),
            None => vec![],
        };
        let count = used.len().max(1) as u64;
        if q == 1 && in_order && !used.is_empty() {
            // One entry may stand for many chains, or each have its own.
            for c in &used {
                let _ = write!(self.out, " {}:{len}", c.head);
            }
        } else {
            let _ = write!(self.out, " {id}:{len}");
            if in_order {
                let _ = write!(self.out, "x{count}");
            }
        }
        if used.is_empty() {
            let _ = write!(self.out, "(unknown)");
            return None;
        }
        if q == 0 {
            let segs: Vec<_> = used.iter().flat_map(|c| c.segs.iter().copied()).collect();
            *unwritten |= self.complete_header(&segs);
            let data: Vec<u8> = segs
                .iter()
                .flat_map(|s| memory(s.0, s.1))
                .copied()
                .collect();
            let hex: String = data.iter().take(12).map(|b| format!("{b:02x}")).collect();
            let _ = write!(self.out, "={hex}#{:08x}", hash(&data));
        }
        let descs = used.iter().filter_map(|c| c.spot).map(|(_, n)| n).sum();
        Some((count, descs))
    }

    /// Of a header of its own that has room for tunnels the C driver leaves the end as it was. Writes
    /// zeroes there, as this driver does. Returns whether it was necessary.
    fn complete_header(&self, segs: &[(u64, u64)]) -> bool {
        if self.features[1] == 0 || !self.has(feature::VHOST_NET_HDR) {
            return false;
        }
        let from = match self.has(feature::MRG_RXBUF | feature::VERSION_1) {
            true => 12,
            false => 10,
        };
        let bytes = segs.iter().flat_map(|s| s.0..s.0 + s.1);
        let end: Vec<u64> = bytes.take(24).skip(from).collect();
        let unwritten = !end.is_empty() && end.iter().all(|&at| memory(at, 1) == [0xa5]);
        if unwritten {
            end.iter().for_each(|&at| store(at, &[0]));
        }
        unwritten
    }

    fn look_at_files(&mut self) {
        let log = match (self.has(feature::ACCESS_PLATFORM), self.any_format) {
            (true, _) => LOG_BY_IOTLB,
            (_, true) => LOG_IN_ANY_FORMAT,
            _ => EVENTFDS[4],
        };
        let open = self.open;
        let m = &mut *self.m;
        let names = [
            (&m.call[0], EVENTFDS[0]),
            (&m.call[1], EVENTFDS[1]),
            (&m.err[0], EVENTFDS[2]),
            (&m.err[1], EVENTFDS[3]),
            (&m.log, log),
            (&m.spare[1], EVENTFDS[7]),
            (&self.dev, "message"),
            (&m.peer.fd, "out 1"),
            (&m.plain_peer.fd, "out 2"),
            (&m.wire.fd, "out 3"),
        ];
        loop {
            let mut fds = names.map(|(file, name)| libc::pollfd {
                fd: match name {
                    "message" if !open => -1,
                    _ => file.as_raw_fd(),
                },
                events: match name {
                    "message" => libc::POLLIN | libc::POLLRDNORM | libc::POLLPRI | libc::POLLOUT,
                    _ => libc::POLLIN,
                },
                revents: 0,
            });
            // SAFETY: the array is of that length.
            if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as u64, 0) } <= 0 {
                return;
            }
            let mut packets = false;
            for (i, (mut file, name)) in names.into_iter().enumerate() {
                if fds[i].revents == 0 {
                    continue;
                }
                let _ = write!(self.out, "  {name}");
                if let 2 | 3 = i {
                    self.queues[i - 2].erred = true;
                }
                if name == "message" {
                    let _ = writeln!(self.out, " {:#x}", fds[i].revents);
                    continue;
                }
                match file.read(&mut m.buf) {
                    Ok(_) if i < 6 => {
                        let n = u64::from_ne_bytes(m.buf[..8].try_into().unwrap());
                        let _ = match i {
                            0 | 1 if self.on_empty => write!(self.out, "{PERHAPS}"),
                            _ => write!(self.out, " {n}"),
                        };
                    }
                    Ok(n) => {
                        packets = true;
                        let data = &m.buf[..n];
                        let hex: String =
                            data.iter().take(10).map(|b| format!("{b:02x}")).collect();
                        let _ = write!(self.out, " {n}={hex}#{:08x}", hash(data));
                    }
                    Err(e) => {
                        let _ = write!(self.out, " {e}");
                    }
                }
                let _ = writeln!(self.out);
            }
            if !packets {
                return;
            }
        }
    }

    fn look_at_log(&mut self) {
        if self.log_at != LOG && self.log_at != LOG + 3 {
            return;
        }
        for &gpa in &self.windows {
            let at = self.log_at + gpa / 0x1000 / 8;
            // SAFETY: that part of the log is mapped, and the worker sleeps.
            let bits = unsafe { &mut *(at as *mut [u64; 4]) };
            if *bits == [0; 4] {
                continue;
            }
            // Where a ring is written depends on its format.
            let pages: String = (0..256)
                .filter(|i| bits[i / 64] >> (i % 64) & 1 != 0)
                .filter(|&i| !self.any_format || BUFFER_PAGES.contains(&(i as u64)))
                .map(|i| format!(" {i:#x}"))
                .collect();
            *bits = [0; 4];
            if !pages.is_empty() {
                let iotlb = self.has(feature::ACCESS_PLATFORM);
                let by = if iotlb { " by IOTLB" } else { "" };
                let _ = writeln!(self.out, "  dirty{by}{pages}");
            }
        }
    }

    /// What is left when the device is closed. The machine is as it was then, and the worker gone: what
    /// it did too late would be seen in the next script.
    fn end(&mut self) -> Res {
        let _ = writeln!(self.out, "end");
        for q in 0..2 {
            let state = self.get_base(q);
            let _ = writeln!(self.out, "  base {state}");
        }
        let _ = writeln!(self.out, "close");
        self.dev = eventfd()?;
        self.open = false;
        let start = Instant::now();
        while std::fs::read_dir("/proc/self/task")?.count() > 1 {
            check!(start.elapsed() < CLOSED, "the worker outlives its device");
            std::thread::sleep(Duration::from_micros(50));
        }
        self.look();
        self.pages();
        self.log_left()?;
        self.restore();
        self.empty();
        Ok(())
    }

    /// The memory, a page a line.
    fn pages(&mut self) {
        if self.in_order {
            // Which entries are written is the device's choice.
            store(ring(1) + USED + 4, &vec![0; 8 * NUM as usize]);
        }
        self.first_bytes();
        let first = match self.any_format {
            true => BUFFER_PAGES.start,
            false => 0,
        };
        for page in first..SIZE / 0x1000 {
            let data = memory(page * 0x1000, 0x1000);
            // SAFETY: any bytes are valid words, and a page is aligned.
            let words = unsafe { data.align_to::<u64>().1 };
            if words.iter().any(|&w| w != 0) {
                let _ = writeln!(self.out, "  page {page:#x} {:08x}", hash(data));
            }
        }
    }

    /// Looks for what the C driver does to a buffer when it drops a packet, and takes it back.
    fn first_bytes(&mut self) {
        let bad = self.queues[0].bad;
        for c in &self.queues[0].chains {
            let Some(s) = c.segs.iter().find(|s| s.1 > 0) else {
                continue;
            };
            if memory(s.0, 1) != [0xa5] && bad.is_none_or(|b| b.0 != c.head) {
                let _ = writeln!(self.out, "  first byte of {}", c.head);
                store(s.0, &[0xa5]);
            }
        }
    }

    /// What is marked in the log where no script looks, or after it looked.
    fn log_left(&mut self) -> Res {
        let mut there = [0u8; LOG_SIZE as usize / 0x1000];
        // SAFETY: the log is mapped, and the array has a byte for each of its pages.
        let r = unsafe { libc::mincore(LOG as *mut _, LOG_SIZE as usize, there.as_mut_ptr()) };
        check_eq!(r, 0, "mincore");
        for page in (0..there.len()).filter(|&page| there[page] & 1 != 0) {
            let at = LOG as usize + page * 0x1000;
            // SAFETY: that page is mapped, and no device is open that could write there.
            let words = unsafe { &*(at as *const [u64; 512]) };
            for (i, word) in words.iter().enumerate().filter(|(_, &word)| word != 0) {
                let _ = writeln!(
                    self.out,
                    "  log left {:#x}: {word:#x}",
                    page * 0x1000 + 8 * i
                );
            }
        }
        Ok(())
    }

    /// Makes the machine as it was.
    fn restore(&mut self) {
        self.sndbuf(0);
        for b in std::mem::take(&mut self.down) {
            self.link(b, true);
        }
        ioctl(&self.m.tap.fd, TUNSETVNETHDRSZ, &12i32);
        for mut file in self.m.kick.iter().chain([&self.m.spare[0]]) {
            let _ = file.read(&mut [0; 8]);
        }
    }

    /// Reads the packets that nobody took, and what else is there.
    fn empty(&mut self) {
        self.look_at_files();
        let m = &mut *self.m;
        let files = [
            (&m.tap.fd, "tap 1"),
            (&m.plain.fd, "tap 2"),
            (&m.packet.fd, "socket 3"),
            (&m.packet_vnet.fd, "socket 4"),
        ];
        for (mut file, name) in files {
            while let Ok(n) = file.read(&mut m.buf) {
                let _ = writeln!(self.out, "  left {name} {n}#{:08x}", hash(&m.buf[..n]));
            }
        }
    }
}
