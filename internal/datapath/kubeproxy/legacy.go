package kubeproxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/netfilter_ipv4/ip_tables.h; those of ip6_tables.h have the same values and layout.
const (
	soGetInfo    = 64
	soGetEntries = 65
	tableName    = 32
	infoSize     = 84 // struct ipt_getinfo: the size of all entries is its last word
	entriesHead  = 40 // struct ipt_get_entries without the entries, which are aligned to 8
)

// stack is what differs between iptables-legacy of the two families.
type stack struct {
	family string
	domain int
	level  int
	names  string // of the tables in use, below /proc/thread-self/net
	save   string
	load   string
}

func stacks() []stack {
	return []stack{
		{"ip", unix.AF_INET, unix.SOL_IP, "ip_tables_names", "iptables-legacy-save", "iptables-legacy-restore"},
		{"ip6", unix.AF_INET6, unix.SOL_IPV6, "ip6_tables_names", "ip6tables-legacy-save", "ip6tables-legacy-restore"},
	}
}

// legacyTables returns the tables of iptables-legacy that have a chain of kube-proxy. Only tables in use are asked for: asking makes
// a table.
func legacyTables() ([]Trace, error) {
	var found []Trace
	for _, s := range stacks() {
		text, err := os.ReadFile("/proc/thread-self/net/" + s.names)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return found, fmt.Errorf("list tables of iptables-legacy: %w", err)
		}
		for _, table := range strings.Fields(string(text)) {
			entries, err := s.entries(table)
			if err != nil {
				return found, fmt.Errorf("read iptables-legacy table %s %s: %w", s.family, table, err)
			}
			if bytes.Contains(entries, []byte("KUBE-SERVICES\x00")) || bytes.Contains(entries, []byte("KUBE-POSTROUTING\x00")) ||
				bytes.Contains(entries, []byte("KUBE-PROXY-CANARY\x00")) {
				found = append(found, Trace{Legacy, s.family + " " + table, "iptables-legacy-save shows them"})
			}
		}
	}
	return found, nil
}

// entries returns a table as the kernel holds it.
func (s stack) entries(table string) ([]byte, error) {
	fd, err := unix.Socket(s.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	info := make([]byte, infoSize)
	copy(info[:tableName-1], table)
	if err := getsockopt(fd, s.level, soGetInfo, info); err != nil {
		return nil, err
	}
	size := binary.NativeEndian.Uint32(info[infoSize-4:])
	all := make([]byte, entriesHead+int(size))
	copy(all[:tableName-1], table)
	binary.NativeEndian.PutUint32(all[tableName:], size)
	if err := getsockopt(fd, s.level, soGetEntries, all); err != nil {
		return nil, err
	}
	return all[entriesHead:], nil
}

func getsockopt(fd, level, option int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return errno
	}
	return nil
}

// ErrNoLegacy is matched by the error of RemoveLegacy when the node's programs for iptables-legacy are not there.
var ErrNoLegacy = errors.New("rules of iptables-legacy can only be removed by the node's own iptables-legacy-save and iptables-legacy-restore")

// RemoveLegacy removes kube-proxy's rules from iptables-legacy, if there are any, by the node's own programs: its kernel interface is
// private to them. It returns the programs that ran.
func RemoveLegacy(ctx context.Context) (ran []string, err error) {
	found, err := legacyTables()
	if err != nil {
		return nil, err
	}
	for _, s := range stacks() {
		if !hasTable(found, s.family) {
			continue
		}
		save, err := exec.LookPath(s.save)
		if err != nil {
			return ran, fmt.Errorf("%w: %w", ErrNoLegacy, err)
		}
		load, err := exec.LookPath(s.load)
		if err != nil {
			return ran, fmt.Errorf("%w: %w", ErrNoLegacy, err)
		}
		rules, err := exec.CommandContext(ctx, save, "-c").Output()
		if err != nil {
			return ran, fmt.Errorf("run %s: %w", save, err)
		}
		cmd := exec.CommandContext(ctx, load, "-c", "-w")
		cmd.Stdin = strings.NewReader(withoutOwn(string(rules)))
		if out, err := cmd.CombinedOutput(); err != nil {
			return ran, fmt.Errorf("run %s: %w: %s", load, err, bytes.TrimSpace(out))
		}
		ran = append(ran, s.save, s.load)
	}
	return ran, nil
}

func hasTable(found []Trace, family string) bool {
	for _, t := range found {
		if strings.HasPrefix(t.Name, family+" ") {
			return true
		}
	}
	return false
}

// withoutOwn leaves out of what iptables-save prints kube-proxy's chains, their rules and the jumps to them.
func withoutOwn(rules string) string {
	var out strings.Builder
	kubelet := strings.Contains(rules, ":"+kubeletMark+" ")
	for line := range strings.Lines(rules) {
		words := strings.Fields(line)
		own := false
		for i, w := range words {
			switch {
			case i == 0 && strings.HasPrefix(w, ":"):
				own = ownChain(w[1:], kubelet)
			case (w == "-A" || w == "-j" || w == "-g") && i+1 < len(words):
				own = own || ownChain(words[i+1], kubelet)
			}
		}
		if !own {
			out.WriteString(line)
		}
	}
	return out.String()
}
