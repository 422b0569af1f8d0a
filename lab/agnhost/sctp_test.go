package main

import (
	"bytes"
	"errors"
	"testing"
)

func TestPacketSurvivesTheWire(t *testing.T) {
	want := packet{from: 7, to: 9, tag: 11, chunks: []chunk{data(5, "hello"), sack(8)}}
	b := want.encode()
	got, err := decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if got.from != 7 || got.to != 9 || got.tag != 11 || len(got.chunks) != 2 || !bytes.HasSuffix(got.chunks[0].value, []byte("hello")) {
		t.Errorf("got %+v", got)
	}
	b[0] ^= 1
	if _, err := decode(b); !errors.Is(err, errMalformed) {
		t.Errorf("a changed port went unnoticed: %v", err)
	}
	for n := range b {
		if _, err := decode(b[:n]); err == nil {
			t.Errorf("%d of %d bytes are taken for a packet", n, len(b))
		}
	}
}

// The answer to INIT holds all that the server has to know to answer the cookie.
func TestServerKeepsNothing(t *testing.T) {
	hello := respond(packet{from: 1000, to: 80, chunks: []chunk{{chunkInit, 0, start(42, 100)}}}, "foo")
	if hello.from != 80 || hello.to != 1000 || hello.tag != 42 || len(hello.chunks) != 1 || hello.chunks[0].kind != chunkInitAck {
		t.Fatalf("INIT is answered by %+v", hello)
	}
	tag, _, _ := started(hello.chunks[0].value)
	echo := packet{from: 1000, to: 80, tag: tag, chunks: []chunk{{chunkCookieEcho, 0, cookie(hello.chunks[0].value)}, data(100, "hostname")}}
	answer := respond(echo, "foo")
	if answer.tag != 42 || len(answer.chunks) != 3 || !bytes.HasSuffix(answer.chunks[2].value, []byte("foo")) {
		t.Errorf("the cookie is answered by %+v", answer)
	}
	echo.tag++
	if answer := respond(echo, "foo"); len(answer.chunks) != 0 {
		t.Errorf("a cookie under a wrong tag is answered by %+v", answer)
	}
}

func TestPorts(t *testing.T) {
	got := ports([]string{"SERVE_SCTP_PORT_80=foo", "SERVE_PORT_81=bar", "SERVE_SCTP_PORT_x=y"})
	if len(got) != 1 || got[80] != "foo" {
		t.Errorf("got %v", got)
	}
}
