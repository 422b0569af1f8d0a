// Command flanneld is flannel's own vxlan and host-gw backends and iptables rules with leases exchanged through a directory instead
// of etcd or the API server. What it programs into the kernel is flannel's code, unchanged.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw" // registers itself
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"  // registers itself
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
)

// resync is when flannel checks its iptables rules again, in seconds. Its default of 5 would run dozens of iptables processes
// during the samples of every path; the rules in the kernel are the same.
const resync = 24 * 3600

type options struct {
	node, leases, device, network, network6, subnet, subnet6, kind string
}

func main() {
	var o options
	flag.StringVar(&o.node, "node", "", "name of this node, the name of its lease file")
	flag.StringVar(&o.leases, "leases", "", "directory all nodes write their leases to")
	flag.StringVar(&o.device, "device", "eth0", "device between the nodes")
	flag.StringVar(&o.network, "network", "", "IPv4 CIDR of all pods")
	flag.StringVar(&o.network6, "network6", "", "IPv6 CIDR of all pods")
	flag.StringVar(&o.subnet, "subnet", "", "IPv4 CIDR of this node's pods")
	flag.StringVar(&o.subnet6, "subnet6", "", "IPv6 CIDR of this node's pods")
	flag.StringVar(&o.kind, "backend", "vxlan", "vxlan or host-gw")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "flanneld:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	config, err := subnet.ParseConfig(fmt.Sprintf(`{"Network":%q,"IPv6Network":%q,"EnableIPv6":true,"EnableIPv4":true,"Backend":{"Type":%q}}`,
		o.network, o.network6, o.kind))
	if err != nil {
		return fmt.Errorf("network configuration: %w", err)
	}
	ext, err := external(o.device)
	if err != nil {
		return err
	}
	manager := &directory{options: o, config: config}
	be, err := backend.NewManager(ctx, manager, ext).GetBackend(o.kind)
	if err != nil {
		return fmt.Errorf("backend %s: %w", o.kind, err)
	}
	var wg sync.WaitGroup
	network, err := be.RegisterNetwork(ctx, &wg, config)
	if err != nil {
		return fmt.Errorf("register network: %w", err)
	}
	rules := &iptables.IPTablesManager{}
	if err := rules.Init(ctx); err != nil {
		return fmt.Errorf("iptables: %w", err)
	}
	var none ip.IP4Net
	none6 := ip.IP6Net{IP: (*ip.IP6)(big.NewInt(0))} // what flannel passes when there was no previous subnet
	err = rules.SetupAndEnsureMasqRules(ctx, config.Network, none, none, config.IPv6Network, none6, none6, network.Lease(), resync, false)
	if err != nil {
		return fmt.Errorf("masquerade rules: %w", err)
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resync)
	fmt.Printf("ready mtu %d\n", network.MTU())
	network.Run(ctx)
	wg.Wait()
	return nil
}

func external(device string) (*backend.ExternalInterface, error) {
	iface, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", device, err)
	}
	v4, err := ip.GetInterfaceIP4Addrs(iface)
	if err != nil || len(v4) == 0 {
		return nil, fmt.Errorf("IPv4 address of %s: %w", device, err)
	}
	v6, err := ip.GetInterfaceIP6Addrs(iface)
	if err != nil || len(v6) == 0 {
		return nil, fmt.Errorf("IPv6 address of %s: %w", device, err)
	}
	return &backend.ExternalInterface{Iface: iface, IfaceName: device, IfaceAddr: v4[0], IfaceV6Addr: v6[0], ExtAddr: v4[0], ExtV6Addr: v6[0]}, nil
}

// directory is a subnet.Manager: each node's lease is one file.
type directory struct {
	options options
	config  *subnet.Config
}

func (d *directory) GetNetworkConfig(context.Context) (*subnet.Config, error) { return d.config, nil }

func (d *directory) HandleSubnetFile(string, *subnet.Config, bool, ip.IP4Net, ip.IP6Net, int) error {
	return nil
}

func (d *directory) AcquireLease(_ context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	_, v4, err := net.ParseCIDR(d.options.subnet)
	if err != nil {
		return nil, err
	}
	_, v6, err := net.ParseCIDR(d.options.subnet6)
	if err != nil {
		return nil, err
	}
	l := &lease.Lease{EnableIPv4: true, EnableIPv6: true, Subnet: ip.FromIPNet(v4), IPv6Subnet: ip.FromIP6Net(v6), Attrs: *attrs,
		Expiration: time.Now().Add(24 * time.Hour)}
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(d.options.leases, d.options.node+".json")
	if err := os.WriteFile(file+".new", text, 0o644); err != nil {
		return nil, err
	}
	return l, os.Rename(file+".new", file)
}

func (d *directory) RenewLease(context.Context, *lease.Lease) error { return nil }

func (d *directory) WatchLease(ctx context.Context, _ ip.IP4Net, _ ip.IP6Net, _ chan []lease.LeaseWatchResult) error {
	<-ctx.Done()
	return ctx.Err()
}

// WatchLeases sends a snapshot whenever the number of lease files changes.
func (d *directory) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	seen := -1
	for {
		leases, err := d.read()
		if err != nil {
			return err
		}
		if len(leases) != seen {
			seen = len(leases)
			receiver <- []lease.LeaseWatchResult{{Snapshot: leases}}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (d *directory) read() ([]lease.Lease, error) {
	files, err := filepath.Glob(filepath.Join(d.options.leases, "*.json"))
	if err != nil {
		return nil, err
	}
	var leases []lease.Lease
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		var l lease.Lease
		if err := json.Unmarshal(text, &l); err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		leases = append(leases, l)
	}
	return leases, nil
}

func (d *directory) CompleteLease(ctx context.Context, _ *lease.Lease, _ *sync.WaitGroup) error {
	<-ctx.Done()
	return nil
}

func (d *directory) GetStoredMacAddresses(context.Context) (string, string) { return "", "" }

func (d *directory) GetStoredPublicIP(context.Context) (string, string) { return "", "" }

func (d *directory) Name() string { return "directory " + d.options.leases }
