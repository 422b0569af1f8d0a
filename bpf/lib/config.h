/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Configuration: set by userspace before load, constant afterwards, so branches on it are removed by the verifier. */
#pragma once

enum network {
	NETWORK_ISLAND = 0,
	NETWORK_FLAT = 1,
	NETWORK_ISOLATED = 2,
};

enum service_mode {
	SERVICE_MODE_OFF = 0, /* kube-proxy's: packets to service addresses are the stack's */
	SERVICE_MODE_ON = 1,
	SERVICE_MODE_DRAIN = 2, /* connections that are ours go on, new ones are the stack's */
};

const volatile __u32 cfg_vxlan_ifindex; /* 0: no tunnel device */
const volatile __u16 cfg_vxlan_port;	/* host order, of the tunnel's own packets; 0: not known */
const volatile __u32 cfg_pod_mtu;	/* largest L3 packet a pod may send to another node; 0: not checked */
const volatile enum network cfg_network;
const volatile __u16 cfg_masq_port_min; /* host order, inclusive */
const volatile __u16 cfg_masq_port_max;
const volatile enum service_mode cfg_services;
const volatile __u64 cfg_netns_cookie;	/* of the node's own network namespace */
const volatile __u16 cfg_node_port_min; /* host order, inclusive; 0: no port is guarded */
const volatile __u16 cfg_node_port_max;
const volatile __u32 cfg_maglev_size;
const volatile __u32 cfg_guard_mark; /* a socket with this mark may bind a guarded port: the agent's health checks */
const volatile bool cfg_imported;    /* strait_nat has entries of another proxy, whose ports are outside the range */
const volatile bool cfg_events;	     /* what happens to connections is told by strait_events */
