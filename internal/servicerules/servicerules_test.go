package servicerules_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/servicerules"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGolden reads the section "services" (an answer of strait service list -o json) of testdata/*.txtar and compares the rest.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		golden, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		rows := parse(t, golden)
		for i, section := range golden.Files {
			var lines []string
			switch section.Name {
			case "iptables":
				lines = servicerules.IPTables(rows)
			case "ipvs":
				lines = servicerules.IPVS(rows)
			default:
				continue
			}
			got := strings.Join(lines, "\n") + "\n"
			if *update {
				golden.Files[i].Data = []byte(got)
			} else if diff := cmp.Diff(string(section.Data), got); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", file, section.Name, diff)
			}
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(golden), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func parse(t *testing.T, golden *txtar.Archive) (rows []localapi.Service) {
	t.Helper()
	for _, section := range golden.Files {
		if section.Name == "services" {
			if err := json.Unmarshal(section.Data, &rows); err != nil {
				t.Fatal(err)
			}
		}
	}
	return rows
}

// Every jump leads to a chain that is there, and every chain is used: what iptables-restore would refuse, or a reader would miss.
func TestChainsAreComplete(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, file := range files {
		golden, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		chains, jumps := map[string]bool{}, map[string]bool{}
		for _, line := range servicerules.IPTables(parse(t, golden)) {
			words := strings.Fields(line)
			switch {
			case strings.HasPrefix(line, "*"):
				clear(chains)
				clear(jumps)
			case strings.HasPrefix(line, ":"):
				chains[words[0][1:]] = true
			case strings.HasPrefix(line, "-A"):
				if !chains[words[1]] {
					t.Errorf("%s: chain %s is not declared: %s", file, words[1], line)
				}
				if i := slices.Index(words, "-j"); i > 0 && strings.HasPrefix(words[i+1], "KUBE-") {
					jumps[words[i+1]] = true
				}
			case line == "COMMIT":
				for c := range jumps {
					if !chains[c] {
						t.Errorf("%s: a jump to %s, which is not there", file, c)
					}
				}
				for c := range chains {
					if strings.HasPrefix(c, "KUBE-S") && c != "KUBE-SERVICES" && !jumps[c] {
						t.Errorf("%s: nothing leads to %s", file, c)
					}
				}
			}
		}
	}
}

// The order of rows says nothing.
func TestOrderOfRowsDoesNotMatter(t *testing.T) {
	golden, err := txtar.ParseFile("testdata/policies.txtar")
	if err != nil {
		t.Fatal(err)
	}
	rows := parse(t, golden)
	want := servicerules.IPTables(rows)
	slices.Reverse(rows)
	if diff := cmp.Diff(want, servicerules.IPTables(rows)); diff != "" {
		t.Errorf("reversed rows (-want +got):\n%s", diff)
	}
}
