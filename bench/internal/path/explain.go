package path

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/strait-net/strait/bench/internal/kube"
	"github.com/strait-net/strait/bench/internal/node"
	"golang.org/x/sys/unix"
)

const explainedPort = 9100

// Explainer is two nodes whose agents explain paths between pods.
type Explainer struct {
	nodes [2]*Member
}

// The questions.
const (
	ExplainService = "a pod to another of its node by a service"
	ExplainNodes   = "a pod to another node's, both nodes one after the other"
)

// Explainer starts the nodes: a client and a server with a service on the first, another server on the second, and on the first some pods of the crowd, so
// that its policies are the node's business.
func (c *Cluster) Explainer(name string) (*Explainer, error) {
	x := &Explainer{}
	for i := range x.nodes {
		m, err := c.Join(fmt.Sprintf("%s-%d", name, i+1), System{Name: "strait"})
		if err != nil {
			return nil, err
		}
		x.nodes[i] = m
		if err := m.start(); err != nil {
			return nil, err
		}
		// An agent serves what it has of a pod's policies when the pod is added.
		if m.confList, err = c.site.admitted(m.Node); err != nil {
			return nil, err
		}
	}
	here := x.nodes[0]
	for i := range crowdResident {
		resident := fmt.Sprintf("%s-%d", here.Name, i)
		here.label(resident, crowdLabels(i*crowdSpaces+i, 0))
		if _, err := here.podsOf(crowdSpace(i), resident); err != nil {
			return nil, err
		}
	}
	made, err := here.pods("client", "server")
	if err != nil {
		return nil, err
	}
	c.services++
	service := kube.Service{Name: name, Addresses: map[int]netip.Addr{4: netip.AddrFrom4([4]byte{10, 96, 1, byte(c.services)})},
		Ports: []kube.Port{{Number: 80, Target: explainedPort, Protocol: "TCP"}}}
	if err := c.server.Publish(c.site.ctx, service, map[int]netip.Addr{4: made[1].address[4]}, here.Name); err != nil {
		return nil, err
	}
	if _, err := x.nodes[1].pods("far"); err != nil {
		return nil, err
	}
	for i, server := range []string{"server", "far"} {
		if err := x.nodes[i].Answer(node.Answer{Pod: server, Ports: []int{explainedPort}}); err != nil {
			return nil, err
		}
	}
	return x, x.quiet()
}

// quiet waits until the agents have nothing to do.
func (x *Explainer) quiet() error {
	for _, m := range x.nodes {
		if _, err := m.quiet(); err != nil {
			return err
		}
	}
	return nil
}

// Restart kills the agents and starts new ones; it returns when they are ready.
func (x *Explainer) Restart() error {
	for _, m := range x.nodes {
		if err := m.Retire(); err != nil {
			return err
		}
		for end := time.Now().Add(10 * time.Second); m.lives(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				return fmt.Errorf("agent of %s: %w", m.Name, errLives)
			}
		}
		if err := m.start(); err != nil {
			return err
		}
	}
	for _, m := range x.nodes {
		for end := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			_, err := get(m.Space, m.v4, "/readyz")
			if err == nil {
				break
			}
			if time.Now().After(end) {
				return err
			}
		}
	}
	return nil
}

var errLives = errors.New("it lives on after SIGKILL")

// lives reports whether the daemon is there still: its lock is.
func (m *Member) lives() bool {
	_, err := os.Stat(m.Root(filepath.Join("/proc", strconv.Itoa(m.pid))))
	return err == nil
}

// Stop kills the agents for good.
func (x *Explainer) Stop() error {
	return errors.Join(x.nodes[0].Signal(x.nodes[0].pid, unix.SIGKILL), x.nodes[1].Signal(x.nodes[1].pid, unix.SIGKILL))
}

// Log is the last of what the agents said.
func (x *Explainer) Log() string { return x.nodes[0].Log() + x.nodes[1].Log() }

// Ask asks a question as a person on the node would, and checks the answer. What is known on the other node only is asked there.
func (x *Explainer) Ask(question string) (time.Duration, error) {
	client := x.nodes[0].Name + "/client"
	if question == ExplainService {
		return x.ask(0, "delivered", client, "svc/default/"+x.service()+":80")
	}
	there := fmt.Sprintf("%s/far:%d", x.nodes[1].Name, explainedPort)
	begins, err := x.ask(0, "unknown", client, there)
	if err != nil {
		return 0, err
	}
	ends, err := x.ask(1, "unknown", client, there)
	return begins + ends, err
}

func (x *Explainer) service() string {
	name := x.nodes[0].Name
	return name[:len(name)-len("-1")]
}

func (x *Explainer) ask(at int, want, from, to string) (time.Duration, error) {
	m := x.nodes[at]
	said, err := m.Timed(filepath.Join(m.cluster.site.box.StraitBin(), "strait"), "explain", from, to, "--output", "json")
	if err != nil {
		return 0, err
	}
	verdict, hops, err := conclusion([]byte(said.Output))
	if err != nil || verdict != want || hops == 0 {
		return 0, fmt.Errorf("explain %s %s on %s: exit code %d, verdict %q by %d hops, want %q: %s %w", from, to, m.Name, said.Code, verdict, hops, want, said.Output, err)
	}
	return said.Took, nil
}

// conclusion reads the answer of strait explain: what becomes of the packet, and how many hops that rests on.
func conclusion(answer []byte) (verdict string, hops int, err error) {
	type leg struct {
		Part *struct {
			Hops []json.RawMessage `json:"hops"`
		} `json:"part"`
	}
	var path struct {
		There      []leg `json:"there"`
		Back       []leg `json:"back"`
		Conclusion struct {
			Verdict string `json:"verdict"`
		} `json:"conclusion"`
	}
	if err := json.Unmarshal(answer, &path); err != nil {
		return "", 0, err
	}
	for _, l := range append(path.There, path.Back...) {
		if l.Part != nil {
			hops += len(l.Part.Hops)
		}
	}
	return path.Conclusion.Verdict, hops, nil
}
