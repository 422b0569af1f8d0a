package path

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/node"
)

// The node's own paths of a Strait installation; all lie on mounts that only the node has.
const (
	straitConfig  = "/run/strait-bench/config.yaml"
	straitConfDir = "/run/cni/net.d"
	straitBinDir  = "/run/cni/bin"
)

// StraitOptions describe a Strait cluster.
type StraitOptions struct {
	Name     string
	Mode     string // routingMode
	Nodes    int
	Services int   // loaded from the static source
	Silent   bool  // nothing is told of connections
	Objects  []any // more for the static source
}

// Strait is a cluster of real agents with a static source.
type Strait struct {
	StraitOptions
	site     *Site
	nodes    []attachment
	pids     []int // agents, in their nodes' numbering
	reader   int   // client of the first node's agent; 0: none
	objects  string
	confList string
}

// Strait starts the agents of a cluster and waits until they can add pods.
func (s *Site) Strait(o StraitOptions) (*Strait, error) {
	nodes, err := s.attached(o.Name, o.Nodes)
	if err != nil {
		return nil, err
	}
	c := &Strait{StraitOptions: o, site: s, nodes: nodes, objects: filepath.Join(s.logs, o.Name+"-objects")}
	if err := c.writeObjects(); err != nil {
		return nil, err
	}
	for i := range c.nodes {
		if err := c.startAgent(i); err != nil {
			return nil, err
		}
	}
	for i := range c.nodes {
		if err := c.waitReady(i); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// cidrs are the pod CIDRs of node i: room for the 250 pods of the CNI rows and their cool-down.
func cidrs(i int) []string {
	return []string{fmt.Sprintf("10.244.%d.0/20", 16*i), fmt.Sprintf("fd00:244:0:%d::/64", i+1)}
}

func (c *Strait) startAgent(i int) error {
	n := c.nodes[i]
	config, err := json.Marshal(object{
		"clusterName": "bench", "routingMode": c.Mode, "ipv4": true, "ipv6": true, "cgroupRoot": n.Group.Unified(),
		"ipam":   object{"mode": "kubernetes", "podCIDRv4": "10.244.0.0/16", "podCIDRv6": "fd00:244::/48"},
		"runDir": "/run/strait", "stateDir": "/run/strait-state",
		"cni": object{"install": true, "binDir": straitBinDir, "confDir": straitConfDir}, "flows": object{"enabled": !c.Silent},
	})
	if err != nil {
		return err
	}
	if err := n.Write(straitConfig, config); err != nil {
		return err
	}
	pid, err := n.Start(c.site.log(n.Name), filepath.Join(c.site.box.StraitBin(), "strait-agent"), "--config", straitConfig, "--node-name", n.Name,
		"--source", "static:"+c.objects)
	c.pids = append(c.pids, pid)
	return err
}

// waitReady waits until the agent has written its conflist and answers STATUS.
func (c *Strait) waitReady(i int) (err error) {
	c.confList, err = c.site.admitted(c.nodes[i].Node)
	return err
}

// admitted waits until the agent of a node admits pods and returns the CNI configuration.
func (s *Site) admitted(n *node.Node) (confList string, err error) {
	deadline := time.Now().Add(60 * time.Second)
	for {
		conf, err := firstConf(n.Root(straitConfDir))
		if err == nil {
			if err = n.CNIStatus(conf, straitBinDir); err == nil {
				return conf, nil
			}
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(s.log(n.Name))
			return "", fmt.Errorf("agent of %s is not ready after 60 s: %w\n%s", n.Name, err, text[max(0, len(text)-3000):])
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// firstConf reads the configuration a runtime would use.
func firstConf(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.conflist"))
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("no conflist in %s", dir)
	}
	text, err := os.ReadFile(files[0])
	return string(text), err
}

// Runtime is what a container runtime on node i needs.
func (c *Strait) Runtime(i int) (n *node.Node, confList, binDir string) {
	return c.nodes[i].Node, c.confList, straitBinDir
}

func (c *Strait) about() string {
	about := fmt.Sprintf("strait-agent and strait-cni, routing mode %s, static source, %d services", c.Mode, c.Services)
	if c.Silent {
		about += ", flows.enabled false"
	}
	return about
}

// pods connects pods on node i.
func (c *Strait) pods(i int, names ...string) ([]pod, error) {
	return pods(c.nodes[i].Node, c.confList, straitBinDir, names...)
}

func (c *Strait) path(name string, on [2]int, client, server pod) (*Path, error) {
	nodes := [2]*node.Node{c.nodes[on[0]].Node, c.nodes[on[1]].Node}
	p := &Path{Name: name, About: c.about(), Address: server.address, Witness: []Witness{{nodes[0].Space, client.device}}, Nodes: nodes[:]}
	return c.site.between(p, nodes, client, server)
}

// SameNode is a path between two new pods of the first node.
func (c *Strait) SameNode(name string) (*Path, error) {
	made, err := c.pods(0, name+"-client", name+"-server")
	if err != nil {
		return nil, err
	}
	return c.path(name, [2]int{0, 0}, made[0], made[1])
}

// AcrossNodes is a path between new pods of the first and second node.
func (c *Strait) AcrossNodes(name string) (*Path, error) {
	client, err := c.pods(0, name+"-client")
	if err != nil {
		return nil, err
	}
	server, err := c.pods(1, name+"-server")
	if err != nil {
		return nil, err
	}
	return c.path(name, [2]int{0, 1}, client[0], server[0])
}

func (c *Strait) writeObjects() error {
	if err := os.MkdirAll(c.objects, 0o755); err != nil {
		return err
	}
	var nodes []object
	for i, n := range c.nodes {
		cidr := cidrs(i)
		nodes = append(nodes, object{"apiVersion": "v1", "kind": "Node", "metadata": object{"name": n.Name, "uid": n.Name},
			"spec": object{"podCIDR": cidr[0], "podCIDRs": cidr},
			"status": object{"addresses": []object{
				{"type": "InternalIP", "address": n.v4.String()}, {"type": "InternalIP", "address": n.v6.String()}}}})
	}
	if err := writeFile(c.objects, "nodes", nodes); err != nil {
		return err
	}
	var fill []object
	for i := range c.Services {
		fill = append(fill, serviceObjects("fill-"+strconv.Itoa(i),
			map[int]netip.Addr{4: netip.AddrFrom4([4]byte{10, 97, byte(i >> 8), byte(i)}), 6: v6(0x97, i>>8, i&255)}, 80, 1,
			map[int]netip.Addr{4: netip.AddrFrom4([4]byte{10, 244, byte(240 + i>>12), byte(i)}), 6: v6(0x244, 0xff, i)})...)
	}
	if err := writeFile(c.objects, "services", fill); err != nil {
		return err
	}
	return writeFile(c.objects, "more", c.Objects)
}

// writeFile writes objects as one file of the static source; JSON is YAML.
func writeFile[T any](dir, name string, objects []T) error {
	var b bytes.Buffer
	for _, o := range objects {
		text, err := json.Marshal(o)
		if err != nil {
			return err
		}
		b.WriteString("---\n")
		b.Write(text)
		b.WriteString("\n")
	}
	file := filepath.Join(dir, name+".yaml")
	if err := os.WriteFile(file+".new", b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// serviceObjects are a Service with consecutive ports, TCP and UDP, and an EndpointSlice with one backend per family.
func serviceObjects(name string, addresses map[int]netip.Addr, port, ports int, backend map[int]netip.Addr) []object {
	var servicePorts, slicePorts []object
	for i := range ports {
		for _, proto := range []string{"TCP", "UDP"} {
			id := strings.ToLower(proto) + strconv.Itoa(i)
			servicePorts = append(servicePorts, object{"name": id, "port": port + i, "targetPort": port + i, "protocol": proto})
			slicePorts = append(slicePorts, object{"name": id, "port": port + i, "protocol": proto})
		}
	}
	out := []object{{"apiVersion": "v1", "kind": "Service", "metadata": object{"name": name, "namespace": "bench", "uid": name},
		"spec": object{"type": "ClusterIP", "clusterIP": addresses[4].String(), "clusterIPs": []string{addresses[4].String(), addresses[6].String()},
			"ipFamilies": []string{"IPv4", "IPv6"}, "ports": servicePorts}}}
	for family, a := range backend {
		kind := fmt.Sprintf("IPv%d", family)
		out = append(out, object{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
			"metadata":  object{"name": fmt.Sprintf("%s-%d", name, family), "namespace": "bench", "labels": object{"kubernetes.io/service-name": name}},
			"ports":     slicePorts,
			"endpoints": []object{{"addresses": []string{a.String()}, "conditions": object{"ready": true, "serving": true, "terminating": false}}}})
	}
	return out
}

// AgentFiles are the /proc directories of the agents, as the machine sees them.
func (c *Strait) AgentFiles() []string {
	var out []string
	for i, pid := range c.pids {
		out = append(out, c.nodes[i].Root(filepath.Join("/proc", strconv.Itoa(pid))))
	}
	return out
}
