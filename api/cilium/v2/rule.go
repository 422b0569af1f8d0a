package v2

// Rule is a spec: which pods or nodes it is for, and what may come to them and go from them.
//
// A section that has rules isolates its direction: what no rule of any policy allows is denied. A rule without any member allows nothing.
type Rule struct {
	// EndpointSelector selects pods: those of a CiliumNetworkPolicy's own namespace, or of all.
	EndpointSelector *Selector `json:"endpointSelector,omitempty"`
	// NodeSelector selects nodes instead; of a CiliumClusterwideNetworkPolicy only.
	NodeSelector *Selector `json:"nodeSelector,omitempty"`

	Ingress     []IngressRule     `json:"ingress,omitempty"`
	IngressDeny []IngressDenyRule `json:"ingressDeny,omitempty"` // wins over what any policy allows
	Egress      []EgressRule      `json:"egress,omitempty"`
	EgressDeny  []EgressDenyRule  `json:"egressDeny,omitempty"`

	// EnableDefaultDeny says whether the directions are isolated, in place of whether they have rules.
	EnableDefaultDeny DefaultDeny `json:"enableDefaultDeny,omitempty"`

	// What follows is not interpreted.
	Labels      []RuleLabel `json:"labels,omitempty"`
	Description string      `json:"description,omitempty"`
	Log         *Log        `json:"log,omitempty"`
}

// DefaultDeny is per direction: absent means that rules decide.
type DefaultDeny struct {
	Ingress *bool `json:"ingress,omitempty"`
	Egress  *bool `json:"egress,omitempty"`
}

// RuleLabel is metadata of a rule.
type RuleLabel struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Source string `json:"source,omitempty"`
}

// Log is text that flows carry.
type Log struct {
	Value string `json:"value,omitempty"`
}

// IngressRule allows what comes from its peers to its ports. At most one kind of peers may be given; none: everybody.
type IngressRule struct {
	IngressPeers `json:",inline"`

	ToPorts        []PortRule      `json:"toPorts,omitempty"`
	ICMPs          []ICMPRule      `json:"icmps,omitempty"`
	Authentication *Authentication `json:"authentication,omitempty"`
}

// IngressDenyRule denies it.
type IngressDenyRule struct {
	IngressPeers `json:",inline"`

	ToPorts []PortDenyRule `json:"toPorts,omitempty"`
	ICMPs   []ICMPRule     `json:"icmps,omitempty"`
}

// IngressPeers are those that connect. A list that is there and empty is nobody.
type IngressPeers struct {
	FromEndpoints []Selector `json:"fromEndpoints,omitempty"`
	FromRequires  []Selector `json:"fromRequires,omitempty"`
	FromEntities  []string   `json:"fromEntities,omitempty"`
	FromCIDR      []string   `json:"fromCIDR,omitempty"`
	FromCIDRSet   []CIDRRule `json:"fromCIDRSet,omitempty"`
	FromNodes     []Selector `json:"fromNodes,omitempty"`
	FromGroups    []GroupRef `json:"fromGroups,omitempty"`
}

// EgressRule allows what goes to its peers and ports. At most one kind of peers may be given; none: everybody.
type EgressRule struct {
	EgressPeers `json:",inline"`

	ToFQDNs        []DNSName       `json:"toFQDNs,omitempty"`
	ToPorts        []PortRule      `json:"toPorts,omitempty"`
	ICMPs          []ICMPRule      `json:"icmps,omitempty"`
	Authentication *Authentication `json:"authentication,omitempty"`
}

// EgressDenyRule denies it.
type EgressDenyRule struct {
	EgressPeers `json:",inline"`

	ToPorts []PortDenyRule `json:"toPorts,omitempty"`
	ICMPs   []ICMPRule     `json:"icmps,omitempty"`
}

// EgressPeers are those that are connected to. A list that is there and empty is nobody.
type EgressPeers struct {
	ToEndpoints []Selector `json:"toEndpoints,omitempty"`
	ToRequires  []Selector `json:"toRequires,omitempty"`
	ToEntities  []string   `json:"toEntities,omitempty"`
	ToCIDR      []string   `json:"toCIDR,omitempty"`
	ToCIDRSet   []CIDRRule `json:"toCIDRSet,omitempty"`
	ToNodes     []Selector `json:"toNodes,omitempty"`
	ToServices  []Service  `json:"toServices,omitempty"`
	ToGroups    []GroupRef `json:"toGroups,omitempty"`
}

// Selector selects by labels. Keys may begin with the source of the label: "k8s:", "any:", "reserved:". An empty selector selects all.
type Selector struct {
	MatchLabels      map[string]string `json:"matchLabels,omitempty"`
	MatchExpressions []Requirement     `json:"matchExpressions,omitempty"`
}

// Requirement is a condition on a label.
type Requirement struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"` // In, NotIn, Exists, DoesNotExist
	Values   []string `json:"values,omitempty"`
}

// CIDRRule is a prefix less some of its parts; or it names CiliumCIDRGroups.
type CIDRRule struct {
	CIDR              string    `json:"cidr,omitempty"`
	CIDRGroupRef      string    `json:"cidrGroupRef,omitempty"`
	CIDRGroupSelector *Selector `json:"cidrGroupSelector,omitempty"`
	Except            []string  `json:"except,omitempty"`
}

// Service names services, whose endpoints are meant.
type Service struct {
	K8sService         *ServiceName     `json:"k8sService,omitempty"`
	K8sServiceSelector *ServiceSelector `json:"k8sServiceSelector,omitempty"`
}

// ServiceName is one service.
type ServiceName struct {
	ServiceName string `json:"serviceName,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
}

// ServiceSelector selects services by their labels.
type ServiceSelector struct {
	Selector  Selector `json:"selector"`
	Namespace string   `json:"namespace,omitempty"`
}

// GroupRef is a set of addresses that somebody else knows.
type GroupRef struct {
	AWS *AWSGroup `json:"aws,omitempty"`
}

// AWSGroup is one of Amazon's.
type AWSGroup struct {
	Labels              map[string]string `json:"labels,omitempty"`
	SecurityGroupsIds   []string          `json:"securityGroupsIds,omitempty"`
	SecurityGroupsNames []string          `json:"securityGroupsNames,omitempty"`
	Region              string            `json:"region,omitempty"`
}

// Authentication asks for proof of who a peer is.
type Authentication struct {
	Mode string `json:"mode"` // disabled, required, test-always-fail
}
