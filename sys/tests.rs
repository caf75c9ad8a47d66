// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of the wrappers: what they need is a kernel, and no device.
//!
//! They run when the module is loaded into a kernel that was booted with `kunit.enable=1
//! kunit.autorun=1`, each test in a kernel thread of its own. What needs a process (its file
//! descriptors of eventfds and taps, a `vhost_task`) is tested from user space.

use super::{
    bindings as local,
    compat::ENOTSOCK,
    counter::Groups,
    eventfd::{
        EventFdCtx,
        EventFdFile, //
    },
    kthread::Kthread,
    miscdev::Registration,
    poll::{
        self,
        PollEntry,
        Wake, //
    },
    socket::{
        Kind,
        Socket, //
    },
    uaccess::CurrentMm,
    ubuf::{
        fits,
        UserBufs, //
    },
    vhost_task::Work,
    xdp::{
        Layout,
        XdpBatch,
        BATCH,
        HEADER_MAX, //
    }, //
};
use crate::{
    memtable::{
        Access,
        GuestAddr,
        Hint,
        Iova,
        MemTable,
        Region,
        Segments, //
    },
    usermem::{
        write_at,
        Segment,
        UserAddr,
        UserMemory, //
    },
    vhost::Device,
    vhost_net::Net, //
};
use core::{
    mem::MaybeUninit,
    ptr, //
};
use kernel::{
    bindings,
    ffi::c_int,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        Completion, //
    }, //
};

const PAGE: u64 = PAGE_SIZE as u64;

// SAFETY: A test's thread has the address space of the test, from its first `map` on.
const MEM: CurrentMm<'static> = unsafe { CurrentMm::assume() };

/// `PROT_READ`, `PROT_WRITE`.
const READ: usize = 1;
const WRITE: usize = 2;
/// `MAP_PRIVATE | MAP_ANONYMOUS`.
const ANONYMOUS: usize = 0x22;
/// `MAP_FIXED`.
const FIXED: usize = 0x10;

/// New user memory of the current test, which goes with it.
fn map(pages: u64, prot: usize) -> Result<UserAddr> {
    map_at(0, pages, prot, ANONYMOUS)
}

/// Makes of one page that [`map`] returned one that can only be read, and is all zeroes.
fn make_read_only(page: UserAddr) -> Result {
    map_at(page.get() as usize, 1, READ, ANONYMOUS | FIXED).map(drop)
}

fn map_at(addr: usize, pages: u64, prot: usize, flags: usize) -> Result<UserAddr> {
    // SAFETY: Within a test this is the test. Only tests have an interest in the memory of their
    // thread.
    let addr = unsafe {
        let test = bindings::kunit_get_current_test();
        let size = pages as usize * PAGE_SIZE;
        bindings::kunit_vm_mmap(test, ptr::null_mut(), addr, size, prot, flags, 0)
    };
    // A small negative number is an error.
    if addr == 0 || addr as isize > -4096 && (addr as isize) < 0 {
        return Err(ENOMEM);
    }
    Ok(UserAddr::new(addr as u64))
}

/// Takes one page out of what [`map`] returned.
fn unmap(page: UserAddr) -> Result {
    // SAFETY: Only tests have an interest in the memory of their thread.
    let err = unsafe { bindings::vm_munmap(page.get() as usize, PAGE_SIZE) };
    kernel::error::to_result(err)
}

/// A file descriptor of a new socket, closed when dropped.
struct Fd(i32);

impl Fd {
    fn socket(family: u32, ty: u32) -> Result<Self> {
        let mut sock = ptr::null_mut();
        // SAFETY: The namespace lives for ever, and `sock` is valid for writes.
        kernel::error::to_result(unsafe {
            bindings::sock_create_kern(
                &raw mut bindings::init_net,
                family as c_int,
                ty as c_int,
                0,
                &mut sock,
            )
        })?;
        // SAFETY: The socket is new. The function releases it should it fail.
        let file = kernel::error::from_err_ptr(unsafe {
            bindings::sock_alloc_file(sock, 0, ptr::null())
        })?;
        // SAFETY: The file is ours until it is installed.
        unsafe {
            let fd = bindings::get_unused_fd_flags(0);
            if fd < 0 {
                bindings::fput(file);
                return Err(Error::from_errno(fd));
            }
            bindings::fd_install(fd as u32, file);
            Ok(Self(fd))
        }
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: The descriptor is ours.
        unsafe { bindings::close_fd(self.0 as u32) };
    }
}

