package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// held is one long connection to agnhost's netexec.
type held struct {
	Target    string // tcp:ADDRESS:PORT or udp:ADDRESS:PORT
	Exchanges int
	Lost      int           // datagrams without an answer
	Slowest   time.Duration // exchange that was answered
	Broken    string        // why a TCP connection ended, or never began
	Servers   map[string]int
}

// hold keeps a connection to each target and asks who is there, all the time.
func hold(duration time.Duration, targets []string) error {
	end := time.Now().Add(duration)
	results := make([]*held, len(targets))
	var workers sync.WaitGroup
	for i, target := range targets {
		results[i] = &held{Target: target, Servers: map[string]int{}}
		workers.Go(func() {
			if err := results[i].run(end); err != nil {
				results[i].Broken = time.Now().Format("15:04:05.000 ") + err.Error()
			}
		})
	}
	workers.Wait()
	for _, r := range results {
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// patience is how long one answer may take: two retransmissions of a new connection, or of data.
const patience = 5 * time.Second

func (h *held) run(end time.Time) error {
	network, address, ok := strings.Cut(h.Target, ":")
	if !ok {
		return fmt.Errorf("%s: want tcp:ADDRESS:PORT or udp:ADDRESS:PORT", h.Target)
	}
	conn, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	ask := askHTTP
	if network == "udp" {
		ask = askDatagram
	}
	in := bufio.NewReader(conn)
	for ; time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		begun := time.Now()
		wait := patience
		if network == "udp" {
			wait = time.Second
		}
		if err := conn.SetDeadline(begun.Add(wait)); err != nil {
			return err
		}
		server, err := ask(conn, in)
		h.Exchanges++
		if err != nil && network == "udp" {
			h.Lost++
			continue
		}
		if err != nil {
			return err
		}
		h.Slowest = max(h.Slowest, time.Since(begun))
		h.Servers[server]++
	}
	return nil
}

func askHTTP(conn net.Conn, in *bufio.Reader) (string, error) {
	if _, err := io.WriteString(conn, "GET /hostname HTTP/1.1\r\nHost: probe\r\n\r\n"); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	return strings.TrimSpace(string(body)), err
}

func askDatagram(conn net.Conn, _ *bufio.Reader) (string, error) {
	if _, err := io.WriteString(conn, "hostname"); err != nil {
		return "", err
	}
	answer := make([]byte, 1500)
	n, err := conn.Read(answer)
	return strings.TrimSpace(string(answer[:n])), err
}
