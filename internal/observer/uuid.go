package observer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// uuid names a part: equal for equal parts, different on every node and after every start of an agent.
//
//	8 bytes: of the hash of node and start, with version 8 (RFC 9562)
//	1 byte:  the variant, and which part of the event
//	7 bytes: the event's number
type uuid [16]byte

// String returns the usual form.
func (u uuid) String() string {
	var b [36]byte
	hex.Encode(b[0:8], u[0:4])
	hex.Encode(b[9:13], u[4:6])
	hex.Encode(b[14:18], u[6:8])
	hex.Encode(b[19:23], u[8:10])
	hex.Encode(b[24:], u[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// boot is the beginning of the UUIDs of one life of an agent.
type boot [8]byte

func bootOf(node string, began time.Time) boot {
	sum := sha256.Sum256(began.UTC().AppendFormat([]byte(node+"\x00"), time.RFC3339Nano))
	b := boot(sum[:8])
	b[6] = 0x80 | b[6]&0x0f
	return b
}

func (b boot) uuid(p *part) (u uuid) {
	copy(u[:8], b[:])
	binary.BigEndian.PutUint64(u[8:], p.Number&(1<<56-1))
	u[8] = 0x80 | p.index
	return u
}
