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

// decodeFile reads YAML into s, strictly, and returns the line of each key that it sets.
// The error has all faults, each with its line and none with a value that could be a
// secret in the wrong place.
func decodeFile(path string, b []byte, s *Settings) (lines map[string]int, err error) {
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
	f := fileReader{path: path, lines: map[string]int{}}
	f.mapping(doc.Content[0], "", s.table())
	return f.lines, errors.Join(f.faults...)
}

// fileReader walks a settings file along a table.
type fileReader struct {
	path   string
	lines  map[string]int // of the keys seen
	faults []error
}

func (f *fileReader) fault(n *yaml.Node, key, format string, args ...any) {
	if key != "" {
		format = strings.ReplaceAll(key, "%", "%%") + ": " + format
	}
	f.faults = append(f.faults, fmt.Errorf("%s:%d: "+format, append([]any{f.path, n.Line}, args...)...))
}

// mapping reads a section: the keys of table that begin with prefix.
func (f *fileReader) mapping(n *yaml.Node, prefix string, table []setting) {
	n = resolved(n)
	section := strings.TrimSuffix(prefix, ".")
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		f.fault(n, section, "is a section: keys and values belong here")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		key := prefix + k.Value
		if first, twice := seen[key]; twice {
			f.fault(k, key, "is set twice, first on line %d", first)
			continue
		}
		seen[key] = k.Line
		switch at := slices.IndexFunc(table, func(row setting) bool { return row.key == key }); {
		case at >= 0:
			f.value(v, table[at])
		case slices.ContainsFunc(table, func(row setting) bool { return strings.HasPrefix(row.key, key+".") }):
			f.mapping(v, key+".", table)
		case k.Value == "password" || k.Value == "token":
			f.fault(k, key, "unknown setting; a secret is never part of this file: name a file with it in upstream.password_file")
		default:
			f.fault(k, key, "unknown setting")
		}
	}
}

// value reads one setting. Null leaves it as it is.
func (f *fileReader) value(n *yaml.Node, row setting) {
	if n = resolved(n); isNull(n) {
		return
	}
	f.lines[row.key] = n.Line
	switch v := row.value.(type) {
	case *TagRules:
		f.rules(n, row.key, v)
		return
	case *List:
		if n.Kind == yaml.SequenceNode {
			f.list(n, row.key, v)
			return
		}
	}
	if n.Kind != yaml.ScalarNode {
		f.fault(n, row.key, "a single value belongs here")
	} else if err := row.value.UnmarshalText([]byte(n.Value)); err != nil {
		f.fault(n, row.key, "%w", err)
	}
}

func (f *fileReader) list(n *yaml.Node, key string, to *List) {
	*to = nil
	for _, item := range n.Content {
		if item = resolved(item); item.Kind != yaml.ScalarNode || item.Value == "" {
			f.fault(item, key, "every item is a single value")
			continue
		}
		*to = append(*to, item.Value)
	}
}

func (f *fileReader) rules(n *yaml.Node, key string, to *TagRules) {
	*to = nil
	if n.Kind != yaml.SequenceNode {
		f.fault(n, key, `a list of rules like {match: "library/*:*-alpine", ttl: 10m} belongs here`)
		return
	}
	for _, item := range n.Content {
		var r TagRule
		part := fileReader{path: f.path, lines: map[string]int{}}
		part.mapping(item, key+".", r.table(key+"."))
		f.faults = append(f.faults, part.faults...)
		if r.Match == "" {
			f.fault(item, key, "a rule needs match, a pattern like library/*:*-alpine")
		}
		*to = append(*to, r)
	}
}

func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
