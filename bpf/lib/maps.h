/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map. Sizes here are defaults; userspace may change them before the map is first created. All but
 * strait_scratch are pinned by name. */
#pragma once
#include "types.h"

#define STRAIT_MAP(map_name, map_type, key_type, value_type, entries, flags) \
	struct { \
		__uint(type, map_type); \
		__type(key, key_type); \
		__type(value, value_type); \
		__uint(max_entries, entries); \
		__uint(map_flags, flags); \
		__uint(pinning, LIBBPF_PIN_BY_NAME); \
	} map_name SEC(".maps")

STRAIT_MAP(strait_endpoint, BPF_MAP_TYPE_HASH, struct addr, struct endpoint, 4096, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_ipcache, BPF_MAP_TYPE_LPM_TRIE, struct ipcache_key, struct remote, 131072, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_device, BPF_MAP_TYPE_HASH, __u32, struct device, 256, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_ct, BPF_MAP_TYPE_LRU_HASH, struct ct_key, struct ct_entry, 262144, 0);
STRAIT_MAP(strait_nat, BPF_MAP_TYPE_LRU_HASH, struct nat_key, struct nat_entry, 131072, 0);
STRAIT_MAP(strait_frag, BPF_MAP_TYPE_LRU_HASH, struct frag_key, struct frag_entry, 8192, 0);
STRAIT_MAP(strait_service, BPF_MAP_TYPE_HASH, struct sockaddr_key, struct service, 65536, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_slot, BPF_MAP_TYPE_HASH, struct slot_key, struct slot, 262144, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_backend, BPF_MAP_TYPE_HASH, __u32, struct backend, 131072, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_load, BPF_MAP_TYPE_HASH, __u32, struct load, 131072, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_affinity, BPF_MAP_TYPE_LRU_HASH, struct affinity_key, struct affinity, 65536, 0);
STRAIT_MAP(strait_netns, BPF_MAP_TYPE_HASH, __u64, struct netns, 4096, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_source, BPF_MAP_TYPE_LPM_TRIE, struct source_key, __u32, 65536, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_announce, BPF_MAP_TYPE_HASH, struct announce_key, struct announce, 4096, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_identity, BPF_MAP_TYPE_LPM_TRIE, struct ipcache_key, __u64, 262144, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_policy, BPF_MAP_TYPE_HASH, struct policy_key, struct policy_entry, 262144, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_port, BPF_MAP_TYPE_LPM_TRIE, struct port_key, struct policy_verdict, 131072, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_node, BPF_MAP_TYPE_ARRAY, __u32, struct node_state, 1, 0);
STRAIT_MAP(strait_rule, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct counter, 32768, 0);

/* Backend set -> its table of backend ids, cfg_maglev_size of them. Each table is replaced whole. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(
	    values, struct {
		    __uint(type, BPF_MAP_TYPE_ARRAY);
		    __type(key, __u32);
		    __type(value, __u32);
		    __uint(max_entries, 16381);
	    });
} strait_maglev SEC(".maps");

STRAIT_MAP(strait_sk, BPF_MAP_TYPE_SK_STORAGE, int, struct sk_peer, 0, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_sk_use, BPF_MAP_TYPE_SK_STORAGE, int, struct sk_use, 0, BPF_F_NO_PREALLOC);
STRAIT_MAP(strait_dgram, BPF_MAP_TYPE_LRU_HASH, struct dgram_key, struct sockaddr_key, 65536, 0);
STRAIT_MAP(strait_counter, BPF_MAP_TYPE_PERCPU_ARRAY, enum reason, struct counter, REASON_MAX, 0);

/* Records of struct event. max_entries: bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 2 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} strait_events SEC(".maps");

STRAIT_MAP(strait_muted, BPF_MAP_TYPE_HASH, struct muted_key, struct muted, 8192, 0);
STRAIT_MAP(strait_lost, BPF_MAP_TYPE_PERCPU_ARRAY, enum event_kind, struct lost, EVENT_KINDS, 0);

/* What would not fit on the stack, one per CPU: all programs that use it run in softirq or keep it off, so that none interrupts another. Each
 * load has its own. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct scratch);
	__uint(max_entries, 1);
} strait_scratch SEC(".maps");
