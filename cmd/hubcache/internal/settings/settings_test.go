package settings

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// isolate makes the settings of this test its own.
func isolate(t testing.TB) {
	for _, row := range Default().table() {
		if row.env != "" {
			t.Setenv(row.env, "")
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

// TestExampleHasEverySetting compares docs/config.example.yaml with the defaults: every
// key is there once, with its flag and variable beside it, and changes nothing.
func TestExampleHasEverySetting(t *testing.T) {
	isolate(t)
	const path = "../../../../docs/config.example.yaml"
	s := loadFile(t, path)
	if want := Default(); !reflect.DeepEqual(texts(s.Settings), texts(want)) {
		t.Errorf("the example says %v, the defaults are %v", texts(s.Settings), texts(want))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	keys := leaves(doc, "")
	for _, row := range Default().table() {
		if !slices.Contains(keys, row.key) {
			t.Errorf("%s is missing", row.key)
		}
		for _, name := range []string{"--" + row.flag, row.env} {
			if row.flag != "" && !strings.Contains(string(b), name) {
				t.Errorf("%s: %s is not mentioned", row.key, name)
			}
		}
	}
}

func leaves(m map[string]any, prefix string) (keys []string) {
	for k, v := range m {
		if sub, ok := v.(map[string]any); ok {
			keys = append(keys, leaves(sub, prefix+k+".")...)
		} else {
			keys = append(keys, prefix+k)
		}
	}
	return keys
}

// texts are all settings as they are shown.
func texts(s *Settings) map[string]string {
	m := map[string]string{}
	for _, row := range s.table() {
		m[row.key] = textOf(row.value)
	}
	return m
}

// TestFlagsAndVariables holds the names to one rule: --tag-ttl is HUBCACHE_TAG_TTL, and
// what has the one has the other.
func TestFlagsAndVariables(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range Default().table() {
		env := ""
		if row.flag != "" {
			env = "HUBCACHE_" + strings.ToUpper(strings.ReplaceAll(row.flag, "-", "_"))
		}
		if row.env != env {
			t.Errorf("%s: flag %q and variable %q", row.key, row.flag, row.env)
		}
		if seen[row.key] || row.flag != "" && seen[row.flag] {
			t.Errorf("%s is in the table twice", row.key)
		}
		seen[row.key], seen[row.flag] = true, true
		if (row.flag == "") != (row.help == "") {
			t.Errorf("%s: help goes with a flag", row.key)
		}
	}
}

// TestEverySettingCounts sets each setting away from its default, in a file and by its
// variable, and finds it set: no row of the table points at another's field.
func TestEverySettingCounts(t *testing.T) {
	isolate(t)
	other := map[string]string{
		"listen": "127.0.0.1:1", "listen_allow": "10.0.0.0/8", "tls.cert_file": "/c", "tls.key_file": "/k", "admin.listen": "127.0.0.1:2",
		"admin.hosts": "x", "data_dir": "/d", "budget": "1GiB", "min_free": "2GiB", "upstream.url": "http://u", "upstream.username": "jane",
		"upstream.password_file": "/p", "upstream.ca_file": "/ca", "upstream.private": "p/*", "tags.ttl": "3m", "tags.max_stale": "4h",
		"tags.negative_ttl": "5s", "tags.on_gone": "keep", "allow": "a/*", "deny": "d/*", "quota.reserve": "6%",
		"limits.transfers": "7", "limits.orphans": "5", "limits.ranges": "4", "limits.bypass": "9", "read_ahead": "false",
		"docker.host": "unix:///x", "docker.admin": "unix:/a", "docker.hold_dir": "/h", "docker.state": "/s",
		"docker.prune.high_watermark": "80%", "docker.prune.low_watermark": "70%", "docker.prune.critical_watermark": "90%",
		"docker.prune.min_age": "11h", "docker.prune.quiet": "12m", "docker.prune.tagged": "true", "docker.prune.keep": "k",
		"docker.prune.keep_files": "/f", "docker.prune.max_wait": "13m", "log.level": "debug", "log.format": "json",
	}
	rules := `[{"match":"a:*","ttl":"14m"}]`
	doc := map[string]any{}
	for key, text := range other {
		insert(doc, key, text)
	}
	insert(doc, "tags.rules", []map[string]string{{"match": "a:*", "ttl": "14m"}})
	s := loadFile(t, writeYAML(t, doc))
	want := maps.Clone(other)
	want["tags.rules"] = rules
	if got := texts(s.Settings); !maps.Equal(got, want) {
		t.Errorf("from the file: got %v, want %v", got, want)
	}
	if was := texts(Default()); len(was) != len(want) {
		t.Errorf("%d settings are tried of %d", len(want), len(was))
	}
	for _, row := range Default().table() {
		if row.env != "" {
			t.Setenv(row.env, other[row.key])
		}
	}
	got := texts(loadFile(t, "/dev/null").Settings)
	for _, row := range Default().table() {
		if row.env != "" && got[row.key] != other[row.key] {
			t.Errorf("%s: %q, want %q", row.env, got[row.key], other[row.key])
		}
	}
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
	b, err := yaml.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// FuzzFile shows of any file: it is refused, with its name in every line of the error, or
// what config show prints of it, written to a file again, gives the same settings.
func FuzzFile(f *testing.F) {
	example, err := os.ReadFile("../../../../docs/config.example.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Add([]byte("listen: [a:1, \"[::1]:2\"]\nbudget: 33.5%\ntags: {ttl: 1w, rules: [{match: 'a,b:*', refresh: true}]}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("tags: &t {ttl: 1s}\nquota: *t\n"))
	f.Add([]byte("min_free: 1e3\nupstream: {url: 'http://[::1]:5000'}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		isolate(t)
		one := Default()
		if _, err := decodeFile("x.yaml", b, one); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "x.yaml:") {
					t.Errorf("a fault without its file: %q", line)
				}
			}
			return
		}
		doc := map[string]any{}
		for _, row := range one.table() {
			switch v := row.value.(type) {
			case *List:
				insert(doc, row.key, []string(*v))
			case *TagRules:
				var rules []any
				if err := yaml.Unmarshal([]byte(textOf(v)), &rules); err != nil {
					t.Fatal(err)
				}
				insert(doc, row.key, rules)
			case *OptionalDuration:
				if v.D != nil {
					insert(doc, row.key, textOf(v))
				}
			default:
				insert(doc, row.key, textOf(v))
			}
		}
		again, err := yaml.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		two := Default()
		if _, err := decodeFile("y.yaml", again, two); err != nil {
			t.Fatalf("shown settings can't be read: %v\n%s", err, again)
		}
		if a, b := texts(one), texts(two); !maps.Equal(a, b) {
			t.Errorf("%v became %v", a, b)
		}
	})
}

// FuzzSize shows that a size is never negative and that its text is the same size.
func FuzzSize(f *testing.F) {
	for _, s := range []string{"20GiB", "20GB", "30%", "0.5%", "1", "1.5TiB", "-1GiB", "1e30GB", "NaN%", "999999999999999999999", "8EiB", " 1 kb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var one, two Size
		if one.UnmarshalText([]byte(s)) != nil {
			return
		}
		if one.Bytes < 0 || !(one.Share >= 0 && one.Share <= 1) || one.Share != 0 && one.Bytes != 0 {
			t.Errorf("%q is %d bytes, share %v", s, one.Bytes, one.Share)
		}
		if err := two.UnmarshalText([]byte(textOf(&one))); err != nil || two != one {
			t.Errorf("%q is %+v, and shown and read again %+v, %v", s, one, two, err)
		}
	})
}

// FuzzDuration shows that a duration is never negative and that its text is the same one.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"0", "90s", "10m", "168h", "7d", "2w", "-1s", "15250w", "15251w", "17000w", "1h30m", "1.5h", "9999999h", "1ns", "0d", "d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var one, two Duration
		if one.UnmarshalText([]byte(s)) != nil {
			return
		}
		if one < 0 {
			t.Errorf("%q is %v", s, time.Duration(one))
		}
		if err := two.UnmarshalText([]byte(textOf(&one))); err != nil || two != one {
			t.Errorf("%q is %v, shown as %q, read as %v, %v", s, time.Duration(one), textOf(&one), time.Duration(two), err)
		}
	})
}

