package status

import (
	"fmt"
	"slices"
	"strings"

	"github.com/strait-net/strait/internal/localapi"
	"github.com/strait-net/strait/internal/state"
)

const (
	fullPercent = 90 // of a table or pool: from here on a person is told
	namedAtMost = 5  // endpoints, services and peers named one by one; the rest is counted

	serviceSubject = "service " // what problems of services are about begins so
	policySubject  = "policy "  // and of policies
	readerSource   = "kube"     // who reports what objects are not right
)

// Judge fills in Endpoints, Problems and State of s from the rest of it and the local endpoints. found are problems that
// only their finder knows of: a refused configuration, a corrupt record.
func Judge(s *localapi.Status, endpoints []localapi.Endpoint, found ...localapi.Problem) {
	s.Endpoints = count(endpoints)
	var j judge
	s.KubeProxy.Problems = j.found(found)
	synced := j.kubernetes(s.Kubernetes)
	j.services(s.KubeProxy)
	j.reconcilers(s)
	j.routing(s)
	j.ipam(s.IPAM)
	j.cni(s.CNI, synced)
	j.endpoints(endpoints)
	j.maps(s.Maps)
	j.peers(s.Health)
	j.leftovers(s.Leftovers)
	slices.SortStableFunc(j.problems, func(a, b localapi.Problem) int { return rank(a) - rank(b) })
	s.Problems = j.problems
	if s.Problems == nil {
		s.Problems = []localapi.Problem{}
	}
	switch {
	case len(j.problems) > 0 && j.problems[0].Severity == localapi.SeverityError:
		s.State = localapi.Degraded
	case !synced:
		s.State = localapi.Starting
	default:
		s.State = localapi.OK
	}
}

// Reported returns a problem of the table as a person sees it. A mistake in the object of one Service or policy is a warning: the node serves
// all others, and whoever may write a Service must not make nodes degraded.
func Reported(p state.Problem) localapi.Problem {
	out := localapi.Problem{Severity: localapi.SeverityError, Subject: p.Subject, Text: p.Text}
	if strings.HasPrefix(p.Subject, serviceSubject) || strings.HasPrefix(p.Subject, policySubject) && p.Source == readerSource {
		out.Severity = localapi.SeverityWarning
	}
	return out
}

func rank(p localapi.Problem) int {
	if p.Severity == localapi.SeverityError {
		return 0
	}
	return 1
}

func count(endpoints []localapi.Endpoint) (c localapi.EndpointCount) {
	for _, e := range endpoints {
		switch state.EndpointPhase(e.Phase) {
		case state.EndpointAdding:
			c.Adding++
		case state.EndpointReady:
			c.Ready++
		case state.EndpointDegraded:
			c.Degraded++
		}
	}
	return c
}

type judge struct{ problems []localapi.Problem }

func (j *judge) error(subject, text, action string) {
	j.problems = append(j.problems, localapi.Problem{Severity: localapi.SeverityError, Subject: subject, Text: text, Action: action})
}

func (j *judge) warning(subject, text, action string) {
	j.problems = append(j.problems, localapi.Problem{Severity: localapi.SeverityWarning, Subject: subject, Text: text, Action: action})
}

// subjects are kinds of things of which there may be many with problems: only some are named.
var subjects = []struct{ prefix, plural, list, show string }{
	{serviceSubject, "services", "strait service list", "strait service show "},
	{policySubject, "policies", "strait policy list", "strait policy show "},
}

