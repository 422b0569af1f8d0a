package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func configWith(portMappings string) []byte {
	return fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"n","type":"strait-cni","capabilities":{"portMappings":true},"runtimeConfig":{"portMappings":%s}}`, portMappings)
}

// NET-7: a port of the node is asked for in the words of CNI, and of containerd, whose field names begin with a capital letter.
func TestNET7_PortMappings(t *testing.T) {
	node := netip.MustParseAddr("192.0.2.7")
	for text, want := range map[string][]PortMapping{
		`null`: nil,
		`[]`:   nil,
		`[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]`: {{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}},
		`[{"HostPort":8080,"ContainerPort":80,"Protocol":"UDP","HostIP":""},{"HostPort":53,"ContainerPort":53,"Protocol":"sctp","HostIP":"192.0.2.7"}]`: {
			{HostPort: 8080, ContainerPort: 80, Protocol: "udp"}, {HostIP: node, HostPort: 53, ContainerPort: 53, Protocol: "sctp"}},
		`[{"hostPort":1,"containerPort":65535,"protocol":"tcp","hostIP":"::ffff:192.0.2.7"}]`:                   {{HostIP: node, HostPort: 1, ContainerPort: 65535, Protocol: "tcp"}},
		`[{"hostPort":1,"containerPort":2,"protocol":"tcp"},{"hostPort":1,"containerPort":2,"protocol":"tcp"}]`: {{HostPort: 1, ContainerPort: 2, Protocol: "tcp"}},
	} {
		c, err := ParseConfig(configWith(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, err := c.PortMappings()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
		for _, p := range got {
			if !p.Complete() {
				t.Errorf("%s: %s is not complete", text, p)
			}
		}
	}
}

func TestNET7_PortMappingsRefused(t *testing.T) {
	const first = "runtimeConfig.portMappings[0]."
	for _, c := range []struct {
		mappings, field, value string
		code                   uint
	}{
		{`{}`, `"runtimeConfig.portMappings"`, `{}`, 7},
		{`[{"containerPort":80,"protocol":"tcp"}]`, first + "hostPort", "missing", 7},
		{`[{"hostPort":0,"containerPort":80,"protocol":"tcp"}]`, first + "hostPort", "0", 7},
		{`[{"hostPort":65536,"containerPort":80,"protocol":"tcp"}]`, first + "hostPort", "65536", 7},
		{`[{"hostPort":80,"containerPort":-1,"protocol":"tcp"}]`, first + "containerPort", "-1", 7},
		{`[{"hostPort":80,"containerPort":"http","protocol":"tcp"}]`, first + "containerPort", `"http"`, 7},
		{`[{"hostPort":80,"containerPort":80}]`, first + "protocol", "missing", 7},
		{`[{"hostPort":80,"containerPort":80,"protocol":"icmp"}]`, first + "protocol", `"icmp"`, 7},
		{`[{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"node-1"}]`, first + "hostIP", `"node-1"`, 7},
		{`[{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"fe80::1%eth0"}]`, first + "hostIP", "eth0", 7},
		{`[{"hostPort":80,"containerPort":80,"protocol":"tcp","weight":1}]`, first + "weight", "1", 2},
		{`[{"hostPort":80,"containerPort":80,"protocol":"tcp"},{"hostPort":80,"containerPort":81,"protocol":"tcp"}]`,
			"runtimeConfig.portMappings[1].containerPort", "81", 7},
	} {
		conf, err := ParseConfig(configWith(c.mappings)) // also for a DEL, which must not fail because of them
		if err != nil {
			t.Errorf("%s: %v", c.mappings, err)
			continue
		}
		_, err = conf.PortMappings()
		var e *types.Error
		if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Error(), c.field) || !strings.Contains(e.Error(), c.value) {
			t.Errorf("%s: %v, want code %d, %s and %s", c.mappings, err, c.code, c.field, c.value)
		}
	}
}

func TestNET7_Conflicts(t *testing.T) {
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	all := PortMapping{HostPort: 80, ContainerPort: 1, Protocol: "tcp"}
	on := func(a netip.Addr) PortMapping { p := all; p.HostIP = a; return p }
	udp, other := all, all
	udp.Protocol, other.HostPort = "udp", 81
	for _, c := range []struct {
		a, b PortMapping
		want bool
	}{
		{all, all, true}, {all, on(one), true}, {on(one), on(netip.IPv4Unspecified()), true}, {on(one), on(one), true},
		{on(one), on(two), false}, {all, udp, false}, {all, other, false},
	} {
		if c.a.Conflicts(c.b) != c.want || c.b.Conflicts(c.a) != c.want {
			t.Errorf("%s and %s: conflict %t, want %t", c.a, c.b, !c.want, c.want)
		}
	}
}
