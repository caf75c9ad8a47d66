// SPDX-License-Identifier: GPL-2.0

//! Allocations and user copies of the kernel that fail on demand, one at a time: the kernel's fault injection, which the
//! debug kernel has.

use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use crate::check;
use crate::Res;

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// An allocation.
    Alloc,
    /// A copy from or to user memory.
    Copy,
}

/// What can fail, by the names of its folder.
const SITES: [(&str, Kind); 3] = [
    ("failslab", Kind::Alloc),
    ("fail_page_alloc", Kind::Alloc),
    ("fail_usercopy", Kind::Copy),
];

/// Sets what decides of allocations.
fn set(name: &str, value: u32) -> Res {
    for (site, _) in SITES.iter().filter(|(_, kind)| *kind == Kind::Alloc) {
        let file = format!("/sys/kernel/debug/{site}/{name}");
        std::fs::write(file, value.to_string())?;
    }
    Ok(())
}

/// How many more may fail. The kernel counts it down, and so says which of the three it was.
const TIMES: u32 = 1 << 30;

/// A thread in which something is to fail.
pub struct Faults {
    nth: File,
    /// Its folder in /proc.
    thread: String,
    times: Vec<(String, Kind)>,
    before: Vec<u32>,
}

impl Faults {
    /// Faults of the calling thread.
    pub fn here() -> Res<Self> {
        Self::of("/proc/thread-self")
    }

    /// Faults of another thread of this process.
    pub fn of_thread(id: i32) -> Res<Self> {
        Self::of(&format!("/proc/self/task/{id}"))
    }

    fn of(thread: &str) -> Res<Self> {
        let mut times = vec![];
        for (site, kind) in SITES {
            let file = |name: &str| format!("/sys/kernel/debug/{site}/{name}");
            check!(
                std::fs::exists(file("times"))?,
                "this kernel has no {site}; use VM_KERNEL=debug"
            );
            // A failure leaves no trace in the log, where it would be taken for a complaint; unless that is wanted.
            let verbose = std::env::var("FAULT_TRACE").map_or("0".into(), |_| "2".to_string());
            std::fs::write(file("verbose"), verbose)?;
            std::fs::write(file("times"), TIMES.to_string())?;
            if kind == Kind::Alloc {
                // Also those that may wait until there is memory, which most do.
                std::fs::write(file("ignore-gfp-wait"), "0")?;
            }
            if site == "fail_page_alloc" {
                std::fs::write(file("min-order"), "0")?;
            }
            times.push((file("times"), kind));
        }
        let nth = format!("{thread}/fail-nth");
        Ok(Faults {
            nth: OpenOptions::new().read(true).write(true).open(nth)?,
            thread: thread.into(),
            times,
            before: vec![],
        })
    }

    fn count(&self) -> Res<Vec<u32>> {
        let number = |file: &str| Ok(std::fs::read_to_string(file)?.trim().parse()?);
        self.times.iter().map(|(file, _)| number(file)).collect()
    }

    /// The `n`th from now on fails, and only that one. As little as can be must happen in the thread between this
    /// and what is to fail.
    pub fn arm(&mut self, n: u32) -> Res {
        self.before = self.count()?;
        self.nth.write_all_at(n.to_string().as_bytes(), 0)?;
        Ok(())
    }

    /// The next `count` allocations from each source fail, one after the other, so that falling back on another does not
    /// help; then there is memory again. Fails if none of them failed while `f` ran, or if `f` does.
    pub fn starved(&mut self, count: u32, f: impl FnOnce() -> Res) -> Res {
        // Only in the thread that is marked.
        let mark = format!("{}/make-it-fail", self.thread);
        let result = (|| {
            set("task-filter", 1)?;
            set("interval", 1)?;
            set("times", count)?;
            set("probability", 100)?;
            std::fs::write(&mark, "1")?;
            f()?;
            let left = self.count()?;
            let failed = (self.times.iter().zip(left))
                .any(|((_, kind), left)| *kind == Kind::Alloc && left < count);
            check!(failed, "{count} failures: there was none");
            Ok(())
        })();
        std::fs::write(&mark, "0")?;
        Self::calm()?;
        result
    }

    /// No allocation fails any more, also when who was [starved](Self::starved) died of it.
    pub fn calm() -> Res {
        set("probability", 0)?;
        set("times", TIMES)?;
        set("task-filter", 0)
    }

    /// What failed since then, if it came to that.
    pub fn seen(&self) -> Res<Option<Kind>> {
        let now = self.count()?;
        let mut seen = self.times.iter().zip(self.before.iter().zip(now));
        Ok(seen
            .find(|(_, (&before, now))| before != *now)
            .map(|((_, kind), _)| *kind))
    }

    /// Nothing fails any more. Returns what did.
    pub fn disarm(&mut self) -> Res<Option<Kind>> {
        match self.nth.write_all_at(b"0", 0) {
            Ok(()) => self.seen(),
            // This write copies a number from user memory, and was the first that came to it.
            Err(_) => Ok(None),
        }
    }
}
