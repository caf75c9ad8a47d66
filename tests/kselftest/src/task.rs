// SPDX-License-Identifier: GPL-2.0

//! Processes and threads, as others see them: children with a time limit, and what the scheduler says of a thread.

use std::fs::read_to_string;
use std::io::Error;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use crate::bail;
use crate::check;
use crate::check_eq;
use crate::deadline;
use crate::sys;
use crate::Fail;
use crate::Guest;
use crate::Res;

/// A child process, which is killed when it is dropped.
pub struct Child {
    pub pid: i32,
    ended: bool,
}

impl Child {
    /// Runs `f` in a child, whose status is 0 if all went well. This process has one thread.
    pub fn new(f: impl FnOnce() -> Res) -> Res<Self> {
        // SAFETY: the child calls `f` and ends; there are no other threads whose locks it could need.
        let pid = unsafe { libc::fork() };
        check!(pid >= 0, "fork: {}", Error::last_os_error());
        if pid == 0 {
            // SAFETY: a plain system call on this process.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let result = f();
            if let Err(Fail(why)) = &result {
                println!("# the child: {why}");
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        Ok(Child { pid, ended: false })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        if !self.ended {
            // SAFETY: a child that was not waited for.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// Its status when it has ended, stopped or goes on; nothing if that does not happen within `limit`.
    pub fn wait(&mut self, flags: i32, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        while !self.ended {
            let mut status = 0;
            // SAFETY: `status` is a valid place for the result.
            if unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG | flags) } == self.pid {
                self.ended = libc::WIFEXITED(status) || libc::WIFSIGNALED(status);
                return Some(status);
            }
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ended {
            self.signal(libc::SIGKILL);
            self.wait(0, crate::patience());
        }
    }
}

/// A field of a `status` file of /proc.
fn field(status: &str, key: &str) -> Option<String> {
    let line = status.lines().find_map(|l| l.strip_prefix(key))?;
    Some(line.strip_prefix(':')?.trim().to_string())
}

/// The folder in /proc of the thread that works for the process: one of its own, or a kernel thread.
pub fn worker_of(pid: i32, kernel_thread: bool) -> Res<PathBuf> {
    let name = format!("vhost-{pid}");
    let folder = match kernel_thread {
        true => "/proc".to_string(),
        false => format!("/proc/{pid}/task"),
    };
    for t in std::fs::read_dir(folder)? {
        let t = t?.path();
        let Ok(status) = read_to_string(t.join("status")) else {
            continue;
        };
        // Kernel threads are children of kthreadd.
        let right = !kernel_thread || field(&status, "PPid").as_deref() == Some("2");
        if right && field(&status, "Name").as_deref() == Some(&name) {
            return Ok(t);
        }
    }
    bail!("no thread {name}")
}

/// Waits until the worker of this process's device has done all that it had to do: it sleeps. A thread that was woken does
/// not, from the moment on that it was; one that only says that it will sleep, and looks for work once more, is not waiting
/// in any place yet (`wchan`). (The C driver is asked, for it can be.)
pub fn settle(g: &Guest) -> Res {
    if sys::on_c() {
        check_eq!(sys::ioctl(&g.net, sys::SET_LOG_FD, &-1i32), 0);
        return Ok(());
    }
    let worker = worker_of(std::process::id() as i32, g.cfg.kernel_thread)?;
    let end = deadline();
    loop {
        let status = read_to_string(worker.join("status"))?;
        let place = read_to_string(worker.join("wchan"))?;
        if field(&status, "State").is_some_and(|state| state.starts_with('S')) && place != "0" {
            return Ok(());
        }
        check!(
            Instant::now() < end,
            "the worker does not come to rest: {place}"
        );
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// The CPU time of a thread, given by its folder in /proc.
pub fn cpu_time(thread: &Path) -> Res<Duration> {
    let text = read_to_string(thread.join("schedstat"))?;
    let first = text.split_whitespace().next().unwrap_or_default();
    Ok(Duration::from_nanos(first.parse()?))
}

/// How often a thread waited for something.
pub fn sleeps(thread: &Path) -> Res<u64> {
    let status = read_to_string(thread.join("status"))?;
    let count = field(&status, "voluntary_ctxt_switches");
    Ok(count.ok_or(Fail("no switches".into()))?.parse()?)
}

/// Are all threads of a process where the freezer has them?
pub fn all_frozen(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter();
    tasks.flatten().flatten().all(|t| {
        let wchan = read_to_string(t.path().join("wchan")).unwrap_or_default();
        // gcc makes the one a part of the other.
        ["do_freezer_trap", "get_signal"].contains(&wchan.as_str())
    })
}

/// What the threads of a process do, for a message.
pub fn states(pid: i32) -> String {
    let mut v = vec![];
    for t in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let t = t.path();
        let status = read_to_string(t.join("status")).unwrap_or_default();
        let wchan = read_to_string(t.join("wchan")).unwrap_or_default();
        let name = field(&status, "Name").unwrap_or_default();
        let state = field(&status, "State").unwrap_or_default();
        v.push(format!("{name} {state} {wchan}"));
    }
    v.join(", ")
}
