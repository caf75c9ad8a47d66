// SPDX-License-Identifier: GPL-2.0

//! What the owner sets of a queue: the ring's size and place, its log, its memory, its kicks.
//!
//! What can be checked is checked here, once; what a guest can change later is checked at each
//! use.

#![forbid(unsafe_code)]

use super::{
    fd::read_file,
    queue::{
        Queue,
        QueueState, //
    },
};
#[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
use crate::vring::Endian;
use crate::{
    features::Features,
    log::DirtyLog,
    memtable::{
        GuestAddr,
        Iotlb,
        MemTable, //
    },
    sys::{
        compat::EOPNOTSUPP,
        eventfd::EventFdFile,
        poll::Wake,
        uaccess::CurrentMm, //
    },
    uapi::{
        self,
        Arg, //
    },
    usermem::UserAddr,
    vring::{
        RingAddrs,
        UsedLog, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

impl<S: QueueState, W: Wake> Queue<S, W> {
    /// Whether `mem` may be this queue's memory: all of it is in user space, and so is the part of
    /// the log at `log` that stands for it.
    pub(super) fn mem_access_ok(
        &self,
        mm: CurrentMm<'_>,
        mem: Option<&Arc<MemTable>>,
        log: Option<DirtyLog>,
    ) -> bool {
        let Some(mem) = mem else {
            return false;
        };
        mem.access_ok(mm)
            && log.is_none_or(|log| mem.ranges().all(|(addr, len)| log.access_ok(mm, addr, len)))
    }

    /// Whether the used ring may be logged at `addr` of `log`.
    fn used_log_access_ok(
        &self,
        mm: CurrentMm<'_>,
        log: DirtyLog,
        addr: Option<GuestAddr>,
    ) -> bool {
        // With an IOTLB it is found in guest memory, whose log is looked at anyway.
        self.iotlb.is_some()
            || addr.is_none_or(|addr| log.access_ok(mm, addr, self.ring.used_size()))
    }

    /// Whether the log may be at `log`.
    pub(super) fn log_access_ok(&self, mm: CurrentMm<'_>, log: DirtyLog) -> bool {
        let all = self.features.has(Features::LOG_ALL).then_some(log);
        self.mem_access_ok(mm, self.mem.as_ref(), all)
            && self.used_log_access_ok(mm, log, self.used_log)
    }

    /// Whether the ring may be at `addrs`. What an IOTLB says of them is looked at in each turn.
    fn ring_access_ok(&self, mm: CurrentMm<'_>, addrs: RingAddrs) -> bool {
        self.iotlb.is_some() || self.ring.access_ok(mm, addrs)
    }

    /// Whether all that the queue needs is in user space: it can run.
    pub fn access_ok(&self, mm: CurrentMm<'_>) -> bool {
        self.log_access_ok(mm, self.log) && self.ring_access_ok(mm, self.ring.addrs())
    }

    pub(super) fn update_used_log(&mut self) {
        let (log, mem) = (self.log, &self.mem);
        self.ring.set_used_log(self.used_log.map(|addr| UsedLog {
            log,
            addr,
            mem: mem.clone(),
        }));
    }

    /// Goes on with another memory table.
    pub(super) fn set_mem(&mut self, mem: Arc<MemTable>) {
        self.mem = Some(mem);
        self.update_used_log();
    }

    /// Goes on with another IOTLB, or with none. If there was one and is none, or the other way
    /// round, the addresses that the owner gave mean something else now: they are forgotten.
    pub(super) fn set_iotlb(&mut self, iotlb: Option<Arc<Mutex<Iotlb>>>) {
        let moved = iotlb.is_some() != self.iotlb.is_some();
        self.ring.set_behind_iotlb(iotlb.is_some());
        self.iotlb = iotlb;
        if moved {
            self.ring.set_addrs(RingAddrs::default());
            self.used_log = None;
            self.update_used_log();
        }
    }

    pub(super) fn set_num(&mut self, arg: Arg) -> Result {
        if self.is_running() {
            return Err(EBUSY);
        }
        let state: uapi::VringState = arg.read()?;
        self.ring.set_num(state.num)
    }

    pub(super) fn set_addr(&mut self, mm: CurrentMm<'_>, arg: Arg) -> Result {
        let addr: uapi::VringAddr = arg.read()?;
        if addr.flags & !uapi::VRING_F_LOG != 0 {
            return Err(EOPNOTSUPP);
        }
        let fits = |addr| usize::try_from(addr).is_ok();
        if !fits(addr.desc_user_addr) || !fits(addr.used_user_addr) || !fits(addr.avail_user_addr) {
            return Err(EFAULT);
        }
        // What the ring's parts are aligned to (virtio 1.3, sections 2.7 and 2.8.10). Of the descriptors
        // of a split ring it is not asked, for these are copied.
        if addr.avail_user_addr % 2 != 0
            || addr.used_user_addr % 4 != 0
            || addr.log_guest_addr % 4 != 0
            || self.ring.is_packed() && addr.desc_user_addr % 16 != 0
        {
            return Err(EINVAL);
        }
        let addrs = RingAddrs {
            desc: UserAddr::new(addr.desc_user_addr),
            avail: UserAddr::new(addr.avail_user_addr),
            used: UserAddr::new(addr.used_user_addr),
        };
        let used_log =
            (addr.flags & uapi::VRING_F_LOG != 0).then_some(GuestAddr::new(addr.log_guest_addr));
        // If the queue does not run, its size may not be known yet: it is checked when it starts.
        if self.is_running()
            && !(self.ring_access_ok(mm, addrs) && self.used_log_access_ok(mm, self.log, used_log))
        {
            return Err(EINVAL);
        }
        self.ring.set_addrs(addrs);
        self.used_log = used_log;
        self.update_used_log();
        Ok(())
    }

    pub(super) fn set_base(&mut self, arg: Arg) -> Result {
        if self.is_running() {
            return Err(EBUSY);
        }
        let state: uapi::VringState = arg.read()?;
        self.ring.set_vring_base(state.num)
    }

    #[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
    pub(super) fn set_endian(&mut self, arg: Arg) -> Result {
        if self.is_running() {
            return Err(EBUSY);
        }
        let state: uapi::VringState = arg.read()?;
        self.legacy_endian = match state.num {
            uapi::VRING_LITTLE_ENDIAN => Endian::Little,
            uapi::VRING_BIG_ENDIAN => Endian::Big,
            _ => return Err(EINVAL),
        };
        Ok(())
    }

    #[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
    pub(super) fn get_endian(&self, arg: Arg) -> Result {
        let endian = match self.legacy_endian {
            Endian::Little => uapi::VRING_LITTLE_ENDIAN,
            Endian::Big => uapi::VRING_BIG_ENDIAN,
        };
        self.write_state(arg, endian)
    }

    pub(super) fn write_state(&self, arg: Arg, num: u32) -> Result {
        arg.write(&uapi::VringState {
            index: self.index as u32,
            num,
        })
    }

    /// Waits for kicks at another file.
    pub(super) fn set_kick(&mut self, arg: Arg) -> Result {
        let kick = read_file(arg, EventFdFile::from_fd)?;
        let same = match (&kick, &self.kick) {
            (Some(new), Some(old)) => new.is_same(old),
            (new, old) => new.is_none() && old.is_none(),
        };
        if same {
            return Ok(());
        }
        self.kick_poll.as_mut().stop();
        self.kick = kick;
        if let (Some(kick), Some(worker)) = (&self.kick, &self.worker) {
            self.kick_poll.as_mut().start(kick, worker)?;
        }
        Ok(())
    }
}
