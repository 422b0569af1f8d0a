package node

import (
	"strings"
	"testing"
	"time"
)

const followedLines = `{"flow":{"verdict":"FORWARDED"},"node_name":"n","time":"2026-01-01T00:00:00Z"}
{"lost_events":{"source":"HUBBLE_RING_BUFFER","num_events_lost":"120"},"node_name":"n"}
{"flow":{},"node_name":"n"}
{"lost_events":{"source":"PERF_EVENT_RING_BUFFER","num_events_lost":"7"},"node_name":"n"}
`

func TestFollowerIsCounted(t *testing.T) {
	s := &service{}
	if err := s.Follow(Command{Argv: []string{"sh", "-c", "exec sleep 600"}}, &Nothing{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Follow(Command{Argv: []string{"true"}}, &Nothing{}); err == nil {
		t.Error("two clients at once")
	}
	var out Followed
	if err := s.Unfollow(Nothing{}, &out); err != nil || out.Flows != 0 {
		t.Errorf("a silent client: %+v, %v", out, err)
	}
	if err := s.Follow(Command{Argv: []string{"sh", "-c", "printf '%s' '" + followedLines + "'; exec sleep 600"}}, &Nothing{}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); out.Gaps == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err := s.Followed(Nothing{}, &out); err != nil {
			t.Fatal(err)
		}
	}
	if out != (Followed{Flows: 2, Missed: 120, Lost: 7, Gaps: 1}) {
		t.Errorf("counted %+v", out)
	}
	if err := s.Unfollow(Nothing{}, &out); err != nil || out.Flows != 2 || out.Missed != 120 {
		t.Errorf("in the end %+v, %v", out, err)
	}
	if err := s.Followed(Nothing{}, &out); err == nil {
		t.Error("nobody follows any more")
	}
}

func TestWhatIsNoFlowIsAnError(t *testing.T) {
	for _, line := range []string{"strait: no agent runs on this node\n", `{"node_status":{}}` + "\n"} {
		var f Followed
		if err := f.add([]byte(line)); err == nil || f != (Followed{}) {
			t.Errorf("%s: %+v, %v", strings.TrimSpace(line), f, err)
		}
	}
}

func TestAnEndedClientIsTold(t *testing.T) {
	s := &service{}
	if err := s.Follow(Command{Argv: []string{"sh", "-c", "echo trouble"}}, &Nothing{}); err != nil {
		t.Fatal(err)
	}
	var out Followed
	var err error
	for end := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		err = s.Followed(Nothing{}, &out)
	}
	if err == nil || !strings.Contains(err.Error(), "trouble") {
		t.Errorf("a client that ended: %v", err)
	}
}

func TestTimedTellsTheExitCode(t *testing.T) {
	var out Timed
	if err := (&service{}).Timed(Command{Argv: []string{"sh", "-c", "echo said; sleep 0.05; exit 3"}}, &out); err != nil || out.Code != 3 || out.Output != "said\n" || out.Took < 50*time.Millisecond {
		t.Errorf("%+v, %v", out, err)
	}
	if err := (&service{}).Timed(Command{Argv: []string{"/nonexistent"}}, &out); err == nil {
		t.Error("a command that is not there")
	}
}
