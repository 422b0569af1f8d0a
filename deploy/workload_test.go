package deploy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func plain(v any) string { return fmt.Sprint(v) }

func TestAgent(t *testing.T) {
	out := mustRender(t, "image.repository=localhost/strait", "image.tag=7", "runDir=/run/other")
	set := get[*appsv1.DaemonSet](t, out, "strait-agent")
	pod := set.Spec.Template.Spec
	container := pod.Containers[0]
	if set.Namespace != "kube-system" || !pod.HostNetwork || pod.PriorityClassName != "system-node-critical" ||
		container.Image != "localhost/strait:7" || container.ImagePullPolicy != corev1.PullIfNotPresent {
		t.Errorf("namespace %s, hostNetwork %t, priority %s, image %s, pull %s", set.Namespace, pod.HostNetwork, pod.PriorityClassName, container.Image, container.ImagePullPolicy)
	}
	if line := strings.Join(append(container.Command, container.Args...), " "); line != "strait-agent --config /etc/strait/config.yaml --node-name $(NODE_NAME)" {
		t.Errorf("command %q", line)
	}
	if diff := cmp.Diff([]corev1.Toleration{{Operator: corev1.TolerationOpExists}}, pod.Tolerations); diff != "" {
		t.Errorf("an agent must run on every node: %s", diff)
	}
	for k, v := range set.Spec.Selector.MatchLabels {
		if set.Spec.Template.Labels[k] != v {
			t.Errorf("selector %s=%s does not match the pods", k, v)
		}
	}
	var mounts []string
	for _, m := range container.VolumeMounts {
		source := "configMap"
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Fatalf("mount %s has no volume", m.Name)
		}
		if host := pod.Volumes[i].HostPath; host != nil {
			source = host.Path
		}
		propagation := corev1.MountPropagationNone
		if m.MountPropagation != nil {
			propagation = *m.MountPropagation
		}
		mounts = append(mounts, fmt.Sprintf("%s on %s %s", source, m.MountPath, propagation))
	}
	want := []string{
		"configMap on /etc/strait None",
		"/sys/fs/bpf on /sys/fs/bpf Bidirectional",
		"/sys/fs/cgroup on /sys/fs/cgroup HostToContainer",
		"/run/other on /run/other None",
		"/var/lib/strait on /var/lib/strait None",
		"/run/netns on /run/netns HostToContainer",
		"/run/netns on /var/run/netns HostToContainer",
		"/opt/cni/bin on /opt/cni/bin None",
		"/etc/cni/net.d on /etc/cni/net.d None",
	}
	if diff := cmp.Diff(want, mounts); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
	for name, p := range map[string]*corev1.Probe{"startup": container.StartupProbe, "readiness": container.ReadinessProbe, "liveness": container.LivenessProbe} {
		if p == nil || p.HTTPGet.Host != "127.0.0.1" || p.HTTPGet.Port.IntValue() != 9964 {
			t.Errorf("%s probe %+v", name, p)
		}
	}
}

func TestOperator(t *testing.T) {
	out := mustRender(t, "operator.replicas=3")
	d := get[*appsv1.Deployment](t, out, "strait-operator")
	pod := d.Spec.Template.Spec
	container := pod.Containers[0]
	if *d.Spec.Replicas != 3 || !pod.HostNetwork || container.Image != "strait:dev" {
		t.Errorf("replicas %d, hostNetwork %t, image %s", *d.Spec.Replicas, pod.HostNetwork, container.Image)
	}
	if line := strings.Join(append(container.Command, container.Args...), " "); line != "strait-operator --config /etc/strait/config.yaml --namespace $(POD_NAMESPACE) --identity $(POD_NAME)" {
		t.Errorf("command %q", line)
	}
	// The taints of a node that waits for its first pod CIDR.
	for _, key := range []string{"strait.dev/not-ready", corev1.TaintNodeNotReady, corev1.TaintNodeNetworkUnavailable} {
		taint := corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule}
		if !slices.ContainsFunc(pod.Tolerations, func(t corev1.Toleration) bool {
			return t.Key == taint.Key && (t.Effect == "" || t.Effect == taint.Effect)
		}) {
			t.Errorf("operator does not tolerate %s", key)
		}
	}
	if s := container.SecurityContext; s.Privileged != nil || *s.AllowPrivilegeEscalation || !*pod.SecurityContext.RunAsNonRoot {
		t.Errorf("operator has privileges it does not need: %+v", s)
	}
}

