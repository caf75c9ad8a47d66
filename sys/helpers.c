// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions and macros of the kernel that sys/ calls, made callable from Rust. No logic, but
 * for three ways to read user memory that the kernel has no function for, and where what is called
 * together for each packet is one function here: a call costs more than what most of these do.
 *
 * Sorted by header. With CONFIG_RUST_INLINE_HELPERS this file becomes bitcode that is linked into
 * the Rust object, and the functions are inlined; otherwise it is an object of the module.
 */

#include "bindings.h"

#if defined(__BINDGEN__)
#define __vhost_helper
#elif defined(VHOST_INLINE_HELPERS)
#define __vhost_helper __always_inline
#else
#define __vhost_helper
#endif

/* asm/futex.h */

__vhost_helper int rust_helper_futex_atomic_or(u32 mask, u32 __user *uaddr)
{
	int old;

	return arch_futex_atomic_op_inuser(FUTEX_OP_OR, mask, &old, uaddr);
}

/* linux/cgroup.h */

__vhost_helper int rust_helper_cgroup_attach_task_all(struct task_struct *from,
						      struct task_struct *task)
{
	return cgroup_attach_task_all(from, task);
}

/* linux/entry-virt.h */

#ifdef CONFIG_VIRT_XFER_TO_GUEST_WORK
__vhost_helper bool rust_helper_xfer_to_guest_mode_work_pending(void)
{
	return __xfer_to_guest_mode_work_pending();
}
#endif

/* linux/if_tap.h, linux/if_tun.h */

__vhost_helper struct socket *rust_helper_tap_get_socket(struct file *file)
{
	return tap_get_socket(file);
}

__vhost_helper bool rust_helper_tap_is_attached(struct socket *sock)
{
	return rcu_access_pointer(container_of(sock, struct tap_queue, sock)->tap);
}

__vhost_helper struct ptr_ring *rust_helper_tap_get_ptr_ring(struct file *file)
{
	return tap_get_ptr_ring(file);
}

__vhost_helper struct socket *rust_helper_tun_get_socket(struct file *file)
{
	return tun_get_socket(file);
}

__vhost_helper struct ptr_ring *rust_helper_tun_get_tx_ring(struct file *file)
{
	return tun_get_tx_ring(file);
}

__vhost_helper bool rust_helper_tun_is_xdp_frame(void *ptr)
{
	return tun_is_xdp_frame(ptr);
}

__vhost_helper u8 *rust_helper_tun_ptr_to_xdp_data(void *ptr)
{
	return tun_ptr_to_xdp(ptr)->data;
}

__vhost_helper u32 rust_helper_tun_ptr_to_xdp_len(void *ptr)
{
	return tun_ptr_to_xdp(ptr)->len;
}

__vhost_helper void rust_helper_tap_ptr_free(void *ptr)
{
	__skb_array_destroy_skb(ptr);
}

__vhost_helper void rust_helper_tun_ptr_free(void *ptr)
{
	tun_ptr_free(ptr);
}

__vhost_helper void rust_helper_tun_wake_queue(struct file *file, int consumed)
{
	tun_wake_queue(file, consumed);
}

/* linux/kcov.h */

#ifdef CONFIG_KCOV
__vhost_helper u64 rust_helper_kcov_common_handle(void)
{
	return kcov_common_handle().val;
}

__vhost_helper void rust_helper_kcov_remote_start_common(u64 handle)
{
	kcov_remote_start_common((struct kcov_common_handle_id){ .val = handle });
}

__vhost_helper void rust_helper_kcov_remote_stop(void)
{
	kcov_remote_stop();
}
#endif

/* linux/netdevice.h */

__vhost_helper bool rust_helper_dev_has_ethernet_header(struct sock *sk, const char *name)
{
	struct net_device *dev = dev_get_by_name_rcu(sock_net(sk), name);

	return dev && dev->hard_header_len == ETH_HLEN;
}

/* linux/nospec.h */

__vhost_helper size_t rust_helper_array_index_nospec(size_t index, size_t size)
{
	return array_index_nospec(index, size);
}

/* linux/poll.h */

__vhost_helper __poll_t rust_helper_vfs_poll(struct file *file, struct poll_table_struct *pt)
{
	return vfs_poll(file, pt);
}

/* linux/ptr_ring.h */

__vhost_helper int rust_helper_ptr_ring_lock_and_consume(struct ptr_ring *r, void **array, int n)
	__acquires(&r->consumer_lock)
{
	spin_lock(&r->consumer_lock);
	return __ptr_ring_consume_batched(r, array, n);
}

__vhost_helper void rust_helper_ptr_ring_unlock(struct ptr_ring *r)
	__releases(&r->consumer_lock)
{
	spin_unlock(&r->consumer_lock);
}

__vhost_helper void rust_helper_ptr_ring_unconsume(struct ptr_ring *r, void **batch, int n,
						   void (*destroy)(void *))
{
	ptr_ring_unconsume(r, batch, n, destroy);
}

/* linux/sched.h */

__vhost_helper void rust_helper_set_current_interruptible(void)
{
	set_current_state(TASK_INTERRUPTIBLE);
}

__vhost_helper void rust_helper_set_current_running(void)
{
	__set_current_state(TASK_RUNNING);
}

__vhost_helper void rust_helper_cond_resched(void)
{
	cond_resched();
}

__vhost_helper bool rust_helper_need_resched(void)
{
	return need_resched();
}

/* linux/sched/signal.h */

__vhost_helper bool rust_helper_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

