// Package cni configures the reference CNI plugins: the lab's network when it is started without Strait.
package cni

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
)

// WriteBridge writes a configuration list for the bridge plugin, atomically; what is there stays.
func WriteBridge(file string, pods []netip.Prefix) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	content, err := json.MarshalIndent(bridge(pods), "", "  ")
	if err != nil {
		return err
	}
	aside := filepath.Join(filepath.Dir(file), ".writing")
	if err := os.WriteFile(aside, content, 0o644); err != nil {
		return err
	}
	return os.Rename(aside, file)
}

func bridge(pods []netip.Prefix) any {
	type object = map[string]any
	var ranges, routes []any
	for _, p := range pods {
		ranges = append(ranges, []any{object{"subnet": p.String()}})
		all := "0.0.0.0/0"
		if p.Addr().Is6() {
			all = "::/0"
		}
		routes = append(routes, object{"dst": all})
	}
	return object{
		"cniVersion": "1.0.0",
		"name":       "lab",
		"plugins": []any{
			object{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
				// The plugin's masquerading would also hit pods of other nodes; the lab's router knows the pods instead.
				"ipMasq": false,
				"ipam":   object{"type": "host-local", "ranges": ranges, "routes": routes},
			},
			object{"type": "portmap", "capabilities": object{"portMappings": true}, "backend": "nftables"},
		},
	}
}
