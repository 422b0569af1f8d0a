package kube

import (
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// owner is the name under which this package reports problems and registers with tables.
const owner = "kube"

// Tables are the intent tables a source fills; a nil table is not watched. Problems is required.
type Tables struct {
	Nodes          *table.Table[state.Node]
	Services       *table.Table[state.Service]
	EndpointSlices *table.Table[state.EndpointSlice]
	Pools          *table.Table[state.Pool]  // of the operator; only from an API server
	Claims         *table.Table[state.Claim] // the same
	Pods           *table.Table[state.Pod]
	Namespaces     *table.Table[state.Namespace]
	Policies       *table.Table[state.Policy]
	PolicyObjects  *table.Table[state.PolicyObject] // of the operator; only from an API server
	Problems       *table.Table[state.Problem]

	Memory  *PolicyMemory // what refused policies said before; nil: it is not kept
	Cluster string        // name of this cluster, for policies of cilium.io that ask for it
}

// TablesOf returns the intent tables of an agent's state.
func TablesOf(s *state.State) Tables {
	return Tables{
		Nodes: s.Nodes, Services: s.Services, EndpointSlices: s.EndpointSlices, Problems: s.Problems,
		Pods: s.Pods, Namespaces: s.Namespaces, Policies: s.Policies,
	}
}

// kind is a kind of object and how it becomes rows.
type kind[O metav1.Object, R any] struct {
	name    string // in problems
	table   *table.Table[R]
	convert func(O) (row R, ok bool, err error)
	equal   func(a, b R) bool
	shared  *share[R] // of a table that several kinds write
	// borrow lets a row use the memory of one beside it where both say the same; nil: it is not worth while.
	borrow func(row *R, beside R)
}

// share is what a kind needs to know of a table that it does not have for itself.
type share[R any] struct {
	source string // registers with the table
	key    func(named) string
	ours   func(R) bool // rows of this kind
	// follow returns the row to write where old is; nil: where nothing is.
	follow func(old *R, row R) R
	// wrote and kept are told of rows that are written, and of the keys that there are of this kind; nil: nobody is to be told.
	wrote func(R)
	kept  func(there func(key string) bool)
}

func (k kind[O, R]) register() (done func()) {
	if k.shared != nil {
		return k.table.Register(k.shared.source)
	}
	return k.table.Register(owner)
}

func (k kind[O, R]) rowKey(o named) string {
	if k.shared != nil {
		return k.shared.key(o)
	}
	return objectName(o)
}

// store is where a client-go Reflector puts objects: converted at once and kept only as rows, so that
// nothing of an object stays in memory twice. A row that says what it said before is not written.
type store[O metav1.Object, R any] struct {
	kind[O, R]
	problems *table.Table[state.Problem]
	done     func() // tells the table that everything has been delivered once
	now      func() time.Time
	last     R // converted: a list comes in the order of names, so that the next may borrow from it
}

// named is an object, or what is left of it.
type named interface {
	GetNamespace() string
	GetName() string
}

// converted is an object after Transformer. All of a list are in memory before the first of them is a row.
type converted[R any] struct {
	namespace, name string
	row             R
	ok              bool
	err             error // with a *Partial one row counts
}

func (c *converted[R]) GetNamespace() string { return c.namespace }
func (c *converted[R]) GetName() string      { return c.name }

// GetObjectMeta is how client-go finds out which object it is.
func (c *converted[R]) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Namespace: c.namespace, Name: c.name}
}

// refused reports whether there is no row to use.
func (c *converted[R]) refused() bool {
	var partial *Partial
	return c.err != nil && !errors.As(c.err, &partial)
}

func (s *store[O, R]) toRow(o O) *converted[R] {
	c := &converted[R]{namespace: o.GetNamespace(), name: o.GetName()}
	if c.row, c.ok, c.err = s.convert(o); s.borrow != nil {
		s.borrow(&c.row, s.last)
		s.last = c.row
	}
	return c
}

// Transformer is applied by the Reflector to each object of an initial stream as it arrives.
func (s *store[O, R]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if o, ok := obj.(O); ok {
			return s.toRow(o), nil
		}
		return obj, nil
	}
}

