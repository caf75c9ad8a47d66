// SPDX-License-Identifier: GPL-2.0

//! Every ioctl, rightly and wrongly used, and what else can be done with the file.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::ptr::null;
use std::ptr::null_mut;
use std::time::Duration;
use std::time::Instant;

use kselftest::feature::*;
use kselftest::ktap::Test;
use kselftest::sys::open;
use kselftest::sys::*;
use kselftest::task::settle;
use kselftest::*;
use libc::*;
use vhost::net::VhostNet;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

const NULL: *const u64 = null();

/// `check_ioctl!(fd, REQUEST, &arg, errno)`
macro_rules! errno {
    ($fd:expr, $req:expr, $arg:expr, $want:expr) => {{
        let (got, want) = (sys::ioctl(&$fd, $req, $arg), $want);
        check!(
            got == want,
            "{}({}): errno {got} ({}), want {want}",
            stringify!($req),
            stringify!($arg),
            std::io::Error::from_raw_os_error(got)
        );
    }};
}

fn owned() -> Res<File> {
    let f = open()?;
    errno!(f, SET_OWNER, NULL, 0);
    Ok(f)
}

fn state(index: u32, num: u32) -> State {
    State { index, num }
}

fn file(index: u32, fd: i32) -> VringFile {
    VringFile { index, fd }
}

fn eventfd() -> Res<EventFd> {
    Ok(EventFd::new(0)?)
}

