package observer

import (
	"errors"
	"strings"
	"testing"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// names of the parts of sample, in order.
var partNames = []string{"open-out", "open-in", "ended", "denied", "dropped", "pinged", "audit-out", "audit-in"}

func sampleParts() (out []part) {
	for i, f := range sample() {
		f.Number = uint64(i + 1)
		out = append(out, partsOf(&f, nil)...)
	}
	return out
}

func filterOf(t testing.TB, text string) *flowpb.FlowFilter {
	t.Helper()
	ff := &flowpb.FlowFilter{}
	if err := protojson.Unmarshal([]byte(text), ff); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return ff
}

const all, connection = "open-out open-in ended denied dropped pinged audit-out audit-in", "open-out open-in ended audit-out audit-in"

// TestFilters asks for the sample in every way there is.
func TestFilters(t *testing.T) {
	s := newServer(t, 8)
	for _, tc := range []struct{ filter, want string }{
		{`{}`, all},
		{`{"source_ip": ["10.244.1.2"]}`, connection},
		{`{"source_ip": ["::ffff:10.244.1.2"]}`, connection},
		{`{"source_ip": ["10.244.0.0/16"]}`, "open-out open-in ended denied audit-out audit-in"},
		{`{"source_ip": ["fd44::/64", "172.18.0.2"]}`, "dropped pinged"},
		{`{"destination_ip": ["10.96.0.7"]}`, connection},
		{`{"destination_ip": ["10.244.1.3"]}`, connection + " denied"},
		{`{"source_ip_xlated": ["172.18.0.0/24"]}`, "pinged"},
		{`{"source_pod": ["shop/web"]}`, connection + " dropped"},
		{`{"source_pod": ["shop/"]}`, connection + " dropped"},
		{`{"source_pod": ["/cu"]}`, "denied"},
		{`{"source_pod": ["cur"]}`, "denied"},
		{`{"source_pod": ["web"]}`, ""},
		{`{"destination_pod": ["shop/db-0", "shop/web-1"]}`, connection + " denied pinged"},
		{`{"destination_service": ["shop/data"]}`, connection},
		{`{"destination_service": ["database"]}`, ""},
		{`{"destination_service": ["/postgres"]}`, "denied"}, // a backend of it, here where nobody has seen the service's address
		{`{"destination_service": ["shop/metrics", "shop/other"]}`, ""},
		{`{"source_service": ["shop/front"]}`, connection + " dropped"},
		{`{"source_service": ["shop/database"]}`, ""},
		{`{"source_label": ["app=web"]}`, connection + " dropped"},
		{`{"source_label": ["k8s:app in (web, db),!gone"]}`, connection + " dropped"},
		{`{"source_label": ["app.kubernetes.io/part-of"]}`, connection + " dropped"},
		{`{"source_label": ["any:app.kubernetes.io/part-of==shop"]}`, connection + " dropped"},
		{`{"source_label": ["!app"]}`, "denied pinged"},
		{`{"source_label": ["reserved:host"]}`, "pinged"},
		{`{"source_label": ["host"]}`, "pinged"},
		{`{"destination_label": ["reserved:world"]}`, "dropped"},
		{`{"destination_label": ["io.kubernetes.pod.namespace=shop,app notin (db)"]}`, "pinged"},
		{`{"source_label": ["io.cilium.k8s.policy.serviceaccount=web"]}`, connection + " dropped"},
		{`{"source_label": ["cilium:app=web"]}`, ""},
		{`{"source_label": [""]}`, all},
		{`{"node_labels": ["zone=a"]}`, all},
		{`{"node_labels": ["zone in (b)"]}`, ""},
		{`{"source_cluster_name": ["blue"]}`, all},
		{`{"destination_cluster_name": ["blue"]}`, connection + " denied pinged"},
		{`{"destination_cluster_name": ["green"]}`, ""},
		{`{"source_port": ["43210"]}`, "open-out open-in ended"},
		{`{"destination_port": ["80"]}`, connection},
		{`{"destination_port": ["5432", "53"]}`, connection + " denied dropped"},
		{`{"destination_port": ["0"]}`, ""},
		{`{"source_identity": [4660]}`, connection + " dropped"},
		{`{"source_identity": [1, 256]}`, "denied pinged"},
		{`{"destination_identity": [2]}`, "dropped"},
		{`{"traffic_direction": ["EGRESS"]}`, "open-out dropped audit-out"},
		{`{"verdict": ["DROPPED"]}`, "denied dropped"},
		{`{"verdict": ["AUDIT"]}`, "audit-in"},
		{`{"drop_reason_desc": ["POLICY_DENIED"]}`, "denied"},
		{`{"drop_reason_desc": ["DROP_REASON_UNKNOWN"]}`, ""},
		{`{"event_type": [{"type": 5}]}`, "open-out open-in denied audit-out audit-in"},
		{`{"event_type": [{"type": 4}]}`, "ended pinged"},
		{`{"event_type": [{"type": 1}]}`, "denied dropped"},
		{`{"event_type": [{"type": 1, "match_sub_type": true, "sub_type": 133}]}`, "denied"},
		{`{"event_type": [{"type": 4, "match_sub_type": true}]}`, "ended pinged"},
		{`{"event_type": [{"type": 4, "match_sub_type": true, "sub_type": 5}]}`, ""},
		{`{"event_type": [{"type": 129}]}`, ""},
		{`{"protocol": ["TCP"]}`, connection + " denied"},
		{`{"protocol": ["icmp", "udp"]}`, "dropped pinged"},
		{`{"protocol": ["icmpv6"]}`, ""},
		{`{"protocol": ["http"]}`, ""},
		{`{"reply": [false]}`, all},
		{`{"reply": [true]}`, ""},
		{`{"tcp_flags": [{"SYN": true}]}`, "open-out open-in denied audit-out audit-in"},
		{`{"tcp_flags": [{"FIN": true, "ACK": true}, {"NS": true}]}`, "ended"},
		{`{"tcp_flags": [{"SYN": true, "NS": true}]}`, ""},
		{`{"ip_version": ["IPv6"]}`, "dropped"},
		{`{"encrypted": [true]}`, ""},
		{`{"encrypted": [false]}`, all},
		{`{"node_name": ["n1"]}`, all},
		{`{"node_name": ["blue/n*"]}`, all},
		{`{"node_name": ["blue/"]}`, all},
		{`{"node_name": ["/N1."]}`, all},
		{`{"node_name": ["n2", "red/n1"]}`, ""},
		{`{"interface": [{"name": "st0123"}]}`, connection},
		{`{"interface": [{"index": 7, "name": "other"}]}`, ""},
		{`{"uuid": ["4484133F-6f8f-8bf5-8100-000000000001"]}`, "open-in"},
		{`{"source_workload": [{"name": "web"}]}`, connection + " dropped"},
		{`{"source_workload": [{"kind": "Deployment"}]}`, connection + " dropped"},
		{`{"source_workload": [{"name": "web", "kind": "DaemonSet"}]}`, ""},
		{`{"destination_workload": [{"name": "web", "kind": "Deployment"}]}`, "pinged"},
		{`{"source_fqdn": ["*.example.org"]}`, ""},
		{`{"destination_fqdn": ["a.example.org."]}`, ""},
		{`{"dns_query": ["kube.*local"]}`, ""},
		{`{"http_status_code": ["404", "5+", "50+"]}`, ""},
		{`{"http_method": ["GET"]}`, ""},
		{`{"http_path": ["/page/\\d+"]}`, ""},
		{`{"http_url": ["^http"]}`, ""},
		{`{"http_header": [{"key": "a", "value": "b"}]}`, ""},
		{`{"trace_id": ["1"]}`, ""},
		{`{"ip_trace_id": [1]}`, ""},
		{`{"experimental": {}}`, all},
		{`{"source_pod": ["shop/web"], "verdict": ["DROPPED"]}`, "dropped"},
	} {
		f, err := s.setting.compile(filterOf(t, tc.filter))
		if err != nil {
			t.Errorf("%s: %v", tc.filter, err)
			continue
		}
		var got []string
		for i, p := range sampleParts() {
			if f.matches(&p) {
				got = append(got, partNames[i])
			}
		}
		if !sameWords(strings.Join(got, " "), tc.want) {
			t.Errorf("%s: %v, want %s", tc.filter, got, tc.want)
		}
	}
}

// sameWords compares sets of words.
func sameWords(a, b string) bool {
	in := map[string]int{}
	for _, w := range strings.Fields(a) {
		in[w]++
	}
	for _, w := range strings.Fields(b) {
		in[w]--
	}
	for _, n := range in {
		if n != 0 {
			return false
		}
	}
	return true
}

func TestFiltersRefused(t *testing.T) {
	s := newServer(t, 8)
	for _, tc := range []struct{ filter, want string }{
		{`{"source_ip": ["10.0.0"]}`, `whitelist[0].source_ip: "10.0.0"`},
		{`{"destination_ip": ["10.0.0.0/33"]}`, `destination_ip: "10.0.0.0/33"`},
		{`{"source_pod": [""]}`, `source_pod: ""`},
		{`{"source_pod": ["a/b/c"]}`, `source_pod: "a/b/c"`},
		{`{"destination_service": [""]}`, `destination_service: ""`},
		{`{"source_label": ["app=(a"]}`, `source_label: label selector "app=(a"`},
		{`{"source_label": ["k8s:=a"]}`, `source_label: label selector "k8s:=a"`},
		{`{"node_labels": ["a b"]}`, `node_labels: label selector "a b"`},
		{`{"source_cluster_name": [""]}`, `source_cluster_name: ""`},
		{`{"destination_port": ["http"]}`, `destination_port: "http"`},
		{`{"destination_port": ["65536"]}`, `destination_port: "65536"`},
		{`{"protocol": ["ospf"]}`, `protocol: "ospf"`},
		{`{"verdict": [99]}`, `verdict: 99`},
		{`{"drop_reason_desc": [7]}`, `drop_reason_desc: 7`},
		{`{"node_name": [""]}`, `node_name: ""`},
		{`{"node_name": ["a/b/c"]}`, `node_name: "a/b/c"`},
		{`{"node_name": ["n$"]}`, `node_name: "n$"`},
		{`{"uuid": ["1"]}`, `uuid: "1"`},
		{`{"source_fqdn": ["a b"]}`, `source_fqdn: "a b"`},
		{`{"dns_query": ["("]}`, `dns_query: "("`},
		{`{"http_status_code": ["600"]}`, `http_status_code: "600"`},
		{`{"http_status_code": ["40"]}`, `http_status_code: "40"`},
		{`{"http_status_code": ["+"]}`, `http_status_code: "+"`},
		{`{"http_path": ["["]}`, `http_path: "["`},
		{`{"http_url": ["["]}`, `http_url: "["`},
		{`{"experimental": {"cel_expression": ["true"]}}`, `experimental: cel_expression "true": not supported`},
	} {
		_, err := s.setting.compileFilters([]*flowpb.FlowFilter{filterOf(t, tc.filter)}, nil)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", tc.filter, err, tc.want)
		}
	}
	unknown := &flowpb.FlowFilter{}
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 777, protowire.VarintType), 1))
	if _, err := s.setting.compile(unknown); !errors.Is(err, errUnsupported) {
		t.Errorf("a field of a later version: %v", err)
	}
}

