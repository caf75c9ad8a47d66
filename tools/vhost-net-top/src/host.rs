// SPDX-License-Identifier: GPL-2.0

//! The devices of a host: which processes have one open, and what there is to see of them.
//!
//! All of it is in /proc. Whose files a user may not read, the kernel says nothing of but its name, its command and its
//! threads: then the device is known by its worker's name, `vhost-TID` after the thread that took it, and its numbers are
//! not.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use procfs::process::all_processes_with_root;
use procfs::process::FDTarget;
use procfs::process::Process;
use procfs::process::StatFlags;
use procfs::ProcError;
use procfs::ProcResult;
use serde::Serialize;

use crate::device::Device;

const NODE: &str = "/dev/vhost-net";
const TAP: &str = "/dev/net/tun";

/// A thread that works for a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Worker {
    pub id: i32,
    /// The CPU time that it used, in clock ticks.
    #[serde(skip)]
    pub ticks: u64,
    /// The processors that it may run on, as `0-3,7`.
    pub allowed: String,
    /// The one that it ran on last.
    pub cpu: Option<i32>,
}

/// A device that is open.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Open {
    pub pid: i32,
    pub process: String,
    /// What QEMU was told that its machine is called (`-name`).
    pub vm: Option<String>,
    /// The descriptor, if it is to be seen.
    pub fd: Option<i32>,
    /// The tap's interface, if the process has only one.
    pub tap: Option<String>,
    /// What it did. None if that can't be read.
    pub device: Option<Device>,
    pub worker: Option<Worker>,
    /// Where a queue has another one than that.
    pub other_workers: BTreeMap<String, Worker>,
}

impl Open {
    /// What the device is known by from one look to the next.
    pub fn key(&self) -> (i32, i32, i32) {
        let worker = self.worker.as_ref().map_or(0, |w| w.id);
        (self.pid, self.fd.unwrap_or(-1), worker)
    }

    /// The worker of a queue.
    pub fn worker_of(&self, queue: &str) -> Option<&Worker> {
        self.other_workers.get(queue).or(self.worker.as_ref())
    }
}

/// A look at the host.
#[derive(Clone, Debug)]
pub struct Host {
    pub at: Instant,
    pub open: Vec<Open>,
    /// Processes whose files can't be looked at.
    pub hidden: usize,
    /// Devices of which nothing is told: the driver is another one.
    pub silent: usize,
}

/// What QEMU calls its machine.
pub fn vm_name(command: &[String]) -> Option<String> {
    let mut words = command.iter();
    words.find(|word| *word == "-name" || *word == "--name")?;
    let value = words.next()?;
    let parts = value.split(',');
    let named = parts.clone().find_map(|part| part.strip_prefix("guest="));
    let first = parts.clone().next().filter(|part| !part.contains('='));
    named
        .or(first)
        .filter(|name| !name.is_empty())
        .map(str::to_string)
}

fn denied<T>(result: &ProcResult<T>) -> bool {
    matches!(result, Err(ProcError::PermissionDenied(_)))
}

fn worker(root: &Path, id: i32) -> Option<Worker> {
    let thread = Process::new_with_root(root.join(id.to_string())).ok()?;
    let stat = thread.stat().ok()?;
    let status = std::fs::read_to_string(root.join(id.to_string()).join("status")).ok()?;
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Some(Worker {
        id,
        ticks: stat.utime + stat.stime,
        allowed: allowed.unwrap_or("").trim().to_string(),
        cpu: stat.processor,
    })
}

/// The thread that a worker of this name is called after, by its number in the first pid namespace.
fn called_after(comm: &str) -> Option<i32> {
    let digits = comm.strip_prefix("vhost-")?;
    digits.parse().ok().filter(|&id| id > 0)
}

/// The process of a thread.
fn process_of(root: &Path, thread: i32) -> Option<i32> {
    let status = std::fs::read_to_string(root.join(thread.to_string()).join("status")).ok()?;
    let id = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    id.trim().parse().ok()
}

/// The threads of a process whose name is that of a worker. In a container the numbers in it are none that are seen there.
fn workers_by_name(root: &Path, pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(root.join(format!("{pid}/task"))).into_iter();
    let ids = tasks.flatten().flatten().filter(|task| {
        let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        called_after(comm.trim_end()).is_some()
    });
    ids.filter_map(|task| task.file_name().to_str()?.parse().ok())
        .collect()
}

