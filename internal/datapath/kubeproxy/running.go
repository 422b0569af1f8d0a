package kubeproxy

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// ports of kube-proxy by default: healthzBindAddress and metricsBindAddress.
func ports() []int { return []int{10256, 10249} }

// Running returns signs that a kube-proxy runs in this network namespace: processes, as far as they are visible from here, and its
// ports. It puts its rules back whenever somebody takes them away.
func Running() ([]Trace, error) {
	found, err := processes("/proc")
	for _, port := range ports() {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 300*time.Millisecond)
		if err != nil {
			continue
		}
		_ = conn.Close()
		found = append(found, Trace{Port, strconv.Itoa(port), "answers on 127.0.0.1"})
	}
	return found, err
}

func processes(proc string) ([]Trace, error) {
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("find own network namespace: %w", err)
	}
	dirs, err := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Trace
	for _, dir := range dirs {
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		name, _, _ := bytes.Cut(command, []byte{0})
		if filepath.Base(string(name)) != "kube-proxy" {
			continue
		}
		ns, err := os.Readlink(filepath.Join(dir, "ns", "net"))
		if errors.Is(err, os.ErrNotExist) || err == nil && ns != own {
			continue
		}
		found = append(found, Trace{Process, "pid " + filepath.Base(dir), string(bytes.TrimRight(bytes.ReplaceAll(command, []byte{0}, []byte(" ")), " "))})
	}
	return found, nil
}
