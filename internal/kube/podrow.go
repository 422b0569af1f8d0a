package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
)

// enforcementAnnotation of a namespace is its mode: default, always or never.
const enforcementAnnotation = "policy.strait.dev/enforcement"

// ToPod returns the row of a Pod; ok is false for one that has ended: its addresses may be another's by now.
func ToPod(o *corev1.Pod) (row state.Pod, ok bool, err error) {
	if o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
		return state.Pod{}, false, nil
	}
	row = state.Pod{
		Namespace: intern(o.Namespace), Name: o.Name, UID: uidOf(o), Node: intern(o.Spec.NodeName),
		HostNetwork: o.Spec.HostNetwork, ServiceAccount: intern(o.Spec.ServiceAccountName), Workload: intern(workloadOf(o)),
	}
	if row.Labels, err = toLabels(o.Labels); err != nil {
		return row, true, err
	}
	var parts []error
	row.Addresses, row.Claimed, err = podAddresses(o)
	parts = append(parts, err)
	row.Audit, err = auditOf(o)
	parts = append(parts, err)
	row.Ports, err = namedPorts(&o.Spec)
	parts = append(parts, err)
	if err := errors.Join(parts...); err != nil {
		return row, true, &Partial{err}
	}
	return row, true, nil
}

// borrowPod lets a pod use labels and ports of the one beside it: pods of a Deployment say the same, and their names are beside each other.
func borrowPod(row *state.Pod, beside state.Pod) {
	if slices.Equal(row.Labels, beside.Labels) {
		row.Labels = beside.Labels
	}
	if slices.Equal(row.Ports, beside.Ports) {
		row.Ports = beside.Ports
	}
}

// uidOf is the UID that the kubelet names the pod by: of a static pod, whose object is only a mirror with a UID of its own, the hash of its
// manifest.
func uidOf(o *corev1.Pod) string {
	if hash := o.Annotations[corev1.MirrorPodAnnotationKey]; hash != "" {
		return hash
	}
	return string(o.UID)
}

// workloadOf returns kind and name of the controller that has made a pod: of the ReplicaSet of a Deployment, the Deployment. A static pod, whose
// owner is its node, has none.
func workloadOf(o *corev1.Pod) string {
	by := metav1.GetControllerOfNoCopy(o)
	if by == nil || by.Kind == "Node" {
		return ""
	}
	hash := o.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
	if name, made := strings.CutSuffix(by.Name, "-"+hash); made && hash != "" && by.Kind == "ReplicaSet" {
		return "Deployment/" + name
	}
	return by.Kind + "/" + by.Name
}

// podAddresses reads what the kubelet has written, or else what the agent of the pod's node has published at ADD: those are claimed.
// A pod without a node cannot have any, whatever its annotations say. As in status.podIPs there is at most one of each family.
func podAddresses(o *corev1.Pod) (out []netip.Addr, claimed bool, err error) {
	field, texts := "status.podIPs", make([]string, 0, 2)
	for _, ip := range o.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	if published := o.Annotations[AddressesAnnotation]; len(texts) == 0 && published != "" && o.Spec.NodeName != "" {
		field, texts, claimed = annotation(AddressesAnnotation), strings.Split(published, ","), true
	}
	if len(texts) == 0 {
		return nil, false, nil
	}
	out = make([]netip.Addr, 0, min(len(texts), 2))
	var errs []error
	for _, text := range texts {
		addr, err := parseAddr(strings.TrimSpace(text))
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w; it is left out", field, err))
		case slices.Contains(out, addr):
		case claimed && slices.ContainsFunc(out, func(a netip.Addr) bool { return a.Is4() == addr.Is4() }):
			errs = append(errs, fmt.Errorf("%s: %q: want one address of each family; it is left out", field, text))
		default:
			out = append(out, addr)
		}
	}
	return out, claimed, errors.Join(errs...)
}

// namedPorts reads the named ports of all containers that run beside each other. Of two with the same name and protocol the first counts.
func namedPorts(spec *corev1.PodSpec) ([]policy.NamedPort, error) {
	var out []policy.NamedPort
	var errs []error
	read := func(c *corev1.Container) {
		for _, p := range c.Ports {
			if p.Name == "" {
				continue
			}
			proto, err := toProtocol(p.Protocol)
			if err == nil && (p.ContainerPort < 1 || p.ContainerPort > 65535) {
				err = fmt.Errorf("%d: want 1 to 65535", p.ContainerPort)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("port %s of container %s: %w; it is left out", p.Name, c.Name, err))
				continue
			}
			if !slices.ContainsFunc(out, func(n policy.NamedPort) bool { return n.Name == p.Name && n.Protocol == proto }) {
				out = append(out, policy.NamedPort{Name: intern(p.Name), Protocol: proto, Port: uint16(p.ContainerPort)})
			}
		}
	}
	for i := range spec.Containers {
		read(&spec.Containers[i])
	}
	for i := range spec.InitContainers {
		if deref(spec.InitContainers[i].RestartPolicy, "") == corev1.ContainerRestartPolicyAlways {
			read(&spec.InitContainers[i])
		}
	}
	return slices.Clip(out), errors.Join(errs...)
}

// ToNamespace returns the row of a Namespace. An annotation that cannot be read counts as absent.
func ToNamespace(o *corev1.Namespace) (state.Namespace, error) {
	row := state.Namespace{Name: intern(o.Name)}
	var err error
	if row.Labels, err = toLabels(o.Labels); err != nil {
		return row, err
	}
	// The API server sets this label; files may leave it out.
	if at, there := slices.BinarySearchFunc(row.Labels, corev1.LabelMetadataName, compareKey); !there {
		row.Labels = slices.Insert(row.Labels, at, policy.Label{Key: corev1.LabelMetadataName, Value: row.Name})
	}
	var errs []error
	row.Audit, err = auditOf(o)
	errs = append(errs, err)
	switch text := o.Annotations[enforcementAnnotation]; text {
	case "":
	case "default", "always", "never":
		mode := map[string]policy.Mode{"default": policy.ModeDefault, "always": policy.ModeAlways, "never": policy.ModeNever}[text]
		row.Mode = &mode
	default:
		errs = append(errs, fmt.Errorf("%s: %q: accepted: default, always, never; the cluster's is used", annotation(enforcementAnnotation), text))
	}
	if err := errors.Join(errs...); err != nil {
		return row, &Partial{err}
	}
	return row, nil
}

// toLabels sorts labels. Keys and values repeat in many objects and share memory.
func toLabels(labels map[string]string) (policy.Labels, error) {
	if len(labels) == 0 {
		return nil, nil
	}
	out := make(policy.Labels, 0, len(labels))
	for k, v := range labels {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, fmt.Errorf("metadata.labels: %q: %q: want UTF-8", k, v)
		}
		out = append(out, policy.Label{Key: intern(k), Value: intern(v)})
	}
	slices.SortFunc(out, func(a, b policy.Label) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

func compareKey(l policy.Label, key string) int { return strings.Compare(l.Key, key) }

func toProtocol(p corev1.Protocol) (policy.Protocol, error) {
	switch p {
	case corev1.ProtocolTCP, "":
		return policy.TCP, nil
	case corev1.ProtocolUDP:
		return policy.UDP, nil
	case corev1.ProtocolSCTP:
		return policy.SCTP, nil
	}
	return 0, fmt.Errorf("%q: unknown; accepted: TCP, UDP, SCTP", p)
}
