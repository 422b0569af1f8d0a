// Package chart renders Strait's Helm chart the way helm install would.
package chart

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
)

// Release names what is installed.
type Release struct {
	Name      string
	Namespace string
}

// Render renders the chart in a directory. Sets are applied after values, each in the form of helm's --set.
func Render(dir string, r Release, values map[string]any, sets []string) ([]byte, error) {
	loaded, err := loader.Load(dir)
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", dir, err)
	}
	values = maps.Clone(values)
	for _, set := range sets {
		if err := strvals.ParseInto(set, values); err != nil {
			return nil, fmt.Errorf("--set %s: %w", set, err)
		}
	}
	options := common.ReleaseOptions{Name: r.Name, Namespace: r.Namespace, Revision: 1, IsInstall: true}
	full, err := util.ToRenderValues(loaded, values, options, common.DefaultCapabilities)
	if err != nil {
		return nil, fmt.Errorf("check values of chart %s: %w", loaded.Name(), err)
	}
	files, err := engine.Render(loaded, full)
	if err != nil {
		return nil, fmt.Errorf("render chart %s: %w", loaded.Name(), err)
	}
	var out strings.Builder
	for _, crd := range loaded.CRDObjects() {
		fmt.Fprintf(&out, "---\n%s\n", crd.File.Data)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if base := path.Base(name); base == "NOTES.txt" || strings.HasPrefix(base, "_") || strings.TrimSpace(files[name]) == "" {
			continue
		}
		fmt.Fprintf(&out, "---\n# %s\n%s\n", name, files[name])
	}
	return []byte(out.String()), nil
}
