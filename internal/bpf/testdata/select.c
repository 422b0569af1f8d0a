/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Tests only: asks for a backend as a program would, for any client. */
#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lib/types.h"
#include "lib/config.h"
#include "lib/maps.h"
#include "lib/addr.h"
#include "lib/packet.h"
#include "lib/event.h"
#include "lib/drop.h"
#include "lib/frag.h"
#include "lib/ct.h"
#include "lib/deliver.h"
#include "lib/lb.h"

struct ask {
	struct sockaddr_key front;
	struct addr client;
	__u32 hash;
	__u32 outer;
	__u32 backend; /* the answer; 0: none */
	__u32 generation;
};

const struct ask *ask_in_btf __attribute__((unused)); /* keeps the type for the Go side */

/* The "packet" is the question, and comes back with the answer. */
SEC("xdp")
int strait_ask(struct xdp_md *ctx)
{
	struct ask *a = (void *)(long)ctx->data;
	struct lb_client client = {};
	struct lb_choice choice;
	struct sockaddr_key front;
	struct service *svc;

	if ((void *)(a + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	client.addr = a->client;
	client.hash = a->hash;
	client.outer = a->outer;
	front = a->front;
	a->backend = 0;
	svc = lb_find(&front, false);
	if (!svc || !lb_admits(svc, &client.addr) || !lb_select(svc, &front, &client, &choice))
		return XDP_PASS;
	a->backend = choice.backend;
	a->generation = choice.generation;
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
