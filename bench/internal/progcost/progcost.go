// Package progcost reads what BPF programs cost from the kernel's own statistics.
package progcost

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Total is what a program has cost since it was loaded. It grows only while statistics are enabled.
type Total struct {
	Name string
	Runs uint64
	Time time.Duration
}

// Enable switches the kernel's statistics on until the closer is closed. They cost about 20 ns per run, so nothing that is compared with
// anything else may be measured meanwhile.
func Enable() (io.Closer, error) {
	c, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, fmt.Errorf("enable BPF statistics: %w", err)
	}
	return c, nil
}

// Linked adds the programs behind the links pinned anywhere below dir to totals, by program id.
func Linked(totals map[ebpf.ProgramID]Total, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		id, ok := program(path)
		if !ok {
			return nil
		}
		if err := Add(totals, id); err != nil {
			return fmt.Errorf("link %s: %w", path, err)
		}
		return nil
	})
}

// Add reads a program unless totals has it.
func Add(totals map[ebpf.ProgramID]Total, id ebpf.ProgramID) error {
	if _, seen := totals[id]; seen {
		return nil
	}
	total, err := read(id)
	if err != nil {
		return fmt.Errorf("program %d: %w", id, err)
	}
	totals[id] = total
	return nil
}

// program returns the program of a pinned link, false for a pinned map or program.
func program(path string) (ebpf.ProgramID, bool) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return 0, false
	}
	info, err := l.Info()
	if errors.Join(err, l.Close()) != nil {
		return 0, false
	}
	return info.Program, true
}

func read(id ebpf.ProgramID) (Total, error) {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return Total{}, err
	}
	info, err := prog.Info()
	if err != nil {
		return Total{}, errors.Join(err, prog.Close())
	}
	stats, err := prog.Stats()
	if err := errors.Join(err, prog.Close()); err != nil {
		return Total{}, err
	}
	return Total{Name: info.Name, Runs: stats.RunCount, Time: stats.Runtime}, nil
}

// Cost is what one program cost per operation between two readings.
type Cost struct {
	Name      string  `json:"name"`
	RunsPerOp float64 `json:"runs_per_op"`
	NsPerRun  float64 `json:"ns_per_run"`
}

// rare is the number of runs per operation below which a program belongs to the start of a sample, not to its operations.
const rare = 0.02

// Between returns the programs that ran between two readings in which ops operations were made, programs of one name summed.
func Between(before, after map[ebpf.ProgramID]Total, ops uint64) []Cost {
	sum := map[string]Total{}
	var names []string
	for id, a := range after {
		b := before[id]
		if a.Runs == b.Runs {
			continue
		}
		t, seen := sum[a.Name]
		if !seen {
			names = append(names, a.Name)
		}
		sum[a.Name] = Total{Runs: t.Runs + a.Runs - b.Runs, Time: t.Time + a.Time - b.Time}
	}
	var out []Cost
	for _, name := range sorted(names) {
		t := sum[name]
		if float64(t.Runs) < rare*float64(ops) {
			continue
		}
		out = append(out, Cost{Name: name, RunsPerOp: float64(t.Runs) / float64(max(1, ops)), NsPerRun: float64(t.Time) / float64(t.Runs)})
	}
	return out
}

func sorted(names []string) []string {
	slices.Sort(names)
	return names
}
