package control

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/strait-net/strait/internal/config"
	"github.com/strait-net/strait/internal/identity"
	"github.com/strait-net/strait/internal/policy"
	"github.com/strait-net/strait/internal/state"
	"github.com/strait-net/strait/internal/table"
)

// peers knows who has which address, as far as selectors in use tell peers apart.
//
// Areas are prefixes whose addresses are all the same: nodes, pod CIDRs, CIDRs of selectors, the world. Holders are pods, with whole addresses.
// A prefix has a row in the kernel only if its selectors differ from those of the area around it. Of a pod that has no need of a row, in an
// area whose pods are unknown, nothing is kept: so it stays as long as no selector of pods means it, and no other asks for a port by name,
// because those mean an unknown address of the cluster and a pod alike.
type peers struct {
	state *state.State
	own   string
	cfg   config.Config

	index   *policy.Index
	ids     *policy.Identities
	idents  map[identity.ID]*ident
	areas   map[netip.Prefix]*area
	lengths [2][129]int // number of areas by family and length
	holders map[string]*holder
	owners  map[netip.Addr]string // of addresses that holders have: their keys
	claims  podClaims
	rows    map[netip.Prefix]*ident
	short   shortage
	// servers and services are addresses of API servers, and of endpoints of services that selectors ask for.
	servers  map[netip.Addr]bool
	services map[netip.Addr][]string

	fresh        []policy.Wanted // selectors in use whose peers have not been looked for
	released     []policy.Wanted // no longer in use; they go on telling peers apart until tidyAt
	tidyAt       time.Time
	gone         map[string]bool // keys of selectors whose peers have to be looked at again
	stale        map[string]bool // holders to be looked at again
	solidChanged bool            // nodes or pod CIDRs may be others
	areasChanged bool            // selectors of areas may be others
	serviceMoved bool

	touched       map[netip.Prefix]bool // rows may differ from what the writer was told
	touchedIdents map[*ident]bool
	unshown       map[netip.Prefix]bool // rows not in the table of identities
}

// ident is an identity that somebody has.
type ident struct {
	policy.Identity
	holders int  // areas and addresses
	rows    int  // of the kernel
	told    bool // the writer has the answers of all programs to it
}

// area is a prefix all of whose addresses are the same.
type area struct {
	peer  policy.Peer
	solid bool   // of a node, of pods, the world: not only the boundary of a selector
	node  string // whose pods are here, empty: not pods of one node alone
	ident *ident
}

// holder is a pod, or a local attachment, with the addresses of which something is kept.
type holder struct{ at []placed }

type placed struct {
	addr  netip.Addr
	ident *ident
}

// attachmentMark begins the keys of holders that are local attachments; the others are keys of pods.
const attachmentMark = "@"

func newPeers(st *state.State, own string, cfg config.Config) *peers {
	return &peers{
		state: st, own: own, cfg: cfg, index: policy.NewIndex(), ids: policy.NewIdentities(), idents: map[identity.ID]*ident{},
		areas: map[netip.Prefix]*area{}, holders: map[string]*holder{}, owners: map[netip.Addr]string{}, rows: map[netip.Prefix]*ident{}, claims: newPodClaims(),
		servers: map[netip.Addr]bool{}, services: map[netip.Addr][]string{}, gone: map[string]bool{}, stale: map[string]bool{},
		touched: map[netip.Prefix]bool{}, touchedIdents: map[*ident]bool{}, unshown: map[netip.Prefix]bool{}, solidChanged: true,
		short: newShortage(),
	}
}

func (p *peers) dirty() bool {
	return len(p.fresh)+len(p.gone)+len(p.stale)+len(p.touched) > 0 || p.solidChanged || p.areasChanged
}

// changedPods notes pods that may match other selectors, or have other addresses.
func (p *peers) changedPods(changes []table.Change[state.Pod], s *subjects) {
	for _, c := range changes {
		key := c.Row.Key()
		p.stale[key] = true
		for _, l := range s.byPod[key] {
			p.stale[attachmentMark+l.key] = true
		}
		p.changedClaims(key, &c)
	}
}

func (p *peers) changedLocals(moved []string) {
	for _, key := range moved {
		p.stale[attachmentMark+key] = true
	}
}

// changedNamespaces notes the pods whose namespace has changed.
func (p *peers) changedNamespaces(changes []table.Change[state.Namespace]) {
	if len(changes) == 0 {
		return
	}
	pods := p.state.Pods.Snapshot()
	changed := map[string]bool{}
	for _, c := range changes {
		changed[c.Row.Name] = true
		for pod := range state.PodsOf(pods, c.Row.Name) {
			p.stale[pod.Key()] = true
		}
	}
	for row := range p.state.Endpoints.Snapshot().All() {
		if changed[row.Namespace] {
			p.stale[attachmentMark+row.Key()] = true
		}
	}
}

