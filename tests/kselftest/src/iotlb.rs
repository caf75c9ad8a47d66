// SPDX-License-Identifier: GPL-2.0

//! The device IOTLB as a VMM serves it: messages to the device, misses from it, and a virtual IOMMU that
//! answers them.

use std::io::Error;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::check;
use crate::check_eq;
use crate::deadline;
use crate::sys::page_size;
use crate::sys::readable;
use crate::Guest;
use crate::Res;

/// What is mapped for the device at a time, whatever the machine's pages.
const PAGE: u64 = 4096;

/// The device may read.
pub const RO: u8 = 1;
/// The device may write.
pub const WO: u8 = 2;
/// The device may do both.
pub const RW: u8 = 3;

pub const MISS: u8 = 1;
pub const UPDATE: u8 = 2;
pub const INVALIDATE: u8 = 3;

pub const V1: u32 = 1;
pub const V2: u32 = 2;

/// `struct vhost_msg`, and `struct vhost_msg_v2`, which has `asid` where the other has nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Msg {
    pub version: u32,
    pub asid: u32,
    pub iova: u64,
    pub size: u64,
    pub uaddr: u64,
    pub perm: u8,
    pub kind: u8,
    pub rest: [u8; 38],
}

/// The length of a message.
pub const LEN: usize = 72;
const _: () = assert!(size_of::<Msg>() == LEN);

impl Msg {
    fn new(kind: u8, iova: u64) -> Self {
        Msg {
            version: V1,
            asid: 0,
            iova,
            size: 0,
            uaddr: 0,
            perm: 0,
            kind,
            rest: [0; 38],
        }
    }

    /// What a device says that needs an address.
    pub fn miss(iova: u64, perm: u8) -> Self {
        Msg {
            perm,
            ..Self::new(MISS, iova)
        }
    }

    /// A new mapping.
    pub fn update(iova: u64, size: u64, uaddr: u64, perm: u8) -> Self {
        Msg {
            size,
            uaddr,
            perm,
            ..Self::new(UPDATE, iova)
        }
    }

    /// The end of all mappings that have a byte of the range.
    pub fn invalidate(iova: u64, size: u64) -> Self {
        Msg {
            size,
            ..Self::new(INVALIDATE, iova)
        }
    }

    /// The same in the other version.
    pub fn v2(self) -> Self {
        Msg {
            version: V2,
            ..self
        }
    }

    /// The message's bytes.
    pub fn bytes(&self) -> [u8; LEN] {
        // SAFETY: there is no padding.
        unsafe { std::mem::transmute(*self) }
    }

    /// The message of these bytes.
    pub fn from_bytes(bytes: [u8; LEN]) -> Self {
        // SAFETY: any bytes are a message.
        unsafe { std::mem::transmute(bytes) }
    }
}

fn result(n: isize) -> i32 {
    match n {
        -1 => -Error::last_os_error().raw_os_error().unwrap_or(-1),
        n => n as i32,
    }
}

/// Writes `len` bytes: how many it took, or the negative errno.
pub fn write_raw(fd: &impl AsRawFd, at: *const u8, len: usize) -> i32 {
    // SAFETY: the kernel checks the pointer.
    result(unsafe { libc::write(fd.as_raw_fd(), at.cast(), len) })
}

/// Reads up to `len` bytes: how many it gave, or the negative errno.
pub fn read_raw(fd: &impl AsRawFd, at: *mut u8, len: usize) -> i32 {
    // SAFETY: the kernel checks the pointer, and the bytes are the caller's.
    result(unsafe { libc::read(fd.as_raw_fd(), at.cast(), len) })
}

/// Writes a message: how many bytes it took, or the negative errno.
pub fn write(fd: &impl AsRawFd, msg: &Msg) -> i32 {
    write_raw(fd, msg.bytes().as_ptr(), LEN)
}

/// Reads a message, or fails with the negative errno.
pub fn read(fd: &impl AsRawFd) -> Result<Msg, i32> {
    let mut buf = [0xa5; LEN];
    match read_raw(fd, buf.as_mut_ptr(), LEN) {
        n if n == LEN as i32 => Ok(Msg::from_bytes(buf)),
        n => Err(n),
    }
}

/// Adds a mapping.
#[track_caller]
pub fn update(fd: &impl AsRawFd, iova: u64, size: u64, uaddr: u64, perm: u8) -> Res {
    let msg = Msg::update(iova, size, uaddr, perm);
    must(write(fd, &msg), &msg)
}

