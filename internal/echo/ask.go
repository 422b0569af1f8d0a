package echo

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

const (
	maxAddrs = 16       // of a name that are asked
	maxBody  = 16 << 10 // bytes of an answer that are read
	maxText  = 200      // of them that are told
	padded   = 512      // bytes of a datagram that asks
	resend   = 500 * time.Millisecond
)

// Question is asked of every address that the host of its URL has.
type Question struct {
	URL    string // http://, https:// or udp://
	Method string // of HTTP; empty: GET
	// Timeout is the longest wait for the name, and then for all addresses.
	Timeout time.Duration
}

// Answer is what one address made of a question.
type Answer struct {
	URL     string         `json:"url"`
	Address netip.AddrPort `json:"address,omitzero"` // that was asked; zero: none is known
	Status  int            `json:"status,omitempty"` // of HTTP
	Reply   *Reply         `json:"reply,omitempty"`  // of an echo server
	Text    string         `json:"text,omitempty"`   // beginning of what another server answers
	Took    time.Duration  `json:"tookNanoseconds"`
	Step    Step           `json:"step,omitempty"` // that went wrong
	Error   string         `json:"error,omitempty"`
	// Silent: nobody has said anything, neither an answer nor a refusal.
	Silent bool `json:"silent,omitempty"`
}

// Step is how far a question came.
type Step string

// The steps.
const (
	Resolve Step = "resolve"
	Connect Step = "connect"
	Reading Step = "answer"
)

// OK reports whether there was an answer, and of HTTP a status that is no error.
func (a Answer) OK() bool { return a.Error == "" && a.Status < http.StatusBadRequest }

// String returns a line for people.
func (a Answer) String() string {
	took := a.Took.Round(100 * time.Microsecond)
	switch {
	case a.Step == Resolve:
		return fmt.Sprintf("%s: %s", a.URL, a.Error)
	case a.Silent:
		return fmt.Sprintf("%s does not answer: nothing came within %s", a.Address, a.Took.Round(100*time.Millisecond))
	case a.Error != "":
		return fmt.Sprintf("%s does not answer: %s", a.Address, a.Error)
	}
	what := a.Text
	if a.Reply != nil {
		what = a.Reply.String()
	}
	if a.Status == 0 {
		return fmt.Sprintf("%s answers in %s: %s", a.Address, took, what)
	}
	return fmt.Sprintf("%s answers %d in %s: %s", a.Address, a.Status, took, what)
}

// Ask asks all addresses at once and returns their answers in order of addresses. The error says what is wrong with the question.
func Ask(ctx context.Context, q Question) ([]Answer, error) {
	target, port, err := parse(q.URL)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	addrs, err := resolve(ctx, target.Hostname(), q.Timeout)
	if err != nil {
		return []Answer{{URL: q.URL, Step: Resolve, Error: err.Error(), Took: time.Since(began)}}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, q.Timeout)
	defer cancel()
	answers := make([]Answer, len(addrs))
	var all sync.WaitGroup
	for i, addr := range addrs {
		all.Go(func() {
			a := Answer{URL: q.URL, Address: netip.AddrPortFrom(addr, port)}
			began := time.Now()
			var err error
			if target.Scheme == "udp" {
				err = a.askUDP(ctx)
			} else {
				err = a.askHTTP(ctx, q.Method, target)
			}
			a.Took = time.Since(began)
			if err != nil {
				a.Error, a.Silent = cause(err), silent(err)
			}
			answers[i] = a
		})
	}
	all.Wait()
	return answers, nil
}

func parse(text string) (*url.URL, uint16, error) {
	u, err := url.Parse(text)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return nil, 0, fmt.Errorf("URL %q: %w", text, err)
	}
	port := map[string]uint16{"http": 80, "https": 443, "udp": 0}
	number, known := port[u.Scheme]
	switch {
	case !known:
		return nil, 0, fmt.Errorf("URL %q: want one that begins with http://, https:// or udp://", text)
	case u.Hostname() == "":
		return nil, 0, fmt.Errorf("URL %q: a host is missing", text)
	}
	if u.Port() != "" {
		n, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil || n == 0 {
			return nil, 0, fmt.Errorf("URL %q: port %q: want 1 to 65535", text, u.Port())
		}
		number = uint16(n)
	}
	if number == 0 {
		return nil, 0, fmt.Errorf("URL %q: a port is missing", text)
	}
	return u, number, nil
}

func resolve(ctx context.Context, host string, timeout time.Duration) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		var dns *net.DNSError
		switch {
		case errors.As(err, &dns) && dns.IsNotFound:
			return nil, fmt.Errorf("the name %s does not exist", host)
		case errors.As(err, &dns) && dns.IsTimeout || errors.Is(err, context.DeadlineExceeded):
			return nil, fmt.Errorf("nobody answered for the name %s in %s", host, timeout)
		}
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	return addrs[:min(len(addrs), maxAddrs)], nil
}

func (a *Answer) askHTTP(ctx context.Context, method string, target *url.URL) error {
	a.Step = Connect
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", a.Address.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	a.Step = Reading
	transport := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
		// Whether packets come and go is asked, not who answers; and an image without certificates knows nobody.
		TLSClientConfig:        &tls.Config{InsecureSkipVerify: true},
		MaxResponseHeaderBytes: maxBody,
	}
	request, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
	if err != nil {
		return err
	}
	answer, err := transport.RoundTrip(request) // redirects are not followed: they are an answer
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
	if err != nil {
		return err
	}
	a.Step, a.Status = "", answer.StatusCode
	a.say(body)
	return nil
}

// askUDP asks again while nothing comes: a single datagram may be lost without anything being wrong.
func (a *Answer) askUDP(ctx context.Context) error {
	a.Step = Reading
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", a.Address.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	question := append([]byte("who?"), bytes.Repeat([]byte{' '}, padded-4)...)
	buffer := make([]byte, maxPacket)
	for {
		if _, err := conn.Write(question); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(resend)); err != nil {
			return err
		}
		n, err := conn.Read(buffer)
		if err == nil {
			a.Step = ""
			a.say(buffer[:n])
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// say keeps what was answered, as far as a terminal bears it.
func (a *Answer) say(body []byte) {
	if a.Reply = parseReply(body); a.Reply != nil {
		return
	}
	text := strings.ToValidUTF8(string(body[:min(len(body), maxText)]), "")
	a.Text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text))
}

func silent(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) || errors.As(err, &t) && t.Timeout()
}

// cause is the part of a network error that says more than the address, which has been named.
func cause(err error) string {
	if silent(err) {
		return "nothing came"
	}
	var number syscall.Errno
	if errors.As(err, &number) {
		return number.Error()
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}
