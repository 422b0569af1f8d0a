// Package controlplane knows how etcd, the API server, the controllers and the scheduler are configured and started.
package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/strait-net/strait/lab/internal/namespace"
	"github.com/strait-net/strait/lab/internal/pki"
	"github.com/strait-net/strait/lab/internal/process"
	"github.com/strait-net/strait/lab/internal/topology"
)

// Config is what a control plane needs.
type Config struct {
	Spec  topology.Spec
	Bin   string         // directory with the binaries
	State string         // directory of the lab
	Net   *namespace.Net // where it runs
	Table *process.Table
}

// PKI is the directory of the certificates.
func PKI(state string) string { return filepath.Join(state, "pki") }

// Logs is the directory of the control plane's logs.
func Logs(state string) string { return filepath.Join(state, "logs") }

// AuthorityName is the cluster's authority, AdminName the certificate of its operator.
const (
	AuthorityName = "ca"
	AdminName     = "admin"
	frontProxy    = "front-proxy"
	accounts      = "service-accounts"
)

// Issue makes all certificates of the control plane and the kubeconfigs of its members.
func Issue(s topology.Spec, state string) (*pki.Authority, error) {
	ca, err := pki.New(PKI(state), AuthorityName)
	if err != nil {
		return nil, err
	}
	proxyCA, err := pki.New(PKI(state), "front-proxy-ca")
	if err != nil {
		return nil, err
	}
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, a := range topology.Hosts(s.ControlPlaneAddrs()) {
		ips = append(ips, a.AsSlice())
	}
	for _, c := range s.ServiceCIDRs() {
		ips = append(ips, c.Addr().Next().AsSlice())
	}
	err = errors.Join(
		ca.Issue("apiserver", pki.Subject{
			CommonName: "kubernetes",
			DNS: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
				"localhost", topology.ControlPlane},
			IPs: ips,
		}),
		ca.Issue("kubelet-client", pki.Subject{CommonName: "lab:apiserver", Organization: []string{"system:masters"}}),
		ca.Issue(AdminName, pki.Subject{CommonName: "lab:admin", Organization: []string{"system:masters"}}),
		ca.Issue("kube-controller-manager", pki.Subject{CommonName: "system:kube-controller-manager"}),
		ca.Issue("kube-scheduler", pki.Subject{CommonName: "system:kube-scheduler"}),
		ca.Issue("kube-proxy", pki.Subject{CommonName: "system:kube-proxy"}),
		proxyCA.Issue(frontProxy, pki.Subject{CommonName: frontProxy}),
		accountKey(ca),
	)
	if err != nil {
		return nil, err
	}
	for _, member := range []string{"kube-controller-manager", "kube-scheduler"} {
		if err := WriteKubeconfig(ca, s, member, filepath.Join(PKI(state), member+".kubeconfig")); err != nil {
			return nil, err
		}
	}
	return ca, nil
}

// accountKey makes the key pair that signs service account tokens.
func accountKey(ca *pki.Authority) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(ca.KeyFile(accounts), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600)
}

// WriteKubeconfig writes the configuration of a client inside the lab.
func WriteKubeconfig(ca *pki.Authority, s topology.Spec, client, file string) error {
	content, err := ca.Kubeconfig("https://"+s.APIServer().String(), client)
	if err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o600)
}

// StartStore starts etcd and the API server.
func (c Config) StartStore(ca *pki.Authority) error {
	if err := c.keep("etcd", c.etcdArgs()); err != nil {
		return err
	}
	return c.keep("kube-apiserver", c.apiserverArgs(ca))
}

// StartControllers starts what needs the API server to be ready.
func (c Config) StartControllers(ca *pki.Authority) error {
	if err := c.keep("kube-controller-manager", c.controllerArgs(ca)); err != nil {
		return err
	}
	return c.keep("kube-scheduler", []string{
		"--kubeconfig=" + filepath.Join(PKI(c.State), "kube-scheduler.kubeconfig"),
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		"--profiling=false",
	})
}

