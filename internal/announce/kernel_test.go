package announce

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/datapath/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// filters returns the lines of the device's multicast filter.
func filters(t *testing.T, mac string) (lines int) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/dev_mcast")
	check(t, err)
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "h0") && strings.Contains(line, mac) {
			lines++
		}
	}
	return lines
}

func members(t *testing.T, group string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/net/igmp6")
	check(t, err)
	return strings.Contains(string(text), group)
}

// The link hears questions about an address as long as one of its group is announced; the device's filter outlives the process, and
// the next one takes it away.
func TestHeraldOnARealLink(t *testing.T) {
	nstest.Root(t)
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "h0"}, PeerName: "h1"}))
	for _, name := range []string{"h0", "h1"} {
		l, err := netlink.LinkByName(name)
		check(t, err)
		check(t, netlink.LinkSetUp(l))
	}
	h1, err := netlink.LinkByName("h1")
	check(t, err)
	wire, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	check(t, err)
	defer func() { _ = unix.Close(wire) }()
	check(t, unix.Bind(wire, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: h1.Attrs().Index}))
	check(t, unix.SetsockoptTimeval(wire, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}))

	ctx, cancel := context.WithCancel(t.Context())
	h := NewHerald(ctx, slog.New(slog.DiscardHandler))
	index, mac, err := h.Place("h0")
	check(t, err)
	if _, _, err := h.Place("nowhere"); err == nil {
		t.Error("no error about a device that is not there")
	}
	if _, _, err := h.Place("lo"); err == nil || !strings.Contains(err.Error(), "Ethernet") {
		t.Errorf("about a device without Ethernet: %v", err)
	}
	const hardware, group = "3333ff123456", "ff0200000000000000000001ff123456"
	one, two := addr("2001:db8::12:3456"), addr("2001:db8:1::12:3456")
	for range 2 {
		check(t, h.Listen("h0", index, one))
		check(t, h.Listen("h0", index, two))
		check(t, h.Listen("h0", index, addr("192.0.2.9")))
	}
	if filters(t, hardware) != 1 || !members(t, group) {
		t.Errorf("filter %d, member %t", filters(t, hardware), members(t, group))
	}
	h.Withdraw(index, one)
	if filters(t, hardware) != 1 || !members(t, group) {
		t.Error("left a group that another address is in")
	}
	h.Withdraw(index, two)
	if filters(t, hardware) != 0 || members(t, group) {
		t.Errorf("still there: filter %d, member %t", filters(t, hardware), members(t, group))
	}

	h.Announce(index, mac, addr("192.0.2.9"))
	seen := 0
	for buf := make([]byte, 256); seen < 4; { // request and reply, twice at least
		n, _, err := unix.Recvfrom(wire, buf, 0)
		if err != nil {
			t.Fatalf("after %d messages: %v", seen, err)
		}
		for _, f := range frames(mac, addr("192.0.2.9")) {
			if n >= len(f) && string(buf[:len(f)]) == string(f) {
				seen++
			}
		}
	}
	h.Withdraw(index, addr("192.0.2.9"))

	check(t, h.Listen("h0", index, one))
	cancel() // the process ends
	for end := time.Now().Add(5 * time.Second); members(t, group); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("membership outlives the socket")
		}
	}
	if filters(t, hardware) != 1 {
		t.Error("the filter went with the process")
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	next := NewHerald(ctx, slog.New(slog.DiscardHandler))
	check(t, next.Listen("h0", index, one))
	next.Withdraw(index, one)
	if filters(t, hardware) != 0 {
		t.Error("the filter of the last run stays")
	}
	check(t, next.Listen("h0", index, one))
	again := NewHerald(ctx, slog.New(slog.DiscardHandler))
	again.Withdraw(index, two) // what a prune finds that this run has not listened to
	next.Withdraw(index, one)
	h.Withdraw(index, two) // its context has ended
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
