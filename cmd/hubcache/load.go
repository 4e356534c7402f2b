package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
	kind  string // in the help
}

func (f *rawFlag) String() string { return strings.Join(f.given, ",") }
func (f *rawFlag) Type() string   { return f.kind }

func (f *rawFlag) Set(s string) error {
	if !f.list {
		f.given = nil
	}
	f.given, f.isSet = append(f.given, s), true
	return nil
}

// bindConfig gives every command the flag that names the file.
func (l *loader) bindConfig(fs *pflag.FlagSet) {
	fs.StringVar(&l.file, "config", "", "settings `file` (default $HUBCACHE_CONFIG, else "+defaultConfig+" where there is one)")
}

// bind gives a command the flags of serve.
func (l *loader) bind(cmd *cobra.Command) {
	l.flags = map[string]*rawFlag{}
	for _, row := range defaults().table() {
		if row.flag == "" {
			continue
		}
		f := &rawFlag{kind: "value"}
		switch row.value.(type) {
		case *list:
			f.list, f.kind = true, "list"
		case *span, *maybeSpan:
			f.kind = "duration"
		case *size, *onlyBytes:
			f.kind = "size"
		}
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
	lines, err := decodeFile(path, b, s.settings)
	if err != nil {
		return err
	}
	for key, line := range lines {
		s.source[key] = fmt.Sprintf("file %s:%d", path, line)
	}
	return nil
}
