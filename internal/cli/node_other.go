//go:build !linux

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/strait-net/strait/internal/localapi"
)

// Nodes run Linux: elsewhere there is nothing to work on or to read.

var errNoNode = errors.New("this machine is no node")

func (a *app) nodeCmds() []*cobra.Command { return nil }

func inNamespace(string, func() error) error { return errNoNode }

func pinned() bool { return false }

func kernelObjects() (objects, error) { return objects{}, errNoNode }

func kernelDump(string, int, ...string) (localapi.MapDump, error) {
	return localapi.MapDump{}, errNoNode
}

func proxyProcesses() ([]localapi.ProxyTrace, error) { return nil, nil }

func removeLegacyRules(context.Context) ([]string, error) { return nil, errNoNode }
