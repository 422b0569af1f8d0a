//go:build !linux

package cli

import "github.com/spf13/cobra"

// nodeCmds are the verbs that work on the node they are typed on; nodes run Linux.
func (a *app) nodeCmds() []*cobra.Command { return nil }