/// A new socket.
fn socket_of(domain: i32, kind: i32, protocol: i32) -> Res<File> {
    // SAFETY: creates a descriptor.
    let fd = unsafe { libc::socket(domain, kind, protocol) };
    check!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A page that can be used as wanted, followed by one that can't at all.
fn page(prot: i32) -> *mut u8 {
    // SAFETY: a new mapping, of which the first page then gets its protection.
    unsafe {
        let size = page_size();
        let p = mmap(
            null_mut(),
            2 * size,
            PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0,
        );
        assert!(p != MAP_FAILED && mprotect(p, size, prot) == 0);
        p.cast()
    }
}

/// The last bytes, so many, before what can't be used.
fn end_of_page(len: usize) -> *mut u8 {
    // SAFETY: within the page.
    unsafe { page(PROT_READ | PROT_WRITE).add(page_size() - len) }
}

fn set_owner() -> Res {
    let f = open()?;
    errno!(f, SET_OWNER, NULL, 0);
    errno!(f, SET_OWNER, NULL, EBUSY);
    check_eq!(
        in_child(|| sys::ioctl(&f, SET_OWNER, NULL))?,
        EBUSY,
        "from another process"
    );
    // Another open of the same device is another device.
    errno!(open()?, SET_OWNER, NULL, 0);
    Ok(())
}

/// Everything that needs an owner, asked of `f`.
fn all_refused(f: &File) -> i32 {
    let ev = EventFd::new(0).unwrap();
    let (s, v) = (state(0, 1), file(0, ev.as_raw_fd()));
    let a = Addr {
        index: 0,
        used: 4096,
        avail: 4096,
        desc: 4096,
        ..Default::default()
    };
    let t = mem_table(0, 0, &[]);
    let none = file(0, -1);
    let (base, fd) = (0u64, ev.as_raw_fd());
    let got = [
        sys::ioctl(f, SET_MEM_TABLE, t.as_ptr()),
        sys::ioctl(f, SET_LOG_BASE, &base),
        sys::ioctl(f, SET_LOG_FD, &fd),
        sys::ioctl(f, SET_VRING_NUM, &s),
        sys::ioctl(f, SET_VRING_BASE, &s),
        sys::ioctl(f, GET_VRING_BASE, &s),
        sys::ioctl(f, SET_VRING_ADDR, &a),
        sys::ioctl(f, SET_VRING_KICK, &v),
        sys::ioctl(f, SET_VRING_CALL, &v),
        sys::ioctl(f, SET_VRING_ERR, &v),
        sys::ioctl(f, NET_SET_BACKEND, &none),
        sys::ioctl(f, RESET_OWNER, NULL),
        // Unknown ones as well.
        sys::ioctl(f, 0xaf7e, &s),
    ];
    match got.iter().position(|&e| e != EPERM) {
        None => 0,
        Some(i) => 1 + i as i32,
    }
}

fn not_owned() -> Res {
    let f = open()?;
    check_eq!(
        all_refused(&f),
        0,
        "1 + place of the one that was not refused with EPERM"
    );
    // Which makes no difference to these.
    let mut word = 0u64;
    errno!(f, GET_FEATURES, &raw mut word, 0);
    errno!(f, SET_FEATURES, &0u64, 0);
    errno!(f, GET_BACKEND_FEATURES, &raw mut word, 0);
    Ok(())
}

/// The owner is the one who has the memory, not who has the file.
fn owned_by_another() -> Res {
    let f = owned()?;
    check_eq!(
        in_child(|| all_refused(&f))?,
        0,
        "1 + place of the one that was not refused"
    );
    errno!(f, SET_VRING_NUM, &state(0, 256), 0);
    // A thread of the owner is the owner.
    let e = std::thread::scope(|s| {
        s.spawn(|| sys::ioctl(&f, SET_VRING_NUM, &state(1, 64)))
            .join()
            .unwrap()
    });
    check_eq!(e, 0, "from a thread");
    Ok(())
}

/// The other way round: a child that is the owner keeps its parent out.
fn owned_by_child() -> Res {
    let f = open()?;
    let g = f.try_clone()?;
    let (here, there) = std::os::unix::net::UnixStream::pair()?;
    use std::io::Read;
    use std::io::Write;
    // SAFETY: one thread.
    let pid = unsafe { fork() };
    if pid == 0 {
        let e = sys::ioctl(&g, SET_OWNER, NULL);
        (&there).write_all(&[e as u8]).unwrap();
        let _ = (&there).read(&mut [0]);
        // SAFETY: ends the child.
        unsafe { _exit(0) }
    }
    let mut b = [9];
    (&here).read_exact(&mut b)?;
    check_eq!(b[0], 0, "SET_OWNER by the child");
    check_eq!(
        all_refused(&f),
        0,
        "1 + place of the one that was not refused"
    );
    errno!(f, SET_OWNER, NULL, EBUSY);
    // Still so when the child is gone, as long as the file is open.
    (&here).write_all(&[0])?;
    // SAFETY: waits for the child.
    unsafe { waitpid(pid, null_mut(), 0) };
    errno!(f, SET_OWNER, NULL, EBUSY);
    check_eq!(
        all_refused(&f),
        0,
        "1 + place of the one that was not refused"
    );
    Ok(())
}

fn reset_owner() -> Res {
    let f = owned()?;
    errno!(f, SET_VRING_NUM, &state(0, 256), 0);
    errno!(f, SET_VRING_BASE, &state(0, 77), 0);
    errno!(f, RESET_OWNER, NULL, 0);
    check_eq!(
        all_refused(&f),
        0,
        "1 + place of the one that was not refused"
    );
    // Whoever comes next finds a fresh device.
    let next = in_child(|| {
        let e = sys::ioctl(&f, SET_OWNER, NULL);
        let mut s = state(0, 5);
        e + sys::ioctl(&f, GET_VRING_BASE, &raw mut s) + s.num as i32
    })?;
    check_eq!(next, 0, "SET_OWNER by another, and its ring's base");
    Ok(())
}

/// RESET_OWNER takes the backend away, and after a new set-up everything works again.
fn reset_owner_running() -> Res {
    let mut g = Guest::new(Config::default())?;
    for _ in 0..5 {
        g.send_all(&[frame(1, 60)])?;
        g.receive_all(&[frame(1, 60)])?;
        g.net.reset_owner()?;
        let at = g.place(&frame(1, 60));
        g.tx.add(&[Seg::r(at, 72)]);
        g.tx.publish();
        g.tx.kick();
        g.net.set_owner()?;
        check_eq!(g.net.get_vring_base(TX)?, 0, "base after RESET_OWNER");
        check!(g.tx.pop().is_none(), "used after RESET_OWNER");
        g.net.set_features(g.cfg.features)?;
        g.net.set_mem_table(&Mem::table(g.mem.regions()))?;
        g.rx.reset(0);
        g.tx.reset(0);
        g.set_vring(RX)?;
        g.set_vring(TX)?;
        g.start()?;
    }
    Ok(())
}

/// Nothing of what the last owner set is there for the next one, who sets only what it must.
fn reset_owner_forgets() -> Res {
    let mut g = Guest::new(Config::with(VERSION_1 | VHOST_NET_HDR))?;
    g.send_all(&[frame(1, 60)])?;
    for q in 0..2 {
        errno!(g.net, SET_VRING_BUSYLOOP_TIMEOUT, &state(q, 50), 0);
    }
    g.net.reset_owner()?;
    g.net.set_owner()?;
    for q in 0..2 {
        let mut time = state(q, 7);
        errno!(g.net, GET_VRING_BUSYLOOP_TIMEOUT, &raw mut time, 0);
        check_eq!(time.num, 0, "poll time of queue {q}");
    }
    g.tx.reset(0);
    g.tx.calls();
    g.net.set_mem_table(&Mem::table(g.mem.regions()))?;
    let ring = &g.tx;
    let addr = Addr {
        index: TX as u32,
        desc: g.mem.hva(ring.desc).0 as u64,
        used: g.mem.hva(ring.used).0 as u64,
        avail: g.mem.hva(ring.avail).0 as u64,
        ..Default::default()
    };
    errno!(g.net, SET_VRING_NUM, &state(TX as u32, ring.num.into()), 0);
    errno!(g.net, SET_VRING_ADDR, &addr, 0);
    let kick = eventfd()?;
    g.net.set_vring_kick(TX, &kick)?;
    let plain = Tap::new("plain", 0)?;
    let mut peer = Peer::new(plain.index, false)?;
    g.net.set_backend(TX, Some(&plain.fd))?;
    // It looks at the ring once by itself.
    settle(&g)?;
    // No header of its own any more, nor one for the tap.
    let p = frame(2, 60);
    let at = g.mem.alloc(p.len(), 16);
    g.mem.write(at, &p);
    g.tx.add(&[Seg::r(at, p.len())]);
    g.tx.publish();
    g.tx.kick();
    settle(&g)?;
    check!(g.tx.pop().is_none(), "the old kick eventfd works");
    kick.write(1)?;
    g.tx.spin()?;
    guest::same(&peer.recv()?, &p, "sent packet")?;
    // A head that is none.
    g.tx.offer(g.tx.num);
    g.tx.publish();
    kick.write(1)?;
    settle(&g)?;
    g.net.get_vring_base(TX)?;
    check_eq!(g.tx.calls(), 0, "calls at the old eventfd");
    check!(g.tx.err.read().is_err(), "an error at the old eventfd");
    Ok(())
}

fn features() -> Res {
    let f = open()?;
    let mut all = 0u64;
    errno!(f, GET_FEATURES, &raw mut all, 0);
    for bit in [15, 24, 27, 28, 29, 32] {
        check!(
            all & 1 << bit != 0,
            "feature bit {bit} is missing: {all:#x}"
        );
        errno!(f, SET_FEATURES, &(1u64 << bit), 0);
    }
    let offered = (0..64).filter(|b| all & 1 << b != 0);
    for bit in (0..64).filter(|b| all & 1 << b == 0) {
        errno!(f, SET_FEATURES, &(1u64 << bit), EOPNOTSUPP);
        errno!(f, SET_FEATURES, &(1u64 << bit | VERSION_1), EOPNOTSUPP);
    }
    // Only the owner has a memory table that a log or an IOTLB could go with.
    let plain = offered.map(|b| 1u64 << b).sum::<u64>() & !(LOG_ALL | ACCESS_PLATFORM);
    errno!(f, SET_FEATURES, &plain, 0);
    errno!(f, SET_FEATURES, &0u64, 0);
    errno!(f, SET_FEATURES, NULL, EFAULT);
    errno!(f, GET_FEATURES, NULL, EFAULT);
    errno!(f, GET_FEATURES, page(PROT_READ), EFAULT);
    errno!(f, SET_FEATURES, &(u64::MAX), EOPNOTSUPP);
    Ok(())
}

/// A migration between hosts with the two drivers needs the same features on both: these, and no other but packed rings,
/// which no guest gets that was not started with them.
fn offered() -> Res {
    const RING_PACKED: usize = 34;
    const FEATURES: &[(usize, &str)] = &[
        (15, "VIRTIO_NET_F_MRG_RXBUF"),
        (24, "VIRTIO_F_NOTIFY_ON_EMPTY"),
        (26, "VHOST_F_LOG_ALL"),
        (27, "VIRTIO_F_ANY_LAYOUT, VHOST_NET_F_VIRTIO_NET_HDR"),
        (28, "VIRTIO_RING_F_INDIRECT_DESC"),
        (29, "VIRTIO_RING_F_EVENT_IDX"),
        (32, "VIRTIO_F_VERSION_1"),
        (33, "VIRTIO_F_ACCESS_PLATFORM"),
        (RING_PACKED, "VIRTIO_F_RING_PACKED"),
        (35, "VIRTIO_F_IN_ORDER"),
        (40, "VIRTIO_F_RING_RESET"),
        (65, "VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO"),
        (67, "VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO"),
    ];
    const BACKEND_FEATURES: &[(usize, &str)] = &[(1, "VHOST_BACKEND_F_IOTLB_MSG_V2")];
    let compare = |what: &str, words: &[u64], names: &[(usize, &str)]| -> Res {
        for bit in 0..64 * words.len() {
            let name = names.iter().find(|n| n.0 == bit);
            let there = words[bit / 64] >> (bit % 64) & 1 != 0;
            let wanted = name.is_some_and(|name| name.0 != RING_PACKED || !on_c());
            check_eq!(there, wanted, "bit {bit} of {what}, {name:?}");
        }
        Ok(())
    };
    let f = open()?;
    let mut array = [4u64, 9, 9, 9, 9];
    errno!(f, GET_FEATURES_ARRAY, array.as_mut_ptr(), 0);
    compare("the features", &array[1..], FEATURES)?;
    let mut word = 0u64;
    errno!(f, GET_FEATURES, &raw mut word, 0);
    check_eq!(word, array[1], "the first word alone");
    errno!(f, GET_BACKEND_FEATURES, &raw mut word, 0);
    compare("the backend features", &[word], BACKEND_FEATURES)
}

fn features_array() -> Res {
    let f = open()?;
    let mut word = 0u64;
    errno!(f, GET_FEATURES, &raw mut word, 0);
    let mut full = [2u64, 0, 0];
    errno!(f, GET_FEATURES_ARRAY, full.as_mut_ptr(), 0);
    check_eq!(full[1], word, "the first word of the array");
    for count in [0, 1, 2, 3, 5] {
        let mut v = [0x5555u64; 8];
        v[0] = count as u64;
        errno!(f, GET_FEATURES_ARRAY, v.as_mut_ptr(), 0);
        check_eq!(v[0], count as u64, "the count itself");
        for i in 0..7 {
            let want = match i {
                _ if i >= count => 0x5555,
                0 => word,
                1 => full[2],
                _ => 0,
            };
            check_eq!(v[1 + i], want, "word {i} of {count}");
        }
        let mut v = [0u64; 8];
        v[0] = count as u64;
        errno!(f, SET_FEATURES_ARRAY, v.as_ptr(), 0);
        if count > 0 {
            v[1] = VERSION_1 | feature::INDIRECT;
            errno!(f, SET_FEATURES_ARRAY, v.as_ptr(), 0);
            v[1] = 1 << 63;
            errno!(f, SET_FEATURES_ARRAY, v.as_ptr(), EOPNOTSUPP);
            v[1] = 0;
            v[count] = 1 << 63;
            errno!(f, SET_FEATURES_ARRAY, v.as_ptr(), EOPNOTSUPP);
            v[count] = 0;
        }
        // What lies behind the count is not looked at.
        v[1 + count] = u64::MAX;
        errno!(f, SET_FEATURES_ARRAY, v.as_ptr(), 0);
    }
    errno!(f, GET_FEATURES_ARRAY, NULL, EFAULT);
    errno!(f, SET_FEATURES_ARRAY, NULL, EFAULT);
    errno!(f, GET_FEATURES_ARRAY, page(PROT_READ), 0);
    // A count that no memory holds.
    let two_pages = page_size() as u64 / 4;
    for count in [two_pages, 1 << 40, 1 << 61, u64::MAX] {
        let p = page(PROT_READ | PROT_WRITE).cast::<u64>();
        // SAFETY: the page is writable.
        unsafe { p.write(count) };
        errno!(f, SET_FEATURES_ARRAY, p, EFAULT);
        errno!(f, GET_FEATURES_ARRAY, p, EFAULT);
    }
    let last = end_of_page(8).cast::<u64>();
    // SAFETY: a word is there.
    unsafe { last.write(1) };
    errno!(f, GET_FEATURES_ARRAY, last, EFAULT);
    errno!(f, SET_FEATURES_ARRAY, last, EFAULT);
    Ok(())
}

/// What is set by the array is what the device does: a header of 12 bytes, not 10.
fn features_array_works() -> Res {
    let mut g = Guest::stopped(Config::default())?;
    errno!(g.net, SET_FEATURES, &0u64, 0);
    errno!(
        g.net,
        SET_FEATURES_ARRAY,
        [3u64, VERSION_1, 0, 0].as_ptr(),
        0
    );
    g.start()?;
    g.send_all(&[frame(1, 60)])?;
    g.receive_all(&[frame(1, 60)])
}

/// Whoever passes a count that takes hours can be killed. (With the C driver only when it is done.)
fn features_array_killed() -> Res {
    let f = open()?;
    let count = if on_c() { 1usize << 20 } else { 1 << 33 };
    let begun = eventfd()?;
    // SAFETY: one thread; the child never returns.
    let pid = unsafe { libc::fork() };
    check!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        let (rw, size) = (PROT_READ | PROT_WRITE, 8 * count + page_size());
        // SAFETY: a new mapping of zeroes, in which the child writes the first word and the kernel reads.
        unsafe {
            let p = mmap(null_mut(), size, rw, flags, -1, 0).cast::<u64>();
            let _ = begun.write(1);
            if p == MAP_FAILED.cast() {
                _exit(2);
            }
            p.write(count as u64);
            _exit(sys::ioctl(&f, SET_FEATURES_ARRAY, p));
        }
    }
    begun.read()?;
    std::thread::sleep(Duration::from_millis(200));
    // SAFETY: a child that nobody waited for.
    unsafe { kill(pid, SIGKILL) };
    let end = deadline();
    let mut status = 0;
    // SAFETY: as above, and a valid place for the status.
    while unsafe { waitpid(pid, &mut status, WNOHANG) } == 0 {
        check!(Instant::now() < end, "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    check!(
        on_c() || WIFSIGNALED(status),
        "it was over before: status {status:#x}"
    );
    Ok(())
}

fn backend_features() -> Res {
    let f = open()?;
    let mut all = 0u64;
    errno!(f, GET_BACKEND_FEATURES, &raw mut all, 0);
    errno!(f, SET_BACKEND_FEATURES, &all, 0);
    errno!(f, SET_BACKEND_FEATURES, &0u64, 0);
    for bit in (0..64).filter(|b| all & 1 << b == 0) {
        errno!(f, SET_BACKEND_FEATURES, &(1u64 << bit), EOPNOTSUPP);
    }
    errno!(f, GET_BACKEND_FEATURES, NULL, EFAULT);
    errno!(f, SET_BACKEND_FEATURES, NULL, EFAULT);
    Ok(())
}

fn mem_table_errors() -> Res {
    let f = owned()?;
    let hva = page(PROT_READ | PROT_WRITE) as u64;
    let r = Region {
        gpa: 0x1000,
        size: 0x1000,
        hva,
        flags: 0,
    };
    let set = |n: u32, padding: u32, regions: &[Region]| {
        sys::ioctl(&f, SET_MEM_TABLE, mem_table(n, padding, regions).as_ptr())
    };
    check_eq!(set(1, 0, &[r]), 0, "one region");
    check_eq!(set(0, 0, &[]), 0, "no region");
    check_eq!(set(1, 1, &[r]), EOPNOTSUPP, "padding");
    check_eq!(set(65, 0, &[r; 65]), E2BIG, "65 regions");
    check_eq!(set(u32::MAX, 0, &[r]), E2BIG, "very many regions");
    check_eq!(set(64, 0, &[r; 64]), 0, "64 regions, all the same");
    check_eq!(
        set(1, 0, &[Region { size: 0, ..r }]),
        EFAULT,
        "a region of no size"
    );
    check_eq!(
        set(
            1,
            0,
            &[Region {
                gpa: u64::MAX - 0xfff,
                size: 0x2000,
                ..r
            }]
        ),
        EFAULT,
        "wraps"
    );
    check_eq!(
        set(
            1,
            0,
            &[Region {
                gpa: u64::MAX - 0xfff,
                ..r
            }]
        ),
        0,
        "up to the very end"
    );
    check_eq!(
        set(2, 0, &[r, Region { size: 0, ..r }]),
        EFAULT,
        "second bad"
    );
    check_eq!(
        set(1, 0, &[Region { flags: 5, ..r }]),
        0,
        "the padding of a region"
    );
    check_eq!(
        set(
            1,
            0,
            &[Region {
                gpa: 1,
                size: 3,
                hva: hva + 5,
                flags: 0
            }]
        ),
        0,
        "unaligned"
    );
    errno!(f, SET_MEM_TABLE, NULL, EFAULT);
    // The table ends where no memory is.
    let end = end_of_page(40).cast::<u64>();
    for (i, w) in mem_table(2, 0, &[r]).into_iter().enumerate() {
        // SAFETY: five words fit.
        unsafe { end.add(i).write(w) };
    }
    errno!(f, SET_MEM_TABLE, end, EFAULT);
    // SAFETY: as above.
    unsafe { end.cast::<u32>().write(1) };
    errno!(f, SET_MEM_TABLE, end, 0);
    Ok(())
}

/// Addresses that a process can't have are refused when a queue runs, or else when it is started.
fn mem_table_kernel_address() -> Res {
    let g = Guest::stopped(Config::default())?;
    let r = g.mem.regions()[0];
    let good = Region {
        gpa: r.gpa,
        size: r.size,
        hva: r.hva,
        flags: 0,
    };
    let bad = [
        Region {
            hva: 0xffff_8880_0000_0000,
            ..good
        },
        Region {
            hva: 0xffff_ffff_ffff_0000,
            ..good
        },
        Region {
            hva: 0x7fff_ffff_ffff_f000,
            ..good
        },
    ];
    for b in bad {
        let table = mem_table(
            2,
            0,
            &[
                Region {
                    gpa: 0,
                    size: 0x1000,
                    ..good
                },
                b,
            ],
        );
        errno!(g.net, SET_MEM_TABLE, table.as_ptr(), 0);
        let tap = file(TX as u32, g.tap.fd.as_raw_fd());
        errno!(g.net, NET_SET_BACKEND, &tap, EFAULT);
        errno!(g.net, SET_MEM_TABLE, mem_table(1, 0, &[good]).as_ptr(), 0);
        errno!(g.net, NET_SET_BACKEND, &tap, 0);
        errno!(g.net, SET_MEM_TABLE, table.as_ptr(), EFAULT);
        errno!(g.net, NET_SET_BACKEND, &file(TX as u32, -1), 0);
    }
    Ok(())
}

fn vring_num() -> Res {
    let f = owned()?;
    for i in 0..2 {
        for bit in 0..16 {
            errno!(f, SET_VRING_NUM, &state(i, 1 << bit), 0);
        }
        for num in [
            0,
            3,
            5,
            6,
            255,
            257,
            0x7fff,
            0x8001,
            0xffff,
            0x10000,
            0x20000,
            1 << 31,
            u32::MAX,
        ] {
            errno!(f, SET_VRING_NUM, &state(i, num), EINVAL);
        }
    }
    errno!(f, SET_VRING_NUM, &state(2, 256), ENOBUFS);
    errno!(f, SET_VRING_NUM, &state(u32::MAX, 256), ENOBUFS);
    errno!(f, SET_VRING_NUM, NULL, EFAULT);
    // The index can be read, the number can't.
    let half = end_of_page(4);
    errno!(f, SET_VRING_NUM, half, EFAULT);
    Ok(())
}

fn vring_base() -> Res {
    let f = owned()?;
    for i in 0..2 {
        for base in [0, 1, 255, 0x7fff, 0x8000, 0xffff] {
            errno!(f, SET_VRING_BASE, &state(i, base), 0);
            let mut s = state(i, 4711);
            errno!(f, GET_VRING_BASE, &raw mut s, 0);
            check_eq!((s.index, s.num), (i, base));
        }
        errno!(f, SET_VRING_BASE, &state(i, 0x10000), EINVAL);
        errno!(f, SET_VRING_BASE, &state(i, u32::MAX), EINVAL);
    }
    for req in [SET_VRING_BASE, GET_VRING_BASE] {
        errno!(f, req, &state(2, 0), ENOBUFS);
        errno!(f, req, NULL, EFAULT);
    }
    errno!(f, GET_VRING_BASE, page(PROT_READ), EFAULT);
    Ok(())
}

/// The queues are counted apart, and a running one says where it is.
fn vring_base_running() -> Res {
    let mut g = Guest::new(Config::default().base(500))?;
    g.send_all(&[frame(1, 60), frame(2, 60), frame(3, 60)])?;
    g.receive_all(&[frame(1, 60), frame(2, 60)])?;
    check_eq!(g.net.get_vring_base(TX)?, 503);
    check_eq!(g.net.get_vring_base(RX)?, 502);
    g.stop()?;
    check_eq!(g.net.get_vring_base(TX)?, 503);
    check_eq!(g.net.get_vring_base(RX)?, 502);
    // Another device goes on exactly there.
    g.set_vring(TX)?;
    g.set_vring(RX)?;
    g.start()?;
    g.send_all(&[frame(4, 60)])?;
    g.receive_all(&[frame(5, 60)])
}

fn vring_addr() -> Res {
    let f = owned()?;
    let p = page(PROT_READ | PROT_WRITE) as u64;
    let a = Addr {
        index: 0,
        flags: 0,
        desc: p,
        avail: p + 0x400,
        used: p + 0x800,
        log: 0,
    };
    let set = |a: Addr| sys::ioctl(&f, SET_VRING_ADDR, &a);
    check_eq!(set(a), 0);
    check_eq!(set(Addr { index: 1, ..a }), 0);
    check_eq!(set(Addr { index: 2, ..a }), ENOBUFS);
    for flags in [2, 3, 4, 1 << 31] {
        check_eq!(set(Addr { flags, ..a }), EOPNOTSUPP, "flags {flags:#x}");
    }
    check_eq!(
        set(Addr { avail: p + 1, ..a }),
        EINVAL,
        "avail ring at an odd address"
    );
    check_eq!(
        set(Addr { avail: p + 2, ..a }),
        0,
        "avail ring at an even address"
    );
    for n in 1..4 {
        check_eq!(
            set(Addr { used: p + n, ..a }),
            EINVAL,
            "used ring at 4n + {n}"
        );
        check_eq!(set(Addr { log: n, ..a }), EINVAL, "log address 4n + {n}");
    }
    check_eq!(set(Addr { used: p + 4, ..a }), 0, "used ring at 4n");
    check_eq!(set(Addr { desc: p + 1, ..a }), 0, "descriptors anywhere");
    check_eq!(
        set(Addr {
            desc: 0,
            avail: 0,
            used: 0,
            ..a
        }),
        0,
        "nothing"
    );
    check_eq!(
        set(Addr { desc: !0xfff, ..a }),
        0,
        "not looked at before there is a backend"
    );
    errno!(f, SET_VRING_ADDR, NULL, EFAULT);
    let half = end_of_page(32);
    errno!(f, SET_VRING_ADDR, half, EFAULT);
    Ok(())
}

/// With a backend a ring can't be resized, nor its base moved, and its addresses are looked at.
fn vring_running() -> Res {
    let g = Guest::new(Config::default())?;
    for i in 0..2 {
        errno!(g.net, SET_VRING_NUM, &state(i, 256), EBUSY);
        errno!(g.net, SET_VRING_NUM, &state(i, 3), EBUSY);
        errno!(g.net, SET_VRING_BASE, &state(i, 0), EBUSY);
        errno!(g.net, SET_VRING_BASE, &state(i, u32::MAX), EBUSY);
        let ring = if i == 0 { &g.rx } else { &g.tx };
        let at = |gpa| g.mem.hva(gpa).0 as u64;
        let (desc, avail, used) = (at(ring.desc), at(ring.avail), at(ring.used));
        let a = Addr {
            index: i,
            flags: 0,
            desc,
            avail,
            used,
            log: 0,
        };
        let kernel = 0xffff_8880_0000_0000;
        errno!(g.net, SET_VRING_ADDR, &Addr { desc: kernel, ..a }, EINVAL);
        errno!(g.net, SET_VRING_ADDR, &Addr { avail: kernel, ..a }, EINVAL);
        errno!(g.net, SET_VRING_ADDR, &Addr { used: kernel, ..a }, EINVAL);
        errno!(g.net, SET_VRING_ADDR, &a, 0);
    }
    g.stop()?;
    for i in 0..2 {
        errno!(g.net, SET_VRING_NUM, &state(i, 256), 0);
        errno!(g.net, SET_VRING_BASE, &state(i, 0), 0);
    }
    Ok(())
}

/// The three eventfds.
fn vring_eventfds() -> Res {
    let f = owned()?;
    let ev = eventfd()?;
    let null = File::open("/dev/null")?;
    for req in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        for i in 0..2 {
            errno!(f, req, &file(i, ev.as_raw_fd()), 0);
            errno!(f, req, &file(i, ev.as_raw_fd()), 0);
            errno!(f, req, &file(i, -1), 0);
            errno!(f, req, &file(i, -1), 0);
            errno!(f, req, &file(i, null.as_raw_fd()), EINVAL);
            errno!(f, req, &file(i, 9999), EBADF);
            errno!(f, req, &file(i, -2), EBADF);
            errno!(f, req, &file(i, i32::MIN), EBADF);
        }
        errno!(f, req, &file(2, ev.as_raw_fd()), ENOBUFS);
        errno!(f, req, NULL, EFAULT);
        let half = end_of_page(4);
        errno!(f, req, half, EFAULT);
    }
    Ok(())
}

