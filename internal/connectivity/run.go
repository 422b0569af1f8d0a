package connectivity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/strait-net/strait/internal/echo"
	"github.com/strait-net/strait/internal/localapi"
)

// Config is what a test needs. All but Nodes, Image, External and Keep is required.
type Config struct {
	API       *rest.Config
	Namespace string // is made, and removed in the end
	// AgentNamespace is where the DaemonSet is whose image is run, unless Image names another.
	AgentNamespace string
	Image          string
	Agents         []string // nodes whose agent runs
	Nodes          []string // that are to be tested, at most two; empty: the first two that can be
	External       *url.URL // somebody outside
	Scenarios      []Scenario
	Keep           bool // the namespace, for a look at its pods
	// Wait is the longest wait for pods to be ready and for the namespace to be gone, Timeout for a scenario's answers to be as they have to be.
	Wait, Timeout time.Duration

	// Exec runs a program in a pod of the namespace. Output comes with an error, too, when the program's exit code is not 0.
	Exec func(ctx context.Context, pod, container string, command []string) (stdout, stderr []byte, err error)
	// Policy asks the agent of a node about a CiliumNetworkPolicy of the namespace.
	Policy func(ctx context.Context, node, name string) (localapi.PolicyDetail, error)
	// Closed asks the agent of a node whether it denies what no policy allows (the mode always).
	Closed func(ctx context.Context, node string) (bool, error)
	// Diagnose asks about a path that failed, while its pods are still there.
	Diagnose func(context.Context, Path) []string
	// Say tells a person what is done, Done the result of the i-th of all scenarios.
	Say  func(string)
	Done func(i int, r Result)
}

// Path is what a person would ask explain about.
type Path struct {
	Client, ClientNode string // pod, without its namespace
	Server, ServerNode string // likewise; empty: the world outside
	Address            netip.AddrPort
	Protocol           string
	Port               int32 // of the server's pod
}

const (
	oneAsk   = 3 * time.Second // longest wait for answers that are to come
	denial   = time.Second     // and for those that are not to come
	counting = 2 * time.Second // until a counter of the kernel must have been seen to move
)

// runner is one run.
type runner struct {
	Config
	api   *api
	stage stage
}

// Run tests. The report holds what was found also when an error ends the test early; then the namespace is removed as well.
func Run(ctx context.Context, c Config) (report Report, err error) {
	r := &runner{Config: c}
	report = Report{Namespace: c.Namespace, Began: time.Now()}
	defer func() { report.Took = time.Since(report.Began) }()
	if r.api, err = newAPI(c.API); err != nil {
		return report, err
	}
	if err := r.prepare(ctx); err != nil {
		return report, err
	}
	report.Image = r.stage.image
	report.Nodes = slices.Compact([]string{r.stage.here, r.stage.there})
	if len(r.stage.scenarios) > 0 {
		defer func() {
			if r.stage.uid != "" && !c.Keep {
				c.Say("removing namespace " + c.Namespace)
			}
			err = errors.Join(err, r.stage.finish(ctx, r.api, c.Keep, c.Wait))
		}()
		if err := r.setUp(ctx); err != nil {
			return report, err
		}
	}
	for i, s := range c.Scenarios {
		result := r.scenario(ctx, s)
		if ctx.Err() != nil {
			return report, context.Cause(ctx)
		}
		report.Results = append(report.Results, result)
		c.Done(i, result)
	}
	return report, nil
}

// prepare decides what is put where, without changing anything.
func (r *runner) prepare(ctx context.Context) error {
	nodes, others, err := r.api.usable(ctx, r.Agents)
	if err != nil {
		return err
	}
	for _, why := range others {
		r.Say("not tested: " + why)
	}
	if len(r.Nodes) > 0 {
		for _, n := range r.Nodes {
			if !slices.Contains(nodes, n) {
				return fmt.Errorf("node %q cannot be tested; those that can: %s", n, strings.Join(nodes, ", "))
			}
		}
		nodes = r.Nodes
	}
	p := plan{namespace: r.Namespace, image: r.Image, pull: corev1.PullIfNotPresent, here: nodes[0], there: nodes[min(1, len(nodes)-1)], external: r.External}
	if p.image == "" {
		if p.image, p.pull, err = r.api.agentImage(ctx, r.AgentNamespace); err != nil {
			return err
		}
	}
	for _, s := range r.Scenarios {
		if s.lacks(p.nodes(), p.external) == "" {
			p.scenarios = append(p.scenarios, s)
		}
	}
	for _, node := range slices.Compact([]string{p.here, p.there}) {
		closed, err := r.Closed(ctx, node)
		if err != nil {
			return fmt.Errorf("ask the agent of %s: %w", node, err)
		}
		p.closed = p.closed || closed
	}
	if p.closed {
		r.Say("what no policy allows is denied here (policyEnforcementMode always): NetworkPolicy " + restPolicy +
			" is made for the test's pods; name servers need a policy of their own")
	}
	r.stage.plan = p
	return nil
}

