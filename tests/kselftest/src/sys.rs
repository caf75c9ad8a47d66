// SPDX-License-Identifier: GPL-2.0

//! System calls that tests make directly: ioctls with wrong arguments, namespaces, modules.

use std::ffi::CString;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Error;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use crate::Fail;
use crate::Res;

const fn ioc(dir: u64, nr: u64, size: usize) -> u64 {
    dir << 30 | (size as u64) << 16 | 0xaf << 8 | nr
}

const fn io(nr: u64) -> u64 {
    ioc(0, nr, 0)
}

const fn iow<T>(nr: u64) -> u64 {
    ioc(1, nr, size_of::<T>())
}

const fn ior<T>(nr: u64) -> u64 {
    ioc(2, nr, size_of::<T>())
}

/// `struct vhost_vring_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    pub index: u32,
    pub num: u32,
}

/// `struct vhost_vring_file`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct VringFile {
    pub index: u32,
    pub fd: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Addr {
    pub index: u32,
    pub flags: u32,
    pub desc: u64,
    pub used: u64,
    pub avail: u64,
    pub log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    pub gpa: u64,
    pub size: u64,
    pub hva: u64,
    pub flags: u64,
}

pub const GET_FEATURES: u64 = ior::<u64>(0x00);
pub const SET_FEATURES: u64 = iow::<u64>(0x00);
pub const SET_OWNER: u64 = io(0x01);
pub const RESET_OWNER: u64 = io(0x02);
/// The structure ends in an array without a length.
pub const SET_MEM_TABLE: u64 = iow::<u64>(0x03);
pub const SET_LOG_BASE: u64 = iow::<u64>(0x04);
pub const SET_LOG_FD: u64 = iow::<i32>(0x07);
pub const NEW_WORKER: u64 = ior::<u32>(0x08);
pub const FREE_WORKER: u64 = iow::<u32>(0x09);
pub const SET_VRING_NUM: u64 = iow::<State>(0x10);
pub const SET_VRING_ADDR: u64 = iow::<Addr>(0x11);
pub const SET_VRING_BASE: u64 = iow::<State>(0x12);
pub const GET_VRING_BASE: u64 = ioc(3, 0x12, size_of::<State>());
pub const SET_VRING_ENDIAN: u64 = iow::<State>(0x13);
pub const GET_VRING_ENDIAN: u64 = iow::<State>(0x14);
pub const ATTACH_VRING_WORKER: u64 = iow::<[u32; 2]>(0x15);
pub const GET_VRING_WORKER: u64 = ioc(3, 0x16, size_of::<[u32; 2]>());
pub const SET_VRING_KICK: u64 = iow::<VringFile>(0x20);
pub const SET_VRING_CALL: u64 = iow::<VringFile>(0x21);
pub const SET_VRING_ERR: u64 = iow::<VringFile>(0x22);
pub const SET_VRING_BUSYLOOP_TIMEOUT: u64 = iow::<State>(0x23);
pub const GET_VRING_BUSYLOOP_TIMEOUT: u64 = iow::<State>(0x24);
pub const SET_BACKEND_FEATURES: u64 = iow::<u64>(0x25);
pub const GET_BACKEND_FEATURES: u64 = ior::<u64>(0x26);
pub const NET_SET_BACKEND: u64 = iow::<VringFile>(0x30);
pub const GET_FEATURES_ARRAY: u64 = ior::<u64>(0x83);
pub const SET_FEATURES_ARRAY: u64 = iow::<u64>(0x83);
pub const SET_FORK_FROM_OWNER: u64 = iow::<u8>(0x84);
pub const GET_FORK_FROM_OWNER: u64 = ior::<u8>(0x85);

/// The byte orders of `SET_VRING_ENDIAN`.
pub const LITTLE_ENDIAN: u32 = 0;
pub const BIG_ENDIAN: u32 = 1;

