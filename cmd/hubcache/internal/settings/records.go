package settings

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

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
	setDefaults(r.table())
	return r
}

// changedOf returns the settings of a record that differ from its defaults, nested like the file.
func changedOf[T any, P record[T]](r P) map[string]any {
	return changed(r.table(), newRecord[T, P]().table())
}

// errFileOnly refuses a flag or variable for what has more than one value.
var errFileOnly = errors.New("doesn't fit into one word: set it in the file, or as YAML in " + documentVariable)

// Records is a list of records, such as tags.rules. Only YAML can set it: the file, or
// HUBCACHE_SETTINGS.
type Records[T any, P record[T]] []T

// UnmarshalText always fails. It is there for Value only; the file is read by decode.
func (l *Records[T, P]) UnmarshalText([]byte) error { return errFileOnly }

// MarshalText returns the list as the file may have it.
func (l Records[T, P]) MarshalText() ([]byte, error) { return json.Marshal(l.document()) }

// Kind implements Value.
func (Records[T, P]) Kind() string { return "value" }

func (l Records[T, P]) document() any {
	docs := []any{}
	for i := range l {
		docs = append(docs, changedOf(P(&l[i])))
	}
	return docs
}

// decode reads a list of sections. The part that reads one of them has lines of its own, which
// are thrown away: for config show the whole list is one setting with one line.
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

// Map is a section for each of several named records, such as registries. Only YAML can set it:
// the file, or HUBCACHE_SETTINGS. The settings of a record have keys of their own: in a Map with
// the key registries, the record ghcr.io has registries.ghcr.io.url. A record that has a method
// complete is told its name once it has been read.
type Map[T any, P record[T]] map[string]P

// UnmarshalText always fails. It is there for Value only; the file is read by decode.
func (m *Map[T, P]) UnmarshalText([]byte) error { return errFileOnly }

// MarshalText returns the records as the file may have them.
func (m Map[T, P]) MarshalText() ([]byte, error) { return json.Marshal(m.document()) }

// Kind implements Value.
func (Map[T, P]) Kind() string { return "value" }

func (m Map[T, P]) document() any {
	doc := map[string]any{}
	for name, r := range m {
		doc[name] = changedOf(r)
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
		d.lines[key] = k.Line // for faults that are found later
		complete(r, name)
		(*m)[name] = r
	})
}

// complete tells a record its name, if it wants to know.
func complete(r any, name string) {
	if c, ok := r.(interface{ complete(name string) }); ok {
		c.complete(name)
	}
}

// grow adds the record that a key belongs to, of which the Map's own key has been cut off:
// "ghcr.io.url". Names may have dots, so the longest setting at the end of the key counts.
func (m *Map[T, P]) grow(key string) {
	found := ""
	for setting := range leaves(newRecord[T, P]().table()) {
		if len(setting) > len(found) && len(key) > len(setting)+1 && strings.HasSuffix(key, "."+setting) {
			found = setting
		}
	}
	name := strings.TrimSuffix(key, "."+found)
	if found == "" || (*m)[name] != nil {
		return
	}
	if *m == nil {
		*m = Map[T, P]{}
	}
	(*m)[name] = newRecord[T, P]()
}
