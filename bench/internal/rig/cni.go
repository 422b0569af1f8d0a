package rig

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/path"
	"github.com/strait-net/strait/bench/internal/result"
)

const (
	together = 20  // calls at once, as a kubelet makes them when a node fills up
	batches  = 3   // of calls at once
	full     = 250 // pods of a full node
)

// subject is a plugin whose calls are timed, on a node of its own.
type subject struct {
	name   string
	node   *node.Node
	conf   string
	binDir string
	serial int
}

func (s *subject) names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("p%d", s.serial)
		s.serial++
	}
	return out
}

func (s *subject) call(pods []string, parallel int, remove, ping bool) (node.CNIReply, error) {
	reply, err := s.node.CNI(node.CNI{ConfList: s.conf, BinDir: s.binDir, Pods: pods, Parallel: parallel, Delete: remove, Ping: ping})
	if err != nil {
		return reply, fmt.Errorf("%s: %w", s.name, err)
	}
	return reply, nil
}

// cni times ADD and DEL of all plugins, in turns, through libcni.
func (r *rig) cni(ctx context.Context) error {
	subjects, err := r.subjects()
	if err != nil {
		return err
	}
	var devices []string
	for _, s := range subjects {
		if err := s.warm(); err != nil {
			return err
		}
		n, err := s.devices()
		if err != nil {
			return err
		}
		devices = append(devices, n)
	}
	r.Say("CNI: %d calls one after the other, %d x %d at once, %d pods, of %d plugins", r.Calls, batches, together, full, len(subjects))
	type batch struct {
		size, parallel, times int
		ping                  bool
	}
	for _, b := range []batch{{1, 1, r.Calls, false}, {together, together, batches, true}, {full, together, 1, true}} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.batches(subjects, b.size, b.parallel, b.times, b.ping); err != nil {
			return err
		}
	}
	for i, s := range subjects {
		now, err := s.devices()
		if err != nil {
			return err
		}
		if now != devices[i] {
			r.run.Notes = append(r.run.Notes, fmt.Sprintf("%s left devices behind: had %s, has %s", s.name, devices[i], now))
		}
	}
	return errors.Join(ctx.Err())
}

// devices counts the node's network devices: after DEL of every pod there must be as many as before.
func (s *subject) devices() (string, error) {
	out, err := s.node.Run("sh", "-c", "ls /sys/class/net | wc -l")
	return strings.TrimSpace(out), err
}

// warm makes one pod come and go, so that nobody pays for a bridge or a page cache in a timed call.
func (s *subject) warm() error {
	pods := s.names(1)
	if err := s.node.Pods(pods); err != nil {
		return err
	}
	if _, err := s.call(pods, 1, false, true); err != nil {
		return err
	}
	if _, err := s.call(pods, 1, true, false); err != nil {
		return err
	}
	return s.node.Unpod(pods)
}

// batches runs times batches of size pods on every plugin in turns.
func (r *rig) batches(subjects []*subject, size, parallel, times int, ping bool) error {
	add, del := make([]result.CNI, len(subjects)), make([]result.CNI, len(subjects))
	for range times {
		for i, s := range subjects {
			add[i].Plugin, add[i].Verb, add[i].Parallel, add[i].Pods = s.name, "ADD", parallel, size
			del[i].Plugin, del[i].Verb, del[i].Parallel, del[i].Pods = s.name, "DEL", parallel, size
			pods := s.names(size)
			if err := s.node.Pods(pods); err != nil {
				return err
			}
			added, err := s.call(pods, parallel, false, ping)
			if err != nil {
				return err
			}
			removed, err := s.call(pods, parallel, true, false)
			if err != nil {
				return err
			}
			collect(&add[i], added, size)
			collect(&del[i], removed, size)
			if err := s.node.Unpod(pods); err != nil {
				return err
			}
		}
	}
	for i := range subjects {
		r.run.CNI = append(r.run.CNI, add[i], del[i])
	}
	return nil
}

func collect(c *result.CNI, reply node.CNIReply, size int) {
	for i := range reply.Took {
		c.Ms = append(c.Ms, milli(reply.Took[i]))
		if reply.Reached[i] > 0 {
			c.ReachedMs = append(c.ReachedMs, milli(reply.Reached[i]))
		}
	}
	if size >= full {
		c.ElapsedMs = milli(reply.Elapsed)
	}
}

func milli(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (r *rig) subjects() ([]*subject, error) {
	var out []*subject
	for _, kind := range []string{path.PTP, path.Bridge} {
		n, err := r.site.Node("cni-" + kind)
		if err != nil {
			return nil, err
		}
		if err := r.site.KubeRules(n); err != nil {
			return nil, err
		}
		out = append(out, &subject{name: kind, node: n, conf: path.PluginConf(kind, "10.88.0.0/16", "fd00:88::/64"), binDir: r.box.Plugins()})
	}
	if r.PeersOnly {
		return out, nil
	}
	cluster, err := r.site.Strait(path.StraitOptions{Name: "cni-strait", Mode: "vxlan", Nodes: 1})
	if err != nil {
		return nil, err
	}
	n, conf, binDir := cluster.Runtime(0)
	return append(out, &subject{name: result.Strait, node: n, conf: conf, binDir: binDir}), nil
}
