package cli_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// buffer may be written by several goroutines.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// apiServer answers the requests strait makes, and runs exec as strait itself against the socket of the pod's node.
type apiServer struct {
	sockets map[string]string // by pod; an empty socket never answers
	pods    []corev1.Pod
	nodes   []string
	noNodes bool // listing nodes is forbidden
	listed  int  // times that all nodes were listed
	// ended are pods that have ended.
	ended map[string]corev1.PodPhase
	// stopped ends, by pod, commands that would go on until the client has gone.
	stopped map[string]chan struct{}
}

// kubeconfig starts the server and returns the file that leads to it.
func (s *apiServer) kubeconfig(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods", func(w http.ResponseWriter, r *http.Request) {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		if r.PathValue("namespace") == "kube-system" && r.URL.Query().Get("labelSelector") == "app.kubernetes.io/name=strait-agent" {
			on, some := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "spec.nodeName=")
			for _, p := range s.pods {
				if !some || p.Spec.NodeName == on {
					list.Items = append(list.Items, p)
				}
			}
		}
		reply(w, http.StatusOK, list)
	})
	missing := metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404}
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods/{pod}", func(w http.ResponseWriter, r *http.Request) {
		phase, ok := s.ended[r.PathValue("namespace")+"/"+r.PathValue("pod")]
		if !ok {
			reply(w, http.StatusNotFound, missing)
			return
		}
		reply(w, http.StatusOK, corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, Status: corev1.PodStatus{Phase: phase}})
	})
	mux.HandleFunc("GET /api/v1/nodes/{node}", func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(s.nodes, r.PathValue("node")) {
			reply(w, http.StatusNotFound, missing)
			return
		}
		reply(w, http.StatusOK, corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: r.PathValue("node")}})
	})
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, _ *http.Request) {
		if s.noNodes {
			reply(w, http.StatusForbidden, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
				Status: "Failure", Reason: metav1.StatusReasonForbidden, Code: 403})
			return
		}
		s.listed++
		list := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}}
		for _, n := range s.nodes {
			list.Items = append(list.Items, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}})
		}
		reply(w, http.StatusOK, list)
	})
	var running sync.WaitGroup
	mux.HandleFunc("GET /api/v1/namespaces/kube-system/pods/{pod}/exec", func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Done()
		s.exec(t, w, r)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close(); running.Wait() })
	path := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: lab
contexts: [{name: lab, context: {cluster: lab}}]
clusters: [{name: lab, cluster: {server: %s}}]
`, srv.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

// exec speaks v5.channel.k8s.io: each message begins with its channel, 1 stdout, 2 stderr, 3 the final status.
func (s *apiServer) exec(t *testing.T, w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	socket := s.sockets[r.PathValue("pod")]
	if socket == "" {
		_, _, _ = conn.ReadMessage() // until the client gives up
		return
	}
	command := r.URL.Query()["command"]
	if command[0] != "strait" || r.URL.Query().Get("container") != "agent" {
		t.Errorf("exec of %v in container %q", command, r.URL.Query().Get("container"))
	}
	if slices.Contains(command, "--follow") {
		follow(conn, s.stopped[r.PathValue("pod")], append(command[1:], "--socket", socket))
		return
	}
	stdout, stderr, code := terminal{}.run(append(command[1:], "--socket", socket)...)
	send := func(channel byte, text string) {
		if text != "" {
			_ = conn.WriteMessage(websocket.BinaryMessage, append([]byte{channel}, text...))
		}
	}
	send(1, stdout)
	send(2, stderr)
	final := metav1.Status{Status: metav1.StatusSuccess}
	if code != 0 {
		final = metav1.Status{Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Details: &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Type: "ExitCode", Message: fmt.Sprint(code)}}}}
	}
	text, _ := json.Marshal(final)
	send(3, string(text))
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
}

func agentPod(node string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "strait-agent-" + node, Namespace: "kube-system"},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "agent"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
			Name: "agent", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}},
	}
}

// threeNodes is a cluster of n1 in trouble and n2, n3 well.
func threeNodes(t *testing.T) *apiServer {
	s := &apiServer{sockets: map[string]string{}}
	for i := 1; i <= 3; i++ {
		name := fmt.Sprintf("n%d", i)
		s.nodes = append(s.nodes, name)
		s.pods = append(s.pods, agentPod(name))
		s.sockets["strait-agent-"+name] = agent(t, nodeOf(i, i == 1))
	}
	return s
}
