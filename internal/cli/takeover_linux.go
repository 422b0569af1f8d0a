package cli

import (
	"context"

	"github.com/strait-net/strait/internal/datapath/kubeproxy"
	"github.com/strait-net/strait/internal/localapi"
)

// proxyProcesses returns signs that kube-proxy runs in the network namespace of this process.
func proxyProcesses() ([]localapi.ProxyTrace, error) {
	found, err := kubeproxy.Running()
	var out []localapi.ProxyTrace
	for _, f := range found {
		out = append(out, localapi.ProxyTrace{Kind: string(f.Kind), Name: f.Name, Detail: f.Detail})
	}
	return out, err
}

func removeLegacyRules(ctx context.Context) ([]string, error) { return kubeproxy.RemoveLegacy(ctx) }