/// Takes all mappings away that have a byte of the range.
#[track_caller]
pub fn invalidate(fd: &impl AsRawFd, iova: u64, size: u64) -> Res {
    let msg = Msg::invalidate(iova, size);
    must(write(fd, &msg), &msg)
}

#[track_caller]
fn must(got: i32, msg: &Msg) -> Res {
    if got == LEN as i32 {
        return Ok(());
    }
    let at = std::panic::Location::caller();
    let why = format!("{got} from the write of {msg:x?}");
    Err(crate::Fail::at(at.file(), at.line(), why))
}

/// Sets whether reads wait.
pub fn nonblocking(fd: &impl AsRawFd, on: bool) {
    let flags = if on { libc::O_NONBLOCK } else { 0 };
    // SAFETY: sets a flag of an open file.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) };
}

/// Another descriptor of the same open file.
pub fn dup(fd: &impl AsRawFd) -> Res<OwnedFd> {
    // SAFETY: the descriptor is open while it is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    Ok(fd.try_clone_to_owned()?)
}

/// A virtual IOMMU: the pages of a guest's first region, under their guest addresses, each for the device in
/// one of two places of its own. In the other place, no one may touch it. Where a page of this machine is larger than one of the
/// guest's, those that it has are in the same place.
///
/// A device that uses a mapping after it was taken away gets a fault.
pub struct Viommu {
    fd: OwnedFd,
    first: u64,
    /// The size of this machine's pages.
    size: u64,
    views: [Vec<u64>; 2],
    /// Which of its two places each page of this machine is in.
    place: Mutex<Vec<usize>>,
    /// Answers give the permission that was asked for, not all.
    pub exact: bool,
    /// How many misses were answered.
    pub misses: AtomicU32,
    stop: EventFd,
}

impl Viommu {
    pub fn new(g: &Guest) -> Res<Self> {
        let views = [g.mem.map_scattered()?, g.mem.map_scattered()?];
        for &page in &views[1] {
            protect(page, false);
        }
        Ok(Viommu {
            fd: dup(&g.net)?,
            first: g.mem.regions()[0].gpa,
            size: page_size() as u64,
            place: Mutex::new(vec![0; views[0].len()]),
            views,
            exact: false,
            misses: AtomicU32::new(0),
            stop: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Adds the mapping of the page that `iova` is in.
    pub fn map(&self, iova: u64, perm: u8) -> Res {
        let place = self.place.lock().unwrap();
        let (index, offset) = self.index(iova & !(PAGE - 1));
        check!(index < place.len(), "a miss at {iova:#x}");
        let page = self.views[place[index]][index] + offset;
        update(&self.fd, iova & !(PAGE - 1), PAGE, page, perm)
    }

    /// Which page of this machine has an address, and where in it.
    fn index(&self, iova: u64) -> (usize, u64) {
        let at = iova.wrapping_sub(self.first);
        ((at / self.size) as usize, at % self.size)
    }

    /// Takes the mapping of a page away and moves the page.
    pub fn take(&self, iova: u64) -> Res {
        let mut place = self.place.lock().unwrap();
        let (index, offset) = self.index(iova);
        invalidate(&self.fd, iova - offset, self.size)?;
        protect(self.views[place[index]][index], false);
        place[index] ^= 1;
        protect(self.views[place[index]][index], true);
        Ok(())
    }

    /// How many pages the guest has.
    pub fn pages(&self) -> usize {
        self.views[0].len() * self.size as usize / PAGE as usize
    }

    /// Answers misses until [`Self::stop`].
    pub fn serve(&self) -> Res {
        loop {
            let mut fds = [self.fd.as_raw_fd(), self.stop.as_raw_fd()].map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: two valid entries.
            unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
            if fds[1].revents != 0 {
                return Ok(());
            }
            if let Ok(msg) = read(&self.fd.as_fd()) {
                check_eq!(msg, Msg::miss(msg.iova, msg.perm), "what the device said");
                self.map(msg.iova, if self.exact { msg.perm } else { RW })?;
                self.misses.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Ends [`Self::serve`].
    pub fn stop(&self) {
        self.stop.write(1).expect("eventfd");
    }
}

fn protect(page: u64, on: bool) {
    let prot = if on {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_NONE
    };
    // SAFETY: the page is the device's, this process does not touch it.
    let r = unsafe { libc::mprotect(page as *mut _, page_size(), prot) };
    assert_eq!(r, 0, "mprotect");
}

/// Waits for a miss and reads it.
pub fn wait_miss(fd: &impl AsRawFd) -> Res<Msg> {
    let deadline = deadline();
    check!(readable(fd, deadline), "no miss came");
    read(fd).map_err(|e| crate::Fail(format!("{e} from the read of a miss")))
}
