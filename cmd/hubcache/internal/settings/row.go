package settings

import (
	"iter"
	"strings"
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
