/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tracepoints of the system vhost_net record. docs/observing.md is for their users: names and order of the fields
 * stay, new ones come behind.
 *
 * owner is the process that owns the device, and worker its thread, as the first pid namespace knows them; all but
 * vhost_net_kick are passed in the worker, or (drop, stop, call, zerocopy_done) also in a thread of the owner. queue is 0
 * for the one to the guest, 1 for the one from it. avail is which chain comes next, used before which entry all is given
 * back, both modulo 2^16.
 */

#undef TRACE_SYSTEM
#define TRACE_SYSTEM vhost_net

#if !defined(_VHOST_NET_EVENTS_H) || defined(TRACE_HEADER_MULTI_READ)
#define _VHOST_NET_EVENTS_H

#include <linux/tracepoint.h>

TRACE_EVENT(vhost_net_kick,
	TP_PROTO(int owner, int worker, unsigned int queue),
	TP_ARGS(owner, worker, queue),

	TP_STRUCT__entry(
		__field(int, owner)
		__field(int, worker)
		__field(unsigned int, queue)
	),
	TP_fast_assign(
		__entry->owner = owner;
		__entry->worker = worker;
		__entry->queue = queue;
	),
	TP_printk("owner=%d worker=%d queue=%u",
		  __entry->owner, __entry->worker, __entry->queue)
);

TRACE_EVENT(vhost_net_work,
	TP_PROTO(int owner, unsigned int queue, unsigned int cause, u64 since_kick),
	TP_ARGS(owner, queue, cause, since_kick),

	TP_STRUCT__entry(
		__field(int, owner)
		__field(unsigned int, queue)
		__field(unsigned int, cause)
		__field(u64, since_kick)
	),
	TP_fast_assign(
		__entry->owner = owner;
		__entry->queue = queue;
		__entry->cause = cause;
		__entry->since_kick = since_kick;
	),
	TP_printk("owner=%d queue=%u cause=%s since_kick=%llu",
		  __entry->owner, __entry->queue,
		  __print_flags(__entry->cause, "|", { 1, "kick" }, { 2, "ready" }, { 4, "woken" }),
		  __entry->since_kick)
);

TRACE_EVENT(vhost_net_rx_end,
	TP_PROTO(int recv_pkts, size_t total_len, int owner, unsigned int queue, u16 avail,
		 u16 used),
	TP_ARGS(recv_pkts, total_len, owner, queue, avail, used),

	TP_STRUCT__entry(
		__field(int, recv_pkts)
		__field(size_t, total_len)
		__field(int, owner)
		__field(unsigned int, queue)
		__field(u16, avail)
		__field(u16, used)
	),
	TP_fast_assign(
		__entry->recv_pkts = recv_pkts;
		__entry->total_len = total_len;
		__entry->owner = owner;
		__entry->queue = queue;
		__entry->avail = avail;
		__entry->used = used;
	),
	TP_printk("recv_pkts=%d total_len=%zu owner=%d queue=%u avail=%u used=%u",
		  __entry->recv_pkts, __entry->total_len, __entry->owner, __entry->queue,
		  __entry->avail, __entry->used)
);

TRACE_EVENT(vhost_net_tx_end,
	TP_PROTO(int sent_pkts, size_t total_len, int owner, unsigned int queue, u16 avail,
		 u16 used),
	TP_ARGS(sent_pkts, total_len, owner, queue, avail, used),

	TP_STRUCT__entry(
		__field(int, sent_pkts)
		__field(size_t, total_len)
		__field(int, owner)
		__field(unsigned int, queue)
		__field(u16, avail)
		__field(u16, used)
	),
	TP_fast_assign(
		__entry->sent_pkts = sent_pkts;
		__entry->total_len = total_len;
		__entry->owner = owner;
		__entry->queue = queue;
		__entry->avail = avail;
		__entry->used = used;
	),
	TP_printk("sent_pkts=%d total_len=%zu owner=%d queue=%u avail=%u used=%u",
		  __entry->sent_pkts, __entry->total_len, __entry->owner, __entry->queue,
		  __entry->avail, __entry->used)
);

