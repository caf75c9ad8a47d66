/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What an older kernel lacks of the headers that the module is written for, which are those of 7.3; each piece with the
 * series that needs it. compat.rs is the same for Rust.
 */
#ifndef __VHOST_NET_RUST_COMPAT_H
#define __VHOST_NET_RUST_COMPAT_H

#include <linux/version.h>

/* 7.2: a tap whose ring is full drops packets, and need not hear that there is room. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0)
static inline void tun_wake_queue(struct file *file, int consumed)
{
}
#endif

#endif
