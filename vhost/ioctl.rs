// SPDX-License-Identifier: GPL-2.0

//! The ioctls that every vhost device has, but for those that make an owner or name features.

#![forbid(unsafe_code)]

use super::{
    device::{
        Device,
        Driver, //
    },
    fd::{
        open_file,
        read_file, //
    },
    state::State, //
};
use crate::{
    log::DirtyLog,
    memtable::{
        GuestAddr,
        MemTable,
        Region, //
    },
    sys::{
        compat::EOPNOTSUPP,
        eventfd::EventFdCtx,
        sched::cond_resched,
        uaccess::CurrentMm, //
    },
    uapi::{
        self,
        Arg, //
    },
    usermem::UserAddr, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

impl<D: Driver> Device<D> {
    /// The ioctls that every vhost device has, for the device and for its queues.
    ///
    /// Fails with [`EPERM`] unless the current task shares the owner's memory, with [`EFAULT`] if
    /// the argument can't be read or written, with [`ENOBUFS`] if there is no such queue, with
    /// [`ENOIOCTLCMD`] if there is no such ioctl, and as each one says.
    pub fn ioctl(&self, mm: CurrentMm<'_>, cmd: u32, arg: Arg) -> Result {
        let mut state = self.state.lock();
        #[cfg(CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL)]
        match cmd {
            uapi::SET_FORK_FROM_OWNER => return Self::set_fork(&mut state, arg),
            uapi::GET_FORK_FROM_OWNER => return arg.write(&u8::from(state.fork)),
            _ => {}
        }
        state.check_owner()?;
        let result = match cmd {
            uapi::SET_MEM_TABLE => self.set_mem_table(mm, &mut state, arg),
            uapi::SET_LOG_BASE => self.set_log_base(mm, arg),
            uapi::SET_LOG_FD => self.set_log_fd(&mut state, arg),
            _ => return self.vring_ioctl(mm, cmd, arg),
        };
        D::flush(self);
        result
    }

    #[cfg(CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL)]
    fn set_fork(state: &mut State<Self>, arg: Arg) -> Result {
        if state.has_owner() {
            return Err(EBUSY);
        }
        state.fork = match arg.read::<u8>()? {
            0 => false,
            1 => true,
            _ => return Err(EINVAL),
        };
        Ok(())
    }

    fn set_mem_table(&self, mm: CurrentMm<'_>, state: &mut State<Self>, arg: Arg) -> Result {
        let header: uapi::Memory = arg.read()?;
        if header.padding != 0 {
            return Err(EOPNOTSUPP);
        }
        if header.nregions > u32::from(crate::parameters::max_mem_regions()) {
            return Err(E2BIG);
        }
        if crate::parameters::max_iotlb_entries() <= 0 {
            return Err(EINVAL);
        }
        let count = header.nregions as usize;
        let mut regions = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for index in 0..count {
            let offset = size_of::<uapi::Memory>() + index * size_of::<uapi::MemoryRegion>();
            let region: uapi::MemoryRegion = arg.offset(offset).read()?;
            regions.push(
                Region {
                    guest: GuestAddr::new(region.guest_phys_addr),
                    size: region.memory_size,
                    user: UserAddr::new(region.userspace_addr),
                },
                GFP_KERNEL_ACCOUNT,
            )?;
        }
        let mem = Arc::new(
            MemTable::new(regions.iter().copied().inspect(|_| cond_resched()))?,
            GFP_KERNEL_ACCOUNT,
        )?;
        if !self.mem_access_ok(mm, Some(&mem), false) {
            return Err(EFAULT);
        }
        // A queue that runs goes on with the new table: each turn looks it up anew.
        self.each_queue(|queue| queue.set_mem(mem.clone()));
        state.mem = Some(mem);
        Ok(())
    }

    fn set_log_base(&self, mm: CurrentMm<'_>, arg: Arg) -> Result {
        let base: u64 = arg.read()?;
        usize::try_from(base).map_err(|_| EFAULT)?;
        let log = DirtyLog::new(UserAddr::new(base));
        let mut result = Ok(());
        self.each_queue(|queue| {
            if queue.is_running() && !queue.log_access_ok(mm, log) {
                result = Err(EFAULT);
            } else {
                queue.log = log;
                queue.update_used_log();
            }
        });
        result
    }

    fn set_log_fd(&self, state: &mut State<Self>, arg: Arg) -> Result {
        let fd: i32 = arg.read()?;
        let event = open_file(fd, EventFdCtx::from_fd)?;
        state.log_event = match event {
            Some(event) => Some(Arc::new(event, GFP_KERNEL_ACCOUNT)?),
            None => None,
        };
        self.each_queue(|queue| queue.log_event.clone_from(&state.log_event));
        Ok(())
    }

    fn vring_ioctl(&self, mm: CurrentMm<'_>, cmd: u32, arg: Arg) -> Result {
        let index: u32 = arg.read()?;
        let mut queue = self.queue(index as usize)?;
        match cmd {
            uapi::SET_VRING_NUM => queue.set_num(arg),
            uapi::SET_VRING_ADDR => queue.set_addr(mm, arg),
            uapi::SET_VRING_BASE => queue.set_base(arg),
            uapi::GET_VRING_BASE => queue.write_state(arg, queue.ring.vring_base()),
            uapi::SET_VRING_KICK => queue.set_kick(arg),
            uapi::SET_VRING_CALL => {
                queue.call = read_file(arg, EventFdCtx::from_fd)?;
                Ok(())
            }
            uapi::SET_VRING_ERR => {
                queue.err = read_file(arg, EventFdCtx::from_fd)?;
                Ok(())
            }
            #[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
            uapi::SET_VRING_ENDIAN => queue.set_endian(arg),
            #[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
            uapi::GET_VRING_ENDIAN => queue.get_endian(arg),
            uapi::SET_VRING_BUSYLOOP_TIMEOUT => {
                let timeout: uapi::VringState = arg.read()?;
                queue.busyloop_timeout = timeout.num;
                Ok(())
            }
            uapi::GET_VRING_BUSYLOOP_TIMEOUT => queue.write_state(arg, queue.busyloop_timeout),
            _ => Err(ENOIOCTLCMD),
        }
    }
}
