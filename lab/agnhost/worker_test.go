package main

import (
	"net"
	"testing"
)

func TestResolveAsksForEachNameOnceAndNamesThoseThatFail(t *testing.T) {
	addresses, unknown := resolve([]request{{Host: "127.0.0.1"}, {Host: "127.0.0.1"}, {Host: "not an address.invalid"}})
	if a := addresses["127.0.0.1"]; a == nil || !a.IP.Equal(net.IPv4(127, 0, 0, 1)) || unknown["127.0.0.1"] != nil {
		t.Errorf("got %v, %v", addresses, unknown)
	}
	if unknown["not an address.invalid"] == nil {
		t.Error("a name that does not exist has an address")
	}
}

func TestTryTellsRefusalFromAnswer(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := l.Addr().(*net.TCPAddr)
	r := request{Protocol: "TCP", Port: to.Port}
	if err := r.try(&net.IPAddr{IP: to.IP}); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.try(&net.IPAddr{IP: to.IP}); err == nil {
		t.Error("a closed port answers")
	}
	r.Protocol = "DCCP"
	if err := r.try(&net.IPAddr{IP: to.IP}); err == nil {
		t.Error("a protocol that nobody speaks is tried")
	}
}
