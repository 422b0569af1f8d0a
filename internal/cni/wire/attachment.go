package wire

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
)

// maxContainerID keeps the names of records below the 255 bytes that file systems allow. Runtimes use 64.
const maxContainerID = 200

// Attachment returns the attachment that an ADD, DEL or CHECK is about, every part of it checked: it becomes part of file
// names and of what people see. Errors are *types.Error with code 4, naming the variable and the value.
func (r Request) Attachment(network string) (Attachment, error) {
	a := Attachment{Network: network, ContainerID: r.ContainerID, IfName: r.IfName, NetNS: r.NetNS}
	if utils.ValidateContainerID(r.ContainerID) != nil || len(r.ContainerID) > maxContainerID {
		return a, badVariable("CNI_CONTAINERID", r.ContainerID, "at most 200 letters, digits, '_', '.' and '-'")
	}
	if utils.ValidateInterfaceName(r.IfName) != nil || !printable(r.IfName) {
		return a, badVariable("CNI_IFNAME", r.IfName, "an interface name of at most 15 characters")
	}
	if r.NetNS == "" && r.Command != Del {
		return a, badVariable("CNI_NETNS", r.NetNS, "the path of a network namespace")
	}
	if r.NetNS != "" && (!filepath.IsAbs(r.NetNS) || !printable(r.NetNS)) {
		return a, badVariable("CNI_NETNS", r.NetNS, "an absolute path")
	}
	err := a.setArgs(r.Args)
	return a, err
}

// setArgs takes the pod's name from CNI_ARGS, "K=V;K=V".
func (a *Attachment) setArgs(args string) error {
	const variable = "CNI_ARGS"
	var unknown []string
	ignore := false
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return badVariable(variable, pair, "KEY=VALUE pairs separated by ';'")
		}
		switch key {
		case "K8S_POD_NAMESPACE":
			a.Namespace = value
		case "K8S_POD_NAME":
			a.Pod = value
		case "K8S_POD_UID":
			a.PodUID = value
		case "K8S_POD_INFRA_CONTAINER_ID": // the same as CNI_CONTAINERID
		case "IgnoreUnknown":
			switch strings.ToLower(value) {
			case "1", "true":
				ignore = true
			case "0", "false":
			default:
				return badVariable(variable, pair, "IgnoreUnknown=true or false")
			}
			continue
		default:
			unknown = append(unknown, pair)
			continue
		}
		if !objectName(value) {
			return badVariable(variable, pair, "the name of a Kubernetes object")
		}
	}
	if len(unknown) > 0 && !ignore {
		return badVariable(variable, strings.Join(unknown, ";"), "K8S_POD_* keys, or IgnoreUnknown=true")
	}
	return nil
}

func badVariable(name, value, want string) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables,
		fmt.Sprintf("%s: %q is not valid", name, shorten([]byte(value))), "expected "+want)
}

// objectName reports whether s has only characters that names and UIDs of Kubernetes objects have.
func objectName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' {
			return false
		}
	}
	return len(s) <= 253
}

func printable(s string) bool {
	for _, r := range s {
		if r <= ' ' || r == 0x7f || r == 0xfffd {
			return false
		}
	}
	return true
}