impl Host {
    /// Looks at the processes in `root`, which is /proc but for tests.
    pub fn look(root: &Path) -> ProcResult<Self> {
        let mut host = Host {
            at: Instant::now(),
            open: vec![],
            hidden: 0,
            silent: 0,
        };
        // A device is open in each process that has a copy of its descriptor; its worker is one.
        let mut seen = BTreeSet::new();
        let mut kernel_threads = BTreeMap::new();
        for process in all_processes_with_root(root)? {
            // Whoever is gone by now was not to be seen.
            let Ok(process) = process else { continue };
            let Ok(stat) = process.stat() else { continue };
            if stat.flags & StatFlags::PF_KTHREAD.bits() != 0 {
                if let Some(owner) = called_after(&stat.comm) {
                    kernel_threads.insert(process.pid, owner);
                }
                continue;
            }
            host.look_at(root, &process, &stat.comm, &mut seen);
        }
        // Those of processes that can't be looked into.
        for (thread, owner) in kernel_threads {
            // If that thread is gone, nothing tells whose it was.
            let pid = process_of(root, owner).unwrap_or(owner);
            if !seen.contains(&thread) && !host.open.iter().any(|o| o.pid == pid && o.fd.is_some())
            {
                host.add_hidden(root, pid, thread);
            }
        }
        host.open.sort_by_key(|open| open.key());
        Ok(host)
    }

    fn look_at(&mut self, root: &Path, process: &Process, comm: &str, seen: &mut BTreeSet<i32>) {
        let pid = process.pid;
        let fds = process.fd();
        if denied(&fds) {
            self.hidden += 1;
            for thread in workers_by_name(root, pid) {
                self.add_hidden(root, pid, thread);
            }
            return;
        }
        let (mut taps, mut found) = (BTreeSet::new(), vec![]);
        for fd in fds.into_iter().flatten().flatten() {
            let FDTarget::Path(path) = fd.target else {
                continue;
            };
            let info = root.join(format!("{pid}/fdinfo/{}", fd.fd));
            let info = || std::fs::read_to_string(&info).unwrap_or_default();
            if path == PathBuf::from(NODE) {
                found.push((fd.fd, info()));
            } else if path == PathBuf::from(TAP) {
                let text = info();
                let name = text.lines().find_map(|line| line.strip_prefix("iff:"));
                taps.extend(name.map(|name| name.trim().to_string()));
            }
        }
        if found.is_empty() {
            return;
        }
        let vm = process.cmdline().ok().and_then(|command| vm_name(&command));
        let tap = (taps.len() == 1).then(|| taps.pop_first()).flatten();
        found.sort();
        for (fd, text) in found {
            let device = Device::parse(&text);
            self.silent += usize::from(device.is_none());
            let id = device.as_ref().and_then(Device::worker);
            // Another descriptor of the same.
            if id.is_some_and(|id| !seen.insert(id)) {
                continue;
            }
            let others = device.iter().flat_map(Device::other_workers);
            let others: BTreeMap<_, _> = others
                .filter_map(|(queue, id)| Some((queue.to_string(), worker(root, id)?)))
                .collect();
            seen.extend(others.values().map(|worker| worker.id));
            self.open.push(Open {
                other_workers: others,
                pid,
                process: comm.to_string(),
                vm: vm.clone(),
                fd: Some(fd),
                tap: tap.clone(),
                device,
                worker: id.and_then(|id| worker(root, id)),
            });
        }
    }

    fn add_hidden(&mut self, root: &Path, pid: i32, thread: i32) {
        // Whoever is gone by now was not to be seen.
        let Some(worker) = worker(root, thread) else {
            return;
        };
        let process = Process::new_with_root(root.join(pid.to_string())).ok();
        let comm = process.as_ref().and_then(|p| Some(p.stat().ok()?.comm));
        let command = process.and_then(|p| p.cmdline().ok()).unwrap_or_default();
        self.open.push(Open {
            pid,
            process: comm.unwrap_or_default(),
            vm: vm_name(&command),
            worker: Some(worker),
            ..Open::default()
        });
    }