/// An eventfd that was taken back is let go of: the kernel numbers those that there are.
fn eventfds_let_go() -> Res {
    let number = |event: &EventFd| -> Res<u64> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", event.as_raw_fd()))?;
        let line = text.lines().find_map(|l| l.strip_prefix("eventfd-id:"));
        Ok(line.ok_or(Fail("no number".into()))?.trim().parse()?)
    };
    let f = owned()?;
    let first = number(&eventfd()?)?;
    for _ in 0..100 {
        let event = eventfd()?;
        let fd = event.as_raw_fd();
        for request in [SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK] {
            errno!(f, request, &file(0, fd), 0);
            errno!(f, request, &file(0, -1), 0);
        }
        errno!(f, SET_LOG_FD, &fd, 0);
        errno!(f, SET_LOG_FD, &-1i32, 0);
    }
    let last = number(&eventfd()?)?;
    check!(last < first + 50, "number {last}, and {first} before");
    Ok(())
}

fn set_backend() -> Res {
    let g = Guest::stopped(Config::default())?;
    for i in 0..2 {
        errno!(g.net, NET_SET_BACKEND, &file(i, -1), 0);
        errno!(g.net, NET_SET_BACKEND, &file(i, 9999), ENOTSOCK);
        errno!(g.net, NET_SET_BACKEND, &file(i, -2), ENOTSOCK);
        for path in ["/dev/null", "/proc/self/exe"] {
            let other = File::open(path)?;
            errno!(
                g.net,
                NET_SET_BACKEND,
                &file(i, other.as_raw_fd()),
                ENOTSOCK
            );
        }
        let (pipe, _) = std::io::pipe()?;
        errno!(g.net, NET_SET_BACKEND, &file(i, pipe.as_raw_fd()), ENOTSOCK);
        errno!(
            g.net,
            NET_SET_BACKEND,
            &file(i, g.net.as_raw_fd()),
            ENOTSOCK
        );
        for (domain, kind, protocol) in [
            (AF_INET, SOCK_DGRAM, 0),
            (AF_INET, SOCK_STREAM, 0),
            (AF_INET, SOCK_RAW, IPPROTO_UDP),
            (AF_UNIX, SOCK_DGRAM, 0),
            (AF_PACKET, SOCK_DGRAM, 0),
        ] {
            let s = socket_of(domain, kind, protocol)?;
            errno!(g.net, NET_SET_BACKEND, &file(i, s.as_raw_fd()), ENOTSOCK);
        }
        // A tap's file that is attached to no interface has nothing to wait for.
        let tun = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        errno!(g.net, NET_SET_BACKEND, &file(i, tun.as_raw_fd()), EINVAL);
        errno!(g.net, SET_VRING_NUM, &state(i, 256), 0);
        errno!(g.net, NET_SET_BACKEND, &file(i, g.tap.fd.as_raw_fd()), 0);
        errno!(g.net, NET_SET_BACKEND, &file(i, 9999), ENOTSOCK);
        errno!(g.net, NET_SET_BACKEND, &file(i, tun.as_raw_fd()), EINVAL);
        errno!(g.net, SET_VRING_NUM, &state(i, 256), EBUSY);
    }
    errno!(g.net, NET_SET_BACKEND, &file(2, -1), ENOBUFS);
    errno!(
        g.net,
        NET_SET_BACKEND,
        &file(u32::MAX, g.tap.fd.as_raw_fd()),
        ENOBUFS
    );
    errno!(g.net, NET_SET_BACKEND, NULL, EFAULT);
    Ok(())
}

