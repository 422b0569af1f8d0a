package bpf

import (
	"encoding/binary"
	"net/netip"
)

// The structs and enums of bpf/lib/types.h without the object's prefix.
type (
	Addr            = DatapathAddr
	SockaddrKey     = DatapathSockaddrKey
	Endpoint        = DatapathEndpoint
	IpcacheKey      = DatapathIpcacheKey
	Remote          = DatapathRemote
	RemoteFlags     = DatapathRemoteFlags
	Device          = DatapathDevice
	CtKey           = DatapathCtKey
	CtEntry         = DatapathCtEntry
	CtFlags         = DatapathCtFlags
	NatKey          = DatapathNatKey
	NatEntry        = DatapathNatEntry
	FragKey         = DatapathFragKey
	FragEntry       = DatapathFragEntry
	Service         = DatapathService
	ServiceFlags    = DatapathServiceFlags
	Algorithm       = DatapathAlgorithm
	SlotKey         = DatapathSlotKey
	Slot            = DatapathSlot
	BackendFlags    = DatapathBackendFlags
	Load            = DatapathLoad
	AffinityKey     = DatapathAffinityKey
	Affinity        = DatapathAffinity
	Netns           = DatapathNetns
	SourceKey       = DatapathSourceKey
	AnnounceKey     = DatapathAnnounceKey
	Announce        = DatapathAnnounce
	ServiceMode     = DatapathServiceMode
	Backend         = DatapathBackend
	PolicyDirection = DatapathPolicyDirection
	PolicyFlags     = DatapathPolicyFlags
	PolicyVerdict   = DatapathPolicyVerdict
	PolicyKey       = DatapathPolicyKey
	PolicyEntry     = DatapathPolicyEntry
	PortKey         = DatapathPortKey
	NodeState       = DatapathNodeState
	SkPeer          = DatapathSkPeer
	SkUse           = DatapathSkUse
	DgramKey        = DatapathDgramKey
	Counter         = DatapathCounter
	Event           = DatapathEvent
	EventKind       = DatapathEventKind
	EventFlags      = DatapathEventFlags
	Hook            = DatapathHook
	MutedKey        = DatapathMutedKey
	Muted           = DatapathMuted
	Lost            = DatapathLost
	Network         = DatapathNetwork
)

// Values of cfg_network.
const (
	NetworkIsland   = DatapathNetworkNETWORK_ISLAND
	NetworkFlat     = DatapathNetworkNETWORK_FLAT
	NetworkIsolated = DatapathNetworkNETWORK_ISOLATED
)

// Flags of an ipcache row.
const (
	RemoteHost      = DatapathRemoteFlagsREMOTE_HOST
	RemoteNode      = DatapathRemoteFlagsREMOTE_NODE
	RemotePod       = DatapathRemoteFlagsREMOTE_POD
	RemoteAPIServer = DatapathRemoteFlagsREMOTE_APISERVER
	RemoteTunnel    = DatapathRemoteFlagsREMOTE_TUNNEL
)

// Directions of a policy.
const (
	PolicyEgress  = DatapathPolicyDirectionPOLICY_EGRESS
	PolicyIngress = DatapathPolicyDirectionPOLICY_INGRESS
)

// Flags of a policy's verdict.
const (
	PolicyAllow     = DatapathPolicyFlagsPOLICY_ALLOW
	PolicyAudit     = DatapathPolicyFlagsPOLICY_AUDIT
	PolicyAuditDeny = DatapathPolicyFlagsPOLICY_AUDIT_DENY
)

// Flags of a connection.
const (
	CtHiBegan = DatapathCtFlagsCT_HI_BEGAN
	CtReplied = DatapathCtFlagsCT_REPLIED
	CtFinLo   = DatapathCtFlagsCT_FIN_LO
	CtFinHi   = DatapathCtFlagsCT_FIN_HI
	CtRst     = DatapathCtFlagsCT_RST
	CtNat     = DatapathCtFlagsCT_NAT
	CtService = DatapathCtFlagsCT_SERVICE
	CtFront   = DatapathCtFlagsCT_FRONT
	CtDSR     = DatapathCtFlagsCT_DSR
	CtStack   = DatapathCtFlagsCT_STACK
	CtVirtual = DatapathCtFlagsCT_VIRTUAL
	CtSocket  = DatapathCtFlagsCT_SOCKET
)

// Flags of a frontend.
const (
	ServiceClusterIP    = DatapathServiceFlagsSERVICE_CLUSTER_IP
	ServiceNodePort     = DatapathServiceFlagsSERVICE_NODE_PORT
	ServiceLoadBalancer = DatapathServiceFlagsSERVICE_LOAD_BALANCER
	ServiceExternalIP   = DatapathServiceFlagsSERVICE_EXTERNAL_IP
	ServiceHostPort     = DatapathServiceFlagsSERVICE_HOST_PORT
	ServiceAffinity     = DatapathServiceFlagsSERVICE_AFFINITY
	ServiceSources      = DatapathServiceFlagsSERVICE_SOURCES
	ServiceOuterLocal   = DatapathServiceFlagsSERVICE_OUTER_LOCAL
	ServiceDSR          = DatapathServiceFlagsSERVICE_DSR
)

