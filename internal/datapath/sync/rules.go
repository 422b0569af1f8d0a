package sync

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/policy"
)

// ruleFile is in stateDir. One line per number that was given out: number, Unix seconds, way, and quoted kind, namespace, name and path; the
// last line of a number or rule counts. It is only appended to, and written anew at a start; a line without its end is nothing.
const ruleFile = "rules"

// RuleNumber is a slot of strait_rule.
type RuleNumber struct {
	Number uint32
	Ref    policy.RuleRef
	Since  time.Time // it counts from then on
}

// ruleNumbers gives slots of strait_rule to rules. A number is in the file before it is in the kernel.
type ruleNumbers struct {
	path   string
	limit  uint32 // slots; 0 is never given out
	zero   func(number uint32) error
	now    func() time.Time
	byRef  map[policy.RuleRef]uint32
	byNum  map[uint32]RuleNumber
	next   uint32   // no number from here on was ever given out
	free   []uint32 // below next
	unsure []uint32 // given out, but not yet zeroed and in the file
	file   *os.File
}

// openRules reads what an earlier agent has given out; forget is for a kernel that has nothing of it.
func openRules(stateDir string, limit uint32, forget bool, zero func(uint32) error, now func() time.Time) (*ruleNumbers, error) {
	r := &ruleNumbers{
		path: filepath.Join(stateDir, ruleFile), limit: limit, zero: zero, now: now,
		byRef: map[policy.RuleRef]uint32{}, byNum: map[uint32]RuleNumber{}, next: 1,
	}
	if !forget {
		if err := r.read(); err != nil {
			return nil, err
		}
	}
	for n := uint32(1); n < r.next; n++ {
		if _, taken := r.byNum[n]; !taken {
			r.free = append(r.free, n)
		}
	}
	return r, r.compact()
}

func (r *ruleNumbers) read() error {
	f, err := os.Open(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read numbers of rules: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil // what is left of line was cut off
		}
		if err != nil {
			return fmt.Errorf("read numbers of rules: %w", err)
		}
		if n, ok := parseRule(line); ok && n.Number < r.limit {
			r.learn(n)
		}
	}
}

// learn notes that a number is a rule's, and nobody else's.
func (r *ruleNumbers) learn(n RuleNumber) {
	if old, taken := r.byNum[n.Number]; taken {
		delete(r.byRef, old.Ref)
	}
	if old, known := r.byRef[n.Ref]; known {
		delete(r.byNum, old)
	}
	r.byRef[n.Ref], r.byNum[n.Number] = n.Number, n
	r.next = max(r.next, n.Number+1)
}

// compact writes the file anew: aside, then in place of the old one.
func (r *ruleNumbers) compact() error {
	numbers := make([]RuleNumber, 0, len(r.byNum))
	for _, n := range r.byNum {
		numbers = append(numbers, n)
	}
	slices.SortFunc(numbers, func(a, b RuleNumber) int { return int(a.Number) - int(b.Number) })
	var text strings.Builder
	for _, n := range numbers {
		text.WriteString(n.line())
	}
	aside := r.path + ".new"
	err := os.WriteFile(aside, []byte(text.String()), 0o600)
	if err == nil {
		err = os.Rename(aside, r.path)
	}
	if err == nil {
		r.file, err = os.OpenFile(r.path, os.O_WRONLY|os.O_APPEND, 0)
	}
	if err != nil {
		return fmt.Errorf("write numbers of rules: %w", err)
	}
	return nil
}

func (r *ruleNumbers) close() {
	if r.file != nil {
		_ = r.file.Close()
	}
}

// missing returns how many of refs have no number yet.
func (r *ruleNumbers) missing(refs map[policy.RuleRef]bool) (n int) {
	for ref := range refs {
		if _, known := r.byRef[ref]; !known {
			n++
		}
	}
	return n
}

// room returns how many numbers can be given out without taking any from a rule that has one.
func (r *ruleNumbers) room() int { return len(r.free) + max(int(r.limit)-int(r.next), 0) }

// recycle takes the numbers of rules that nothing uses.
func (r *ruleNumbers) recycle(used map[uint32]bool) {
	for n, rule := range r.byNum {
		if !used[n] {
			delete(r.byRef, rule.Ref)
			delete(r.byNum, n)
			r.free = append(r.free, n)
		}
	}
	slices.Sort(r.free)
}

