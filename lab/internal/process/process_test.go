package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The table owns every wait of the process, so one table serves all tests here.
func TestTable(t *testing.T) {
	table := NewTable()
	log := filepath.Join(t.TempDir(), "log")
	command := func(script string) Command {
		return Command{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Log: log}
	}
	t.Run("a child's output and failure are kept", func(t *testing.T) {
		err := table.Run(command("echo out; exit 3"))
		if err == nil || !strings.Contains(err.Error(), "exit status 3") {
			t.Errorf("got %v", err)
		}
		if content, _ := os.ReadFile(log); string(content) != "out\n" {
			t.Errorf("log holds %q", content)
		}
	})
	t.Run("many short children are all reaped", func(t *testing.T) {
		for range 50 {
			if err := table.Run(command(":")); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("kill returns when the child is gone", func(t *testing.T) {
		p, err := table.Start(command("sleep 60"))
		if err != nil {
			t.Fatal(err)
		}
		p.Kill()
		if p.Err() == nil || !strings.Contains(p.Err().Error(), "killed") {
			t.Errorf("got %v", p.Err())
		}
	})
	t.Run("a kept child is started again", func(t *testing.T) {
		count := filepath.Join(t.TempDir(), "count")
		if err := table.Keep(command("echo x >> " + count + "; [ $(wc -l < " + count + ") -ge 2 ] && exec sleep 3; exit 1")); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			content, _ := os.ReadFile(count)
			if strings.Count(string(content), "x") >= 2 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it was not")
			}
		}
	})
	t.Run("a kept child is stopped while a file says so", func(t *testing.T) {
		dir := t.TempDir()
		off, count := filepath.Join(dir, "off"), filepath.Join(dir, "count")
		c := command("echo $$ >> " + count + "; exec sleep 60")
		c.Off = off
		if err := table.Keep(c); err != nil {
			t.Fatal(err)
		}
		started := func() int { content, _ := os.ReadFile(count); return strings.Count(string(content), "\n") }
		wait := func(what string, ok func() bool) {
			t.Helper()
			for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal(what)
				}
			}
		}
		wait("not started", func() bool { return started() == 1 })
		if err := os.WriteFile(off, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		content, _ := os.ReadFile(count)
		pid := strings.TrimSpace(string(content))
		wait("not stopped", func() bool { _, err := os.Stat("/proc/" + pid); return err != nil })
		time.Sleep(1500 * time.Millisecond)
		if started() != 1 {
			t.Error("started again in spite of the file")
		}
		if err := os.Remove(off); err != nil {
			t.Fatal(err)
		}
		wait("not started again", func() bool { return started() == 2 })
	})
}
