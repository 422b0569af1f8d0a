/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tcx egress of the node's devices: what the node's own stack sends to the network. */

SEC("tcx/egress")
int strait_to_net(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}
