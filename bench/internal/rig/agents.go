package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/result"
)

// idle is how long agents are left alone before their memory is read, and how long their CPU time is watched.
const idle = 5 * time.Second

// ticks is the kernel's USER_HZ, fixed in its interface.
const ticks = 100

// agents reads what idle agents use.
func (r *rig) agents(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idle):
	}
	var dirs []string
	var before []int
	for _, c := range r.straits {
		for i, dir := range c.AgentFiles() {
			used, err := cpuTicks(dir)
			if err != nil {
				return err
			}
			dirs, before = append(dirs, dir), append(before, used)
			r.run.Agents = append(r.run.Agents, result.Agent{Name: fmt.Sprintf("agent %s-%d", c.Name, i+1), Services: c.Services})
		}
	}
	time.Sleep(idle)
	for i, dir := range dirs {
		used, err := cpuTicks(dir)
		if err != nil {
			return err
		}
		a := &r.run.Agents[i]
		a.CPUMilli = (used - before[i]) * 1000 / ticks / int(idle/time.Second)
		if a.RSSKiB, err = rollup(dir, "Rss:"); err != nil {
			return err
		}
		if a.PSSKiB, err = rollup(dir, "Pss:"); err != nil {
			return err
		}
	}
	return nil
}

// rollup reads a field of /proc/PID/smaps_rollup, in KiB.
func rollup(dir, field string) (int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == field {
			return strconv.Atoi(f[1])
		}
	}
	return 0, fmt.Errorf("%s/smaps_rollup has no %s", dir, field)
}

var errStat = errors.New("stat of a process has too few fields")

// cpuTicks is a process's CPU time in USER_HZ; proc(5), fields 14 and 15 of stat, counted after the name's closing parenthesis.
func cpuTicks(dir string) (int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0, errStat
	}
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	return user + system, err
}
