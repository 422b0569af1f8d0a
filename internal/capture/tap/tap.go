// Package tap sees the packets of devices of one network namespace, by AF_PACKET sockets with rings.
package tap

import (
	"time"

	"golang.org/x/net/bpf"
)

// Config says what a Tap sees.
type Config struct {
	Device string            // empty: all devices of the namespace
	Filter []bpf.Instruction // for capture.NetworkOffset
	// Incoming leaves out what the devices send.
	Incoming bool
	Size     int // of the ring, in bytes: a multiple of a MiB
}

// Frame is a packet as it was seen. Data is the ring's own: it is valid until the function it is given to returns.
type Frame struct {
	Time   time.Time
	Device int    // its index
	Link   uint16 // ARPHRD_*
	Out    bool   // sent by the device
	Length int
	Data   []byte
}

// Linger is how long a packet stays in a ring before it can be read, at most.
const Linger = 20 * time.Millisecond