// changedAreas notes that nodes, API servers or endpoints of services in use may be others.
func (p *peers) changedAreas(solid bool, changes []table.Change[state.EndpointSlice]) {
	p.solidChanged = p.solidChanged || solid
	asked := p.index.Services()
	for _, c := range changes {
		name := c.Row.Service.String()
		if name == apiServerService {
			p.solidChanged = true
		}
		if _, found := slices.BinarySearch(asked, name); found {
			p.serviceMoved = true
		}
	}
}

// use makes selectors tell peers apart.
func (p *peers) use(selectors []policy.Wanted) {
	for _, w := range selectors {
		if p.index.Add(w) {
			p.fresh = append(p.fresh, w)
		}
	}
}

// release ends one use of selectors, a while from now: another program may want them again, and who is who changes less often.
func (p *peers) release(selectors []policy.Wanted) {
	if len(selectors) == 0 {
		return
	}
	if len(p.released) == 0 {
		p.tidyAt = time.Now().Add(tidyAfter)
	}
	p.released = append(p.released, selectors...)
}

// tidy forgets selectors that have not been used for long enough.
func (p *peers) tidy(now time.Time) {
	if len(p.released) == 0 || now.Before(p.tidyAt) {
		return
	}
	for _, w := range p.released {
		if p.index.Remove(w) {
			p.gone[w.Key] = true
			p.areasChanged = true
		}
	}
	p.released, p.tidyAt = nil, time.Time{}
}

// forgetReleased ends the use of released selectors now.
func (p *peers) forgetReleased() { p.tidy(p.tidyAt) }

// place finds out who has which address.
func (p *peers) place(s *subjects) {
	if p.solidChanged {
		p.readServers()
	}
	for _, w := range p.fresh {
		switch w.Selector.Kind {
		case policy.SelectPods:
		case policy.SelectService:
			p.serviceMoved, p.areasChanged = true, true
		default:
			p.areasChanged = true
		}
	}
	if p.serviceMoved {
		p.readServices()
	}
	if p.solidChanged || p.areasChanged {
		p.placeAreas()
	}
	if p.solidChanged { // what is believed depends on whose pods are where
		p.doubtAll()
	}
	p.findFresh()
	p.findGone()
	for len(p.stale) > 0 { // who gives up an address may leave it to others
		stale := p.stale
		p.stale = map[string]bool{}
		for key := range stale {
			p.hold(key, s)
		}
	}
	clear(p.gone)
	p.fresh, p.solidChanged, p.areasChanged, p.serviceMoved = nil, false, false, false
}

// findFresh marks the pods that new selectors mean.
func (p *peers) findFresh() {
	if len(p.fresh) == 0 {
		return
	}
	fresh := policy.NewIndex()
	everywhere, everyone, named, onlyPods := false, false, false, true
	namespaces := map[string]bool{}
	for _, w := range p.fresh {
		fresh.Add(w)
		onlyPods = onlyPods && w.Selector.Kind == policy.SelectPods
		named = named || w.Selector.Kind != policy.SelectPods && len(w.Ports) > 0 // an unknown address has no ports
		switch within := namespacesOf(w.Selector); {
		case w.Selector.Kind == policy.SelectEntity && w.Selector.Entity == policy.EntityUnmanaged:
			everyone = true // an unknown address and a pod are not alike to it
		case w.Selector.Kind == policy.SelectPods && within == nil:
			everywhere = true
		case w.Selector.Kind == policy.SelectPods:
			for _, ns := range within {
				namespaces[ns] = true
			}
		}
	}
	if !onlyPods { // pods of which nothing is kept are meant by the others as the area around them is
		for key := range p.holders {
			p.stale[key] = true
		}
	}
	for row := range p.state.Endpoints.Snapshot().All() {
		p.stale[attachmentMark+row.Key()] = true
	}
	pods, spaces := p.state.Pods.Snapshot(), p.state.Namespaces.Snapshot()
	look := func(pod state.Pod) {
		if pod.HostNetwork || len(pod.Addresses) == 0 {
			return
		}
		peer := podPeer(&pod, spaces)
		if everyone || named && len(pod.Ports) > 0 || len(fresh.Match(&peer)) > 0 {
			p.stale[pod.Key()] = true
		}
	}
	if everywhere || everyone || named {
		for pod := range pods.All() {
			look(pod)
		}
		return
	}
	for ns := range namespaces {
		for pod := range state.PodsOf(pods, ns) {
			look(pod)
		}
	}
}

