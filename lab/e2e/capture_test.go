package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// OBS-5, as a person at the cluster's edge does it: the kubeconfig, two pods on two nodes, a file for Wireshark.
func TestOBS5_Capture(t *testing.T) {
	s := newStage(t, "capture")
	here, there := shared.nodes[0].name, shared.nodes[len(shared.nodes)-1].name
	s.start(labelled("db", here, "db", postgresPort), labelled("app", there, "app", 8080), labelled("other", there, "other", 8080))
	s.service("db", postgresPort)
	s.apply(strings.ReplaceAll(postgresPolicy, "postgres", "db"))
	at := netip.AddrPortFrom(s.addresses("db")[0], postgresPort).String()
	s.expect(20*time.Second, reached, "app", fmt.Sprintf("db:%d", postgresPort))
	s.expect(propagation, timedOut, "other", at)

	file := filepath.Join(t.TempDir(), "db.pcapng")
	bin, err := filepath.Abs("../../bin/strait")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := shared.run(t.Context(), "kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "capture", "pod/"+s.namespace+"/db", "--kubeconfig", strings.TrimSpace(kubeconfig), "-w", file)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func(ctx context.Context) error { // it has begun when packets are in the file
		if _, err := s.try(ctx, "app", at); err != nil {
			return err
		}
		info, err := os.Stat(file)
		if err == nil && info.Size() < 2000 {
			err = fmt.Errorf("%d bytes", info.Size())
		}
		return err
	})
	s.always(reached, "app", fmt.Sprintf("db:%d", postgresPort))
	s.always(timedOut, "other", at)
	time.Sleep(time.Second)
	if err := errors.Join(cmd.Process.Signal(os.Interrupt), cmd.Wait()); err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(said.String())
	// Comments are in the file as they are.
	for _, want := range []string{
		"eth0@" + s.namespace + "/db", "allowed: CiliumNetworkPolicy " + s.namespace + "/db ingress ", "known connection, allowed: ",
		"denied at " + here + ": no rule of CiliumNetworkPolicy " + s.namespace + "/db allowed it", s.namespace + "/other:", s.namespace + "/app:",
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%q is not in the file", want)
		}
	}
	if !strings.Contains(said.String(), " denied") || !strings.Contains(said.String(), "none lost by the capture") {
		t.Errorf("summary:\n%s", said.String())
	}
}
