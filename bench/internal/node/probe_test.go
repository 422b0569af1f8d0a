package node

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// freePort is a port of loopback that nobody listens on.
func freePort(t *testing.T) uint16 {
	t.Helper()
	var c net.ListenConfig
	l, err := c.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

func TestWatchSeesTheMomentATargetAnswers(t *testing.T) {
	port := freePort(t)
	w := Watch{Targets: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}, Want: byte(port), Every: time.Millisecond,
		Patience: time.Second, Timeout: 10 * time.Second}
	var begin Moment
	go func() {
		time.Sleep(50 * time.Millisecond)
		begin = Now()
		_ = (&service{}).Answer(Answer{Ports: []int{int(port)}}, nil)
	}()
	var reached Moment
	if err := (&service{}).Watch(w, &reached); err != nil {
		t.Fatal(err)
	}
	if took := reached.Sub(begin); took < 0 || took > 5*time.Second {
		t.Errorf("answered %s after the listener was opened", took)
	}
	w.Want, w.Timeout = byte(port)+1, 20*time.Millisecond
	if err := (&service{}).Watch(w, &reached); err == nil {
		t.Error("an answer of another endpoint counted")
	}
}

func TestWatchEndsWhenTold(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ended")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := Watch{Targets: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))}, Patience: time.Second, Timeout: time.Minute,
		Unless: file}
	if err := (&service{}).Watch(w, new(Moment)); !errors.Is(err, errEnded) {
		t.Errorf("the watch ended with %v", err)
	}
}
