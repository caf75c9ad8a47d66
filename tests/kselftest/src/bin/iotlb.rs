// SPDX-License-Identifier: GPL-2.0

//! The device IOTLB (VIRTIO_F_ACCESS_PLATFORM): every address of the guest is translated by what user space
//! said, and what it did not say is asked for.
//!
//! Unless a test says otherwise, the guest's IOVAs are its physical addresses.

use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::thread::JoinHandle;

use kselftest::counters;
use kselftest::counters::Before;
use kselftest::dirty::pages_of;
use kselftest::dirty::Bitmap;
use kselftest::dirty::Pages;
use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::iotlb::*;
use kselftest::ktap::Test;
use kselftest::mem::BASE;
use kselftest::ring;
use kselftest::sys::ioctl;
use kselftest::sys::open;
use kselftest::sys::until;
use kselftest::sys::Addr;
use kselftest::sys::Region;
use kselftest::sys::State;
use kselftest::sys::VringFile;
use kselftest::sys::SET_VRING_BUSYLOOP_TIMEOUT;
use kselftest::task::settle;
use kselftest::task::sleeps;
use kselftest::task::worker_of;
use kselftest::*;
use libc::EAGAIN;
use libc::EBADFD;
use libc::EFAULT;
use libc::EINTR;
use libc::EINVAL;
use vhost::net::VhostNet;
use vhost::VhostBackend;

const PAGE: u64 = 4096;

/// What the guests here accept.
const FEATURES: u64 = VERSION_1 | ACCESS_PLATFORM;

/// An IOVA that is no guest address.
const FAR: u64 = 0x12_3456_7000_0000;

/// Bit 1 of the backend features: messages are of the second version.
const BACKEND_V2: u64 = 1 << 1;

fn config(features: u64) -> Config {
    Config {
        regions: vec![(BASE, 4 << 20)],
        ..Config::with(FEATURES | features)
    }
}

fn hva(g: &Guest, gpa: u64) -> u64 {
    g.mem.hva(gpa).0 as u64
}

/// Maps guest memory.
fn map(g: &Guest, gpa: u64, len: usize, perm: u8) -> Res {
    update(&g.net, gpa, len as u64, hva(g, gpa), perm)
}

/// Maps what a buffer needs, and no more.
fn map_seg(g: &Guest, s: &Seg) -> Res {
    map(g, s.gpa, s.len as usize, if s.write { WO } else { RO })
}

/// The descriptor table, the avail ring and the used ring: where, how long, and what the device does there.
fn parts(g: &Guest, index: usize) -> [(u64, usize, u8); 3] {
    let r = if index == RX { &g.rx } else { &g.tx };
    let n = usize::from(r.num);
    let event = if r.event_idx { 2 } else { 0 };
    if packed::by_default() {
        return [(r.desc, 16 * n, RW), (r.avail, 4, RO), (r.used, 4, WO)];
    }
    [
        (r.desc, 16 * n, RO),
        (r.avail, 4 + 2 * n + event, RO),
        (r.used, 4 + 8 * n + event, WO),
    ]
}

/// What a device that starts asks for of the used ring first: to read it, or of a packed ring, whose part it never reads, to write
/// it.
fn start_access() -> u8 {
    match packed::by_default() {
        true => WO,
        false => RO,
    }
}

/// Maps the used ring; a device starts only where it can read its flags.
fn map_used(g: &Guest, index: usize) -> Res {
    let [_, _, used] = parts(g, index);
    map(g, used.0, used.1, RW)
}

/// Maps both rings. What the device asks for first comes last: one that waits for it then finds all.
fn map_rings(g: &Guest) -> Res {
    for index in [RX, TX] {
        let [desc, avail, _] = parts(g, index);
        map_used(g, index)?;
        map(g, avail.0, avail.1, avail.2)?;
        map(g, desc.0, desc.1, desc.2)?;
    }
    Ok(())
}

/// A guest whose device runs and finds its rings, and nothing else.
fn running(cfg: Config) -> Res<Guest> {
    let g = Guest::stopped(cfg)?;
    map_rings(&g)?;
    g.start()?;
    quiet(&g)?;
    Ok(g)
}

/// Waits for a miss: the address, and what the device wants to do there.
fn miss(g: &Guest) -> Res<(u64, u8)> {
    let msg = wait_miss(&g.net)?;
    check_eq!(msg, Msg::miss(msg.iova, msg.perm), "what the device said");
    Ok((msg.iova, msg.perm))
}

#[track_caller]
fn no_miss(g: &Guest) -> Res {
    let at = std::panic::Location::caller();
    match read(&g.net) {
        Err(e) if e == -EAGAIN => Ok(()),
        got => {
            let why = format!("{got:x?} instead of no message");
            Err(Fail::at(at.file(), at.line(), why))
        }
    }
}

/// The worker has nothing to do, and the device nothing to say.
#[track_caller]
fn quiet(g: &Guest) -> Res {
    settle(g)?;
    no_miss(g)
}

/// As [`quiet`], and the queue has used nothing.
#[track_caller]
fn stuck(g: &mut Guest, index: usize) -> Res {
    let at = std::panic::Location::caller();
    quiet(g)?;
    let r = if index == RX { &mut g.rx } else { &mut g.tx };
    match r.pop() {
        None => Ok(()),
        Some(u) => Err(Fail::at(at.file(), at.line(), format!("used: {u:?}"))),
    }
}

/// What is placed next in guest memory is in one page, if it is no longer than that.
fn in_one_page(g: &Guest, len: usize) {
    let (at, len) = (g.mem.alloc(0, 16), len as u64);
    if len <= PAGE && at % PAGE + len > PAGE {
        g.mem.alloc(0, PAGE);
    }
}

/// A packet in guest memory that is not mapped.
fn packet(g: &Guest, p: &[u8]) -> Seg {
    in_one_page(g, g.hdr + p.len());
    Seg::r(g.place(p), g.hdr + p.len())
}

/// A buffer to receive into that is not mapped.
fn buffer(g: &Guest, len: usize) -> Seg {
    in_one_page(g, len);
    g.buffer(len)
}

/// All of a ring is asked for, part by part; by the C driver its first part.
fn ring_missing(g: &Guest, index: usize) -> Res {
    let count = if sys::on_c() { 1 } else { 3 };
    for (part, (at, _, perm)) in parts(g, index).into_iter().take(count).enumerate() {
        check_eq!(miss(g)?, (at, perm), "part {part} of queue {index}");
    }
    Ok(())
}

/// Offers a chain on the TX queue and kicks it, wanted or not.
fn push_tx(g: &mut Guest, chain: &[Seg]) {
    g.tx.add(chain);
    g.tx.publish();
    g.tx.kick();
}

/// Offers a chain on the RX queue and kicks it, wanted or not.
fn push_rx(g: &mut Guest, chain: &[Seg]) {
    g.rx.add(chain);
    g.rx.publish();
    g.rx.kick();
}

/// Waits until a packet is sent.
fn sent(g: &mut Guest, p: &[u8]) -> Res {
    g.tx.wait()?;
    same(&g.peer.recv()?, p, "sent packet")
}

/// Waits until a packet is received in these buffers.
fn received(g: &mut Guest, chain: &[Seg], p: &[u8]) -> Res {
    let u = g.rx.wait()?;
    check_eq!(u.len as usize, g.hdr + p.len(), "used length");
    let parts = chain.iter().map(|s| g.mem.read(s.gpa, s.len as usize));
    let data = parts.collect::<Vec<_>>().concat();
    same(&data[g.hdr..g.hdr + p.len()], p, "received packet")
}

/// A packet from the guest, in fresh memory that is mapped first.
fn tx_works(g: &mut Guest) -> Res {
    let p = frame(7, 100);
    let s = packet(g, &p);
    map_seg(g, &s)?;
    push_tx(g, &[s]);
    sent(g, &p)
}

/// A packet to the guest, in fresh memory that is mapped first.
fn rx_works(g: &mut Guest) -> Res {
    let p = frame(8, 100);
    let s = buffer(g, 200);
    map_seg(g, &s)?;
    push_rx(g, &[s]);
    g.peer.send(&p)?;
    received(g, &[s], &p)
}

/// A packet each way, and nobody asks for anything.
fn works(g: &mut Guest) -> Res {
    tx_works(g)?;
    rx_works(g)?;
    quiet(g)
}

/// Sets where a ring is, whatever it says.
fn set_addr(g: &Guest, index: usize, desc: u64, avail: u64, used: u64) -> i32 {
    let addr = Addr {
        index: index as u32,
        desc,
        avail,
        used,
        ..Default::default()
    };
    ioctl(&g.net, sys::SET_VRING_ADDR, &addr)
}

/// The errno of giving a queue the tap.
fn set_backend(g: &Guest, index: usize) -> i32 {
    let file = VringFile {
        index: index as u32,
        fd: g.tap.fd.as_raw_fd(),
    };
    ioctl(&g.net, sys::NET_SET_BACKEND, &file)
}

/// A page that may not be touched, behind one that may.
fn wall() -> *mut u8 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let page = sys::page_size();
    // SAFETY: a new mapping, of which the first page then becomes accessible.
    unsafe {
        let p = libc::mmap(
            std::ptr::null_mut(),
            2 * page,
            libc::PROT_NONE,
            flags,
            -1,
            0,
        );
        assert!(p != libc::MAP_FAILED, "mmap");
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        assert_eq!(libc::mprotect(p, page, prot), 0);
        p.cast::<u8>().add(page)
    }
}

/// The feature is offered, and anyone who has the device open may set it and send messages.
fn offered() -> Res {
    let f = open()?;
    let (mut features, mut backend, mut array) = (0u64, 0u64, [2u64, 0, 0]);
    check_eq!(ioctl(&f, sys::GET_FEATURES, &raw mut features), 0);
    check_eq!(ioctl(&f, sys::GET_FEATURES_ARRAY, array.as_mut_ptr()), 0);
    check_eq!(ioctl(&f, sys::GET_BACKEND_FEATURES, &raw mut backend), 0);
    check!(features & ACCESS_PLATFORM != 0, "features {features:#x}");
    check!(array[1] & ACCESS_PLATFORM != 0, "features {array:x?}");
    check!(backend & BACKEND_V2 != 0, "backend features {backend:#x}");
    let msg = Msg::update(0, PAGE, PAGE, RW);
    check_eq!(write(&f, &msg), -EFAULT, "a message without an IOTLB");
    check_eq!(ioctl(&f, sys::SET_FEATURES, &FEATURES), 0, "no owner");
    check_eq!(write(&f, &msg), 72, "a message");
    check_eq!(ioctl(&f, sys::SET_OWNER, std::ptr::null::<u8>()), 0);
    let child = sys::in_child(|| {
        let array = [2u64, FEATURES, 0];
        let errno = ioctl(&f, sys::SET_FEATURES_ARRAY, array.as_ptr());
        i32::from(errno != 0 || write(&f, &msg) != 72)
    })?;
    check_eq!(child, 0, "another process than the owner's");
    Ok(())
}

/// What a write takes, and what it says of a message that it does not take.
fn messages() -> Res {
    let f = open()?;
    check_eq!(ioctl(&f, sys::SET_FEATURES, &FEATURES), 0);
    // Either version at any time, whatever the backend features are.
    for backend in [0, BACKEND_V2] {
        check_eq!(ioctl(&f, sys::SET_BACKEND_FEATURES, &backend), 0);
        messages_of(&f, |m| m)?;
        messages_of(&f, Msg::v2)?;
    }
    Ok(())
}

fn messages_of(f: &impl AsRawFd, version: fn(Msg) -> Msg) -> Res {
    let good = version(Msg::update(0x4000, PAGE, PAGE, RW));
    let put = |m: Msg| write(f, &m);

    // 40 bytes are a message; what follows is nothing.
    let mut long = good.bytes().to_vec();
    long.extend(good.bytes());
    for (len, want) in [
        (0, -EINVAL),
        (3, -EINVAL),
        (4, -EINVAL),
        (8, -EINVAL),
        (39, -EINVAL),
        (40, 72),
        (71, 72),
        (72, 72),
        (144, 72),
    ] {
        check_eq!(write_raw(f, long.as_ptr(), len), want, "{len} bytes");
    }
    for v in [0, 3, 0x101, u32::MAX] {
        let m = Msg { version: v, ..good };
        check_eq!(put(m), -EINVAL, "version {v:#x}");
    }
    for kind in [0, MISS, 4, 5, 6, 0x82, 255] {
        let m = Msg { kind, ..good };
        check_eq!(put(m), -EFAULT, "a message of type {kind}");
    }
    // No address space but the first has a meaning.
    check_eq!(put(Msg { asid: 7, ..good }), 72, "a number behind the type");
    let rest = [0xff; 38];
    check_eq!(put(Msg { rest, ..good }), 72, "bytes behind the message");

    let update = |iova, size, uaddr, perm| put(version(Msg::update(iova, size, uaddr, perm)));
    check_eq!(update(0, 0, PAGE, RW), -EINVAL, "an update of nothing");
    check_eq!(update(0, 0, u64::MAX, 0), -EINVAL, "an update of nothing");
    let (last, end) = (u64::MAX - PAGE + 1, sys::user_end()?);
    for (iova, size, want) in [
        (last, PAGE, 72),
        (last, PAGE + 1, -EFAULT),
        (u64::MAX, 1, 72),
        (u64::MAX, 2, -EFAULT),
        (1, end, 72),
        (u64::MAX - end + 1, end, 72),
        (u64::MAX - end + 2, end, -EFAULT),
    ] {
        check_eq!(update(iova, size, 0, RW), want, "{size:#x} at {iova:#x}");
    }
    for perm in [RO, WO, RW, 0xff] {
        for (uaddr, size, want) in [
            (0, 1, 72),
            (0, end, 72),
            (0, end + 1, -EFAULT),
            (1, end, -EFAULT),
            (end - 1, 1, 72),
            (end - 1, 2, -EFAULT),
            (0xffff_8880_0000_0000, PAGE, -EFAULT),
            (u64::MAX, 1, -EFAULT),
            (u64::MAX, 2, -EFAULT),
            (PAGE, u64::MAX, -EFAULT),
            (0, u64::MAX, -EFAULT),
        ] {
            let got = update(0, size, uaddr, perm);
            check_eq!(
                got,
                want,
                "{size:#x} bytes of {uaddr:#x}, permission {perm}"
            );
        }
    }
    // Where the device may do nothing, the address may be any that does not wrap.
    for perm in [0, 4] {
        check_eq!(update(0, PAGE, last, perm), 72, "permission {perm}");
        check_eq!(update(0, u64::MAX, 0, perm), 72, "permission {perm}");
        let got = update(0, PAGE + 1, last, perm);
        check_eq!(got, -EFAULT, "permission {perm}");
    }

    let invalidate = |iova, size| put(version(Msg::invalidate(iova, size)));
    check_eq!(invalidate(0, 0), -EFAULT, "an invalidation of nothing");
    for (iova, size) in [
        (0, PAGE),
        (0, PAGE),
        (last, PAGE),
        (0, u64::MAX),
        (1, u64::MAX),
    ] {
        let got = invalidate(iova, size);
        check_eq!(got, 72, "invalidation of {size:#x} at {iova:#x}");
    }

    // A message that can't be read.
    let wall = wall();
    check_eq!(write_raw(f, wall, 72), -EINVAL, "no memory");
    let at = wall.wrapping_sub(39);
    // SAFETY: the bytes are mapped.
    unsafe { at.copy_from(good.bytes().as_ptr(), 39) };
    check_eq!(write_raw(f, at, 72), -EINVAL, "no memory behind 39 bytes");
    let at = wall.wrapping_sub(40);
    // SAFETY: the bytes are mapped.
    unsafe { at.copy_from(good.bytes().as_ptr(), 40) };
    check_eq!(write_raw(f, at, 72), 72, "no memory behind 40 bytes");
    let kernel = 0xffff_8880_0000_0000 as *const u8;
    check_eq!(write_raw(f, kernel, 72), -EFAULT, "the kernel's memory");

    // In parts.
    let bytes = good.bytes();
    let part = |from: usize, to: usize| libc::iovec {
        iov_base: bytes[from..].as_ptr() as *mut _,
        iov_len: to - from,
    };
    let parts = [part(0, 2), part(2, 11), part(11, 40)];
    // SAFETY: three valid entries.
    let got = unsafe { libc::writev(f.as_raw_fd(), parts.as_ptr(), 3) };
    check_eq!(got, 72, "a message in three parts");
    Ok(())
}

