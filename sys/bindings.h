/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What sys/ needs of the kernel's C API beyond what the kernel crate binds.
 *
 * sys/helpers.c includes this file, and bindgen reads both through it.
 */

#include <linux/cgroup.h>
#include <linux/entry-virt.h>
#include <linux/errqueue.h>
#include <linux/eventfd.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/if_packet.h>
#include <linux/if_tap.h>
#include <linux/if_tun.h>
#include <linux/kcov.h>
#include <linux/miscdevice.h>
#include <linux/netdevice.h>
#include <linux/nospec.h>
#include <linux/net.h>
#include <linux/page_frag_cache.h>
#include <linux/poll.h>
#include <linux/ptr_ring.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/vhost_task.h>
#include <linux/skb_array.h>
#include <linux/skbuff.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/virtio_net.h>
#include <linux/wait.h>
#include <linux/wait_bit.h>
#include <net/sock.h>
#include <net/xdp.h>

#include <asm/futex.h>

#include "compat.h"
#include "vhost_net_events.h"

/* `bindgen` gets confused at certain things. */
const size_t RUST_CONST_HELPER_SMP_CACHE_BYTES = SMP_CACHE_BYTES;
/* As NET_SKB_PAD, which is no constant expression; rust_helper_xdp_fill_buff() compares them. */
#define VHOST_SKB_PAD (IS_ENABLED(CONFIG_S390) ? 32 : MAX(32, L1_CACHE_BYTES))
const size_t RUST_CONST_HELPER_RX_PAD = NET_IP_ALIGN + VHOST_SKB_PAD;
const size_t RUST_CONST_HELPER_XDP_HEADROOM = XDP_PACKET_HEADROOM;
const size_t RUST_CONST_HELPER_FRAG_SIZE = PAGE_SIZE;
const u32 RUST_CONST_HELPER_FRAG_CACHE_SIZE = PAGE_FRAG_CACHE_MAX_SIZE;
const unsigned int RUST_CONST_HELPER_SKB_FRAGS_MAX = MAX_SKB_FRAGS;
const size_t RUST_CONST_HELPER_VNET_HDR_MAX = sizeof(struct virtio_net_hdr_v1_hash_tunnel);
const size_t RUST_CONST_HELPER_TUN_XDP_FRAME = TUN_XDP_FLAG;
const unsigned int RUST_CONST_HELPER_TUN_MSG_PTR = TUN_MSG_PTR;
const unsigned int RUST_CONST_HELPER_TUN_MSG_UBUF = TUN_MSG_UBUF;
const unsigned int RUST_CONST_HELPER_SOCK_FLAG_XDP = SOCK_XDP;
const unsigned int RUST_CONST_HELPER_SOCK_FLAG_ZEROCOPY = SOCK_ZEROCOPY;
const unsigned int RUST_CONST_HELPER_SOCK_TYPE_RAW = SOCK_RAW;
const unsigned int RUST_CONST_HELPER_FAMILY_PACKET = AF_PACKET;
const unsigned int RUST_CONST_HELPER_POLL_IN = (__force unsigned int)EPOLLIN;
const unsigned int RUST_CONST_HELPER_POLL_RDNORM = (__force unsigned int)EPOLLRDNORM;
const unsigned int RUST_CONST_HELPER_POLL_OUT = (__force unsigned int)EPOLLOUT;
const unsigned int RUST_CONST_HELPER_POLL_ERR = (__force unsigned int)EPOLLERR;
const gfp_t RUST_CONST_HELPER_FRAG_GFP = GFP_KERNEL;