// FuzzShare shows that a percentage stays in its bounds and is what it is shown as.
func FuzzShare(f *testing.F) {
	for _, s := range []string{"85%", "0%", "100%", "100.1%", "7%", "33.33%", "NaN%", "+Inf%", "-0%", "1e1%", "%", "85"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var one, two Percent
		if one.UnmarshalText([]byte(s)) != nil {
			return
		}
		if !(one >= 0 && one <= 1) {
			t.Errorf("%q is %v", s, float64(one))
		}
		if err := two.UnmarshalText([]byte(textOf(&one))); err != nil || fmt.Sprintf("%.6g", two) != fmt.Sprintf("%.6g", one) {
			t.Errorf("%q is %v, shown as %s, read as %v, %v", s, float64(one), textOf(&one), float64(two), err)
		}
	})
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"20GiB": {Bytes: 20 << 30}, "20GB": {Bytes: 20e9}, "1.5TiB": {Bytes: 3 << 39}, "4096": {Bytes: 4096}, "512kib": {Bytes: 512 << 10},
		"30%": {Share: 0.3}, "0.5%": {Share: 0.005}, "0": {},
	} {
		var got Size
		err := got.UnmarshalText([]byte(text))
		if want.text = text; err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1GiB", "101%", "-1%", "0%", "twenty", "1e30GB", "9EiB", "20 apples", "NaN%"} {
		if got := new(Size); got.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "168h": 168 * time.Hour, "7d": 168 * time.Hour, "2w": 336 * time.Hour, "1h30m": 90 * time.Minute,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "7", "-1s", "-7d", "d", "1.5d", "17000w", "+-1d", "20000w0", "week"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

// TestTableHasEveryField: a setting that is not in the table can't be set.
func TestTableHasEveryField(t *testing.T) {
	s := Default()
	inTable := map[any]string{}
	for _, row := range s.table() {
		if other := inTable[row.value]; other != "" {
			t.Errorf("%s and %s are the same field", row.key, other)
		}
		inTable[row.value] = row.key
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