func (p plan) nodes() int {
	if p.here == p.there {
		return 1
	}
	return 2
}

func (r *runner) setUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.Wait)
	defer cancel()
	if err := r.stage.claim(ctx, r.api, r.Say); err != nil {
		return err
	}
	where := r.stage.here
	if r.stage.there != r.stage.here {
		where += " and " + r.stage.there
	}
	r.Say(fmt.Sprintf("deploying into namespace %s on %s, image %s", r.Namespace, where, r.stage.image))
	if err := r.stage.deploy(ctx, r.api); err != nil {
		return err
	}
	return r.stage.await(ctx, r.api, r.Say)
}

func (r *runner) scenario(ctx context.Context, s Scenario) Result {
	result := Result{Scenario: s.Name, Outcome: Skipped}
	if result.Why = s.lacks(r.stage.nodes(), r.External); result.Why != "" {
		return result
	}
	client := r.stage.pods[s.client]
	result.Client, result.Node = r.Namespace+"/"+client.name, client.node
	targets := s.targets(&r.stage)
	for _, t := range targets {
		result.Targets = append(result.Targets, t.url)
	}
	var before localapi.PolicyDetail
	if s.policy != "" {
		var skip string
		var err error
		before, skip, err = r.enforced(ctx, s.policy, client)
		switch {
		case err != nil:
			result.Outcome, result.Why = Failed, err.Error()
			return result
		case skip != "":
			result.Why = skip
			return result
		}
	}
	began := time.Now()
	var path *Path
	if s.denied {
		path = r.expectSilence(ctx, s, targets, &result)
	} else {
		path = r.expectAnswers(ctx, s, targets, &result)
	}
	if result.Why == "" && s.policy != "" {
		result.Why = r.counted(ctx, s, client, before)
	}
	result.Took = time.Since(began)
	result.Outcome = Passed
	if result.Why != "" {
		result.Outcome = Failed
		if path == nil {
			path = r.path(s, netip.AddrPort{}, "TCP")
		}
		result.Findings = r.Diagnose(ctx, *path)
	}
	if result.Outcome == Passed && result.Attempts > 1 {
		result.Why = fmt.Sprintf("at attempt %d", result.Attempts)
	}
	return result
}

// expectAnswers asks until all answers are as they have to be: names and services need a moment to be known everywhere.
func (r *runner) expectAnswers(ctx context.Context, s Scenario, targets []target, result *Result) (path *Path) {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	for {
		result.Attempts++
		answers, err := r.ask(ctx, s, targets, min(oneAsk, r.Timeout))
		why, where := "", (*Path)(nil)
		if err != nil {
			why = err.Error()
		} else {
			why, where = r.judge(s, targets, answers)
		}
		if ctx.Err() == nil || result.Why == "" { // an answer that was cut short says less than the one before
			result.Why, path = why, where
		}
		if why == "" {
			result.Why = ""
			return nil
		}
		select {
		case <-ctx.Done():
			return path
		case <-time.After(every):
		}
	}
}

// judge says what is wrong with the answers, and on which path; nothing: all is as it has to be.
func (r *runner) judge(s Scenario, targets []target, answers []echo.Answer) (why string, path *Path) {
	wrong := 0
	fault := func(text string, address netip.AddrPort, url string) {
		if wrong++; wrong == 1 {
			why, path = url+": "+text, r.path(s, address, protocol(url))
		}
	}
	for _, t := range targets {
		var asked []netip.Addr
		for _, a := range answers {
			if a.URL != t.url {
				continue
			}
			if a.Address.IsValid() {
				asked = append(asked, a.Address.Addr())
			}
			if text := r.judgeOne(s, a); text != "" {
				fault(text, a.Address, t.url)
			}
		}
		switch {
		case len(asked) == 0 && wrong == 0:
			fault("was not asked", netip.AddrPort{}, t.url)
		case len(asked) > 0 && t.want != nil && !slices.Equal(asked, t.want):
			fault(fmt.Sprintf("the name has the addresses %s, want %s", list(asked), list(t.want)), netip.AddrPort{}, t.url)
		}
	}
	if wrong > 0 && len(answers) > 1 {
		why += fmt.Sprintf(" (%d of %d answers are right)", max(0, len(answers)-wrong), len(answers))
	}
	return why, path
}

func (r *runner) judgeOne(s Scenario, a echo.Answer) string {
	client, server := r.stage.pods[s.client], r.stage.pods[s.server]
	switch {
	case a.Step == echo.Resolve:
		return a.Error
	case s.server == "" && a.Error == "":
		return "" // whatever the world outside answers, it was reached
	case !a.OK():
		return a.String()
	case a.Reply == nil:
		return fmt.Sprintf("%s is answered by somebody else: %q", a.Address, a.Text)
	case a.Reply.Pod != server.name:
		return fmt.Sprintf("%s is answered by %s, want %s", a.Address, a.Reply.Pod, server.name)
	case s.direct && !slices.Contains(client.addrs, a.Reply.From.Addr()):
		return fmt.Sprintf("%s: the server sees %s, want the client's own address, %s", a.Address, a.Reply.From.Addr(), list(client.addrs))
	}
	return ""
}