// A change of the configuration restarts the pods that read it, any other change of the chart's version or an unrelated value does not.
func TestChecksum(t *testing.T) {
	const relay = "hubble.relay.enabled=true"
	sums := func(sets ...string) map[string]string {
		out := map[string]string{}
		for _, object := range mustRender(t, sets...).objects {
			switch o := object.(type) {
			case *appsv1.DaemonSet:
				out[o.Name] = o.Spec.Template.Annotations["checksum/config"]
			case *appsv1.Deployment:
				out[o.Name] = o.Spec.Template.Annotations["checksum/config"]
			}
		}
		return out
	}
	for _, c := range []struct {
		before, after []string
		restarts      []string
	}{
		{nil, []string{"routingMode=native"}, []string{"strait-agent", "strait-operator"}},
		{nil, []string{"operator.replicas=1"}, nil},
		{nil, []string{"operator.prometheus.port=9000"}, []string{"strait-operator"}},
		{nil, []string{relay}, []string{"strait-agent", "strait-operator"}},
		{[]string{relay}, []string{relay, "hubble.relay.replicas=3"}, nil},
		{[]string{relay}, []string{relay, "hubble.relay.prometheus.port=9000"}, []string{"strait-relay"}},
		{[]string{relay}, []string{relay, "hubble.tls.auto.certValidityDuration=30"}, []string{"strait-operator"}},
		{[]string{relay}, []string{relay, "hubble.listenAddress=:4000"}, []string{"strait-agent", "strait-operator", "strait-relay"}},
	} {
		before, after := sums(c.before...), sums(c.after...)
		var restarts []string
		for name, sum := range before {
			if sum == "" {
				t.Errorf("%s has no checksum", name)
			}
			if after[name] != sum {
				restarts = append(restarts, name)
			}
		}
		slices.Sort(restarts)
		if !slices.Equal(restarts, c.restarts) {
			t.Errorf("from %q to %q restarts %v, want %v", c.before, c.after, restarts, c.restarts)
		}
	}
}

func TestProbesNeedAPort(t *testing.T) {
	out := mustRender(t, "prometheus.enabled=false", "operator.prometheus.enabled=false")
	for _, c := range []corev1.Container{
		get[*appsv1.DaemonSet](t, out, "strait-agent").Spec.Template.Spec.Containers[0],
		get[*appsv1.Deployment](t, out, "strait-operator").Spec.Template.Spec.Containers[0],
	} {
		if c.ReadinessProbe != nil || c.LivenessProbe != nil || c.StartupProbe != nil {
			t.Errorf("%s is probed although nothing listens", c.Name)
		}
	}
}

// What people add to pods arrives as they wrote it.
func TestExtras(t *testing.T) {
	out := mustRender(t, "agent.extraEnv[0].name=A", "agent.extraEnv[0].value=b", "agent.podLabels.team=net", "agent.podAnnotations.note=x",
		"agent.nodeSelector.zone=a", "imagePullSecrets[0].name=pull", "agent.resources.limits.memory=1Gi", "agent.maxUnavailable=2")
	set := get[*appsv1.DaemonSet](t, out, "strait-agent")
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	if !slices.Contains(c.Env, corev1.EnvVar{Name: "A", Value: "b"}) || set.Spec.Template.Labels["team"] != "net" ||
		set.Spec.Template.Annotations["note"] != "x" || pod.NodeSelector["zone"] != "a" || pod.NodeSelector["kubernetes.io/os"] != "linux" ||
		pod.ImagePullSecrets[0].Name != "pull" || c.Resources.Limits.Memory().String() != "1Gi" || c.Resources.Requests.Cpu().String() != "50m" ||
		set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.IntValue() != 2 {
		t.Errorf("an addition is lost:\n%s", asYAML(t, set.Spec.Template))
	}
}

func TestNotes(t *testing.T) {
	if notes := mustRender(t).notes; strings.Contains(notes, "relay") {
		t.Errorf("notes tell of a relay that there is not:\n%s", notes)
	}
	if notes := mustRender(t, "hubble.relay.enabled=true").notes; !strings.Contains(notes, "hubble observe --port-forward") || strings.Contains(notes, "hubble.tls.auto") {
		t.Errorf("notes do not say how to use the relay:\n%s", notes)
	}
	notes := mustRender(t, "installNoConntrackIptablesRules=true", "routingMode=native", "network=flat").notes
	for _, want := range []string{"network flat, routing native", "installNoConntrackIptablesRules: nothing had to be done", "k8sServiceHost is not set", "strait status"} {
		if !strings.Contains(notes, want) {
			t.Errorf("notes lack %q:\n%s", want, notes)
		}
	}
	if strings.Contains(mustRender(t, "k8sServiceHost=10.0.0.1").notes, "k8sServiceHost is not set") {
		t.Error("notes miss k8sServiceHost although it is set")
	}
}