/// The raw ioctl: 0 or the errno.
pub fn ioctl<T: ?Sized>(fd: &impl AsRawFd, request: u64, arg: *const T) -> i32 {
    // SAFETY: the kernel checks every pointer, and what it may write to is the caller's.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, arg as *const u8 as usize) } {
        -1 => Error::last_os_error().raw_os_error().unwrap_or(-1),
        _ => 0,
    }
}

/// The bytes of a memory table.
pub fn mem_table(nregions: u32, padding: u32, regions: &[Region]) -> Vec<u64> {
    let mut v = vec![u64::from(nregions) | u64::from(padding) << 32];
    for r in regions {
        v.extend([r.gpa, r.size, r.hva, r.flags]);
    }
    v
}

/// Opens the device.
pub fn open() -> Res<File> {
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/vhost-net")?)
}

/// Waits until there is something to read, or an end of file. False: the time is over.
pub fn readable(fd: &impl AsRawFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut p = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let ms = left.as_millis().min(i32::MAX as u128) as i32;
        // SAFETY: `p` is one valid entry.
        match unsafe { libc::poll(&mut p, 1, ms) } {
            0 => return false,
            n if n > 0 => return true,
            _ => (),
        }
    }
}

/// Waits until the condition holds. False: the patience is over.
pub fn until(mut cond: impl FnMut() -> bool) -> bool {
    let deadline = crate::deadline();
    while !cond() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Moves the process into a network namespace of its own in which nothing speaks by itself.
pub fn own_network() -> Res {
    // SAFETY: the process has one thread.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(Error::last_os_error().into());
    }
    if std::env::var_os("COPIER").is_some() {
        // Sees everything, reads nothing, and is open as long as the process lives.
        std::mem::forget(crate::Peer::new(0, false)?);
    }
    for dev in ["all", "default"] {
        // A kernel without IPv6 has nothing to be silenced.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{dev}/disable_ipv6"), "1");
    }
    Ok(())
}

/// How many hold the module, if it is one.
pub fn module_users() -> Option<i64> {
    let s = std::fs::read_to_string("/sys/module/vhost_net/refcnt").ok()?;
    s.trim().parse().ok()
}

/// Unloads a module: 0 or the errno.
pub fn delete_module(name: &str) -> i32 {
    let name = CString::new(name).unwrap();
    // SAFETY: a valid name.
    let r = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    if r == 0 {
        return 0;
    }
    Error::last_os_error().raw_os_error().unwrap()
}

/// Unloads a module, when its last user is gone.
pub fn unload(name: &str) -> Res {
    let mut errno = 0;
    let unloaded = until(|| {
        errno = delete_module(name);
        errno == 0
    });
    crate::check!(unloaded, "rmmod {name}: errno {errno}");
    Ok(())
}

/// Loads the module in a file, with parameters. vhost_net gets those in VHOST_MODULE_PARAMETERS too.
pub fn load(file: &Path, parameters: &str) -> Res {
    let f = File::open(file)?;
    let more = match file.ends_with("vhost_net.ko") {
        true => std::env::var("VHOST_MODULE_PARAMETERS").unwrap_or_default(),
        false => String::new(),
    };
    let p = CString::new(format!("{parameters} {more}"))?;
    // SAFETY: the descriptor is open and the parameters are a valid string.
    let r = unsafe { libc::syscall(libc::SYS_finit_module, f.as_raw_fd(), p.as_ptr(), 0) };
    crate::check!(
        r == 0,
        "{} {parameters}: {}",
        file.display(),
        Error::last_os_error()
    );
    Ok(())
}

/// A module's file, which is where that of vhost_net is.
pub fn beside(name: &str) -> PathBuf {
    let path = std::env::var("VHOST_MODULE_PATH").unwrap_or_default();
    Path::new(&path).with_file_name(name)
}

/// Unloads a module that may be there.
pub fn without(name: &str) -> Res {
    match Path::new("/sys/module").join(name).exists() {
        true => unload(name),
        false => Ok(()),
    }
}

/// Loads vhost_net again, with parameters.
pub fn reload(parameters: &str) -> Res {
    let path = std::env::var("VHOST_MODULE_PATH");
    crate::check!(
        path.is_ok(),
        "VHOST_MODULE_PATH does not say where vhost_net.ko is"
    );
    unload("vhost_net")?;
    load(Path::new(&path.unwrap()), parameters)
}

