package echo

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server until the test ends.
func start(t *testing.T, s Server) Server {
	t.Helper()
	s.HTTP, s.UDP = freePort(t), freePort(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.HTTP))
		if err == nil {
			_ = conn.Close()
			return s
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func ask(t *testing.T, url string, timeout time.Duration) []Answer {
	t.Helper()
	answers, err := Ask(t.Context(), Question{URL: url, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	return answers
}

func TestServerSaysWhoAskedAndWhereItRuns(t *testing.T) {
	s := start(t, Server{Pod: "echo-a-1", Node: "node2"})
	for _, c := range []struct {
		url, from, protocol string
		status              int
	}{
		{fmt.Sprintf("http://127.0.0.1:%d/any/path", s.HTTP), "127.0.0.1", "TCP", 200},
		{fmt.Sprintf("http://[::1]:%d", s.HTTP), "::1", "TCP", 200},
		{fmt.Sprintf("udp://127.0.0.1:%d", s.UDP), "127.0.0.1", "UDP", 0},
		{fmt.Sprintf("udp://[::1]:%d", s.UDP), "::1", "UDP", 0},
	} {
		answers := ask(t, c.url, 5*time.Second)
		if len(answers) != 1 || !answers[0].OK() || answers[0].Reply == nil {
			t.Errorf("%s: %+v", c.url, answers)
			continue
		}
		a := answers[0]
		if a.Status != c.status || a.Reply.Pod != "echo-a-1" || a.Reply.Node != "node2" || a.Reply.From.Addr() != netip.MustParseAddr(c.from) || a.Reply.Protocol != c.protocol {
			t.Errorf("%s: %+v, reply %+v", c.url, a, a.Reply)
		}
		if c.protocol == "TCP" && a.Reply.At != a.Address {
			t.Errorf("%s: the server was at %s, and asked was %s", c.url, a.Reply.At, a.Address)
		}
		if !strings.Contains(a.String(), "echo-a-1 on node2, which sees "+a.Reply.From.String()) {
			t.Errorf("%s: %s", c.url, a)
		}
	}
}

func TestEveryAddressOfANameIsAsked(t *testing.T) {
	s := start(t, Server{Pod: "p"})
	answers := ask(t, fmt.Sprintf("http://localhost:%d", s.HTTP), 5*time.Second)
	addrs, err := net.DefaultResolver.LookupNetIP(t.Context(), "ip", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	distinct := map[netip.Addr]bool{}
	for _, a := range addrs {
		distinct[a.Unmap()] = true
	}
	if len(answers) != len(distinct) {
		t.Errorf("%d answers of %d addresses: %+v", len(answers), len(distinct), answers)
	}
	for i, a := range answers {
		if !a.OK() || i > 0 && !answers[i-1].Address.Addr().Less(a.Address.Addr()) {
			t.Errorf("answer %d: %s", i, a)
		}
	}
}

func TestSilenceIsToldFromRefusal(t *testing.T) {
	quiet, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer quiet.Close()
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	for _, c := range []struct {
		url    string
		step   Step
		silent bool
	}{
		{fmt.Sprintf("http://127.0.0.1:%d", freePort(t)), Connect, false},
		{fmt.Sprintf("udp://127.0.0.1:%d", freePort(t)), Reading, false},
		{"http://" + quiet.Addr().String(), Reading, true},
		{"udp://" + deaf.LocalAddr().String(), Reading, true},
	} {
		began := time.Now()
		answers := ask(t, c.url, 300*time.Millisecond)
		if len(answers) != 1 || answers[0].OK() || answers[0].Step != c.step || answers[0].Silent != c.silent || answers[0].Error == "" {
			t.Errorf("%s: %+v", c.url, answers)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: took %v", c.url, took)
		}
	}
	gone := ask(t, "http://nobody.invalid", 5*time.Second)
	if len(gone) != 1 || gone[0].Step != Resolve || !strings.Contains(gone[0].Error, "nobody.invalid") {
		t.Errorf("%+v", gone)
	}
}

func TestAskAnybody(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/forbidden":
			w.WriteHeader(http.StatusForbidden)
		case "/long":
			_, _ = w.Write([]byte(strings.Repeat("é\x1b[31m", 100_000)))
		default:
			_, _ = fmt.Fprintf(w, "%s %s\n", r.Method, r.URL.Path)
		}
	}))
	defer s.Close()
	answers, err := Ask(t.Context(), Question{URL: s.URL + "/land", Method: "POST", Timeout: 5 * time.Second})
	if err != nil || !answers[0].OK() || answers[0].Text != "POST /land" {
		t.Errorf("%+v %v", answers, err)
	}
	if a := ask(t, s.URL+"/redirect", 5*time.Second)[0]; !a.OK() || a.Status != 302 {
		t.Errorf("%+v", a)
	}
	if a := ask(t, s.URL+"/forbidden", 5*time.Second)[0]; a.OK() || a.Status != 403 || a.Error != "" {
		t.Errorf("%+v", a)
	}
	if a := ask(t, s.URL+"/long", 5*time.Second)[0]; !a.OK() || len(a.Text) > maxText || strings.Contains(a.Text, "\x1b") {
		t.Errorf("%+v", a)
	}
}

