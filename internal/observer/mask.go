package observer

import (
	"fmt"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// mask is a tree of the fields that a client wants; nil: all of them.
type mask map[protoreflect.Name]mask

// maskOf reads the paths of a field mask: "source.pod_name".
func maskOf(fm *fieldmaskpb.FieldMask) (mask, error) {
	if len(fm.GetPaths()) == 0 {
		return nil, nil
	}
	out := mask{}
	for _, path := range fm.GetPaths() {
		if _, err := fieldmaskpb.New(&flowpb.Flow{}, path); err != nil {
			return nil, fmt.Errorf("field_mask %q: a flow has no such field", path)
		}
		out.add(strings.Split(path, "."))
	}
	return out, nil
}

// add makes the path part of the mask; all of a field includes each of its own.
func (m mask) add(path []string) {
	name := protoreflect.Name(path[0])
	inner, there := m[name]
	switch {
	case there && inner == nil:
	case len(path) == 1:
		m[name] = nil
	default:
		if inner == nil {
			inner = mask{}
			m[name] = inner
		}
		inner.add(path[1:])
	}
}

// of returns the flow with nothing but the wanted fields. Messages in it are shared.
func (m mask) of(f *flowpb.Flow) *flowpb.Flow {
	if m == nil {
		return f
	}
	out := &flowpb.Flow{}
	m.copy(out.ProtoReflect(), f.ProtoReflect())
	return out
}

func (m mask) copy(to, from protoreflect.Message) {
	from.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		inner, wanted := m[field.Name()]
		switch {
		case !wanted:
		case inner == nil:
			to.Set(field, v)
		default:
			inner.copy(to.Mutable(field).Message(), v.Message())
		}
		return true
	})
}