/// A guest whose TX queue misses a buffer, and the packet that it waits with.
fn missing(g: &mut Guest) -> Res<(Seg, Vec<u8>)> {
    let p = frame(3, 300);
    let s = packet(g, &p);
    push_tx(g, &[s]);
    settle(g)?;
    Ok((s, p))
}

/// A miss may be read and answered by another process. The addresses are the owner's.
fn other_process() -> Res {
    let mut g = running(config(0))?;
    for _ in 0..3 {
        let (s, p) = missing(&mut g)?;
        let child = sys::in_child(|| {
            let got = read(&g.net);
            let answered = map_seg(&g, &s).is_ok();
            i32::from(got != Ok(Msg::miss(s.gpa, RO)) || !answered)
        })?;
        check_eq!(child, 0, "another process than the owner's");
        sent(&mut g, &p)?;
    }
    works(&mut g)
}

/// A miss is 72 bytes, and what has no meaning is zero.
fn miss_bytes() -> Res {
    let mut g = running(config(0))?;
    for backend in [0, BACKEND_V2, 0] {
        check_eq!(ioctl(&g.net, sys::SET_BACKEND_FEATURES, &backend), 0);
        let (s, p) = missing(&mut g)?;
        let want = Msg::miss(s.gpa, RO);
        let want = if backend == 0 { want } else { want.v2() };
        let mut buf = [0xa5; 200];
        for len in [0, 1, 40, 71] {
            check_eq!(read_raw(&g.net, buf.as_mut_ptr(), len), 0, "{len} bytes");
        }
        check_eq!(read_raw(&g.net, buf.as_mut_ptr(), 200), 72, "200 bytes");
        check_eq!(buf[..72], want.bytes(), "the message");
        check!(
            buf[72..].iter().all(|&b| b == 0xa5),
            "more than the message"
        );
        for len in [0, 71] {
            check_eq!(read_raw(&g.net, buf.as_mut_ptr(), len), 0, "{len} bytes");
        }
        no_miss(&g)?;
        map_seg(&g, &s)?;
        sent(&mut g, &p)?;
    }
    // The version is that of the time of the miss.
    let (s, p) = missing(&mut g)?;
    check_eq!(ioctl(&g.net, sys::SET_BACKEND_FEATURES, &BACKEND_V2), 0);
    check_eq!(read(&g.net), Ok(Msg::miss(s.gpa, RO)));
    // And so is that of the answer the VMM's choice.
    let answer = Msg::update(s.gpa, s.len.into(), hva(&g, s.gpa), RO).v2();
    check_eq!(write(&g.net, &answer), 72);
    sent(&mut g, &p)?;

    // In parts.
    let (s, p) = missing(&mut g)?;
    let mut bytes = [0xa5; 72];
    let base = bytes.as_mut_ptr();
    let part = |from: usize, to: usize| libc::iovec {
        iov_base: base.wrapping_add(from).cast(),
        iov_len: to - from,
    };
    let parts = [part(0, 5), part(5, 33), part(33, 72)];
    // SAFETY: three valid entries.
    let got = unsafe { libc::readv(g.net.as_raw_fd(), parts.as_ptr(), 3) };
    check_eq!(got, 72, "a message in three parts");
    check_eq!(bytes, Msg::miss(s.gpa, RO).v2().bytes(), "the message");
    map_seg(&g, &s)?;
    sent(&mut g, &p)
}

/// A message that is read to where no memory is comes once more; from the C driver, when the queue is kicked.
fn read_to_nowhere() -> Res {
    let mut g = running(config(0))?;
    let wall = wall();
    let (s, p) = missing(&mut g)?;
    for (room, want) in [(0, 0), (30, 30), (71, 71)] {
        let at = wall.wrapping_sub(room);
        let got = read_raw(&g.net, at, 72);
        // Whole words may be written, or none of one: that is the architecture's.
        let right = got == want
            || cfg!(target_arch = "aarch64") && ((want - 15).max(0)..want).contains(&got);
        check!(right, "memory for {room} bytes: got {got}, want {want}");
        if sys::on_c() {
            g.tx.kick();
            settle(&g)?;
        }
    }
    let kernel = 0xffff_8880_0000_0000 as *mut u8;
    check_eq!(read_raw(&g.net, kernel, 72), -EFAULT, "the kernel's memory");
    check_eq!(miss(&g)?, (s.gpa, RO), "the miss");
    map_seg(&g, &s)?;
    sent(&mut g, &p)
}

/// A thread that reads a message and waits for it, and its number.
struct Reader {
    thread: JoinHandle<Result<Msg, i32>>,
    tid: i32,
}

impl Reader {
    fn new(g: &Guest) -> Res<Self> {
        let fd = dup(&g.net)?;
        nonblocking(&fd, false);
        let tid = Arc::new(AtomicI32::new(0));
        let theirs = tid.clone();
        let thread = std::thread::spawn(move || {
            // SAFETY: asks for a number.
            theirs.store(unsafe { libc::gettid() }, Relaxed);
            read(&fd)
        });
        check!(until(|| tid.load(Relaxed) != 0), "no thread");
        let tid = tid.load(Relaxed);
        let r = Reader { thread, tid };
        check!(until(|| r.sleeps()), "the reader does not sleep");
        Ok(r)
    }

    fn sleeps(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", self.tid));
        stat.is_ok_and(|s| s.contains(") S "))
    }

    fn signal(&self) {
        // SAFETY: the thread is not joined.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), libc::SIGUSR1) };
    }

    /// What it got, waited for.
    fn end(self) -> Res<Result<Msg, i32>> {
        check!(until(|| self.thread.is_finished()), "the reader goes on");
        Ok(self.thread.join().unwrap())
    }
}

extern "C" fn ignore(_: i32) {}

/// What a signal does: interrupts a system call, or restarts it.
fn on_signal(flags: i32) {
    // SAFETY: all zero is a valid action; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        action.sa_flags = flags;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

/// A read waits for a miss, and for nothing else.
fn read_waits() -> Res {
    let mut g = running(config(0))?;
    for _ in 0..20 {
        let reader = Reader::new(&g)?;
        let (s, p) = missing(&mut g)?;
        check_eq!(reader.end()?, Ok(Msg::miss(s.gpa, RO)), "what was read");
        map_seg(&g, &s)?;
        sent(&mut g, &p)?;
    }
    // Two wait, two get one each.
    let readers = [Reader::new(&g)?, Reader::new(&g)?];
    let (s, p) = missing(&mut g)?;
    check!(
        until(|| readers.iter().any(|r| r.thread.is_finished())),
        "nobody got the first miss"
    );
    let b = buffer(&g, 500);
    push_rx(&mut g, &[b]);
    g.peer.send(&p)?;
    let mut got = vec![];
    for r in readers {
        got.push(r.end()?.map(|m| (m.iova, m.perm)));
    }
    got.sort();
    let mut want = vec![Ok((s.gpa, RO)), Ok((b.gpa, WO))];
    want.sort();
    check_eq!(got, want, "what two readers got");
    nonblocking(&g.net, true);
    map_seg(&g, &s)?;
    map_seg(&g, &b)?;
    sent(&mut g, &p)?;
    received(&mut g, &[b], &p)?;
    quiet(&g)
}

/// A signal ends a read that waits, or does not if it restarts system calls.
fn read_signal() -> Res {
    let mut g = running(config(0))?;
    on_signal(0);
    let reader = Reader::new(&g)?;
    let ended = until(|| {
        reader.signal();
        reader.thread.is_finished()
    });
    check!(ended, "the reader goes on");
    check_eq!(reader.end()?, Err(-EINTR), "a read and a signal");
    on_signal(libc::SA_RESTART);
    let reader = Reader::new(&g)?;
    for _ in 0..10 {
        reader.signal();
        check!(until(|| reader.sleeps()), "the reader does not sleep");
    }
    let (s, _) = missing(&mut g)?;
    check_eq!(reader.end()?, Ok(Msg::miss(s.gpa, RO)), "what was read");
    Ok(())
}

/// A read does not wait where there is no IOTLB, or no more.
fn read_ends() -> Res {
    let mut g = running(config(0))?;
    let reader = Reader::new(&g)?;
    let second = Reader::new(&g)?;
    g.net.set_features(VERSION_1)?;
    check_eq!(reader.end()?, Err(-EBADFD), "the feature is switched off");
    check_eq!(second.end()?, Err(-EBADFD), "the feature is switched off");
    check_eq!(read(&g.net), Err(-EBADFD), "the feature is off");
    nonblocking(&g.net, true);
    no_miss(&g)?;

    g.net.set_features(FEATURES)?;
    let reader = Reader::new(&g)?;
    g.net.reset_owner()?;
    check_eq!(reader.end()?, Err(-EBADFD), "the owner is gone");
    check_eq!(read(&g.net), Err(-EBADFD), "no owner");

    // A miss that waits is read first, and is gone with the IOTLB.
    drop(g);
    g = running(config(0))?;
    let (s, _) = missing(&mut g)?;
    nonblocking(&g.net, false);
    check_eq!(read(&g.net), Ok(Msg::miss(s.gpa, RO)));
    let b = buffer(&g, 500);
    push_rx(&mut g, &[b]);
    g.peer.send(&frame(1, 60))?;
    settle(&g)?;
    g.net.set_features(VERSION_1)?;
    check_eq!(read(&g.net), Err(-EBADFD), "a miss of before");
    Ok(())
}

/// What poll says.
fn events(fd: &impl AsRawFd, timeout: i32) -> i16 {
    let mut p = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN | libc::POLLRDNORM | libc::POLLOUT | libc::POLLPRI,
        revents: 0,
    };
    // SAFETY: one entry.
    unsafe { libc::poll(&mut p, 1, timeout) };
    p.revents
}

const READABLE: i16 = libc::POLLIN | libc::POLLRDNORM;

/// The device is readable as long as a miss is not read.
fn poll() -> Res {
    let mut g = running(config(0))?;
    check_eq!(events(&g.net, 0), 0, "at first");
    for _ in 0..10 {
        let (s, p) = missing(&mut g)?;
        check_eq!(events(&g.net, 0), READABLE, "a miss");
        check_eq!(events(&g.net, 0), READABLE, "a miss, asked again");
        miss(&g)?;
        check_eq!(events(&g.net, 0), 0, "a miss that was read");
        map_seg(&g, &s)?;
        sent(&mut g, &p)?;
        check_eq!(events(&g.net, 0), 0, "a miss that was answered");
    }
    // Who waits in poll is woken.
    let fd = dup(&g.net)?;
    let patience = patience().as_millis() as i32;
    let waiter = std::thread::spawn(move || events(&fd, patience));
    missing(&mut g)?;
    check_eq!(waiter.join().unwrap(), READABLE, "a thread in poll");
    // And the miss can go away unread.
    g.net.set_features(VERSION_1)?;
    check_eq!(events(&g.net, 0), 0, "no IOTLB");
    Ok(())
}

/// How many events an epoll instance has, waited for or not.
fn ready(epoll: i32, timeout: i32) -> i32 {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: one entry.
    unsafe { libc::epoll_wait(epoll, &mut event, 1, timeout) }
}

/// With edge-triggered epoll, each miss is an event, read or not.
fn epoll_edges() -> Res {
    let mut g = running(config(0))?;
    // SAFETY: creates a descriptor, and adds another to it.
    let epoll = unsafe {
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: 0,
        };
        let fd = g.net.as_raw_fd();
        check_eq!(
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event),
            0
        );
        epoll
    };
    let patience = patience().as_millis() as i32;
    for round in 0..5 {
        check_eq!(ready(epoll, 0), 0, "nothing in round {round}");
        let (s, p) = missing(&mut g)?;
        check_eq!(ready(epoll, patience), 1, "a miss");
        check_eq!(ready(epoll, 0), 0, "the same miss");
        let b = buffer(&g, 500);
        push_rx(&mut g, &[b]);
        g.peer.send(&p)?;
        check_eq!(ready(epoll, patience), 1, "a second miss");
        check_eq!(miss(&g)?, (s.gpa, RO));
        check_eq!(miss(&g)?, (b.gpa, WO));
        map_seg(&g, &s)?;
        map_seg(&g, &b)?;
        sent(&mut g, &p)?;
        received(&mut g, &[b], &p)?;
    }
    Ok(())
}

