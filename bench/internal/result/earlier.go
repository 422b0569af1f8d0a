package result

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// earlier renders the targets of rows that this run did not measure, each row from the newest file of dir that has it.
func (r *Run) earlier(dir, file string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	known := r.measured()
	var b strings.Builder
	for _, name := range slices.Backward(files) {
		if filepath.Base(name) >= file {
			continue
		}
		old, err := Load(name)
		if err != nil {
			return "", err
		}
		old.rest(&b, filepath.Base(name), known)
		for row := range old.measured() {
			known[row] = true
		}
	}
	if b.Len() == 0 {
		return "", nil
	}
	return "\n## Targets of rows that only earlier runs measured\n" + b.String(), nil
}

// measured are the rows of the table of targets that the run has figures for.
func (r *Run) measured() map[string]bool {
	rows := map[string]bool{}
	for _, row := range r.Rows {
		rows[row.Row] = true
	}
	return rows
}

// rest writes the targets of those rows that are not known.
func (r *Run) rest(b *strings.Builder, file string, known map[string]bool) {
	targets, _ := r.split()
	targets = slices.DeleteFunc(targets, func(row Row) bool { return known[row.Row] })
	if len(targets) == 0 {
		return
	}
	fmt.Fprintf(b, "\n[%s](%s), commit %s, %d rounds of %s:\n\n| %s |\n|%s\n", file, file, r.Commit, r.Settings.Rounds, r.Settings.Sample,
		strings.Join(header(), " | "), strings.Repeat("---|", len(header())))
	for _, row := range targets {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row.cells(), " | "))
	}
}
