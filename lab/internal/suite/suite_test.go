package suite

import (
	"strings"
	"testing"
)

const report = `<testsuites><testsuite name="Kubernetes e2e suite">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="0.1"></testcase>
<testcase name="[It] [sig-network] Services should serve endpoints on same port [Conformance] [sig-network, Conformance]" status="passed" time="3.4"></testcase>
<testcase name="[It] [sig-network] Services should be left out [sig-network]" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-network] Services should have a cloud" status="skipped" time="0"><skipped message="skipped - Only supported for providers [gce] (not skeleton)"></skipped></testcase>
<testcase name="[It] [sig-network] Services should fail" status="failed" time="61"><failure message="timed out&#xA;after 60 s | really"></failure></testcase>
</testsuite></testsuites>`

func TestSummary(t *testing.T) {
	specs, err := Read(strings.NewReader(report))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := Summary(&out, specs); err != nil {
		t.Fatal(err)
	}
	want := `1 passed, 1 failed, 1 skipped.

| | spec | took | remark |
|---|---|---|---|
| failed | [sig-network] Services should fail | 1m1s | timed out after 60 s \| really |
| passed | [sig-network] Services should serve endpoints on same port [Conformance] | 3s |  |
| skipped | [sig-network] Services should have a cloud | 0s | Only supported for providers [gce] (not skeleton) |
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestReadRefusesGarbage(t *testing.T) {
	if _, err := Read(strings.NewReader("no report")); err == nil {
		t.Error("no error")
	}
}