    /// What there is to say of what can't be seen, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = vec![];
        if self.open.is_empty() {
            notes.push("No process that is seen has /dev/vhost-net open.".to_string());
        }
        let blind = self.open.iter().filter(|open| open.fd.is_none()).count();
        if self.hidden > 0 {
            notes.push(format!(
                "{} processes of other users can't be looked into; {blind} devices are known by their workers only. Root sees all.",
                self.hidden
            ));
        }
        if self.silent > 0 {
            notes.push(format!(
                "{} devices tell nothing: their driver is not the one in Rust.",
                self.silent
            ));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_string).collect()
    }

    #[test]
    fn names() {
        let name = |line| vm_name(&words(line));
        assert_eq!(
            name("qemu -name guest=web,debug-threads=on -m 1").as_deref(),
            Some("web")
        );
        assert_eq!(name("qemu -name web").as_deref(), Some("web"));
        assert_eq!(name("qemu -name web,process=x").as_deref(), Some("web"));
        assert_eq!(name("qemu -name process=x"), None);
        assert_eq!(name("qemu -name"), None);
        assert_eq!(name("qemu -m 512"), None);
    }

    /// A /proc with a process that has a device twice, a tap and something else; its parent is `parent`.
    fn fake(name: &str, parent: i32) -> PathBuf {
        let name = format!("vhost-net-top-{}-{name}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&root);
        let stat = |id: i32, comm: &str, parent: i32, flags: u32| {
            let folder = root.join(id.to_string());
            std::fs::create_dir_all(folder.join("fd")).unwrap();
            std::fs::create_dir_all(folder.join("fdinfo")).unwrap();
            std::fs::create_dir_all(folder.join("task")).unwrap();
            let rest = "0 0 0 0 70 30 0 0 20 0 1 0 100 0 0 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 3 0 0 0 0 0";
            std::fs::write(
                folder.join("stat"),
                format!("{id} ({comm}) S {parent} 1 0 0 -1 {flags} {rest}\n"),
            )
            .unwrap();
            std::fs::write(folder.join("status"), "Name:\tx\nCpus_allowed_list:\t2-3\n").unwrap();
            std::fs::write(folder.join("cmdline"), "qemu\0-name\0guest=web\0").unwrap();
            folder
        };
        let qemu = stat(100, "qemu", parent, 0x0040_0000);
        stat(4321, "vhost-100", 2, 0x0020_8040);
        for (fd, target) in [(3, NODE), (4, NODE), (5, TAP), (6, "/dev/null")] {
            std::os::unix::fs::symlink(target, qemu.join(format!("fd/{fd}"))).unwrap();
            let text = match target {
                NODE => include_str!("../tests/fdinfo"),
                TAP => "pos:\t0\niff:\ttap0\n",
                _ => "pos:\t0\n",
            };
            std::fs::write(qemu.join(format!("fdinfo/{fd}")), text).unwrap();
        }
        root
    }

    #[test]
    fn a_device_is_seen_once() {
        let root = fake("once", 1);
        let host = Host::look(&root).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(host.open.len(), 1, "{:?}", host.open);
        let open = &host.open[0];
        assert_eq!(
            (open.pid, open.fd, open.process.as_str()),
            (100, Some(3), "qemu")
        );
        assert_eq!(
            (open.vm.as_deref(), open.tap.as_deref()),
            (Some("web"), Some("tap0"))
        );
        let worker = open.worker.as_ref().unwrap();
        assert_eq!(
            (worker.id, worker.ticks, worker.allowed.as_str()),
            (4321, 100, "2-3")
        );
        assert_eq!(worker.cpu, Some(3));
        assert_eq!(host.notes(), Vec::<String>::new());
    }

    #[test]
    fn workers_are_called_after_threads() {
        let root = fake("threads", 1);
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        // A kernel thread, called after a thread of process 100.
        std::fs::remove_dir_all(root.join("100/fd")).unwrap();
        std::fs::rename(root.join("4321"), root.join("4322")).unwrap();
        let stat = std::fs::read_to_string(root.join("4322/stat")).unwrap();
        let stat = stat
            .replace("4321", "4322")
            .replace("vhost-100", "vhost-107");
        std::fs::write(root.join("4322/stat"), stat).unwrap();
        write("107/status", "Name:\tx\nTgid:\t100\nPid:\t107\n");
        for (thread, name) in [
            (101, "vhost-5107"),
            (102, "vhost-x"),
            (103, "qemu"),
            (104, "vhost-"),
        ] {
            write(&format!("100/task/{thread}/comm"), &format!("{name}\n"));
        }
        let host = Host::look(&root).unwrap();
        let by_name = workers_by_name(&root, 100);
        std::fs::remove_dir_all(&root).unwrap();
        let found: Vec<_> = host.open.iter().map(|open| (open.pid, open.fd)).collect();
        assert_eq!(found, [(100, None)]);
        assert_eq!(host.open[0].process, "qemu");
        assert_eq!(by_name, [101]);
    }

    #[test]
    fn process_2_of_a_container_has_children() {
        let root = fake("container", 2);
        let host = Host::look(&root).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!((host.open[0].pid, host.open[0].fd), (100, Some(3)));
        assert_eq!(host.open.len(), 1, "{:?}", host.open);
    }
}
