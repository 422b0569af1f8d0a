package kube

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A pod is 4 KiB of which ToPod reads a tenth. To make objects of the rest is most of what a change of a pod costs an agent, and the garbage lies
// between the rows. So the rest is left out of the message before it is decoded.

// wanted are fields of a protobuf message, by number; nil: all that is in it.
type wanted map[protowire.Number]wanted

// podFields are what ToPod reads, and what a Reflector needs. Numbers are those of generated.proto of k8s.io/api and k8s.io/apimachinery.
func podFields() wanted {
	by := wanted{1: nil, 3: nil, 6: nil}    // kind, name, controller
	port := wanted{1: nil, 6: nil, 24: nil} // name, ports, restartPolicy
	return wanted{
		1: {1: nil, 3: nil, 5: nil, 6: nil, 11: nil, 12: nil, 13: by}, // name, namespace, uid, resourceVersion, labels, annotations, ownerReferences
		2: {2: port, 8: nil, 10: nil, 11: nil, 20: port},              // containers, serviceAccountName, nodeName, hostNetwork, initContainers
		3: {1: nil, 12: nil},                                          // phase, podIPs
	}
}

// podHead is how an encoded pod begins: the mark of Kubernetes' protobuf, and typeMeta, field 1 of runtime.Unknown. The pod is field 2.
const podHead = "k8s\x00\x0a\x09\x0a\x02v1\x12\x03Pod"

// trim appends the wanted fields of a message to out.
func (w wanted) trim(out, message []byte) ([]byte, error) {
	for len(message) > 0 {
		number, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return nil, protowire.ParseError(tag)
		}
		size := protowire.ConsumeFieldValue(number, kind, message[tag:])
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		field, value := message[:tag+size], message[tag:tag+size]
		message = message[tag+size:]
		inner, want := w[number]
		switch {
		case !want:
		case inner == nil || kind != protowire.BytesType:
			out = append(out, field...)
		default:
			content, _ := protowire.ConsumeBytes(value)
			content, err := inner.trim(make([]byte, 0, len(content)/4), content)
			if err != nil {
				return nil, fmt.Errorf("field %d: %w", number, err)
			}
			out = protowire.AppendBytes(protowire.AppendTag(out, number, kind), content)
		}
	}
	return out, nil
}

// trimmedPods makes decoders of pods that have only podFields.
type trimmedPods struct{ runtime.NegotiatedSerializer }

// DecoderToVersion returns the decoder of a client.
func (t trimmedPods) DecoderToVersion(d runtime.Decoder, version runtime.GroupVersioner) runtime.Decoder {
	return podDecoder{t.NegotiatedSerializer.DecoderToVersion(d, version), wanted{2: podFields()}}
}

type podDecoder struct {
	runtime.Decoder
	envelope wanted
}

// Decode is that of runtime.Decoder. What is no pod in protobuf is decoded whole, and so is what cannot be read: the error is the decoder's.
func (d podDecoder) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if rest, ok := bytes.CutPrefix(data, []byte(podHead)); ok {
		if trimmed, err := d.envelope.trim(append(make([]byte, 0, len(data)/4), podHead...), rest); err == nil {
			data = trimmed
		}
	}
	return d.Decoder.Decode(data, defaults, into)
}
