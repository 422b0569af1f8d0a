package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Echo makes a pod of the node send datagrams back to where they come from.
type Echo struct {
	Pod  string
	Port int
}

// Echo starts the listener; it lives as long as the node.
func (*service) Echo(e Echo, _ *Nothing) error {
	var conn net.PacketConn
	err := in(e.Pod, func() (err error) {
		conn, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", e.Port))
		return err
	})
	if err != nil {
		return fmt.Errorf("listen for datagrams on port %d: %w", e.Port, err)
	}
	go func() {
		buffer := make([]byte, 64)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buffer[:n], from)
		}
	}()
	return nil
}

// Turn sends datagrams of one flow all the time and waits until they begin to be answered, or cease to be.
type Turn struct {
	Pod     string // client's namespace
	To      netip.AddrPort
	Allowed bool          // what to wait for
	Every   time.Duration // between datagrams
	Silence time.Duration // how long nothing may come back before the flow counts as denied
	Timeout time.Duration
}

// Turned is the moment of the change. Of a flow that is denied: when the first datagram was sent that was not answered. Of one that is
// allowed: when the first answer came.
func (*service) Turn(t Turn, turned *Moment) error {
	return in(t.Pod, func() error {
		conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(t.To))
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		f := &flow{conn: conn, answered: -1}
		var receiver sync.WaitGroup
		receiver.Go(f.receive)
		defer receiver.Wait()
		defer func() { _ = conn.Close() }()
		*turned, err = f.run(t)
		return err
	})
}

// flow is a stream of numbered datagrams.
type flow struct {
	conn *net.UDPConn
	sent []Moment // by number; of the sender

	mu       sync.Mutex // guards what follows, which the receiver writes
	answered int        // highest number that came back; -1: none
	first    Moment     // when the first came back
}

func (f *flow) receive() {
	buffer := make([]byte, 64)
	for {
		n, err := f.conn.Read(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != 8 {
			continue // an ICMP error about an earlier datagram
		}
		at, number := Now(), int(binary.BigEndian.Uint64(buffer))
		f.mu.Lock()
		if f.answered < 0 {
			f.first = at
		}
		f.answered = max(f.answered, number)
		f.mu.Unlock()
	}
}

func (f *flow) run(t Turn) (Moment, error) {
	begin := Now()
	var number [8]byte
	for {
		binary.BigEndian.PutUint64(number[:], uint64(len(f.sent)))
		f.sent = append(f.sent, Now())
		_, _ = f.conn.Write(number[:]) // what is not sent is not answered
		time.Sleep(t.Every)
		f.mu.Lock()
		answered, first := f.answered, f.first
		f.mu.Unlock()
		now := Now()
		switch {
		case t.Allowed && answered >= 0:
			return first, nil
		case !t.Allowed && answered >= 0 && answered+1 < len(f.sent) && now.Sub(f.sent[answered+1]) > t.Silence:
			return f.sent[answered+1], nil
		case now.Sub(begin) > t.Timeout:
			return 0, fmt.Errorf("datagrams to %s: %d sent, the last answered is %d after %s: %w", t.To, len(f.sent), answered, t.Timeout, errUnturned)
		}
	}
}

var errUnturned = errors.New("the verdict has not changed")

// Echo makes a pod of the node send datagrams back.
func (n *Node) Echo(e Echo) error { return n.call("Echo", e, &Nothing{}) }

// Turn waits until the verdict on a flow changes.
func (n *Node) Turn(t Turn) (Moment, error) {
	var turned Moment
	err := n.call("Turn", t, &turned)
	return turned, err
}
