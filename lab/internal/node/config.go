package node

import (
	"fmt"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"github.com/strait-net/strait/lab/internal/image"
	"github.com/strait-net/strait/lab/internal/topology"
)

const containerdSocket = "/run/containerd/containerd.sock"

// containerdConfig keeps every default path. Without restrict_oom_score_adj no container starts where CAP_SYS_RESOURCE is missing.
const containerdConfig = `version = 3
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri",
]

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "` + image.Pause + `"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
`

// kubeletConfig is a KubeletConfiguration; only what differs from the defaults.
func kubeletConfig(c Config) ([]byte, error) {
	dns := []string{}
	for _, a := range c.Spec.ClusterDNS() {
		dns = append(dns, a.String())
	}
	return yaml.Marshal(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": filepath.Join(inside.pki(), "ca.crt")},
		},
		"authorization":                    map[string]any{"mode": "Webhook"},
		"tlsCertFile":                      filepath.Join(inside.pki(), "kubelet.crt"),
		"tlsPrivateKeyFile":                filepath.Join(inside.pki(), "kubelet.key"),
		"cgroupDriver":                     "cgroupfs",
		"failCgroupV1":                     false,
		"failSwapOn":                       false,
		"containerRuntimeEndpoint":         "unix://" + containerdSocket,
		"clusterDomain":                    "cluster.local",
		"clusterDNS":                       dns,
		"resolvConf":                       "/etc/resolv.conf",
		"maxPods":                          250,
		"serializeImagePulls":              false,
		"makeIPTablesUtilChains":           false,
		"imageGCHighThresholdPercent":      100,
		"imageGCLowThresholdPercent":       99,
		"volumePluginDir":                  "/var/lib/kubelet/volume-plugins",
		"nodeStatusUpdateFrequency":        "5s",
		"shutdownGracePeriod":              "0s",
		"evictionPressureTransitionPeriod": "1s",
		// The disk is the whole machine's: its fill level is no reason to evict a lab's pods.
		"evictionHard": map[string]string{
			"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
	})
}

// kubeProxyConfig leaves the machine-wide conntrack limits alone.
func kubeProxyConfig(c Config) string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: %s
clusterCIDR: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, c.Spec.KubeProxy(), c.Node.Name, topology.Join(c.Spec.PodCIDRs()), filepath.Join(inside.pki(), "kube-proxy.kubeconfig"))
}
