{{/*
How values become config.yaml.

A resolution is a dict that the templates below fill: values and namespace (read), config (the result), claims (what was asked for so far, by
subject, with the field that asked), problems (texts). They print nothing. "strait.config" runs them all and ends the rendering
with every problem found, in the form of the agent's own messages: field, value, what would be accepted.
*/}}

{{- define "strait.config" -}}
{{- include "strait.resolve" . | fromJson | toYaml -}}
{{- end -}}

{{- define "strait.resolve" -}}
{{- $r := dict "values" .Values "namespace" .Release.Namespace "config" dict "claims" dict "problems" list -}}
{{- range list "family" "routing" "network" "services" "ipam" "api" "devices" "policy" "flows" "log" "rest" "relay" -}}
{{- include (print "strait.resolve." .) $r -}}
{{- end -}}
{{- with $r.problems -}}
{{- fail (printf "\nvalues of the chart strait:\n  %s\n" (join "\n  " .)) -}}
{{- end -}}
{{- $r.config | toJson -}}
{{- end -}}

{{/* (resolution, field, value, text): notes a problem. */}}
{{- define "strait.refuse" -}}
{{- $r := index . 0 -}}
{{- $_ := set $r "problems" (append $r.problems (printf "%s: %s: %s" (index . 1) (index . 2 | toJson) (index . 3))) -}}
{{- end -}}

{{/* (resolution, subject, field, value, meaning): the field asks for a meaning; a second field may not ask for another one. */}}
{{- define "strait.claim" -}}
{{- $r := index . 0 -}}{{- $subject := index . 1 -}}{{- $field := index . 2 -}}{{- $value := index . 3 -}}{{- $meaning := index . 4 -}}
{{- $before := get $r.claims $subject -}}
{{- if not $before -}}
{{- $_ := set $r.claims $subject (dict "field" $field "value" $value "meaning" $meaning) -}}
{{- else if ne (toJson $before.meaning) (toJson $meaning) -}}
{{- include "strait.refuse" (list $r $field $value (printf "means %s %v, but %s: %s means %s %v; want them to agree" $subject $meaning $before.field (toJson $before.value) $subject $before.meaning)) -}}
{{- end -}}
{{- end -}}