// namespacesOf returns the namespaces that a selector of pods is limited to; nil: it is not.
func namespacesOf(s policy.Selector) []string {
	for _, r := range s.Requirements {
		if r.Source == policy.NamespaceName && r.Op == policy.In {
			return r.Values
		}
	}
	return nil
}

// findGone marks the pods that matched selectors which are gone.
func (p *peers) findGone() {
	if len(p.gone) == 0 {
		return
	}
	affected := map[*ident]bool{}
	for _, id := range p.idents {
		for i := range id.Matches {
			if p.gone[id.Matches[i].Selector] {
				affected[id] = true
				break
			}
		}
	}
	for key, h := range p.holders {
		for _, at := range h.at {
			if affected[at.ident] {
				p.stale[key] = true
			}
		}
	}
}

// podPeer is a pod without what depends on the address.
func podPeer(pod *state.Pod, namespaces table.Snapshot[state.Namespace]) policy.Peer {
	ns, _, _ := namespaces.Get(pod.Namespace)
	return policy.Peer{
		Kind: policy.PodPeer, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount, Labels: pod.Labels,
		NamespaceLabels: ns.Labels, Ports: pod.Ports,
	}
}

// resolve returns who a holder is, and its addresses as they are now, as far as they are to be believed; none: it is nobody any more.
func (p *peers) resolve(key string, s *subjects) (policy.Peer, []netip.Addr) {
	if attachment, local := strings.CutPrefix(key, attachmentMark); local {
		l := s.locals[attachment]
		if l == nil {
			return policy.Peer{}, nil
		}
		return l.peer, l.addrs
	}
	pod, _, ok := p.state.Pods.Snapshot().Get(key)
	if !ok || pod.HostNetwork {
		return policy.Peer{}, nil
	}
	return podPeer(&pod, p.state.Namespaces.Snapshot()), p.believed(&pod, s)
}

// hold brings what is kept of a holder up to date.
func (p *peers) hold(key string, s *subjects) {
	peer, addrs := p.resolve(key, s)
	h := p.holders[key]
	if h == nil && len(addrs) == 0 {
		return
	}
	var next []placed
	for _, a := range addrs {
		if owner := p.owners[a]; owner != key && strings.HasPrefix(owner, attachmentMark) && !strings.HasPrefix(key, attachmentMark) {
			continue // what is attached here is here
		}
		if at, keep := p.at(peer, a); keep {
			next = append(next, at)
			p.acquire(a, key)
		} else if owner := p.owners[a]; owner != "" {
			if owner != key {
				p.take(a, owner)
			}
			p.disown(a)
		}
	}
	if h != nil {
		for _, old := range h.at {
			if !slices.ContainsFunc(next, func(n placed) bool { return n.addr == old.addr }) && p.owners[old.addr] == key {
				p.disown(old.addr)
				p.heir(old.addr, key)
			}
			p.let(old.ident)
		}
	}
	if len(next) == 0 {
		delete(p.holders, key)
		return
	}
	p.holders[key] = &holder{next}
}

// at returns who has an address of a pod; keep is false when nothing tells it from what is around it.
func (p *peers) at(peer policy.Peer, a netip.Addr) (_ placed, keep bool) {
	peer.Prefix, peer.APIServer, peer.Services = host(a), p.servers[a], p.services[a]
	id := p.intern(&peer)
	around := p.around(host(a), true)
	if !differs(id, around) && around.peer.Kind == policy.UnknownPeer && !peer.APIServer {
		p.forgetUnused(id)
		return placed{}, false
	}
	id.holders++
	p.touched[host(a)] = true
	return placed{a, id}, true
}

// acquire makes an address a holder's; what another holder had there is taken away.
func (p *peers) acquire(a netip.Addr, key string) {
	if before := p.owners[a]; before != "" && before != key {
		p.take(a, before)
	}
	p.owners[a] = key
}

// take removes an address from what is kept of a holder.
func (p *peers) take(a netip.Addr, key string) {
	h := p.holders[key]
	if h == nil {
		return
	}
	h.at = slices.DeleteFunc(slices.Clone(h.at), func(at placed) bool {
		if at.addr == a {
			p.let(at.ident)
		}
		return at.addr == a
	})
	if len(h.at) == 0 {
		delete(p.holders, key)
	}
}

// disown makes an address nobody's.
func (p *peers) disown(a netip.Addr) {
	delete(p.owners, a)
	p.touched[host(a)] = true
}

