package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// batch is what cyclonus asks a pod to try, and outcome what it wants to hear: the JSON of its "worker" package. One process for all of a pod's
// questions, instead of one for each, is most of what its cases cost on a small machine.
type batch struct {
	Requests []request
}

type request struct {
	Key      string
	Protocol string
	Host     string
	Port     int
}

type outcome struct {
	Request request
	Output  string
	Error   string
}

// patience and tries are those of cyclonus' own worker.
const (
	patience = time.Second
	tries    = 2
)

// work is "/worker --jobs JSON".
func work(args []string) error {
	if len(args) != 2 || args[0] != "--jobs" {
		return errors.New("usage: worker --jobs JSON")
	}
	var b batch
	if err := json.Unmarshal([]byte(args[1]), &b); err != nil {
		return fmt.Errorf("read jobs: %w", err)
	}
	addresses, unknown := resolve(b.Requests)
	out := make([]outcome, len(b.Requests))
	var asked sync.WaitGroup
	for i, r := range b.Requests {
		asked.Go(func() {
			out[i].Request = r
			if err := unknown[r.Host]; err != nil {
				out[i].Error = err.Error()
				return
			}
			for range tries {
				err := r.try(addresses[r.Host])
				if err == nil {
					out[i].Error = ""
					return
				}
				out[i].Error = err.Error()
			}
		})
	}
	asked.Wait()
	return json.NewEncoder(os.Stdout).Encode(out)
}

// resolve asks for each name once, and takes the time that a resolver takes: patience is for connections only, as with "agnhost connect".
func resolve(requests []request) (addresses map[string]*net.IPAddr, unknown map[string]error) {
	addresses, unknown = map[string]*net.IPAddr{}, map[string]error{}
	var mu sync.Mutex
	var asked sync.WaitGroup
	begun := map[string]bool{}
	for _, r := range requests {
		if begun[r.Host] {
			continue
		}
		begun[r.Host] = true
		asked.Go(func() {
			a, err := net.ResolveIPAddr("ip", r.Host)
			mu.Lock()
			defer mu.Unlock()
			addresses[r.Host], unknown[r.Host] = a, err
		})
	}
	asked.Wait()
	return addresses, unknown
}

// try does what "agnhost connect" does: a TCP connection, or a question and an answer by UDP or SCTP.
func (r request) try(to *net.IPAddr) error {
	address := net.JoinHostPort(to.String(), strconv.Itoa(r.Port))
	deadline := time.Now().Add(patience)
	switch r.Protocol {
	case "TCP":
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		return conn.Close()
	case "UDP":
		conn, err := net.DialTimeout("udp", address, patience)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("hostname\n")); err != nil {
			return err
		}
		n, err := conn.Read(make([]byte, 1024))
		if err == nil && n == 0 {
			err = errors.New("an empty answer")
		}
		return err
	case "SCTP":
		return ask(to, uint16(r.Port), deadline)
	}
	return fmt.Errorf("protocol %q: want TCP, UDP or SCTP", r.Protocol)
}
