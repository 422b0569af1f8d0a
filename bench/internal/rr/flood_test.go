package rr

import (
	"encoding/binary"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/strait-net/strait/bench/internal/wire"
	"golang.org/x/sys/unix"
)

// Nothing may be counted as a new connection that is none: pairs of ports do not repeat, not from one flood to the next either.
func TestFloodsDoNotRepeatThemselves(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes a network namespace: has to run as root")
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("compiles the load program: needs gcc")
	}
	space, err := wire.New("flood")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = space.Close() })
	if err := space.Up("lo"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rr")
	if err := Build(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	var all int // receives every datagram of the namespace
	if err := space.Do(func() (err error) {
		all, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(all) })
	if err := unix.SetsockoptInt(all, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		t.Fatal(err)
	}
	const first = 59_990 // over the end of the other end's ports
	seen, sent := map[uint32]bool{}, uint64(0)
	for range 2 {
		out, err := Open(path).Flood(t.Context(), NewSpawner(t.Context()), Place{Space: space}, Flood{To: netip.MustParseAddr("127.0.0.1"), First: first + sent, Rate: 10_000, Length: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if out.Sent == 0 || out.Rate() > 10_001 {
			t.Errorf("%+v: %.0f per second, want at most 10,000", out, out.Rate())
		}
		sent += out.Sent
	}
	packet := make([]byte, 1500)
	for {
		n, err := unix.Read(all, packet)
		if err != nil {
			break
		}
		udp := packet[int(packet[0]&15)*4 : n]
		if udp[4] != 0 || udp[5] != 64 || len(udp) != 64 {
			t.Fatalf("a datagram of %d bytes: % x", len(udp), udp)
		}
		seen[binary.BigEndian.Uint32(udp)] = true
	}
	if uint64(len(seen)) != sent {
		t.Errorf("%d datagrams are of %d pairs of ports", sent, len(seen))
	}
}