// heir marks who else has an address that a holder has given up.
func (p *peers) heir(a netip.Addr, former string) {
	for pod := range p.state.Pods.Snapshot().By(state.PodsByAddress, a.String()) {
		if pod.Key() != former {
			p.stale[pod.Key()] = true
		}
	}
	p.doubt(p.claimAt(a))
}

// intern returns the identity of a peer.
func (p *peers) intern(peer *policy.Peer) *ident {
	i := p.ids.Of(peer.Kind, p.index.Match(peer))
	id := p.idents[i.ID]
	if id == nil {
		id = &ident{Identity: i}
		p.idents[i.ID] = id
	}
	return id
}

// let ends one use of an identity.
func (p *peers) let(id *ident) {
	id.holders--
	p.forgetUnused(id)
}

func (p *peers) forgetUnused(id *ident) {
	if id.holders == 0 && id.rows == 0 && !id.told {
		delete(p.idents, id.ID)
		p.ids.Forget(id.ID)
	}
}

// differs reports whether a prefix needs a row: the one around it says something else.
func differs(id *ident, around *area) bool {
	if around == nil {
		return true
	}
	return (id.Kind == policy.HostPeer) != (around.peer.Kind == policy.HostPeer) || !slices.Equal(id.Matches, around.ident.Matches)
}

// around returns the smallest area that a prefix lies in; equal: which may be the prefix itself.
func (p *peers) around(prefix netip.Prefix, equal bool) *area {
	bits := prefix.Bits()
	if !equal {
		bits--
	}
	family := familyOf(prefix)
	for ; bits >= 0; bits-- {
		if p.lengths[family][bits] == 0 {
			continue
		}
		if outer, err := prefix.Addr().Prefix(bits); err == nil {
			if a := p.areas[outer]; a != nil {
				return a
			}
		}
	}
	return nil
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// row returns whose row a prefix is to have in the kernel, nil: it has none.
func (p *peers) row(prefix netip.Prefix) *ident {
	if prefix.IsSingleIP() {
		if h := p.holders[p.owners[prefix.Addr()]]; h != nil {
			i := slices.IndexFunc(h.at, func(at placed) bool { return at.addr == prefix.Addr() })
			if i >= 0 {
				if id := h.at[i].ident; differs(id, p.around(prefix, false)) {
					return id
				}
				return nil
			}
		}
	}
	a := p.areas[prefix]
	if a == nil {
		return nil
	}
	// Those of everything are there always: prefixes of IPv6 can contain the v4-mapped form of IPv4, and when the table is full they can be given
	// to somebody else.
	if prefix.Bits() == 0 || differs(a.ident, p.around(prefix, false)) {
		return a.ident
	}
	return nil
}

// change adds to c what has moved.
func (p *peers) change(c *policy.Change) {
	for prefix := range p.touched {
		id, before := p.fitting(prefix), p.rows[prefix]
		if id != before {
			if before != nil {
				before.rows--
				p.touchedIdents[before] = true
				delete(p.rows, prefix)
			}
			if id != nil {
				id.rows++
				p.touchedIdents[id] = true
				p.rows[prefix] = id
			}
		}
		move := policy.Move{Prefix: prefix, Gone: id == nil}
		if id != nil {
			move.To = id.ID
		}
		c.Moves = append(c.Moves, move)
	}
}

// accepted notes that the writer knows everything.
func (p *peers) accepted() {
	for prefix := range p.touched {
		p.unshown[prefix] = true
	}
	clear(p.touched)
	for id := range p.touchedIdents {
		id.told = id.rows > 0
		p.forgetUnused(id)
	}
	clear(p.touchedIdents)
}

// publish shows rows that have changed.
func (p *peers) publish(t *table.Table[state.Identity]) {
	if len(p.unshown) == 0 {
		return
	}
	t.Write(func(tx *table.Txn[state.Identity]) {
		for prefix := range p.unshown {
			id := p.rows[prefix]
			if id == nil {
				tx.Delete(prefix.String())
				continue
			}
			row := state.Identity{Prefix: prefix, ID: id.ID, Kind: id.Kind, Matches: id.Matches}
			if id.Kind == policy.PodPeer {
				row.Pod = p.podAt(prefix.Addr())
			}
			tx.Insert(row)
		}
	})
	clear(p.unshown)
}

// podAt returns the pod whose holder has an address.
func (p *peers) podAt(a netip.Addr) string {
	attachment, local := strings.CutPrefix(p.owners[a], attachmentMark)
	if !local {
		return attachment
	}
	row, _, _ := p.state.Endpoints.Snapshot().Get(attachment)
	return row.Namespace + "/" + row.Pod
}
