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
#include "lib/drop.h"
#include "lib/packet.h"
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

SEC("syscall")
int strait_ask(struct ask *a)
{
	struct lb_client client = { .addr = a->client, .hash = a->hash, .outer = a->outer };
	struct sockaddr_key front = a->front;
	struct service *svc = lb_find(&front, false);
	struct lb_choice choice;

	a->backend = 0;
	if (!svc || !lb_admits(svc, &client.addr) || !lb_select(svc, &front, &client, &choice))
		return 0;
	a->backend = choice.backend;
	a->generation = choice.generation;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
