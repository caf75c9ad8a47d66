// SPDX-License-Identifier: GPL-2.0

//! Control groups: limits of CPU time, and the freezer.

use std::ffi::CString;
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::null;
use std::time::Duration;
use std::time::Instant;

use crate::check;
use crate::Fail;
use crate::Res;

/// Mounts the control groups where only this process and its children see them. Once a process, which has one thread.
fn mount() -> Res<PathBuf> {
    let at = std::env::temp_dir().join("cgroup");
    std::fs::create_dir_all(&at)?;
    if at.join("cgroup.procs").exists() {
        return Ok(at);
    }
    let path = CString::new(at.as_os_str().as_bytes()).unwrap();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: strings that end; the process has one thread.
    let good = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(null(), c"/".as_ptr(), null(), private, null()) == 0
            && libc::mount(null(), path.as_ptr(), c"cgroup2".as_ptr(), 0, null()) == 0
    };
    check!(good, "mount of cgroup2: {}", Error::last_os_error());
    Ok(at)
}

/// A control group. Dropped, it is lifted of its limits, and all that is in it is killed.
pub struct Group(PathBuf);

impl Group {
    /// An empty group without limits.
    pub fn new(name: &str) -> Res<Self> {
        let all = mount()?;
        // For the files of a group, the controller has to be passed on to it.
        let control = all.join("cgroup.subtree_control");
        std::fs::write(control, "+cpu").map_err(|e| Fail(format!("no CPU limits: {e}")))?;
        // The kernel patches its code when the first limit comes and when the last one goes, and the emulated machine does
        // not always bear that while all processors run it: there is one for good, from now on, when nothing runs.
        let kept = all.join("vhost-kept");
        if !kept.exists() {
            std::fs::create_dir(&kept)?;
            std::fs::write(kept.join("cpu.max"), "100000 100000")?;
        }
        let path = all.join(name);
        if !path.exists() {
            std::fs::create_dir(&path)?;
        }
        Ok(Group(path))
    }

    /// An empty group whose memory is counted; none if the kernel can't do that.
    pub fn with_memory(name: &str) -> Res<Option<Self>> {
        let group = Self::new(name)?;
        let all = mount()?;
        match std::fs::write(all.join("cgroup.subtree_control"), "+memory") {
            Ok(()) => Ok(Some(group)),
            Err(_) => Ok(None),
        }
    }

    /// How many bytes of memory it has.
    pub fn memory(&self) -> Res<i64> {
        let text = std::fs::read_to_string(self.0.join("memory.current"))?;
        Ok(text.trim().parse()?)
    }

    /// Writes a file of the group.
    pub fn set(&self, file: &str, value: &str) -> Res {
        std::fs::write(self.0.join(file), value).map_err(|e| Fail(format!("{file}: {e}")))
    }

    /// The number behind a key in a file of the group.
    pub fn number(&self, file: &str, key: &str) -> Res<u64> {
        let text = std::fs::read_to_string(self.0.join(file))?;
        let value = text.lines().find_map(|line| line.strip_prefix(key));
        let value = value.ok_or(Fail(format!("no {key} in {file}: {text}")))?;
        Ok(value.trim().parse()?)
    }

    /// The calling process is in it from now on.
    pub fn enter(&self) -> Res {
        self.set("cgroup.procs", "0")
    }

    /// No more than `percent` of one CPU, in each tenth of a second.
    pub fn limit(&self, percent: u32) -> Res {
        self.set("cpu.max", &format!("{} 100000", percent * 1000))
    }

    /// The CPU time that was used in it.
    pub fn usage(&self) -> Res<Duration> {
        let us = self.number("cpu.stat", "usage_usec ")?;
        Ok(Duration::from_micros(us))
    }

    /// Freezes what is in it. Returns how long that took, or nothing if it did not come to that within `limit`.
    ///
    /// A group that has a kernel thread in it never counts as frozen ("isn't supported", says kernel/cgroup/freezer.c): then
    /// the threads of `pid` are looked at.
    pub fn freeze(&self, kernel_thread: Option<i32>, limit: Duration) -> Res<Option<Duration>> {
        self.set("cgroup.freeze", "1")?;
        wait(limit, || match kernel_thread {
            Some(pid) => Ok(crate::task::all_frozen(pid)),
            None => Ok(self.number("cgroup.events", "frozen ")? == 1),
        })
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Res {
        self.set("cgroup.freeze", "0")?;
        let limit = crate::patience();
        let thawed = wait(limit, || Ok(self.number("cgroup.events", "frozen ")? == 0))?;
        check!(thawed.is_some(), "not thawed in {limit:?}");
        Ok(())
    }
}

fn wait(limit: Duration, mut done: impl FnMut() -> Res<bool>) -> Res<Option<Duration>> {
    let begin = Instant::now();
    while !done()? {
        if begin.elapsed() > limit {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(Some(begin.elapsed()))
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.set("cpu.max", "max");
        let _ = self.set("cgroup.freeze", "0");
        let _ = self.set("cgroup.kill", "1");
        crate::sys::until(|| std::fs::remove_dir(&self.0).is_ok());
    }
}
