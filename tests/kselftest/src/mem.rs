// SPDX-License-Identifier: GPL-2.0

//! The guest's memory: regions of guest physical addresses, each mapped at its own place.

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::ptr::null_mut;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionInfo;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryMmap;
use vm_memory::GuestRegionMmap;
use vm_memory::MmapRegion;

use crate::sys::page_size;
use crate::Res;

/// Where the only region of an ordinary guest starts.
pub const BASE: u64 = 0x10_0000;

/// Guest physical memory.
///
/// It lives in a memory file, so that a test can map it again somewhere else. The mappings of two
/// regions never touch: whoever runs over the end of one gets a fault, not the next region.
pub struct Mem {
    file: File,
    regions: Vec<Mapped>,
    next: AtomicU64,
}

/// One region and where it is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    pub gpa: u64,
    pub size: u64,
    pub hva: u64,
}

impl Mem {
    /// Memory of these regions, each an address and a size of whole pages. Allocation starts in the
    /// first.
    pub fn new(regions: &[(u64, u64)]) -> Res<Self> {
        // SAFETY: a valid name.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::last_os_error().into());
        }
        // SAFETY: the descriptor is new.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(regions.iter().map(|r| r.1).sum())?;
        let next = AtomicU64::new(regions[0].0);
        let mut mem = Mem {
            file,
            regions: vec![],
            next,
        };
        mem.regions = regions
            .iter()
            .map(|&(gpa, size)| Mapped { gpa, size, hva: 0 })
            .collect();
        mem.regions = mem.map_again()?;
        Ok(mem)
    }

    /// Memory of one region, of which all is mapped at `hva` already, as the file's start.
    pub fn mapped(file: File, gpa: u64, size: u64, hva: u64) -> Self {
        Mem {
            file,
            regions: vec![Mapped { gpa, size, hva }],
            next: AtomicU64::new(gpa),
        }
    }

    /// Maps the same memory once more, at other addresses.
    pub fn map_again(&self) -> Res<Vec<Mapped>> {
        let page = page_size();
        let mut offset = 0;
        let mut v = vec![];
        for r in &self.regions {
            let size = r.size as usize;
            // SAFETY: a new mapping with a guard page at each end, then one over its middle.
            unsafe {
                let anon = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                let p = libc::mmap(null_mut(), size + 2 * page, libc::PROT_NONE, anon, -1, 0);
                if p == libc::MAP_FAILED {
                    return Err(Error::last_os_error().into());
                }
                let p = libc::mmap(
                    p.add(page),
                    size,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    self.file.as_raw_fd(),
                    offset,
                );
                if p == libc::MAP_FAILED {
                    return Err(Error::last_os_error().into());
                }
                v.push(Mapped {
                    hva: p as u64,
                    ..*r
                });
            }
            offset += size as i64;
        }
        Ok(v)
    }

    /// Maps the pages of the first region once more, each apart from all others and in another order.
    pub fn map_scattered(&self) -> Res<Vec<u64>> {
        let page = page_size();
        let pages = self.regions[0].size as usize / page;
        assert!(pages.is_power_of_two());
        // SAFETY: a new mapping, of which some pages are mapped over.
        unsafe {
            let anon = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let size = (2 * pages + 1) * page;
            let start = libc::mmap(null_mut(), size, libc::PROT_NONE, anon, -1, 0);
            if start == libc::MAP_FAILED {
                return Err(Error::last_os_error().into());
            }
            let mut v = vec![];
            for i in 0..pages {
                let slot = 2 * (i * 1637 % pages) + 1;
                let p = libc::mmap(
                    start.add(slot * page),
                    page,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    self.file.as_raw_fd(),
                    (i * page) as i64,
                );
                if p == libc::MAP_FAILED {
                    return Err(Error::last_os_error().into());
                }
                v.push(p as u64);
            }
            Ok(v)
        }
    }

    /// The file in which it lives, one region behind the other.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The regions and where this process sees them.
    pub fn regions(&self) -> &[Mapped] {
        &self.regions
    }

    /// The table that makes the driver see what `regions` says.
    pub fn table(regions: &[Mapped]) -> Vec<VhostUserMemoryRegionInfo> {
        let info = |r: &Mapped| VhostUserMemoryRegionInfo {
            guest_phys_addr: r.gpa,
            memory_size: r.size,
            userspace_addr: r.hva,
            mmap_offset: 0,
            mmap_handle: -1,
        };
        regions.iter().map(info).collect()
    }

    /// The same memory as rust-vmm sees it.
    pub fn as_vm_memory(&self) -> Res<Arc<GuestMemoryMmap<()>>> {
        let mut v = vec![];
        let mut regions = self.regions.clone();
        regions.sort_by_key(|r| r.gpa);
        for r in &regions {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the region is mapped, and stays so until the process ends.
            let m = unsafe {
                MmapRegion::build_raw(r.hva as *mut u8, r.size as usize, prot, libc::MAP_SHARED)
            }?;
            v.push(GuestRegionMmap::new(m, GuestAddress(r.gpa)).unwrap());
        }
        Ok(Arc::new(GuestMemoryMmap::from_regions(v)?))
    }

    /// Takes memory from the first region, from below. Never given back.
    pub fn alloc(&self, len: usize, align: u64) -> u64 {
        let r = self.regions[0];
        let at = self.next.load(Ordering::Relaxed).next_multiple_of(align);
        let end = at + len as u64;
        assert!(end <= r.gpa + r.size, "the test's memory is too small");
        self.next.store(end, Ordering::Relaxed);
        at
    }

    /// Where a byte is mapped, and how many follow it in its region.
    pub fn hva(&self, gpa: u64) -> (*mut u8, usize) {
        let r = self
            .regions
            .iter()
            .find(|r| gpa >= r.gpa && gpa - r.gpa < r.size);
        let r = r.unwrap_or_else(|| panic!("no guest memory at {gpa:#x}"));
        (
            (r.hva + gpa - r.gpa) as *mut u8,
            (r.size - (gpa - r.gpa)) as usize,
        )
    }

    /// Writes guest memory, across regions.
    pub fn write(&self, mut gpa: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (p, left) = self.hva(gpa);
            let n = left.min(data.len());
            // SAFETY: `n` bytes are mapped at `p`.
            unsafe { p.copy_from(data.as_ptr(), n) };
            data = &data[n..];
            gpa += n as u64;
        }
    }

    /// Reads guest memory, across regions.
    pub fn read(&self, mut gpa: u64, len: usize) -> Vec<u8> {
        let mut v = vec![0; len];
        let mut data = &mut v[..];
        while !data.is_empty() {
            let (p, left) = self.hva(gpa);
            let n = left.min(data.len());
            // SAFETY: `n` bytes are mapped at `p`.
            unsafe { p.copy_to(data.as_mut_ptr(), n) };
            data = &mut data[n..];
            gpa += n as u64;
        }
        v
    }

    /// Fills guest memory with one byte, across regions.
    pub fn fill(&self, gpa: u64, len: usize, byte: u8) {
        self.write(gpa, &vec![byte; len]);
    }
}
