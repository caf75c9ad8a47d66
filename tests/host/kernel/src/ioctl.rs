// SPDX-License-Identifier: GPL-2.0

//! `kernel::ioctl`, with the numbers of x86-64.

#![allow(non_snake_case)]

const fn ioc(dir: u32, ty: u32, nr: u32, size: usize) -> u32 {
    dir << 30 | (size as u32) << 16 | ty << 8 | nr
}

pub const fn _IO(ty: u32, nr: u32) -> u32 {
    ioc(0, ty, nr, 0)
}

pub const fn _IOW<T>(ty: u32, nr: u32) -> u32 {
    ioc(1, ty, nr, size_of::<T>())
}

pub const fn _IOR<T>(ty: u32, nr: u32) -> u32 {
    ioc(2, ty, nr, size_of::<T>())
}

pub const fn _IOWR<T>(ty: u32, nr: u32) -> u32 {
    ioc(3, ty, nr, size_of::<T>())
}
