package pki

import (
	"encoding/base64"
	"fmt"
)

// kubeconfig lays out CA, certificate and key, in that order.
func kubeconfig(server, client string, files [3][]byte) []byte {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: lab
clusters:
- name: lab
  cluster:
    server: %s
    tls-server-name: kubernetes
    certificate-authority-data: %s
contexts:
- name: lab
  context:
    cluster: lab
    user: %s
users:
- name: %s
  user:
    client-certificate-data: %s
    client-key-data: %s
`, server, b64(files[0]), client, client, b64(files[1]), b64(files[2]))
}
