package settings

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// isolate keeps the settings of this machine out of the test.
func isolate(t testing.TB) {
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, prefix) {
			t.Setenv(name, "") // so that it is there again after the test
			os.Unsetenv(name)
		}
	}
	t.Setenv("STATE_DIRECTORY", "/var/lib/hubcache")
	t.Setenv("HUBCACHE_CONFIG", "/dev/null")
}

func loadFile(t testing.TB, path string) *Loaded {
	t.Helper()
	s, err := (&Loader{File: path}).Load()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const examplePath = "../../../../docs/use/config.example.yaml"

// TestExampleHasEverySetting compares docs/use/config.example.yaml with the defaults: every
// key is there once, with its flag and variable beside it, and changes nothing.
func TestExampleHasEverySetting(t *testing.T) {
	isolate(t)
	s := loadFile(t, examplePath)
	if want := Default(); !reflect.DeepEqual(texts(s.Settings), texts(want)) {
		t.Errorf("the example says %v, the defaults are %v", texts(s.Settings), texts(want))
	}
	b, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	keys := keysIn(doc, "")
	for key, r := range leaves(Default().table()) {
		if !slices.Contains(keys, key) {
			t.Errorf("%s is missing", key)
		}
		for _, name := range []string{"--" + r.flag, r.alias(key)} {
			if r.flag != "" && !strings.Contains(string(b), name) {
				t.Errorf("%s: %s is not mentioned", key, name)
			}
		}
	}
}

func keysIn(m map[string]any, prefix string) (keys []string) {
	for k, v := range m {
		if sub, ok := v.(map[string]any); ok && len(sub) > 0 {
			keys = append(keys, keysIn(sub, prefix+k+".")...)
		} else {
			keys = append(keys, prefix+k)
		}
	}
	return keys
}

// texts are all settings as config show prints them.
func texts(s *Settings) map[string]string {
	m := map[string]string{}
	for key, r := range leaves(s.table()) {
		m[key] = textOf(r.value)
	}
	return m
}

// TestNamesAreUnique: no two settings have a flag or a variable in common, older names of
// variables and those that are no settings included.
func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range otherVariables() {
		seen[name] = true
	}
	for key, r := range leaves(Default().table()) {
		for _, name := range []string{key, "--" + r.flag, variable(key), r.alias(key)} {
			if name != "--" && name != "" && seen[name] {
				t.Errorf("%s: %s is there twice", key, name)
			}
			seen[name] = true
		}
		if (r.flag == "") != (r.help == "") {
			t.Errorf("%s: help goes with a flag", key)
		}
	}
}

// TestEverySettingCanBeSet sets each setting alone to something else than its default, in a
// file, by its variables and by its flag. Then that setting has changed and no other: no
// row of the table points at the field of another.
func TestEverySettingCanBeSet(t *testing.T) {
	isolate(t)
	for key, r := range leaves(Default().table()) {
		if key == "registries" {
			continue // see TestRegistries
		}
		written, shown := otherwise(t, key, r.value)
		want := texts(Default())
		want[key] = shown

		doc := map[string]any{}
		insert(doc, key, written)
		if got := gathered(t, &Loader{File: writeYAML(t, doc)}); !maps.Equal(got, want) {
			t.Errorf("%s in the file: got %v, want %v", key, got, want)
		}
		for _, name := range []string{variable(key), r.alias(key), documentVariable} {
			text := shown
			if _, list := r.value.(nodeValue); name == "" || list && text[0] == '[' && name != documentVariable {
				continue
			}
			if name == documentVariable {
				text = string(encodeYAML(t, doc))
			}
			t.Setenv(name, text)
			if got := gathered(t, &Loader{}); !maps.Equal(got, want) {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
			os.Unsetenv(name)
		}
		if r.flag == "" {
			continue
		}
		l, fs := &Loader{}, pflag.NewFlagSet("test", pflag.ContinueOnError)
		l.BindFlags(fs)
		if err := fs.Parse([]string{"--" + r.flag, shown}); err != nil {
			t.Fatal(err)
		}
		if got := gathered(t, l); !maps.Equal(got, want) {
			t.Errorf("--%s: got %v, want %v", r.flag, got, want)
		}
	}
}

// otherwise returns something that a setting takes and that isn't its default: as the
// file may have it, and as config show prints it.
func otherwise(t *testing.T, key string, v Value) (written any, shown string) {
	t.Helper()
	if key == "tags.rules" {
		return []map[string]string{{"match": "a:*", "ttl": "14m"}}, `[{"match":"a:*","ttl":"14m"}]`
	}
	before := textOf(v)
	for _, text := range []string{"/" + key, "77m", "77%", "77GiB", "77", "true", "false", "keep", "debug", "json", "linux/arm64", "7 7 * * *", "sha256:" + strings.Repeat("7", 64)} {
		if v.UnmarshalText([]byte(text)) == nil && textOf(v) != before {
			return text, textOf(v)
		}
	}
	t.Fatalf("%s takes none of the texts that are tried", key)
	return nil, ""
}

// gathered are the settings that a loader puts together, before anything checks them.
func gathered(t *testing.T, l *Loader) map[string]string {
	t.Helper()
	s, err := l.gather()
	if err != nil {
		t.Fatal(err)
	}
	return texts(s.Settings)
}

// insert puts a value into nested mappings.
func insert(m map[string]any, key string, v any) {
	head, rest, nested := strings.Cut(key, ".")
	if !nested {
		m[head] = v
		return
	}
	if m[head] == nil {
		m[head] = map[string]any{}
	}
	insert(m[head].(map[string]any), rest, v)
}

func writeYAML(t testing.TB, doc any) string {
	t.Helper()
	b := encodeYAML(t, doc)
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func encodeYAML(t testing.TB, doc any) []byte {
	t.Helper()
	b, err := yaml.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTableHasEveryField: a setting that is not in the table can't be set.
func TestTableHasEveryField(t *testing.T) {
	s := Default()
	inTable := map[any]string{}
	for key, r := range leaves(s.table()) {
		if other := inTable[r.value]; other != "" {
			t.Errorf("%s and %s are the same field", key, other)
		}
		inTable[r.value] = key
	}
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		if leaf, ok := v.Addr().Interface().(Value); ok {
			if inTable[leaf] == "" {
				t.Errorf("%s is not in the table", path)
			}
			return
		}
		for i := range v.NumField() {
			walk(v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	}
	walk(reflect.ValueOf(s).Elem(), "settings")
}
