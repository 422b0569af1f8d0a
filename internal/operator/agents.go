package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/strait-net/strait/internal/enforcement"
	"github.com/strait-net/strait/internal/state"
)

const (
	askTimeout  = 3 * time.Second
	askedAtOnce = 32
	maxReport   = 64 << 20         // bytes
	silentAfter = 15 * time.Second // without an answer; what an agent said stays true while it restarts: the kernel enforces
	silentEvery = 30 * time.Second // at most, between two questions to an agent that does not answer
)

// agents asks every node's agent which policies it enforces. It belongs to one goroutine.
type agents struct {
	port   uint16
	client *http.Client
	known  map[string]*agent // by UID of the node
}

// agent is what is known of one.
type agent struct {
	node     string
	tag      string // of report, as the agent named it
	report   enforcement.Report
	answered time.Time // zero: never
	failures int
	next     time.Time // not asked again before
}

// newAgents reads the port from the address on which agents serve metrics.
func newAgents(metricsAddress string) (*agents, error) {
	host, text, err := net.SplitHostPort(metricsAddress)
	if err != nil {
		return nil, fmt.Errorf("metricsAddress: %q: agents serve nothing there that could be asked", metricsAddress)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("metricsAddress: %q: want a number as port", metricsAddress)
	}
	if addr, err := netip.ParseAddr(host); host != "" && (err != nil || !addr.IsUnspecified()) {
		return nil, fmt.Errorf("metricsAddress: %q: agents cannot be asked on every node's own address", metricsAddress)
	}
	return &agents{
		port: uint16(port), known: map[string]*agent{},
		client: &http.Client{
			Timeout:   askTimeout,
			Transport: &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: 2 * time.Minute, DisableCompression: true},
		},
	}, nil
}

// ask asks the agents of nodes that are due and returns what is known of all of them.
func (a *agents) ask(ctx context.Context, nodes []state.Node, now time.Time) enforcement.Nodes {
	there := make(map[string]bool, len(nodes))
	var group errgroup.Group
	group.SetLimit(askedAtOnce)
	for _, n := range nodes {
		there[n.UID] = true
		if n.Tainted || len(n.Addresses) == 0 {
			continue // its agent has never been ready
		}
		one := a.known[n.UID]
		if one == nil {
			one = &agent{node: n.Name}
			a.known[n.UID] = one
		}
		if now.Before(one.next) {
			continue
		}
		group.Go(func() error {
			err := a.askOne(ctx, one, netip.AddrPortFrom(n.Addresses[0], a.port))
			one.note(time.Now(), err)
			return nil
		})
	}
	_ = group.Wait() // each keeps its own failure
	var reports []enforcement.Report
	var silent []string
	for uid, one := range a.known {
		switch {
		case !there[uid]:
			delete(a.known, uid)
		case now.Sub(one.answered) < silentAfter:
			reports = append(reports, one.report)
		default:
			silent = append(silent, one.node)
		}
	}
	return enforcement.NewNodes(reports, silent)
}

func (a *agent) note(now time.Time, err error) {
	if err == nil {
		a.answered, a.failures, a.next = now, 0, time.Time{}
		return
	}
	a.failures++
	a.next = now.Add(min(time.Second<<min(a.failures, 10), silentEvery))
}

// askOne asks one agent. One whose answer would be the same again says so in a few bytes.
func (a *agents) askOne(ctx context.Context, one *agent, at netip.AddrPort) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+enforcement.Path, http.NoBody)
	if err != nil {
		return err
	}
	if one.tag != "" {
		request.Header.Set("If-None-Match", one.tag)
	}
	answer, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	switch answer.StatusCode {
	case http.StatusNotModified:
		return nil
	case http.StatusOK:
	default:
		return fmt.Errorf("agent of node %s: %s", one.node, answer.Status)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxReport+1))
	if err != nil {
		return fmt.Errorf("read report of node %s: %w", one.node, err)
	}
	if len(body) > maxReport {
		return errors.New("report of node " + one.node + " is too long")
	}
	var report enforcement.Report
	if err := json.Unmarshal(body, &report); err != nil {
		return fmt.Errorf("read report of node %s: %w", one.node, err)
	}
	report.Node = one.node // whatever it calls itself
	one.report, one.tag = report, answer.Header.Get("ETag")
	return nil
}

// close gives up idle connections.
func (a *agents) close() { a.client.CloseIdleConnections() }
