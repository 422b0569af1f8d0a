package node

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// echoing answers datagrams while it is asked to.
func echoing(t *testing.T, answering func() bool) netip.AddrPort {
	t.Helper()
	conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buffer := make([]byte, 64)
		for {
			n, peer, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answering() {
				_, _ = conn.WriteTo(buffer[:n], peer)
			}
		}
	}()
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

func TestTurnSeesWhenAnswersBeginAndCease(t *testing.T) {
	begin := Now()
	since := func() time.Duration { return Now().Sub(begin) }
	witness := echoing(t, func() bool { return since() < 80*time.Millisecond || since() > 200*time.Millisecond })
	// Silent together with the witness for a while, then alone.
	subject := echoing(t, func() bool {
		return since() < 80*time.Millisecond || since() > 200*time.Millisecond && since() < 300*time.Millisecond
	})
	turn := Turn{To: subject, Witness: witness, Every: time.Millisecond, Silence: 20 * time.Millisecond, Timeout: 10 * time.Second}
	var at Moment
	if err := (&service{}).Turn(turn, &at); err != nil {
		t.Fatal(err)
	}
	if after := at.Sub(begin); after < 250*time.Millisecond || after > 5*time.Second {
		t.Errorf("answers ceased after 300 ms, seen after %s", after)
	}
	turn.Allowed, turn.Timeout = true, 100*time.Millisecond
	if err := (&service{}).Turn(turn, &at); !errors.Is(err, errUnturned) {
		t.Errorf("a flow without answers: %v", err)
	}
}
