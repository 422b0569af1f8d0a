// Command strait-cni is the CNI plugin that container runtimes call; the agent on the node does the work.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/strait-net/strait/internal/cni/plugin"
)

func main() {
	skel.PluginMainFuncs(plugin.Funcs(), plugin.Versions(), "strait-cni: the CNI plugin of Strait")
}
