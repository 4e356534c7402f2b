package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decodeFile reads YAML into a table, strictly, and returns the line of each setting that
// is in the file, by its whole key. The error has all faults, each with its line. None
// repeats the value of an unknown key, which could be a secret in the wrong place.
func decodeFile(path string, b []byte, table []row) (lines map[string]int, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil // nothing but comments
	} else if err != nil {
		return nil, fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one YAML document", path)
	}
	d := &decoder{path: path, lines: map[string]int{}}
	d.section(doc.Content[0], "", table)
	return d.lines, errors.Join(d.faults...)
}

// decoder walks a settings file along a table.
type decoder struct {
	path   string
	lines  map[string]int // of the settings seen, by whole key
	faults []error
}

// fault notes what is wrong at a node.
func (d *decoder) fault(n *yaml.Node, key, format string, args ...any) {
	if key != "" {
		format = strings.ReplaceAll(key, "%", "%%") + ": " + format
	}
	d.faults = append(d.faults, fmt.Errorf("%s:%d: "+format, append([]any{d.path, n.Line}, args...)...))
}

// section reads a mapping whose keys are those of the table. key is the section's, "" at
// the top of the file.
func (d *decoder) section(n *yaml.Node, key string, table []row) {
	d.mapping(n, key, func(name string, k, v *yaml.Node, key string) {
		at := slices.IndexFunc(table, func(r row) bool { return r.key == name })
		switch {
		case at >= 0:
			d.row(v, key, table[at])
		case name == "password" || name == "token":
			section := "upstream."
			if strings.HasPrefix(key, "registries.") {
				section = strings.TrimSuffix(key, name)
			}
			d.fault(k, key, "unknown setting; a secret is never part of this file: name a file with it in %spassword_file", section)
		default:
			d.fault(k, key, "unknown setting")
		}
	})
}

// mapping calls each with every entry of a mapping: its name, its nodes and its whole key.
// Null is an empty mapping.
func (d *decoder) mapping(n *yaml.Node, key string, each func(name string, k, v *yaml.Node, key string)) {
	n = resolved(n)
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.fault(n, key, "is a section: keys and values belong here")
		return
	}
	prefix := ""
	if key != "" {
		prefix = key + "."
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if first, twice := seen[k.Value]; twice {
			d.fault(k, prefix+k.Value, "is set twice, first on line %d", first)
			continue
		}
		seen[k.Value] = k.Line
		each(k.Value, k, v, prefix+k.Value)
	}
}

// row reads one key of a table. Null leaves a setting as it is.
func (d *decoder) row(n *yaml.Node, key string, r row) {
	if r.rows != nil {
		d.section(n, key, r.rows)
		return
	}
	if n = resolved(n); isNull(n) {
		return
	}
	d.lines[key] = n.Line
	if v, ok := r.value.(nodeValue); ok {
		v.decode(d, n, key)
		return
	}
	d.scalar(n, key, r.value)
}

// scalar reads a single value.
func (d *decoder) scalar(n *yaml.Node, key string, v Value) {
	if n.Kind != yaml.ScalarNode {
		d.fault(n, key, "a single value belongs here")
	} else if err := v.UnmarshalText([]byte(n.Value)); err != nil {
		d.fault(n, key, "%w", err)
	}
}

// resolved is what an alias stands for.
func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
