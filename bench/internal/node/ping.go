package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Result is what the rig wants to know of a CNI result.
type Result struct {
	Addresses  []netip.Addr // IPv4 first
	HostDevice string       // the last interface on the node's side: the pod's end of the cable there
}

// ParseResult reads a CNI result of version 0.3.0 or later.
func ParseResult(text []byte) (Result, error) {
	var r struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return Result{}, fmt.Errorf("parse CNI result: %w", err)
	}
	var out Result
	var v6 []netip.Addr
	for _, ip := range r.IPs {
		if a := ip.Address.Addr(); a.Is4() {
			out.Addresses = append(out.Addresses, a)
		} else {
			v6 = append(v6, a)
		}
	}
	out.Addresses = append(out.Addresses, v6...)
	for _, i := range r.Interfaces {
		if i.Sandbox == "" {
			out.HostDevice = i.Name
		}
	}
	if len(out.Addresses) == 0 || out.HostDevice == "" {
		return out, fmt.Errorf("CNI result %s: %w", text, errIncomplete)
	}
	return out, nil
}

var errIncomplete = errors.New("no address or no interface on the node")

// reach sends ICMP echo requests every 2 ms until one is answered. IPv4 only: the sockets of RFC 792 need no header.
func reach(ctx context.Context, to netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return fmt.Errorf("open ICMP socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	tick := unix.NsecToTimeval((2 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick); err != nil {
		return fmt.Errorf("set timeout: %w", err)
	}
	reply := make([]byte, 128)
	for ctx.Err() == nil {
		_ = unix.Send(fd, echo(), 0) // refused until the route exists
		if n, err := unix.Read(fd, reply); err == nil && n > 20 && reply[20] == 0 {
			return nil
		}
	}
	return ctx.Err()
}

// echo is an ICMP echo request with its checksum (RFC 1071).
func echo() []byte {
	b := []byte{8, 0, 0, 0, 0x57, 0x41, 0, 1}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	return b
}
