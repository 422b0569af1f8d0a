package sync

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/state"
)

// target is what makes two backends the same.
type target struct {
	netip.AddrPort
	protocol uint8
}

// want is one backend of a set and the slots it is to have.
type want struct {
	target
	pod    string
	slots  uint32 // at least 1
	weight uint32 // of each slot; at least 1
}

// maxRepeat bounds the slots of one backend: weights are scaled down to it.
const maxRepeat = 256

// wants turns the backends of a row into slots: algorithms that compare loads read a weight in the slot, all others know weights by how
// many slots a backend has.
func wants(backends []state.Backend, protocol state.Protocol, algorithm bpf.Algorithm) []want {
	out := make([]want, 0, len(backends))
	seen := make(map[target]bool, len(backends))
	for _, b := range backends {
		t := target{netip.AddrPortFrom(b.Address.Unmap(), b.Port), uint8(protocol)}
		if !seen[t] {
			seen[t] = true
			out = append(out, want{target: t, pod: b.Pod, slots: 1, weight: max(uint32(b.Weight), 1)})
		}
	}
	scale(out)
	if !comparesLoads(algorithm) {
		for i := range out {
			out[i].slots, out[i].weight = out[i].weight, 1
		}
	}
	return out
}

func comparesLoads(a bpf.Algorithm) bool {
	return a == bpf.AlgorithmLC || a == bpf.AlgorithmSED || a == bpf.AlgorithmNQ || a == bpf.AlgorithmP2C
}

// scale makes weights as small as their proportion allows, and at most maxRepeat.
func scale(list []want) {
	var divisor, heaviest uint32
	for _, w := range list {
		divisor, heaviest = gcd(divisor, w.weight), max(heaviest, w.weight)
	}
	if heaviest == 0 {
		return
	}
	heaviest /= divisor
	for i := range list {
		w := &list[i].weight
		*w /= divisor
		if heaviest > maxRepeat {
			*w = max((*w*maxRepeat+heaviest/2)/heaviest, 1)
		}
	}
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// arrange returns the slots that come after now: those that stay keep their place; one that leaves is filled by a new one or by one from
// beyond the new end. New ones come in rounds, so that taking turns goes through all backends before it comes back to a heavy one. id
// gives the backend of a target, address that of an id.
func arrange(now []maps.Share, list []want, id func(want) uint32, address func(uint32) (target, bool)) []maps.Share {
	missing := make(map[target]want, len(list))
	size := 0
	for _, w := range list {
		missing[w.target] = w
		size += int(w.slots)
	}
	next := make([]maps.Share, size)
	var spare []maps.Share
	for i, s := range now {
		t, known := address(s.Backend)
		w := missing[t]
		if !known || w.slots == 0 {
			continue
		}
		w.slots--
		missing[t] = w
		s.Weight = w.weight
		if i < size {
			next[i] = s
		} else {
			spare = append(spare, s)
		}
	}
	for more := true; more; {
		more = false
		for _, w := range list { // in the order of the row, not of a map
			m := missing[w.target]
			if m.slots == 0 {
				continue
			}
			m.slots--
			missing[w.target] = m
			more = more || m.slots > 0
			spare = append(spare, maps.Share{Backend: id(w), Weight: w.weight})
		}
	}
	for i := range next {
		if next[i].Backend == 0 {
			next[i], spare = spare[0], spare[1:]
		}
	}
	return next
}

// byAddress sorts as every node does, so that tables which depend on the order are the same.
func byAddress(list []want) []want {
	out := slices.Clone(list)
	slices.SortFunc(out, func(a, b want) int { return cmp.Or(a.Compare(b.AddrPort), cmp.Compare(a.protocol, b.protocol)) })
	return out
}

// algorithm is random for names that are not known: whoever wrote the row has told the user.
func algorithm(a state.Algorithm) bpf.Algorithm {
	switch a {
	case state.Maglev:
		return bpf.AlgorithmMaglev
	case state.RR:
		return bpf.AlgorithmRR
	case state.LC:
		return bpf.AlgorithmLC
	case state.DH:
		return bpf.AlgorithmDH
	case state.SH:
		return bpf.AlgorithmSH
	case state.SED:
		return bpf.AlgorithmSED
	case state.NQ:
		return bpf.AlgorithmNQ
	case state.P2C:
		return bpf.AlgorithmP2C
	}
	return bpf.AlgorithmRandom
}

func flags(row state.Frontend) bpf.ServiceFlags {
	var f bpf.ServiceFlags
	switch row.Type {
	case state.ClusterIP:
		f = bpf.ServiceClusterIP
	case state.NodePort:
		f = bpf.ServiceNodePort
	case state.LoadBalancer:
		f = bpf.ServiceLoadBalancer
	case state.ExternalIP:
		f = bpf.ServiceExternalIP
	case state.HostPort:
		f = bpf.ServiceHostPort
	}
	for _, c := range []struct {
		is   bool
		flag bpf.ServiceFlags
	}{
		{row.Affinity > 0, bpf.ServiceAffinity}, {len(row.SourceRanges) > 0, bpf.ServiceSources},
		{row.OuterLocal, bpf.ServiceOuterLocal}, {row.Forwarding == state.DSR, bpf.ServiceDSR},
	} {
		if c.is {
			f |= c.flag
		}
	}
	return f
}