/// A descriptor that nobody has.
const NO_FD: i32 = 0x3fff_ffff;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;

fn packet_socket() -> Result<(Fd, Arc<Socket>)> {
    let fd = Fd::socket(bindings::AF_PACKET, SOCK_RAW)?;
    let sock = Arc::new(Socket::from_fd(fd.0)?, GFP_KERNEL)?;
    Ok((fd, sock))
}

/// Counts how often it was woken, and with what.
struct Counter {
    count: Atomic<i32>,
    last: Atomic<u32>,
}

impl Counter {
    fn new() -> Result<Arc<Self>> {
        let this = Self {
            count: Atomic::new(0),
            last: Atomic::new(0),
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }
}

impl Wake for Counter {
    fn wake(&self, token: u32) {
        self.last.store(token, Relaxed);
        self.count.fetch_add(1, Full);
    }
}

#[kunit_tests(vhost_net_uaccess)]
mod uaccess {
    use super::*;

    /// Whether every access to the 16 bytes at `addr` that only reads fails as it should.
    fn refuses_reads(addr: UserAddr) -> bool {
        let mut buf = [0x5a; 16];
        let mut uninit = [MaybeUninit::uninit(); 16];
        MEM.read(addr, &mut buf) == Err(EFAULT)
            && MEM.read_uninit(addr, &mut uninit) == Err(EFAULT)
            && MEM.read_u64x2(addr) == Err(EFAULT)
            && MEM.read_u64x2_last_first(addr) == Err(EFAULT)
    }

    /// The same for those that write.
    fn refuses_writes(addr: UserAddr) -> bool {
        MEM.write(addr, &[0x5a; 16]) == Err(EFAULT)
            && MEM.store_u16(addr, 0x5a5a) == Err(EFAULT)
            && MEM.store_u64(addr, 0x5a5a) == Err(EFAULT)
            && MEM.set_bits(addr, 0x5a5a_5a5a) == Err(EFAULT)
    }

    fn refuses(addr: UserAddr) -> bool {
        refuses_reads(addr) && MEM.load_u16(addr) == Err(EFAULT) && refuses_writes(addr)
    }

    #[test]
    fn what_is_written_is_read() -> Result {
        let page = map(1, READ | WRITE)?;
        let bytes: [u8; 16] = core::array::from_fn(|i| i as u8 + 1);
        MEM.write(page, &bytes)?;
        let mut back = [0; 16];
        MEM.read(page, &mut back)?;
        assert_eq!(back, bytes);

        let (result, uninit) = read_uninit(page, 16)?;
        assert_eq!(result, Ok(()));
        assert_eq!(uninit[MARGIN..MARGIN + 16], bytes);

        let words = MEM.read_u64x2(page)?;
        assert_eq!(words[0].to_ne_bytes(), bytes[..8]);
        assert_eq!(words[1].to_ne_bytes(), bytes[8..]);
        assert_eq!(MEM.load_u16(page)?.to_ne_bytes(), bytes[..2]);

        MEM.store_u16(page.offset(2), 0xabcd)?;
        assert_eq!(MEM.load_u16(page.offset(2))?, 0xabcd);
        assert_eq!(MEM.load_u16(page.offset(4))?.to_ne_bytes(), bytes[4..6]);

        MEM.store_u64(page.offset(8), 0x0123_4567_89ab_cdef)?;
        let words = MEM.read_u64x2_last_first(page)?;
        assert_eq!(words, MEM.read_u64x2(page)?);
        assert_eq!(words[1], 0x0123_4567_89ab_cdef);
        Ok(())
    }

    #[test]
    fn bits_are_added() -> Result {
        let page = map(1, READ | WRITE)?;
        MEM.write(page, &0x1122_3344_5566_7788u64.to_le_bytes())?;
        MEM.set_bits(page, 0x8000_0001)?;
        let mut low = [0; 4];
        MEM.read(page, &mut low)?;
        assert_eq!(u32::from_le_bytes(low), 0x5566_7788 | 0x8000_0001);
        MEM.read(page.offset(4), &mut low)?;
        assert_eq!(u32::from_le_bytes(low), 0x1122_3344);
        Ok(())
    }

