package endpoint

import (
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/strait-net/strait/internal/cni/wire"
	"github.com/strait-net/strait/internal/state"
)

// freePortsLocked returns an error that names the other pod if one has a host port of the attachment. The scheduler keeps such pods
// apart, but counts a pod that has ended as gone before its sandbox is: then the runtime's next attempt succeeds. A sandbox of the same
// pod is the one that this one replaces.
func (k *Keeper) freePortsLocked(a wire.Attachment) error {
	for _, p := range a.HostPorts {
		for _, r := range k.records {
			if r.key() == a.Key() || r.Pod != "" && r.Pod == a.Pod && r.Namespace == a.Namespace {
				continue
			}
			for _, taken := range r.HostPorts {
				if p.Conflicts(taken) {
					return wire.WithCode(types.ErrTryAgainLater, fmt.Errorf("host port %s: pod %s has %s", p, r.podName(), taken))
				}
			}
		}
	}
	return nil
}

// podName is how a person knows the attachment.
func (r *record) podName() string {
	if r.Pod == "" {
		return "sandbox " + r.key()
	}
	return r.Namespace + "/" + r.Pod
}

func (r *record) portMappings() (out []state.PortMapping) {
	for _, p := range r.HostPorts {
		out = append(out, state.PortMapping{Address: p.HostIP, Port: p.HostPort, Target: p.ContainerPort, Protocol: protocolNumber(p.Protocol)})
	}
	return out
}

func protocolNumber(name string) state.Protocol {
	switch name {
	case "udp":
		return state.UDP
	case "sctp":
		return state.SCTP
	}
	return state.TCP
}
