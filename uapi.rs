// SPDX-License-Identifier: GPL-2.0

//! The user space interface: ioctl numbers and the structures that they take.
//!
//! All of it is from [`include/uapi/linux/vhost.h`](srctree/include/uapi/linux/vhost.h) and
//! [`include/uapi/linux/vhost_types.h`](srctree/include/uapi/linux/vhost_types.h). The layouts are
//! the same for 32-bit callers.

#![forbid(unsafe_code)]

use kernel::{
    ioctl::{
        _IO,
        _IOR,
        _IOW,
        _IOWR, //
    },
    prelude::*,
    uaccess::UserSlice, //
};
use zerocopy_derive::Immutable;

const VIRTIO: u32 = 0xAF;

pub const GET_FEATURES: u32 = _IOR::<u64>(VIRTIO, 0x00);
pub const SET_FEATURES: u32 = _IOW::<u64>(VIRTIO, 0x00);
pub const SET_OWNER: u32 = _IO(VIRTIO, 0x01);
pub const RESET_OWNER: u32 = _IO(VIRTIO, 0x02);
pub const SET_MEM_TABLE: u32 = _IOW::<Memory>(VIRTIO, 0x03);
pub const SET_LOG_BASE: u32 = _IOW::<u64>(VIRTIO, 0x04);
pub const SET_LOG_FD: u32 = _IOW::<i32>(VIRTIO, 0x07);
pub const NEW_WORKER: u32 = _IOR::<WorkerState>(VIRTIO, 0x08);
pub const FREE_WORKER: u32 = _IOW::<WorkerState>(VIRTIO, 0x09);
pub const SET_VRING_NUM: u32 = _IOW::<VringState>(VIRTIO, 0x10);
pub const SET_VRING_ADDR: u32 = _IOW::<VringAddr>(VIRTIO, 0x11);
pub const SET_VRING_BASE: u32 = _IOW::<VringState>(VIRTIO, 0x12);
pub const GET_VRING_BASE: u32 = _IOWR::<VringState>(VIRTIO, 0x12);
#[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
pub const SET_VRING_ENDIAN: u32 = _IOW::<VringState>(VIRTIO, 0x13);
#[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
pub const GET_VRING_ENDIAN: u32 = _IOW::<VringState>(VIRTIO, 0x14);
pub const ATTACH_VRING_WORKER: u32 = _IOW::<VringWorker>(VIRTIO, 0x15);
pub const GET_VRING_WORKER: u32 = _IOWR::<VringWorker>(VIRTIO, 0x16);
pub const SET_VRING_KICK: u32 = _IOW::<VringFile>(VIRTIO, 0x20);
pub const SET_VRING_CALL: u32 = _IOW::<VringFile>(VIRTIO, 0x21);
pub const SET_VRING_ERR: u32 = _IOW::<VringFile>(VIRTIO, 0x22);
pub const SET_VRING_BUSYLOOP_TIMEOUT: u32 = _IOW::<VringState>(VIRTIO, 0x23);
pub const GET_VRING_BUSYLOOP_TIMEOUT: u32 = _IOW::<VringState>(VIRTIO, 0x24);
pub const SET_BACKEND_FEATURES: u32 = _IOW::<u64>(VIRTIO, 0x25);
pub const GET_BACKEND_FEATURES: u32 = _IOR::<u64>(VIRTIO, 0x26);
pub const NET_SET_BACKEND: u32 = _IOW::<VringFile>(VIRTIO, 0x30);
pub const GET_FEATURES_ARRAY: u32 = _IOR::<u64>(VIRTIO, 0x83);
pub const SET_FEATURES_ARRAY: u32 = _IOW::<u64>(VIRTIO, 0x83);
#[cfg(CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL)]
pub const SET_FORK_FROM_OWNER: u32 = _IOW::<u8>(VIRTIO, 0x84);
#[cfg(CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL)]
pub const GET_FORK_FROM_OWNER: u32 = _IOR::<u8>(VIRTIO, 0x85);

/// The file descriptor that means none (`VHOST_FILE_UNBIND`).
pub const FILE_UNBIND: i32 = -1;

/// `VHOST_BACKEND_F_IOTLB_MSG_V2`, as a bit of a word.
pub const BACKEND_F_IOTLB_MSG_V2: u64 = 1 << 1;

/// `VHOST_VRING_F_LOG` as a flag of [`VringAddr`]: log writes to the used ring.
pub const VRING_F_LOG: u32 = 1;

/// The byte orders of a [`SET_VRING_ENDIAN`].
#[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
pub const VRING_LITTLE_ENDIAN: u32 = 0;
#[cfg(CONFIG_VHOST_CROSS_ENDIAN_LEGACY)]
pub const VRING_BIG_ENDIAN: u32 = 1;

/// The types of a [`Message`]: of the first and of the second version.
pub const IOTLB_MSG: u32 = 1;
pub const IOTLB_MSG_V2: u32 = 2;
/// The types of an [`IotlbMessage`].
pub const IOTLB_MISS: u8 = 1;
pub const IOTLB_UPDATE: u8 = 2;
pub const IOTLB_INVALIDATE: u8 = 3;

/// `struct vhost_iotlb_msg`.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IotlbMessage {
    pub iova: u64,
    pub size: u64,
    pub uaddr: u64,
    pub perm: u8,
    pub kind: u8,
    pub padding: [u8; 6],
}

/// `struct vhost_msg` and `struct vhost_msg_v2`: the first has a hole where the second has the
/// address space.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Message {
    pub kind: u32,
    pub asid: u32,
    pub iotlb: IotlbMessage,
    pub padding: [u8; 32],
}

/// `struct vhost_memory`, which its regions follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Memory {
    pub nregions: u32,
    pub padding: u32,
}

/// `struct vhost_memory_region`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct MemoryRegion {
    pub guest_phys_addr: u64,
    pub memory_size: u64,
    pub userspace_addr: u64,
    pub flags_padding: u64,
}

/// `struct vhost_vring_state`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VringState {
    pub index: u32,
    pub num: u32,
}

/// `struct vhost_vring_file`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VringFile {
    pub index: u32,
    pub fd: i32,
}

/// `struct vhost_vring_addr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VringAddr {
    pub index: u32,
    pub flags: u32,
    pub desc_user_addr: u64,
    pub used_user_addr: u64,
    pub avail_user_addr: u64,
    pub log_guest_addr: u64,
}

/// `struct vhost_worker_state`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct WorkerState {
    pub worker_id: u32,
}

/// `struct vhost_vring_worker`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct VringWorker {
    pub index: u32,
    pub worker_id: u32,
}

/// The argument of an ioctl that is a user address.
#[derive(Clone, Copy)]
pub struct Arg(usize);

impl Arg {
    /// The address that the caller gave.
    pub fn new(addr: usize) -> Self {
        Self(addr)
    }

    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The address as a number.
    pub fn addr(self) -> u64 {
        self.0 as u64
    }

    /// Reads a `T`. Fails with [`EFAULT`].
    pub fn read<T: FromBytes + IntoBytes>(self) -> Result<T> {
        let mut value = T::new_zeroed();
        UserSlice::new(UserPtr::from_addr(self.0), size_of::<T>())
            .reader()
            .read_slice(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a `T`. Fails with [`EFAULT`].
    pub fn write<T: IntoBytes + zerocopy::Immutable>(self, value: &T) -> Result {
        UserSlice::new(UserPtr::from_addr(self.0), size_of::<T>())
            .writer()
            .write_slice(value.as_bytes())
    }
}
