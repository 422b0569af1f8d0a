package node

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestTurnSeesWhenAnswersBeginAndCease(t *testing.T) {
	conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	turn := Turn{To: netip.MustParseAddrPort(conn.LocalAddr().String()), Every: time.Millisecond, Silence: 30 * time.Millisecond, Timeout: 10 * time.Second}
	answering := func(from, until time.Duration) (begin Moment) {
		begin = Now()
		go func() {
			buffer := make([]byte, 64)
			for {
				n, peer, err := conn.ReadFrom(buffer)
				if err != nil {
					return
				}
				if passed := Now().Sub(begin); passed >= from && passed < until {
					_, _ = conn.WriteTo(buffer[:n], peer)
				}
				if Now().Sub(begin) >= until+time.Second {
					return
				}
			}
		}()
		return begin
	}
	begin := answering(0, 60*time.Millisecond)
	var at Moment
	if err := (&service{}).Turn(turn, &at); err != nil {
		t.Fatal(err)
	}
	if after := at.Sub(begin); after < 50*time.Millisecond || after > 5*time.Second {
		t.Errorf("answers ceased after 60 ms, seen after %s", after)
	}
	turn.Timeout = 100 * time.Millisecond
	if err := (&service{}).Turn(Turn{To: turn.To, Allowed: true, Every: turn.Every, Timeout: turn.Timeout}, &at); !errors.Is(err, errUnturned) {
		t.Errorf("a flow without answers: %v", err)
	}
}
