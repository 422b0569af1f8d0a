package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/strait-net/strait/lab/internal/screen"
	"github.com/strait-net/strait/lab/internal/supervisor"
	"github.com/strait-net/strait/lab/internal/wire"
)

// show is the last screen of lab up: the real state, from the real commands.
func show(ctx context.Context, p places, s *screen.Screen, state wire.State) error {
	name := state.Spec.Name
	config := supervisor.Kubeconfig(p.state(name))
	curl := []string{"-n", "demo", "exec", "client", "--", "curl", "-sS", "--max-time", "5", "http://echo/hostname"}
	done := s.Step("a pod answers through the service")
	out, err := kubectl(p, state, curl...).CombinedOutput()
	// A ready pod is not yet a name: the name server and the node learn of it on their own watches.
	for deadline := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(deadline); out, err = kubectl(p, state, curl...).CombinedOutput() {
		time.Sleep(200 * time.Millisecond)
	}
	done(err)
	if err != nil {
		return fmt.Errorf("curl the demo service from the client pod: %w: %s", err, out)
	}
	if state.Spec.CNI == "strait" {
		if strait := filepath.Join(p.source, "bin", "strait"); exists(strait) {
			s.Note("\n$ strait status")
			status := exec.CommandContext(ctx, strait, "status")
			status.Env = append(os.Environ(), "KUBECONFIG="+config)
			status.Stdout, status.Stderr = os.Stdout, os.Stderr
			if err := status.Run(); err != nil {
				s.Note("strait status: %v", err) // its own output says what is wrong
			}
		}
	}
	s.Note("\n$ kubectl get pods -A -o wide")
	pods := kubectl(p, state, "get", "pods", "-A", "-o", "wide")
	pods.Stdout, pods.Stderr = os.Stdout, os.Stderr
	if err := pods.Run(); err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	s.Note("\n$ kubectl -n demo exec client -- curl -s http://echo/hostname\n%s", out)
	lab := "bin/lab"
	if name != "default" {
		lab += " --name " + name
	}
	s.Note(`
What to try next:
  export KUBECONFIG=%[1]s
  %[2]s kubectl -- -n demo exec -it client -- sh        a shell in a pod: curl, dig, ip, tcpdump
  %[2]s shell node1                                     a shell on a node
  %[2]s kubectl -- -n demo exec client -- curl -s http://web.outside.test/clientip
  %[2]s logs router web                                 what the world outside saw of that
  %[2]s node add | kill NODE | restart NODE
  %[2]s down                                            remove everything`, config, lab)
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