/// A refused backend leaves the old one at work.
fn set_backend_refused() -> Res {
    let mut g = Guest::new(Config::default())?;
    for i in 0..2 {
        errno!(g.net, NET_SET_BACKEND, &file(i, 9999), ENOTSOCK);
        let tun = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        errno!(g.net, NET_SET_BACKEND, &file(i, tun.as_raw_fd()), EINVAL);
    }
    g.tx.kick();
    g.send_all(&[frame(1, 60), frame(2, 3000)])?;
    g.receive_all(&[frame(3, 60), frame(4, 3000)])
}

/// A backend before the device has what it needs to serve one.
fn set_backend_early() -> Res {
    let tap = Tap::new("tap0", 12)?;
    let fd = tap.fd.as_raw_fd();
    let f = owned()?;
    errno!(f, NET_SET_BACKEND, &file(1, fd), EFAULT);
    errno!(f, NET_SET_BACKEND, &file(1, -1), EFAULT);
    errno!(f, SET_MEM_TABLE, mem_table(0, 0, &[]).as_ptr(), 0);
    errno!(f, NET_SET_BACKEND, &file(1, fd), EFAULT);
    errno!(f, NET_SET_BACKEND, &file(1, -1), 0);
    let p = page(PROT_READ | PROT_WRITE) as u64;
    let a = Addr {
        index: 1,
        flags: 0,
        desc: p,
        avail: p + 0x400,
        used: p + 0x800,
        log: 0,
    };
    errno!(f, SET_VRING_NUM, &state(1, 2), 0);
    let kernel = 0xffff_8880_0000_0000;
    for bad in [
        Addr { desc: kernel, ..a },
        Addr { avail: kernel, ..a },
        Addr { used: kernel, ..a },
        // Not mapped, not writable.
        Addr {
            used: p + page_size() as u64,
            ..a
        },
        Addr {
            used: page(PROT_READ) as u64,
            ..a
        },
    ] {
        errno!(f, SET_VRING_ADDR, &bad, 0);
        errno!(f, NET_SET_BACKEND, &file(1, fd), EFAULT);
    }
    errno!(f, SET_VRING_ADDR, &a, 0);
    errno!(f, NET_SET_BACKEND, &file(1, fd), 0);
    // The other queue has no ring.
    errno!(f, NET_SET_BACKEND, &file(0, fd), EFAULT);
    Ok(())
}

