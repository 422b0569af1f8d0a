package kube

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

func TestServiceObject(t *testing.T) {
	s := Service{Name: "s", Addresses: map[int]netip.Addr{4: netip.MustParseAddr("10.96.0.7")}, Ports: []Port{{Number: 80, Target: 8080, Protocol: "TCP"}}}
	for _, c := range []struct {
		change       func(*Service)
		want, absent string
	}{
		{func(*Service) {}, `"type":"ClusterIP"`, "nodePort"},
		{func(s *Service) { s.Ports[0].NodePort = 30080 }, `"type":"NodePort"`, `"IPv6"`},
		{func(s *Service) { s.Addresses[6] = netip.MustParseAddr("fd00:96::7") }, `"clusterIPs":["10.96.0.7","fd00:96::7"]`, "SingleStack"},
	} {
		c.change(&s)
		text := render(t, s.Object())
		if !strings.Contains(text, c.want) || strings.Contains(text, c.absent) {
			t.Errorf("want %s and no %s in %s", c.want, c.absent, text)
		}
	}
}

func TestSliceBelongsToItsService(t *testing.T) {
	s := Service{Name: "s", Ports: []Port{{Number: 80, Target: 8080, Protocol: "TCP"}}}
	text := render(t, s.Slice(6, Endpoint{netip.MustParseAddr("fd00::1"), "node-1"}))
	for _, want := range []string{`"name":"s-v6"`, `"kubernetes.io/service-name":"s"`, `"addressType":"IPv6"`, `"port":8080`, `"nodeName":"node-1"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if text := render(t, s.Slice(4)); !strings.Contains(text, `"endpoints":[]`) {
		t.Errorf("an EndpointSlice without endpoints is %s: the API server refuses null", text)
	}
}

func TestUIDsDiffer(t *testing.T) {
	a, b := uid(), uid()
	if a == b || len(a) != 36 || a[14] != '4' {
		t.Errorf("uids %s and %s", a, b)
	}
}

func render(t *testing.T, o Object) string {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