/// A part of a ring that is not mapped is asked for when the queue runs.
fn ring_misses() -> Res {
    for index in [RX, TX] {
        let mut g = running(config(0))?;
        for part in 0..3 {
            let (at, len, perm) = parts(&g, index)[part];
            let p = frame(1, 200);
            let s = if index == RX {
                buffer(&g, 300)
            } else {
                packet(&g, &p)
            };
            map_seg(&g, &s)?;
            invalidate(&g.net, at, 1)?;
            if index == RX {
                push_rx(&mut g, &[s]);
                g.peer.send(&p)?;
            } else {
                push_tx(&mut g, &[s]);
            }
            check_eq!(miss(&g)?, (at, perm), "part {part} of queue {index}");
            stuck(&mut g, index)?;
            // Exactly what was asked for is enough.
            map(&g, at, len, perm)?;
            match index {
                RX => received(&mut g, &[s], &p)?,
                _ => sent(&mut g, &p)?,
            }
            quiet(&g)?;
        }
        works(&mut g)?;
    }
    Ok(())
}

/// Part after part, as they are needed, from the first byte that is not mapped; by this driver, all that is missing at once.
fn ring_from_nothing() -> Res {
    let mut g = Guest::stopped(config(0))?;
    map_used(&g, RX)?;
    map_used(&g, TX)?;
    g.start()?;
    for index in [TX, RX] {
        // A TX queue runs by itself when it starts.
        if index == RX {
            quiet(&g)?;
            g.rx.kick();
        }
        let parts = &parts(&g, index)[..2];
        let steps = |len: usize| [0, 100, 102, 2 * len / 3, len];
        let rounds = match sys::on_c() {
            true => vec![&parts[..1], &parts[1..]],
            false => vec![parts],
        };
        for parts in rounds {
            for step in 0..4 {
                let piece = |&(at, len, _): &(u64, usize, u8)| {
                    let [from, to] = [steps(len)[step], steps(len)[step + 1]];
                    (at + from as u64, to - from)
                };
                for part in parts {
                    check_eq!(miss(&g)?, (piece(part).0, RO), "queue {index}");
                }
                quiet(&g)?;
                for part in parts {
                    let (at, len) = piece(part);
                    map(&g, at, len, RO)?;
                }
            }
        }
        quiet(&g)?;
    }
    works(&mut g)
}

/// The device needs its rings to the last byte, and no byte more.
fn ring_ends() -> Res {
    for features in [0, EVENT_IDX] {
        let mut g = running(config(features))?;
        for index in [RX, TX] {
            for (at, len, perm) in parts(&g, index) {
                invalidate(&g.net, at, len as u64)?;
                map(&g, at, len - 2, RW)?;
                let kick = if index == RX { &g.rx.kick } else { &g.tx.kick };
                kick.write(1)?;
                let want = (at + len as u64 - 2, perm);
                check_eq!(miss(&g)?, want, "the end of {at:#x}");
                map(&g, want.0, 2, RW)?;
                works(&mut g)?;
            }
        }
        // Next to them, nothing is mapped: what is seen of the rings is all that the driver uses.
        for _ in 0..amount(300) {
            works(&mut g)?;
        }
    }
    Ok(())
}

/// A device starts only where the flags and the index of its used ring are mapped, and asks for them.
fn start_needs_used() -> Res {
    let mut g = Guest::stopped(config(0))?;
    for index in [RX, TX] {
        for (at, len, perm) in &parts(&g, index)[..2] {
            map(&g, *at, *len, *perm)?;
        }
        let used = parts(&g, index)[2];
        for _ in 0..3 {
            check_eq!(set_backend(&g, index), EFAULT, "no used ring");
        }
        check_eq!(miss(&g)?, (used.0, start_access()), "queue {index}");
        no_miss(&g)?;
        map(&g, used.0, used.1, RW)?;
        check_eq!(set_backend(&g, index), 0, "a used ring");
    }
    works(&mut g)
}

/// A device starts only with a table of guest memory, though the table may be empty.
fn start_needs_memory() -> Res {
    let g = Guest::stopped(config(0))?;
    let f = open()?;
    check_eq!(ioctl(&f, sys::SET_OWNER, std::ptr::null::<u8>()), 0);
    check_eq!(ioctl(&f, sys::SET_FEATURES, &FEATURES), 0);
    let tx = TX as u32;
    let num = State {
        index: tx,
        num: 256,
    };
    check_eq!(ioctl(&f, sys::SET_VRING_NUM, &num), 0);
    let addr = Addr {
        index: tx,
        desc: g.tx.desc,
        used: g.tx.used,
        avail: g.tx.avail,
        ..Default::default()
    };
    check_eq!(ioctl(&f, sys::SET_VRING_ADDR, &addr), 0);
    update(&f, BASE, 4 << 20, hva(&g, BASE), RW)?;
    let file = VringFile {
        index: tx,
        fd: g.tap.fd.as_raw_fd(),
    };
    check_eq!(ioctl(&f, sys::NET_SET_BACKEND, &file), EFAULT, "no table");
    let table = sys::mem_table(0, 0, &[]);
    check_eq!(ioctl(&f, sys::SET_MEM_TABLE, table.as_ptr()), 0);
    check_eq!(ioctl(&f, sys::NET_SET_BACKEND, &file), 0, "an empty table");
    Ok(())
}

/// Each buffer that the device reads is asked for, to be read, in the order of the chain.
fn tx_misses() -> Res {
    let mut g = running(config(0))?;
    let p = frame(1, 1000);
    let at = packet(&g, &p).gpa;
    let chain = [
        Seg::r(at, 5),
        Seg::r(at + 5, 600),
        Seg::r(at + 605, g.hdr + 1000 - 605),
    ];
    push_tx(&mut g, &chain);
    for s in &chain {
        check_eq!(miss(&g)?, (s.gpa, RO));
        stuck(&mut g, TX)?;
        map_seg(&g, s)?;
    }
    sent(&mut g, &p)?;
    // Once more, and nobody asks.
    push_tx(&mut g, &chain);
    sent(&mut g, &p)?;
    quiet(&g)?;

    // Half of a buffer is mapped.
    let s = packet(&g, &p);
    map(&g, s.gpa, 500, RO)?;
    push_tx(&mut g, &[s]);
    check_eq!(miss(&g)?, (s.gpa + 500, RO), "the other half");
    map(&g, s.gpa + 500, s.len as usize - 500, RO)?;
    sent(&mut g, &p)?;

    // What is before the missing one is sent.
    let packets: Vec<_> = (0..20).map(|i| frame(i, 100 + i as usize)).collect();
    let mut segs = vec![];
    for (i, p) in packets.iter().enumerate() {
        let s = packet(&g, p);
        if i != 11 {
            map_seg(&g, &s)?;
        }
        g.tx.add(&[s]);
        segs.push(s);
    }
    g.tx.submit();
    check_eq!(miss(&g)?, (segs[11].gpa, RO));
    for p in &packets[..11] {
        sent(&mut g, p)?;
    }
    stuck(&mut g, TX)?;
    map_seg(&g, &segs[11])?;
    for p in &packets[11..] {
        sent(&mut g, p)?;
    }
    works(&mut g)
}

/// Each buffer that the device writes is asked for, to be written, when a packet is there for it.
fn rx_misses() -> Res {
    let mut g = running(config(MRG_RXBUF))?;
    let p = frame(1, 1000);
    let at = buffer(&g, 2000).gpa;
    let chain = [Seg::w(at, 7), Seg::w(at + 7, 300), Seg::w(at + 307, 1693)];
    push_rx(&mut g, &chain);
    quiet(&g)?;
    g.peer.send(&p)?;
    for s in &chain {
        check_eq!(miss(&g)?, (s.gpa, WO));
        stuck(&mut g, RX)?;
        map_seg(&g, s)?;
    }
    received(&mut g, &chain, &p)?;
    g.peer.send(&p)?;
    push_rx(&mut g, &chain);
    received(&mut g, &chain, &p)?;
    quiet(&g)?;

    // A packet that needs three chains of five. All are in one page, of which one miss is told at a time.
    in_one_page(&g, 2000);
    let chains: Vec<_> = (0..5).map(|_| buffer(&g, 400)).collect();
    for s in &chains {
        g.rx.add(&[*s]);
    }
    g.rx.submit();
    g.peer.send(&p)?;
    for s in &chains[..3] {
        check_eq!(miss(&g)?, (s.gpa, WO));
        stuck(&mut g, RX)?;
        map_seg(&g, s)?;
    }
    for want in [400, 400, g.hdr + 1000 - 800] {
        check_eq!(g.rx.wait()?.len as usize, want, "used length");
    }
    let data = chains[..3].iter().map(|s| g.mem.read(s.gpa, 400));
    let data = data.collect::<Vec<_>>().concat();
    same(&data[g.hdr..g.hdr + 1000], &p, "received packet")?;
    // The two that are left are in a page of which a miss was told already: they are asked for when a packet needs them.
    quiet(&g)?;
    let small = frame(2, 60);
    g.peer.send(&small)?;
    check_eq!(miss(&g)?, (chains[3].gpa, WO));
    stuck(&mut g, RX)?;
    map_seg(&g, &chains[3])?;
    received(&mut g, &chains[3..4], &small)?;
    quiet(&g)
}

/// An indirect table is asked for, to be read, and so are its buffers, each as it is used.
fn indirect_misses() -> Res {
    let mut g = running(config(INDIRECT))?;
    for index in [TX, RX] {
        let p = frame(1, 500);
        let (at, perm) = match index {
            RX => (buffer(&g, 600).gpa, WO),
            _ => (packet(&g, &p).gpa, RO),
        };
        let seg = |i: usize| {
            let (at, len) = (
                at + 64 * i as u64,
                if i < 7 { 64 } else { g.hdr + 500 - 448 },
            );
            match index {
                RX => Seg::w(at, len),
                _ => Seg::r(at, len),
            }
        };
        let segs: Vec<_> = (0..8).map(seg).collect();
        let table = g.mem.alloc(128, 16);
        if index == RX {
            g.rx.add_indirect(&segs, table);
            g.rx.submit();
            g.peer.send(&p)?;
        } else {
            g.tx.add_indirect(&segs, table);
            g.tx.submit();
        }
        // In two parts, the cut in the middle of a descriptor.
        check_eq!(miss(&g)?, (table, RO), "the table");
        map(&g, table, 40, RO)?;
        check_eq!(miss(&g)?, (table + 40, RO), "the rest of the table");
        map(&g, table + 40, 88, RO)?;
        for s in &segs {
            check_eq!(miss(&g)?, (s.gpa, perm), "a buffer of the table");
            stuck(&mut g, index)?;
            map_seg(&g, s)?;
        }
        match index {
            RX => received(&mut g, &segs, &p)?,
            _ => sent(&mut g, &p)?,
        }
        quiet(&g)?;
    }
    works(&mut g)
}

/// Kicks the TX queue, which waits for an address that it has asked for: it asks again. With the C driver it does not.
fn kick_waiting(g: &mut Guest, asked: (u64, u8)) -> Res {
    g.tx.kick();
    if !sys::on_c() {
        check_eq!(miss(g)?, asked, "after a kick");
    }
    Ok(())
}

/// A queue asks for one address of a page at a time, however often it is kicked.
fn one_at_a_time() -> Res {
    let mut g = running(config(0))?;
    let p = frame(1, 100);
    in_one_page(&g, 300);
    let (first, second) = (packet(&g, &p), packet(&g, &p));
    push_tx(&mut g, &[first]);
    for _ in 0..5 {
        g.tx.kick();
        settle(&g)?;
    }
    push_tx(&mut g, &[second]);
    settle(&g)?;
    check_eq!(miss(&g)?, (first.gpa, RO));
    for _ in 0..5 {
        stuck(&mut g, TX)?;
        kick_waiting(&mut g, (first.gpa, RO))?;
    }
    map_seg(&g, &first)?;
    sent(&mut g, &p)?;
    check_eq!(miss(&g)?, (second.gpa, RO));
    map_seg(&g, &second)?;
    sent(&mut g, &p)?;
    works(&mut g)
}

/// A queue that waits goes on when its address is mapped, not when others are.
fn answers() -> Res {
    let mut g = running(config(0))?;
    let p = frame(1, 300);
    let s = packet(&g, &p);
    push_tx(&mut g, &[s]);
    check_eq!(miss(&g)?, (s.gpa, RO));
    for (from, len) in [(1, 100), (-16, 16), (0x10_0000, 100)] {
        map(&g, s.gpa.wrapping_add_signed(from), len, RO)?;
        stuck(&mut g, TX)?;
        kick_waiting(&mut g, (s.gpa, RO))?;
        stuck(&mut g, TX)?;
    }
    invalidate(&g.net, s.gpa, 1)?;
    stuck(&mut g, TX)?;
    // A mapping that is refused is none.
    for (uaddr, size) in [(sys::user_end()?, 1), (0, s.gpa.wrapping_neg() + 1)] {
        let msg = Msg::update(s.gpa, size, uaddr, RO);
        check_eq!(
            write(&g.net, &msg),
            -EFAULT,
            "{size:#x} bytes of {uaddr:#x}"
        );
        stuck(&mut g, TX)?;
    }
    // One byte is enough to go on, to the next that is missing.
    map(&g, s.gpa, 1, RO)?;
    check_eq!(miss(&g)?, (s.gpa + 101, RO));
    // So is a mapping that has it in its middle or at its end.
    map(&g, s.gpa + 50, 52, RO)?;
    check_eq!(miss(&g)?, (s.gpa + 102, RO));
    map(&g, s.gpa + 90, 20, RO)?;
    check_eq!(miss(&g)?, (s.gpa + 110, RO));
    map(&g, s.gpa, s.len as usize, RO)?;
    sent(&mut g, &p)?;
    works(&mut g)
}