fn unknown() -> Res {
    let f = owned()?;
    for req in [0xaf7e, 0xaf05, 0x5401, 0x4008_af7f] {
        errno!(f, req, &state(0, 0), ENOTTY);
        errno!(f, req, &state(1, 0), ENOTTY);
    }
    Ok(())
}

/// The file can be read and written, which is how misses of the device IOTLB are served. There is none
/// before a feature asks for it.
fn read_and_write() -> Res {
    let f = open()?;
    let fd = f.as_raw_fd();
    let mut buf = [0u8; 128];
    let mut read = |n: usize| {
        // SAFETY: `n` bytes fit.
        match unsafe { libc::read(fd, buf.as_mut_ptr().cast(), n) } {
            -1 => -std::io::Error::last_os_error().raw_os_error().unwrap(),
            n => n as i32,
        }
    };
    check_eq!(read(128), -EBADFD, "blocking read");
    check_eq!(read(16), 0, "read of less than a message");
    // SAFETY: sets a flag of an open file.
    unsafe { fcntl(fd, F_SETFL, O_NONBLOCK) };
    check_eq!(read(128), -EAGAIN, "read without blocking");
    let write = |b: &[u8]| {
        // SAFETY: the bytes are valid.
        match unsafe { libc::write(fd, b.as_ptr().cast(), b.len()) } {
            -1 => -std::io::Error::last_os_error().raw_os_error().unwrap(),
            n => n as i32,
        }
    };
    check_eq!(write(&[1]), -EINVAL, "a byte");
    check_eq!(write(&[9; 72]), -EINVAL, "a message of no known type");
    for kind in [1u8, 2] {
        let mut m = [0u8; 72];
        m[0] = kind;
        check_eq!(write(&m[..20]), -EINVAL, "half a message");
        m[16] = 1; // size
        m[33] = 2; // update
        check_eq!(write(&m), -EFAULT, "an update without an IOTLB");
        m[16] = 0;
        check_eq!(write(&m), -EINVAL, "an update of nothing");
        m[33] = 3; // invalidate
        check_eq!(write(&m), -EFAULT, "an invalidation without an IOTLB");
        m[33] = 77;
        check_eq!(write(&m), -EFAULT, "an unknown message");
    }
    let mut p = pollfd {
        fd,
        events: POLLIN | POLLOUT,
        revents: 0,
    };
    // SAFETY: one entry.
    check_eq!(unsafe { poll(&mut p, 1, 0) }, 0, "ready, by poll");
    Ok(())
}