    #[test]
    fn odd_addresses_are_as_good() -> Result {
        let pages = map(2, READ | WRITE)?;
        // Within a page, and across two.
        for addr in [pages.offset(1), pages.offset(PAGE - 1)] {
            MEM.store_u16(addr, 0x1234)?;
            assert_eq!(MEM.load_u16(addr)?, 0x1234);
        }
        let addr = pages.offset(PAGE - 7);
        let bytes: [u8; 16] = core::array::from_fn(|i| 0x80 + i as u8);
        MEM.write(addr, &bytes)?;
        assert_eq!(MEM.read_u64x2(addr)?[1].to_ne_bytes(), bytes[8..]);
        assert_eq!(MEM.read_u64x2_last_first(addr)?, MEM.read_u64x2(addr)?);
        Ok(())
    }

    #[test]
    fn what_is_not_mapped_fails() -> Result {
        let pages = map(3, READ | WRITE)?;
        unmap(pages.offset(PAGE))?;
        assert!(refuses(pages.offset(PAGE)));
        assert!(refuses(pages.offset(2 * PAGE - 16)));
        // A part of it is enough, at either end.
        assert!(refuses_reads(pages.offset(PAGE - 15)));
        assert!(refuses_reads(pages.offset(PAGE - 1)));
        assert_eq!(MEM.write(pages.offset(PAGE - 15), &[1; 16]), Err(EFAULT));
        assert_eq!(MEM.load_u16(pages.offset(PAGE - 1)), Err(EFAULT));
        assert_eq!(MEM.store_u16(pages.offset(PAGE - 1), 1), Err(EFAULT));
        assert!(refuses_reads(pages.offset(2 * PAGE - 1)));
        // And what is next to it can be used.
        MEM.write(pages.offset(PAGE - 16), &[1; 16])?;
        MEM.write(pages.offset(2 * PAGE), &[1; 16])?;
        Ok(())
    }

    #[test]
    fn what_is_read_only_is_not_written() -> Result {
        let page = map(1, READ)?;
        assert!(refuses_writes(page));
        assert_eq!(MEM.read_u64x2(page), Ok([0; 2]));
        assert_eq!(MEM.load_u16(page), Ok(0));
        Ok(())
    }

    #[test]
    fn what_has_no_access_fails() -> Result {
        assert!(refuses(map(1, 0)?));
        Ok(())
    }

    #[test]
    fn kernel_memory_is_out_of_reach() -> Result {
        // So that there is a user address space, in which all else would be well.
        map(1, READ | WRITE)?;
        let secret = KBox::new([0x77u64; 2], GFP_KERNEL)?;
        let addr = UserAddr::new(ptr::from_ref(&*secret) as u64);
        assert!(!MEM.access_ok(addr, 16));
        assert!(refuses(addr));
        assert_eq!(*secret, [0x77; 2]);
        Ok(())
    }

    #[test]
    fn addresses_outside_fail() -> Result {
        map(1, READ | WRITE)?;
        // The last bytes, what goes around, and what is in neither half.
        for addr in [u64::MAX - 15, u64::MAX - 7, 1 << 63, (1 << 63) - 8] {
            let addr = UserAddr::new(addr);
            assert!(!MEM.access_ok(addr, 16));
            assert!(refuses(addr));
        }
        assert!(!MEM.access_ok(UserAddr::new(PAGE), u64::MAX));
        assert!(!MEM.access_ok(UserAddr::new(PAGE), u64::MAX - PAGE + 1));
        assert!(!MEM.access_ok(UserAddr::new(u64::MAX), 1));
        assert!(MEM.access_ok(UserAddr::new(PAGE), PAGE));
        // Nothing is mapped at the start.
        assert!(refuses(UserAddr::new(0)));
        Ok(())
    }

    #[test]
    fn nothing_can_be_read_anywhere() -> Result {
        let page = map(1, 0)?;
        assert_eq!(MEM.read(page, &mut []), Ok(()));
        assert_eq!(MEM.write(page, &[]), Ok(()));
        Ok(())
    }

    /// The lengths at which it changes how memory is copied, and those next to them.
    const LENGTHS: [usize; 13] = [1, 2, 7, 8, 9, 15, 16, 17, 64, 127, 128, 129, 200];
    const MARGIN: usize = 16;
    const CANARY: u8 = 0xa5;

