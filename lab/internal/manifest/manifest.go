// Package manifest holds what a lab installs besides Strait: CoreDNS and a small application to look at.
package manifest

import (
	"bytes"
	"embed"
	"fmt"
	"text/template"

	"github.com/strait-net/strait/lab/internal/image"
	"github.com/strait-net/strait/lab/internal/topology"
)

//go:embed *.yaml
var files embed.FS

// Values fill the templates.
type Values struct {
	CoreDNSImage, AgnhostImage string
	ClusterDNS                 []string
	Families                   []string // as in a service's ipFamilies
	Policy                     string   // as in a service's ipFamilyPolicy
	Upstream                   string   // name servers outside, separated by spaces
	KubeProxy                  bool
}

// For derives the values of a lab.
func For(s topology.Spec) Values {
	v := Values{CoreDNSImage: image.CoreDNS, AgnhostImage: image.Agnhost, Policy: "SingleStack", KubeProxy: s.KubeProxy() != ""}
	for _, a := range s.ClusterDNS() {
		v.ClusterDNS = append(v.ClusterDNS, a.String())
	}
	if s.V4() {
		v.Families = append(v.Families, "IPv4")
	}
	if s.V6() {
		v.Families = append(v.Families, "IPv6")
	}
	if len(v.Families) == 2 {
		v.Policy = "RequireDualStack"
	}
	for _, a := range topology.Hosts(s.OutsideAddrs()) {
		v.Upstream += a.String() + " "
	}
	return v
}

// CoreDNS is the cluster's name server with its service, account and role.
func CoreDNS(v Values) ([]byte, error) { return render("coredns.yaml", v) }

// Demo is an echo application with two replicas, its service and a client pod.
func Demo(v Values) ([]byte, error) { return render("demo.yaml", v) }

func render(file string, v Values) ([]byte, error) {
	t, err := template.ParseFS(files, file)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, v); err != nil {
		return nil, fmt.Errorf("render %s: %w", file, err)
	}
	return out.Bytes(), nil
}
