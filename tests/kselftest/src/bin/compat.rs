// SPDX-License-Identifier: GPL-2.0

//! A VMM that is a 32-bit process.
//!
//! It is a program of some bytes that makes the system calls that it is told, so that all the tests are here. It shares
//! the guest's memory and inherits the files.

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::IntoRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::mem::BASE;
use kselftest::sys::*;
use kselftest::*;

// The program reads the number and the arguments of a system call from file 0, makes it, and writes its result to file 1.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    r#"
    .pushsection .rodata
    .code32
program32:
    sub esp, 32
2:  mov eax, 3
    xor ebx, ebx
    mov ecx, esp
    mov edx, 28
    int 0x80
    cmp eax, 28
    jne 3f
    mov eax, [esp]
    mov ebx, [esp + 4]
    mov ecx, [esp + 8]
    mov edx, [esp + 12]
    mov esi, [esp + 16]
    mov edi, [esp + 20]
    mov ebp, [esp + 24]
    int 0x80
    mov [esp], eax
    mov eax, 4
    mov ebx, 1
    mov ecx, esp
    mov edx, 4
    int 0x80
    jmp 2b
3:  mov eax, 1
    xor ebx, ebx
    int 0x80
program32_end:
    .code64
    .popsection
"#
);

#[cfg(target_arch = "x86_64")]
fn program() -> Vec<u8> {
    extern "C" {
        static program32: u8;
        static program32_end: u8;
    }
    // SAFETY: both are in the same section, in this order.
    unsafe {
        let start = &raw const program32;
        let len = (&raw const program32_end).offset_from(start) as usize;
        std::slice::from_raw_parts(start, len).to_vec()
    }
}

/// The processor that it is for (`e_machine`), and the flags: EABI 5 of Arm, none of the 386.
#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, u32) = (3, 0);
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, u32) = (40, 5 << 24);

