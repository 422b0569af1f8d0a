// Package arch holds the rules of the house that a compiler cannot: ranks of packages, who may import what, tail caps.
package arch

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/strait-net/strait/"

// ranks: a package imports only lower ranks, or its own folder. The reason is the architecture's two streams: what is
// higher composes what is lower, and edges of one rank never know each other.
var ranks = map[string]int{
	"internal/identity":  -1, // names
	"internal/policy":    0,  // pure: policies in, rows of the kernel's tables out
	"internal/verdict":   0,  // generated names of what became of a packet
	"internal/table":     -1, // under everything that holds rows
	"internal/reconcile": 0,
	"internal/config":    0,

	"internal/ipam": 1, // pure: no Kubernetes, kernel, network or clock
	"internal/bpf":  1, // embedded programs

	"internal/state": 1, // declares rows

	"internal/service":     2, // pure: rows of state in, rows of state out
	"internal/localapi":    2, // types of the agent's API
	"internal/flow":        2, // pure: events of the kernel in, flows with names out
	"internal/capture":     2, // pure: packets and what nodes tell of them in, a file out; its tap is a socket
	"internal/certificate": 2, // pure: what Secrets hold in, what they are to hold out
	"internal/takeover":    2, // pure: connections of the kernel in, what is to become of them out

	"internal/kube":         3,
	"internal/control":      3,
	"internal/datapath":     3,
	"internal/cni":          3,
	"internal/metric":       3,
	"internal/status":       3, // rows of the local API, and what is wrong
	"internal/servicerules": 3, // pure: rows of the local API as kube-proxy would have written them
	"internal/probe":        3, // asks the agents of other nodes
	"internal/enforcement":  3, // which policies a node enforces, for the operator
	"internal/announce":     3, // who answers for service addresses
	"internal/observer":     3, // flows as Hubble's clients ask for them

	"internal/healthcheck": 3, // answers load balancers
	"internal/echo":        3, // answers whoever asks

	"internal/endpoint":     4,
	"internal/departure":    4, // closes connections to vanished backends
	"internal/connectivity": 4, // asks over all kinds of ways
	"internal/relay":        4, // the flows of all nodes in one stream
	"internal/explain":      4, // follows a packet that is not sent, with edges' answers

	"internal/agent":    5,
	"internal/operator": 5,
	"internal/cli":      5,

	"internal/testkit": 9, // tests only
}

// owners: a library is imported only where its subject lives.
var owners = []struct {
	library string
	users   []string
	instead string
}{
	{"github.com/cilium/ebpf", []string{"internal/bpf", "internal/datapath", "internal/testkit"}, "ask internal/datapath"},
	{"github.com/vishvananda/netlink", []string{"internal/datapath", "internal/testkit"}, "ask internal/datapath/netdev"},
	{"github.com/google/nftables", []string{"internal/datapath", "internal/testkit"}, "ask internal/datapath"},
	{"k8s.io/client-go", []string{"internal/kube", "internal/operator", "internal/cli", "internal/connectivity"}, "read internal/state"},
	{"google.golang.org/grpc", []string{"internal/observer", "internal/relay", "internal/cli"}, "ask internal/observer"},
	{"github.com/cilium/cilium", []string{"internal/observer", "internal/relay", "internal/cli"}, "take a flow.Flow: Hubble's form is for what leaves the process"},
	{"github.com/spf13/cobra", []string{"internal/cli", "cmd"}, "take a Config"},
	{"net/http", []string{"internal/localapi", "internal/metric", "internal/probe", "internal/enforcement", "internal/healthcheck", "internal/cli", "internal/agent", "internal/operator", "internal/kube", "internal/endpoint", "internal/echo", "internal/testkit"}, "only edges talk HTTP"},
}

const (
	fileCap     = 600 // lines of a Go file
	functionCap = 80  // lines of a Go function
	mainCap     = 60  // lines of a main.go
	cEntryCap   = 250 // lines of a C entry file
	cHelperCap  = 60  // lines of a C function
)

type source struct {
	path string // slash-separated, from the root
	dir  string
	test bool
	file *ast.File
	fset *token.FileSet
}

func sources(t *testing.T) []source {
	t.Helper()
	root := "../.."
	var out []source
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || isOtherModule(path, rel)) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if ast.IsGenerated(file) {
			return nil
		}
		out = append(out, source{rel, filepath.ToSlash(filepath.Dir(rel)), strings.HasSuffix(rel, "_test.go"), file, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("only %d Go files found: the walk is wrong", len(out))
	}
	return out
}

