package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strait-net/strait/lab/internal/cni"
	"github.com/strait-net/strait/lab/internal/network"
	"github.com/strait-net/strait/lab/internal/node"
)

// followNodes does what the surroundings of a cluster do once a node has pod CIDRs: in a flat network the router learns the
// way to them; with the reference plugins the nodes get their configuration and routes. It polls, because a lab is small.
func (s *Supervisor) followNodes() {
	if s.config.Spec.CNI == "strait" && s.config.Spec.Network != "flat" {
		return
	}
	for ; ; time.Sleep(500 * time.Millisecond) {
		if err := s.routePods(); err != nil {
			fmt.Fprintln(os.Stderr, "route pods:", err)
		}
	}
}

// routePods brings the routes up to date; a later failure leaves the earlier routes in place.
func (s *Supervisor) routePods() error {
	config, err := clientcmd.BuildConfigFromFlags("", Kubeconfig(s.config.State))
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	var failed []error
	for _, n := range list.Items {
		pods, err := podCIDRs(n)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		failed = append(failed, s.eachOn(func(m *member) error { return s.routeNode(m, n.Name, pods) }))
	}
	return errors.Join(failed...)
}

func podCIDRs(n corev1.Node) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, c := range n.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return nil, fmt.Errorf("node %s: pod CIDR: %w", n.Name, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// routeNode applies the CIDRs of the node called owner to the surroundings of m.
func (s *Supervisor) routeNode(m *member, owner string, pods []netip.Prefix) error {
	var failed []error
	if m.node.Name == owner {
		if s.config.Spec.CNI == "bridge" || s.config.Spec.Network == "flat" {
			for _, p := range pods {
				for _, a := range m.node.Addrs {
					if a.Addr().Is4() == p.Addr().Is4() {
						failed = append(failed, network.Route(s.router, p, a.Addr()))
					}
				}
			}
		}
		if s.config.Spec.CNI == "bridge" && len(pods) > 0 {
			failed = append(failed, cni.WriteBridge(filepath.Join(node.CNIDir(m.dir), "10-bridge.conflist"), pods))
		}
		return errors.Join(failed...)
	}
	if s.config.Spec.CNI != "bridge" {
		return nil
	}
	ownerMember := s.named(owner)
	if ownerMember == nil {
		return nil
	}
	for _, p := range pods {
		for _, a := range ownerMember.node.Addrs {
			if a.Addr().Is4() == p.Addr().Is4() {
				failed = append(failed, network.Route(m.net, p, a.Addr()))
			}
		}
	}
	return errors.Join(failed...)
}

// named is called with the lock held by eachOn.
func (s *Supervisor) named(name string) *member {
	m, err := s.findLocked(name)
	if err != nil {
		return nil
	}
	return m
}