// TestNoFieldIsIgnored sets each field that the protocol has: it has to become a condition, or to be refused.
func TestNoFieldIsIgnored(t *testing.T) {
	s := newServer(t, 8)
	fields := (&flowpb.FlowFilter{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		ff := &flowpb.FlowFilter{}
		m := ff.ProtoReflect()
		if field.IsList() {
			list := m.Mutable(field).List()
			if field.Kind() == protoreflect.MessageKind {
				list.AppendMutable()
			} else {
				list.Append(list.NewElement())
			}
		} else {
			m.Mutable(field).Message()
		}
		if f, err := s.setting.compile(ff); err == nil && len(f) != 1 {
			t.Errorf("%s: ignored", field.Name())
		}
	}
}

// TestAllowAndDeny: the result is what any of allow matches less what any of deny does.
func TestAllowAndDeny(t *testing.T) {
	s := newServer(t, 8)
	list := func(texts ...string) (out []*flowpb.FlowFilter) {
		for _, text := range texts {
			out = append(out, filterOf(t, text))
		}
		return out
	}
	for _, tc := range []struct {
		allow, deny []*flowpb.FlowFilter
		want        string
	}{
		{nil, nil, all},
		{list(`{"verdict": ["DROPPED"]}`, `{"protocol": ["icmp"]}`), nil, "denied dropped pinged"},
		{list(`{"verdict": ["DROPPED"]}`, `{"protocol": ["icmp"]}`), list(`{"protocol": ["udp"]}`), "denied pinged"},
		{nil, list(`{"protocol": ["tcp"]}`, `{"protocol": ["udp"]}`), "pinged"},
		{nil, list(`{}`), ""},
		{list(`{}`), nil, all},
	} {
		f, err := s.setting.compileFilters(tc.allow, tc.deny)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, p := range sampleParts() {
			if f.pass(&p) {
				got = append(got, partNames[i])
			}
		}
		if !sameWords(strings.Join(got, " "), tc.want) {
			t.Errorf("allow %v, deny %v: %v, want %s", tc.allow, tc.deny, got, tc.want)
		}
	}
}

// FuzzFilter compiles what anybody may send: an error or a filter that can be asked, never a panic.
func FuzzFilter(f *testing.F) {
	for _, text := range []string{
		`{"source_label":["k8s:app in (a,b),!x"]}`, `{"source_ip":["10.0.0.0/8"]}`, `{"node_name":["a/*"]}`, `{"http_status_code":["5+"]}`,
		`{"uuid":["4484133f-6f8f-8bf5-8100-000000000001"]}`, `{"source_pod":["a/b"],"destination_port":["1"]}`, `{"event_type":[{"type":1}]}`,
		`{"destination_label":["!"]}`, `{"destination_label":[",,"]}`, `{"destination_label":["a)"]}`,
	} {
		f.Add(text)
	}
	s := newServer(f, 8)
	parts := sampleParts()
	f.Fuzz(func(t *testing.T, text string) {
		for _, ff := range []*flowpb.FlowFilter{{}, {SourceLabel: []string{text}}, {NodeName: []string{text}}, {SourceFqdn: []string{text}, HttpStatusCode: []string{text}},
			{SourceIp: []string{text}}, {DestinationPod: []string{text}}, {Uuid: []string{text}}} {
			_ = protojson.Unmarshal([]byte(text), ff)
			chosen, err := s.setting.compile(ff)
			if err != nil {
				continue
			}
			for i := range parts {
				chosen.matches(&parts[i])
			}
		}
	})
}
