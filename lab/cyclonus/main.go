// Command cyclonus runs cyclonus' generated cases of NetworkPolicy against a cluster and writes what became of each as JSON.
//
// It is the "generate" command of cyclonus put together from its packages, with two differences: all questions of a pod are asked by one process
// in the pod (/worker of the lab's image), and the pause after a change is short. The cases and the oracle are cyclonus' own.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// ports are those that the cases speak of.
func ports() []int { return []int{80, 81} }

func protocols() []v1.Protocol {
	return []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP}
}

// excluded are the tags that cyclonus leaves out unless told otherwise.
func excluded() []string {
	return []string{generator.TagMultiPeer, generator.TagUpstreamE2E, generator.TagExample, generator.TagEndPort, generator.TagNamespacesByDefaultLabel}
}

// podsReady is how long nine pods of six containers may take to start, in seconds.
const podsReady = 300

type config struct {
	kubeconfig, report, mode string
	focus                    *regexp.Regexp
	all                      bool
	wait, retries            int
	every                    int
}

// result is what the report holds of a case.
type result struct {
	Name   string
	Tags   []string
	Passed bool
	Wrong  int    // answers that differ from the oracle's
	Asked  int    // answers in all
	First  string // the first wrong answer
	Took   time.Duration
}

func main() {
	var c config
	flags := flag.NewFlagSet("cyclonus", flag.ExitOnError) // the common one is full of a library's
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "of the cluster")
	flags.StringVar(&c.report, "report", "", "file for the results")
	flags.StringVar(&c.mode, "mode", "", "how pods are asked for: "+strings.Join(generator.AllProbeModes, ", ")+" (default: as the case says)")
	focus := flags.String("focus", "", "cases to run, a regular expression over their descriptions")
	flags.BoolVar(&c.all, "all", false, "also the cases that cyclonus leaves out by default")
	flags.IntVar(&c.wait, "wait", 1, "seconds between a change and the first question")
	flags.IntVar(&c.retries, "retries", 0, "how often to ask again when an answer is wrong")
	flags.IntVar(&c.every, "every", 1, "run each n-th of the cases")
	err := flags.Parse(os.Args[1:])
	if err == nil {
		c.focus, err = regexp.Compile(*focus)
	}
	if err == nil {
		err = run(c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cyclonus:", err)
		os.Exit(1)
	}
}

func connect(kubeconfig string) (*kube.Kubernetes, error) {
	rest, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	rest.QPS, rest.Burst = 100, 200
	clients, err := kubernetes.NewForConfig(rest)
	return &kube.Kubernetes{ClientSet: clients, RestConfig: rest}, err
}

func run(c config) error {
	cluster, err := connect(c.kubeconfig)
	if err != nil {
		return err
	}
	namespaces, names := []string{"x", "y", "z"}, []string{"a", "b", "c"}
	defer func() {
		for _, n := range namespaces {
			_ = cluster.DeleteNamespace(n) // the cluster is a lab: what stays is gone with it
		}
	}()
	resources, err := probe.NewDefaultResources(cluster, namespaces, names, ports(), protocols(), nil, podsReady, false, "localhost")
	if err != nil {
		return fmt.Errorf("start pods: %w", err)
	}
	last, err := resources.GetPod("z", "c")
	if err != nil {
		return err
	}
	var without []string
	if !c.all {
		without = excluded()
	}
	var cases []*generator.TestCase
	numbers := map[*generator.TestCase]int{} // among all: descriptions are not unique
	for i, t := range generator.NewTestCaseGenerator(true, last.IP, namespaces, nil, without).GenerateTestCases() {
		if c.focus.MatchString(t.Description) && i%c.every == 0 {
			cases = append(cases, t)
			numbers[t] = i + 1
		}
	}
	interpreter := connectivity.NewInterpreter(cluster, resources, &connectivity.InterpreterConfig{
		ResetClusterBeforeTestCase: true, VerifyClusterStateBeforeTestCase: true, KubeProbeRetries: c.retries, PerturbationWaitSeconds: c.wait, BatchJobs: true,
		IgnoreLoopback: true, // verdict knows better
	})
	return execute(c, interpreter, cases, numbers)
}

func execute(c config, interpreter *connectivity.Interpreter, cases []*generator.TestCase, numbers map[*generator.TestCase]int) error {
	var results []result
	failed := 0
	for i, t := range cases {
		if c.mode != "" {
			mode, err := generator.ParseProbeMode(c.mode)
			if err != nil {
				return err
			}
			for _, step := range t.Steps {
				step.Probe.Mode = mode
			}
		}
		begun := time.Now()
		r := interpreter.ExecuteTestCase(t)
		if r.Err != nil {
			return fmt.Errorf("case %d, %s: %w", i+1, t.Description, r.Err)
		}
		sum := verdict(r)
		sum.Name, sum.Took = fmt.Sprintf("%03d %s (%s)", numbers[t], sum.Name, strings.Join(sum.Tags, ", ")), time.Since(begun)
		results = append(results, sum)
		word := "passed"
		if !sum.Passed {
			word = "FAILED"
			failed++
		}
		fmt.Printf("%s %d of %d: %s (%d of %d answers wrong) %s\n", word, i+1, len(cases), sum.Name, sum.Wrong, sum.Asked, sum.First)
		text, err := json.MarshalIndent(results, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.report, text, 0o644); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d cases failed", failed, len(cases))
	}
	return nil
}

// verdict compares the last answers of each step with the oracle's, which does not know that no policy keeps a pod from itself.
func verdict(r *connectivity.Result) result {
	out := result{Name: r.TestCase.Description, Tags: r.TestCase.Tags.Keys()}
	slices.Sort(out.Tags)
	for i, step := range r.Steps {
		table := step.LastComparison()
		for _, key := range table.Wrapped.Keys() {
			item := table.Get(key.From, key.To)
			for name, got := range item.Kube.JobResults {
				want := probe.ConnectivityUnknown
				if simulated, ok := item.Simulated.JobResults[name]; ok {
					want = simulated.Combined
				}
				if key.From == key.To && want == probe.ConnectivityBlocked {
					continue // it reaches itself, if it may ask for its name
				}
				out.Asked++
				if want == got.Combined {
					continue
				}
				out.Wrong++
				if out.First == "" {
					out.First = fmt.Sprintf("step %d: %s to %s %s is %s, should be %s", i+1, key.From, key.To, name, got.Combined, want)
				}
			}
		}
	}
	out.Passed = out.Wrong == 0 && out.Asked > 0
	return out
}
