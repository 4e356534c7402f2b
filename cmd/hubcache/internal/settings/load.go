package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// DefaultFile is the file that is read when no other is named, and that may be missing. The
// packaged service uses it.
const DefaultFile = "/etc/hubcache/config.yaml"

// installedDefaults is a file of the installation and not of the operator: the container image
// has one, because it has to listen on all addresses of its container. Whatever else is set has
// precedence.
const installedDefaults = "/usr/share/hubcache/defaults.yaml"

// Loader puts the settings of a command together from flags, environment and file. It is
// not safe for concurrent use.
type Loader struct {
	File  string                // of --config; "": $HUBCACHE_CONFIG or the default file
	Check func(*Settings) error // is called after the checks of this package; nil: no more checks

	// Defaults is the file with the defaults of the installation, which may be missing; ""
	// is /usr/share/hubcache/defaults.yaml.
	Defaults string

	flags map[string]*rawFlag
}

// rawFlag keeps what a flag was given until the settings are put together.
type rawFlag struct {
	given []string
	isSet bool
	kind  string // in the help
}

func (f *rawFlag) String() string { return strings.Join(f.given, ",") }
func (f *rawFlag) Type() string   { return f.kind }

func (f *rawFlag) Set(s string) error {
	if f.kind != kindList {
		f.given = nil
	}
	f.given, f.isSet = append(f.given, s), true
	return nil
}

// Flag makes a flag of a value. Help shows no default for it, because the settings decide
// what holds without the flag.
func Flag(v Value) pflag.Value { return valueFlag{v} }

type valueFlag struct{ Value }

func (f valueFlag) Set(s string) error { return f.UnmarshalText([]byte(s)) }
func (f valueFlag) String() string     { return "" }
func (f valueFlag) Type() string       { return f.Kind() }

// BindFile defines the flag that names the file.
func (l *Loader) BindFile(fs *pflag.FlagSet) {
	fs.StringVar(&l.File, "config", "", "settings `file` (default $HUBCACHE_CONFIG, else "+DefaultFile+")")
}

// BindFlags defines a flag for each setting that has one.
func (l *Loader) BindFlags(fs *pflag.FlagSet) {
	l.flags = map[string]*rawFlag{}
	for key, r := range leaves(Default().table()) {
		if r.flag == "" {
			continue
		}
		f := &rawFlag{kind: r.value.Kind()}
		l.flags[key] = f
		help := r.help
		if d := textOf(r.value); d != "" && !strings.Contains(help, "(default") {
			help += " (default " + d + ")"
		}
		fs.Var(f, r.flag, help)
	}
}

// Loaded are settings with the source of each.
type Loaded struct {
	*Settings
	File     string            // the file that was read; "": none
	source   map[string]string // by key; absent: the default
	warnings []string
}

// Warnings are about what was written and has no effect, or is probably not meant so, a line each. The server logs them, and
// config check and config show print them.
func (s *Loaded) Warnings() []string { return s.warnings }

// Warn adds warnings.
func (s *Loaded) Warn(warnings ...string) { s.warnings = append(s.warnings, warnings...) }

// UsageError is a fault in what the user wrote: on the command line, in the environment
// or in the settings file. The program ends with exit code 2.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }

// Unwrap returns the fault itself.
func (e UsageError) Unwrap() error { return e.Err }

// Load puts the settings together and checks them. Every error is a UsageError.
func (l *Loader) Load() (*Loaded, error) {
	s, err := l.gather()
	if err == nil {
		err = errors.Join(s.check(), s.checkRegistries())
	}
	if err == nil && l.Check != nil {
		err = s.placed(l.Check(s.Settings))
	}
	if err != nil {
		return nil, UsageError{err}
	}
	s.warnings = append(s.warnings, s.doubts()...)
	return s, nil
}

// KeyError is what a Loader's Check finds wrong with one setting.
type KeyError struct {
	Key  string
	Text string
}

func (e *KeyError) Error() string { return e.Key + ": " + e.Text }

// placed puts the line of the setting in front of a KeyError.
func (s *Loaded) placed(err error) error {
	if e, ok := errors.AsType[*KeyError](err); ok {
		return fmt.Errorf("%s%w", s.at(e.Key), err)
	}
	return err
}

