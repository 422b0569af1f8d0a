package deploy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestRelay(t *testing.T) {
	out := mustRender(t, "hubble.relay.enabled=true", "hubble.relay.replicas=2", "hubble.relay.priorityClassName=high", "hubble.relay.podLabels.team=net",
		"hubble.relay.podAnnotations.note=x", "hubble.relay.nodeSelector.zone=a", "hubble.relay.tolerations[0].operator=Exists",
		"hubble.relay.resources.limits.memory=1Gi", "hubble.relay.extraEnv[0].name=A", "hubble.relay.extraEnv[0].value=b", "hubble.relay.prometheus.port=9000")
	d := get[*appsv1.Deployment](t, out, "strait-relay")
	pod := d.Spec.Template.Spec
	c := pod.Containers[0]
	if line := strings.Join(append(c.Command, c.Args...), " "); line != "strait-relay --config /etc/strait/config.yaml" {
		t.Errorf("command %q", line)
	}
	if *d.Spec.Replicas != 2 || c.Image != "strait:dev" || pod.PriorityClassName != "high" || d.Spec.Template.Labels["team"] != "net" ||
		d.Spec.Template.Annotations["note"] != "x" || d.Spec.Template.Annotations["prometheus.io/port"] != "9000" || pod.NodeSelector["zone"] != "a" ||
		pod.NodeSelector["kubernetes.io/os"] != "linux" || len(pod.Tolerations) != 1 || c.Resources.Limits.Memory().String() != "1Gi" ||
		!slices.Contains(c.Env, corev1.EnvVar{Name: "A", Value: "b"}) {
		t.Errorf("an addition is lost:\n%s", asYAML(t, d.Spec.Template))
	}
	s := c.SecurityContext
	if pod.HostNetwork || !*pod.SecurityContext.RunAsNonRoot || s.Privileged != nil || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem ||
		!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 {
		t.Errorf("relay has privileges it does not need: %+v %+v", pod.SecurityContext, s)
	}
	if *pod.AutomountServiceAccountToken || *get[*corev1.ServiceAccount](t, out, pod.ServiceAccountName).AutomountServiceAccountToken {
		t.Error("relay has a token, and nothing to do with it")
	}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			t.Errorf("relay sees %s of the node", v.HostPath.Path)
		}
	}
	for name, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
		if p == nil || p.HTTPGet.Host != "" || p.HTTPGet.Port.IntValue() != 9000 {
			t.Errorf("%s probe %+v", name, p)
		}
	}
	if c := get[*appsv1.Deployment](t, mustRender(t, "hubble.relay.enabled=true", "hubble.relay.prometheus.enabled=false"), "strait-relay").Spec.Template.Spec.Containers[0]; c.ReadinessProbe != nil || c.LivenessProbe != nil || c.StartupProbe != nil {
		t.Error("relay is probed although nothing listens")
	}
}

// What the configuration says and what the objects are for it agree: directories have volumes, ports are those of services, selectors find pods.
func TestRelayIsReached(t *testing.T) {
	out := mustRender(t, "hubble.relay.enabled=true", "hubble.listenAddress=:4000")
	c := parse(t, out)
	agent := get[*appsv1.DaemonSet](t, out, "strait-agent").Spec.Template
	relay := get[*appsv1.Deployment](t, out, "strait-relay").Spec.Template
	for _, of := range []struct {
		pod      corev1.PodTemplateSpec
		dir      string
		secret   string
		optional bool
	}{
		{agent, c.Flows.TLSDir, "strait-hubble-server", true}, // no pod network must wait for a certificate
		{relay, c.Relay.TLSDir, "strait-hubble-relay", false},
	} {
		mounts := of.pod.Spec.Containers[0].VolumeMounts
		i := slices.IndexFunc(mounts, func(m corev1.VolumeMount) bool { return m.MountPath == of.dir })
		if i < 0 || !mounts[i].ReadOnly {
			t.Fatalf("nothing is mounted at %s, or it can be written: %+v", of.dir, mounts)
		}
		v := of.pod.Spec.Volumes[slices.IndexFunc(of.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == mounts[i].Name })]
		if v.Secret == nil || v.Secret.SecretName != of.secret || (v.Secret.Optional != nil && *v.Secret.Optional) != of.optional || *v.Secret.DefaultMode != 0o400 {
			t.Errorf("%s is %+v", of.dir, v.VolumeSource)
		}
	}
	for _, of := range []struct {
		service string
		pod     corev1.PodTemplateSpec
		ports   map[int32]string // of the service, and where the configuration has them served
	}{
		{"hubble-peer", agent, map[int32]string{443: c.Flows.Listen}},
		{"hubble-relay", relay, map[int32]string{80: c.Relay.Local, 443: c.Relay.Listen}},
	} {
		s := get[*corev1.Service](t, out, of.service)
		for k, v := range s.Spec.Selector {
			if of.pod.Labels[k] != v {
				t.Errorf("%s selects %s=%s, which its pods do not have", of.service, k, v)
			}
		}
		if len(s.Spec.Ports) != len(of.ports) {
			t.Errorf("%s has ports %+v", of.service, s.Spec.Ports)
		}
		for _, p := range s.Spec.Ports {
			if at := of.ports[p.Port]; !strings.HasSuffix(at, fmt.Sprintf(":%d", p.TargetPort.IntValue())) {
				t.Errorf("%s:%d goes to port %s, but %s is served", of.service, p.Port, p.TargetPort.String(), at)
			}
		}
	}
	if first := get[*corev1.Service](t, out, "hubble-relay").Spec.Ports[0]; first.Port != 80 {
		t.Errorf("hubble --port-forward takes the first port, without TLS; it is %d", first.Port)
	}
	if want := fmt.Sprintf("hubble-peer.%s.svc:443", "kube-system"); c.Relay.Peer != want {
		t.Errorf("the relay asks %s for peers, want %s", c.Relay.Peer, want)
	}
}

func TestNoRelay(t *testing.T) {
	out := mustRender(t)
	for _, object := range out.objects {
		if o, ok := object.(named); ok && (strings.Contains(o.GetName(), "relay") || strings.Contains(o.GetName(), "hubble")) {
			t.Errorf("%T %s without a relay", o, o.GetName())
		}
	}
	for _, v := range get[*appsv1.DaemonSet](t, out, "strait-agent").Spec.Template.Spec.Volumes {
		if v.Secret != nil {
			t.Errorf("the agent waits for Secret %s", v.Secret.SecretName)
		}
	}
}

// One relay alone may be evicted, of several one at a time.
func TestRelayDisruption(t *testing.T) {
	budgets := func(replicas int) (n int) {
		out := mustRender(t, "hubble.relay.enabled=true", fmt.Sprintf("hubble.relay.replicas=%d", replicas))
		return len(slices.DeleteFunc(out.objects, func(o runtime.Object) bool {
			_, is := o.(*policyv1.PodDisruptionBudget)
			return !is
		}))
	}
	if one, two := budgets(1), budgets(2); one != 0 || two != 1 {
		t.Errorf("%d budgets for one relay, %d for two", one, two)
	}
}
