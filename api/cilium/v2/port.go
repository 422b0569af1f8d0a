package v2

import "encoding/json"

// MaxPorts is how many ports a PortRule, and how many fields an ICMPRule may have.
const MaxPorts = 40

// PortRule is a set of ports and what may be said there.
type PortRule struct {
	Ports          []PortProtocol `json:"ports,omitempty"`
	TerminatingTLS *TLSContext    `json:"terminatingTLS,omitempty"`
	OriginatingTLS *TLSContext    `json:"originatingTLS,omitempty"`
	ServerNames    []string       `json:"serverNames,omitempty"`
	Listener       *Listener      `json:"listener,omitempty"`
	Rules          *L7Rules       `json:"rules,omitempty"`
}

// PortDenyRule is a set of ports.
type PortDenyRule struct {
	Ports []PortProtocol `json:"ports,omitempty"`
}

// PortProtocol is a protocol and a port, or ports.
type PortProtocol struct {
	Port     string `json:"port,omitempty"`     // a number or the name of a container's port; 0: all
	EndPort  int32  `json:"endPort,omitempty"`  // last of a range; without meaning for a name
	Protocol string `json:"protocol,omitempty"` // empty or ANY: each that has ports
}

// ICMPRule is a set of ICMP types.
type ICMPRule struct {
	Fields []ICMPField `json:"fields,omitempty"`
}

// ICMPField is a type by number or name.
type ICMPField struct {
	Family string   `json:"family,omitempty"` // IPv4, which is the default, or IPv6
	Type   ICMPType `json:"type,omitempty"`
}

// ICMPType is a number or a name.
type ICMPType string

// UnmarshalJSON takes numbers and strings alike; anything else stays as it is written, which is no type.
func (t *ICMPType) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) != nil {
		text = string(b)
	}
	*t = ICMPType(text)
	return nil
}

// L7Rules are what requests have to be like.
type L7Rules struct {
	HTTP    []HTTPRule          `json:"http,omitempty"`
	Kafka   []KafkaRule         `json:"kafka,omitempty"`
	DNS     []DNSName           `json:"dns,omitempty"`
	L7Proto string              `json:"l7proto,omitempty"`
	L7      []map[string]string `json:"l7,omitempty"`
}

// DNSName is one name, or a pattern of names.
type DNSName struct {
	MatchName    string `json:"matchName,omitempty"`
	MatchPattern string `json:"matchPattern,omitempty"`
}

// HTTPRule is what an HTTP request has to be like.
type HTTPRule struct {
	Path          string        `json:"path,omitempty"`
	Method        string        `json:"method,omitempty"`
	Host          string        `json:"host,omitempty"`
	Headers       []string      `json:"headers,omitempty"`
	HeaderMatches []HeaderMatch `json:"headerMatches,omitempty"`
}

// HeaderMatch is what a header has to be like.
type HeaderMatch struct {
	Name     string  `json:"name"`
	Value    string  `json:"value,omitempty"`
	Secret   *Secret `json:"secret,omitempty"`
	Mismatch string  `json:"mismatch,omitempty"`
}

// KafkaRule is what a request to Kafka has to be like.
type KafkaRule struct {
	Role       string `json:"role,omitempty"`
	APIKey     string `json:"apiKey,omitempty"`
	APIVersion string `json:"apiVersion,omitempty"`
	ClientID   string `json:"clientID,omitempty"`
	Topic      string `json:"topic,omitempty"`
}

// TLSContext is with which certificates a connection is ended or begun.
type TLSContext struct {
	Secret      *Secret `json:"secret"`
	TrustedCA   string  `json:"trustedCA,omitempty"`
	Certificate string  `json:"certificate,omitempty"`
	PrivateKey  string  `json:"privateKey,omitempty"`
}

// Secret names a Secret.
type Secret struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// Listener names a listener of Envoy's.
type Listener struct {
	EnvoyConfig *EnvoyConfig `json:"envoyConfig"`
	Name        string       `json:"name"`
	Priority    int32        `json:"priority,omitempty"`
}

// EnvoyConfig names where it is defined.
type EnvoyConfig struct {
	Kind string `json:"kind,omitempty"`
	Name string `json:"name"`
}
