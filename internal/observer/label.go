package observer

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/strait-net/strait/internal/flow"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
)

// Labels that say in Hubble's flows what is no label in Kubernetes.
const (
	namespaceLabel      = "io.kubernetes.pod.namespace"
	serviceAccountLabel = "io.cilium.k8s.policy.serviceaccount"
	clusterLabel        = "io.cilium.k8s.policy.cluster"
)

// The sources of labels: what stands before the colon.
const (
	sourceKubernetes = "k8s"
	sourceReserved   = "reserved"
	sourceAny        = "any"
)

// labelsOf are an end's labels as Hubble writes them: "k8s:app=web", "reserved:world".
func labelsOf(e *flow.End, cluster string) []string {
	if e.Pod == nil {
		return []string{sourceReserved + ":" + reserved(e)}
	}
	out := make([]string, 0, len(e.Pod.Labels)+3)
	for _, l := range e.Pod.Labels {
		out = append(out, sourceKubernetes+":"+l.Key+"="+l.Value)
	}
	out = append(out, sourceKubernetes+":"+namespaceLabel+"="+e.Pod.Namespace, sourceKubernetes+":"+clusterLabel+"="+cluster)
	if e.Pod.ServiceAccount != "" {
		out = append(out, sourceKubernetes+":"+serviceAccountLabel+"="+e.Pod.ServiceAccount)
	}
	slices.Sort(out)
	return out
}

// reserved is Hubble's word for an end that is no known pod.
func reserved(e *flow.End) string {
	switch e.Kind {
	case policy.HostPeer:
		return identity.Host.String()
	case policy.NodePeer:
		return identity.RemoteNode.String()
	case policy.APIServerPeer:
		return identity.APIServer.String()
	case policy.WorldPeer:
		return identity.World.String()
	}
	return identity.Unknown.String()
}

// endLabels are the labels of an end, or of a node when end is nil, as a selector asks for them: with keys that encodeKey has made.
type endLabels struct {
	end     *flow.End
	node    policy.Labels
	cluster string
}

// Has implements labels.Labels.
func (l endLabels) Has(key string) bool { _, ok := l.Lookup(key); return ok }

// Get implements labels.Labels.
func (l endLabels) Get(key string) string { v, _ := l.Lookup(key); return v }

// Lookup implements labels.Labels.
func (l endLabels) Lookup(encoded string) (string, bool) {
	i := strings.IndexAny(encoded, "./")
	if i < 0 {
		return "", false
	}
	source, key := encoded[:i], encoded[i+1:]
	if l.end == nil {
		if source == sourceAny || source == sourceKubernetes {
			return l.node.Get(key)
		}
		return "", false
	}
	pod := l.end.Pod
	if pod == nil {
		return "", (source == sourceReserved || source == sourceAny) && key == reserved(l.end)
	}
	if source != sourceKubernetes && source != sourceAny {
		return "", false
	}
	switch key {
	case namespaceLabel:
		return pod.Namespace, true
	case clusterLabel:
		return l.cluster, true
	case serviceAccountLabel:
		return pod.ServiceAccount, pod.ServiceAccount != ""
	}
	return pod.Labels.Get(key)
}

// parseSelector reads a label selector of Kubernetes whose keys may have a source before a colon: "k8s:app in (a,b),!reserved:host". Selectors of
// Kubernetes know no colons in keys, so sources become a part of the key's prefix.
func parseSelector(text string) (labels.Selector, error) {
	var out strings.Builder
	depth, begin := 0, true
	for i := 0; i < len(text); i++ {
		c := text[i]
		if begin && c != ' ' && c != '\t' && c != '!' {
			end := i + strings.IndexAny(text[i:]+" ", " \t=!<>,()")
			out.WriteString(encodeKey(text[i:end]))
			begin = false
			if i = end; i == len(text) {
				break
			}
			c = text[i]
		}
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			begin = depth == 0
		}
		out.WriteByte(c)
	}
	s, err := labels.Parse(out.String())
	if err != nil {
		return nil, fmt.Errorf("label selector %q: want one of Kubernetes, as app=web,tier in (a,b): %w", text, err)
	}
	return s, nil
}

// encodeKey puts the source of a key into its prefix: "k8s:app" is "k8s/app", "a.b/app" is "any.a.b/app".
func encodeKey(key string) string {
	source, name, found := strings.Cut(key, ":")
	if !found {
		source, name = sourceAny, key
	}
	if name == "" {
		return ""
	}
	if strings.Contains(name, "/") {
		return source + "." + name
	}
	return source + "/" + name
}
