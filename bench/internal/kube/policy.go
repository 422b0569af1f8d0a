package kube

import "net/netip"

// Namespace is a Namespace object.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Path is the object's path at the API server.
func (n Namespace) Path() string { return "/api/v1/namespaces/" + n.Name }

// Object renders the namespace as the API server stores it.
func (n Namespace) Object() Object {
	labels := Object{"kubernetes.io/metadata.name": n.Name}
	for k, v := range n.Labels {
		labels[k] = v
	}
	return Object{"apiVersion": "v1", "kind": "Namespace", "metadata": Object{"name": n.Name, "labels": labels},
		"spec": Object{"finalizers": []string{"kubernetes"}}, "status": Object{"phase": "Active"}}
}

// Pod is a Pod object.
type Pod struct {
	Namespace, Name, UID string
	Node                 string
	Labels               map[string]string
	Addresses            []netip.Addr // empty: not known yet
}

// Path is the object's path at the API server.
func (p Pod) Path() string { return "/api/v1/namespaces/" + p.Namespace + "/pods/" + p.Name }

// Object renders the pod at the size that pods of a Deployment have in a cluster, about 4 KiB: a watcher pays for what it does not need as well.
func (p Pod) Object() Object {
	app := "server"
	container := Object{
		"name": app, "image": "registry.example/team/" + app + ":v1.2.3", "imagePullPolicy": "IfNotPresent",
		"ports":     []Object{{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}},
		"resources": Object{"requests": Object{"cpu": "100m", "memory": "128Mi"}, "limits": Object{"memory": "256Mi"}},
		"env": []Object{{"name": "POD_IP", "valueFrom": Object{"fieldRef": Object{"apiVersion": "v1", "fieldPath": "status.podIP"}}},
			{"name": "LOG_LEVEL", "value": "info"}, {"name": "DATABASE", "value": "postgres.data.svc.cluster.local:5432"}},
		"livenessProbe":  probe("/healthz"),
		"readinessProbe": probe("/readyz"),
		"volumeMounts": []Object{{"name": "config", "mountPath": "/etc/server", "readOnly": true},
			{"name": "kube-api-access-x2x7q", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}},
		"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
	}
	meta := Object{"name": p.Name, "namespace": p.Namespace, "labels": p.Labels, "generateName": "server-7d4b9c8f6d-",
		"annotations": Object{"checksum/config": "1f3a9c8e7b6d5f4a3e2d1c0b9a8f7e6d5c4b3a291807f6e5d4c3b2a190817263"},
		"ownerReferences": []Object{{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "server-7d4b9c8f6d", "uid": uid(), "controller": true,
			"blockOwnerDeletion": true}},
		"managedFields": managedFields(),
	}
	if p.UID != "" {
		meta["uid"] = p.UID
	}
	status := Object{"phase": "Running", "qosClass": "Burstable", "conditions": conditions(), "containerStatuses": []Object{{
		"name": app, "ready": true, "started": true, "restartCount": 0, "image": "registry.example/team/" + app + ":v1.2.3",
		"imageID":     "registry.example/team/server@sha256:5f4dcc3b5aa765d61d8327deb882cf99b1a2c3d4e5f60718293a4b5c6d7e8f90",
		"containerID": "containerd://9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "lastState": Object{},
		"state": Object{"running": Object{"startedAt": "2026-01-01T00:00:00Z"}}}}}
	if len(p.Addresses) > 0 {
		var ips []Object
		for _, a := range p.Addresses {
			ips = append(ips, Object{"ip": a.String()})
		}
		status["podIP"], status["podIPs"] = p.Addresses[0].String(), ips
	}
	return Object{"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": status, "spec": Object{
		"nodeName": p.Node, "containers": []Object{container}, "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
		"serviceAccountName": "default", "serviceAccount": "default", "schedulerName": "default-scheduler", "securityContext": Object{},
		"enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority", "priority": 0, "tolerations": []Object{
			{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
			{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}},
		"volumes": []Object{{"name": "config", "configMap": Object{"name": "server", "defaultMode": 420}},
			{"name": "kube-api-access-x2x7q", "projected": Object{"defaultMode": 420, "sources": []Object{
				{"serviceAccountToken": Object{"expirationSeconds": 3607, "path": "token"}},
				{"configMap": Object{"name": "kube-root-ca.crt", "items": []Object{{"key": "ca.crt", "path": "ca.crt"}}}}}}}},
	}}
}

func probe(path string) Object {
	return Object{"httpGet": Object{"path": path, "port": "http", "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1, "successThreshold": 1,
		"failureThreshold": 3}
}

func conditions() (out []Object) {
	for _, kind := range []string{"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		out = append(out, Object{"type": kind, "status": "True", "lastProbeTime": nil, "lastTransitionTime": "2026-01-01T00:00:00Z"})
	}
	return out
}

// managedFields are those of the controller and the kubelet, which are a third of a pod.
func managedFields() []Object {
	field := Object{"f:type": Object{}, "f:status": Object{}, "f:lastProbeTime": Object{}, "f:lastTransitionTime": Object{}}
	return []Object{
		{"apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "kube-controller-manager", "operation": "Update", "time": "2026-01-01T00:00:00Z",
			"fieldsV1": Object{"f:metadata": Object{"f:generateName": Object{}, "f:labels": Object{".": Object{}, "f:app": Object{}, "f:pod-template-hash": Object{}},
				"f:ownerReferences": Object{".": Object{}}}, "f:spec": Object{"f:containers": Object{`k:{"name":"server"}`: Object{".": Object{}, "f:env": Object{},
				"f:image": Object{}, "f:imagePullPolicy": Object{}, "f:livenessProbe": Object{}, "f:name": Object{}, "f:ports": Object{}, "f:readinessProbe": Object{},
				"f:resources": Object{}, "f:volumeMounts": Object{}}}, "f:dnsPolicy": Object{}, "f:restartPolicy": Object{}, "f:volumes": Object{}}}},
		{"apiVersion": "v1", "fieldsType": "FieldsV1", "manager": "kubelet", "operation": "Update", "subresource": "status", "time": "2026-01-01T00:00:00Z",
			"fieldsV1": Object{"f:status": Object{"f:conditions": Object{`k:{"type":"Ready"}`: field, `k:{"type":"ContainersReady"}`: field,
				`k:{"type":"Initialized"}`: field}, "f:containerStatuses": Object{}, "f:phase": Object{}, "f:podIP": Object{}, "f:podIPs": Object{}}}},
	}
}

// Policy is a NetworkPolicy about ingress.
type Policy struct {
	Namespace, Name string
	Pods            map[string]string // labels of the pods it selects; empty: all of the namespace
	Rules           []Rule            // nothing is allowed without any
}

// Rule allows peers at ports. What is nil is not asked for.
type Rule struct {
	Pods       map[string]string // labels of peers
	Namespaces map[string]string // labels of their namespaces
	CIDR       netip.Prefix
	Port       int
	Last       int // of a range that begins with Port
	Protocol   string
}

// Path is the object's path at the API server.
func (p Policy) Path() string { return PolicyPath(p.Namespace) + "/" + p.Name }

// PolicyPath is the path of a namespace's NetworkPolicies.
func PolicyPath(namespace string) string {
	return "/apis/networking.k8s.io/v1/namespaces/" + namespace + "/networkpolicies"
}

// Object renders the policy.
func (p Policy) Object() Object {
	var ingress []Object
	for _, r := range p.Rules {
		ingress = append(ingress, r.object())
	}
	return Object{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": Object{"name": p.Name, "namespace": p.Namespace, "generation": 1},
		"spec": Object{"podSelector": selector(p.Pods), "policyTypes": []string{"Ingress"}, "ingress": ingress}}
}

func (r Rule) object() Object {
	out, peer := Object{}, Object{}
	if r.CIDR.IsValid() {
		peer["ipBlock"] = Object{"cidr": r.CIDR.String()}
	}
	if r.Pods != nil {
		peer["podSelector"] = selector(r.Pods)
	}
	if r.Namespaces != nil {
		peer["namespaceSelector"] = selector(r.Namespaces)
	}
	if len(peer) > 0 {
		out["from"] = []Object{peer}
	}
	if r.Port > 0 {
		port := Object{"protocol": r.Protocol, "port": r.Port}
		if r.Last > r.Port {
			port["endPort"] = r.Last
		}
		out["ports"] = []Object{port}
	}
	return out
}

func selector(labels map[string]string) Object {
	if len(labels) == 0 {
		return Object{}
	}
	return Object{"matchLabels": labels}
}
