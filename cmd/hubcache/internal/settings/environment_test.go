package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEnvironmentIsBetweenFileAndFlags: the document of HUBCACHE_SETTINGS wins over the files, a
// single variable over the document, and the source of each says so.
func TestEnvironmentIsBetweenFileAndFlags(t *testing.T) {
	isolate(t)
	dir := t.TempDir()
	write := func(name, body string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	l := &Loader{
		Defaults: write("defaults.yaml", "listen: [0.0.0.0:5000]\nbudget: 1GiB\n"),
		File:     write("config.yaml", "budget: 2GiB\nmin_free: 2GiB\nlimits: {ranges: 2, bypass: 2}\n"),
	}
	t.Setenv("HUBCACHE_SETTINGS", "min_free: 3GiB\nlimits:\n  ranges: 3\ntags: {rules: [{match: 'a:*', ttl: 1h}]}\n")
	t.Setenv("HUBCACHE_LIMITS_RANGES", "4")
	s, err := l.Load()
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string][2]string{
		"listen":        {"0.0.0.0:5000", "file " + l.Defaults + ":1"},
		"budget":        {"2GiB", "file " + l.File + ":1"},
		"min_free":      {"3GiB", "environment HUBCACHE_SETTINGS:1"},
		"limits.ranges": {"4", "environment HUBCACHE_LIMITS_RANGES"},
		"limits.bypass": {"2", "file " + l.File + ":3"},
		"tags.rules":    {`[{"match":"a:*","ttl":"1h"}]`, "environment HUBCACHE_SETTINGS:4"},
	} {
		if got := [2]string{texts(s.Settings)[key], s.Source(key)}; got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
	if w := s.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %v", w)
	}
}

// TestWrongVariablesAreRefused: each error names the variable, and the line in a document.
func TestWrongVariablesAreRefused(t *testing.T) {
	for _, test := range []struct{ name, value, more, want string }{
		{"HUBCACHE_BUDGET", "much", "", "HUBCACHE_BUDGET: "},
		{"HUBCACHE_TAGS_RULES", "a", "", "HUBCACHE_TAGS_RULES: doesn't fit into one word: set it in the file, or as YAML in HUBCACHE_SETTINGS"},
		{"HUBCACHE_SETTINGS", "budget: 1GiB\nbudgets: 2GiB\n", "", "HUBCACHE_SETTINGS:2: budgets: unknown setting"},
		{"HUBCACHE_SETTINGS", "{", "", "HUBCACHE_SETTINGS: "},
		{"HUBCACHE_TAGS_TTL", "1h", "HUBCACHE_TAG_TTL=2h", "HUBCACHE_TAGS_TTL and HUBCACHE_TAG_TTL are the same setting"},
	} {
		isolate(t)
		t.Run(test.name, func(t *testing.T) {
			t.Setenv(test.name, test.value)
			if name, value, ok := strings.Cut(test.more, "="); ok {
				t.Setenv(name, value)
			}
			if _, err := (&Loader{}).Load(); err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("%s=%s: error %v, want %q", test.name, test.value, err, test.want)
			}
		})
	}
}

// TestUnknownVariablesAreWarnedOf: a variable that is no setting is a warning with the name that
// is probably meant, and never shows its value.
func TestUnknownVariablesAreWarnedOf(t *testing.T) {
	const value = "tcp://10.96.0.7:5000"
	for _, test := range []struct {
		environ []string
		want    []string
	}{
		{[]string{"PATH=/bin", "HUBCACHE_BUDGET=1GiB", "HUBCACHE_TAG_TTL=1h", "HUBCACHE_TAGS_TTL=1h", "HUBCACHE_CONFIG=", "HUBCACHE_ADMIN=", "HUBCACHE_SETTINGS=", "HUBCACHE_HOLD="}, nil},
		{[]string{"HUBCACHE_BUGDET=" + value}, []string{"HUBCACHE_BUGDET is ignored: no setting has that name; is HUBCACHE_BUDGET meant?"}},
		{[]string{"HUBCACHE_UPSTREAM_USER_NAME=" + value}, []string{"HUBCACHE_UPSTREAM_USER_NAME is ignored: no setting has that name; is HUBCACHE_UPSTREAM_USERNAME meant?"}},
		{[]string{"HUBCACHE_X=" + value}, []string{"HUBCACHE_X is ignored: no setting has that name"}},
		{[]string{"HUBCACHE_PASSWORD=" + value}, []string{"HUBCACHE_PASSWORD is ignored: a secret is never in the environment; name a file with it in HUBCACHE_UPSTREAM_PASSWORD_FILE"}},
		{
			[]string{"HUBCACHE_SERVICE_PORT=5000", "HUBCACHE_PORT=" + value, "HUBCACHE_PORT_5000_TCP_ADDR=" + value, "HUBCACHE_ADMIN_SERVICE_HOST=" + value},
			[]string{"HUBCACHE_ADMIN_SERVICE_HOST, HUBCACHE_PORT, HUBCACHE_PORT_5000_TCP_ADDR, HUBCACHE_SERVICE_PORT: ignored; Kubernetes sets them beside a Service of that name, unless the pod has enableServiceLinks: false"},
		},
	} {
		got := unknownVariables(Default().table(), test.environ)
		if strings.Join(got, "\n") != strings.Join(test.want, "\n") {
			t.Errorf("%v: %q, want %q", test.environ, got, test.want)
		}
		if strings.Contains(strings.Join(got, ""), value) {
			t.Errorf("%q shows a value", got)
		}
	}
}

// FuzzDistance compares the edit distance with its definition.
func FuzzDistance(f *testing.F) {
	f.Add("BUGDET", "BUDGET")
	f.Add("", "A")
	f.Add("ABC", "")
	var slow func(a, b string) int
	slow = func(a, b string) int {
		if a == "" || b == "" {
			return len(a) + len(b)
		}
		n := slow(a[1:], b[1:])
		if a[0] != b[0] {
			n++
		}
		return min(n, slow(a[1:], b)+1, slow(a, b[1:])+1)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		a, b = a[:min(len(a), 7)], b[:min(len(b), 7)]
		if got, want := distance(a, b), slow(a, b); got != want {
			t.Errorf("distance(%q, %q) = %d, want %d", a, b, got, want)
		}
	})
}
