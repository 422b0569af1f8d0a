package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
)

// kubeProxy is the line of strait status about services.
func (v *screen) kubeProxy(k localapi.KubeProxy) {
	decided := ""
	if k.Decided != nil {
		decided = "; so since " + v.age(*k.Decided) + " by strait takeover, the configuration says otherwise"
	}
	switch k.Mode {
	case "off":
		v.line("kube-proxy", v.paint(yellow, "not replaced")+": kube-proxy serves Services"+decided)
		return
	case "drain":
		v.line("kube-proxy", v.paint(yellow, "draining")+": connections that are Strait's go on, new ones are kube-proxy's"+decided)
		return
	}
	sockets := "socket LB off"
	if k.SocketLB {
		sockets = "socket LB at " + k.Cgroup
	}
	text := fmt.Sprintf("replaced: %s; %s for %s", sockets, plural(k.Frontends, "frontend"), plural(k.Backends, "backend"))
	if k.Leaving > 0 {
		text += fmt.Sprintf(" (%d leaving)", k.Leaving)
	}
	if k.Forwarding != "" {
		text += fmt.Sprintf("; from outside on %s: %s, XDP %s", list(k.Devices), strings.ToUpper(k.Forwarding), k.XDP)
	}
	v.line("kube-proxy", text+decided)
}

// serviceMode is in a word who serves Services on a node.
func serviceMode(k localapi.KubeProxy) string {
	switch k.Mode {
	case "off":
		return "not replaced"
	case "drain":
		return "draining"
	}
	return "replaced"
}

// services is the section of strait status --verbose about services.
func (v *screen) services(k localapi.KubeProxy) {
	onOff := func(on bool) string {
		if on {
			return "on"
		}
		return "off"
	}
	sockets := "off"
	if k.SocketLB {
		sockets = "on, for TCP and UDP of processes below " + k.Cgroup
	}
	g := &grid{columns: columns("WHAT", "STATE")}
	g.add("Status", k.Mode)
	g.add("Socket LB", sockets)
	g.add("Protocols", strings.Join(k.Protocols, " "))
	g.add("Devices", strings.Join(k.Devices, " "))
	g.add("Mode", strings.ToUpper(k.Forwarding))
	g.add("Backend selection", k.Algorithm)
	g.add("Session affinity", onOff(k.Mode == "on"))
	g.add("Graceful termination", onOff(k.Mode == "on"))
	g.add("XDP acceleration", k.XDP)
	g.add("Announcements", onOff(k.Announce)+" (ARP and neighbour discovery)")
	g.add("Node port range", k.NodePorts)
	for _, kind := range []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalIP", "HostPort"} {
		g.add(kind, onOff(k.Mode == "on")+", "+plural(k.ByType[kind], "frontend"))
	}
	g.add("Backends", strconv.Itoa(k.Backends)+", of them "+strconv.Itoa(k.Leaving)+" leaving")
	g.add("Maglev tables", strconv.Itoa(k.MaglevTables))
	g.rows = slices.DeleteFunc(g.rows, func(r []cell) bool { return r[1].text == "-" })
	v.section("Replacement of kube-proxy", g)
}