// found takes over what is known already; of many services and policies only some are named. It returns how many services have problems.
func (j *judge) found(all []localapi.Problem) (services int) {
	named, more := map[string]bool{}, map[string]bool{} // more: whether one of its problems is an error
	counts := make([]int, len(subjects))                // of those named
	for _, p := range all {
		i := slices.IndexFunc(subjects, func(s struct{ prefix, plural, list, show string }) bool {
			return strings.HasPrefix(p.Subject, s.prefix)
		})
		if i < 0 {
			j.problems = append(j.problems, p)
			continue
		}
		if !named[p.Subject] {
			if counts[i] >= namedAtMost {
				more[p.Subject] = more[p.Subject] || p.Severity == localapi.SeverityError
				continue
			}
			named[p.Subject] = true
			counts[i]++
		}
		if p.Action == "" {
			p.Action = "see " + subjects[i].show + nameIn(strings.TrimPrefix(p.Subject, subjects[i].prefix))
		}
		j.problems = append(j.problems, p)
	}
	for i, s := range subjects {
		rest, errors := 0, false
		for subject, isError := range more {
			if strings.HasPrefix(subject, s.prefix) {
				rest++
				errors = errors || isError
			}
		}
		tell := j.warning
		if errors {
			tell = j.error
		}
		if rest > 0 {
			tell(s.plural, fmt.Sprintf("%d more have problems", rest), "see "+s.list)
		}
		if s.prefix == serviceSubject {
			services = counts[i] + rest
		}
	}
	return services
}

// nameIn makes an argument of a name: "NetworkPolicy shop/db" is NetworkPolicy/shop/db; of several the first.
func nameIn(subject string) string {
	first, _, _ := strings.Cut(subject, ", ")
	return strings.ReplaceAll(first, " ", "/")
}

func (j *judge) services(k localapi.KubeProxy) {
	if k.Mode == "drain" && k.Decided == nil { // strait takeover ends a drain itself
		j.warning("services", "new connections are left to kube-proxy, those that are Strait's go on",
			"set services.mode to off when they have ended (strait bpf dump strait_ct), or to on to take services back")
	}
}

func (j *judge) kubernetes(k localapi.Kubernetes) (synced bool) {
	if !k.Connected {
		j.error("Kubernetes", "not connected: "+orElse(k.Error, "no answer yet"),
			"pods keep running with what is in the kernel, changes wait; check that "+orElse(k.Server, "the API server")+" answers from this node")
	}
	var waiting []string
	for _, t := range k.Tables {
		if !t.Synced {
			waiting = append(waiting, t.Name)
		}
	}
	if len(waiting) > 0 {
		j.warning("Kubernetes", "not everything has arrived yet: "+strings.Join(waiting, ", "),
			"nothing is removed from the kernel before it has; if it stays so, check the permissions of the service account strait-agent")
	}
	return len(waiting) == 0
}

func (j *judge) reconcilers(s *localapi.Status) {
	for _, r := range s.Reconcilers {
		switch {
		case r.Failing > 0:
			j.error("table "+r.Table, fmt.Sprintf("%d of %d rows not in the kernel, the last: %s", r.Failing, r.Rows, r.LastError),
				"it is tried again by itself; see "+rowsCommand(r.Table))
		case r.LastError != "":
			j.error("table "+r.Table, "the check of the kernel did not finish: "+r.LastError, "it is tried again by itself; see the agent's log")
		}
	}
}

func rowsCommand(table string) string {
	switch table {
	case "remotes", "routes":
		return "strait get " + table
	case "frontends":
		return "strait service list"
	}
	return "the agent's log"
}

func (j *judge) routing(s *localapi.Status) {
	if len(s.Routing.Devices) == 0 {
		j.error("devices", "no device has a node address or a default route: other nodes cannot be reached",
			"set devices in the configuration, or give the node's InternalIP to a device")
	}
	if s.Masquerade.Enabled && len(s.Masquerade.Devices) == 0 {
		j.error("masquerading", "no device has an address to masquerade with: pods cannot reach the outside", "see strait get devices")
	}
}

func (j *judge) ipam(i localapi.IPAM) {
	if len(i.Pools) == 0 {
		who := "strait-operator gives it out in mode cluster-pool: is it running, is the pool large enough?"
		if i.Mode == "kubernetes" {
			who = "kube-controller-manager gives it out in mode kubernetes: does it run with --allocate-node-cidrs?"
		}
		j.error("IPAM", "this node has no pod CIDR: no pod can start", who)
	}
	for _, p := range i.Pools {
		taken := p.Allocated + p.CoolingDown
		switch {
		case p.Capacity == 0 || taken >= p.Capacity:
			j.error("IPAM", fmt.Sprintf("no free %s address in %s: %d given out, %d cooling down", p.Family, p.CIDR, p.Allocated, p.CoolingDown),
				"no new pod can start here; use a larger node CIDR, or fewer pods per node")
		case taken >= p.Capacity-p.Capacity/100*(100-fullPercent) && p.Capacity >= 100:
			j.warning("IPAM", fmt.Sprintf("%d of %d %s addresses of %s are in use", taken, p.Capacity, p.Family, p.CIDR), "")
		}
	}
}

