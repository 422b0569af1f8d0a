package path

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/bill"
	"github.com/strait-net/strait/bench/internal/kube"
	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/rr"
	"github.com/strait-net/strait/bench/internal/wire"
	"golang.org/x/sys/unix"
)

// Accounts of those who work because of connections.
const (
	AgentAccount  = "agent"
	ReaderAccount = "reader"
)

// metricsPort is the agent's default.
const metricsPort = 9964

// Accounted adds the account of the first node's agent to a path of that node. An agent works off what a connection left within a tenth of a second.
func (c *Strait) Accounted(p *Path) (*Path, error) {
	agent, err := c.nodes[0].Runtime()
	if err != nil {
		return nil, err
	}
	p.Accounts, p.Settle = map[string]bill.Group{AgentAccount: agent}, 100*time.Millisecond
	return p, nil
}

// Read starts a client on the first node that follows all flows and prints them to nowhere, with an account of its own.
func (c *Strait) Read(p *Path) (*Path, error) {
	reader, err := c.nodes[0].Group.Child(ReaderAccount)
	if err != nil {
		return nil, err
	}
	if c.reader, err = c.nodes[0].StartIn(reader, "/dev/null", c.observe()...); err != nil {
		return nil, err
	}
	p.Accounts[ReaderAccount], p.Settle = reader, 400*time.Millisecond
	p.About += "; on its node: " + strings.Join(append([]string{"strait"}, c.observe()[1:]...), " ")
	return p, nil
}

// Reads fails when the client that Read started is gone.
func (c *Strait) Reads() error {
	if c.reader == 0 {
		return nil
	}
	if _, err := os.Stat(c.nodes[0].Root(filepath.Join("/proc", strconv.Itoa(c.reader)))); err != nil {
		return fmt.Errorf("client of %s has ended: %w", c.Name, err)
	}
	return nil
}

// observe is the client that follows all flows.
func (c *Strait) observe() []string {
	return []string{filepath.Join(c.site.box.StraitBin(), "strait"), "observe", "--follow", "--output", "jsonpb"}
}

// Flood is a node of one agent whose pods flood each other.
type Flood struct {
	*Strait
	Path    *Path // from a client to the pod that everybody may talk to
	senders [2]rr.Place
	open    netip.Addr
	shut    netip.Addr // of a pod that nobody may talk to
	used    uint64     // numbers of datagrams: see rr.Flood
}

// Flood starts the node.
func (s *Site) Flood(name string) (*Flood, error) {
	const space = "bench"
	shut := map[string]string{"app": "shut"}
	objects := []any{kube.Policy{Namespace: space, Name: "shut", Pods: shut}.Object()}
	var names []string
	for _, pod := range []string{"client", "second", "open", "shut"} {
		labels := map[string]string{"app": pod}
		names = append(names, pod)
		objects = append(objects, object{"apiVersion": "v1", "kind": "Pod",
			"metadata": object{"name": pod, "namespace": space, "uid": node.PodUID(pod), "labels": labels},
			"spec":     object{"nodeName": name + "-1", "containers": []object{{"name": "main"}}}, "status": object{"phase": "Running"}})
	}
	c, err := s.Strait(StraitOptions{Name: name, Mode: "native", Nodes: 1, Services: 10, Objects: objects})
	if err != nil {
		return nil, err
	}
	made, err := c.pods(0, names...)
	if err != nil {
		return nil, err
	}
	f := &Flood{Strait: c, open: made[2].address[4], shut: made[3].address[4]}
	if f.Path, err = c.path(name, [2]int{0, 0}, made[0], made[2]); err != nil {
		return nil, err
	}
	f.senders[0] = f.Path.Client.Place
	f.senders[1] = rr.Place{Space: made[1].space, CPU: s.serverCPU, Groups: f.Path.Server.Groups}
	return f, nil
}

// Connections floods the open pod from one client.
func (f *Flood) Connections(rate int, length time.Duration) (rr.Flooded, error) {
	return f.flood(0, f.open, rate, length)
}

// Everything floods the open pod and the shut one at once, from a client on each CPU, as fast as they can.
func (f *Flood) Everything(length time.Duration) (open, shut rr.Flooded, err error) {
	done := make(chan error, 1)
	go func() {
		var err error
		shut, err = f.flood(1, f.shut, 0, length)
		done <- err
	}()
	open, err = f.flood(0, f.open, 0, length)
	return open, shut, errors.Join(err, <-done)
}

func (f *Flood) flood(sender int, to netip.Addr, rate int, length time.Duration) (rr.Flooded, error) {
	first := uint64(0)
	if to == f.open {
		first = f.used
	}
	out, err := f.site.program.Flood(f.site.ctx, f.site.spawner, f.senders[sender], rr.Flood{To: to, First: first, Rate: rate, Length: length})
	if to == f.open {
		f.used += out.Sent
	}
	return out, err
}

// Sample takes a sample of ordinary connections.
func (f *Flood) Sample(mode rr.Mode, length time.Duration) (rr.Sample, error) {
	return f.site.Sample(f.Path, rr.Load{Mode: mode, To: f.Path.Address[4], Length: length})
}

// Follow starts a client whose flows are counted.
func (f *Flood) Follow() error { return f.nodes[0].Follow(f.observe()...) }

// Followed says what the client has got until now.
func (f *Flood) Followed() (node.Followed, error) { return f.nodes[0].Followed() }

// Unfollow ends the client.
func (f *Flood) Unfollow() (node.Followed, error) { return f.nodes[0].Unfollow() }

// Retire kills the agent.
func (f *Flood) Retire() error { return f.nodes[0].Signal(f.pids[0], unix.SIGKILL) }

// AgentDir is the agent's directory in /proc.
func (f *Flood) AgentDir() string { return f.AgentFiles()[0] }

// Metrics reads the counters of the first node's agent; the key is name and labels as they are printed.
func (c *Strait) Metrics() (map[string]uint64, error) {
	text, err := get(c.nodes[0].Space, c.nodes[0].v4, "/metrics")
	if err != nil {
		return nil, err
	}
	return counters(text)
}

// get reads what an agent serves beside its metrics, from its own node.
func get(space *wire.Namespace, address netip.Addr, page string) ([]byte, error) {
	var conn net.Conn
	if err := space.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(address, metricsPort).String(), 5*time.Second)
		return err
	}); err != nil {
		return nil, fmt.Errorf("%s of %s: %w", page, space.Name, err)
	}
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	r, err := client.Get("http://agent" + page)
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", page, space.Name, errors.Join(err, conn.Close()))
	}
	text, err := io.ReadAll(r.Body)
	if r.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("%s: %s", r.Status, text))
	}
	if err := errors.Join(err, r.Body.Close()); err != nil {
		return nil, fmt.Errorf("%s of %s: %w", page, space.Name, err)
	}
	return text, nil
}

// counters reads Prometheus' text format.
func counters(text []byte) (map[string]uint64, error) {
	out := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || !strings.HasPrefix(line, "strait_") {
			continue
		}
		v, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("metric %q: %w", line, err)
		}
		out[line[:at]] = uint64(v)
	}
	return out, nil
}
