package v2

import (
	"encoding/json"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// A rule that nobody can read must not keep a client from reading the others of its list.
func TestListWithUnreadableRules(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme).UniversalDeserializer()
	o, _, err := decoder.Decode([]byte(`{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicyList","metadata":{"resourceVersion":"7"},"items":[
		{"metadata":{"name":"bad","namespace":"a"},"spec":{"ingress":[{"toPorts":[{"ports":[{"port":80}]}]}]}},
		{"metadata":{"name":"good","namespace":"a"},"spec":{"endpointSelector":{},"ingress":[{}]},
		 "status":{"conditions":[{"type":"Valid","status":"True","lastTransitionTime":"2024-05-06T07:08:09Z"}],"derivativePolicies":{"x":{"ok":true}}}}]}`), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	items := o.(*CiliumNetworkPolicyList).Items
	if len(items) != 2 || items[1].Status.Conditions[0].Type != Valid {
		t.Fatalf("%+v", items)
	}
	if _, err := items[0].Spec.Decode("spec"); err == nil || err.Error() != "spec.ingress[0].toPorts[0].ports[0].port: 80: want a string: put it in quotes" {
		t.Errorf("%v", err)
	}
	if rule, err := items[1].Spec.Decode("spec"); err != nil || rule.EndpointSelector == nil || len(rule.Ingress) != 1 {
		t.Errorf("%+v, %v", rule, err)
	}
	// What was written is what is written again.
	again, err := json.Marshal(items[1].Spec)
	if err != nil || string(again) != `{"endpointSelector":{},"ingress":[{}]}` {
		t.Errorf("%s, %v", again, err)
	}
	copied := items[1].DeepCopy()
	copied.Spec.JSON[2] = 'X'
	if strings.Contains(string(items[1].Spec.JSON), "X") {
		t.Error("a copy shares memory")
	}
}

func TestDecodeErrors(t *testing.T) {
	for _, c := range []struct{ json, want string }{
		{`{"endpointSelector":{},"endpointSelector":{}}`, "spec.endpointSelector: duplicate field"},
		{`{"ingress":[{"fromEndpoints":[{"matchLabels":{"k8s:a":{}}}]}]}`, "spec.ingress[0].fromEndpoints[0].matchLabels[k8s:a]: is a mapping: want a string: put it in quotes"},
		{`{"ingress":[{"fromEndpoints":[{},{"matchExpressions":[{"key":"a","operator":"In","values":[true]}]}]}]}`,
			"spec.ingress[0].fromEndpoints[1].matchExpressions[0].values[0]: true: want a string: put it in quotes"},
		{`{"egress":[{"toPorts":[{"ports":[{"port":"1","endPort":1.5}]}]}]}`, "spec.egress[0].toPorts[0].ports[0].endPort: 1.5: want a number that fits"},
		{`{"description":"` + "\xff" + `"}`, "spec: is not UTF-8"},
		{``, "spec: is null: want a rule"},
		{` null`, "spec: is null: want a rule"},
		{`{"ingress":`, "spec: unexpected end of JSON input"},
		{`{"ingress":[]} {}`, "spec: invalid character '{' after top-level value"},
	} {
		if rule, err := (RawRule{JSON: []byte(c.json)}).Decode("spec"); err == nil || err.Error() != c.want {
			t.Errorf("%s\n got: %+v, %v\nwant: %s", c.json, rule, err, c.want)
		}
	}
	if _, err := (RawRule{JSON: []byte(strings.Repeat("[", 20000))}).Decode("spec"); err == nil {
		t.Error("20,000 brackets are read")
	}
}
