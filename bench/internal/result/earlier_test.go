package result

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPageKeepsRowsOfEarlierRuns(t *testing.T) {
	dir := t.TempDir()
	for i, run := range []Run{
		{Commit: "first", Starts: []Start{{System: Strait, Services: 10000, Seconds: 7}}, Agents: []Agent{{Name: "old agent", RSSKiB: 1 << 10}}},
		{Commit: "second", Starts: []Start{{System: Strait, Services: 10000, Seconds: 2}}},
	} {
		run.Date = time.Date(2026, 1, 1+i, 0, 0, 0, 0, time.UTC)
		run.Judge()
		if _, err := run.Save(dir); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{"old agent": true, "commit first": true, "| 2 s |": true, "| 7 s |": false} {
		if strings.Contains(string(page), text) != want {
			t.Errorf("%q on the page: %v, want %v\n%s", text, !want, want, page)
		}
	}
}
