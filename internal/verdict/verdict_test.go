package verdict

import "testing"

func TestReason(t *testing.T) {
	for _, tc := range []struct {
		reason     Reason
		name, text string
		dropped    bool
	}{
		{Unknown, "unknown", "unknown", false},
		{ToStack, "to-stack", "handed to the node's network stack", false},
		{SpoofedSource, "spoofed-source", "source address is not the pod's own", true},
		{250, "reason-250", "reason 250, which this version does not know", true},
	} {
		if got := tc.reason.String(); got != tc.name {
			t.Errorf("Reason(%d).String() = %q, want %q", tc.reason, got, tc.name)
		}
		if got := tc.reason.Text(); got != tc.text {
			t.Errorf("Reason(%d).Text() = %q, want %q", tc.reason, got, tc.text)
		}
		if got := tc.reason.Dropped(); got != tc.dropped {
			t.Errorf("Reason(%d).Dropped() = %v, want %v", tc.reason, got, tc.dropped)
		}
	}
}

func TestAllAscend(t *testing.T) {
	all := All()
	if len(all) == 0 || all[0] != Unknown {
		t.Fatalf("All() = %v, want it to begin with unknown", all)
	}
	for i := 1; i < len(all); i++ {
		if all[i] <= all[i-1] {
			t.Errorf("id %d follows %d", all[i], all[i-1])
		}
	}
}