/// One mapping answers both queues.
fn answer_for_two() -> Res {
    let mut g = running(config(0))?;
    for _ in 0..10 {
        let p = frame(1, 300);
        let s = packet(&g, &p);
        let b = buffer(&g, 400);
        push_tx(&mut g, &[s]);
        check_eq!(miss(&g)?, (s.gpa, RO));
        push_rx(&mut g, &[b]);
        g.peer.send(&p)?;
        check_eq!(miss(&g)?, (b.gpa, WO));
        let end = b.gpa + u64::from(b.len);
        map(&g, s.gpa, (end - s.gpa) as usize, RW)?;
        sent(&mut g, &p)?;
        received(&mut g, &[b], &p)?;
        quiet(&g)?;
        invalidate(&g.net, s.gpa, 1)?;
    }
    Ok(())
}

/// Both queues may wait, and each is answered by itself.
fn two_queues() -> Res {
    let mut g = running(config(0))?;
    for i in 0..10 {
        let p = frame(i, 300);
        let s = packet(&g, &p);
        let b = buffer(&g, 400);
        push_tx(&mut g, &[s]);
        settle(&g)?;
        push_rx(&mut g, &[b]);
        g.peer.send(&p)?;
        settle(&g)?;
        // In the order in which they missed.
        check_eq!(miss(&g)?, (s.gpa, RO));
        check_eq!(miss(&g)?, (b.gpa, WO));
        stuck(&mut g, TX)?;
        stuck(&mut g, RX)?;
        if i % 2 == 0 {
            map_seg(&g, &s)?;
            sent(&mut g, &p)?;
            stuck(&mut g, RX)?;
            map_seg(&g, &b)?;
            received(&mut g, &[b], &p)?;
        } else {
            map_seg(&g, &b)?;
            received(&mut g, &[b], &p)?;
            stuck(&mut g, TX)?;
            map_seg(&g, &s)?;
            sent(&mut g, &p)?;
        }
    }
    works(&mut g)
}

/// A mapping that comes before its miss was read does not wake the queue. The miss stays until the queue comes upon another
/// one; with the C driver until it is read and answered, and no other is sent.
fn unread() -> Res {
    let mut g = running(config(0))?;
    let p = frame(1, 100);
    in_one_page(&g, 300);
    let (first, second) = (packet(&g, &p), packet(&g, &p));
    push_tx(&mut g, &[first]);
    settle(&g)?;
    map_seg(&g, &first)?;
    settle(&g)?;
    check!(g.tx.pop().is_none(), "a packet sent");
    check_eq!(events(&g.net, 0), READABLE, "the miss is there");
    g.tx.kick();
    sent(&mut g, &p)?;
    push_tx(&mut g, &[second]);
    settle(&g)?;
    if sys::on_c() {
        check_eq!(miss(&g)?, (first.gpa, RO), "the old miss");
        stuck(&mut g, TX)?;
        map_seg(&g, &first)?;
    }
    check_eq!(miss(&g)?, (second.gpa, RO), "the next miss");
    stuck(&mut g, TX)?;
    map_seg(&g, &second)?;
    sent(&mut g, &p)?;
    works(&mut g)
}

/// What is taken away is asked for again when it is next used, and only then.
fn invalidated() -> Res {
    let mut g = running(config(0))?;
    let p = frame(1, 9000);
    let s = packet(&g, &p);
    let len = s.len as usize;
    map(&g, s.gpa, len, RO)?;
    // A neighbour on each side.
    let (before, behind) = (s.gpa - 64, s.gpa + u64::from(s.len));
    g.mem.alloc(64, 1);
    update(&g.net, before, 64, hva(&g, before), RO)?;
    update(&g.net, behind, 64, hva(&g, behind), RO)?;
    push_tx(&mut g, &[s]);
    sent(&mut g, &p)?;
    // A mapping goes as a whole, whichever of its bytes was meant.
    for (at, size) in [
        (s.gpa, 1),
        (s.gpa + 5000, 1),
        (behind - 1, 1),
        (s.gpa, u64::from(s.len)),
    ] {
        invalidate(&g.net, at, size)?;
        quiet(&g)?;
        push_tx(&mut g, &[s]);
        check_eq!(miss(&g)?, (s.gpa, RO));
        map_seg(&g, &s)?;
        sent(&mut g, &p)?;
    }
    // Its neighbours are there still, but for those that are hit.
    let around = Seg::r(before, 64 + len + 64);
    push_tx(&mut g, &[around]);
    g.tx.wait()?;
    g.peer.recv()?;
    quiet(&g)?;
    invalidate(&g.net, before + 63, 2)?;
    push_tx(&mut g, &[around]);
    check_eq!(miss(&g)?, (before, RO));
    map(&g, before, 64 + len, RO)?;
    g.tx.wait()?;
    g.peer.recv()?;
    quiet(&g)?;
    // Nothing is nothing.
    let nothing = Msg::invalidate(before, 0);
    check_eq!(write(&g.net, &nothing), -EFAULT);
    push_tx(&mut g, &[around]);
    g.tx.wait()?;
    g.peer.recv()?;
    quiet(&g)?;
    // All: the next run of a queue starts with its table.
    invalidate(&g.net, 0, u64::MAX)?;
    quiet(&g)?;
    g.rx.kick();
    ring_missing(&g, RX)?;
    push_tx(&mut g, &[around]);
    ring_missing(&g, TX)?;
    map_rings(&g)?;
    check_eq!(miss(&g)?, (before, RO));
    map(&g, before, 64 + len + 64, RO)?;
    g.tx.wait()?;
    g.peer.recv()?;
    works(&mut g)
}

/// A buffer of which a mapping forbids the use is an error, not a miss. It is the VMM that has to take the
/// mapping away.
fn buffer_permissions() -> Res {
    let mut g = running(config(INDIRECT))?;
    for perm in [WO, 0] {
        let (s, p) = missing(&mut g)?;
        check_eq!(miss(&g)?, (s.gpa, RO));
        map(&g, s.gpa, s.len as usize, perm)?;
        g.tx.wait_err()?;
        stuck(&mut g, TX)?;
        rx_works(&mut g)?;
        // A second mapping does not hide the first.
        map_seg(&g, &s)?;
        g.tx.kick();
        g.tx.wait_err()?;
        stuck(&mut g, TX)?;
        invalidate(&g.net, s.gpa, 1)?;
        g.tx.kick();
        check_eq!(miss(&g)?, (s.gpa, RO));
        map_seg(&g, &s)?;
        sent(&mut g, &p)?;
        quiet(&g)?;
    }
    for perm in [RO, 0] {
        let p = frame(1, 300);
        let b = buffer(&g, 400);
        push_rx(&mut g, &[b]);
        g.peer.send(&p)?;
        check_eq!(miss(&g)?, (b.gpa, WO));
        map(&g, b.gpa, 400, perm)?;
        g.rx.wait_err()?;
        stuck(&mut g, RX)?;
        check!(
            g.mem.read(b.gpa, 400).iter().all(|&b| b == 0xa5),
            "written all the same"
        );
        tx_works(&mut g)?;
        invalidate(&g.net, b.gpa, 1)?;
        g.rx.kick();
        check_eq!(miss(&g)?, (b.gpa, WO));
        map_seg(&g, &b)?;
        received(&mut g, &[b], &p)?;
        quiet(&g)?;
    }
    let p = frame(1, 300);
    let s = packet(&g, &p);
    map_seg(&g, &s)?;
    let table = g.mem.alloc(16, 16);
    map(&g, table, 16, WO)?;
    g.tx.add_indirect(&[s], table);
    g.tx.submit();
    g.tx.wait_err()?;
    stuck(&mut g, TX)?;
    invalidate(&g.net, table, 16)?;
    g.tx.kick();
    check_eq!(miss(&g)?, (table, RO));
    map(&g, table, 16, RO)?;
    sent(&mut g, &p)?;
    works(&mut g)
}

/// A ring that the device may not use as it has to stops its queue, without a word. It goes on when another mapping comes that
/// covers what it may not; with the C driver at a kick.
///
/// Seen red: `Device::wait_for_misses` (vhost/device.rs) without its `wait_silently`.
fn ring_permissions() -> Res {
    for index in [RX, TX] {
        let mut g = running(config(0))?;
        for part in 0..3 {
            let (at, len, perm) = parts(&g, index)[part];
            // Each permission that lacks one of those that are needed.
            for wrong in (0..RW).filter(|has| has & perm != perm) {
                invalidate(&g.net, at, 1)?;
                map(&g, at, len, wrong)?;
                let p = frame(1, 200);
                let s = if index == RX {
                    buffer(&g, 300)
                } else {
                    packet(&g, &p)
                };
                map_seg(&g, &s)?;
                if index == RX {
                    push_rx(&mut g, &[s]);
                    g.peer.send(&p)?;
                } else {
                    push_tx(&mut g, &[s]);
                }
                stuck(&mut g, index)?;
                invalidate(&g.net, at, 1)?;
                stuck(&mut g, index)?;
                map(&g, at, len, RW)?;
                if sys::on_c() {
                    stuck(&mut g, index)?;
                    let r = if index == RX { &g.rx } else { &g.tx };
                    r.kick();
                }
                match index {
                    RX => received(&mut g, &[s], &p)?,
                    _ => sent(&mut g, &p)?,
                }
            }
        }
        works(&mut g)?;
    }
    Ok(())
}

/// Packets that come while the ring may not be used do not have that told again and again.
fn ring_permissions_told_once() -> Res {
    let mut g = running(config(0))?;
    let (at, len, perm) = parts(&g, RX)[2];
    invalidate(&g.net, at, 1)?;
    map(&g, at, len, RW ^ perm)?;
    let b = g.buffer(300);
    map_seg(&g, &b)?;
    push_rx(&mut g, &[b]);
    let before = g.rx.err.read().unwrap_or(0);
    for n in 0..50 {
        g.peer.send(&frame(n, 60))?;
        settle(&g)?;
    }
    let told = before + g.rx.err.read().unwrap_or(0);
    // The C driver says nothing at all.
    check!(told <= 2, "told {told} times");
    Ok(())
}

/// Maps guest memory in pieces of these lengths in turn, each in the other of two places.
fn map_pieces(g: &Guest, views: [u64; 2], from: u64, len: usize, pieces: &[usize]) -> Res {
    let mut done = 0;
    for (i, &piece) in pieces.iter().cycle().enumerate() {
        let piece = piece.min(len - done);
        let at = from + done as u64;
        update(&g.net, at, piece as u64, views[i % 2] + (at - BASE), RW)?;
        done += piece;
        if done == len {
            break;
        }
    }
    Ok(())
}

/// Rings that lie here and there, in pieces that end anywhere but in the middle of a ring's 16-bit field. The C
/// driver writes no more than 64 pieces of the used ring at a time.
fn ring_in_pieces() -> Res {
    for features in [0, EVENT_IDX | INDIRECT, IN_ORDER] {
        let split = [
            [&[8, 24, 40][..], &[2, 4, 6], &[4, 8, 20]],
            [&[16], &[2], &[2, 30]],
            [&[500, 100], &[14, 300], &[250, 34]],
        ];
        // A packed ring's descriptors are written, each at once.
        let packed = [[&[16, 48, 80][..], &[4], &[4]], [&[16], &[4], &[4]]];
        for pieces in match packed::by_default() {
            true => &packed[..],
            false => &split,
        } {
            let mut g = Guest::stopped(config(features).num(64))?;
            let views = [g.mem.regions()[0].hva, g.mem.map_again()?[0].hva];
            for index in [RX, TX] {
                for ((at, len, _), pieces) in parts(&g, index).into_iter().zip(*pieces) {
                    map_pieces(&g, views, at, len, pieces)?;
                }
            }
            g.start()?;
            let room = Traffic::room(&g);
            let area = g.mem.alloc(room, PAGE);
            map(&g, area, room, RW)?;
            Traffic::new(&g, area).run(&mut g, amount(500))?;
            quiet(&g)?;
        }
    }
    Ok(())
}

/// Buffers that lie here and there, in up to a thousand pieces.
fn buffer_in_pieces() -> Res {
    for features in [0, MRG_RXBUF, VHOST_NET_HDR] {
        buffer_in_pieces_with(features)?;
    }
    Ok(())
}

fn buffer_in_pieces_with(features: u64) -> Res {
    let mut g = running(config(features))?;
    let views = [g.mem.regions()[0].hva, g.mem.map_again()?[0].hva];
    for (len, pieces) in [
        (60, &[1][..]),
        (1000, &[1]),
        (1500, &[700, 1, 13]),
        (60000, &[64, 60]),
        (65000, &[4096, 1, 4095]),
        (9000, &[9011, 1]),
    ] {
        let p = frame(1, len);
        let s = packet(&g, &p);
        map_pieces(&g, views, s.gpa, s.len as usize, pieces)?;
        push_tx(&mut g, &[s]);
        sent(&mut g, &p)?;
        let b = buffer(&g, g.hdr + len);
        map_pieces(&g, views, b.gpa, b.len as usize, pieces)?;
        push_rx(&mut g, &[b]);
        g.peer.send(&p)?;
        received(&mut g, &[b], &p)?;
        quiet(&g)?;
        // The table has a limit.
        invalidate(&g.net, s.gpa, u64::from(s.len))?;
        invalidate(&g.net, b.gpa, u64::from(b.len))?;
    }
    // More than the device can take is an error of the queue.
    let s = packet(&g, &frame(1, 1200));
    map_pieces(&g, views, s.gpa, s.len as usize, &[1])?;
    push_tx(&mut g, &[s]);
    g.tx.wait_err()?;
    stuck(&mut g, TX)?;
    rx_works(&mut g)
}