func (c Config) keep(name string, args []string) error {
	return c.Table.Keep(process.Command{
		Path: filepath.Join(c.Bin, name),
		Args: append([]string{name}, args...),
		Env:  []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "GOGC=200"},
		Log:  filepath.Join(Logs(c.State), name+".log"),
		Net:  c.Net,
	})
}

func (c Config) etcdArgs() []string {
	return []string{
		"--name=lab",
		"--data-dir=" + filepath.Join(c.State, "etcd"),
		"--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=lab=http://127.0.0.1:2380",
		"--unsafe-no-fsync", // the machine's crash ends the lab anyhow
		"--log-level=warn",
	}
}

func (c Config) apiserverArgs(ca *pki.Authority) []string {
	s := c.Spec
	bind := "0.0.0.0"
	if s.V6() {
		bind = "::"
	}
	return []string{
		"--advertise-address=" + s.ControlPlaneAddrs()[0].Addr().String(),
		"--bind-address=" + bind,
		fmt.Sprintf("--secure-port=%d", topology.APIPort),
		"--etcd-servers=http://127.0.0.1:2379",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--profiling=false",
		"--service-cluster-ip-range=" + topology.Join(s.ServiceCIDRs()),
		"--client-ca-file=" + ca.CAFile(),
		"--tls-cert-file=" + ca.CertFile("apiserver"),
		"--tls-private-key-file=" + ca.KeyFile("apiserver"),
		"--kubelet-certificate-authority=" + ca.CAFile(),
		"--kubelet-client-certificate=" + ca.CertFile("kubelet-client"),
		"--kubelet-client-key=" + ca.KeyFile("kubelet-client"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + ca.KeyFile(accounts),
		"--service-account-signing-key-file=" + ca.KeyFile(accounts),
		"--requestheader-client-ca-file=" + ca.CertFile("front-proxy-ca"),
		"--requestheader-allowed-names=" + frontProxy,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + ca.CertFile(frontProxy),
		"--proxy-client-key-file=" + ca.KeyFile(frontProxy),
	}
}

func (c Config) controllerArgs(ca *pki.Authority) []string {
	s := c.Spec
	args := []string{
		"--kubeconfig=" + filepath.Join(PKI(c.State), "kube-controller-manager.kubeconfig"),
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		"--profiling=false",
		"--use-service-account-credentials=true",
		"--root-ca-file=" + ca.CAFile(),
		"--service-account-private-key-file=" + ca.KeyFile(accounts),
		"--cluster-signing-cert-file=" + ca.CAFile(),
		"--cluster-signing-key-file=" + ca.KeyFile(AuthorityName),
		"--service-cluster-ip-range=" + topology.Join(s.ServiceCIDRs()),
		"--cluster-cidr=" + topology.Join(s.PodCIDRs()),
	}
	if s.CNI == "strait" && s.IPAM != "kubernetes" {
		return append(args, "--allocate-node-cidrs=false") // strait-operator does
	}
	args = append(args, "--allocate-node-cidrs=true")
	if s.V4() {
		args = append(args, fmt.Sprintf("--node-cidr-mask-size-ipv4=%d", topology.NodeMaskV4))
	}
	if s.V6() {
		args = append(args, fmt.Sprintf("--node-cidr-mask-size-ipv6=%d", topology.NodeMaskV6))
	}
	return args
}

// WaitReady returns once the API server answers /readyz.
func WaitReady(ctx context.Context, server string, ca []byte, dial func(context.Context, string, string) (net.Conn, error)) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return errors.New("read the cluster's authority: no certificate in it")
	}
	transport := &http.Transport{
		DialContext:       dial,
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: "kubernetes"},
		DisableKeepAlives: true,
	}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	for {
		response, err := client.Get(strings.TrimSuffix(server, "/") + "/readyz")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("/readyz answers %s", response.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the API server: %w (last: %w)", context.Cause(ctx), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
