package wire

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

const goodConfig = `{"cniVersion":"1.1.0","name":"strait","type":"strait-cni"}`

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig([]byte(`{"cniVersion":"1.0.0","name":"n","type":"strait-cni","socket":"/a//b","stateDir":"/c",
		"prevResult":{"ips":[]},"cni.dev/valid-attachments":[{"containerID":"x","ifname":"eth0"}],"cni.dev/other":1,
		"args":{"cni":{}},"dns":{},"ipam":{},"runtimeConfig":null,"capabilities":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Socket != "/a/b" || c.StateDir != "/c" || c.Name != "n" || string(c.PrevResult) != `{"ips":[]}` ||
		len(c.ValidAttachments) != 1 || c.ValidAttachments[0].ContainerID != "x" {
		t.Errorf("%+v", c)
	}
	c, err = ParseConfig([]byte(goodConfig))
	if err != nil || c.Socket != DefaultSocket || c.StateDir != DefaultStateDir || c.ValidAttachments != nil || c.PrevResult != nil {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = ParseConfig([]byte(strings.Replace(goodConfig, "{", `{"cni.dev/valid-attachments":null,`, 1)))
	if err != nil || c.ValidAttachments == nil {
		t.Errorf("null list: %+v, %v; want it empty and there", c, err)
	}
}

func TestCNI1_ParseConfigRefuses(t *testing.T) {
	for _, c := range []struct {
		config string
		code   uint
		want   []string
	}{
		{``, 6, []string{"decode network config"}},
		{`[]`, 6, []string{"decode network config"}},
		{`null`, 6, []string{"null"}},
		{`{"cniVersion":"1.1.0"`, 6, []string{"decode network config"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","mtu":1400}`, 2, []string{`"mtu"`, "1400", "socket"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","Socket":"/x"}`, 2, []string{`"Socket"`, `"/x"`}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","ipam":{"type":"host-local"}}`, 2, []string{`"ipam"`, "host-local"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","capabilities":{"bandwidth":true}}`, 2, []string{`"capabilities.bandwidth"`, "portMappings"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","capabilities":{"portMappings":"yes"}}`, 7, []string{`"capabilities"`, `"yes"`}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","runtimeConfig":{"bandwidth":{"ingressRate":1}}}`, 2, []string{`"runtimeConfig.bandwidth"`, "ingressRate"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","runtimeConfig":[]}`, 7, []string{`"runtimeConfig"`, "[]"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","socket":5}`, 7, []string{`"socket"`, "5", "string"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","socket":null}`, 7, []string{`"socket"`, "null"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","stateDir":"var"}`, 7, []string{`"stateDir"`, `"var"`, "absolute path"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"bridge"}`, 7, []string{`"type"`, `"bridge"`, "strait-cni"}},
		{`{"cniVersion":"1.1.0","name":"n"}`, 7, []string{`"type"`, "missing"}},
		{`{"cniVersion":"1.1.0","type":"strait-cni"}`, 7, []string{`"name"`, "missing"}},
		{`{"cniVersion":"1.1.0","name":"../n","type":"strait-cni"}`, 7, []string{`"name"`, "../n"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","cni.dev/valid-attachments":{}}`, 7, []string{`"cni.dev/valid-attachments"`, "{}"}},
		{`{"cniVersion":"1.1.0","name":"n","type":"strait-cni","cni.dev/valid-attachments":[{"ifname":"x"}]}`, 7, []string{`"cni.dev/valid-attachments"`}},
		{`{"cniVersion":"0.2.0","name":"n","type":"strait-cni"}`, 1, []string{`"cniVersion"`, `"0.2.0"`, "0.3.1, 0.4.0, 1.0.0, 1.1.0"}},
		{`{"name":"n","type":"strait-cni"}`, 1, []string{`"cniVersion"`}},
	} {
		_, err := ParseConfig([]byte(c.config))
		var e *types.Error
		if !errors.As(err, &e) || e.Code != c.code {
			t.Errorf("%s: %v, want code %d", c.config, err, c.code)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(e.Error(), want) {
				t.Errorf("%s: %q does not say %s", c.config, e.Error(), want)
			}
		}
	}
}

func TestCNI1_AttachmentRefuses(t *testing.T) {
	good := Request{Command: Add, ContainerID: "c1", IfName: "eth0", NetNS: "/run/netns/x",
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1;FOO=bar"}
	a, err := good.Attachment("net")
	if err != nil || !reflect.DeepEqual(a, Attachment{"net", "c1", "eth0", "/run/netns/x", "default", "web-0", "u-1", nil}) {
		t.Fatalf("%+v, %v", a, err)
	}
	for _, c := range []struct {
		change func(*Request)
		want   string
	}{
		{func(r *Request) { r.ContainerID = "" }, "CNI_CONTAINERID"},
		{func(r *Request) { r.ContainerID = "../../etc" }, `CNI_CONTAINERID: "../../etc"`},
		{func(r *Request) { r.ContainerID = strings.Repeat("a", 201) }, "CNI_CONTAINERID"},
		{func(r *Request) { r.IfName = "" }, "CNI_IFNAME"},
		{func(r *Request) { r.IfName = "a/b" }, `CNI_IFNAME: "a/b"`},
		{func(r *Request) { r.IfName = "interface-name-16" }, "CNI_IFNAME"},
		{func(r *Request) { r.IfName = "a\x00" }, "CNI_IFNAME"},
		{func(r *Request) { r.NetNS = "" }, "CNI_NETNS"},
		{func(r *Request) { r.NetNS = "netns/x" }, `CNI_NETNS: "netns/x"`},
		{func(r *Request) { r.Args = "K8S_POD_NAME" }, `CNI_ARGS: "K8S_POD_NAME"`},
		{func(r *Request) { r.Args = "K8S_POD_NAME=a b" }, `CNI_ARGS: "K8S_POD_NAME=a b"`},
		{func(r *Request) { r.Args = "COLOUR=blue" }, `CNI_ARGS: "COLOUR=blue"`},
		{func(r *Request) { r.Args = "IgnoreUnknown=perhaps" }, `CNI_ARGS: "IgnoreUnknown=perhaps"`},
	} {
		r := good
		c.change(&r)
		_, err := r.Attachment("net")
		if err == nil || Code(err) != types.ErrInvalidEnvironmentVariables || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want code 4 and %s", r, err, c.want)
		}
	}
	del := Request{Command: Del, ContainerID: "c1", IfName: "eth0"}
	if _, err := del.Attachment("net"); err != nil {
		t.Errorf("DEL without a namespace: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(goodConfig))
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"n","type":"strait-cni","prevResult":{},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		var e *types.Error
		if err != nil && (!errors.As(err, &e) || e.Code == 0 || e.Msg == "") {
			t.Errorf("error without a code: %v", err)
		}
		if err == nil && (!filepath.IsAbs(c.Socket) || !filepath.IsAbs(c.StateDir) || c.Name == "") {
			t.Errorf("accepted: %+v", c)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"version":1,"command":"ADD","containerID":"a","netns":"/x","ifName":"e","args":"K=V;IgnoreUnknown=1","config":{}}`))
	f.Add([]byte(`{"version":1,"command":"DEL","containerID":"a","ifName":"e-0","config":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		req, err := DecodeRequest(data)
		if err != nil {
			return
		}
		a, err := req.Attachment("n")
		if err != nil {
			return
		}
		if name := a.FileName(); name != filepath.Base(name) || len(name) > 255 || strings.HasPrefix(name, ".") {
			t.Errorf("attachment %q has the file name %q", a.Key(), name)
		}
	})
}

func TestDecodeRequestRefuses(t *testing.T) {
	for _, bad := range []string{
		``, `[]`, `{}`, `{"version":2}`, `{"version":1,"colour":1}`, `{"version":1} {}`, `{"version":1,"command":5}`,
	} {
		if _, err := DecodeRequest([]byte(bad)); err == nil || Code(err) != types.ErrDecodingFailure {
			t.Errorf("%s: %v, want code 6", bad, err)
		}
	}
}

// answer serves one connection with the bytes.
func answer(t *testing.T, with string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 1<<16))
		_, _ = conn.Write([]byte(with))
		_ = conn.Close()
	}()
	return socket
}