/// The rest of what a file can be asked.
fn other_calls() -> Res {
    let f = open()?;
    // SAFETY: plain system calls on an open file.
    unsafe {
        check_eq!(lseek(f.as_raw_fd(), 10, SEEK_SET), 0, "seek");
        let p = mmap(
            null_mut(),
            page_size(),
            PROT_READ,
            MAP_SHARED,
            f.as_raw_fd(),
            0,
        );
        check_eq!(p, MAP_FAILED, "mmap");
        check_eq!(std::io::Error::last_os_error().raw_os_error(), Some(ENODEV));
        let mut st: stat = std::mem::zeroed();
        check_eq!(fstat(f.as_raw_fd(), &mut st), 0);
        check_eq!(
            (major(st.st_rdev), minor(st.st_rdev)),
            (10, 238),
            "device number"
        );
    }
    check!(
        File::open("/dev/vhost-net").is_ok(),
        "open for reading only"
    );
    Ok(())
}

/// The whole set-up as a VMM does it, through rust-vmm's crate, in another order and twice.
fn right_use() -> Res {
    for _ in 0..2 {
        let g = Guest::stopped(Config::with(
            VERSION_1 | EVENT_IDX | feature::INDIRECT | MRG_RXBUF,
        ))?;
        for i in [TX, RX] {
            g.set_vring(i)?;
        }
        g.net.set_mem_table(&Mem::table(g.mem.regions()))?;
        g.start()?;
        let mut g = g;
        g.send_all(&[frame(1, 60)])?;
        g.receive_all(&[frame(1, 60)])?;
        // The features of a running device may be set again.
        g.net.set_features(g.cfg.features)?;
        g.send_all(&[frame(1, 60)])?;
        g.receive_all(&[frame(1, 60)])?;
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("set_owner", set_owner),
        ("not_owned", not_owned),
        ("owned_by_another", owned_by_another),
        ("owned_by_child", owned_by_child),
        ("reset_owner", reset_owner),
        ("reset_owner_running", reset_owner_running),
        ("reset_owner_forgets", reset_owner_forgets),
        ("features", features),
        ("offered", offered),
        ("features_array", features_array),
        ("features_array_works", features_array_works),
        ("features_array_killed", features_array_killed),
        ("backend_features", backend_features),
        ("mem_table_errors", mem_table_errors),
        ("mem_table_kernel_address", mem_table_kernel_address),
        ("vring_num", vring_num),
        ("vring_base", vring_base),
        ("vring_base_running", vring_base_running),
        ("vring_addr", vring_addr),
        ("vring_running", vring_running),
        ("vring_eventfds", vring_eventfds),
        ("eventfds_let_go", eventfds_let_go),
        ("set_backend", set_backend),
        ("set_backend_refused", set_backend_refused),
        ("set_backend_early", set_backend_early),
        ("unknown", unknown),
        ("read_and_write", read_and_write),
        ("other_calls", other_calls),
        ("right_use", right_use),
    ];
    ktap::run(TESTS)
}
