// Package rr builds and runs the C request/response program that loads the paths.
package rr

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/strait-net/strait/bench/internal/wire"
)

// Mode is a kind of conversation.
type Mode string

// The modes of rr.c, in the order of their ports.
const (
	Stream Mode = "stream" // one TCP connection, bulk
	RR     Mode = "rr"     // one byte each way on one TCP connection
	CRR    Mode = "crr"    // connect, one byte each way, orderly close
	UDPRR  Mode = "udprr"  // one byte each way in datagrams
	UDPPPS Mode = "udppps" // 64-byte datagrams as fast as possible, counted where they arrive
)

// Modes returns all modes; the index is the mode's offset from the server's port.
func Modes() []Mode { return []Mode{Stream, RR, CRR, UDPRR, UDPPPS} }

// Port is where servers listen for their first mode.
const Port = 9000

// priority is the real-time priority of both ends on every path. With it a sample on a machine with 20 runnable processes varies by a
// tenth and is close to an idle machine's; with a nice value of -20 it varied fiftyfold, because nice counts inside a session only.
const priority = 10

// Place is where one end of a conversation runs.
type Place struct {
	Space  *wire.Namespace
	CPU    int
	Groups []string // cgroup.procs files the process joins first
}

// Program is the compiled program.
type Program struct{ path string }

// Open wraps the compiled program at path.
func Open(path string) Program { return Program{path: path} }

func (p Program) command(ctx context.Context, at Place, args ...string) *exec.Cmd {
	full := []string{"-c", strconv.Itoa(at.CPU), "-r", strconv.Itoa(priority)}
	for _, g := range at.Groups {
		full = append(full, "-g", g)
	}
	return exec.CommandContext(ctx, p.path, append(full, args...)...)
}

// Spawner starts processes from one thread that lives as long as the program: the processes ask to be killed with
// their parent *thread*.
type Spawner struct{ work chan func() }

// NewSpawner starts the thread; it ends with ctx.
func NewSpawner(ctx context.Context) *Spawner {
	s := &Spawner{work: make(chan func())}
	go s.run(ctx)
	return s
}

// Serve starts a server and returns once it listens. It ends with ctx.
func (p Program) Serve(ctx context.Context, s *Spawner, at Place) error {
	cmd := p.command(ctx, at, "server", strconv.Itoa(Port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("server in %s: %w", at.Space.Name, err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := s.Start(at.Space, cmd); err != nil {
		return fmt.Errorf("start server in %s: %w", at.Space.Name, err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("start server in %s: %q %s: %w", at.Space.Name, line, strings.TrimSpace(stderr.String()), errors.Join(err))
	}
	go func() { _ = cmd.Wait() }()
	return nil
}

// Load is one sample to take.
type Load struct {
	Mode   Mode
	To     netip.Addr
	Port   int // of the first mode; 0: Port
	Warm   time.Duration
	Length time.Duration
}

// Sample is what a client saw.
type Sample struct {
	Mode   Mode   `json:"mode"`
	Ops    uint64 `json:"ops"`     // transactions, datagrams received or bytes acknowledged in Ns
	AllOps uint64 `json:"all_ops"` // the same with the warm-up, for CPU per operation
	Sent   uint64 `json:"sent"`
	Ns     uint64 `json:"ns"`
	P50    uint64 `json:"p50_ns"`
	P99    uint64 `json:"p99_ns"`
}

// Rate returns operations per second.
func (s Sample) Rate() float64 {
	if s.Ns == 0 {
		return 0
	}
	return float64(s.Ops) / (float64(s.Ns) / 1e9)
}

// ParseSample reads the line a client prints.
func ParseSample(line []byte) (Sample, error) {
	var s Sample
	if err := json.Unmarshal(line, &s); err != nil {
		return s, fmt.Errorf("client printed %q: %w", line, err)
	}
	if s.Ops == 0 || s.Ns == 0 {
		return s, fmt.Errorf("client printed %q: %w", line, ErrEmpty)
	}
	return s, nil
}

// ErrEmpty is returned for a sample in which nothing was transferred.
var ErrEmpty = errors.New("sample without operations")

// Sample runs one client.
func (p Program) Sample(ctx context.Context, s *Spawner, from Place, l Load) (Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*(l.Warm+l.Length)+10*time.Second)
	defer cancel()
	port := l.Port
	if port == 0 {
		port = Port
	}
	cmd := p.command(ctx, from, "-t", ms(l.Length), "-w", ms(l.Warm), "client", string(l.Mode), l.To.String(), strconv.Itoa(port))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := s.Start(from.Space, cmd); err != nil {
		return Sample{}, fmt.Errorf("start client in %s: %w", from.Space.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return Sample{}, fmt.Errorf("%s from %s to %s: %s: %w", l.Mode, from.Space.Name, l.To, strings.TrimSpace(stderr.String()), err)
	}
	return ParseSample(stdout.Bytes())
}

func ms(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

//go:embed c/rr.c
var source []byte

// Source returns the program's C text; its hash names the compiled file in the cache.
func Source() []byte { return source }

// Build compiles the program to path.
func Build(ctx context.Context, path string) error {
	c := path + ".c"
	if err := os.WriteFile(c, source, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", c, err)
	}
	out, err := exec.CommandContext(ctx, "gcc", "-O2", "-static", "-o", path+".new", c).CombinedOutput()
	if err != nil {
		return fmt.Errorf("compile %s: %s: %w", c, out, err)
	}
	return os.Rename(path+".new", path)
}