func isOtherModule(path, rel string) bool {
	_, err := os.Stat(filepath.Join(path, "go.mod"))
	return rel != "." && err == nil
}

// owner returns the longest entry of ranks that dir lies in.
func owner(dir string) (string, bool) {
	for d := dir; d != "."; d = filepath.ToSlash(filepath.Dir(d)) {
		if _, ok := ranks[d]; ok {
			return d, true
		}
	}
	return "", false
}

func TestRanks(t *testing.T) {
	for _, s := range sources(t) {
		if !strings.HasPrefix(s.dir, "internal/") || s.dir == "internal/arch" {
			continue
		}
		own, ok := owner(s.dir)
		if !ok {
			t.Errorf("%s: package has no rank: give it one in internal/arch with its reason", s.path)
			continue
		}
		if s.test {
			continue
		}
		for _, imp := range s.file.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			dir, ours := strings.CutPrefix(path, module)
			if !ours {
				continue
			}
			other, ok := owner(dir)
			if ok && other != own && ranks[other] >= ranks[own] {
				t.Errorf("%s (rank %d) imports %s (rank %d): imports go down", s.path, ranks[own], dir, ranks[other])
			}
		}
	}
}

func TestLibrariesStayWithTheirOwners(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, imp := range s.file.Imports {
			path, _ := strconv.Unquote(imp.Path.Value)
			for _, o := range owners {
				if (path == o.library || strings.HasPrefix(path, o.library+"/")) && !within(s.dir, o.users) {
					t.Errorf("%s imports %s, which belongs to %v: %s", s.path, path, o.users, o.instead)
				}
			}
		}
	}
}

func within(dir string, roots []string) bool {
	for _, r := range roots {
		if dir == r || strings.HasPrefix(dir, r+"/") {
			return true
		}
	}
	return false
}

func TestTailCaps(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		lines := s.fset.Position(s.file.End()).Line
		limit := fileCap
		if filepath.Base(s.path) == "main.go" && strings.HasPrefix(s.path, "cmd/") {
			limit = mainCap
		}
		if lines > limit {
			t.Errorf("%s: %d lines, at most %d: is it still one idea?", s.path, lines, limit)
		}
		for _, d := range s.file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.fset.Position(fn.End()).Line - s.fset.Position(fn.Pos()).Line + 1; n > functionCap {
				t.Errorf("%s: %s has %d lines, at most %d", s.path, fn.Name.Name, n, functionCap)
			}
		}
	}
}

func TestNoInitNoPanicNoBags(t *testing.T) {
	bags := map[string]bool{"util": true, "utils": true, "common": true, "helpers": true, "types": true, "manager": true, "base": true}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		if bags[s.file.Name.Name] {
			t.Errorf("%s: a package called %s owns nothing", s.path, s.file.Name.Name)
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: init() hides wiring; compose explicitly", s.path)
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "panic" && !strings.HasPrefix(s.dir, "internal/testkit") {
					t.Errorf("%s: panic; return an error", s.fset.Position(n.Pos()))
				}
			case *ast.BasicLit:
				if n.Kind == token.STRING && strings.Contains(n.Value, "failed to") {
					t.Errorf("%s: %s; say the operation and the object", s.fset.Position(n.Pos()), n.Value)
				}
			}
			return true
		})
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if s.test && s.dir != "internal/arch" {
			continue
		}
		documented[s.dir] = documented[s.dir] || s.file.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no package comment", dir)
		}
	}
}

func TestCTailCaps(t *testing.T) {
	entries, err := filepath.Glob("../../bpf/*.c")
	if err != nil || len(entries) == 0 {
		t.Fatalf("no C entry files: %v", err)
	}
	headers, _ := filepath.Glob("../../bpf/lib/*.h")
	for _, path := range append(entries, headers...) {
		lines, functions := measureC(t, path)
		if strings.HasSuffix(path, ".c") && lines > cEntryCap {
			t.Errorf("%s: %d lines, at most %d", path, lines, cEntryCap)
		}
		for _, f := range functions {
			t.Errorf("%s: %s", path, f)
		}
	}
}

// measureC counts the lines of a file and reports functions longer than cHelperCap: a body opens with "{" and closes with "}"
// in the first column, as clang-format leaves it.
func measureC(t *testing.T, path string) (lines int, long []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	begin := 0
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		lines++
		switch line := scan.Text(); {
		case line == "{":
			begin = lines
		case line == "}" && begin > 0:
			if n := lines - begin + 1; n > cHelperCap {
				long = append(long, fmt.Sprintf("function body at line %d has %d lines, at most %d", begin, n, cHelperCap))
			}
			begin = 0
		}
	}
	return lines, long
}
