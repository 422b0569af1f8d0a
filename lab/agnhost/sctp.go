package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"os"
	"time"
)

// Of RFC 9260 there is what a conversation of one message each way needs: set-up by four messages, DATA, SACK and ABORT. A packet is the common
// header (source port, destination port, verification tag, CRC32c little-endian) and chunks (type, flags, length, value, padded to four bytes).
const (
	headerSize = 12
	chunkSize  = 4

	chunkData       = 0
	chunkInit       = 1
	chunkInitAck    = 2
	chunkSack       = 3
	chunkAbort      = 6
	chunkCookieEcho = 10
	chunkCookieAck  = 11

	parameterCookie = 7
	wholeMessage    = 3 // flags of DATA: first and last fragment
	window          = 64 << 10

	resendEvery = 250 * time.Millisecond
)

var (
	errRefused   = errors.New("connection refused")
	errMalformed = errors.New("no SCTP packet")
)

type chunk struct {
	kind, flags byte
	value       []byte
}

type packet struct {
	from, to uint16
	tag      uint32
	chunks   []chunk
}

func (p packet) encode() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.from)
	b = binary.BigEndian.AppendUint16(b, p.to)
	b = binary.BigEndian.AppendUint32(b, p.tag)
	b = append(b, 0, 0, 0, 0)
	for _, c := range p.chunks {
		b = append(b, c.kind, c.flags)
		b = binary.BigEndian.AppendUint16(b, uint16(chunkSize+len(c.value)))
		b = append(b, c.value...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	binary.LittleEndian.PutUint32(b[8:], checksum(b))
	return b
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// decode refuses a packet whose checksum is wrong: it was changed on its way by somebody who did not know what it is.
func decode(b []byte) (packet, error) {
	if len(b) < headerSize {
		return packet{}, errMalformed
	}
	b = append([]byte(nil), b...)
	sum := binary.LittleEndian.Uint32(b[8:])
	clear(b[8:headerSize])
	if checksum(b) != sum {
		return packet{}, fmt.Errorf("%w: wrong checksum", errMalformed)
	}
	p := packet{from: binary.BigEndian.Uint16(b), to: binary.BigEndian.Uint16(b[2:]), tag: binary.BigEndian.Uint32(b[4:])}
	for rest := b[headerSize:]; len(rest) >= chunkSize; {
		length := int(binary.BigEndian.Uint16(rest[2:]))
		if length < chunkSize || length > len(rest) {
			return packet{}, errMalformed
		}
		p.chunks = append(p.chunks, chunk{rest[0], rest[1], rest[chunkSize:length]})
		rest = rest[min(len(rest), (length+3)&^3):]
	}
	return p, nil
}

// start is the fixed part of INIT and INIT ACK: tag, window, streams out and in, first sequence number.
func start(tag, sequence uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag)
	b = binary.BigEndian.AppendUint32(b, window)
	b = append(b, 0, 1, 0, 1)
	return binary.BigEndian.AppendUint32(b, sequence)
}

const startSize = 16

// started reads tag and first sequence number of INIT or INIT ACK.
func started(value []byte) (tag, sequence uint32, ok bool) {
	if len(value) < startSize {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(value), binary.BigEndian.Uint32(value[12:]), true
}

func cookie(value []byte) []byte {
	for rest := value[startSize:]; len(rest) >= 4; {
		length := int(binary.BigEndian.Uint16(rest[2:]))
		if length < 4 || length > len(rest) {
			return nil
		}
		if binary.BigEndian.Uint16(rest) == parameterCookie {
			return rest[4:length]
		}
		rest = rest[min(len(rest), (length+3)&^3):]
	}
	return nil
}

func data(sequence uint32, text string) chunk {
	b := binary.BigEndian.AppendUint32(nil, sequence)
	b = append(b, make([]byte, 8)...) // stream, number in the stream, payload protocol
	return chunk{chunkData, wholeMessage, append(b, text...)}
}

func sack(sequence uint32) chunk {
	b := binary.BigEndian.AppendUint32(nil, sequence)
	b = binary.BigEndian.AppendUint32(b, window)
	return chunk{chunkSack, 0, append(b, 0, 0, 0, 0)} // no gaps, no duplicates
}

// ask sends a message and returns when one has come back. The connection is aborted afterwards.
func ask(to *net.IPAddr, port uint16, deadline time.Time) error {
	conn, err := net.DialIP("ip:132", nil, to)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	const firstPort, portCount = 32768, 28232
	var (
		own      = packet{from: uint16(firstPort + rand.IntN(portCount)), to: port}
		tag      = rand.Uint32() | 1
		sequence = rand.Uint32()
		sent     = []chunk{{chunkInit, 0, start(tag, sequence)}}
		buffer   = make([]byte, 64<<10)
	)
	for {
		own.chunks = sent
		if _, err := conn.Write(own.encode()); err != nil {
			return err
		}
		resend := time.Now().Add(resendEvery)
		if resend.After(deadline) {
			resend = deadline
		}
		for progress := false; !progress; {
			if err := conn.SetReadDeadline(resend); err != nil {
				return err
			}
			n, _, err := conn.ReadFrom(buffer) // Read would give the IP header as well
			if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(deadline) {
				break
			}
			if err != nil {
				return err
			}
			p, err := decode(buffer[:n])
			if err != nil || p.from != port || p.to != own.from || p.tag != tag {
				continue // of somebody else who uses this address
			}
			for _, c := range p.chunks {
				switch c.kind {
				case chunkAbort:
					return errRefused
				case chunkInitAck:
					peer, _, ok := started(c.value)
					if ok && own.tag == 0 {
						own.tag, progress = peer, true
						sent = []chunk{{chunkCookieEcho, 0, cookie(c.value)}, data(sequence, "hostname\n")}
					}
				case chunkData:
					if len(c.value) < 4 {
						continue
					}
					own.chunks = []chunk{sack(binary.BigEndian.Uint32(c.value)), {chunkAbort, 0, nil}}
					_, err := conn.Write(own.encode())
					return err
				}
			}
		}
	}
}

// answer serves ports at every IPv4 address, as the real program does. It keeps nothing: all that it has to know of a connection is in the cookie.
func answer(ports map[uint16]string) error {
	conn, err := net.ListenPacket("ip4:132", "0.0.0.0")
	if err != nil {
		return fmt.Errorf("listen for SCTP: %w", err)
	}
	fmt.Println("serving SCTP ports", ports)
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return fmt.Errorf("receive SCTP: %w", err)
		}
		p, err := decode(buffer[:n])
		if err != nil {
			continue
		}
		text, mine := ports[p.to]
		if !mine {
			continue // perhaps of another container of this pod
		}
		if reply := respond(p, text); len(reply.chunks) > 0 {
			_, _ = conn.WriteTo(reply.encode(), from) // a lost reply is asked for again
		}
	}
}

func respond(p packet, text string) packet {
	reply := packet{from: p.to, to: p.from}
	for _, c := range p.chunks {
		switch c.kind {
		case chunkInit:
			peer, sequence, ok := started(c.value)
			if !ok {
				continue
			}
			tag := rand.Uint32() | 1
			state := []byte{0, parameterCookie, 0, 4 + 12}
			for _, v := range []uint32{peer, tag, sequence} {
				state = binary.BigEndian.AppendUint32(state, v)
			}
			reply.tag = peer
			reply.chunks = append(reply.chunks, chunk{chunkInitAck, 0, append(start(tag, tag), state...)})
		case chunkCookieEcho:
			if len(c.value) != 12 || binary.BigEndian.Uint32(c.value[4:]) != p.tag {
				continue
			}
			reply.tag = binary.BigEndian.Uint32(c.value)
			// What comes with the cookie, as ask sends it, is acknowledged with the answer.
			reply.chunks = append(reply.chunks, chunk{chunkCookieAck, 0, nil}, sack(binary.BigEndian.Uint32(c.value[8:])), data(p.tag, text))
		}
	}
	return reply
}
