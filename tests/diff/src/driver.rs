// SPDX-License-Identifier: GPL-2.0

//! Runs scripts with one driver or the other, in processes that each keep to one processor.

use std::io::Error;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use kselftest::bail;
use kselftest::sys;
use kselftest::Fail;
use kselftest::Res;

use crate::machine::priority;
use crate::machine::Machine;
use crate::script;
use crate::script::Script;

/// The drivers, as the names of their modules' files.
pub const DRIVERS: [&str; 2] = ["c", "rust"];

/// How many processes a processor has: to close a device is mostly to wait for other processors. All have
/// the same priority, below that of any worker, so none is noticed by another.
const CHILDREN: usize = 2;
/// How long a script may take. One takes milliseconds, unless the machine has no time for the VM; after this its process is
/// ended.
const LIMIT: Duration = Duration::from_secs(60);
/// Above that of what is watched.
const WATCH_PRIORITY: i32 = 60;

/// The drivers, one of which is loaded, and the processes that run scripts.
pub struct Drivers {
    folder: PathBuf,
    loaded: usize,
    children: Vec<Child>,
}

impl Drivers {
    /// The C driver is loaded, and the files of both are in the folder.
    pub fn new(folder: PathBuf) -> Res<Self> {
        // What runs here has real-time priority for as long as it likes, and a device is gone quickly.
        std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1")?;
        std::fs::write("/sys/kernel/rcu_expedited", "1")?;
        let mut drivers = Drivers {
            folder,
            loaded: 0,
            children: vec![],
        };
        let cpus = std::thread::available_parallelism()?.get();
        for i in 0..cpus * CHILDREN {
            drivers.children.push(Child::start(i % cpus)?);
        }
        priority(WATCH_PRIORITY)?;
        Ok(drivers)
    }

    /// Loads a driver in the other's place.
    pub fn load(&mut self, driver: usize) -> Res {
        if driver != self.loaded {
            sys::unload("vhost_net")?;
            sys::load(&self.folder.join(DRIVERS[driver]).with_extension("ko"), "")?;
            self.loaded = driver;
        }
        Ok(())
    }

    /// Runs scripts with the driver that is loaded. Returns what was seen.
    pub fn run(&mut self, scripts: &[Script]) -> Res<Vec<String>> {
        let mut seen = vec![String::new(); scripts.len()];
        let mut next = 0;
        let mut left = scripts.len();
        while left > 0 {
            for child in &mut self.children {
                if child.task.is_none() && next < scripts.len() {
                    child.give(next, &scripts[next])?;
                    next += 1;
                }
            }
            let mut fds: Vec<_> = (self.children.iter())
                .map(|child| libc::pollfd {
                    fd: child.stream.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                })
                .collect();
            // SAFETY: the array is of that length.
            unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as u64, 1000) };
            for (child, fd) in self.children.iter_mut().zip(fds) {
                let Some((number, since)) = child.task else {
                    continue;
                };
                if fd.revents == 0 && since.elapsed() < LIMIT {
                    continue;
                }
                left -= 1;
                child.task = None;
                let at = child.action.load(Ordering::Relaxed);
                seen[number] = match fd.revents {
                    0 => format!("hung at action {at}\n"),
                    _ => receive(&mut child.stream).unwrap_or(format!("died at action {at}\n")),
                };
                if !seen[number].ends_with("bye\n") {
                    if !child.end() {
                        print!("{}", script::print(&scripts[number]));
                        bail!(
                            "the process that ran this can't be ended: {}",
                            seen[number].trim()
                        );
                    }
                    *child = Child::start(child.cpu)?;
                }
            }
        }
        Ok(seen)
    }
}

impl Drop for Drivers {
    fn drop(&mut self) {
        for child in &self.children {
            child.end();
        }
    }
}

/// A process that runs scripts.
struct Child {
    cpu: usize,
    pid: i32,
    stream: UnixStream,
    /// The number of the script that it runs, and since when.
    task: Option<(usize, Instant)>,
    /// The number of the action that it is at.
    action: &'static AtomicUsize,
}

/// Memory for a number, shared with the children that are made after this.
fn shared() -> Res<&'static AtomicUsize> {
    let (rw, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new mapping, all zeroes, that is never unmapped.
    unsafe {
        match libc::mmap(std::ptr::null_mut(), sys::page_size(), rw, flags, -1, 0) {
            libc::MAP_FAILED => Err(Error::last_os_error().into()),
            page => Ok(&*page.cast()),
        }
    }
}

impl Child {
    fn start(cpu: usize) -> Res<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        let action = shared()?;
        // SAFETY: this process has one thread.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(Error::last_os_error().into());
        }
        if pid == 0 {
            drop(stream);
            if let Err(Fail(why)) = work(cpu, theirs, action) {
                println!("diff: {why}");
            }
            // SAFETY: ends the process without running the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        Ok(Child {
            cpu,
            pid,
            stream,
            task: None,
            action,
        })
    }

    fn give(&mut self, number: usize, script: &Script) -> Res {
        self.task = Some((number, Instant::now()));
        send(&mut self.stream, &script::print(script))
    }

    /// Returns whether it ended: one that waits in the kernel for what does not come does not.
    fn end(&self) -> bool {
        let start = Instant::now();
        // SAFETY: it is our child, which nobody has waited for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::waitpid(self.pid, std::ptr::null_mut(), libc::WNOHANG) == 0 {
                if start.elapsed() > LIMIT {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        true
    }
}

fn send(stream: &mut UnixStream, text: &str) -> Res {
    let mut message = text.len().to_ne_bytes().to_vec();
    message.extend(text.as_bytes());
    Ok(stream.write_all(&message)?)
}

fn receive(stream: &mut UnixStream) -> Res<String> {
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    let mut text = vec![0; usize::from_ne_bytes(len)];
    stream.read_exact(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What a child does, until it is ended.
fn work(cpu: usize, mut stream: UnixStream, action: &AtomicUsize) -> Res {
    // SAFETY: all zero is a valid set, and the set is of that size.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        if libc::sched_setaffinity(0, size_of_val(&set), &set) != 0 {
            bail!("no processor {cpu}: {}", Error::last_os_error());
        }
    }
    let mut machine = Machine::new()?;
    loop {
        let text = receive(&mut stream)?;
        let script = script::parse(&text).map_err(Fail)?;
        let seen = machine.run(&script, action)?;
        send(&mut stream, &seen)?;
    }
}
