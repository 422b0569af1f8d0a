/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The one object: every program with the maps they share. */
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
#include "lib/policy.h"
#include "lib/encap.h"
#include "lib/fib.h"
#include "lib/sctp.h"
#include "lib/rewrite.h"
#include "lib/nat.h"
#include "lib/error.h"
#include "lib/lb.h"
#include "lib/lb_packet.h"
#include "lib/front.h"
#include "lib/stack.h"
#include "lib/host.h"
#include "lib/world.h"
#include "lib/reject.h"
#include "lib/dsr.h"
#include "lib/forward.h"
#include "lib/announce.h"
#include "lib/xdp_packet.h"
#include "lib/xdp_way.h"

#include "from_pod.c"
#include "to_pod.c"
#include "from_net.c"
#include "to_net.c"
#include "overlay.c"
#include "sock.c"
#include "xdp.c"

char _license[] SEC("license") = "Dual BSD/GPL";