// gather puts the settings together without checking them.
func (l *Loader) gather() (*Loaded, error) {
	s := &Loaded{Settings: Default(), source: map[string]string{}}
	if err := l.readFiles(s); err != nil {
		return nil, err
	}
	if err := readEnvironment(s); err != nil {
		return nil, err
	}
	for key, r := range leaves(s.table()) {
		if f := l.flags[key]; f != nil && f.isSet {
			if err := r.value.UnmarshalText([]byte(f.String())); err != nil {
				return nil, fmt.Errorf("--%s: %w", r.flag, err)
			}
			s.source[key] = "flag --" + r.flag
		}
	}
	return s, nil
}

// path returns the file to read, and whether it has to exist.
func (l *Loader) path() (path string, must bool) {
	if l.File != "" {
		return l.File, true
	}
	if p := os.Getenv(configVariable); p != "" {
		return p, true
	}
	return DefaultFile, false
}

// readFiles reads the defaults of the installation, if it has any, and then the file, if there is
// one.
func (l *Loader) readFiles(s *Loaded) error {
	defaults := l.Defaults
	if defaults == "" {
		defaults = installedDefaults
	}
	if _, err := readFile(s, defaults, false); err != nil {
		return err
	}
	path, must := l.path()
	found, err := readFile(s, path, must)
	if found {
		s.File = path
	}
	return err
}

// readFile sets what a file has, and reports whether there is one. It is an error if there is
// none and there must be.
func readFile(s *Loaded, path string, must bool) (found bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("settings: %w", err)
	}
	return true, s.readDocument("file "+path, path, b)
}

// readDocument sets what a document has. source is what it is called with a line behind it.
func (s *Loaded) readDocument(source, path string, b []byte) error {
	lines, err := decodeFile(path, b, s.table())
	if err != nil {
		return err
	}
	for key := range lines {
		// A Map is set as a whole, so what an earlier document has set of it is gone.
		maps.DeleteFunc(s.source, func(old, _ string) bool { return strings.HasPrefix(old, key+".") })
	}
	for key, line := range lines {
		s.source[key] = fmt.Sprintf("%s:%d", source, line)
	}
	return nil
}

// Source returns where a setting is from, such as "file /etc/hubcache/config.yaml:3"; "" if it
// has its default.
func (s *Loaded) Source(key string) string { return s.source[key] }

// SetSource says that a setting was overruled, and by what.
func (s *Loaded) SetSource(key, source string) { s.source[key] = source }

// Shown is a setting as config show prints it. Its JSON form is stable.
type Shown struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// Show returns every setting, in the order of the table.
func (s *Loaded) Show() []Shown {
	var all []Shown
	for key, r := range leaves(s.table()) {
		source := s.source[key]
		if source == "" {
			source = "default"
		}
		all = append(all, Shown{key, textOf(r.value), source})
	}
	return all
}

// Restore returns the settings whose texts Show gave, such as those of a running server. Keys
// that this program doesn't know, and values that it can't read, are left out: a newer server
// may have both.
func Restore(rows []Shown) *Settings {
	s := Default()
	for _, shown := range rows {
		for _, r := range s.table() {
			if m, ok := r.value.(interface{ grow(string) }); ok && strings.HasPrefix(shown.Key, r.key+".") {
				m.grow(strings.TrimPrefix(shown.Key, r.key+"."))
			}
		}
	}
	table := map[string]row{}
	for key, r := range leaves(s.table()) {
		table[key] = r
	}
	for _, shown := range rows {
		r, known := table[shown.Key]
		if !known {
			continue
		}
		if v, ok := r.value.(nodeValue); ok && r.value.Kind() != kindList {
			_ = decodeText(v, shown) // what can't be read stays the default
		} else {
			_ = r.value.UnmarshalText([]byte(shown.Value))
		}
	}
	return s
}

// decodeText reads what only the file can set from its text, which is JSON and so YAML too.
func decodeText(v nodeValue, shown Shown) error {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(shown.Value), &doc); err != nil || len(doc.Content) == 0 {
		return err
	}
	d := &decoder{path: shown.Key, lines: map[string]int{}}
	v.decode(d, doc.Content[0], shown.Key)
	return errors.Join(d.faults...)
}