/* linux/skb_array.h, linux/skbuff.h */

__vhost_helper int rust_helper___skb_array_len_with_tag(struct sk_buff *skb)
{
	return __skb_array_len_with_tag(skb);
}

/* As skb_array_peek_len(), of another kind of queue. */
__vhost_helper int rust_helper_sk_receive_queue_peek_len(struct sock *sk)
{
	struct sk_buff_head *list = &sk->sk_receive_queue;
	unsigned long flags;
	int len;

	spin_lock_irqsave(&list->lock, flags);
	len = __skb_array_len_with_tag(skb_peek(list));
	spin_unlock_irqrestore(&list->lock, flags);
	return len;
}

/* linux/uaccess.h */

__vhost_helper bool rust_helper_access_ok(const void __user *addr, unsigned long size)
{
	return access_ok(addr, size);
}

__vhost_helper int rust_helper_get_user_u16(u16 *value, const u16 __user *addr)
{
	return get_user(*value, addr);
}

__vhost_helper int rust_helper_put_user_u16(u16 value, u16 __user *addr)
{
	return put_user(value, addr);
}

__vhost_helper int rust_helper_put_user_u64(u64 value, u64 __user *addr)
{
	return put_user(value, addr);
}

__vhost_helper int rust_helper_get_user_u64x2(u64 *to, const u64 __user *from)
{
	might_fault();
	scoped_user_read_access_size(from, 2 * sizeof(*from), Efault) {
		unsafe_get_user(to[0], from, Efault);
		unsafe_get_user(to[1], from + 1, Efault);
	}
	return 0;

Efault:
	return -EFAULT;
}

/* The second word says whether the first one means anything. */
__vhost_helper int rust_helper_get_user_u64x2_last_first(u64 *to, const u64 __user *from)
{
	might_fault();
	scoped_user_read_access_size(from, 2 * sizeof(*from), Efault) {
		unsafe_get_user(to[1], from + 1, Efault);
		/* Pairs with the write barrier before the second word is written. */
		smp_rmb();
		unsafe_get_user(to[0], from, Efault);
	}
	return 0;

Efault:
	return -EFAULT;
}

#define copy_word_from_user(to, from, offset, label) do {				\
	u64 word_;									\
											\
	unsafe_get_user(word_, (const u64 __user *)((from) + (offset)), label);	\
	put_unaligned(word_, (u64 *)((to) + (offset)));				\
} while (0)

/*
 * What unsafe_copy_from_user() would be, for a @size of at least a word: whole words, then the last
 * one, which may overlap those. What is copied twice may then differ from what was there at any one
 * time, as after any copy from user memory. @to is no user's to choose, so it is not checked against
 * the objects that may be copied to.
 */
__vhost_helper int rust_helper_copy_words_from_user(void *to, const void __user *from, size_t size)
{
	size_t i = 0;

	might_fault();
	scoped_user_read_access_size(from, size, Efault) {
		for (; i + 4 * sizeof(u64) <= size; i += 4 * sizeof(u64)) {
			copy_word_from_user(to, from, i, Efault);
			copy_word_from_user(to, from, i + sizeof(u64), Efault);
			copy_word_from_user(to, from, i + 2 * sizeof(u64), Efault);
			copy_word_from_user(to, from, i + 3 * sizeof(u64), Efault);
		}
		for (; i + sizeof(u64) <= size; i += sizeof(u64))
			copy_word_from_user(to, from, i, Efault);
		if (i < size)
			copy_word_from_user(to, from, size - sizeof(u64), Efault);
	}
	return 0;

Efault:
	return -EFAULT;
}

/* linux/uio.h */

__vhost_helper void rust_helper_iov_iter_ubuf(struct iov_iter *i, unsigned int direction,
					      void __user *buf, size_t count)
{
	iov_iter_ubuf(i, direction, buf, count);
}

/* linux/wait.h */

__vhost_helper unsigned long rust_helper_wait_queue_lock(struct wait_queue_head *queue)
{
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	return flags;
}

__vhost_helper void rust_helper_wait_queue_unlock(struct wait_queue_head *queue,
						  unsigned long flags)
{
	spin_unlock_irqrestore(&queue->lock, flags);
}

/* linux/wait_bit.h */

__vhost_helper void rust_helper_wait_var_event_zero(atomic_t *var)
{
	wait_var_event(var, !atomic_read_acquire(var));
}

/* net/sock.h */

__vhost_helper u16 rust_helper_sk_family(const struct sock *sk)
{
	return sk->sk_family;
}

__vhost_helper bool rust_helper_sk_flag(const struct sock *sk, unsigned int flag)
{
	return sock_flag(sk, flag);
}

__vhost_helper int rust_helper_sk_sndbuf(const struct sock *sk)
{
	return READ_ONCE(sk->sk_sndbuf);
}

__vhost_helper u16 rust_helper_sk_type(const struct sock *sk)
{
	return sk->sk_type;
}

/* net/xdp.h */

__vhost_helper void *rust_helper_xdp_hard_start(const struct xdp_buff *xdp)
{
	return xdp->data_hard_start;
}

__vhost_helper void rust_helper_xdp_fill_buff(struct xdp_buff *xdp, unsigned char *hard_start,
					      u32 frame_sz, int headroom, int data_len)
{
	BUILD_BUG_ON(VHOST_SKB_PAD != NET_SKB_PAD);
	xdp_init_buff(xdp, frame_sz, NULL);
	xdp_prepare_buff(xdp, hard_start, headroom, data_len, true);
}