TRACE_EVENT(vhost_net_call,
	TP_PROTO(int owner, unsigned int queue, u16 used, bool signalled),
	TP_ARGS(owner, queue, used, signalled),

	TP_STRUCT__entry(
		__field(int, owner)
		__field(unsigned int, queue)
		__field(u16, used)
		__field(bool, signalled)
	),
	TP_fast_assign(
		__entry->owner = owner;
		__entry->queue = queue;
		__entry->used = used;
		__entry->signalled = signalled;
	),
	TP_printk("owner=%d queue=%u used=%u %s",
		  __entry->owner, __entry->queue, __entry->used,
		  __entry->signalled ? "signalled" : "suppressed")
);

TRACE_EVENT(vhost_net_drop,
	TP_PROTO(int owner, unsigned int queue, const char *reason, unsigned int packets,
		 size_t len),
	TP_ARGS(owner, queue, reason, packets, len),

	TP_STRUCT__entry(
		__field(int, owner)
		__field(unsigned int, queue)
		__string(reason, reason)
		__field(unsigned int, packets)
		__field(size_t, len)
	),
	TP_fast_assign(
		__entry->owner = owner;
		__entry->queue = queue;
		__assign_str(reason);
		__entry->packets = packets;
		__entry->len = len;
	),
	TP_printk("owner=%d queue=%u reason=%s packets=%u len=%zu",
		  __entry->owner, __entry->queue, __get_str(reason), __entry->packets,
		  __entry->len)
);

TRACE_EVENT(vhost_net_stop,
	TP_PROTO(int owner, unsigned int queue, int error, const char *reason),
	TP_ARGS(owner, queue, error, reason),

	TP_STRUCT__entry(
		__field(int, owner)
		__field(unsigned int, queue)
		__field(int, error)
		__string(reason, reason)
	),
	TP_fast_assign(
		__entry->owner = owner;
		__entry->queue = queue;
		__entry->error = error;
		__assign_str(reason);
	),
	TP_printk("owner=%d queue=%u error=%d reason=%s",
		  __entry->owner, __entry->queue, __entry->error, __get_str(reason))
);

TRACE_EVENT(vhost_net_iotlb_miss,
	TP_PROTO(int owner, unsigned int queue, u64 iova, unsigned int access),
	TP_ARGS(owner, queue, iova, access),

	TP_STRUCT__entry(
		__field(int, owner)
		__field(unsigned int, queue)
		__field(u64, iova)
		__field(unsigned int, access)
	),
	TP_fast_assign(
		__entry->owner = owner;
		__entry->queue = queue;
		__entry->iova = iova;
		__entry->access = access;
	),
	TP_printk("owner=%d queue=%u iova=0x%llx access=%s",
		  __entry->owner, __entry->queue, __entry->iova,
		  __print_flags(__entry->access, "|", { 1, "read" }, { 2, "write" }))
);

TRACE_EVENT(vhost_net_zerocopy_done,
	TP_PROTO(int owner, unsigned int queue, unsigned int sent, unsigned int copied,
		 unsigned int in_flight),
	TP_ARGS(owner, queue, sent, copied, in_flight),

	TP_STRUCT__entry(
		__field(int, owner)
		__field(unsigned int, queue)
		__field(unsigned int, sent)
		__field(unsigned int, copied)
		__field(unsigned int, in_flight)
	),
	TP_fast_assign(
		__entry->owner = owner;
		__entry->queue = queue;
		__entry->sent = sent;
		__entry->copied = copied;
		__entry->in_flight = in_flight;
	),
	TP_printk("owner=%d queue=%u sent=%u copied=%u in_flight=%u",
		  __entry->owner, __entry->queue, __entry->sent, __entry->copied,
		  __entry->in_flight)
);

#endif /* _VHOST_NET_EVENTS_H */

/* Read again by this, for which the Makefile names the folder. */
#undef TRACE_INCLUDE_PATH
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_PATH .
#define TRACE_INCLUDE_FILE vhost_net_events
#include <trace/define_trace.h>