// BackendLeaving marks a backend that is in no slot any more.
const BackendLeaving = DatapathBackendFlagsBACKEND_LEAVING

// Algorithms of a frontend.
const (
	AlgorithmRandom = DatapathAlgorithmALGORITHM_RANDOM
	AlgorithmMaglev = DatapathAlgorithmALGORITHM_MAGLEV
	AlgorithmRR     = DatapathAlgorithmALGORITHM_RR
	AlgorithmLC     = DatapathAlgorithmALGORITHM_LC
	AlgorithmDH     = DatapathAlgorithmALGORITHM_DH
	AlgorithmSH     = DatapathAlgorithmALGORITHM_SH
	AlgorithmSED    = DatapathAlgorithmALGORITHM_SED
	AlgorithmNQ     = DatapathAlgorithmALGORITHM_NQ
	AlgorithmP2C    = DatapathAlgorithmALGORITHM_P2C
)

// What a record of strait_events tells.
const (
	EventNew     = DatapathEventKindEVENT_NEW
	EventJudged  = DatapathEventKindEVENT_JUDGED
	EventEnd     = DatapathEventKindEVENT_END
	EventDenied  = DatapathEventKindEVENT_DENIED
	EventDropped = DatapathEventKindEVENT_DROPPED
	EventKinds   = DatapathEventKindEVENT_KINDS // entries of strait_lost
)

// Flags of a record.
const (
	EventAnswer = DatapathEventFlagsEVENT_ANSWER
	EventAudit  = DatapathEventFlagsEVENT_AUDIT
)

// Programs that tell.
const (
	HookFromPod = DatapathHookHOOK_FROM_POD
	HookToPod   = DatapathHookHOOK_TO_POD
	HookFromNet = DatapathHookHOOK_FROM_NET
	HookToNet   = DatapathHookHOOK_TO_NET
	HookFromVX  = DatapathHookHOOK_FROM_VX
	HookToVX    = DatapathHookHOOK_TO_VX
	HookXDP     = DatapathHookHOOK_XDP
)

// Values of cfg_services.
const (
	ServicesOff   = DatapathServiceModeSERVICE_MODE_OFF
	ServicesOn    = DatapathServiceModeSERVICE_MODE_ON
	ServicesDrain = DatapathServiceModeSERVICE_MODE_DRAIN
)

// AddrFrom gives the datapath's form of an address: v4-mapped, network order. The zero netip.Addr gives the zero Addr.
func AddrFrom(ip netip.Addr) Addr {
	var a Addr
	if !ip.IsValid() {
		return a
	}
	b := ip.As16()
	for i := range a.W {
		a.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return a
}

// Netip gives the address back, IPv4 as IPv4; the zero Addr gives the zero netip.Addr.
func (a DatapathAddr) Netip() netip.Addr {
	if a.IsZero() {
		return netip.Addr{}
	}
	var b [16]byte
	for i, w := range a.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// IsZero reports whether no address is stored; "::" is not distinguished from that.
func (a DatapathAddr) IsZero() bool { return a.W == [4]uint32{} }

// NetPort turns a port from host to network order or back, as the __be16 fields hold it.
func NetPort(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// IpcacheKeyFrom gives the trie key of a prefix: its length counts over 128 bits, so IPv4 prefixes are 96 longer.
func IpcacheKeyFrom(p netip.Prefix) IpcacheKey {
	p = p.Masked()
	length := uint32(p.Bits())
	if p.Addr().Is4() {
		length += 96
	}
	return IpcacheKey{PrefixLen: length, Addr: AddrFrom(p.Addr())}
}

// Prefix is the reverse of IpcacheKeyFrom.
func (k DatapathIpcacheKey) Prefix() netip.Prefix {
	ip := k.Addr.Netip()
	if !ip.IsValid() {
		ip = netip.IPv6Unspecified()
	}
	length := int(k.PrefixLen)
	if ip.Is4() {
		length -= 96
	}
	return netip.PrefixFrom(ip, length)
}

// SockaddrKeyFrom gives the key of a frontend or backend address; proto is an IPPROTO_* number.
func SockaddrKeyFrom(ap netip.AddrPort, proto uint8) SockaddrKey {
	return SockaddrKey{Addr: AddrFrom(ap.Addr()), Port: NetPort(ap.Port()), Proto: proto}
}

// AddrPort is the reverse of SockaddrKeyFrom. A key always has an address, so the zero Addr is "::" here.
func (k DatapathSockaddrKey) AddrPort() netip.AddrPort {
	ip := k.Addr.Netip()
	if !ip.IsValid() {
		ip = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(ip, NetPort(k.Port))
}

// sourceIDBits is how much of a source key the service id takes.
const sourceIDBits = 32

// SourceKeyFrom gives the trie key of a prefix that may use a service: its length counts over the id and 128 bits of address.
func SourceKeyFrom(service uint32, p netip.Prefix) SourceKey {
	k := IpcacheKeyFrom(p)
	return SourceKey{PrefixLen: sourceIDBits + k.PrefixLen, Service: service, Addr: k.Addr}
}

// Prefix is the reverse of SourceKeyFrom.
func (k DatapathSourceKey) Prefix() netip.Prefix {
	return IpcacheKey{PrefixLen: k.PrefixLen - sourceIDBits, Addr: k.Addr}.Prefix()
}
