package settings

import "iter"

// row is one key of a table: a setting, or a section with a table of its own.
type row struct {
	key      string // within its section
	rows     []row  // of a section; nil for a setting
	value    Value  // of a setting; nil for a section
	defValue string // the default, as text; "" is the zero value
	flag     string // "" when there is none
	help     string // of the flag; the word in backquotes is the placeholder, and "(default …)" replaces the computed default
	effect   effect // when a change of it takes effect
}

// effect says when a change of a setting takes effect.
type effect int

const (
	// asSection is as the section says. On a top-level setting it is a mistake, which a test
	// finds.
	asSection effect = iota
	onReload         // when the server gets SIGHUP
	onRestart        // when the server is started again
	onRun            // when the command that uses it is run again; the server doesn't use it
)

// leaves are the settings of a table in its order, each with its whole key and its own
// effect. A Map with records counts as a section that has a section for each name; an empty
// Map counts as a setting.
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

// setDefaults sets every setting of a new table to its default. It panics if a default can't
// be read, which is a mistake in the table.
func setDefaults(table []row) {
	for key, r := range leaves(table) {
		if r.defValue == "" {
			continue
		}
		if err := r.value.UnmarshalText([]byte(r.defValue)); err != nil {
			panic("settings: the default of " + key + ": " + err.Error())
		}
	}
}

// changed returns the settings of table whose value is not that of defaults, nested like the
// file. Both are tables of the same type.
func changed(table, defaults []row) map[string]any {
	doc := map[string]any{}
	for i, r := range table {
		if r.rows != nil {
			if section := changed(r.rows, defaults[i].rows); len(section) > 0 {
				doc[r.key] = section
			}
			continue
		}
		text := textOf(r.value)
		if text == textOf(defaults[i].value) {
			continue
		}
		if d, ok := r.value.(interface{ document() any }); ok { // more than a scalar in the file
			doc[r.key] = d.document()
		} else {
			doc[r.key] = text
		}
	}
	return doc
}