    /// What a buffer of `len` bytes, in the middle of the result, has after it was read.
    fn read_uninit(addr: UserAddr, len: usize) -> Result<(Result, KVec<u8>)> {
        let mut buf = KVec::from_elem(MaybeUninit::new(CANARY), len + 2 * MARGIN, GFP_KERNEL)?;
        let middle = buf.get_mut(MARGIN..MARGIN + len).ok_or(EINVAL)?;
        let result = MEM.read_uninit(addr, middle);
        let mut bytes = KVec::with_capacity(buf.len(), GFP_KERNEL)?;
        for byte in &buf {
            // SAFETY: They were initialised at the start.
            bytes.push(unsafe { byte.assume_init() }, GFP_KERNEL)?;
        }
        Ok((result, bytes))
    }

    /// Whether what is around the `len` bytes in the middle is as it was.
    fn margins_are_whole(bytes: &[u8], len: usize) -> bool {
        let inside = MARGIN..MARGIN + len;
        bytes.len() == len + 2 * MARGIN
            && (bytes.iter().enumerate()).all(|(i, byte)| inside.contains(&i) || *byte == CANARY)
    }

    #[test]
    fn every_length_is_read_whole() -> Result {
        let pages = map(2, READ | WRITE)?;
        unmap(pages.offset(PAGE))?;
        let all: [u8; 256] = core::array::from_fn(|i| (i as u8).wrapping_mul(7) | 1);
        MEM.write(pages.offset(PAGE - 256), &all)?;
        for len in LENGTHS {
            // To the last byte of what is mapped, and to some before it.
            for end in [256, 255, 253, 248] {
                let expected = &all[end - len..end];
                let addr = pages.offset(PAGE - 256 + (end - len) as u64);
                let (result, bytes) = read_uninit(addr, len)?;
                assert_eq!(result, Ok(()));
                assert_eq!(bytes[MARGIN..MARGIN + len], *expected);
                assert!(margins_are_whole(&bytes, len));

                let mut buf = KVec::from_elem(0u8, len, GFP_KERNEL)?;
                MEM.read(addr, &mut buf)?;
                assert_eq!(buf[..], *expected);
            }
        }
        Ok(())
    }