func (j *judge) cni(c localapi.CNI, synced bool) {
	switch {
	case !c.Ready && c.LastError != "":
		j.error("CNI", "not ready: "+c.LastError, "the node stays tainted and takes no pods until the probe sandbox works")
	case !c.Ready && synced:
		j.error("CNI", "no sandbox has worked yet", "the node stays tainted and takes no pods until the probe sandbox works")
	case !c.Ready:
		j.warning("CNI", "waiting for Kubernetes", "")
	case c.LastError != "":
		j.warning("CNI", "the last request was refused: "+c.LastError, "kubectl get events shows the pod")
	}
	if c.Queued > 0 {
		j.warning("CNI", fmt.Sprintf("%d deletes wait on disk to be replayed", c.Queued), "")
	}
}

func (j *judge) endpoints(endpoints []localapi.Endpoint) {
	more := 0
	named := 0
	for _, e := range endpoints {
		if state.EndpointPhase(e.Phase) != state.EndpointDegraded {
			continue
		}
		if named++; named > namedAtMost {
			more++
			continue
		}
		j.error("endpoint "+e.Namespace+"/"+e.Pod, orElse(e.Error, "degraded"),
			"it is repaired by itself where possible; if not, delete the pod")
	}
	if more > 0 {
		j.error("endpoints", fmt.Sprintf("%d more are degraded", more), "see strait get endpoints")
	}
}

// heldBack is the map of repeats that are not told at once. When it is full each of them is told: nothing is wrong.
const heldBack = "strait_muted"

// maps tells of hash tables that run full. Those with LRU eviction are meant to be full of old entries.
func (j *judge) maps(maps []localapi.Map) {
	for _, m := range maps {
		lower := strings.ToLower(m.Type)
		if m.Max == 0 || m.Entries < 0 || m.Name == heldBack || strings.Contains(lower, "lru") || strings.Contains(lower, "array") {
			continue
		}
		text := fmt.Sprintf("%d of %d entries", m.Entries, m.Max)
		switch {
		case m.Entries >= m.Max:
			j.error("map "+m.Name, "full: "+text, "raise its size under maps in the configuration")
		case m.Entries >= m.Max/100*fullPercent && m.Max >= 100:
			j.warning("map "+m.Name, "nearly full: "+text, "raise its size under maps in the configuration")
		}
	}
}

func (j *judge) peers(h localapi.ClusterHealth) {
	named := 0
	for _, p := range h.Peers {
		if p.Reachable || p.Checked.IsZero() {
			continue
		}
		if named++; named > namedAtMost {
			continue
		}
		j.error("node "+p.Node, "its agent does not answer at "+p.Address+": "+orElse(p.Error, "no answer"),
			"is the node up, and does the network between the nodes let this through? There: strait status")
	}
	if named > namedAtMost {
		j.error("nodes", fmt.Sprintf("%d more do not answer", named-namedAtMost), "see strait get nodes")
	}
}

func (j *judge) leftovers(all []localapi.Leftover) {
	byOwner := map[string][]string{}
	var owners []string
	for _, l := range all {
		if byOwner[l.Of] == nil {
			owners = append(owners, l.Of)
		}
		what := l.Kind + " " + l.Name
		if l.Effect != "" {
			what += " (" + l.Effect + ")"
		}
		byOwner[l.Of] = append(byOwner[l.Of], what)
	}
	for _, owner := range owners {
		action := "remove " + owner + " and what it left, or restart the node after removing it"
		if owner == "kube-proxy" {
			action = "stop kube-proxy and run kube-proxy --cleanup on the node"
		}
		j.warning("leftovers", "of "+owner+": "+strings.Join(byOwner[owner], ", "), action)
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
