package settings

import (
	"encoding/json"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// row is one key of a table: a setting, or a section with a table of its own.
type row struct {
	key     string // within its section
	rows    []row  // of a section; nil for a setting
	value   Value  // of a setting; nil for a section
	initial string // the default, as text; "" is the zero value
	flag    string // "" when there is none; the environment variable's name follows from it
	help    string // of the flag
	effect  effect // when a change of it takes effect
}

// effect says when a change of a setting takes effect.
type effect int

const (
	asSection effect = iota // as the section says
	onReload                // when the server gets SIGHUP
	onRestart               // when the server is started again
	onRun                   // when the command that uses it is run again; the server doesn't use it
)

// env is the environment variable of a setting, "" when there is none: --tag-ttl is
// HUBCACHE_TAG_TTL.
func (r row) env() string {
	if r.flag == "" {
		return ""
	}
	return "HUBCACHE_" + strings.ToUpper(strings.ReplaceAll(r.flag, "-", "_"))
}

// leaves are the settings of a table in its order, each with its whole key and its own
// effect. A map of records counts as a section with a section for each name; an empty one
// as a setting.
func leaves(table []row) iter.Seq2[string, row] {
	return func(yield func(string, row) bool) { visit(table, "", asSection, yield) }
}

// visit does the work of leaves for a table in a section with that key and effect. It
// returns false when yield has.
func visit(table []row, prefix string, section effect, yield func(string, row) bool) bool {
	for _, r := range table {
		if r.effect == asSection {
			r.effect = section
		}
		below := r.rows
		if m, ok := r.value.(interface{ sections() []row }); ok {
			below = m.sections()
		}
		key := prefix + r.key
		if len(below) == 0 && !yield(key, r) {
			return false
		}
		if !visit(below, key+".", r.effect, yield) {
			return false
		}
	}
	return true
}

// setInitial sets every setting of a table to its default. A default that can't be read is
// a mistake in the table.
func setInitial(table []row) {
	for key, r := range leaves(table) {
		if r.initial == "" {
			continue
		}
		if err := r.value.UnmarshalText([]byte(r.initial)); err != nil {
			panic("settings: the default of " + key + ": " + err.Error())
		}
	}
}

// document is what differs between a table and the same table with its defaults, in the
// shape of the file.
func document(table, initial []row) map[string]any {
	doc := map[string]any{}
	for i, r := range table {
		if r.rows != nil {
			if section := document(r.rows, initial[i].rows); len(section) > 0 {
				doc[r.key] = section
			}
			continue
		}
		if text := textOf(r.value); text != textOf(initial[i].value) {
			doc[r.key] = text
			if d, ok := r.value.(interface{ document() any }); ok {
				doc[r.key] = d.document()
			}
		}
	}
	return doc
}

// nodeValue is a Value that may be more than a scalar in the file.
type nodeValue interface {
	Value
	// decode sets it from a node that is not null. key is the whole key, for faults.
	decode(d *decoder, n *yaml.Node, key string)
}

// decode reads a list, or a scalar with commas.
func (l *List) decode(d *decoder, n *yaml.Node, key string) {
	if n.Kind != yaml.SequenceNode {
		d.scalar(n, key, l)
		return
	}
	*l = nil
	for _, item := range n.Content {
		if item = resolved(item); item.Kind != yaml.ScalarNode || item.Value == "" {
			d.fault(item, key, "every item is a single value")
			continue
		}
		*l = append(*l, item.Value)
	}
}

// document is the list as the file has it: an item may hold a comma.
func (l List) document() any { return []string(l) }

// record is a pointer to a struct that has a table of its own.
type record[T any] interface {
	*T
	table() []row
	// check finds what is wrong with the record as a whole.
	check() error
}

// newRecord returns a record with its defaults.
func newRecord[T any, P record[T]]() P {
	r := P(new(T))
	setInitial(r.table())
	return r
}

// documentOf is what differs between a record and one with its defaults.
func documentOf[T any, P record[T]](r P) map[string]any {
	return document(r.table(), newRecord[T, P]().table())
}

// errFileOnly refuses a flag or variable for what has more than one value.
var errFileOnly = errors.New("can be set in the file only")

// Records is a list of records, such as tags.rules. Only the file can set it.
type Records[T any, P record[T]] []T

// UnmarshalText always fails.
func (l *Records[T, P]) UnmarshalText([]byte) error { return errFileOnly }

// MarshalText returns the list as the file may have it.
func (l Records[T, P]) MarshalText() ([]byte, error) { return json.Marshal(l.document()) }

// Kind implements Value.
func (Records[T, P]) Kind() string { return "value" }

func (l Records[T, P]) document() any {
	docs := []any{}
	for i := range l {
		docs = append(docs, documentOf(P(&l[i])))
	}
	return docs
}

// decode reads a list of sections. For config show the whole list is one setting, so only
// its line is noted.
func (l *Records[T, P]) decode(d *decoder, n *yaml.Node, key string) {
	*l = nil
	if n.Kind != yaml.SequenceNode {
		d.fault(n, key, "a list belongs here, whose items are sections with the keys %s", strings.Join(keysOf(P(new(T)).table()), ", "))
		return
	}
	for _, item := range n.Content {
		r := newRecord[T, P]()
		part := &decoder{path: d.path, lines: map[string]int{}}
		part.section(item, key, r.table())
		if err := r.check(); err != nil {
			part.fault(item, key, "%w", err)
		}
		d.faults = append(d.faults, part.faults...)
		*l = append(*l, *r)
	}
}

func keysOf(table []row) (keys []string) {
	for _, r := range table {
		keys = append(keys, r.key)
	}
	return keys
}

// Map is records by name, such as registries. Only the file can set it. A record's
// settings have keys of their own: registries.ghcr.io.url.
type Map[T any, P record[T]] map[string]P

// UnmarshalText always fails.
func (m *Map[T, P]) UnmarshalText([]byte) error { return errFileOnly }

// MarshalText returns the records as the file may have them; nothing when there are none.
func (m Map[T, P]) MarshalText() ([]byte, error) {
	if len(m) == 0 {
		return nil, nil
	}
	return json.Marshal(m.document())
}

// Kind implements Value.
func (Map[T, P]) Kind() string { return "value" }

func (m Map[T, P]) document() any {
	doc := map[string]any{}
	for name, r := range m {
		doc[name] = documentOf(r)
	}
	return doc
}

// sections is a section for each record, by name.
func (m Map[T, P]) sections() (table []row) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		table = append(table, row{key: name, rows: m[name].table()})
	}
	return table
}

// decode reads a section for each name; null is a record with its defaults.
func (m *Map[T, P]) decode(d *decoder, n *yaml.Node, key string) {
	*m = Map[T, P]{}
	d.mapping(n, key, func(name string, k, v *yaml.Node, key string) {
		r := newRecord[T, P]()
		d.section(v, key, r.table())
		if err := r.check(); err != nil {
			d.fault(k, key, "%w", err)
		}
		(*m)[name] = r
	})
}