// number returns the number of a rule, given out if it has none; 0 when there is none left. It may be used after confirm.
func (r *ruleNumbers) number(ref policy.RuleRef) uint32 {
	if n, known := r.byRef[ref]; known {
		return n
	}
	var n uint32
	switch {
	case len(r.free) > 0:
		n, r.free = r.free[0], r.free[1:]
	case r.next < r.limit:
		n = r.next
		r.next++
	default:
		return 0
	}
	r.byRef[ref] = n
	r.byNum[n] = RuleNumber{Number: n, Ref: ref, Since: r.now().Truncate(time.Second)}
	r.unsure = append(r.unsure, n)
	return n
}

// confirm makes the numbers given out count from nothing, and puts them into the file. After an error it can be called again.
func (r *ruleNumbers) confirm() error {
	for len(r.unsure) > 0 {
		chunk := r.unsure[:min(len(r.unsure), 1000)]
		var text strings.Builder
		text.WriteByte('\n') // ends a line that was cut off
		for _, n := range chunk {
			if err := r.zero(n); err != nil {
				return fmt.Errorf("zero counter of rule %d: %w", n, err)
			}
			text.WriteString(r.byNum[n].line())
		}
		if _, err := r.file.WriteString(text.String()); err != nil {
			return fmt.Errorf("write numbers of rules: %w", err)
		}
		r.unsure = r.unsure[len(chunk):]
	}
	r.unsure = nil
	return nil
}

func (n RuleNumber) line() string {
	b := strconv.AppendUint(nil, uint64(n.Number), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, n.Since.Unix(), 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(n.Ref.Way), 10)
	for _, s := range []string{string(n.Ref.Kind), n.Ref.Namespace, n.Ref.Name, n.Ref.Path} {
		b = append(b, ' ')
		b = strconv.AppendQuote(b, s)
	}
	return string(append(b, '\n'))
}

func parseRule(line string) (RuleNumber, bool) {
	var words [3]uint64
	var err error
	for i := range words {
		word, rest, found := strings.Cut(line, " ")
		if words[i], err = strconv.ParseUint(word, 10, 63); err != nil || !found {
			return RuleNumber{}, false
		}
		line = rest
	}
	var quoted [4]string
	for i := range quoted {
		word, err := strconv.QuotedPrefix(line)
		if err != nil {
			return RuleNumber{}, false
		}
		line = strings.TrimPrefix(line[len(word):], " ")
		if quoted[i], err = strconv.Unquote(word); err != nil {
			return RuleNumber{}, false
		}
	}
	if words[0] == 0 || words[0] > 1<<31 || words[2] > uint64(policy.Ingress) || line != "\n" {
		return RuleNumber{}, false
	}
	return RuleNumber{
		Number: uint32(words[0]), Since: time.Unix(int64(words[1]), 0),
		Ref: policy.RuleRef{
			Ref: policy.Ref{Kind: policy.Kind(quoted[0]), Namespace: quoted[1], Name: quoted[2]},
			Way: policy.Way(words[2]), Path: quoted[3],
		},
	}, true
}

// Rule is what a rule has counted.
type Rule struct {
	RuleNumber
	Packets, Bytes uint64
}

// Rules returns every rule that has a number, with what it has counted, in the order of numbers.
func (w *Policies) Rules() ([]Rule, error) {
	w.mu.Lock()
	out := make([]Rule, 0, len(w.rules.byNum))
	for _, n := range w.rules.byNum {
		out = append(out, Rule{RuleNumber: n})
	}
	w.mu.Unlock()
	slices.SortFunc(out, func(a, b Rule) int { return cmp.Compare(a.Number, b.Number) })
	at := make(map[uint32]int, len(out))
	for i := range out {
		at[out[i].Number] = i
	}
	err := w.Kernel.EachRule(func(c maps.RuleCount) {
		if i, known := at[c.Rule]; known {
			out[i].Packets, out[i].Bytes = c.Packets, c.Bytes
		}
	})
	return out, err
}

// Ref returns the rule that has a number.
func (w *Policies) Ref(number uint32) (policy.RuleRef, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, known := w.rules.byNum[number]
	return n.Ref, known
}
