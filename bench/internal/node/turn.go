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
	Pod string // client's namespace
	To  netip.AddrPort
	// Witness answers always, on the same node: what it has not answered either was not denied, somebody had no CPU.
	Witness netip.AddrPort
	Allowed bool          // what to wait for
	Every   time.Duration // between datagrams
	Silence time.Duration // over how many datagrams nothing but the witness may answer before the flow counts as denied
	Timeout time.Duration
}

// Turned is the moment of the change. Of a flow that is denied: when the first datagram was sent that was not answered. Of one that is
// allowed: when the first answer came.
func (*service) Turn(t Turn, turned *Moment) error {
	return in(t.Pod, func() error {
		subject, err := dial(t.To)
		if err != nil {
			return err
		}
		witness, err := dial(t.Witness)
		if err != nil {
			return errors.Join(err, subject.conn.Close())
		}
		var receivers sync.WaitGroup
		defer receivers.Wait() // when both are closed
		for _, f := range []*flow{subject, witness} {
			receivers.Go(f.receive)
			defer func() { _ = f.conn.Close() }()
		}
		*turned, err = run(t, subject, witness)
		return err
	})
}

// flow is a stream of numbered datagrams.
type flow struct {
	conn *net.UDPConn

	mu       sync.Mutex // guards what follows, which the receiver writes
	answered int        // highest number that came back; -1: none
	first    Moment     // when the first came back
}

func dial(to netip.AddrPort) (*flow, error) {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	return &flow{conn: conn, answered: -1}, nil
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

func (f *flow) seen() (answered int, first Moment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answered, f.first
}

func run(t Turn, subject, witness *flow) (Moment, error) {
	begin := Now()
	var sent []Moment // by number
	var number [8]byte
	for {
		binary.BigEndian.PutUint64(number[:], uint64(len(sent)))
		sent = append(sent, Now())
		for _, f := range []*flow{subject, witness} {
			_, _ = f.conn.Write(number[:]) // what is not sent is not answered
		}
		time.Sleep(t.Every)
		witnessed, _ := witness.seen()
		answered, first := subject.seen() // later than the witness
		switch {
		case t.Allowed && answered >= 0:
			return first, nil
		case !t.Allowed && answered >= 0 && witnessed > answered+1 && sent[witnessed].Sub(sent[answered+1]) > t.Silence:
			return sent[answered+1], nil
		case Now().Sub(begin) > t.Timeout:
			return 0, fmt.Errorf("datagrams to %s: %d sent, the last answered is %d, of the witness %d, after %s: %w", t.To, len(sent), answered, witnessed, t.Timeout,
				errUnturned)
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