// expectSilence asks once: the policy is in force, and nothing may come back.
func (r *runner) expectSilence(ctx context.Context, s Scenario, targets []target, result *Result) *Path {
	result.Attempts = 1
	answers, err := r.ask(ctx, s, targets, denial)
	if err != nil {
		result.Why = err.Error()
		return nil
	}
	for _, a := range answers {
		if !a.Silent {
			result.Why = a.URL + ": the policy does not allow it, but " + a.String()
			return r.path(s, a.Address, protocol(a.URL))
		}
	}
	return nil
}

// ask runs strait ask in the client.
func (r *runner) ask(ctx context.Context, s Scenario, targets []target, limit time.Duration) ([]echo.Answer, error) {
	command := []string{"strait", "ask", "--output=json", "--timeout=" + limit.String()}
	for _, t := range targets {
		command = append(command, t.url)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*limit+5*time.Second) // the name, the addresses, and the way to the pod and back
	defer cancel()
	pod := r.stage.pods[s.client].name
	stdout, stderr, err := r.Exec(ctx, pod, container, command)
	var answers []echo.Answer
	switch {
	case len(stdout) > 0 && json.Unmarshal(stdout, &answers) == nil:
		return answers, nil
	case len(stderr) > 0:
		return nil, fmt.Errorf("run strait ask in %s: %s", pod, strings.TrimPrefix(strings.TrimSpace(string(stderr)), "strait: "))
	case err != nil:
		return nil, fmt.Errorf("run strait ask in %s: %w", pod, err)
	}
	return nil, fmt.Errorf("run strait ask in %s: it answers %q", pod, stdout)
}

// enforced waits until the client's node judges it by the policy. skip is why it never will.
func (r *runner) enforced(ctx context.Context, name string, client pod) (detail localapi.PolicyDetail, skip string, err error) {
	if r.stage.unknown {
		return detail, "this cluster does not know the kind CiliumNetworkPolicy: install Strait's CRDs", nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	err = poll(ctx, "policy "+name+" on "+client.node, func() error {
		d, err := r.Policy(ctx, client.node, name)
		if err != nil {
			return err
		}
		detail = d
		if d.State == localapi.PolicyFailed {
			return errors.New(d.Error)
		}
		if d.State != localapi.PolicyEnforced || slices.ContainsFunc(d.Selected, func(s localapi.SelectedPod) bool { return s.Pod == r.Namespace+"/"+client.name && s.Error == "" }) {
			return nil
		}
		return errors.New("the agent does not apply it to " + client.name)
	})
	switch {
	case err != nil:
		return detail, "", err
	case detail.State == localapi.PolicyRefused && name == clientFQDN: // not everything there is in such a policy is supported
		return detail, "the policy is refused: " + detail.Error, nil
	case detail.State == localapi.PolicyRefused:
		return detail, "", fmt.Errorf("the policy is refused: %s", detail.Error)
	case detail.State == localapi.PolicyAudited:
		return detail, "policies are only audited here", nil
	case detail.State == localapi.PolicyOff:
		return detail, "policies are not enforced here", nil
	}
	return detail, "", nil
}

// counted says what is wrong when the policy's counters do not show that it was the one that decided.
func (r *runner) counted(ctx context.Context, s Scenario, client pod, before localapi.PolicyDetail) string {
	ctx, cancel := context.WithTimeout(ctx, counting)
	defer cancel()
	what, of := "allowed", func(d localapi.PolicyDetail) uint64 { return d.Allowed.Packets }
	if s.denied {
		what, of = "denied", func(d localapi.PolicyDetail) uint64 { return d.Denied.Packets }
	}
	err := poll(ctx, "the policy to have counted it", func() error {
		d, err := r.Policy(ctx, client.node, s.policy)
		if err != nil || of(d) > of(before) {
			return err
		}
		return fmt.Errorf("CiliumNetworkPolicy %s has %s %d packets, as many as before", s.policy, what, of(d))
	})
	switch {
	case err != nil && s.denied:
		return "nothing came back, but it was not the policy: " + err.Error()
	case err != nil:
		return "it passed, but not by the policy: " + err.Error()
	}
	return ""
}

// path is the one that a question took. The address may not be known.
func (r *runner) path(s Scenario, address netip.AddrPort, protocol string) *Path {
	client, server := r.stage.pods[s.client], r.stage.pods[s.server]
	p := &Path{Client: client.name, ClientNode: client.node, Server: server.name, ServerNode: server.node, Address: address, Protocol: protocol, Port: portHTTP}
	if protocol == "UDP" {
		p.Port = portUDP
	}
	return p
}

func protocol(url string) string {
	if strings.HasPrefix(url, "udp:") {
		return "UDP"
	}
	return "TCP"
}

func list(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "none"
	}
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}
