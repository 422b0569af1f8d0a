package path

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKubeRulesGrowByServiceAndDeclareTheirChains(t *testing.T) {
	for _, family := range []int{4, 6} {
		small, large := kubeRules(family, 1), kubeRules(family, 11)
		if perService := (strings.Count(large, "\n") - strings.Count(small, "\n")) / 10; perService != 10 {
			t.Errorf("IPv%d: %d lines per service, want 3 chains and 7 rules", family, perService)
		}
		declared := map[string]bool{"ACCEPT": true, "DROP": true, "RETURN": true, "MARK": true, "MASQUERADE": true, "DNAT": true}
		for line := range strings.Lines(large) {
			if name, ok := strings.CutPrefix(line, ":"); ok {
				declared[strings.Fields(name)[0]] = true
			}
		}
		for line := range strings.Lines(large) {
			if _, after, ok := strings.Cut(line, " -j "); ok && !declared[strings.Fields(after)[0]] {
				t.Errorf("IPv%d: jump to an undeclared chain: %s", family, line)
			}
		}
		if v6 := strings.Contains(large, "10.96."); v6 == (family == 6) {
			t.Errorf("IPv%d rules hold addresses of the other family", family)
		}
	}
}

func TestPluginConf(t *testing.T) {
	var conf struct {
		Plugins []struct {
			Type   string
			Bridge string
			IPAM   struct {
				Ranges [][]struct{ Subnet netip.Prefix }
				Routes []struct{ Dst netip.Prefix }
			}
		}
	}
	if err := json.Unmarshal([]byte(PluginConf(Bridge, "10.1.0.0/16")), &conf); err != nil {
		t.Fatal(err)
	}
	p := conf.Plugins[0]
	if p.Bridge != "cni0" || len(p.IPAM.Ranges) != 1 || len(p.IPAM.Routes) != 1 {
		t.Errorf("IPv4 only configuration is %+v", p)
	}
	if err := json.Unmarshal([]byte(PluginConf(PTP, "10.1.0.0/16", "fd00::/64")), &conf); err != nil {
		t.Fatal(err)
	}
	if p := conf.Plugins[0]; len(p.IPAM.Ranges) != 2 || len(p.IPAM.Routes) != 2 {
		t.Errorf("dual-stack configuration is %+v", p)
	}
}

func TestServiceObjectsSliceEachFamily(t *testing.T) {
	backend := map[int]netip.Addr{4: netip.MustParseAddr("10.0.0.1"), 6: netip.MustParseAddr("fd00::1")}
	address := map[int]netip.Addr{4: netip.MustParseAddr("10.96.0.100"), 6: netip.MustParseAddr("fd00:96::100")}
	objects := serviceObjects("s", address, 9000, 5, backend)
	if len(objects) != 3 {
		t.Fatalf("%d objects, want a Service and two EndpointSlices", len(objects))
	}
	text, err := json.Marshal(objects)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"clusterIPs":["10.96.0.100","fd00:96::100"]`, `"addresses":["fd00::1"]`, `"addressType":"IPv6"`, `"port":9004,"protocol":"UDP"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("objects lack %s: %s", want, text)
		}
	}
}

func TestPodCIDRsOfNodesDoNotOverlap(t *testing.T) {
	for i := range 3 {
		for family := range 2 {
			a, b := netip.MustParsePrefix(cidrs(i)[family]), netip.MustParsePrefix(cidrs(i + 1)[family])
			if a.Overlaps(b) || a.Masked() != a {
				t.Errorf("node %d has %s, the next %s", i, a, b)
			}
		}
	}
}

func TestFirstConfIsTheFirstByName(t *testing.T) {
	dir := t.TempDir()
	if _, err := firstConf(dir); err == nil {
		t.Error("an empty directory has no configuration")
	}
	for _, name := range []string{"10-other", "05-strait"} {
		if err := os.WriteFile(filepath.Join(dir, name+".conflist"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := firstConf(dir); err != nil || got != "05-strait" {
		t.Errorf("firstConf = %q, %v", got, err)
	}
}
