package testkit

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const xdpPass = 2 // XDP_PASS

// wantsXDP says whether nodes are configured to have XDP on their devices.
func wantsXDP(config map[string]any) bool {
	services, _ := config["services"].(map[string]any)
	return services["xdp"] == "native"
}

// passXDP gives a device an XDP program that passes all on. What XDP sends back by a veth device arrives at the other end only if that has
// one as well. It stays until the device goes.
func passXDP(link netlink.Link) error {
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "pass", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if err != nil {
		return fmt.Errorf("load XDP program for %s: %w", link.Attrs().Name, err)
	}
	defer pass.Close()
	return netlink.LinkSetXdpFdWithFlags(link, pass.FD(), unix.XDP_FLAGS_DRV_MODE)
}
