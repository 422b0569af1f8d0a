// Package bpf embeds the compiled datapath and the Go form of every type it shares with userspace.
//
// There is one object, datapath, with all programs and all maps: maps are shared by being in one collection and are pinned by
// name. A caller changes the spec (map sizes, variables), then loads it:
//
//	spec, err := bpf.LoadDatapath()
//	err = spec.Variables[bpf.DatapathVarCfgNetwork].Set(uint8(bpf.NetworkFlat))
//	var objs bpf.DatapathObjects
//	err = spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
//
// Packet programs hand a packet to the node's stack with TC_ACT_UNSPEC, so they sit in a tcx chain or a clsact filter list alike.
package bpf

//go:generate go tool bpf2go -go-package bpf -cc clang-19 -target bpfel -type addr -type sockaddr_key -type endpoint -type ipcache_key -type remote -type remote_flags -type device -type ct_key -type ct_flags -type ct_entry -type nat_key -type nat_entry -type frag_key -type frag_entry -type service -type service_flags -type algorithm -type slot_key -type slot -type backend -type backend_flags -type load -type affinity_key -type affinity -type netns -type source_key -type announce_key -type announce -type sk_peer -type sk_use -type dgram_key -type policy_direction -type policy_flags -type policy_verdict -type policy_key -type policy_entry -type port_key -type node_state -type event_kind -type hook -type event_flags -type event -type muted_key -type muted -type lost -type counter -type reason -cflags "-O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../../bpf/include" Datapath ../../bpf/datapath.c
