package live

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strait-net/strait/internal/cli"
	"github.com/strait-net/strait/internal/testkit"
)

// outside is strait as it is typed where no agent runs: it finds the agents' pods at an API server, and is run in them.
type outside struct {
	t          *testing.T
	c          *testkit.Cluster
	kubeconfig string
}

func newOutside(t *testing.T, c *testkit.Cluster) outside {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/namespaces/kube-system/pods", func(w http.ResponseWriter, _ *http.Request) {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		for _, n := range c.Nodes {
			list.Items = append(list.Items, corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: n.Name, Namespace: "kube-system"},
				Spec:       corev1.PodSpec{NodeName: n.Name},
				Status:     corev1.PodStatus{Phase: corev1.PodRunning},
			})
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	})
	mux.HandleFunc("GET /api/v1/namespaces/kube-system/pods/{pod}/exec", func(w http.ResponseWriter, r *http.Request) {
		for _, n := range c.Nodes {
			if n.Name == r.PathValue("pod") {
				execOn(t, n, w, r)
			}
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	path := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"lab","contexts":[{"name":"lab","context":{"cluster":"lab"}}],
"clusters":[{"name":"lab","cluster":{"server":%q}}]}`, srv.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return outside{t, c, path}
}

// execOn speaks v5.channel.k8s.io: each message begins with its channel, 1 stdout, 2 stderr, 3 the final status.
func execOn(t *testing.T, n *testkit.Node, w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	out, code := strait(t, n, r.URL.Query()["command"][1:]...)
	final, channel := metav1.Status{Status: metav1.StatusSuccess}, byte(1)
	if code != 0 {
		channel = 2
		final = metav1.Status{Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Details: &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Type: "ExitCode", Message: fmt.Sprint(code)}}}}
	}
	text, _ := json.Marshal(final)
	_ = conn.WriteMessage(websocket.BinaryMessage, append([]byte{channel}, out...))
	_ = conn.WriteMessage(websocket.BinaryMessage, append([]byte{3}, text...))
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
}

// strait runs the command in a terminal of 100 columns.
func (o outside) strait(args ...string) (out string, code int) {
	var b strings.Builder
	env := cli.Env{Version: "test", Out: &b, Err: &b, Getenv: func(string) string { return "" }, Now: time.Now, Width: 100}
	code = cli.Run(context.Background(), env, append(args, "--kubeconfig", o.kubeconfig))
	return b.String(), code
}
