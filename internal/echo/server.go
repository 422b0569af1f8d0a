package echo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// What one server bears: it runs in clusters where anybody may reach it.
const (
	maxConns  = 256
	maxHeader = 8 << 10
	maxPacket = 2 << 10 // bytes of a datagram that are read
	patience  = 10 * time.Second
)

// Server is what a server says and where it listens.
type Server struct {
	Pod, Node string
	HTTP, UDP uint16 // ports, on all addresses; 0: none
	// Say is answered to HTTP in place of a Reply.
	Say string
}

// Serve answers until ctx ends, also when it listens nowhere. The error is that of a port that cannot be had.
func (s Server) Serve(ctx context.Context) error {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // its sockets take other ways through the kernel than those of other programs
	group, ctx := errgroup.WithContext(ctx)
	if s.HTTP != 0 {
		listener, err := config.Listen(ctx, "tcp", ":"+strconv.Itoa(int(s.HTTP)))
		if err != nil {
			return fmt.Errorf("listen for HTTP: %w", err)
		}
		defer listener.Close()
		group.Go(func() error { return s.serveHTTP(ctx, listener) })
	}
	if s.UDP != 0 {
		conn, err := config.ListenPacket(ctx, "udp", ":"+strconv.Itoa(int(s.UDP)))
		if err != nil {
			return fmt.Errorf("listen for UDP: %w", err)
		}
		defer conn.Close()
		group.Go(func() error { return s.serveUDP(ctx, conn.(*net.UDPConn)) })
	}
	group.Go(func() error {
		<-ctx.Done()
		return nil
	})
	return group.Wait()
}

func (s Server) serveHTTP(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: s, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: patience, ReadTimeout: patience, WriteTimeout: patience, IdleTimeout: patience,
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })() // it ends: nobody waits for its answers any more
	err := server.Serve(&bounded{Listener: listener, free: make(chan struct{}, maxConns), done: ctx.Done()})
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve HTTP: %w", err)
}

// ServeHTTP answers every path and method.
func (s Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Say != "" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, s.Say+"\n") // who does not listen any more is not to be told
		return
	}
	reply := Reply{Pod: s.Pod, Node: s.Node, Protocol: "TCP"}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		reply.From = unmap(from)
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		reply.At = unmap(local.AddrPort())
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(reply)
}

// serveUDP answers datagrams. An answer is never longer than what was asked, so that nobody's packets are multiplied: the client pads.
func (s Server) serveUDP(ctx context.Context, conn *net.UDPConn) error {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	buffer := make([]byte, maxPacket)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read datagram: %w", err)
		}
		answer, err := json.Marshal(Reply{Pod: s.Pod, Node: s.Node, Protocol: "UDP", From: unmap(from)})
		if err != nil || len(answer) > n {
			continue
		}
		_, _ = conn.WriteToUDPAddrPort(answer, from) // one datagram that cannot be sent is as good as one that is lost
	}
}

// bounded accepts a connection only while fewer than cap(free) are open.
type bounded struct {
	net.Listener
	free chan struct{}
	done <-chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.free <- struct{}{}:
	case <-b.done:
		return nil, net.ErrClosed
	}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.free
		return nil, err
	}
	return &counted{Conn: conn, free: b.free}, nil
}

// counted gives its place back once it is closed.
type counted struct {
	net.Conn
	free <-chan struct{}
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { <-c.free })
	return c.Conn.Close()
}
