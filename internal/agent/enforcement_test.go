package agent_test

import (
	"testing"
	"time"

	"github.com/strait-net/strait/internal/testkit"
)

// POL-4: where what no policy allows is denied, nodes are opened for pods all the same, also by an agent that is started again, and pods reach and
// are reached by what a policy allows and nobody else. So it is where a policy denies all pods to reach their node.
func TestNodeOpensWhereNothingIsAllowed(t *testing.T) {
	for name, tc := range map[string]struct {
		mode   string
		policy string
	}{
		"always": {"always", ""},
		"policy for all pods": {"default", `
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: nothing}
spec: {endpointSelector: {}, ingress: [{}], egress: [{}]}
`},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.RequireRoot(t)
			c := testkit.NewCluster(t, testkit.Options{NoAgents: true, Config: map[string]any{"policy": map[string]any{"enforcement": tc.mode}}})
			c.ApplyNamespace("default", nil, nil)
			if tc.policy != "" {
				c.ApplyText("nothing", tc.policy)
			}
			c.StartAgents()
			label := func(app string) testkit.PodSpec { return testkit.PodSpec{Labels: map[string]string{"app": app}} }
			app, other, store := c.Nodes[0].AddPodAs("app", label("app")), c.Nodes[0].AddPodAs("other", label("other")), c.Nodes[1].AddPodAs("store", label("store"))
			store.Echo(storePort)
			holds(t, "without policy", path{app.Namespace, store, storePort, false}, path{other.Namespace, store, storePort, false})
			c.ApplyText("policy", `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: app, namespace: default}
spec: {podSelector: {matchLabels: {app: app}}, policyTypes: [Egress], egress: [{}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: store, namespace: default}
spec: {podSelector: {matchLabels: {app: store}}, policyTypes: [Ingress], ingress: [{}]}
`)
			wanted := []path{{app.Namespace, store, storePort, true}, {other.Namespace, store, storePort, false}}
			holds(t, "with policy", wanted...)
			for _, n := range c.Nodes {
				n.KillAgent()
				n.StartAgent()
			}
			for _, n := range c.Nodes {
				n.WaitReady(30 * time.Second)
			}
			holds(t, "after a restart", wanted...)
		})
	}
}