/// Is it the C driver that is tested?
pub fn on_c() -> bool {
    std::env::var("VHOST_MODULE").as_deref() == Ok("c")
}

/// Is it the debug kernel that runs?
pub fn on_debug_kernel() -> bool {
    std::env::var("VM_KERNEL").as_deref() == Ok("debug")
}

/// What an option was set to as the kernel was built.
fn option(name: &str) -> Res<Option<String>> {
    let path = std::env::var("VM_CONFIG").map_err(|_| Fail("VM_CONFIG is not set".into()))?;
    let text = std::fs::read_to_string(path)?;
    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_string());
    Ok(text.lines().find_map(value))
}

/// Was the kernel built with this option, or has it as a module?
pub fn configured(name: &str) -> Res<bool> {
    Ok(matches!(option(name)?.as_deref(), Some("y" | "m")))
}

/// Where what the kernel takes for an address of user space ends (`TASK_SIZE_MAX`).
pub fn user_end() -> Res<u64> {
    if cfg!(target_arch = "x86_64") {
        // Without the last page, which is nobody's.
        return Ok((1 << 47) - 4096);
    }
    // As many bits as the kernel can, whatever the processor has.
    let bits = option("CONFIG_ARM64_VA_BITS")?.and_then(|bits| bits.parse::<u32>().ok());
    match bits {
        Some(bits) => Ok(1 << bits),
        None => crate::bail!("no CONFIG_ARM64_VA_BITS"),
    }
}

/// The size of this machine's pages, in which memory is mapped and protected: 4096 bytes, or more on some. A bit of the log, and
/// what a VMM maps for a device, are of 4096 bytes on each.
pub fn page_size() -> usize {
    // SAFETY: asks for a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    size.try_into().expect("the page size")
}

/// The largest piece of memory that the kernel gives out, in bytes.
pub fn largest_allocation() -> Res<usize> {
    // An order that only some processors can choose.
    let order = match option("CONFIG_ARCH_FORCE_MAX_ORDER")? {
        Some(order) => order.parse()?,
        None => 10,
    };
    Ok(page_size() << order)
}

/// The names of this process's threads.
pub fn threads() -> Res<Vec<String>> {
    let mut v = vec![];
    for t in std::fs::read_dir("/proc/self/task")? {
        if let Ok(s) = std::fs::read_to_string(t?.path().join("comm")) {
            v.push(s.trim_end().to_string());
        }
    }
    Ok(v)
}

/// The folder in /proc of a thread of this process whose name begins so.
pub fn thread_named(start: &str) -> Res<PathBuf> {
    for t in std::fs::read_dir("/proc/self/task")? {
        let t = t?.path();
        if std::fs::read_to_string(t.join("comm")).is_ok_and(|name| name.starts_with(start)) {
            return Ok(t);
        }
    }
    crate::bail!("no thread {start}...")
}

/// Does a thread of this process sleep in an ioctl?
pub fn asleep_in_ioctl(thread: i32) -> bool {
    let path = format!("/proc/self/task/{thread}/syscall");
    let call = std::fs::read_to_string(path).unwrap_or_default();
    call.starts_with(&format!("{} ", libc::SYS_ioctl))
}

/// Runs `f` in a child process; what it returns is the child's exit status, which is returned.
pub fn in_child(f: impl FnOnce() -> i32) -> Res<i32> {
    // SAFETY: the child calls `f` and ends; `f` may not rely on other threads.
    let pid = unsafe { libc::fork() };
    crate::check!(pid >= 0, "fork: {}", Error::last_os_error());
    if pid == 0 {
        let r = f();
        // SAFETY: ends the child.
        unsafe { libc::_exit(r) }
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    if unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
        return Err(Error::last_os_error().into());
    }
    crate::check!(
        libc::WIFEXITED(status),
        "the child died: status {status:#x}"
    );
    Ok(libc::WEXITSTATUS(status))
}
