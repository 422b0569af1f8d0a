// Command agnhost stands in front of Kubernetes' test container where the kernel has no SCTP: it speaks SCTP by itself over a raw socket, so that
// real packets of that protocol are on the wire. Everything else it leaves to the real program. Called worker it answers cyclonus.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	upstream = "/agnhost-upstream"
	serve    = "SERVE_SCTP_PORT_" // followed by the port; what is answered is the value
	// unlimited is what the real program does without --timeout: it waits for as long as SCTP tries.
	unlimited = 2 * time.Minute
)

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == "worker" {
		if err := work(args); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		return
	}
	if len(args) == 0 || kernelHasSCTP() {
		become(os.Environ())
	}
	switch {
	case args[0] == "connect" && slices.Contains(args, "--protocol=sctp"):
		os.Exit(dial(args[1:]))
	case args[0] == "porter" && len(ports(os.Environ())) > 0:
		fmt.Fprintln(os.Stderr, "porter:", porter(os.Environ()))
		os.Exit(1)
	}
	become(os.Environ())
}

func kernelHasSCTP() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return false
	}
	return unix.Close(fd) == nil
}

// become never returns.
func become(env []string) {
	err := syscall.Exec(upstream, append([]string{"/agnhost"}, os.Args[1:]...), env)
	fmt.Fprintf(os.Stderr, "run %s: %v\n", upstream, err)
	os.Exit(1)
}

// dial is "connect --protocol=sctp": what it prints and its exit status are those of the real program.
func dial(args []string) int {
	target, timeout := "", unlimited
	for _, arg := range args {
		value, isTimeout := strings.CutPrefix(arg, "--timeout=")
		if isTimeout {
			limit, err := time.ParseDuration(value)
			if err != nil {
				fmt.Fprintf(os.Stderr, "UNKNOWN: %v\n", err)
				return 1
			}
			if limit > 0 {
				timeout = limit
			}
		} else if !strings.HasPrefix(arg, "-") {
			target = arg
		}
	}
	host, service, err := net.SplitHostPort(target)
	if err != nil {
		fmt.Fprintf(os.Stderr, "UNKNOWN: %v\n", err)
		return 1
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		fmt.Fprintf(os.Stderr, "UNKNOWN: %v\n", err)
		return 1
	}
	address, err := net.ResolveIPAddr("ip", host)
	if err != nil {
		fmt.Fprintf(os.Stderr, "DNS: %v\n", err)
		return 1
	}
	switch err := ask(address, uint16(port), time.Now().Add(timeout)); {
	case err == nil:
		return 0
	case errors.Is(err, os.ErrDeadlineExceeded):
		fmt.Fprintln(os.Stderr, "TIMEOUT")
	case errors.Is(err, errRefused), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOPROTOOPT):
		fmt.Fprintln(os.Stderr, "REFUSED")
	default:
		fmt.Fprintf(os.Stderr, "OTHER: %v\n", err)
	}
	return 1
}

// ports are the ports to serve and their answers.
func ports(env []string) map[uint16]string {
	out := map[uint16]string{}
	for _, e := range env {
		rest, ok := strings.CutPrefix(e, serve)
		if !ok {
			continue
		}
		number, answer, _ := strings.Cut(rest, "=")
		if port, err := strconv.ParseUint(number, 10, 16); err == nil {
			out[uint16(port)] = answer
		}
	}
	return out
}

// porter answers the SCTP ports; the real program answers the others, if there are any.
func porter(env []string) error {
	others := slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, serve) })
	failed := make(chan error)
	if slices.ContainsFunc(others, func(e string) bool { return strings.HasPrefix(e, "SERVE_") }) {
		cmd := exec.Command(upstream, os.Args[1:]...)
		cmd.Env, cmd.Stdout, cmd.Stderr = others, os.Stdout, os.Stderr
		go func() { failed <- cmd.Run() }()
	}
	go func() { failed <- answer(ports(env)) }()
	return <-failed
}
