package progcost

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

func TestBetweenSumsProgramsOfOneNameAndLeavesIdleOnesOut(t *testing.T) {
	before := map[ebpf.ProgramID]Total{1: {"from", 10, 1000}, 2: {"from", 0, 0}, 3: {"idle", 5, 50}}
	after := map[ebpf.ProgramID]Total{1: {"from", 110, 11000}, 2: {"from", 100, 30000 * time.Nanosecond}, 3: {"idle", 5, 50}, 4: {"born", 50, 500}, 5: {"start", 1, 9}}
	got := Between(before, after, 100)
	if len(got) != 2 {
		t.Fatalf("costs %v, want born and from", got)
	}
	if got[0] != (Cost{"born", 0.5, 10}) || got[1] != (Cost{"from", 2, 200}) {
		t.Errorf("costs %v", got)
	}
}
