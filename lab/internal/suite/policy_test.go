package suite

import (
	"strings"
	"testing"
	"time"
)

const goOutput = `=== RUN   TestConformanceProfiles
    conformance_profile_test.go:94: Running conformance profile tests
=== RUN   TestConformanceProfiles/CNPAdminTierEgressTCP
=== RUN   TestConformanceProfiles/CNPAdminTierEgressTCP/Should_support_an_'allow'
=== RUN   TestConformanceProfiles/CNPAdminTierEgressTCP/Should_support_a_'deny'
    helper.go:98: Expected connection to fail from a/b to 10.0.0.1, but instead it successfully connected.
=== RUN   TestConformanceProfiles/CNPNodes
--- FAIL: TestConformanceProfiles (75.02s)
    --- FAIL: TestConformanceProfiles/CNPAdminTierEgressTCP (14.00s)
        --- PASS: TestConformanceProfiles/CNPAdminTierEgressTCP/Should_support_an_'allow' (1.50s)
        --- FAIL: TestConformanceProfiles/CNPAdminTierEgressTCP/Should_support_a_'deny' (12.50s)
    --- SKIP: TestConformanceProfiles/CNPNodes (0.00s)
FAIL
`

func TestReadGo(t *testing.T) {
	specs, err := ReadGo(strings.NewReader(goOutput))
	if err != nil {
		t.Fatal(err)
	}
	want := []Spec{
		{"CNPAdminTierEgressTCP/Should support a 'deny'", Failed, "Expected connection to fail from a/b to 10.0.0.1, but instead it successfully connected.", 12500 * time.Millisecond},
		{"CNPAdminTierEgressTCP/Should support an 'allow'", Passed, "", 1500 * time.Millisecond},
		{"CNPNodes", Skipped, "", 0},
	}
	if len(specs) != len(want) {
		t.Fatalf("got %+v", specs)
	}
	for i := range want {
		if specs[i] != want[i] {
			t.Errorf("got %+v, want %+v", specs[i], want[i])
		}
	}
}

func TestReadCyclonus(t *testing.T) {
	specs, err := ReadCyclonus(strings.NewReader(`[{"Name":"001 a","Passed":true,"Asked":9},{"Name":"002 b","Wrong":1,"Asked":9,"First":"x to y"}]`))
	if err != nil {
		t.Fatal(err)
	}
	if len(specs) != 2 || specs[0].Outcome != Passed || specs[1].Outcome != Failed || specs[1].Reason != "1 of 9 answers wrong: x to y" {
		t.Errorf("got %+v", specs)
	}
	if _, err := ReadCyclonus(strings.NewReader("")); err == nil {
		t.Error("an empty report is no error")
	}
}
