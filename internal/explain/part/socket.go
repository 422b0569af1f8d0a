package part

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/strait-net/strait/internal/bpf"
	"github.com/strait-net/strait/internal/datapath/maps"
	"github.com/strait-net/strait/internal/localapi"
)

// chooseBackend is what the socket programs do when the sender names a service: worked out from the maps, for these programs cannot be tried.
// false: the sender gets an error.
func (w *walk) chooseBackend(cookie uint64, addresses []netip.Addr) (bool, error) {
	if w.packet.Answer {
		return true, nil
	}
	asked := unmapped(w.q.Service)
	if !asked.IsValid() {
		asked = w.packet.Target
	}
	if !asked.IsValid() {
		return false, localapi.BadQuestion("packet without target")
	}
	w.packet.Target = asked
	if p := w.packet.Protocol; !w.sockets || !w.servicesOn() || p != unix.IPPROTO_TCP && p != unix.IPPROTO_UDP {
		return true, nil
	}
	svc, at, ok, err := w.serviceAt(asked, cookie == w.loaded.NetnsCookie)
	if err != nil || !ok {
		return true, err
	}
	const place = "socket"
	entry := w.serviceEntry(svc, at)
	client := ofFamily(addresses, asked.Addr())
	if svc.Flags&bpf.ServiceSources != 0 {
		admitted, err := w.Maps.Admits(svc.ID, client)
		if err != nil {
			return false, err
		}
		if !admitted {
			w.refuse(place, "the program gets EPERM", entry, fmt.Sprintf("loadBalancerSourceRanges of service %s do not contain %s", w.serviceName(at), client))
			return false, nil
		}
	}
	backends, err := w.Maps.Backends(svc.Set, svc.Count)
	if err != nil {
		return false, err
	}
	if len(backends) == 0 {
		w.refuse(place, "the program gets ECONNREFUSED", entry, "service "+w.serviceName(at)+" has no backends")
		return false, nil
	}
	chosen, err := w.backendOf(svc, backends, client)
	if err != nil {
		return false, err
	}
	for _, b := range backends {
		w.part.Backends = append(w.part.Backends, b.AddrPort)
	}
	w.packet.Target = chosen
	w.on(place, fmt.Sprintf("asks for service %s at %s and is given backend %s%s", w.serviceName(at), asked, chosen, inBrackets(w.whose(chosen.Addr()), chosen.Addr())), entry,
		fact("algorithm", svc.Algorithm), fact("backends", w.part.Backends))
	return true, nil
}

// serviceEntry is a row of strait_service.
func (w *walk) serviceEntry(svc maps.Service, at netip.AddrPort) string {
	backends := "backends"
	if svc.Count == 1 {
		backends = "backend"
	}
	return fmt.Sprintf("%s %s/%s, set %d of %d %s", bpf.DatapathMapStraitService, at, protocolName(w.packet.Protocol), svc.Set, svc.Count, backends)
}

// inBrackets is who has an address, if that is more than the address.
func inBrackets(who string, a netip.Addr) string {
	if who == a.String() {
		return ""
	}
	return " (" + who + ")"
}

// backendOf is the backend that is followed: the one that was asked for, that the client stays with, or the first.
func (w *walk) backendOf(svc maps.Service, all []maps.Backend, client netip.Addr) (netip.AddrPort, error) {
	if want := unmapped(w.q.Backend); want.IsValid() {
		for _, b := range all {
			if b.AddrPort == want {
				return want, nil
			}
		}
		var have []netip.AddrPort
		for _, b := range all {
			have = append(have, b.AddrPort)
		}
		return netip.AddrPort{}, localapi.BadQuestion("backend %s: the service has %v", want, have)
	}
	if svc.Flags&bpf.ServiceAffinity != 0 && client.IsValid() {
		b, ok, err := w.Maps.Stays(client, svc.Set)
		if err != nil {
			return netip.AddrPort{}, err
		}
		if ok {
			return b.AddrPort, nil
		}
	}
	return all[0].AddrPort, nil
}

// serviceAt is lb_find of bpf/lib/lb.h, with sock_service of bpf/lib/sock.h.
func (w *walk) serviceAt(a netip.AddrPort, node bool) (svc maps.Service, at netip.AddrPort, ok bool, err error) {
	loopback := a.Addr().IsLoopback() || a.Addr().IsUnspecified()
	if loopback && !node {
		return svc, a, false, nil
	}
	front := maps.Frontend{AddrPort: a, Protocol: w.packet.Protocol}
	if !a.Addr().IsUnspecified() {
		svc, ok, err = w.Maps.Service(front)
		if err != nil || ok && (!loopback || svc.Flags&(bpf.ServiceNodePort|bpf.ServiceHostPort) != 0) {
			return svc, a, ok, err
		}
	}
	wild := netip.IPv4Unspecified()
	if a.Addr().Is6() {
		wild = netip.IPv6Unspecified()
	}
	front.AddrPort = netip.AddrPortFrom(wild, a.Port())
	svc, ok, err = w.Maps.Service(front)
	if err != nil || !ok || loopback {
		return svc, front.AddrPort, ok && svc.Flags&(bpf.ServiceNodePort|bpf.ServiceHostPort) != 0, err
	}
	where := bpf.RemoteHost
	if svc.Flags&bpf.ServiceNodePort != 0 && svc.Flags&bpf.ServiceOuterLocal == 0 {
		where |= bpf.RemoteNode
	}
	r, known, err := w.Maps.Remote(a.Addr())
	return svc, front.AddrPort, known && r.Flags&where != 0, err
}

// serviceName names the service of a frontend as Kubernetes does.
func (w *walk) serviceName(at netip.AddrPort) string {
	for f := range w.State.Frontends.Snapshot().All() {
		if f.Port == at.Port() && uint8(f.Protocol) == w.packet.Protocol && (f.Address == at.Addr() || at.Addr().IsUnspecified() && (!f.Address.IsValid() || f.Address.IsUnspecified())) {
			return fmt.Sprint(f.Service)
		}
	}
	return at.String()
}

func ofFamily(addresses []netip.Addr, like netip.Addr) netip.Addr {
	for _, a := range addresses {
		if a.Is6() == like.Is6() {
			return a
		}
	}
	return netip.Addr{}
}
