// Command bench measures Strait side by side with its peers on one machine and judges the ratios against the project's targets.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/strait-net/strait/bench/internal/measure"
	"github.com/strait-net/strait/bench/internal/node"
	"github.com/strait-net/strait/bench/internal/result"
	"github.com/strait-net/strait/bench/internal/rig"
	"github.com/strait-net/strait/bench/internal/rr"
)

const usage = `usage:
  bench [flags]            measure; needs root
  bench compare OLD NEW    show the drift between two results files
  bench show [FILE]        print a results file, the newest if none is named
  bench page               write results/README.md again from the newest file

flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case node.Argument:
			return node.Serve()
		case "compare":
			return compare(args[1:])
		case "show":
			return show(args[1:])
		case "page":
			return page()
		}
	}
	c, err := parse(args)
	if err != nil {
		return err
	}
	r, err := rig.Run(ctx, c)
	if err != nil {
		return err
	}
	if err := r.Print(os.Stdout); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Println("note:", n)
	}
	file, err := r.Save(c.Out)
	if err != nil {
		return err
	}
	fmt.Println("written to", file)
	return nil
}

func parse(args []string) (rig.Config, error) {
	begin := time.Now()
	c := rig.Config{Tests: rig.DefaultTests(), Say: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.Usage = func() { _, _ = fmt.Fprint(f.Output(), usage); f.PrintDefaults() }
	all := f.Bool("all", false, "all rows; the default when --rows is not given")
	rows := f.String("rows", "", "rows of the table of targets, of "+strings.Join(rig.Known(), ","))
	levels := f.String("services", "10,1000,10000", "numbers of other services in rows 3, 4, 7 and 8")
	tests := f.String("tests", "", "tests such as rr/4,crr/6; default: stream, rr, crr, udprr, udppps over IPv4 and the TCP ones over IPv6")
	quick := f.Bool("quick", false, "few short rounds, wide intervals")
	f.IntVar(&c.Rounds, "rounds", 15, "interleaved rounds")
	f.DurationVar(&c.Sample, "sample", 2*time.Second, "length of a sample")
	f.DurationVar(&c.WarmUp, "warm-up", 100*time.Millisecond, "unmeasured time before each sample")
	f.IntVar(&c.Calls, "calls", 50, "sequential CNI calls per plugin")
	systems := f.String("systems", "", "systems in rows 3, 4, 7 and 8, of strait,kp-iptables,kp-nftables (default all)")
	f.IntVar(&c.Changes, "changes", 120, "changes of endpoints in row 7, per system and number of services")
	f.DurationVar(&c.ChangeTime, "change-time", 3*time.Minute, "how long these may take; kube-proxy makes one a second at best")
	pods := f.String("pods", "0,10000,100000", "numbers of other nodes' pods in rows 9 and 10; row 10 is measured at 10000")
	policies := f.String("policies", "0,1000,10000", "numbers of policies in rows 9 and 10")
	f.IntVar(&c.TurnCount, "turns", 50, "changes of each kind and direction in row 10")
	f.BoolVar(&c.PortsEverywhere, "ports-everywhere", false, "row 4 at every number of services, not only at the first")
	f.BoolVar(&c.PeersOnly, "peers-only", false, "leave Strait out")
	f.StringVar(&c.Out, "out", "", "directory of the results (default bench/results)")
	f.StringVar(&c.Cache, "cache", "", "directory of built peers (default strait-bench in the user's cache)")
	f.StringVar(&c.Bin, "bin", "", "directory with strait-agent, strait-cni and strait (default: built from the tree)")
	f.IntVar(&c.ServerCPU, "server-cpu", 0, "CPU of the server")
	f.IntVar(&c.ClientCPU, "client-cpu", runtime.NumCPU()-1, "CPU of the client")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if *quick {
		given := map[string]bool{}
		f.Visit(func(f *flag.Flag) { given[f.Name] = true })
		shorten(&c, given)
	}
	if c.Bin != "" {
		bin, err := filepath.Abs(c.Bin)
		if err != nil {
			return c, err
		}
		c.Bin = bin
	}
	if *all && *rows != "" {
		return c, errors.New("--all and --rows exclude each other")
	}
	known := strings.Join(rig.Known(), ",")
	if *rows == "" {
		*rows = known
	}
	for r := range strings.SplitSeq(*rows, ",") {
		if !slices.Contains(rig.Known(), r) {
			return c, fmt.Errorf("--rows %s: unknown row %q, known are %s", *rows, r, known)
		}
		c.Rows = append(c.Rows, r)
	}
	var err error
	if c.Levels, err = parseLevels(*levels); err != nil {
		return c, err
	}
	if c.Pods, err = parseNumbers("pods", *pods, 100_000); err != nil {
		return c, err
	}
	if c.Policies, err = parseNumbers("policies", *policies, 100_000); err != nil {
		return c, err
	}
	if *systems != "" {
		c.Systems = strings.Split(*systems, ",")
	}
	if *tests != "" {
		if c.Tests, err = parseTests(*tests); err != nil {
			return c, err
		}
	}
	dir, err := os.Getwd()
	if err != nil {
		return c, err
	}
	if c.Repo, err = rig.FindRepo(dir); err != nil {
		return c, err
	}
	if c.Out == "" {
		c.Out = c.Repo + "/bench/results"
	}
	return c, nil
}

// shorten makes a run quick, except for what was asked for by flag.
func shorten(c *rig.Config, given map[string]bool) {
	if !given["rounds"] {
		c.Rounds = 5
	}
	if !given["sample"] {
		c.Sample = 300 * time.Millisecond
	}
	if !given["calls"] {
		c.Calls = 15
	}
	if !given["turns"] {
		c.TurnCount = 15
	}
	if !given["change-time"] {
		c.ChangeTime = 20 * time.Second
	}
	c.Brief = true
}

func parseLevels(text string) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || !slices.Contains(result.Levels(), n) || len(out) > 0 && n <= out[len(out)-1] {
			return nil, fmt.Errorf("--services %s: %q: want some of %v, rising", text, part, result.Levels())
		}
		out = append(out, n)
	}
	return out, nil
}

func parseNumbers(flag, text string, most int) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 || n > most || len(out) > 0 && n <= out[len(out)-1] {
			return nil, fmt.Errorf("--%s %s: %q: want numbers from 0 to %d, rising", flag, text, part, most)
		}
		out = append(out, n)
	}
	return out, nil
}

func parseTests(text string) ([]measure.Test, error) {
	known := map[string]measure.Test{}
	for _, m := range rr.Modes() {
		for _, family := range []int{4, 6} {
			t := measure.Test{Mode: m, Family: family}
			known[t.String()] = t
		}
	}
	var out []measure.Test
	for name := range strings.SplitSeq(text, ",") {
		t, ok := known[name]
		if !ok {
			return nil, fmt.Errorf("--tests %s: unknown test %q, want stream, rr, crr, udprr or udppps, then /4 or /6", text, name)
		}
		out = append(out, t)
	}
	return out, nil
}

func compare(args []string) error {
	if len(args) != 2 {
		return errors.New("compare wants two results files")
	}
	old, err := result.Load(args[0])
	if err != nil {
		return err
	}
	current, err := result.Load(args[1])
	if err != nil {
		return err
	}
	return result.PrintDrift(os.Stdout, result.Compare(old, current))
}

func show(args []string) error {
	if len(args) == 0 {
		_, newest, err := newest()
		if err != nil {
			return err
		}
		args = []string{newest}
	}
	r, err := result.Load(args[0])
	if err != nil {
		return err
	}
	return r.Print(os.Stdout)
}

func page() error {
	dir, file, err := newest()
	if err != nil {
		return err
	}
	r, err := result.Load(file)
	if err != nil {
		return err
	}
	return r.SavePage(dir, filepath.Base(file))
}

// newest returns the repository's directory of results and its newest file.
func newest() (dir, file string, err error) {
	if dir, err = os.Getwd(); err != nil {
		return "", "", err
	}
	if dir, err = rig.FindRepo(dir); err != nil {
		return "", "", err
	}
	dir += "/bench/results"
	file, err = result.Newest(dir)
	return dir, file, err
}
