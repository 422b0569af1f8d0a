// Package plugin is strait-cni: it checks what the runtime said, calls the agent and prints the answer.
//
// With no agent, ADD and CHECK say "try again later" (code 11) and STATUS says so (code 50). DEL is written to the queue
// and succeeds. GC fails with code 11 and is never queued: its list of valid attachments is true only at the moment of the
// call, and replaying it later would remove pods started since.
package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/strait-net/strait/internal/cni/wire"
)

// Versions returns the versions of the CNI specification that strait-cni speaks.
func Versions() version.PluginInfo { return version.PluginSupports(wire.Versions()...) }

// Funcs returns the plugin's answers to the CNI verbs.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
}

func request(command wire.Command, args *skel.CmdArgs) (wire.Request, wire.Config, error) {
	req := wire.Request{
		Command:     command,
		ContainerID: args.ContainerID,
		NetNS:       args.Netns,
		IfName:      args.IfName,
		Args:        args.Args,
		Config:      json.RawMessage(args.StdinData),
	}
	conf, err := wire.ParseConfig(args.StdinData)
	return req, conf, err
}

// call asks the agent; without one the error has the code.
func call(command wire.Command, args *skel.CmdArgs, code uint) (json.RawMessage, error) {
	req, conf, err := request(command, args)
	if err != nil {
		return nil, err
	}
	result, err := wire.Call(conf.Socket, req, wire.Timeout)
	if errors.Is(err, wire.ErrUnavailable) {
		return nil, types.NewError(code, err.Error(), "")
	}
	return result, err
}

func add(args *skel.CmdArgs) error {
	result, err := call(wire.Add, args, types.ErrTryAgainLater)
	if err != nil {
		return err
	}
	if _, err := os.Stdout.Write(append(result, '\n')); err != nil {
		return types.NewError(types.ErrIOFailure, fmt.Sprintf("write result: %v", err), "")
	}
	return nil
}

func check(args *skel.CmdArgs) error {
	_, err := call(wire.Check, args, types.ErrTryAgainLater)
	return err
}

func gc(args *skel.CmdArgs) error {
	_, err := call(wire.GC, args, types.ErrTryAgainLater)
	return err
}

func status(args *skel.CmdArgs) error {
	_, err := call(wire.Status, args, types.ErrPluginNotAvailable)
	return err
}

func del(args *skel.CmdArgs) error {
	req, conf, err := request(wire.Del, args)
	if err != nil {
		return err
	}
	_, err = wire.Call(conf.Socket, req, wire.Timeout)
	if !errors.Is(err, wire.ErrUnavailable) {
		return err
	}
	a, invalid := req.Attachment(conf.Name)
	if invalid != nil {
		return invalid
	}
	if queued := wire.NewQueue(conf.StateDir).Put(a, req); queued != nil {
		return types.NewError(types.ErrIOFailure, queued.Error(), err.Error())
	}
	return nil
}