/// The same in A32, which an assembler for A64 does not know.
#[cfg(target_arch = "aarch64")]
fn program() -> Vec<u8> {
    const CODE: [u32; 26] = [
        0xe24d_d020, // sub sp, sp, #32
        0xe3a0_7003, // 1: mov r7, #3
        0xe3a0_0000, // mov r0, #0
        0xe1a0_100d, // mov r1, sp
        0xe3a0_201c, // mov r2, #28
        0xef00_0000, // svc #0
        0xe350_001c, // cmp r0, #28
        0x1a00_000e, // bne 2f
        0xe59d_7000, // ldr r7, [sp]
        0xe59d_0004, // ldr r0, [sp, #4]
        0xe59d_1008, // ldr r1, [sp, #8]
        0xe59d_200c, // ldr r2, [sp, #12]
        0xe59d_3010, // ldr r3, [sp, #16]
        0xe59d_4014, // ldr r4, [sp, #20]
        0xe59d_5018, // ldr r5, [sp, #24]
        0xef00_0000, // svc #0
        0xe58d_0000, // str r0, [sp]
        0xe3a0_7004, // mov r7, #4
        0xe3a0_0001, // mov r0, #1
        0xe1a0_100d, // mov r1, sp
        0xe3a0_2004, // mov r2, #4
        0xef00_0000, // svc #0
        0xeaff_ffe9, // b 1b
        0xe3a0_7001, // 2: mov r7, #1
        0xe3a0_0000, // mov r0, #0
        0xef00_0000, // svc #0
    ];
    CODE.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// System calls, by their 32-bit numbers, which both have.
const OPEN: u32 = 5;
const IOCTL: u32 = 54;
const MMAP2: u32 = 192;

/// Where the 32-bit process has the guest's memory.
const PLACE: u64 = 0x2000_0000;

const SIZE: u64 = 16 << 20;

/// The program as an ELF file.
fn elf() -> Vec<u8> {
    const AT: u32 = 0x0804_8000;
    let code = program();
    let len = 84 + code.len() as u32;
    let half = |v: u16| v.to_le_bytes();
    let word = |v: u32| v.to_le_bytes();
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for that processor.
    file.extend([half(2), half(MACHINE.0)].concat());
    // Version, entry, program headers, no section headers, flags.
    file.extend([word(1), word(AT + 84), word(52), word(0), word(MACHINE.1)].concat());
    // Sizes and numbers of the headers.
    file.extend([half(52), half(32), half(1), half(0), half(0), half(0)].concat());
    // One segment: all of the file, to be read and executed.
    let segment = [1, 0, AT, AT, len, len, 5, page_size() as u32].map(word);
    file.extend(segment.concat());
    file.extend(code);
    file
}

/// A file that a child inherits under this number.
fn inherited(f: &impl AsRawFd) -> Res<OwnedFd> {
    // SAFETY: the descriptor is open; the copy is new.
    unsafe {
        let fd = libc::dup(f.as_raw_fd());
        check!(fd >= 0, "dup: {}", std::io::Error::last_os_error());
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A process that has the device open, and what it shares with this one.
struct Process {
    mem: Arc<Mem>,
    /// Where it has the guest's memory.
    base: u64,
    /// For its arguments: the last page, so that one that is too long leaves the memory soon.
    scratch: u64,
    device: i32,
    /// Empty for this process itself.
    pipe: Option<UnixStream>,
}

impl Process {
    /// This process, or a 32-bit one with all files that can be inherited.
    fn new(mem: &Arc<Mem>, narrow: bool) -> Res<Self> {
        let mut p = Process {
            mem: mem.clone(),
            base: mem.regions()[0].hva,
            scratch: BASE + SIZE - 4096,
            device: -1,
            pipe: None,
        };
        if !narrow {
            p.device = open()?.into_raw_fd();
            return Ok(p);
        }
        let file = inherited(mem.file())?;
        // SAFETY: a valid name; the descriptor is new.
        let mut program = unsafe {
            let fd = libc::memfd_create(c"program32".as_ptr(), 0);
            check!(fd >= 0, "memfd: {}", std::io::Error::last_os_error());
            File::from_raw_fd(fd)
        };
        program.write_all(&elf())?;
        let (here, there) = UnixStream::pair()?;
        Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .stdin(OwnedFd::from(there.try_clone()?))
            .stdout(OwnedFd::from(there))
            .spawn()?;
        p.pipe = Some(here);
        p.base = PLACE;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u32;
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u32;
        let fd = file.as_raw_fd() as u32;
        let at = p.call([MMAP2, PLACE as u32, SIZE as u32, protection, flags, fd, 0])?;
        check_eq!(at as u64, PLACE, "mmap2");
        let path = p.put(b"/dev/vhost-net\0") as u32;
        p.device = p.call([OPEN, path, libc::O_RDWR as u32, 0, 0, 0, 0])?;
        check!(p.device >= 0, "open: {}", p.device);
        Ok(p)
    }

    /// A system call of the 32-bit process.
    fn call(&mut self, registers: [u32; 7]) -> Res<i32> {
        let pipe = self.pipe.as_mut().ok_or(Fail("not 32-bit".into()))?;
        pipe.write_all(&registers.map(u32::to_ne_bytes).concat())?;
        let mut result = [0; 4];
        pipe.read_exact(&mut result)?;
        Ok(i32::from_ne_bytes(result))
    }

    /// Puts an argument where the process can point to it.
    fn put(&self, bytes: &[u8]) -> u64 {
        self.mem.write(self.scratch, bytes);
        self.scratch - BASE + self.base
    }

    /// An ioctl: 0 or the errno.
    fn point(&mut self, request: u64, pointer: u64) -> Res<i32> {
        if self.pipe.is_none() {
            return Ok(ioctl(&self.device, request, pointer as *const u8));
        }
        let device = self.device as u32;
        Ok(-self.call([IOCTL, device, request as u32, pointer as u32, 0, 0, 0])?)
    }

    /// An ioctl with an argument in words, and what it made of it.
    fn ioctl(&mut self, request: u64, words: &[u64]) -> Res<(i32, Vec<u64>)> {
        let bytes: Vec<_> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let pointer = self.put(&bytes);
        let result = self.point(request, pointer)?;
        let after = self.mem.read(self.scratch, bytes.len());
        let after = after
            .chunks(8)
            .map(|w| u64::from_le_bytes(w.try_into().unwrap()));
        Ok((result, after.collect()))
    }

    /// As above, where nothing may go wrong.
    fn good(&mut self, request: u64, words: &[u64]) -> Res {
        check_eq!(self.ioctl(request, words)?.0, 0, "{request:#x}");
        Ok(())
    }
}

/// Two 32-bit words.
fn two(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

/// Where a ring is, for SET_VRING_ADDR.
fn address(index: u32, ring: &Ring, base: u64) -> [u64; 5] {
    let at = |gpa: u64| gpa - BASE + base;
    let (desc, used, avail) = (at(ring.desc), at(ring.used), at(ring.avail));
    [two(index, 0), desc, used, avail, 0]
}

/// Every request with good and bad arguments, in this order. Addresses are those that a process with the guest's memory
/// at `base` has.
fn requests(base: u64, ring: &Ring, tap: u32) -> Vec<(&'static str, u64, Vec<u64>)> {
    let event = ring.kick.as_raw_fd() as u32;
    let region = |gpa, size, hva, flags| [gpa, size, hva, flags];
    let mut v = vec![];
    let mut add = |name, request, words: &[u64]| v.push((name, request, words.to_vec()));
    for owned in [false, true] {
        if owned {
            add("set fork", SET_FORK_FROM_OWNER, &[2]);
            add("set fork", SET_FORK_FROM_OWNER, &[0]);
            add("set fork", SET_FORK_FROM_OWNER, &[1]);
            add("owner", SET_OWNER, &[0]);
        }
        add("get features", GET_FEATURES, &[0]);
        add("features", SET_FEATURES, &[0]);
        add("features", SET_FEATURES, &[VERSION_1 | EVENT_IDX]);
        add("features", SET_FEATURES, &[1 << 63]);
        for count in [0, 1, 2, 3, 5] {
            add("get array", GET_FEATURES_ARRAY, &[count, 5, 5, 5, 5, 5]);
            add("array", SET_FEATURES_ARRAY, &[count, VERSION_1, 0, 0, 0, 0]);
            add("array", SET_FEATURES_ARRAY, &[count, 0, 2, 0, 0, 0]);
            add("array", SET_FEATURES_ARRAY, &[count, 0, 0, 0, 0, 1]);
        }
        for count in [1024, 1 << 32, 1 << 40, 1 << 61, u64::MAX] {
            add("array too long", SET_FEATURES_ARRAY, &[count]);
            add("get array too long", GET_FEATURES_ARRAY, &[count]);
        }
        add("get backend features", GET_BACKEND_FEATURES, &[0]);
        for features in [0, 1, 2, 4, u64::MAX] {
            add("backend features", SET_BACKEND_FEATURES, &[features]);
        }
        let table =
            |count: u32, regions: &[[u64; 4]]| [vec![two(count, 0)], regions.concat()].concat();
        let good = region(BASE, SIZE, base, 0);
        for words in [
            table(0, &[]),
            table(1, &[good]),
            table(1, &[region(BASE, 0, base, 0)]),
            table(1, &[region(BASE, SIZE, base, 1)]),
            table(1, &[region(BASE, u64::MAX, base, 0)]),
            table(1, &[region(BASE, SIZE, u64::MAX - SIZE, 0)]),
            table(1, &[region(BASE, SIZE, 1 << 33, 0)]),
            table(2, &[good, good]),
            table(2, &[good, region(1 << 40, 4096, base, 0)]),
            vec![two(1, 1), BASE, SIZE, base, 0],
            table(u32::MAX, &[good]),
            table(1, &[good]),
        ] {
            add("memory table", SET_MEM_TABLE, &words);
        }
        for index in [0, 1, 2, u32::MAX] {
            for num in [256, 0, 3, 65536] {
                add("num", SET_VRING_NUM, &[two(index, num)]);
            }
            for num in [65535, 65536, 5] {
                add("base", SET_VRING_BASE, &[two(index, num)]);
                add("get base", GET_VRING_BASE, &[two(index, 77)]);
            }
            for num in [0, 1, 2] {
                add("endian", SET_VRING_ENDIAN, &[two(index, num)]);
                add("get endian", GET_VRING_ENDIAN, &[two(index, 77)]);
            }
            for num in [50, u32::MAX, 0] {
                add("busy poll", SET_VRING_BUSYLOOP_TIMEOUT, &[two(index, num)]);
                add(
                    "get busy poll",
                    GET_VRING_BUSYLOOP_TIMEOUT,
                    &[two(index, 77)],
                );
            }
            for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
                for fd in [event, 9999, u32::MAX] {
                    add("eventfd", request, &[two(index, fd)]);
                }
            }
            let [first, desc, used, avail, log] = address(index, ring, base);
            for words in [
                [first, desc, used, avail, log],
                [first, desc + 1, used, avail, log],
                [first, desc, used + 2, avail, log],
                [first, desc, used, avail + 1, log],
                [first | 1 << 33, desc, used, avail, log],
                [first, 1 << 63, used, avail, log],
                [first, desc, used, avail, log],
            ] {
                add("address", SET_VRING_ADDR, &words);
            }
            for fd in [event, 9999, -2i32 as u32, u32::MAX, tap, tap, u32::MAX] {
                add("backend", NET_SET_BACKEND, &[two(index, fd)]);
            }
        }
        for log in [0, base, u64::MAX, 1 << 33] {
            add("log", SET_LOG_BASE, &[log]);
        }
        for fd in [event, 9999, u32::MAX] {
            add("log eventfd", SET_LOG_FD, &[two(fd, 0)]);
        }
        add("get fork", GET_FORK_FROM_OWNER, &[0x5555_5555_5555_5555]);
        add("set fork", SET_FORK_FROM_OWNER, &[0]);
        add("no such", 0xaf7e, &[0]);
        add("no such", 0x4008_af7f, &[0]);
        add("not for this device", 0x4008_af40, &[0]);
    }
    add("owner", SET_OWNER, &[0]);
    add("reset", RESET_OWNER, &[0]);
    add("reset", RESET_OWNER, &[0]);
    v
}

/// What a 64-bit process gets, a 32-bit one gets.
fn same_results() -> Res {
    let mem = Arc::new(Mem::new(&[(BASE, SIZE)])?);
    let ring = Ring::new(&mem, 256, &Config::default())?;
    let tap = Tap::new("tap0", 12)?;
    let tap = inherited(&tap.fd)?;
    let mut wide = Process::new(&mem, false)?;
    let mut narrow = Process::new(&mem, true)?;
    let fd = tap.as_raw_fd() as u32;
    let w = requests(wide.base, &ring, fd);
    let n = requests(narrow.base, &ring, fd);
    let mut good = 0;
    let mut before = &"";
    for (w, n) in w.iter().zip(&n) {
        let (name, request, words) = n;
        let (want, want_words) = wide.ioctl(w.1, &w.2)?;
        let (got, got_words) = narrow.ioctl(*request, words)?;
        check_eq!(got, want, "{name} {words:x?}");
        // What was not changed may be an address.
        if want_words != w.2 {
            check_eq!(got_words, want_words, "{name} {words:x?}");
        } else {
            check_eq!(&got_words, words, "{name}");
        }
        good += u32::from(got == 0);
        if std::mem::replace(&mut before, name) == name {
            continue;
        }
        // Pointers to nothing, to the end of what a 32-bit process can have, and to the end of the memory.
        for pointer in [0, 8, 0xffff_f000, 0xffff_fffc] {
            let want = wide.point(w.1, pointer)?;
            check_eq!(
                narrow.point(*request, pointer)?,
                want,
                "{name} at {pointer:#x}"
            );
        }
        let end = |p: &Process| p.base + SIZE - 4;
        let want = wide.point(w.1, end(&wide))?;
        let pointer = end(&narrow);
        check_eq!(narrow.point(*request, pointer)?, want, "{name} at the end");
    }
    println!("# {} requests, {good} of them good", n.len());
    check!(good > 100, "only {good} were good");
    Ok(())
}

/// A device that a 32-bit process set up moves packets.
fn traffic() -> Res {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX | MRG_RXBUF, 0] {
        let cfg = Config::with(features);
        let mem = Arc::new(Mem::new(&[(BASE, SIZE)])?);
        let tap = Tap::new("tap0", cfg.hdr())?;
        let mut peer = Peer::new(tap.index, false)?;
        let mut rx = Ring::new(&mem, 256, &cfg)?;
        let mut tx = Ring::new(&mem, 256, &cfg)?;
        let fd = inherited(&tap.fd)?;
        let mut p = Process::new(&mem, true)?;
        p.good(SET_OWNER, &[0])?;
        p.good(SET_FEATURES_ARRAY, &[3, features, 0, 0])?;
        p.good(SET_MEM_TABLE, &[1, BASE, SIZE, PLACE, 0])?;
        for (index, ring) in [(RX as u32, &rx), (TX as u32, &tx)] {
            p.good(SET_VRING_NUM, &[two(index, 256)])?;
            p.good(SET_VRING_BASE, &[two(index, 0)])?;
            p.good(SET_VRING_ADDR, &address(index, ring, PLACE))?;
            for (request, event) in [
                (SET_VRING_KICK, &ring.kick),
                (SET_VRING_CALL, &ring.call),
                (SET_VRING_ERR, &ring.err),
            ] {
                p.good(request, &[two(index, event.as_raw_fd() as u32)])?;
            }
            p.good(NET_SET_BACKEND, &[two(index, fd.as_raw_fd() as u32)])?;
        }
        let hdr = cfg.hdr();
        let at = mem.alloc(hdr + 9000, 4096);
        for (i, len) in [60, 1514, 5000, 9000]
            .into_iter()
            .cycle()
            .take(100)
            .enumerate()
        {
            let f = frame(i as u32, len);
            mem.fill(at, hdr, 0);
            mem.write(at + hdr as u64, &f);
            tx.add(&[Seg::r(at, hdr + len)]);
            tx.submit();
            tx.wait()?;
            same(&peer.recv()?, &f, "sent packet")?;
            mem.fill(at, hdr + 9000, 0);
            rx.add(&[Seg::w(at, hdr + 9000)]);
            rx.submit();
            peer.send(&f)?;
            check_eq!(rx.wait()?.len as usize, hdr + len);
            same(&mem.read(at + hdr as u64, len), &f, "received packet")?;
        }
        let state = p.ioctl(GET_VRING_BASE, &[two(TX as u32, 0)])?;
        check_eq!(state, (0, vec![two(TX as u32, 100)]));
        for index in [RX, TX] {
            p.good(NET_SET_BACKEND, &[two(index as u32, u32::MAX)])?;
        }
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[("same_results", same_results), ("traffic", traffic)];
    ktap::run(TESTS)
}