{{/* (resolution, subject, field, value, meanings): claims the meaning of a word, nothing for null and "". */}}
{{- define "strait.word" -}}
{{- $r := index . 0 -}}{{- $field := index . 2 -}}{{- $value := index . 3 -}}{{- $meanings := index . 4 -}}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) -}}
{{- if hasKey $meanings (toString $value) -}}
{{- include "strait.claim" (list $r (index . 1) $field $value (get $meanings (toString $value))) -}}
{{- else -}}
{{- include "strait.refuse" (list $r $field $value (printf "unknown; accepted: %s" (keys $meanings | sortAlpha | join ", "))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* (text or list): the items as JSON; text is split at commas and spaces, as --set gives it. */}}
{{- define "strait.items" -}}
{{- if kindIs "slice" . -}}{{- toJson . -}}
{{- else if . -}}{{- toString . | replace "," " " | splitList " " | compact | toJson -}}
{{- else -}}[]{{- end -}}
{{- end -}}

{{- define "strait.resolve.family" -}}
{{- if not (or .values.ipv4.enabled .values.ipv6.enabled) -}}
{{- include "strait.refuse" (list . "ipv4.enabled" false "ipv6.enabled is false as well; at least one must be true") -}}
{{- end -}}
{{- $_ := set .config "ipv4" .values.ipv4.enabled -}}
{{- $_ := set .config "ipv6" .values.ipv6.enabled -}}
{{- end -}}

{{- define "strait.resolve.routing" -}}
{{- $v := .values -}}
{{- include "strait.word" (list . "routing mode" "routingMode" $v.routingMode (dict "vxlan" "vxlan" "tunnel" "vxlan" "native" "native")) -}}
{{- include "strait.word" (list . "routing mode" "tunnel" $v.tunnel (dict "vxlan" "vxlan" "disabled" "native")) -}}
{{- include "strait.word" (list . "tunnel protocol" "tunnelProtocol" $v.tunnelProtocol (dict "vxlan" "vxlan")) -}}
{{- $claim := get .claims "routing mode" | default (dict "meaning" "vxlan") -}}
{{- $mode := $claim.meaning -}}
{{- if kindIs "bool" $v.autoDirectNodeRoutes -}}
{{- if and $v.autoDirectNodeRoutes (ne $mode "native") -}}
{{- include "strait.refuse" (list . "autoDirectNodeRoutes" true (printf "routingMode is %s, where packets go through the tunnel; want routingMode native, or autoDirectNodeRoutes left out" $mode)) -}}
{{- else if and (not $v.autoDirectNodeRoutes) (eq $mode "native") -}}
{{- include "strait.refuse" (list . "autoDirectNodeRoutes" false "routingMode is native, where Strait always programs the routes between nodes of one L2; want true, or left out") -}}
{{- end -}}
{{- end -}}
{{- $_ := set .config "routingMode" $mode -}}
{{- $_ := set .config "vxlan" (dict "port" (int ($v.tunnelPort | default 8472))) -}}
{{- end -}}

{{/* Masquerading is a consequence of the design: island does, flat and isolated do not. */}}
{{- define "strait.resolve.network" -}}
{{- $r := . -}}{{- $v := .values -}}
{{- $network := "" -}}
{{- if $v.network -}}
{{- if has $v.network (list "island" "flat" "isolated") -}}
{{- $network = $v.network -}}
{{- include "strait.claim" (list $r "masquerading" "network" $network (eq $network "island")) -}}
{{- else -}}
{{- include "strait.refuse" (list $r "network" $v.network "unknown; accepted: island, flat, isolated") -}}
{{- end -}}
{{- end -}}
{{- range $family := list "4" "6" -}}
{{- $field := printf "enableIPv%sMasquerade" $family -}}
{{- $value := get $v $field -}}
{{- if and (kindIs "bool" $value) (get (get $v (print "ipv" $family)) "enabled") -}}
{{- include "strait.claim" (list $r "masquerading" $field $value $value) -}}
{{- end -}}
{{- end -}}
{{- $masquerade := (get $r.claims "masquerading" | default (dict "meaning" true)).meaning -}}
{{- if kindIs "bool" $v.bpf.masquerade -}}
{{- if and $v.bpf.masquerade (not $masquerade) -}}
{{- include "strait.claim" (list $r "masquerading" "bpf.masquerade" true true) -}}
{{- else if and (not $v.bpf.masquerade) $masquerade -}}
{{- include "strait.refuse" (list $r "bpf.masquerade" false "Strait masquerades in BPF and nowhere else; want true or left out, or no masquerading with network flat or isolated") -}}
{{- end -}}
{{- end -}}
{{- $_ := set $r.config "network" ($network | default (ternary "island" "flat" $masquerade)) -}}
{{- end -}}

{{- define "strait.resolve.services" -}}
{{- $v := .values -}}
{{- $given := and (not (kindIs "invalid" $v.kubeProxyReplacement)) (ne (toString $v.kubeProxyReplacement) "") -}}
{{- $replace := true -}}
{{- if $given -}}
{{- if has (toString $v.kubeProxyReplacement) (list "true" "strict") -}}
{{- else if has (toString $v.kubeProxyReplacement) (list "false" "disabled") -}}
{{- $replace = false -}}
{{- include "strait.claim" (list . "socket load balancing" "kubeProxyReplacement" $v.kubeProxyReplacement false) -}}
{{- else -}}
{{- include "strait.refuse" (list . "kubeProxyReplacement" $v.kubeProxyReplacement "unknown; accepted: true, strict, false, disabled") -}}
{{- end -}}
{{- end -}}
{{- if kindIs "bool" $v.socketLB.enabled -}}
{{- include "strait.claim" (list . "socket load balancing" "socketLB.enabled" $v.socketLB.enabled $v.socketLB.enabled) -}}
{{- end -}}
{{- if kindIs "bool" $v.hostServices.enabled -}}
{{- include "strait.claim" (list . "socket load balancing" "hostServices.enabled" $v.hostServices.enabled $v.hostServices.enabled) -}}
{{- end -}}
{{- $claim := get .claims "socket load balancing" | default (dict "meaning" $replace) -}}
{{- $_ := set .config "socketLB" (dict "enabled" $claim.meaning) -}}
{{- $_ := set .config "serviceCIDRs" (include "strait.items" $v.serviceCIDRs | fromJsonArray) -}}
{{- $r := . -}}
{{- range $field := list "nodePort" "hostPort" "externalIPs" -}}
{{- $on := (get $v $field).enabled -}}
{{- if and (kindIs "bool" $on) (ne $on $replace) -}}
{{- include "strait.refuse" (list $r (print $field ".enabled") $on (printf "Strait serves every kind of service or, with kubeProxyReplacement false, none; want %v or left out" $replace)) -}}
{{- end -}}
{{- end -}}
{{- include "strait.word" (list . "backend selection" "loadBalancer.algorithm" $v.loadBalancer.algorithm (dict "random" "random" "maglev" "maglev" "rr" "rr" "lc" "lc" "dh" "dh" "sh" "sh" "sed" "sed" "nq" "nq" "p2c" "p2c")) -}}
{{- include "strait.word" (list . "forwarding" "loadBalancer.mode" $v.loadBalancer.mode (dict "snat" "snat" "dsr" "dsr")) -}}
{{- include "strait.word" (list . "XDP" "loadBalancer.acceleration" $v.loadBalancer.acceleration (dict "disabled" "off" "native" "native" "generic" "generic")) -}}
{{- $services := dict "mode" (ternary "on" "off" $replace) "announce" $v.l2announcements.enabled "maglevSize" (int $v.maglev.tableSize) -}}
{{- $_ := set $services "nodePorts" ($v.nodePort.range | toString | replace "," "-") -}}
{{- $_ := set $services "algorithm" (get .claims "backend selection" | default (dict "meaning" "random")).meaning -}}
{{- $_ := set $services "forwarding" (get .claims "forwarding" | default (dict "meaning" "snat")).meaning -}}
{{- $_ := set $services "xdp" (get .claims "XDP" | default (dict "meaning" "off")).meaning -}}
{{- $_ := set .config "services" $services -}}
{{- end -}}

{{- define "strait.resolve.ipam" -}}
{{- $r := . -}}{{- $v := .values -}}{{- $pool := $v.ipam.operator -}}
{{- $mode := $v.ipam.mode -}}
{{- if not (has $mode (list "cluster-pool" "kubernetes")) -}}
{{- include "strait.refuse" (list $r "ipam.mode" $mode "unknown; accepted: cluster-pool, kubernetes") -}}
{{- end -}}
{{- $ipam := dict "mode" $mode "coolDown" $v.ipam.coolDown "nodeMaskV4" (int $pool.clusterPoolIPv4MaskSize) "nodeMaskV6" (int $pool.clusterPoolIPv6MaskSize) -}}
{{- $defaults := dict "4" "10.244.0.0/16" "6" "fd00:10:244::/48" -}}
{{- range $family := list "4" "6" -}}
{{- $subject := printf "IPv%s pod CIDR" $family -}}
{{- range $name := list (printf "clusterPoolIPv%sPodCIDRList" $family) (printf "clusterPoolIPv%sPodCIDR" $family) -}}
{{- $field := print "ipam.operator." $name -}}
{{- $items := include "strait.items" (get $pool $name) | fromJsonArray -}}
{{- if gt (len $items) 1 -}}
{{- include "strait.refuse" (list $r $field $items "want one CIDR: a pool of several is not supported") -}}
{{- else if eq (len $items) 1 -}}
{{- include "strait.claim" (list $r $subject $field (get $pool $name) (first $items)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $mode "cluster-pool") (not (get $r.claims $subject)) -}}
{{- include "strait.claim" (list $r $subject (printf "ipam.operator.clusterPoolIPv%sPodCIDRList" $family) (list) (get $defaults $family)) -}}
{{- end -}}
{{- range $field := list (printf "ipv%sNativeRoutingCIDR" $family) (ternary "nativeRoutingCIDR" "" (eq $family "4")) -}}
{{- with get $v $field -}}
{{- include "strait.claim" (list $r $subject $field . .) -}}
{{- end -}}
{{- end -}}
{{- $claim := get $r.claims $subject | default (dict "meaning" "") -}}
{{- if and $claim.meaning (ne (contains ":" $claim.meaning) (eq $family "6")) -}}
{{- include "strait.refuse" (list $r $claim.field $claim.value (printf "want an IPv%s CIDR" $family)) -}}
{{- end -}}
{{- $_ := set $ipam (print "podCIDRv" $family) $claim.meaning -}}
{{- end -}}
{{- $_ := set $r.config "ipam" $ipam -}}
{{- end -}}

{{- define "strait.resolve.api" -}}
{{- $host := toString .values.k8sServiceHost -}}{{- $port := toString .values.k8sServicePort -}}
{{- $server := "" -}}
{{- if not $host -}}
{{- if $port -}}
{{- include "strait.refuse" (list . "k8sServicePort" .values.k8sServicePort "k8sServiceHost is empty; want both or neither") -}}
{{- end -}}
{{- else if or (eq $host "auto") (contains "/" $host) (contains " " $host) -}}
{{- include "strait.refuse" (list . "k8sServiceHost" $host "want a host name or an address, without scheme, port and path") -}}
{{- else -}}
{{- $address := $host | trimPrefix "[" | trimSuffix "]" -}}
{{- if regexMatch "^[^:]+:[0-9]+$" $address -}}
{{- include "strait.refuse" (list . "k8sServiceHost" $host "want the port in k8sServicePort") -}}
{{- end -}}
{{- $server = printf "https://%s:%s" (ternary (printf "[%s]" $address) $address (contains ":" $address)) ($port | default "6443") -}}
{{- end -}}
{{- $_ := set .config "api" (dict "server" $server) -}}
{{- end -}}

{{- define "strait.resolve.devices" -}}
{{- $r := . -}}
{{- $devices := include "strait.items" .values.devices | fromJsonArray -}}
{{- range $devices -}}
{{- if contains "+" . -}}
{{- include "strait.refuse" (list $r "devices" . "patterns are not supported; want names of devices, or none to have them found") -}}
{{- end -}}
{{- end -}}
{{- $_ := set .config "devices" $devices -}}
{{- $_ := set .config "mtu" (int .values.MTU) -}}
{{- end -}}

{{- define "strait.resolve.policy" -}}
{{- include "strait.word" (list . "enforcement" "policyEnforcementMode" .values.policyEnforcementMode (dict "default" "default" "always" "always" "never" "never")) -}}
{{- $_ := set .config "policy" (dict "enforcement" (get .claims "enforcement" | default (dict "meaning" "default")).meaning "audit" .values.policyAuditMode) -}}
{{- end -}}

{{- define "strait.resolve.flows" -}}
{{- $h := .values.hubble -}}{{- $relay := $h.relay.enabled -}}
{{- if and $relay (not $h.enabled) -}}
{{- include "strait.refuse" (list . "hubble.relay.enabled" true "hubble.enabled is false, so that agents have nothing to tell; want both, or no relay") -}}
{{- end -}}
{{- if and $relay (not (regexMatch "^(0\\.0\\.0\\.0|\\[::\\])?:[1-9][0-9]*$" $h.listenAddress)) -}}
{{- include "strait.refuse" (list . "hubble.listenAddress" $h.listenAddress "the relay asks agents there, on each node's own address; want \":port\"") -}}
{{- end -}}
{{- $flows := dict "enabled" $h.enabled "keep" (int $h.eventBufferCapacity) "ring" (int $h.eventRingSize) -}}
{{- $_ := set $flows "listen" (ternary $h.listenAddress "" $relay) -}}
{{- $_ := set $flows "tlsDir" (ternary (include "strait.tlsDir" .) "" $relay) -}}
{{- $_ := set .config "flows" $flows -}}
{{- end -}}

{{- define "strait.resolve.log" -}}
{{- $levels := dict "debug" "debug" "info" "info" "warn" "warn" "error" "error" -}}
{{- include "strait.word" (list . "log level" "logLevel" .values.logLevel $levels) -}}
{{- if .values.debug.enabled -}}
{{- include "strait.claim" (list . "log level" "debug.enabled" true "debug") -}}
{{- end -}}
{{- $_ := set .config "logLevel" (get .claims "log level" | default (dict "meaning" "info")).meaning -}}
{{- end -}}

{{- define "strait.resolve.rest" -}}
{{- $v := .values -}}{{- $c := .config -}}
{{- $_ := set $c "clusterName" $v.cluster.name -}}
{{- $_ := set $c "masqueradePorts" $v.masqueradePorts -}}
{{- $maps := dict -}}
{{- range $name, $size := $v.maps -}}{{- $_ := set $maps $name (int64 $size) -}}{{- end -}}
{{- $_ := set $c "maps" $maps -}}
{{- $_ := set $c "bpfRoot" $v.bpf.root -}}
{{- $_ := set $c "runDir" $v.runDir -}}
{{- $_ := set $c "stateDir" $v.stateDir -}}
{{- $_ := set $c "cgroupRoot" $v.cgroupRoot -}}
{{- $_ := set $c "cni" (dict "binDir" $v.cni.binPath "confDir" $v.cni.confPath "install" $v.cni.install "exclusive" $v.cni.exclusive) -}}
{{- $_ := set $c "metricsAddress" (ternary (printf ":%d" (int $v.prometheus.port)) "" $v.prometheus.enabled) -}}
{{- $_ := set $c "operator" (dict "lease" $v.operator.lease "metricsAddress" (ternary (printf ":%d" (int $v.operator.prometheus.port)) "" $v.operator.prometheus.enabled)) -}}
{{- end -}}

{{- define "strait.resolve.relay" -}}
{{- $h := .values.hubble -}}{{- $on := $h.relay.enabled -}}{{- $port := int $h.relay.prometheus.port -}}
{{- if and $on $h.relay.prometheus.enabled (has $port (list 4245 4246)) -}}
{{- include "strait.refuse" (list . "hubble.relay.prometheus.port" $port "the relay serves its clients there; want another port") -}}
{{- end -}}
{{- $certificates := dict "enabled" (and $on $h.tls.auto.enabled) "validity" (printf "%dh" (mul 24 (int $h.tls.auto.certValidityDuration))) -}}
{{- $_ := set .config.operator "certificates" $certificates -}}
{{- $relay := dict "local" "127.0.0.1:4245" "metricsAddress" (ternary (printf ":%d" $port) "" $h.relay.prometheus.enabled) -}}
{{- $_ := set $relay "peer" (ternary (printf "hubble-peer.%s.svc:443" .namespace) "" $on) -}}
{{- $_ := set $relay "listen" (ternary ":4246" "" $on) -}}
{{- $_ := set $relay "tlsDir" (ternary (include "strait.tlsDir" .) "" $on) -}}
{{- $_ := set .config "relay" $relay -}}
{{- end -}}
