package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// defaultConfig is read when it is there and no other is named.
const defaultConfig = "/etc/hubcache/config.yaml"

// loader finds the settings for a command: flag over environment over file over default.
type loader struct {
	file  string // --config
	flags map[string]*rawFlag
}

// rawFlag keeps what a flag was given until the settings are put together.
type rawFlag struct {
	given []string
	isSet bool
	list  bool
}

func (f *rawFlag) String() string { return strings.Join(f.given, ",") }
func (f *rawFlag) Type() string {
	if f.list {
		return "list"
	}
	return "value"
}

func (f *rawFlag) Set(s string) error {
	if !f.list {
		f.given = nil
	}
	f.given, f.isSet = append(f.given, s), true
	return nil
}

// bindConfig gives every command the flag that names the file.
func (l *loader) bindConfig(fs *pflag.FlagSet) {
	fs.StringVar(&l.file, "config", "", "settings file (default $HUBCACHE_CONFIG, else "+defaultConfig+" where there is one)")
}

// bind gives a command the flags of serve.
func (l *loader) bind(cmd *cobra.Command) {
	l.flags = map[string]*rawFlag{}
	for _, row := range defaults().table() {
		if row.flag == "" {
			continue
		}
		_, isList := row.value.(*list)
		f := &rawFlag{list: isList}
		l.flags[row.key] = f
		help := row.help
		if d := row.value.String(); d != "" && !strings.Contains(help, "(default") {
			help += " (default " + d + ")"
		}
		cmd.Flags().Var(f, row.flag, help)
	}
}

// loaded are settings and where each came from.
type loaded struct {
	*settings
	file   string            // that was read; ""
	source map[string]string // by key; absent: the default
}

// usageError is a fault in what the user wrote: exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// load puts the settings together and checks them. Errors are usageErrors.
func (l *loader) load() (*loaded, error) {
	s := &loaded{settings: defaults(), source: map[string]string{}}
	if err := l.readFile(s); err != nil {
		return nil, usageError{err}
	}
	for _, row := range s.table() {
		if v, ok := os.LookupEnv(row.env); ok && row.env != "" && v != "" {
			if err := row.value.Set(v); err != nil {
				return nil, usageError{fmt.Errorf("%s: %w", row.env, err)}
			}
			s.source[row.key] = "environment " + row.env
		}
		if f := l.flags[row.key]; f != nil && f.isSet {
			if err := row.value.Set(f.String()); err != nil {
				return nil, usageError{fmt.Errorf("--%s: %w", row.flag, err)}
			}
			s.source[row.key] = "flag --" + row.flag
		}
	}
	if err := s.check(); err != nil {
		return nil, usageError{err}
	}
	return s, nil
}

// path returns the file to read, and whether it must be there.
func (l *loader) path() (path string, must bool) {
	if l.file != "" {
		return l.file, true
	}
	if p := os.Getenv("HUBCACHE_CONFIG"); p != "" {
		return p, true
	}
	return defaultConfig, false
}

func (l *loader) readFile(s *loaded) error {
	path, must := l.path()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil
	}
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	s.file = path
	keys, err := decodeFile(b, s.settings)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, key := range keys {
		s.source[key] = "file " + path
	}
	return nil
}

// decodeFile reads YAML into s, strictly, and returns the keys that were set. Errors name
// the line.
func decodeFile(b []byte, s *settings) (keys []string, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(s); err != nil && !errors.Is(err, io.EOF) {
		return nil, plainYAML(err)
	}
	if err := dec.Decode(&struct{}{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	var root yaml.Node
	if err := yaml.Unmarshal(b, &root); err != nil {
		return nil, plainYAML(err)
	}
	if len(root.Content) > 0 {
		keys = walkKeys(root.Content[0], "", nil)
	}
	return keys, nil
}

// plainYAML takes the library's and Go's names out of its messages.
func plainYAML(err error) error {
	t, ok := errors.AsType[*yaml.TypeError](err)
	if !ok {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	msgs := slices.Clone(t.Errors)
	for i, m := range msgs {
		if before, rest, ok := strings.Cut(m, "field "); ok && strings.Contains(rest, " not found in type ") {
			name, _, _ := strings.Cut(rest, " not found in type ")
			msgs[i] = before + "unknown setting " + name
		}
	}
	return errors.New(strings.Join(msgs, "; "))
}

// walkKeys names the leaves of a mapping: what the table calls keys, and tags.rules.
func walkKeys(n *yaml.Node, prefix string, keys []string) []string {
	if n.Kind != yaml.MappingNode {
		return append(keys, strings.TrimSuffix(prefix, "."))
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		keys = walkKeys(n.Content[i+1], prefix+n.Content[i].Value+".", keys)
	}
	return keys
}
