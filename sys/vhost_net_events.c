// SPDX-License-Identifier: GPL-2.0
/*
 * The tracepoints of sys/trace.rs.
 */

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "vhost_net_events.h"
