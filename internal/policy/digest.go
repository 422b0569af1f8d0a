package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// digest collects content unambiguously: strings are preceded by their length, lists by their number of elements.
type digest struct {
	data []byte
	done hash.Hash // of what was collected before data; nil: nothing
}

func (d *digest) text(s string) {
	d.data = binary.AppendUvarint(d.data, uint64(len(s)))
	d.data = append(d.data, s...)
}

func (d *digest) number(n uint64) { d.data = binary.AppendUvarint(d.data, n) }

func (d *digest) flag(b bool) {
	if b {
		d.data = append(d.data, 1)
		return
	}
	d.data = append(d.data, 0)
}

func (d *digest) ref(r RuleRef) {
	d.text(string(r.Kind))
	d.text(r.Namespace)
	d.text(r.Name)
	d.number(uint64(r.Way))
	d.text(r.Path)
}

func (d *digest) verdict(v *Verdict) {
	d.flag(v.Allow)
	d.ref(v.Rule)
	d.flag(v.Audit)
	if v.Audit {
		d.flag(v.AuditAllow)
		d.ref(v.AuditRule)
	}
}

// relieve hashes what has been collected if it is much: ten thousand policies are megabytes.
func (d *digest) relieve() {
	if len(d.data) < 1<<15 {
		return
	}
	if d.done == nil {
		d.done = sha256.New()
	}
	d.done.Write(d.data)
	d.data = d.data[:0]
}

// sum returns the first 64 bits of SHA-256; values below first, which have a meaning of their own, are moved out of the way.
func (d *digest) sum(first uint64) uint64 {
	var n uint64
	if d.done == nil {
		h := sha256.Sum256(d.data)
		n = binary.BigEndian.Uint64(h[:])
	} else {
		d.done.Write(d.data)
		n = binary.BigEndian.Uint64(d.done.Sum(nil))
	}
	if n < first {
		n += first
	}
	return n
}