func TestCall(t *testing.T) {
	req := Request{Command: Status, Config: json.RawMessage(goodConfig)}
	if got, err := Call(answer(t, `{"version":1,"result":{"a":1}}`), req, time.Second); err != nil || string(got) != `{"a":1}` {
		t.Errorf("%s, %v", got, err)
	}
	_, err := Call(answer(t, `{"version":1,"error":{"code":7,"msg":"m","details":"d"}}`), req, time.Second)
	var e *types.Error
	if !errors.As(err, &e) || e.Code != 7 || e.Details != "d" {
		t.Errorf("%v, want the agent's error", err)
	}
	if _, err := Call(answer(t, `{"version":9}`), req, time.Second); err == nil || Code(err) != types.ErrTryAgainLater {
		t.Errorf("other version: %v", err)
	}
	for name, socket := range map[string]string{
		"no socket":   filepath.Join(t.TempDir(), "none"),
		"closed":      answer(t, ""),
		"half answer": answer(t, `{"version":1,"res`),
	} {
		if _, err := Call(socket, req, time.Second); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		}
	}
	stuck := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", stuck)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Call(stuck, req, 50*time.Millisecond); !errors.Is(err, ErrUnavailable) {
		t.Errorf("agent that does not answer: %v, want ErrUnavailable", err)
	}
}

func TestQueue(t *testing.T) {
	dir := t.TempDir()
	q := NewQueue(dir)
	if names, err := q.Names(); err != nil || names != nil {
		t.Errorf("no directory: %v, %v", names, err)
	}
	req := Request{Command: Del, ContainerID: "c", IfName: "eth0", Config: json.RawMessage(goodConfig)}
	a, err := req.Attachment("strait")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := q.Put(a, req); err != nil {
			t.Fatal(err)
		}
	}
	names, err := q.Names()
	if err != nil || len(names) != 1 || names[0] != "c-eth0.json" || !q.Has(a) {
		t.Fatalf("%v, %v", names, err)
	}
	got, err := q.Get(names[0])
	if err != nil || got.ContainerID != "c" || string(got.Config) != goodConfig {
		t.Errorf("%+v, %v", got, err)
	}
	if err := q.Remove(names[0]); err != nil || q.Has(a) {
		t.Error(err)
	}
	if err := q.Remove(names[0]); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cni", "deletes", "bad.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Get("bad.json"); err == nil {
		t.Error("a corrupt file is accepted")
	}
	if to, err := q.SetAside("bad.json"); err != nil || !strings.HasSuffix(to, "bad.json.corrupt") {
		t.Error(to, err)
	}
	if names, err := q.Names(); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}
