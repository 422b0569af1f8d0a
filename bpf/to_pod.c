/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
SEC("tcx/egress")
int strait_to_pod(struct __sk_buff *skb)
{
	return to_stack(skb);
}
