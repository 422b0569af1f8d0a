/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
SEC("cgroup/connect4")
int strait_connect4(struct bpf_sock_addr *ctx)
{
	return 1;
}
SEC("cgroup/connect6")
int strait_connect6(struct bpf_sock_addr *ctx)
{
	return 1;
}
SEC("cgroup/sendmsg4")
int strait_sendmsg4(struct bpf_sock_addr *ctx)
{
	return 1;
}
SEC("cgroup/sendmsg6")
int strait_sendmsg6(struct bpf_sock_addr *ctx)
{
	return 1;
}
SEC("cgroup/recvmsg4")
int strait_recvmsg4(struct bpf_sock_addr *ctx)
{
	return 1;
}
SEC("cgroup/recvmsg6")
int strait_recvmsg6(struct bpf_sock_addr *ctx)
{
	return 1;
}
SEC("cgroup/getpeername4")
int strait_peer4(struct bpf_sock_addr *ctx)
{
	return 1;
}
SEC("cgroup/getpeername6")
int strait_peer6(struct bpf_sock_addr *ctx)
{
	return 1;
}
