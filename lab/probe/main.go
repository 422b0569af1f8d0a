// Command probe is what the lab's tests run inside pods: it tells what a program sees of a connection, and counts lost requests.
package main

import (
	"context"
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

const usage = `usage:
  probe peer tcp|udp ADDRESS:PORT     connect and print what getpeername says
  probe datagram ADDRESS:PORT TEXT    send a datagram and print the answer
  probe load DURATION URL...          request all the time; print one JSON line of counts for each URL
  probe hold DURATION tcp|udp:ADDRESS:PORT...   ask over one connection each, never a second; print one JSON line for each`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("%s", usage)
	}
	switch args[0] {
	case "peer":
		conn, err := net.DialTimeout(args[1], args[2], 5*time.Second)
		if err != nil {
			return err
		}
		fmt.Println(conn.RemoteAddr()) // the runtime asks getpeername
		return conn.Close()
	case "datagram":
		return datagram(args[1], args[2])
	case "load":
		duration, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		return load(duration, args[2:])
	case "hold":
		duration, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		return hold(duration, args[2:])
	}
	return fmt.Errorf("%s", usage)
}

func datagram(address, text string) error {
	conn, err := net.DialTimeout("udp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	answer := make([]byte, 64<<10)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	fmt.Println(strings.TrimSpace(string(answer[:n])))
	return nil
}

// result counts one URL's requests.
type result struct {
	URL      string
	Requests int
	Lost     int
	Slowest  time.Duration
	Errors   []string // the first few
	Servers  map[string]int
	mu       sync.Mutex
}

// load sends requests over new connections by one worker and over a kept connection by another, for each URL.
func load(duration time.Duration, urls []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), duration)
	defer cancel()
	var workers sync.WaitGroup
	results := make([]*result, len(urls))
	for i, url := range urls {
		results[i] = &result{URL: url, Servers: map[string]int{}}
		for _, fresh := range []bool{true, false} {
			client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: fresh}}
			workers.Go(func() { results[i].send(ctx, client) })
		}
	}
	workers.Wait()
	for _, r := range results {
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func (r *result) send(ctx context.Context, client *http.Client) {
	for ctx.Err() == nil {
		begun := time.Now()
		body, err := get(client, r.URL)
		took := time.Since(begun)
		r.mu.Lock()
		r.Requests++
		r.Slowest = max(r.Slowest, took)
		if err != nil {
			r.Lost++
			if len(r.Errors) < 5 {
				r.Errors = append(r.Errors, begun.Format("15:04:05.000 ")+err.Error())
			}
		} else {
			r.Servers[body]++
		}
		r.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
}

func get(client *http.Client, url string) (string, error) {
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1024))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", response.Status)
	}
	return strings.TrimSpace(string(body)), err
}