/// Rings and buffers at the end of the 64-bit space, up to its last byte.
fn top_of_space() -> Res {
    let mut g = Guest::stopped(config(0))?;
    // Each part of a ring in turn ends where the space does.
    for part in 0..3 {
        let old = parts(&g, TX);
        let mut at = old.map(|p| p.0);
        at[part] = (old[part].1 as u64).wrapping_neg();
        for i in 0..3 {
            update(&g.net, at[i], old[i].1 as u64, hva(&g, old[i].0), RW)?;
        }
        check_eq!(set_addr(&g, TX, at[0], at[1], at[2]), 0);
        check_eq!(set_backend(&g, TX), 0);
        tx_works(&mut g)?;
        quiet(&g)?;
        g.stop()?;
        invalidate(&g.net, 0, u64::MAX)?;
        invalidate(&g.net, 1, u64::MAX)?;
    }
    check_eq!(set_addr(&g, TX, g.tx.desc, g.tx.avail, g.tx.used), 0);
    map_rings(&g)?;
    g.start()?;
    let p = frame(1, 500);
    let s = packet(&g, &p);
    let top = Seg {
        gpa: u64::from(s.len).wrapping_neg(),
        ..s
    };
    push_tx(&mut g, &[top]);
    check_eq!(miss(&g)?, (top.gpa, RO));
    let half = u64::from(s.len) / 2;
    update(&g.net, top.gpa, half, hva(&g, s.gpa), RO)?;
    check_eq!(miss(&g)?, (top.gpa + half, RO));
    let rest = u64::from(s.len) - half;
    update(&g.net, top.gpa + half, rest, hva(&g, s.gpa + half), RO)?;
    sent(&mut g, &p)?;
    let b = buffer(&g, 600);
    let top = Seg {
        gpa: 600u64.wrapping_neg(),
        ..b
    };
    invalidate(&g.net, u64::MAX, 1)?;
    invalidate(&g.net, top.gpa, 600)?;
    push_rx(&mut g, &[top]);
    g.peer.send(&p)?;
    check_eq!(miss(&g)?, (top.gpa, WO));
    update(&g.net, top.gpa, 600, hva(&g, b.gpa), WO)?;
    g.rx.wait()?;
    same(&g.mem.read(b.gpa + g.hdr as u64, 500), &p, "packet")?;
    quiet(&g)?;
    // A buffer that goes on at the other end is never found: an error, or for the C driver a miss that no
    // answer ends.
    update(&g.net, 0, PAGE, hva(&g, s.gpa), RO)?;
    push_tx(&mut g, &[Seg::r(600u64.wrapping_neg(), 601)]);
    settle(&g)?;
    let _ = read(&g.net);
    update(&g.net, 600u64.wrapping_neg(), 600, hva(&g, s.gpa), RO)?;
    settle(&g)?;
    let _ = read(&g.net);
    stuck(&mut g, TX)?;
    rx_works(&mut g)
}

/// All of user space in one mapping, at any place of the 64-bit space.
fn all_of_user_space() -> Res {
    let mut g = Guest::stopped(config(0))?;
    let end = sys::user_end()?;
    for start in [0, 1 << 63, FAR, u64::MAX - end + 1] {
        update(&g.net, start, end, 0, RW)?;
        for index in [RX, TX] {
            let [desc, avail, used] = parts(&g, index).map(|p| start + hva(&g, p.0));
            check_eq!(set_addr(&g, index, desc, avail, used), 0);
        }
        g.start()?;
        for i in 0..10 {
            let p = frame(i, 500);
            let s = packet(&g, &p);
            let b = buffer(&g, 600);
            let at = |s: Seg| Seg {
                gpa: start + hva(&g, s.gpa),
                ..s
            };
            let (tx, rx) = (at(s), at(b));
            push_tx(&mut g, &[tx]);
            sent(&mut g, &p)?;
            push_rx(&mut g, &[rx]);
            g.peer.send(&p)?;
            received(&mut g, &[b], &p)?;
            quiet(&g)?;
        }
        g.stop()?;
        invalidate(&g.net, start, 1)?;
    }
    Ok(())
}

/// Some pseudo-random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
}

/// What mappings mean that overlap: each byte is the affair of that which starts first, and of the oldest of
/// those that start at one place. A model says the same for any sequence of messages.
fn overlaps() -> Res {
    const SPACE: u64 = 3000;
    let mut g = running(config(0))?;
    // In front of each packet: its header, and that of Ethernet.
    let head = packet(&g, &frame(1, 14));
    map_seg(&g, &head)?;
    let source = g.mem.alloc(1 << 16, PAGE);
    g.mem.write(source, &frame(2, 1 << 16));
    // Where each starts and ends, and where it leads, by age.
    let mut model: Vec<(u64, u64, u64)> = vec![];
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut misses = 0;
    for step in 0..4000 {
        let from = random.below(SPACE);
        let len = 1 + random.below((SPACE - from).min([30, 300, SPACE][step % 3]));
        let add = |model: &mut Vec<_>, from: u64, len: u64, random: &mut Random| {
            let to = source + random.below((1 << 16) - SPACE);
            model.push((from, from + len, to));
            update(&g.net, FAR + from, len, hva(&g, to), RW)
        };
        match random.below(8) {
            0..=2 => add(&mut model, from, len, &mut random)?,
            // One more where one is.
            3 if !model.is_empty() => {
                let old = model[random.below(model.len() as u64) as usize];
                let len = 1 + random.below(SPACE - old.0);
                add(&mut model, old.0, len, &mut random)?;
            }
            4 => {
                invalidate(&g.net, FAR + from, len)?;
                model.retain(|m| m.1 <= from || from + len <= m.0);
            }
            5 if model.len() > 60 => {
                invalidate(&g.net, FAR, SPACE)?;
                model.clear();
            }
            _ => {
                let s = Seg::r(FAR + from, len as usize);
                g.tx.add(&[head, s]);
                g.tx.publish();
                g.tx.kick();
                let mut want = vec![];
                let mut at = from;
                while at < from + len {
                    let found = model.iter().filter(|m| m.0 <= at && at < m.1);
                    match found.min_by_key(|m| m.0) {
                        Some(m) => {
                            want.extend(g.mem.read(m.2 + (at - m.0), 1));
                            at += 1;
                        }
                        None => {
                            check_eq!(miss(&g)?, (FAR + at, RO), "step {step}");
                            misses += 1;
                            let len = 1 + random.below(SPACE - at);
                            let to = source + random.below((1 << 16) - SPACE);
                            model.push((at, at + len, to));
                            update(&g.net, FAR + at, len, hva(&g, to), RW)?;
                        }
                    }
                }
                g.tx.wait()?;
                let got = g.peer.recv()?;
                same(&got[14..], &want, &format!("step {step}"))?;
                no_miss(&g)?;
            }
        }
    }
    check!(misses > 100, "{misses} misses");
    check!(g.tx.err.read().is_err(), "an error was signalled");
    Ok(())
}

/// How many mappings there may be.
fn limit() -> Res<u64> {
    let of = |module| {
        let path = format!("/sys/module/{module}/parameters/max_iotlb_entries");
        std::fs::read_to_string(path)
    };
    let text = of("vhost").or_else(|_| of("vhost_net"))?;
    Ok(text.trim().parse()?)
}

/// A table that is full forgets its oldest mapping for a new one.
fn table_limit() -> Res {
    let limit = limit()?;
    let mut g = Guest::stopped(config(0))?;
    let p = frame(1, 100);
    let (first, second) = (packet(&g, &p), packet(&g, &p));
    map_seg(&g, &first)?;
    map_seg(&g, &second)?;
    map_rings(&g)?;
    g.start()?;
    quiet(&g)?;
    let filler = |i: u64| update(&g.net, FAR + 2 * PAGE * i, PAGE, hva(&g, BASE), RW);
    for i in 0..limit - 8 {
        // From high to low, so that the oldest is not the first.
        filler(limit - i)?;
    }
    // It is full, and all are there.
    push_tx(&mut g, &[first]);
    sent(&mut g, &p)?;
    push_tx(&mut g, &[second]);
    sent(&mut g, &p)?;
    quiet(&g)?;
    // One more.
    update(&g.net, FAR, PAGE, hva(&g, BASE), RW)?;
    push_tx(&mut g, &[second]);
    sent(&mut g, &p)?;
    quiet(&g)?;
    push_tx(&mut g, &[first]);
    check_eq!(miss(&g)?, (first.gpa, RO), "the oldest is forgotten");
    map_seg(&g, &first)?;
    sent(&mut g, &p)?;
    quiet(&g)?;
    push_tx(&mut g, &[second]);
    check_eq!(miss(&g)?, (second.gpa, RO), "and then the next");
    map_seg(&g, &second)?;
    sent(&mut g, &p)?;
    // Then the RX ring, part by part; and what is taken away makes room.
    let [_, avail, used] = parts(&g, RX);
    let b = buffer(&g, 200);
    map_seg(&g, &b)?;
    invalidate(&g.net, FAR, 32 * PAGE)?;
    push_rx(&mut g, &[b]);
    g.peer.send(&p)?;
    for (at, len, perm) in [avail, used] {
        check_eq!(miss(&g)?, (at, perm), "a part of the ring");
        map(&g, at, len, RW)?;
    }
    received(&mut g, &[b], &p)?;
    works(&mut g)
}

/// Ring addresses may be any, also such as user space never has, as long as they are aligned. Zero is one.
fn ring_addresses() -> Res {
    let mut g = Guest::stopped(config(0))?;
    for running in [false, true] {
        if running {
            map_rings(&g)?;
            g.start()?;
            quiet(&g)?;
        }
        let (desc, avail, used) = (g.tx.desc, g.tx.avail, g.tx.used);
        for at in [
            1 << 63,
            u64::MAX - 3,
            sys::user_end()?,
            0xffff_8880_0000_0000,
        ] {
            check_eq!(set_addr(&g, TX, at, at, at), 0, "rings at {at:#x}");
            check_eq!(
                set_addr(&g, TX, at + 3, at, at),
                0,
                "a table at {at:#x} + 3"
            );
            check_eq!(set_addr(&g, TX, desc, at + 1, used), EINVAL);
            check_eq!(set_addr(&g, TX, desc, avail, at + 2), EINVAL);
        }
        check_eq!(set_addr(&g, TX, desc, avail, used), 0);
    }
    works(&mut g)?;
    g.stop()?;

    for index in [RX, TX] {
        for part in 0..3 {
            let old = parts(&g, index);
            let mut at = old.map(|p| p.0);
            at[part] = 0;
            update(&g.net, 0, old[part].1 as u64, hva(&g, old[part].0), RW)?;
            check_eq!(set_addr(&g, index, at[0], at[1], at[2]), 0);
            g.start()?;
            works(&mut g)?;
            g.stop()?;
            invalidate(&g.net, 0, 1)?;
        }
        check_eq!(set_addr(&g, index, 0, 0, 0), 0);
        let [_, _, (used, len, _)] = parts(&g, index);
        update(&g.net, 0, len as u64, hva(&g, used), RW)?;
        // Three zeros are no addresses: the queue does not run, and asks for nothing.
        check_eq!(set_backend(&g, index), 0);
        let kick = if index == RX { &g.rx.kick } else { &g.tx.kick };
        kick.write(1)?;
        quiet(&g)?;
        g.stop()?;
        invalidate(&g.net, 0, 1)?;
        let [desc, avail, used] = parts(&g, index).map(|p| p.0);
        check_eq!(set_addr(&g, index, desc, avail, used), 0);
    }
    g.start()?;
    works(&mut g)
}

/// A ring that moves to other addresses while it runs is looked for there.
fn ring_moves() -> Res {
    let mut g = running(config(0))?;
    for i in 1..10 {
        works(&mut g)?;
        let offset = FAR * (i % 3);
        for index in [RX, TX] {
            let old = parts(&g, index);
            let at = old.map(|p| p.0 + offset);
            invalidate(&g.net, at[0], 1)?;
            invalidate(&g.net, at[1], 1)?;
            invalidate(&g.net, at[2], 1)?;
            check_eq!(set_addr(&g, index, at[0], at[1], at[2]), 0);
            quiet(&g)?;
            let kick = if index == RX { &g.rx.kick } else { &g.tx.kick };
            kick.write(1)?;
            for part in 0..3 {
                let (_, len, perm) = old[part];
                check_eq!(miss(&g)?, (at[part], perm), "part {part} of {index}");
                update(&g.net, at[part], len as u64, hva(&g, old[part].0), RW)?;
            }
        }
    }
    Ok(())
}

/// Without the feature, its addresses, mappings and messages are forgotten; with it, those from before are.
fn off_and_on() -> Res {
    let mut g = running(config(0))?;
    for round in 0..5 {
        works(&mut g)?;
        // One miss is read, and one is not.
        let (s, p) = missing(&mut g)?;
        check_eq!(miss(&g)?, (s.gpa, RO));
        let b = buffer(&g, 500);
        push_rx(&mut g, &[b]);
        g.peer.send(&p)?;
        settle(&g)?;
        check_eq!(events(&g.net, 0), READABLE, "a miss");

        g.net.set_features(VERSION_1)?;
        no_miss(&g)?;
        let update = Msg::update(s.gpa, PAGE, hva(&g, s.gpa), RW);
        check_eq!(write(&g.net, &update), -EFAULT, "a message");
        let all = Msg::invalidate(0, PAGE);
        check_eq!(write(&g.net, &all), -EFAULT, "a message");
        // The device has no rings.
        g.tx.kick();
        g.rx.kick();
        stuck(&mut g, TX)?;
        stuck(&mut g, RX)?;
        if round % 2 == 0 {
            // With user addresses, and guest addresses in the buffers, it goes on.
            for index in [RX, TX] {
                let [desc, avail, used] = parts(&g, index).map(|p| hva(&g, p.0));
                check_eq!(set_addr(&g, index, u64::MAX, avail, used), EINVAL);
                check_eq!(set_addr(&g, index, desc, avail, used), 0);
            }
            g.tx.kick();
            g.rx.kick();
            sent(&mut g, &p)?;
            received(&mut g, &[b], &p)?;
            g.receive_all(&[frame(1, 60)])?;
            g.send_all(&[frame(2, 60)])?;
        }

        g.net.set_features(FEATURES)?;
        g.tx.kick();
        g.rx.kick();
        stuck(&mut g, TX)?;
        stuck(&mut g, RX)?;
        for index in [RX, TX] {
            let [desc, avail, used] = parts(&g, index).map(|p| p.0);
            check_eq!(set_addr(&g, index, desc, avail, used), 0);
        }
        // No mapping is there of before.
        g.tx.kick();
        ring_missing(&g, TX)?;
        quiet(&g)?;
        g.rx.kick();
        ring_missing(&g, RX)?;
        map_rings(&g)?;
        if round % 2 != 0 {
            check_eq!(miss(&g)?, (b.gpa, WO));
            check_eq!(miss(&g)?, (s.gpa, RO));
            map_seg(&g, &b)?;
            map_seg(&g, &s)?;
            received(&mut g, &[b], &p)?;
            sent(&mut g, &p)?;
        }
        quiet(&g)?;
    }
    works(&mut g)
}

