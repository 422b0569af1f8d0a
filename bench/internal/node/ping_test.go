package node

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
)

func TestParseResult(t *testing.T) {
	const text = `{"cniVersion":"1.0.0","interfaces":[{"name":"cni0","mac":"a"},{"name":"veth1"},{"name":"eth0","sandbox":"/run/netns/x"}],
		"ips":[{"address":"fd00::2/64"},{"address":"10.0.0.2/24","interface":2}]}`
	got, err := ParseResult([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got.HostDevice != "veth1" {
		t.Errorf("host device %q, want the pod's own end veth1, not the bridge", got.HostDevice)
	}
	if len(got.Addresses) != 2 || got.Addresses[0] != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("addresses %v, want IPv4 first", got.Addresses)
	}
	if _, err := ParseResult([]byte(`{"ips":[]}`)); !errors.Is(err, errIncomplete) {
		t.Errorf("a result without addresses gave %v", err)
	}
}

func TestEchoChecksum(t *testing.T) {
	var sum uint32
	b := echo()
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if sum = sum&0xffff + sum>>16; sum != 0xffff {
		t.Errorf("checksum of the echo request sums to %#x", sum)
	}
}
