package testkit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// roleVariable turns the test binary into one of its helpers when it is started again inside a namespace.
const roleVariable = "STRAIT_TESTKIT_ROLE"

// Main runs the tests of a package, or the role that the environment names. Use it as the body of TestMain.
func Main(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(Role(role))
	}
	os.Exit(m.Run())
}

// Role plays the named role and returns the exit code. Programs other than tests call it before anything else.
func Role(role string) int {
	var err error
	switch name, arg, _ := strings.Cut(role, " "); name {
	case "hold":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
	case "echo":
		port, name, _ := strings.Cut(arg, " ")
		err = echo(port, name)
	case "probe":
		err = probe(arg)
	default:
		err = fmt.Errorf("unknown role %q", name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// echo answers on a TCP and UDP port, both families, each line with "<client address> <name of the server> <line>".
func echo(port, name string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo([]byte(from.String()+" "+name+" "+string(buf[:n])), from)
		}
	}()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go answer(conn, name)
	}
}

func answer(conn net.Conn, name string) {
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 65536)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, conn.RemoteAddr().String()+" "+name+" "+string(buf[:n])); err != nil {
			return
		}
	}
}

// Probe says how to talk to an echo server.
type Probe struct {
	Network string        `json:"network"` // tcp or udp
	Address string        `json:"address"`
	Timeout time.Duration `json:"timeout"` // of one exchange
	// For repeats exchanges until the time is over, every Interval: on one connection if Keep, else on a new one each.
	For      time.Duration `json:"for"`
	Interval time.Duration `json:"interval"`
	Keep     bool          `json:"keep"`
	// Unconnected uses sendto/recvfrom on one UDP socket instead of connect.
	Unconnected bool `json:"unconnected"`
	Size        int  `json:"size"` // payload bytes
}

// Answer is what came of a Probe.
type Answer struct {
	OK      int            `json:"ok"`
	Failed  int            `json:"failed"`
	Errors  []string       `json:"errors,omitempty"` // the first few
	Seen    string         `json:"seen"`             // client address as the server saw it, last exchange
	Server  string         `json:"server"`           // who answered last
	Servers map[string]int `json:"servers"`          // exchanges by who answered
	Peer    string         `json:"peer"`             // getpeername, or the sender of the answer when unconnected
	Longest time.Duration
}

func probe(arg string) error {
	var p Probe
	if err := json.Unmarshal([]byte(arg), &p); err != nil {
		return err
	}
	if p.Timeout == 0 {
		p.Timeout = 2 * time.Second
	}
	var a Answer
	var conn net.Conn
	for begin := time.Now(); ; time.Sleep(p.Interval) {
		at := time.Now()
		err := a.exchange(p, &conn)
		a.Longest = max(a.Longest, time.Since(at))
		if err != nil {
			a.Failed++
			if len(a.Errors) < 5 {
				a.Errors = append(a.Errors, fmt.Sprintf("after %s: %v", time.Since(begin).Round(time.Millisecond), err))
			}
			if conn != nil {
				_ = conn.Close()
				conn = nil
			}
		} else {
			a.OK++
		}
		if time.Since(begin) >= p.For {
			break
		}
	}
	return json.NewEncoder(os.Stdout).Encode(a)
}

func (a *Answer) exchange(p Probe, kept *net.Conn) error {
	payload := strings.Repeat("x", max(p.Size, 1))
	if p.Unconnected {
		return a.exchangeUnconnected(p, payload)
	}
	conn := *kept
	if conn == nil {
		dialer := net.Dialer{Timeout: p.Timeout}
		dialer.SetMultipathTCP(false)
		var err error
		if conn, err = dialer.Dial(p.Network, p.Address); err != nil {
			return err
		}
		if p.Keep {
			*kept = conn
		} else {
			defer func() { _ = conn.Close() }()
		}
	}
	a.Peer = conn.RemoteAddr().String()
	_ = conn.SetDeadline(time.Now().Add(p.Timeout))
	if _, err := io.WriteString(conn, payload); err != nil {
		return err
	}
	return a.read(func(b []byte) (int, error) { return conn.Read(b) }, payload)
}

func (a *Answer) exchangeUnconnected(p Probe, payload string) error {
	to, err := net.ResolveUDPAddr("udp", p.Address)
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(p.Timeout))
	if _, err := conn.WriteToUDP([]byte(payload), to); err != nil {
		return err
	}
	return a.read(func(b []byte) (int, error) {
		n, from, err := conn.ReadFromUDP(b)
		if err == nil {
			a.Peer = from.String()
		}
		return n, err
	}, payload)
}

// read takes "<client address> <server> <payload>" from a stream or a datagram. A stream's server may have read the payload in several parts and
// put the addresses before each.
func (a *Answer) read(read func([]byte) (int, error), payload string) error {
	var got strings.Builder
	buf := make([]byte, 65536)
	for received := 0; received < len(payload); {
		n, err := read(buf)
		if err != nil {
			return err
		}
		received += bytes.Count(buf[:n], []byte("x")) // which neither addresses nor names have
		got.Write(buf[:n])
	}
	fields := strings.Fields(got.String())
	if len(fields) < 3 {
		return fmt.Errorf("server said %q", got.String())
	}
	a.Seen, a.Server = fields[0], fields[1]
	if a.Servers == nil {
		a.Servers = map[string]int{}
	}
	a.Servers[a.Server]++
	return nil
}
