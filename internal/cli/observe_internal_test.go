package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TestFilterFlags: what flags are to Hubble.
func TestFilterFlags(t *testing.T) {
	for _, tc := range []struct{ line, allow, deny string }{
		{"", ``, ``},
		{"--pod web", `{"source_pod":["web"]} {"destination_pod":["web"]}`, ``},
		{"--from-pod a/b --from-pod c --to-port 80", `{"source_pod":["a/b","c"],"destination_port":["80"]}`, ``},
		{"--pod a --label x=y", `{"source_pod":["a"],"source_label":["x=y"]} {"destination_pod":["a"],"destination_label":["x=y"]}`, ``},
		{"-n shop", `{"source_pod":["shop/"]} {"destination_pod":["shop/"]}`, ``},
		{"-n shop -n till --pod web", `{"source_pod":["shop/web","till/web"]} {"destination_pod":["shop/web","till/web"]}`, ``},
		{"-n shop --service db", `{"source_service":["shop/db"]} {"destination_service":["shop/db"]}`, ``},
		{"--from-namespace a --to-namespace b --to-service c", `{"source_pod":["a/"],"destination_service":["b/c"]}`, ``},
		{"--verdict dropped --verdict AUDIT", `{"verdict":["DROPPED","AUDIT"]}`, ``},
		{"--not --to-port 53 --not --to-port 54 --not --protocol icmp", ``, `{"destination_port":["53","54"]} {"protocol":["icmp"]}`},
		{"--ip 10.0.0.1 --not --ip 10.0.0.2 -4", `{"source_ip":["10.0.0.1"],"ip_version":["IPv4"]} {"destination_ip":["10.0.0.1"],"ip_version":["IPv4"]}`, `{"source_ip":["10.0.0.2"]} {"destination_ip":["10.0.0.2"]}`},
		{"--type trace:to-endpoint -t drop:133", `{"event_type":[{"type":4,"match_sub_type":true},{"type":1,"match_sub_type":true,"sub_type":133}]}`, ``},
		{"--tcp-flags syn,ACK --reply", `{"reply":[true],"tcp_flags":[{"SYN":true,"ACK":true}]}`, ``},
		{"--workload Deployment/web", `{"source_workload":[{"name":"web","kind":"Deployment"}]} {"destination_workload":[{"name":"web","kind":"Deployment"}]}`, ``},
		{"--to-identity world --from-identity 4660", `{"source_identity":[4660],"destination_identity":[2]}`, ``},
		{"--drop-reason-desc policy_denied --traffic-direction Ingress", `{"traffic_direction":["INGRESS"],"drop_reason_desc":["POLICY_DENIED"]}`, ``},
		{`--allowlist {"uuid":["x"]} --node-name n*`, `{"uuid":["x"]} {"node_name":["n*"]}`, ``},
		{`--not --allowlist {"uuid":["x"]}`, ``, `{"uuid":["x"]}`},
	} {
		var all flowFilters
		cmd := &cobra.Command{}
		all.addTo(&app{}, cmd)
		if err := cmd.ParseFlags(strings.Fields(tc.line)); err != nil {
			t.Errorf("%s: %v", tc.line, err)
			continue
		}
		allow, deny, err := all.lists()
		if got := jsonOf(t, allow); err != nil || got != tc.allow {
			t.Errorf("%s: allow %s, %v; want %s", tc.line, got, err, tc.allow)
		}
		if got := jsonOf(t, deny); got != tc.deny {
			t.Errorf("%s: deny %s, want %s", tc.line, got, tc.deny)
		}
	}
}

func jsonOf(t *testing.T, list []*flowpb.FlowFilter) string {
	t.Helper()
	var out []string
	for _, f := range list {
		text, err := json.Marshal(f) // compacts
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(text))
	}
	return strings.Join(out, " ")
}

// TestArguments: a node that is asked from outside is asked the same.
func TestArguments(t *testing.T) {
	o := &observation{app: &app{Env: Env{Now: time.Now}}, output: flowCompact}
	q := &observerpb.GetFlowsRequest{
		Number: 7, Follow: true, Since: timestamppb.New(time.Unix(1000, 5)),
		Whitelist: []*flowpb.FlowFilter{{SourcePod: []string{"a b"}}, {Verdict: []flowpb.Verdict{2}}}, Blacklist: []*flowpb.FlowFilter{{Reply: []bool{true}}},
	}
	args, err := o.arguments(q)
	if err != nil {
		t.Fatal(err)
	}
	// The command at the other end, as far as its flags say what it asks for.
	far := &observation{app: o.app, output: flowCompact}
	cmd := &cobra.Command{}
	cmd.Flags().Uint64Var(&far.last, "last", 0, "")
	cmd.Flags().BoolVar(&far.follow, "follow", false, "")
	cmd.Flags().BoolVar(&far.beats, "beats", false, "")
	cmd.Flags().StringVar(&far.since, "since", "", "")
	cmd.Flags().VarP(&far.output, "output", "o", "")
	far.filters.addTo(o.app, cmd)
	if err := cmd.ParseFlags(args[1:]); err != nil {
		t.Fatal(err)
	}
	got, err := far.request()
	if err != nil || got.String() != q.String() || !far.beats || far.output != flowJSONPB {
		t.Errorf("%v asks for %v, %v; want %v", args, got, err, q)
	}
}

// What a node's strait says to a request that it is too old for is told from what is wrong with the request.
func TestUnknownThere(t *testing.T) {
	for text, want := range map[string]string{
		`unknown verb "observe" for strait; there are: bpf, check, status`:                                                          `unknown verb "observe" for strait`,
		`unknown flag "--beats" for strait observe; there are: --all, --first`:                                                      `unknown flag "--beats" for strait observe`,
		`whitelist[0].(unknown field): not supported: the filter has a field that this version does not know`:                       `whitelist[0].(unknown field): not supported: the filter has a field that this version does not know`,
		`whitelist[0].destination_port: "http": want a port from 0 to 65535`:                                                        "",
		`the agent of this node tells of no flows: no /run/strait/hubble.sock; see flows.enabled in its configuration`:              "",
		`strait observe: --verdict "nope": unknown verdict "nope"; there are: FORWARDED, DROPPED, AUDIT, REDIRECTED, ERROR, TRACED`: "",
	} {
		if got := unknownThere(text); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 88_123_456: "88.1 MB", 123_456_789: "123 MB", 1 << 63: "9.2 EB"} {
		if got := sizeText(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
