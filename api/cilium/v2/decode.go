package v2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	kjson "sigs.k8s.io/json"
)

// RawRule is a Rule as it was written: JSON.
//
// +kubebuilder:validation:Type=object
// +kubebuilder:pruning:PreserveUnknownFields
type RawRule struct {
	JSON []byte `json:"-"`
}

// MarshalJSON returns what was written.
func (r RawRule) MarshalJSON() ([]byte, error) {
	if r.JSON == nil {
		return []byte("null"), nil
	}
	return r.JSON, nil
}

// UnmarshalJSON keeps a copy of what was written.
func (r *RawRule) UnmarshalJSON(b []byte) error {
	r.JSON = bytes.Clone(b)
	return nil
}

// Decode reads a rule. Path is where it stands in the object; errors begin with the path of the field: "spec.ingress[0].fromEndpoint: unknown
// field". Fields that are unknown, there twice, or of another type are errors, and so is a null where it is not the same as absence: in a list
// it would be a member without conditions, which is everybody.
func (r RawRule) Decode(path string) (*Rule, error) {
	if !utf8.Valid(r.JSON) {
		return nil, fmt.Errorf("%s: is not UTF-8", path)
	}
	if text := bytes.TrimSpace(r.JSON); len(text) == 0 || string(text) == "null" {
		return nil, fmt.Errorf("%s: is null: want a rule", path)
	}
	rule := new(Rule)
	strict, err := kjson.UnmarshalStrict(r.JSON, rule)
	if err != nil {
		return nil, located(r.JSON, path, err)
	}
	var errs []error
	for _, err := range strict {
		errs = append(errs, strictError(path, err))
	}
	for _, at := range nulls(r.JSON) {
		errs = append(errs, fmt.Errorf("%s: is null: want a value", join(path, at)))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return rule, nil
}

func strictError(path string, err error) error {
	var field kjson.FieldError
	if !errors.As(err, &field) {
		return fmt.Errorf("%s: %w", path, err)
	}
	what, _, _ := strings.Cut(err.Error(), ` "`)
	return fmt.Errorf("%s: %s", join(path, field.FieldPath()), what)
}

// located says where an error of decoding is.
func located(data []byte, path string, err error) error {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return fmt.Errorf("%s: %w", path, err)
	}
	at, written := valueAt(data, wrong.Offset)
	return fmt.Errorf("%s: %s: want %s", join(path, at), written, goName(wrong.Type.Kind().String()))
}

// goName returns what people call the kinds of Go.
func goName(kind string) string {
	switch kind {
	case "string":
		return "a string: put it in quotes"
	case "bool":
		return "true or false"
	case "slice":
		return "a list"
	case "map", "struct":
		return "a mapping"
	}
	return "a number that fits"
}

func join(path, field string) string {
	if field == "" || strings.HasPrefix(field, "[") {
		return path + field
	}
	return path + "." + field
}

// cursor walks through JSON and knows the path of the value it is at.
type cursor struct {
	decoder *json.Decoder
	steps   []step
}

// step is a position in a mapping (key) or in a list (index).
type step struct {
	list  bool
	index int
	key   string
	named bool // in a mapping: the key has been read, the value comes
}

// next reads a token. It reports whether it is a value, or the beginning of one; path is then where.
func (c *cursor) next() (token json.Token, value bool, err error) {
	token, err = c.decoder.Token()
	if err != nil {
		return nil, false, err
	}
	last := len(c.steps) - 1
	switch token {
	case json.Delim('}'), json.Delim(']'):
		c.steps = c.steps[:last]
		return token, false, nil
	}
	if last >= 0 && !c.steps[last].list && !c.steps[last].named {
		c.steps[last].key, _ = token.(string)
		c.steps[last].named = true
		return token, false, nil
	}
	if last >= 0 && c.steps[last].list {
		c.steps[last].index++
	}
	return token, true, nil
}

// enter is called after a value: a list or mapping is gone into, and any other value is done.
func (c *cursor) enter(token json.Token) {
	if last := len(c.steps) - 1; last >= 0 {
		c.steps[last].named = false
	}
	switch token {
	case json.Delim('{'):
		c.steps = append(c.steps, step{})
	case json.Delim('['):
		c.steps = append(c.steps, step{list: true, index: -1})
	}
}

func (c *cursor) path() string {
	var b strings.Builder
	for i, s := range c.steps {
		switch {
		case s.list:
			b.WriteString("[" + strconv.Itoa(s.index) + "]")
		case i > 0 && hasFreeKeys(c.steps[i-1].key):
			b.WriteString("[" + s.key + "]")
		case b.Len() > 0:
			b.WriteString("." + s.key)
		default:
			b.WriteString(s.key)
		}
	}
	return b.String()
}

// valueAt returns the path of the value that is being read at an offset, and what is written there.
func valueAt(data []byte, offset int64) (path, written string) {
	c := cursor{decoder: json.NewDecoder(bytes.NewReader(data))}
	c.decoder.UseNumber()
	for {
		token, value, err := c.next()
		if err != nil {
			return "", "a value"
		}
		if value && c.decoder.InputOffset() >= offset {
			switch t := token.(type) {
			case json.Delim:
				written = map[json.Delim]string{'{': "is a mapping", '[': "is a list"}[t]
			case string:
				written = strconv.Quote(t)
			default:
				written = fmt.Sprint(t)
			}
			return c.path(), written
		}
		if value {
			c.enter(token)
		}
	}
}

// nulls returns where nulls stand in lists and in mappings whose keys are free.
func nulls(data []byte) []string {
	c := cursor{decoder: json.NewDecoder(bytes.NewReader(data))}
	var out []string
	for {
		token, value, err := c.next()
		if err != nil {
			return out
		}
		if !value {
			continue
		}
		if token == nil && c.free() {
			out = append(out, c.path())
		}
		c.enter(token)
	}
}

// free reports whether the value is in a list, or in a mapping of labels.
func (c *cursor) free() bool {
	n := len(c.steps)
	if n == 0 {
		return false
	}
	return c.steps[n-1].list || n > 1 && hasFreeKeys(c.steps[n-2].key)
}

// hasFreeKeys reports whether a field is a mapping whose keys people choose.
func hasFreeKeys(field string) bool { return field == "matchLabels" }