    #[test]
    fn every_byte_that_is_missing_fails() -> Result {
        let pages = map(3, READ | WRITE)?;
        unmap(pages.offset(PAGE))?;
        let (end, start) = (pages.offset(PAGE), pages.offset(2 * PAGE));
        for len in LENGTHS {
            let mut buf = KVec::from_elem(0u8, len, GFP_KERNEL)?;
            // The last bytes, up to all, and the first ones.
            for missing in 1..=len as u64 {
                let addr = end.offset(missing.wrapping_sub(len as u64));
                for addr in [addr, start.offset(missing.wrapping_neg())] {
                    let (result, bytes) = read_uninit(addr, len)?;
                    assert_eq!(result, Err(EFAULT));
                    assert!(margins_are_whole(&bytes, len));
                    assert_eq!(MEM.read(addr, &mut buf), Err(EFAULT));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_write_that_fails_stays_within_its_range() -> Result {
        let pages = map(4, READ | WRITE)?;
        make_read_only(pages.offset(PAGE))?;
        unmap(pages.offset(3 * PAGE))?;
        for len in LENGTHS {
            let data = KVec::from_elem(CANARY, len, GFP_KERNEL)?;
            for missing in [1, len / 2, len - 1] {
                // What is read-only, and what is not there.
                for end in [PAGE, 3 * PAGE] {
                    let start = pages.offset(end - (len - missing) as u64);
                    MEM.write(start.offset(2u64.wrapping_neg()), &[1, 2])?;
                    let result = MEM.write(start, &data);
                    let whole = missing == 0;
                    assert_eq!(result, if whole { Ok(()) } else { Err(EFAULT) });
                    assert_eq!(MEM.load_u16(start.offset(2u64.wrapping_neg())), Ok(0x0201));
                }
            }
        }
        assert_eq!(MEM.load_u16(pages.offset(PAGE)), Ok(0));
        assert_eq!(MEM.store_u16(pages.offset(PAGE - 1), 0x5a5a), Err(EFAULT));
        assert_eq!(MEM.read_u64x2(pages.offset(PAGE)), Ok([0; 2]));
        Ok(())
    }

    #[test]
    fn segments_are_written_to_their_end() -> Result {
        let pages = map(2, READ | WRITE)?;
        unmap(pages.offset(PAGE))?;
        let segment = |offset, len| Segment::new(pages.offset(offset), len).ok_or(EINVAL);
        let list = [segment(0, 3)?, segment(64, 0)?, segment(128, 5)?];
        write_at(MEM, &list, 2, &[1, 2, 3, 4, 5, 6])?;
        assert_eq!(MEM.load_u16(pages.offset(2))?.to_ne_bytes(), [1, 0]);
        assert_eq!(MEM.load_u16(pages.offset(128))?.to_ne_bytes(), [2, 3]);
        // One byte too many; the second where nothing is.
        assert_eq!(write_at(MEM, &list, 2, &[1; 7]), Err(EFAULT));
        let list = [segment(0, 3)?, segment(PAGE, 5)?];
        assert_eq!(write_at(MEM, &list, 0, &[1; 4]), Err(EFAULT));
        Ok(())
    }
}

#[kunit_tests(vhost_net_files)]
mod files {
    use super::*;

    #[test]
    fn eventfd_of_no_descriptor() {
        for fd in [-1, NO_FD] {
            assert_eq!(EventFdCtx::from_fd(fd).err(), Some(EBADF));
            assert_eq!(EventFdFile::from_fd(fd).err(), Some(EBADF));
        }
    }

    #[test]
    fn eventfd_of_another_file() -> Result {
        let fd = Fd::socket(bindings::AF_UNIX, SOCK_DGRAM)?;
        assert_eq!(EventFdCtx::from_fd(fd.0).err(), Some(EINVAL));
        assert_eq!(EventFdFile::from_fd(fd.0).err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn socket_of_no_descriptor() {
        for fd in [-1, NO_FD] {
            assert_eq!(Socket::from_fd(fd).err(), Some(ENOTSOCK));
        }
    }

    #[test]
    fn socket_of_another_kind() -> Result {
        let families = [
            (bindings::AF_UNIX, SOCK_DGRAM),
            (bindings::AF_INET, SOCK_DGRAM),
            (bindings::AF_INET, bindings::sock_type_SOCK_STREAM),
            (bindings::AF_PACKET, SOCK_DGRAM),
        ];
        for (family, ty) in families {
            let fd = Fd::socket(family, ty)?;
            assert_eq!(Socket::from_fd(fd.0).err(), Some(ENOTSOCK));
        }
        Ok(())
    }

    #[test]
    fn packet_sockets() -> Result {
        let (fd, sock) = packet_socket()?;
        let (_other_fd, other) = packet_socket()?;
        assert_eq!(sock.kind(), Kind::Packet);
        assert!(sock.is_same(&Socket::from_fd(fd.0)?));
        assert!(!sock.is_same(&other));
        assert!(!sock.takes_batches() && !sock.has_zerocopy() && !sock.completes_ubufs());
        // The reference to the file is the socket's own.
        drop(fd);
        assert_eq!(sock.kind(), Kind::Packet);
        assert!(!sock.has_xdp());
        Ok(())
    }

    #[test]
    fn a_ready_file_tells_at_once() -> Result {
        let (_fd, sock) = packet_socket()?;
        let counter = Counter::new()?;
        let mut entry = KBox::pin_init(PollEntry::<Counter>::new(poll::OUT, 7), GFP_KERNEL)?;
        entry.as_mut().start(&*sock, &counter)?;
        assert_eq!(counter.count.load(Relaxed), 1);
        assert_eq!(counter.last.load(Relaxed), 7);
        // It is started already.
        entry.as_mut().start(&*sock, &counter)?;
        assert_eq!(counter.count.load(Relaxed), 1);
        // Stopped, it can be started again.
        entry.as_mut().stop();
        entry.as_mut().stop();
        entry.as_mut().start(&*sock, &counter)?;
        assert_eq!(counter.count.load(Relaxed), 2);
        Ok(())
    }

    #[test]
    fn an_empty_socket_does_not_tell() -> Result {
        let (_fd, sock) = packet_socket()?;
        let counter = Counter::new()?;
        let mut entry = KBox::pin_init(PollEntry::<Counter>::new(poll::IN, 0), GFP_KERNEL)?;
        entry.as_mut().start(&*sock, &counter)?;
        drop(entry);
        assert_eq!(counter.count.load(Relaxed), 0);
        // The entry gave its reference back.
        assert!(Arc::into_unique_or_drop(counter).is_some());
        Ok(())
    }

    #[test]
    fn a_ready_file_is_not_waited_for() -> Result {
        let (_fd, sock) = packet_socket()?;
        let counter = Counter::new()?;
        let mut entry = KBox::pin_init(PollEntry::<Counter>::new(poll::OUT, 7), GFP_KERNEL)?;
        assert!(entry.as_mut().start_unless_ready(&*sock, &counter)?);
        // It was not started, and there is nobody to be replaced.
        entry.as_mut().set_target(counter.clone());
        assert_eq!(counter.count.load(Relaxed), 0);
        assert!(Arc::into_unique_or_drop(counter).is_some());
        Ok(())
    }

    #[test]
    fn another_target_is_told() -> Result {
        let (_fd, sock) = packet_socket()?;
        let [first, second] = [Counter::new()?, Counter::new()?];
        let mut entry = KBox::pin_init(PollEntry::<Counter>::new(poll::IN, 0), GFP_KERNEL)?;
        assert!(!entry.as_mut().start_unless_ready(&*sock, &first)?);
        entry.as_mut().set_target(second.clone());
        assert!(Arc::into_unique_or_drop(first).is_some());
        drop(entry);
        assert!(Arc::into_unique_or_drop(second).is_some());
        Ok(())
    }

    #[test]
    fn a_pause_keeps_who_is_told() -> Result {
        let (_fd, sock) = packet_socket()?;
        let [first, second] = [Counter::new()?, Counter::new()?];
        let mut entry = KBox::pin_init(PollEntry::<Counter>::new(poll::OUT, 7), GFP_KERNEL)?;
        for count in 1..4 {
            entry.as_mut().start(&*sock, &first)?;
            assert_eq!(first.count.load(Relaxed), count);
            entry.as_mut().pause();
            entry.as_mut().pause();
        }
        // Started with another one, it has let go of the first.
        entry.as_mut().start(&*sock, &second)?;
        assert_eq!(second.count.load(Relaxed), 1);
        assert!(Arc::into_unique_or_drop(first).is_some());
        // So it has when it is told to, though it is not started.
        entry.as_mut().pause();
        entry.as_mut().set_target(Counter::new()?);
        assert!(Arc::into_unique_or_drop(second).is_some());
        Ok(())
    }

    #[test]
    fn a_packet_has_room_for_its_pages() -> Result {
        let segment = |addr, len| Segment::new(UserAddr::new(addr), len).ok_or(EINVAL);
        let most = u64::from(super::super::bindings::SKB_FRAGS_MAX);
        assert!(fits(&[segment(PAGE, most * PAGE)?], 0));
        assert!(!fits(&[segment(PAGE, most * PAGE + 1)?], 0));
        assert!(!fits(&[segment(PAGE + 1, most * PAGE)?], 0));
        assert!(fits(&[segment(PAGE - 1, most * PAGE + 1)?], 1));
        assert!(!fits(&[segment(PAGE, usize::MAX as u64)?], 0));
        Ok(())
    }

    #[test]
    fn packets_have_another_target() -> Result {
        let [first, second] = [Counter::new()?, Counter::new()?];
        let mut bufs = UserBufs::new(first.clone(), 0)?;
        drop(bufs.set_target(second.clone()));
        assert!(Arc::into_unique_or_drop(first).is_some());
        drop(bufs);
        assert!(Arc::into_unique_or_drop(second).is_some());
        Ok(())
    }

    #[test]
    fn nothing_in_flight_is_not_waited_for() -> Result {
        let counter = Counter::new()?;
        let mut bufs = UserBufs::new(counter.clone(), 0)?;
        assert_eq!(bufs.len(), 0);
        assert!(bufs.pop().is_none());
        bufs.in_flight().wait();
        drop(bufs);
        assert_eq!(counter.count.load(Relaxed), 0);
        assert!(Arc::into_unique_or_drop(counter).is_some());
        Ok(())
    }

    #[test]
    fn a_minor_number_is_given_once() {
        // The module has it.
        let device = KBox::pin_init(Registration::<Device<Net>>::new(), GFP_KERNEL);
        assert_eq!(device.err(), Some(EBUSY));
    }
}

#[kunit_tests(vhost_net_xdp)]
mod xdp {
    use super::*;

    /// These pieces of user memory, which the caller's three `pages` have.
    fn segments(pages: UserAddr, pieces: &[(u64, u32)]) -> Result<Segments> {
        let region = Region {
            guest: GuestAddr::new(0),
            size: 3 * PAGE,
            user: pages,
        };
        let table = MemTable::new([region].into_iter())?;
        let mut segments = Segments::new()?;
        for &(offset, len) in pieces {
            table
                .maps()
                .translate(
                    Iova::new(offset),
                    len,
                    Access::Read,
                    &mut Hint::new()?,
                    &mut segments,
                )
                .map_err(|_| EINVAL)?;
        }
        Ok(segments)
    }

    #[test]
    fn a_header_comes_first() -> Result {
        let pages = map(3, READ | WRITE)?;
        let bytes: [u8; 200] = core::array::from_fn(|i| i as u8 + 1);
        MEM.write(pages, &bytes)?;
        let whole = segments(pages, &[(0, 100)])?;
        // The same bytes, and 28 of them come before.
        let torn = segments(pages, &[(0, 3), (3, 30), (33, 1), (34, 94)])?;
        let (mut batch, groups) = (XdpBatch::new()?, Groups::default());
        for header in [0, 10, 12, 20, HEADER_MAX] {
            for xdp in [false, true] {
                let layout = Layout::new(header, xdp)?;
                assert_eq!(layout.header(), header);
                assert_eq!(
                    batch.push(MEM, layout, &whole, 0, &groups)?[..],
                    bytes[..header]
                );
                assert_eq!(
                    batch.push(MEM, layout, &torn, 28, &groups)?[..],
                    bytes[28..28 + header]
                );
            }
        }
        assert_eq!(batch.len(), 20);
        batch.pop();
        assert_eq!(batch.len(), 19);
        batch.clear();
        assert!(batch.is_empty());
        batch.pop();
        assert!(batch.is_empty());
        assert_eq!(Layout::new(HEADER_MAX + 1, false).err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn a_packet_that_cannot_be_read_is_not_kept() -> Result {
        let pages = map(3, READ | WRITE)?;
        unmap(pages.offset(PAGE))?;
        let layout = Layout::new(12, false)?;
        let (mut batch, groups) = (XdpBatch::new()?, Groups::default());
        let lists: [&[(u64, u32)]; 5] = [
            &[(PAGE, 100)],
            &[(PAGE - 99, 100)],
            &[(PAGE - 1000, 1001)],
            &[(0, 12), (PAGE - 20, 21)],
            &[(0, 12), (PAGE, 1), (0, 100)],
        ];
        for list in lists {
            let list = segments(pages, list)?;
            assert_eq!(
                batch.push(MEM, layout, &list, 0, &groups).err(),
                Some(EFAULT)
            );
            assert!(batch.is_empty());
        }
        // What is skipped is not read.
        let list = segments(pages, &[(PAGE, 100), (0, 100)])?;
        batch.push(MEM, layout, &list, 100, &groups)?;
        assert_eq!(batch.len(), 1);
        Ok(())
    }

    #[test]
    fn a_packet_has_a_length_that_fits() -> Result {
        let pages = map(3, READ | WRITE)?;
        let layout = Layout::new(12, false)?;
        let (mut batch, groups) = (XdpBatch::new()?, Groups::default());
        let refused = [
            (0, EINVAL),
            (11, EINVAL),
            (25, EINVAL),
            (PAGE as u32, ENOSPC),
            (2 * PAGE as u32, ENOSPC),
        ];
        for (len, error) in refused {
            let list = segments(pages, &[(0, len)])?;
            assert_eq!(
                batch.push(MEM, layout, &list, 0, &groups).err(),
                Some(error)
            );
        }
        // With its header and that of an Ethernet, and nothing else.
        batch.push(MEM, layout, &segments(pages, &[(0, 26)])?, 0, &groups)?;
        // Some of that is skipped, or all, and more.
        let list = segments(pages, &[(0, 26)])?;
        assert_eq!(
            batch.push(MEM, layout, &list, 1, &groups).err(),
            Some(EINVAL)
        );
        assert_eq!(
            batch.push(MEM, layout, &list, 100, &groups).err(),
            Some(EINVAL)
        );
        assert_eq!(batch.len(), 1);
        Ok(())
    }

    #[test]
    fn packets_to_many_are_counted() -> Result {
        let pages = map(3, READ | WRITE)?;
        let layout = Layout::new(12, false)?;
        let list = segments(pages, &[(0, 100)])?;
        let (mut batch, groups) = (XdpBatch::new()?, Groups::default());
        for destination in [
            [2, 0, 0, 0, 0, 1],
            [1, 0, 0x5e, 0, 0, 1],
            [0xff; 6],
            [0xff; 6],
        ] {
            MEM.write(pages.offset(12), &destination)?;
            batch.push(MEM, layout, &list, 0, &groups)?;
        }
        assert_eq!(groups.multicast.get(), 1);
        assert_eq!(groups.broadcast.get(), 2);
        Ok(())
    }

    #[test]
    fn a_batch_gets_full() -> Result {
        let pages = map(3, READ | WRITE)?;
        let layout = Layout::new(12, false)?;
        let list = segments(pages, &[(0, 1514)])?;
        let (mut batch, groups) = (XdpBatch::new()?, Groups::default());
        for _ in 0..3 {
            for _ in 0..BATCH {
                batch.push(MEM, layout, &list, 0, &groups)?;
            }
            assert_eq!(
                batch.push(MEM, layout, &list, 0, &groups).err(),
                Some(ENOSPC)
            );
            assert_eq!(batch.len(), BATCH);
            batch.clear();
        }
        Ok(())
    }

    #[test]
    fn a_batch_ends_with_its_pages() -> Result {
        let pages = map(3, READ | WRITE)?;
        let layout = Layout::new(12, false)?;
        let (mut batch, groups) = (XdpBatch::new()?, Groups::default());
        for len in [26, 200, 1000, 1514, 2000] {
            let list = segments(pages, &[(0, len)])?;
            let mut seen = [0; 2];
            for _ in 0..10 {
                while !batch.is_full() {
                    let start = batch.push(MEM, layout, &list, 0, &groups)?.as_ptr() as usize;
                    // The page that it was cut from is aligned to its size.
                    let page = start & !(local::FRAG_CACHE_SIZE as usize - 1);
                    let slot = seen.iter_mut().find(|seen| **seen == page || **seen == 0);
                    // There is no third one.
                    assert!(slot.is_some());
                    if let Some(slot) = slot {
                        *slot = page;
                    }
                }
                // It is not over before a page is, of which each has as many or more.
                assert!(batch.len() >= 8);
                batch.clear();
                assert!(!batch.is_full());
            }
        }
        Ok(())
    }
}

/// Work that writes a number to the memory that it has as its own.
#[pin_data]
struct Writer {
    addr: UserAddr,
    wanted: Atomic<u32>,
    runs: Atomic<i32>,
    #[pin]
    done: Completion,
}

impl Writer {
    fn new(addr: UserAddr) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                addr,
                wanted: Atomic::new(0),
                runs: Atomic::new(0),
                done <- Completion::new(),
            }),
            GFP_KERNEL,
        )
    }
}

impl Work for Writer {
    type Batch = u16;

    fn take(&self) -> Option<u16> {
        match self.wanted.xchg(0, Full) {
            0 => None,
            number => Some(number as u16),
        }
    }

    fn run(&self, number: u16, mm: CurrentMm<'_>) {
        let _ = mm.store_u16(self.addr, number);
        self.runs.fetch_add(1, Full);
        self.done.complete_all();
    }

    fn killed(&self) {}
}

#[kunit_tests(vhost_net_kthread)]
mod kthread {
    use super::*;

    fn spawn(work: Arc<Writer>) -> Result<Kthread<Writer>> {
        let task = current!();
        let mm = task.mm().ok_or(EINVAL)?;
        Kthread::spawn(work, c"vhost-kunit", ARef::from(mm))
    }

    #[test]
    fn works_in_the_address_space() -> Result {
        let page = map(1, READ | WRITE)?;
        let work = Writer::new(page)?;
        let thread = spawn(work.clone())?;
        work.wanted.store(0x1234, Relaxed);
        thread.wake();
        work.done.wait_for_completion();
        assert_eq!(MEM.load_u16(page)?, 0x1234);
        drop(thread);
        assert_eq!(work.runs.load(Relaxed), 1);
        // The thread gave its reference back.
        assert!(Arc::into_unique_or_drop(work).is_some());
        Ok(())
    }

    #[test]
    fn a_wake_up_without_work_runs_nothing() -> Result {
        let page = map(1, READ | WRITE)?;
        let work = Writer::new(page)?;
        let thread = spawn(work.clone())?;
        for _ in 0..10 {
            thread.wake();
        }
        drop(thread);
        assert_eq!(work.runs.load(Relaxed), 0);
        Ok(())
    }
}