/// Features that are refused leave the IOTLB as it is.
fn refused_features() -> Res {
    let mut g = running(config(0))?;
    let kernel = 0xffff_8880_0000_0000u64;
    check_eq!(ioctl(&g.net, sys::SET_LOG_BASE, &kernel), 0);
    for features in [VERSION_1 | LOG_ALL, FEATURES | LOG_ALL] {
        let (s, p) = missing(&mut g)?;
        check_eq!(ioctl(&g.net, sys::SET_FEATURES, &features), EFAULT);
        let unknown = VERSION_1 | 1 << 63;
        let got = ioctl(&g.net, sys::SET_FEATURES, &unknown);
        check_eq!(got, libc::EOPNOTSUPP);
        check_eq!(miss(&g)?, (s.gpa, RO));
        map_seg(&g, &s)?;
        sent(&mut g, &p)?;
        works(&mut g)?;
    }
    Ok(())
}

/// The feature set once more: the mappings are forgotten, the addresses are not, and a miss is still a miss.
fn set_again() -> Res {
    let mut g = running(config(0))?;
    for _ in 0..5 {
        works(&mut g)?;
        let (s, p) = missing(&mut g)?;
        g.net.set_features(FEATURES)?;
        check_eq!(miss(&g)?, (s.gpa, RO), "the miss");
        stuck(&mut g, TX)?;
        map_seg(&g, &s)?;
        if !sys::on_c() {
            ring_missing(&g, TX)?;
        }
        for (at, len, perm) in parts(&g, TX) {
            if sys::on_c() {
                check_eq!(miss(&g)?, (at, perm), "a part of the ring");
            }
            stuck(&mut g, TX)?;
            map(&g, at, len, RW)?;
        }
        sent(&mut g, &p)?;
        quiet(&g)?;
        g.rx.kick();
        for (at, len, perm) in parts(&g, RX) {
            check_eq!(miss(&g)?, (at, perm), "a part of the ring");
            map(&g, at, len, RW)?;
        }
        quiet(&g)?;
    }
    works(&mut g)
}

/// The feature comes to a device that runs without it.
fn on_while_running() -> Res {
    let cfg = Config {
        features: VERSION_1,
        ..config(0)
    };
    let mut g = Guest::new(cfg)?;
    g.send_all(&[frame(1, 60)])?;
    g.receive_all(&[frame(1, 60)])?;
    g.net.set_features(FEATURES)?;
    let p = frame(2, 60);
    let s = packet(&g, &p);
    push_tx(&mut g, &[s]);
    g.rx.kick();
    stuck(&mut g, TX)?;
    for index in [RX, TX] {
        let [desc, avail, used] = parts(&g, index).map(|p| p.0);
        check_eq!(set_addr(&g, index, desc, avail, used), 0);
    }
    map_rings(&g)?;
    stuck(&mut g, TX)?;
    g.tx.kick();
    // The table of guest memory does not help.
    check_eq!(miss(&g)?, (s.gpa, RO));
    map_seg(&g, &s)?;
    sent(&mut g, &p)?;
    works(&mut g)
}

fn base(g: &Guest, index: usize) -> Res<u32> {
    let state = State {
        index: index as u32,
        num: 0,
    };
    check_eq!(ioctl(&g.net, sys::GET_VRING_BASE, &state), 0);
    // SAFETY: the kernel wrote there.
    Ok(unsafe { std::ptr::read_volatile(&state.num) })
}

/// A queue that waits can be stopped, its packet still there, and started again. The stop of either queue
/// clears the messages of both.
fn stop_and_start() -> Res {
    let mut g = running(config(0))?;
    for i in 0..5 {
        works(&mut g)?;
        let count = g.tx.base();
        let (s, p) = missing(&mut g)?;
        let b = buffer(&g, 500);
        push_rx(&mut g, &[b]);
        g.peer.send(&p)?;
        settle(&g)?;
        let answered = i % 2 == 0;
        if answered {
            check_eq!(miss(&g)?, (s.gpa, RO));
        }
        g.net.set_backend(TX, None)?;
        check_eq!(base(&g, TX)?, count, "chains taken");
        if sys::on_c() {
            // The other queue's miss is cleared as well, and it has another when it is kicked.
            stuck(&mut g, RX)?;
            g.rx.kick();
        }
        check_eq!(miss(&g)?, (b.gpa, WO));
        stuck(&mut g, RX)?;
        g.net.set_backend(RX, None)?;
        check_eq!(base(&g, RX)?, g.rx.base(), "chains taken");
        // A stopped queue does not care for mappings.
        map_seg(&g, &b)?;
        quiet(&g)?;
        g.start()?;
        check_eq!(miss(&g)?, (s.gpa, RO));
        g.rx.kick();
        received(&mut g, &[b], &p)?;
        map_seg(&g, &s)?;
        sent(&mut g, &p)?;
    }
    works(&mut g)
}

/// Another guest, as a VMM resets it: with a fresh ring and all of its mappings gone.
fn restart() -> Res {
    let mut g = running(config(0))?;
    for base in [0, 100, 65530] {
        works(&mut g)?;
        missing(&mut g)?;
        g.stop()?;
        invalidate(&g.net, 0, u64::MAX)?;
        g.rx.reset(base);
        g.tx.reset(base);
        g.set_vring(RX)?;
        g.set_vring(TX)?;
        check_eq!(set_backend(&g, TX), EFAULT, "no used ring");
        check_eq!(miss(&g)?, (g.tx.used, start_access()));
        map_rings(&g)?;
        g.start()?;
        quiet(&g)?;
    }
    works(&mut g)
}

/// The owner goes and leaves misses behind, read and unread; a new one finds nothing of them.
fn reset_owner() -> Res {
    let mut g = running(config(0))?;
    for _ in 0..3 {
        works(&mut g)?;
        let (s, p) = missing(&mut g)?;
        check_eq!(miss(&g)?, (s.gpa, RO));
        let b = buffer(&g, 500);
        push_rx(&mut g, &[b]);
        g.peer.send(&p)?;
        settle(&g)?;
        g.net.reset_owner()?;
        no_miss(&g)?;
        let msg = Msg::update(s.gpa, PAGE, hva(&g, s.gpa), RW);
        check_eq!(write(&g.net, &msg), -EFAULT, "no IOTLB");

        g.net.set_owner()?;
        g.net.set_features(FEATURES)?;
        g.net.set_mem_table(&Mem::table(g.mem.regions()))?;
        g.rx.reset(0);
        g.tx.reset(0);
        g.set_vring(RX)?;
        g.set_vring(TX)?;
        map_rings(&g)?;
        g.start()?;
        quiet(&g)?;
        // The packet is in the tap still.
        push_rx(&mut g, &[b]);
        check_eq!(miss(&g)?, (b.gpa, WO));
        map_seg(&g, &b)?;
        received(&mut g, &[b], &p)?;
    }
    works(&mut g)
}

/// The next owner's messages are of the first version until it asks for the second.
fn reset_owner_version() -> Res {
    let mut g = running(config(0))?;
    check_eq!(ioctl(&g.net, sys::SET_BACKEND_FEATURES, &BACKEND_V2), 0);
    missing(&mut g)?;
    check_eq!(wait_miss(&g.net)?.version, V2, "version asked for");
    g.net.reset_owner()?;
    g.net.set_owner()?;
    g.net.set_features(FEATURES)?;
    g.net.set_mem_table(&Mem::table(g.mem.regions()))?;
    g.rx.reset(0);
    g.tx.reset(0);
    g.set_vring(RX)?;
    g.set_vring(TX)?;
    map_rings(&g)?;
    g.start()?;
    missing(&mut g)?;
    check_eq!(
        wait_miss(&g.net)?.version,
        V1,
        "version of the next owner's"
    );
    Ok(())
}

/// Whatever state the messages are in, the device can be closed.
fn close() -> Res {
    for read in 0..3 {
        let mut g = running(config(0))?;
        missing(&mut g)?;
        let b = buffer(&g, 500);
        push_rx(&mut g, &[b]);
        g.peer.send(&frame(1, 60))?;
        settle(&g)?;
        for _ in 0..read {
            miss(&g)?;
        }
        if read == 1 {
            g.stop()?;
        }
    }
    Ok(())
}

/// Addresses that no one ever maps stop their queue and nothing else.
fn unanswered() -> Res {
    for at in [0, FAR, 1 << 63, u64::MAX - 159] {
        let mut g = running(config(INDIRECT))?;
        push_tx(&mut g, &[Seg::r(at, 100)]);
        check_eq!(miss(&g)?, (at, RO));
        rx_works(&mut g)?;
        g.restart(0)?;
        g.tx.add_raw(&[(at, 160, ring::INDIRECT)]);
        g.tx.publish();
        g.tx.kick();
        check_eq!(miss(&g)?, (at, RO));
        rx_works(&mut g)?;
        g.restart(0)?;
        push_rx(&mut g, &[Seg::w(at, 100)]);
        g.peer.send(&frame(1, 60))?;
        check_eq!(miss(&g)?, (at, WO));
        tx_works(&mut g)?;
        stuck(&mut g, RX)?;
        check!(g.tx.err.read().is_err(), "an error was signalled");
        check!(g.rx.err.read().is_err(), "an error was signalled");
    }
    Ok(())
}

/// IOVAs of a guest whose memory is logged: neither guest nor user addresses, and below the log's end.
const SHIFT: u64 = 0x800_0000;

/// A guest with its rings and its memory at [`SHIFT`], which the table calls by these guest addresses.
fn logging(features: u64, regions: &[Region]) -> Res<(Guest, Bitmap)> {
    let g = Guest::stopped(config(features))?;
    let table = sys::mem_table(regions.len() as u32, 0, regions);
    check_eq!(ioctl(&g.net, sys::SET_MEM_TABLE, table.as_ptr()), 0);
    let log = Bitmap::new(0x1000_0000, 5)?;
    check_eq!(log.install(&g), 0, "SET_LOG_BASE");
    update(&g.net, SHIFT, g.mem.regions()[0].size, hva(&g, BASE), RW)?;
    for index in [RX, TX] {
        let [desc, avail, used] = parts(&g, index).map(|p| p.0 - BASE + SHIFT);
        check_eq!(set_addr(&g, index, desc, avail, used), 0);
    }
    Ok((g, log))
}

/// Receives a packet into `s`, the mapped one, and says which pages of our memory it is in.
fn receive_shifted(g: &mut Guest, s: Seg, p: &[u8]) -> Res<Pages> {
    let at = Seg {
        gpa: s.gpa - BASE + SHIFT,
        ..s
    };
    push_rx(g, &[at]);
    g.peer.send(p)?;
    received(g, &[s], p)?;
    settle(g)?;
    Ok(pages_of(s.gpa - BASE, g.hdr + p.len()).collect())
}

/// Data is logged by guest addresses, all of them, that the table has for the user addresses that the IOTLB
/// leads to.
fn log_data() -> Res {
    let cfg = config(0);
    let size = cfg.regions[0].1;
    let (mut g, log) = {
        let (g, log) = logging(LOG_ALL, &[])?;
        let at = hva(&g, BASE);
        // The second half is known by two names, and the last quarter by a third.
        let region = |gpa, from: u64, size| Region {
            gpa,
            size,
            hva: at + from,
            flags: 0,
        };
        let regions = [
            region(0x30_0000, 0, size),
            region(0x200_0000, size / 2, size / 2),
            region(0x400_0000, size / 4 * 3, size / 4),
        ];
        let table = sys::mem_table(3, 0, &regions);
        check_eq!(ioctl(&g.net, sys::SET_MEM_TABLE, table.as_ptr()), 0);
        (g, log)
    };
    g.start()?;
    settle(&g)?;
    check_eq!(log.take()?, Pages::new(), "pages at first");
    let (half, quarter) = (BASE + size / 2, BASE + size / 4 * 3);
    for at in [
        half - 0x10_0000,
        half - 100,
        half - PAGE - 100,
        half,
        half + 3 * PAGE,
        quarter - 2 * PAGE - 5,
        quarter,
        quarter + 0x8_0000,
    ] {
        for len in [60, 1500, 9000] {
            let names = |pages: Pages| {
                let mut v = Pages::new();
                for page in pages {
                    let at = page * PAGE;
                    v.insert((0x30_0000 + at) / PAGE);
                    if at >= size / 2 {
                        v.insert((0x200_0000 + at - size / 2) / PAGE);
                    }
                    if at >= size / 4 * 3 {
                        v.insert((0x400_0000 + at - size / 4 * 3) / PAGE);
                    }
                }
                v
            };
            let s = Seg::w(at, 20000);
            let written = names(receive_shifted(&mut g, s, &frame(1, len))?);
            let got = log.take()?;
            // The C driver marks all of a buffer, however much of it was written.
            let room = names(pages_of(at - BASE, 20000).collect());
            check!(
                got.is_superset(&written) && got.is_subset(&room),
                "{len} bytes at {at:#x}: pages {got:x?} instead of {written:x?}"
            );
        }
    }
    // What was sent is not logged.
    let p = frame(1, 500);
    let s = packet(&g, &p);
    let at = s.gpa - BASE + SHIFT;
    push_tx(&mut g, &[Seg::r(at, s.len as usize)]);
    sent(&mut g, &p)?;
    settle(&g)?;
    check_eq!(log.take()?, Pages::new(), "pages of a sent packet");
    Ok(())
}

/// Memory that the table does not have can't be logged. It is received into all the same.
fn log_unknown() -> Res {
    let (mut g, log) = logging(LOG_ALL, &[])?;
    g.start()?;
    for i in 0..20 {
        let s = buffer(&g, 600);
        receive_shifted(&mut g, s, &frame(i, 500))?;
    }
    check_eq!(log.take()?, Pages::new(), "pages");
    Ok(())
}

