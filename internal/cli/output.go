package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// format is how an answer is printed; it is the value of the flag --output.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

var formats = []string{string(formatTable), string(formatWide), string(formatJSON), string(formatYAML)}

func (f *format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *format) Type() string { return "format" }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	for _, known := range formats {
		if s == known {
			*f = format(s)
			return nil
		}
	}
	return errors.New("unknown output format; there are: " + strings.Join(formats, ", "))
}

// forPeople reports whether the answer is read by a person.
func (f format) forPeople() bool { return f == formatTable || f == formatWide }

// print writes v for programs.
func (a *app) print(v any) error {
	var text []byte
	var err error
	if a.output == formatYAML {
		text, err = yaml.Marshal(v)
	} else {
		text, err = json.MarshalIndent(v, "", "  ")
		text = append(text, '\n')
	}
	if err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return a.write(string(text))
}

func (a *app) write(text string) error {
	if _, err := a.Out.Write([]byte(text)); err != nil {
		return fmt.Errorf("print answer: %w", err)
	}
	return nil
}
