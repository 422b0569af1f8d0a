package rr

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Flood is a series of datagrams of which each belongs to a connection of its own. IPv4 only.
type Flood struct {
	To netip.Addr
	// First is the number of the first datagram. The pair of ports comes from the number; it is another one for 3,600,000,000 numbers.
	First uint64
	// Rate is datagrams per second; 0: as many as there can be.
	Rate   int
	Length time.Duration
}

// Flooded is what was sent.
type Flooded struct {
	Sent uint64 `json:"sent"`
	Ns   uint64 `json:"ns"`
}

// Rate returns datagrams per second.
func (f Flooded) Rate() float64 { return float64(f.Sent) / (float64(max(f.Ns, 1)) / 1e9) }

// Flood sends one.
func (p Program) Flood(ctx context.Context, s *Spawner, from Place, f Flood) (out Flooded, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*f.Length+10*time.Second)
	defer cancel()
	cmd := p.command(ctx, from, "-t", ms(f.Length), "flood", f.To.String(), strconv.FormatUint(f.First, 10), strconv.Itoa(f.Rate))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := s.Start(from.Space, cmd); err != nil {
		return out, fmt.Errorf("start flood in %s: %w", from.Space.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out, fmt.Errorf("flood from %s to %s: %s: %w", from.Space.Name, f.To, strings.TrimSpace(stderr.String()), err)
	}
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
		return out, fmt.Errorf("flood printed %q: %w", stdout.Bytes(), err)
	}
	return out, nil
}