/// The used ring is logged where the IOTLB and the table say that it is, not where SET_VRING_ADDR does.
fn log_used() -> Res {
    for features in [0, EVENT_IDX] {
        let (mut g, log) = logging(features, &[])?;
        let region = Region {
            gpa: 0x200_0000,
            size: g.mem.regions()[0].size,
            hva: hva(&g, BASE),
            flags: 0,
        };
        let table = sys::mem_table(1, 0, &[region]);
        check_eq!(ioctl(&g.net, sys::SET_MEM_TABLE, table.as_ptr()), 0);
        let mut used = vec![];
        for index in [RX, TX] {
            let old = parts(&g, index);
            let [desc, avail, ring] = old.map(|p| p.0 - BASE + SHIFT);
            let mut addr = Addr {
                index: index as u32,
                flags: 1,
                desc,
                avail,
                used: ring,
                log: 2,
            };
            check_eq!(ioctl(&g.net, sys::SET_VRING_ADDR, &addr), EINVAL);
            for log in [0, 1 << 63, u64::MAX - 3] {
                addr.log = log;
                check_eq!(ioctl(&g.net, sys::SET_VRING_ADDR, &addr), 0);
            }
            used.push((old[2].0 - BASE + 0x200_0000) / PAGE);
        }
        g.start()?;
        settle(&g)?;
        log.take()?;
        for i in 0..10 {
            let s = buffer(&g, 600);
            receive_shifted(&mut g, s, &frame(i, 500))?;
            check_eq!(log.take()?, [used[RX]].into(), "pages of a received packet");
            let p = frame(1, 500);
            let s = packet(&g, &p);
            let at = s.gpa - BASE + SHIFT;
            push_tx(&mut g, &[Seg::r(at, s.len as usize)]);
            sent(&mut g, &p)?;
            settle(&g)?;
            check_eq!(log.take()?, [used[TX]].into(), "pages of a sent packet");
        }
        // An address that can't be in the log is taken, also while it runs.
        let [desc, avail, ring] = parts(&g, RX).map(|p| p.0 - BASE + SHIFT);
        let addr = Addr {
            index: RX as u32,
            flags: 1,
            desc,
            avail,
            used: ring,
            log: 1 << 63,
        };
        check_eq!(ioctl(&g.net, sys::SET_VRING_ADDR, &addr), 0);
    }
    Ok(())
}

/// The memory table is replaced under traffic, by one that has other guest addresses for the same memory: from then on the
/// used ring is logged under those.
///
/// Seen red: `Queue::set_mem` (vhost/queue_setup.rs) without its `update_used_log`.
fn log_used_elsewhere() -> Res {
    let (mut g, log) = logging(LOG_ALL, &[])?;
    let table = |g: &Guest, gpa: u64| -> Res {
        let region = Region {
            gpa,
            size: g.mem.regions()[0].size,
            hva: hva(g, BASE),
            flags: 0,
        };
        let table = sys::mem_table(1, 0, &[region]);
        check_eq!(ioctl(&g.net, sys::SET_MEM_TABLE, table.as_ptr()), 0);
        Ok(())
    };
    let first = 0x200_0000;
    table(&g, first)?;
    for index in [RX, TX] {
        let [desc, avail, used] = parts(&g, index).map(|p| p.0 - BASE + SHIFT);
        let addr = Addr {
            index: index as u32,
            flags: 1,
            desc,
            avail,
            used,
            log: 0,
        };
        check_eq!(ioctl(&g.net, sys::SET_VRING_ADDR, &addr), 0);
    }
    g.start()?;
    for at in [first, 0x400_0000, 0x300_0000, first] {
        table(&g, at)?;
        // What a queue says when it starts is logged, too.
        settle(&g)?;
        log.take()?;
        let page = |g: &Guest, index| (parts(g, index)[2].0 - BASE + at) / PAGE;
        for i in 0..3 {
            let s = buffer(&g, 600);
            let data = receive_shifted(&mut g, s, &frame(i, 500))?;
            let got = log.take()?;
            let name = |p: u64| p + at / PAGE;
            let mut want: Pages = data.into_iter().map(name).collect();
            want.insert(page(&g, RX));
            // The C driver marks all of a buffer, however much of it was written.
            let mut room: Pages = pages_of(s.gpa - BASE, 600).map(name).collect();
            room.insert(page(&g, RX));
            check!(
                got.is_superset(&want) && got.is_subset(&room),
                "memory at {at:#x}: pages {got:x?} of a received packet instead of {want:x?}"
            );
            let p = frame(1, 500);
            let s = packet(&g, &p);
            push_tx(&mut g, &[Seg::r(s.gpa - BASE + SHIFT, s.len as usize)]);
            sent(&mut g, &p)?;
            settle(&g)?;
            let want = [page(&g, TX)].into();
            check_eq!(
                log.take()?,
                want,
                "memory at {at:#x}: pages of a sent packet"
            );
        }
    }
    Ok(())
}

/// What is done between the rounds of the traffic.
#[derive(Clone, Copy)]
enum Trouble {
    Nothing,
    /// So many pages, be they a ring's or a buffer's, lose their place.
    Moves(u64),
    /// So many mappings that nobody needs are added.
    Fill(u64),
    /// The feature is set once more, which forgets all mappings.
    SetAgain,
    /// Both queues are stopped, all mappings taken away, and started again.
    Restart,
}

/// Traffic each way, all misses answered page by page, the pages in no order and none beside another.
fn served(cfg: Config, count: u32, trouble: Trouble, exact: bool) -> Res {
    // A fifth on the debug kernel: with less, no page is needed twice.
    let most = if packed::by_default() { 5000 } else { u32::MAX };
    let count = amount(4 * count).min(most);
    let mut g = Guest::stopped(cfg)?;
    let mut io = Viommu::new(&g)?;
    io.exact = exact;
    let room = Traffic::room(&g);
    let area = g.mem.alloc(room, PAGE);
    let mut pages: Pages = pages_of(area, room).collect();
    for index in [RX, TX] {
        for (at, len, _) in parts(&g, index) {
            pages.extend(pages_of(at, len));
        }
    }
    let io = &io;
    std::thread::scope(|s| {
        let server = s.spawn(|| io.serve());
        let result = (|| {
            start_served(&g, io)?;
            let mut traffic = Traffic::new(&g, area);
            let mut random = Random(0x1234_5678_9abc_def1);
            while traffic.tx_out < count || traffic.rx_out < count {
                traffic.feed(&mut g, count)?;
                disturb(&g, io, trouble, &mut random)?;
                traffic.drain(&mut g)?;
            }
            // That was all, and without an error.
            traffic.run(&mut g, count)
        })();
        io.stop();
        server.join().unwrap()?;
        result
    })?;
    let (misses, pages) = (io.misses.load(Relaxed) as usize, pages.len());
    println!("# {misses} misses of {pages} pages");
    // No page is asked for twice, unless it was taken away; but for the few that both queues use, or that one reads and writes.
    let shared = if sys::on_c() { 0 } else { 8 };
    let asked_again = misses > pages + shared;
    let taken = !matches!(trouble, Trouble::Nothing);
    check_eq!(asked_again, taken, "{misses} misses of {pages} pages");
    check!(misses > pages / 2, "{misses} misses of {pages} pages");
    Ok(())
}

/// Starts a device whose used rings have to be mapped for that, of all that it needs.
fn start_served(g: &Guest, io: &Viommu) -> Res {
    for index in [RX, TX] {
        let [_, _, (used, len, _)] = parts(g, index);
        for page in pages_of(used, len) {
            io.map(page * PAGE, RW)?;
        }
    }
    g.start()
}

fn disturb(g: &Guest, io: &Viommu, trouble: Trouble, random: &mut Random) -> Res {
    match trouble {
        Trouble::Nothing => {}
        Trouble::Moves(count) => {
            for i in 0..count {
                let page = if i % 2 == 0 {
                    let ring = parts(g, random.below(2) as usize);
                    let (at, len, _) = ring[random.below(3) as usize];
                    at + random.below(len as u64)
                } else {
                    BASE + random.below(io.pages() as u64) * PAGE
                };
                io.take(page)?;
            }
        }
        Trouble::Fill(count) => {
            for _ in 0..count {
                let at = FAR + random.below(1 << 20) * PAGE;
                update(&g.net, at, PAGE, hva(g, BASE), RW)?;
            }
        }
        Trouble::SetAgain => g.net.set_features(g.cfg.features)?,
        Trouble::Restart => {
            g.stop()?;
            invalidate(&g.net, 0, u64::MAX)?;
            start_served(g, io)?;
        }
    }
    Ok(())
}

/// A page for each of these packets, and the packets in them.
fn packets_in_pages(g: &Guest, count: usize) -> Vec<(Seg, Vec<u8>)> {
    let place = |i: usize| {
        let p = frame(i as u32, 100 + i);
        g.mem.alloc(0, PAGE);
        (packet(g, &p), p)
    };
    (0..count).map(place).collect()
}

/// All that a device has told.
fn told(g: &Guest) -> Res<Vec<(u64, u8)>> {
    settle(g)?;
    let mut told = vec![];
    while let Ok(msg) = read(&g.net) {
        check_eq!(msg, Msg::miss(msg.iova, msg.perm), "what the device said");
        told.push((msg.iova, msg.perm));
    }
    Ok(told)
}

/// Maps the page of an address.
fn map_page(g: &Guest, at: u64) -> Res {
    map(g, at & !(PAGE - 1), PAGE as usize, RW)
}

/// How often this test's worker slept.
fn worker_sleeps() -> Res<u64> {
    sleeps(&worker_of(std::process::id() as i32, false)?)
}

/// A packet in 17 pages: all are told before the first answer, each once, the first by the address that is needed; and the
/// queue runs when it is kicked and when the last answer has come, in whatever order they come.
///
/// Seen red: with `MAX_AHEAD` (memtable/ahead.rs) 16; with `Misses::answer` that calls `f` at each answer.
fn ahead_of_a_packet() -> Res {
    for order in [0, 1, 5] {
        let mut g = running(config(0))?;
        let p = frame(1, 65000);
        g.mem.alloc(0, PAGE);
        g.mem.alloc(2000, 1);
        let s = packet(&g, &p);
        let before = worker_sleeps()?;
        push_tx(&mut g, &[s]);
        let told = told(&g)?;
        let first = s.gpa & !(PAGE - 1);
        let rest = (1..17).map(|i| (first + i * PAGE, RO));
        let want: Vec<_> = [(s.gpa, RO)].into_iter().chain(rest).collect();
        check_eq!(told, want, "what was told");
        for i in 0..17u64 {
            stuck(&mut g, TX)?;
            let i = match order {
                0 => i,
                1 => 16 - i,
                _ => i * order % 17,
            };
            map_page(&g, told[i as usize].0)?;
        }
        sent(&mut g, &p)?;
        settle(&g)?;
        let turns = worker_sleeps()? - before;
        check!(turns <= 3, "{turns} turns for a packet");
        works(&mut g)?;
    }
    Ok(())
}

/// Does `f` behind a packet, over and over until the worker did not sleep meanwhile, for it looked for more and had the IOTLB, and
/// what `f` returns is `good`.
fn while_it_looks<T: std::fmt::Debug>(
    g: &mut Guest,
    f: impl Fn(&mut Guest) -> Res<T>,
    good: impl Fn(&T) -> bool,
) -> Res<T> {
    let mut all = vec![];
    for _ in 0..8 {
        let (s, p) = packets_in_pages(g, 1).remove(0);
        map_page(g, s.gpa)?;
        push_tx(g, &[s]);
        sent(g, &p)?;
        let before = worker_sleeps()?;
        let got = f(g)?;
        let slept = worker_sleeps()? - before;
        if slept == 0 && good(&got) {
            return Ok(got);
        }
        all.push((slept, got));
    }
    bail!("the worker has slept so often, or that is not good: {all:?}")
}

/// What is mapped while the worker has the IOTLB, for it looks for work, is known when it is needed, also if that is more than
/// is put off; it does not keep the worker from looking. What is taken back at once, or was for another IOTLB, is not known.
///
/// Seen red: `Device::lock_iotlb` (vhost/late.rs) that makes no update that was put off; `Device::run_again_if_late` that says no.
fn mapped_in_a_turn() -> Res {
    let mut g = Guest::stopped(Config {
        regions: vec![(BASE, 8 << 20)],
        ..config(EVENT_IDX)
    })?;
    let timeout = State {
        index: TX as u32,
        num: u32::MAX,
    };
    check_eq!(ioctl(&g.net, SET_VRING_BUSYLOOP_TIMEOUT, &timeout), 0);
    // What is not a page is not put off, nor is anything behind that.
    let map_ring = |g: &Guest, index| -> Res {
        for (at, len, _) in parts(g, index) {
            (at / PAGE..=(at + len as u64 - 1) / PAGE)
                .try_for_each(|page| map_page(g, page * PAGE))?;
        }
        Ok(())
    };
    map_ring(&g, RX)?;
    map_ring(&g, TX)?;
    g.start()?;
    let turns = |g: &Guest| counters::number(&counters::info(&g.net)?, "tx-turns");
    for (count, put_off) in [(1, true), (40, true), (100, false)] {
        let round = |g: &mut Guest| {
            let packets = packets_in_pages(g, count);
            let before = turns(g)?;
            for (s, _) in &packets {
                map_page(g, s.gpa)?;
            }
            let mapped = turns(g)?;
            for (s, p) in &packets {
                // Who looks for packets asks for no kick.
                g.tx.add(&[*s]);
                g.tx.submit();
                sent(g, p)?;
            }
            no_miss(g)?;
            Ok((mapped - before, turns(g)? - mapped))
        };
        // One turn, which found that there was something to be made.
        while_it_looks(&mut g, round, |&turns| !put_off || turns == (0, 1))?;
    }

    // The worker may have been between two turns just then.
    for _ in 0..8 {
        let taken_back = |g: &mut Guest| {
            let (s, p) = packets_in_pages(g, 1).remove(0);
            map_page(g, s.gpa)?;
            invalidate(&g.net, s.gpa, 1)?;
            Ok((s, p))
        };
        let (s, p) = while_it_looks(&mut g, taken_back, |_| true)?;
        push_tx(&mut g, &[s]);
        check_eq!(miss(&g)?, (s.gpa, RO), "what was taken back");
        map_page(&g, s.gpa)?;
        sent(&mut g, &p)?;

        let mapped = |g: &mut Guest| {
            let (s, p) = packets_in_pages(g, 1).remove(0);
            map_page(g, s.gpa)?;
            Ok((s, p))
        };
        let (s, p) = while_it_looks(&mut g, mapped, |_| true)?;
        g.net.set_features(g.cfg.features)?;
        push_tx(&mut g, &[s]);
        for (at, _, perm) in parts(&g, TX) {
            check_eq!(miss(&g)?, (at, perm), "a part of the ring");
        }
        map_ring(&g, TX)?;
        check_eq!(miss(&g)?, (s.gpa, RO), "what was for another IOTLB");
        map_page(&g, s.gpa)?;
        sent(&mut g, &p)?;
    }
    Ok(())
}