func TestSay(t *testing.T) {
	s := start(t, Server{Pod: "p", Say: "Ship landed"})
	if a := ask(t, fmt.Sprintf("http://127.0.0.1:%d/v1/request-landing", s.HTTP), 5*time.Second)[0]; a.Text != "Ship landed" || a.Reply != nil {
		t.Errorf("%+v", a)
	}
}

// Datagrams that are not padded are not answered, so that a forged sender gets no more than was sent in its name.
func TestServerDoesNotMultiply(t *testing.T) {
	s := start(t, Server{Pod: "p"})
	conn, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", s.UDP))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, text := range []string{"", "x", "\xff\x00\n"} {
		_, _ = conn.Write([]byte(text))
	}
	_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 2048)); err == nil {
		t.Errorf("%d bytes came back", n)
	}
	if a := ask(t, fmt.Sprintf("udp://127.0.0.1:%d", s.UDP), 5*time.Second)[0]; !a.OK() {
		t.Errorf("after garbage: %s", a)
	}
}

// Who holds connections open gets no more of them than there are places; others are served again once they let go.
func TestServerIsBounded(t *testing.T) {
	s := start(t, Server{Pod: "p"})
	var held []net.Conn
	for range maxConns {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.HTTP))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", s.HTTP)
	if a := ask(t, url, 300*time.Millisecond)[0]; !a.Silent {
		t.Errorf("with %d connections: %s", len(held), a)
	}
	for _, conn := range held {
		_, _ = conn.Write([]byte("\x16\x03\x01 garbage\r\n\r\n"))
		_ = conn.Close()
	}
	if a := ask(t, url, 5*time.Second)[0]; !a.OK() {
		t.Errorf("after they let go: %s", a)
	}
}

func TestBadQuestions(t *testing.T) {
	for url, want := range map[string]string{
		"":                       "want one that begins with",
		"echo-a:8080":            "want one that begins with",
		"ftp://a":                "want one that begins with",
		"http://":                "a host is missing",
		"http://:80":             "a host is missing",
		"http://a:0":             `port "0"`,
		"http://a:99999":         `port "99999"`,
		"udp://a":                "a port is missing",
		"http://a b":             "invalid character",
		"http://[::1":            "missing ']'",
		"http://%zz":             "invalid URL escape",
		"http://a:http":          "invalid port",
		"\x00":                   "invalid control character",
		"http://a/" + "\x7f":     "invalid control character",
		"udp://127.0.0.1:999999": `port "999999"`,
	} {
		if _, err := Ask(t.Context(), Question{URL: url, Timeout: time.Second}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", url, err, want)
		}
	}
}

func TestPortThatIsTaken(t *testing.T) {
	s := start(t, Server{Pod: "p"})
	if err := (Server{HTTP: s.HTTP}).Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "listen for HTTP") {
		t.Errorf("%v", err)
	}
	if err := (Server{UDP: s.UDP}).Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "listen for UDP") {
		t.Errorf("%v", err)
	}
}