func (s *store[O, R]) read(obj any) (*converted[R], error) {
	switch o := obj.(type) {
	case *converted[R]:
		return o, nil
	case O:
		return s.toRow(o), nil
	}
	return nil, fmt.Errorf("reflect %s: got a %T", s.name, obj)
}

// Add writes the row of an object; a row that cannot be read leaves the previous one in force.
func (s *store[O, R]) Add(obj any) error {
	c, err := s.read(obj)
	if err != nil {
		return err
	}
	s.judge(c)
	s.table.Write(func(tx *table.Txn[R]) { s.put(tx, c) })
	return nil
}

// Update is Add.
func (s *store[O, R]) Update(obj any) error { return s.Add(obj) }

// Delete removes the row of an object.
func (s *store[O, R]) Delete(obj any) error {
	c, err := s.read(obj)
	if err != nil {
		return err
	}
	key := s.rowKey(c)
	s.table.Delete(key)
	s.keep(func(other string) bool { return other != key })
	state.Clear(s.problems, owner, s.subject(c))
	return nil
}

// Replace makes the table hold exactly the objects, in one transaction.
func (s *store[O, R]) Replace(objects []any, _ string) error {
	rows, named := make(map[string]*converted[R], len(objects)), make(map[string]bool, len(objects))
	for _, obj := range objects {
		c, err := s.read(obj)
		if err != nil {
			return err
		}
		s.judge(c)
		rows[s.rowKey(c)] = c
		named[objectName(c)] = true
	}
	var gone []string
	s.table.Write(func(tx *table.Txn[R]) {
		tx.All(func(old R) bool {
			if key := s.table.Key(old); rows[key] == nil && (s.shared == nil || s.shared.ours(old)) {
				gone = append(gone, key)
			}
			return true
		})
		for _, key := range gone {
			tx.Delete(key)
		}
		for _, c := range rows {
			s.put(tx, c)
		}
	})
	s.keep(func(key string) bool { return rows[key] != nil })
	for p := range s.problems.Snapshot().By(state.ProblemsBySource, owner) {
		if name, ok := strings.CutPrefix(p.Subject, s.name+" "); ok && !named[name] {
			state.Clear(s.problems, owner, p.Subject)
		}
	}
	s.done()
	return nil
}

// Resync has nothing to do: rows do not age.
func (s *store[O, R]) Resync() error { return nil }

func (s *store[O, R]) put(tx *table.Txn[R], c *converted[R]) {
	if c.refused() {
		return
	}
	key, row := s.rowKey(c), c.row
	old, _, present := tx.Get(key)
	if s.shared != nil {
		var before *R
		if present {
			before = &old
		}
		row = s.shared.follow(before, row)
	}
	switch {
	case !c.ok:
		if present {
			tx.Delete(key)
		}
	case !present || !s.equal(old, row):
		if s.borrow != nil {
			for beside := range tx.Beside(key) {
				s.borrow(&row, beside)
			}
		}
		tx.Insert(row)
	}
	if c.ok && s.shared != nil && s.shared.wrote != nil {
		s.shared.wrote(row)
	}
}

// keep tells which objects there are.
func (s *store[O, R]) keep(there func(key string) bool) {
	if s.shared != nil && s.shared.kept != nil {
		s.shared.kept(there)
	}
}

func (s *store[O, R]) judge(c *converted[R]) {
	if c.err == nil {
		state.Clear(s.problems, owner, s.subject(c))
		return
	}
	text := strings.ReplaceAll(c.err.Error(), "\n", "; ")
	if c.refused() {
		text += "; the previous state stays"
	}
	state.Raise(s.problems, state.Problem{Source: owner, Subject: s.subject(c), Text: text}, s.now())
}

func (s *store[O, R]) subject(c *converted[R]) string { return s.name + " " + objectName(c) }

// objectName is namespace/name, or the name alone: the primary key of most intent tables.
func objectName(o named) string {
	if o.GetNamespace() == "" {
		return o.GetName()
	}
	return o.GetNamespace() + "/" + o.GetName()
}