/// More chains than one: as many pages as may wait are told at once, no page twice, what is needed first first. Each packet
/// goes when its own page is there.
///
/// Seen red: `Misses::wait_for` (vhost/misses.rs) that does not look whether a miss was told.
fn ahead_of_chains() -> Res {
    let mut g = running(config(EVENT_IDX))?;
    let packets = packets_in_pages(&g, 100);
    for (s, _) in &packets {
        g.tx.add(&[*s]);
    }
    g.tx.publish();
    g.tx.kick();
    let first = told(&g)?;
    let want: Vec<_> = packets.iter().map(|(s, _)| (s.gpa, RO)).collect();
    check!(first.len() >= 32, "{} pages were told", first.len());
    check_eq!(first[..], want[..first.len()], "what was told first");
    // An answer to a later one does not matter yet.
    map_page(&g, first[1].0)?;
    stuck(&mut g, TX)?;
    map_page(&g, first[0].0)?;
    for (_, p) in &packets[..2] {
        sent(&mut g, p)?;
    }
    // Then it looks further, and tells what is new.
    let mut all = first;
    for (i, (s, p)) in packets.iter().enumerate().skip(2) {
        all.extend(told(&g)?);
        check!(all.contains(&(s.gpa, RO)), "page {i} was not told");
        map_page(&g, s.gpa)?;
        sent(&mut g, p)?;
    }
    check_eq!(all, want, "each page once");
    quiet(&g)
}

/// An owner who answers late, wrongly, twice or never, or takes something back: nothing is lost, nothing is told twice but what
/// is needed next at a kick, and what was taken back.
///
/// Seen red: `Misses::invalidate` (vhost/misses.rs) that does nothing.
fn ahead_of_bad_answers() -> Res {
    let mut g = running(config(0))?;
    let packets = packets_in_pages(&g, 6);
    for (s, _) in &packets {
        g.tx.add(&[*s]);
    }
    g.tx.publish();
    g.tx.kick();
    let at = |i: usize| (packets[i].0.gpa, RO);
    check_eq!(told(&g)?, (0..6).map(at).collect::<Vec<_>>());
    // Never: what is needed next is asked for again at a kick.
    for _ in 0..3 {
        g.tx.kick();
        check_eq!(told(&g)?, [at(0)], "at a kick");
    }
    // Wrongly, and with a mapping that does not reach it.
    update(&g.net, FAR, PAGE, hva(&g, BASE), RW)?;
    map(&g, packets[0].0.gpa - 8, 8, RW)?;
    stuck(&mut g, TX)?;
    // Late and twice: the third first, and the second after what was taken back.
    for i in [2, 2, 1] {
        map_page(&g, packets[i].0.gpa)?;
        stuck(&mut g, TX)?;
    }
    invalidate(&g.net, packets[1].0.gpa, 1)?;
    invalidate(&g.net, packets[4].0.gpa, 1)?;
    stuck(&mut g, TX)?;
    map_page(&g, packets[0].0.gpa + 1)?;
    sent(&mut g, &packets[0].1)?;
    // The second is missing again, and so may be the answer to the fifth.
    check_eq!(told(&g)?, [at(1), at(4)], "after it was taken back");
    // One mapping for all of the rest.
    let first = packets[1].0.gpa & !(PAGE - 1);
    map(&g, first, 5 * PAGE as usize, RW)?;
    for (_, p) in &packets[1..] {
        sent(&mut g, p)?;
    }
    works(&mut g)
}

/// Buffers for a packet that needs several of them: all are told, and more; it is received when the last of those that it needs
/// is there.
///
/// Seen red: `receive::wanted` (vhost_net/receive.rs) that wants one chain.
fn ahead_of_buffers() -> Res {
    let mut g = running(config(MRG_RXBUF))?;
    let buffers: Vec<_> = (0..8)
        .map(|_| {
            g.mem.alloc(0, PAGE);
            buffer(&g, 400)
        })
        .collect();
    for b in &buffers {
        g.rx.add(&[*b]);
    }
    g.rx.publish();
    g.rx.kick();
    quiet(&g)?;
    let p = frame(1, 1000);
    let before = worker_sleeps()?;
    g.peer.send(&p)?;
    let want: Vec<_> = buffers.iter().map(|b| (b.gpa, WO)).collect();
    check_eq!(told(&g)?, want);
    for b in [&buffers[4], &buffers[1], &buffers[2]] {
        map_page(&g, b.gpa)?;
        stuck(&mut g, RX)?;
    }
    map_page(&g, buffers[0].gpa)?;
    for want in [400, 400, g.hdr + 1000 - 800] {
        check_eq!(g.rx.wait()?.len as usize, want, "used length");
    }
    settle(&g)?;
    let turns = worker_sleeps()? - before;
    check!(turns <= 4, "{turns} turns for a packet");
    let data = buffers[..3].iter().map(|s| g.mem.read(s.gpa, 400));
    let data = data.collect::<Vec<_>>().concat();
    same(&data[g.hdr..g.hdr + 1000], &p, "received packet")?;
    // What was told before is not told again.
    g.peer.send(&frame(2, 60))?;
    quiet(&g)?;
    map_page(&g, buffers[3].gpa)?;
    received(&mut g, &buffers[3..4], &frame(2, 60))?;
    tx_works(&mut g)
}

/// An indirect table that is mapped is looked through; of one that is not, its pages are told.
fn ahead_of_tables() -> Res {
    let mut g = running(config(INDIRECT))?;
    let packets = packets_in_pages(&g, 3);
    let mut want = vec![];
    for (i, (s, _)) in packets.iter().enumerate() {
        g.mem.alloc(0, PAGE);
        let table = g.mem.alloc(32, 16);
        let cut = |from: u64, len: u32| Seg {
            gpa: s.gpa + from,
            len,
            ..*s
        };
        g.tx.add_indirect(&[cut(0, 20), cut(20, s.len - 20)], table);
        if i == 1 {
            want.push((table, RO));
        } else {
            map_page(&g, table)?;
            want.push((s.gpa, RO));
        }
    }
    g.tx.publish();
    g.tx.kick();
    check_eq!(told(&g)?, want);
    map_page(&g, want[0].0)?;
    sent(&mut g, &packets[0].1)?;
    map_page(&g, want[1].0)?;
    check_eq!(told(&g)?, [(packets[1].0.gpa, RO)], "behind the table");
    map_page(&g, packets[1].0.gpa)?;
    sent(&mut g, &packets[1].1)?;
    map_page(&g, want[2].0)?;
    sent(&mut g, &packets[2].1)?;
    works(&mut g)
}

/// What a table names is told as soon as the table is there, in the owner's own time: the queue runs once more for the
/// packet, not twice.
///
/// Seen red: with `go_on` (vhost/message_io.rs) that does not ask whether the queue waits for more.
fn ahead_of_a_table() -> Res {
    let mut g = running(config(INDIRECT))?;
    let p = frame(1, 9000);
    g.mem.alloc(0, PAGE);
    let s = packet(&g, &p);
    g.mem.alloc(0, PAGE);
    let table = g.mem.alloc(32, 16);
    let cut = |from: u64, len: u32| Seg {
        gpa: s.gpa + from,
        len,
        ..s
    };
    let before = Before::of(&g)?;
    g.tx.add_indirect(&[cut(0, 20), cut(20, s.len - 20)], table);
    g.tx.publish();
    g.tx.kick();
    check_eq!(told(&g)?, [(table, RO)]);
    map_page(&g, table)?;
    let mut asked = vec![];
    while let Ok(msg) = read(&g.net) {
        asked.push(msg.iova);
        map_page(&g, msg.iova)?;
    }
    let first = s.gpa & !(PAGE - 1);
    check_eq!(asked, [s.gpa, first + PAGE, first + 2 * PAGE], "at once");
    sent(&mut g, &p)?;
    check_eq!(before.grown(&g, "tx-turns")?, 2, "turns");
    works(&mut g)
}

fn traffic() -> Res {
    for features in [0, EVENT_IDX | MRG_RXBUF, EVENT_IDX | IN_ORDER | INDIRECT] {
        served(config(features), 5000, Trouble::Nothing, false)?;
    }
    Ok(())
}

fn traffic_legacy() -> Res {
    let cfg = Config {
        features: ACCESS_PLATFORM,
        ..config(0).num(32)
    };
    served(cfg, 3000, Trouble::Moves(4), false)
}

/// A ring's size of buffers fills whole pages: what is read and what is written is never in one page.
fn traffic_exact() -> Res {
    served(config(EVENT_IDX).num(64), 5000, Trouble::Moves(4), true)
}

fn traffic_moves() -> Res {
    served(config(0).num(32), 5000, Trouble::Moves(4), false)
}

fn traffic_moves_more() -> Res {
    let cfg = config(EVENT_IDX | MRG_RXBUF).num(64);
    served(cfg, 5000, Trouble::Moves(20), false)
}

fn traffic_large_rings() -> Res {
    let cfg = config(EVENT_IDX).num(1024);
    served(cfg, 5000, Trouble::Moves(20), false)
}

fn traffic_kernel_thread() -> Res {
    let cfg = Config {
        kernel_thread: true,
        ..config(0).num(32)
    };
    served(cfg, 3000, Trouble::Moves(4), false)
}

/// The oldest mappings are forgotten all the time.
fn traffic_table_full() -> Res {
    let cfg = config(EVENT_IDX).num(64);
    served(cfg, 5000, Trouble::Fill(500), false)
}

fn traffic_set_again() -> Res {
    let cfg = config(EVENT_IDX).num(64);
    served(cfg, 3000, Trouble::SetAgain, false)
}

fn traffic_restarts() -> Res {
    let cfg = config(EVENT_IDX).num(64);
    served(cfg, 3000, Trouble::Restart, false)
}

/// Traffic through one mapping of all.
fn traffic_one_mapping() -> Res {
    let mut g = Guest::stopped(config(EVENT_IDX))?;
    map(&g, BASE, g.mem.regions()[0].size as usize, RW)?;
    g.start()?;
    let area = g.mem.alloc(Traffic::room(&g), PAGE);
    Traffic::new(&g, area).run(&mut g, amount(10000))?;
    quiet(&g)
}

fn main() {
    const TESTS: &[Test] = &[
        ("offered", offered),
        ("messages", messages),
        ("other_process", other_process),
        ("miss_bytes", miss_bytes),
        ("read_to_nowhere", read_to_nowhere),
        ("read_waits", read_waits),
        ("read_signal", read_signal),
        ("read_ends", read_ends),
        ("poll", poll),
        ("epoll_edges", epoll_edges),
        ("ring_misses", ring_misses),
        ("ring_from_nothing", ring_from_nothing),
        ("ring_ends", ring_ends),
        ("start_needs_used", start_needs_used),
        ("start_needs_memory", start_needs_memory),
        ("tx_misses", tx_misses),
        ("rx_misses", rx_misses),
        ("indirect_misses", indirect_misses),
        ("one_at_a_time", one_at_a_time),
        ("answers", answers),
        ("answer_for_two", answer_for_two),
        ("two_queues", two_queues),
        ("unread", unread),
        ("invalidated", invalidated),
        ("buffer_permissions", buffer_permissions),
        ("ring_permissions", ring_permissions),
        ("ring_permissions_told_once", ring_permissions_told_once),
        ("ring_in_pieces", ring_in_pieces),
        ("buffer_in_pieces", buffer_in_pieces),
        ("top_of_space", top_of_space),
        ("all_of_user_space", all_of_user_space),
        ("overlaps", overlaps),
        ("table_limit", table_limit),
        ("ring_addresses", ring_addresses),
        ("ring_moves", ring_moves),
        ("off_and_on", off_and_on),
        ("refused_features", refused_features),
        ("set_again", set_again),
        ("on_while_running", on_while_running),
        ("stop_and_start", stop_and_start),
        ("restart", restart),
        ("reset_owner", reset_owner),
        ("reset_owner_version", reset_owner_version),
        ("close", close),
        ("unanswered", unanswered),
        ("log_data", log_data),
        ("log_unknown", log_unknown),
        ("log_used", log_used),
        ("log_used_elsewhere", log_used_elsewhere),
        ("traffic", traffic),
        ("traffic_legacy", traffic_legacy),
        ("traffic_exact", traffic_exact),
        ("traffic_moves", traffic_moves),
        ("traffic_moves_more", traffic_moves_more),
        ("traffic_large_rings", traffic_large_rings),
        ("traffic_kernel_thread", traffic_kernel_thread),
        ("traffic_table_full", traffic_table_full),
        ("traffic_set_again", traffic_set_again),
        ("traffic_restarts", traffic_restarts),
        ("traffic_one_mapping", traffic_one_mapping),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &[
        "ring_misses",
        "ring_permissions",
        "ring_in_pieces",
        "ring_moves",
        "top_of_space",
        "stop_and_start",
        "traffic_exact",
        "start_needs_used",
        "restart",
        "ahead_of_a_packet",
        "ahead_of_chains",
        "mapped_in_a_turn",
        "ahead_of_buffers",
        "ahead_of_tables",
    ];
    /// The C driver tells of one miss at a time.
    const AHEAD: &[Test] = &[
        ("ahead_of_a_packet", ahead_of_a_packet),
        ("ahead_of_chains", ahead_of_chains),
        ("mapped_in_a_turn", mapped_in_a_turn),
        ("ahead_of_bad_answers", ahead_of_bad_answers),
        ("ahead_of_buffers", ahead_of_buffers),
        ("ahead_of_tables", ahead_of_tables),
        ("ahead_of_a_table", ahead_of_a_table),
    ];
    let more = if sys::on_c() { &[] } else { AHEAD };
    ktap::run_formats(&[TESTS, more].concat(), PACKED)
}
