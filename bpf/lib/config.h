/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Configuration: set by userspace before load, constant afterwards, so branches on it are removed by the verifier. */
#pragma once

enum network {
	NETWORK_ISLAND = 0,
	NETWORK_FLAT = 1,
	NETWORK_ISOLATED = 2,
};

const volatile __u32 cfg_vxlan_ifindex; /* 0: no tunnel device */
const volatile __u32 cfg_pod_mtu;	/* largest L3 packet a pod may send to another node; 0: not checked */
const volatile enum network cfg_network;
const volatile __u16 cfg_masq_port_min; /* host order, inclusive */
const volatile __u16 cfg_masq_port_max;
