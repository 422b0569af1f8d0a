package policy

import (
	"cmp"
	"slices"
	"unique"
)

// NewLabels returns the labels sorted by key. Keys and values of equal text share memory: most pods of a cluster say the same few words.
func NewLabels(m map[string]string) Labels {
	if len(m) == 0 {
		return nil
	}
	out := make(Labels, 0, len(m))
	for k, v := range m {
		out = append(out, Label{Key: unique.Make(k).Value(), Value: unique.Make(v).Value()})
	}
	slices.SortFunc(out, func(a, b Label) int { return cmp.Compare(a.Key, b.Key) })
	return out
}

// Get returns the value of a key, and whether there is such a key.
func (l Labels) Get(key string) (string, bool) {
	i, found := slices.BinarySearchFunc(l, key, func(e Label, k string) int { return cmp.Compare(e.Key, k) })
	if !found {
		return "", false
	}
	return l[i].Value, true
}

// Map returns the labels as a map of the caller's own.
func (l Labels) Map() map[string]string {
	out := make(map[string]string, len(l))
	for _, e := range l {
		out[e.Key] = e.Value
	}
	return out
}
