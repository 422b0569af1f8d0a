package kube

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// podCodec returns an encoder of Kubernetes' protobuf, and the decoder of the client that watches pods.
func podCodec(t testing.TB) (encode func(runtime.Object) []byte, decoder runtime.Decoder) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	s := protobuf.NewSerializer(scheme, scheme)
	codecs := serializer.NewCodecFactory(scheme)
	encode = func(o runtime.Object) []byte {
		var out bytes.Buffer
		if err := codecs.EncoderForVersion(s, corev1.SchemeGroupVersion).Encode(o, &out); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	return encode, trimmedPods{codecs.WithoutConversion()}.DecoderToVersion(s, corev1.SchemeGroupVersion)
}

// The row of a pod does not depend on what is left out of it, and that is most of it.
func TestTrimmedPodIsTheSameRow(t *testing.T) {
	encode, decoder := podCodec(t)
	always := corev1.ContainerRestartPolicyAlways
	p := deploymentPod()
	p.Namespace, p.Name, p.UID, p.ResourceVersion = "a", "p", "u", "7"
	p.Labels = map[string]string{"app": "web", "tier": "front", "pod-template-hash": "7d4b9c8f6d"}
	p.Annotations[auditAnnotation], p.Annotations[AddressesAnnotation] = "true", "10.1.0.7"
	p.Spec.NodeName, p.Spec.HostNetwork, p.Spec.ServiceAccountName = "n1", true, "robot"
	p.Spec.InitContainers = []corev1.Container{
		{Name: "side", RestartPolicy: &always, Image: "x", Ports: []corev1.ContainerPort{{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}},
		{Name: "once", Ports: []corev1.ContainerPort{{Name: "setup", ContainerPort: 1}}},
	}
	reported := p.DeepCopy()
	reported.Status.PodIPs = []corev1.PodIP{{IP: "10.1.0.8"}, {IP: "fd00::8"}}
	ended := p.DeepCopy()
	ended.Status.Phase = corev1.PodFailed
	static := p.DeepCopy()
	static.Annotations[corev1.MirrorPodAnnotationKey] = "hash"
	wrong := p.DeepCopy()
	wrong.Spec.Containers[0].Ports[0].ContainerPort = 70000
	for name, p := range map[string]*corev1.Pod{"published": p, "reported": reported, "ended": ended, "static": static, "wrong": wrong, "empty": {}} {
		raw := encode(p)
		o, _, err := decoder.Decode(raw, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := o.(*corev1.Pod)
		want, wantOK, wantErr := ToPod(p)
		row, ok, err := ToPod(got)
		if !cmp.Equal(row, want) || ok != wantOK || (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
			t.Errorf("%s: got %+v, %t, %v, want %+v, %t, %v", name, row, ok, err, want, wantOK, wantErr)
		}
		if got.Name != p.Name || got.Namespace != p.Namespace || got.ResourceVersion != p.ResourceVersion || got.Annotations["checksum/config"] != p.Annotations["checksum/config"] {
			t.Errorf("%s: metadata %+v", name, got.ObjectMeta)
		}
		if ok && p.Name != "" && row.Workload != "Deployment/server" {
			t.Errorf("%s: made by %q", name, row.Workload)
		}
		if len(got.ManagedFields)+len(got.Status.Conditions)+len(got.Spec.Tolerations) > 0 {
			t.Errorf("%s: nothing is left out of %+v", name, got)
		}
	}
}

// What is no pod, or cannot be read, is the decoder's business.
func TestTrimLeavesOthersAlone(t *testing.T) {
	encode, decoder := podCodec(t)
	list := &corev1.PodList{Items: []corev1.Pod{*deploymentPod()}}
	o, _, err := decoder.Decode(encode(list), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := o.(*corev1.PodList); len(got.Items) != 1 || len(got.Items[0].ManagedFields) != 1 {
		t.Errorf("list %+v", got)
	}
	raw := encode(deploymentPod())
	for _, cut := range []int{len(podHead), len(podHead) + 1, len(raw) / 2, len(raw) - 1} {
		whole := protobuf.NewSerializer(runtime.NewScheme(), runtime.NewScheme())
		_, _, want := whole.Decode(raw[:cut], nil, &corev1.Pod{})
		if _, _, err := decoder.Decode(raw[:cut], nil, nil); (err == nil) != (want == nil) {
			t.Errorf("cut off at %d: %v, want %v", cut, err, want)
		}
	}
}

// What a watched pod costs to decode.
func BenchmarkDecodePod(b *testing.B) {
	encode, decoder := podCodec(b)
	raw := encode(deploymentPod())
	for name, d := range map[string]runtime.Decoder{"trimmed": decoder, "whole": decoder.(podDecoder).Decoder} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := d.Decode(raw, nil, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
