/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
SEC("tcx/ingress")
int strait_from_vx(struct __sk_buff *skb)
{
	return to_stack(skb);
}

SEC("tcx/egress")
int strait_to_vx(struct __sk_buff *skb)
{
	return to_stack(skb);
}
