package server

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

func loadSettings(t *testing.T, yaml string) *settings.Loaded {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := (&settings.Loader{File: path}).Load()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSocketsOverruleTheSettings: what systemd's sockets say is what config and stats say, and
// only a setting that somebody has written and that differs is warned of.
func TestSocketsOverruleTheSettings(t *testing.T) {
	given := map[string][]string{"pull": {"10.0.0.2:5000", "127.0.0.1:5000"}, "admin": {"unix:/run/hubcache/admin.sock"}}
	for _, test := range []struct {
		yaml     string
		warnings []string // what each begins with
	}{
		{"budget: 1GiB\n", nil},
		{"listen: [127.0.0.1:5000, 10.0.0.2:5000]\nadmin: {listen: unix:/run/hubcache/admin.sock}\n", nil},
		{"listen: [127.0.0.1:5000]\n", []string{"listen is 127.0.0.1:5000 (file "}},
		{"listen: [0.0.0.0:5000]\nadmin: {listen: 127.0.0.1:5001}\n", []string{"listen is 0.0.0.0:5000 (file ", "admin.listen is 127.0.0.1:5001 (file "}},
	} {
		s := loadSettings(t, test.yaml)
		got := overrule(s, given)
		if len(got) != len(test.warnings) {
			t.Errorf("%q: warnings %q", test.yaml, got)
			continue
		}
		for i, want := range test.warnings {
			if !strings.HasPrefix(got[i], want) || !strings.Contains(got[i], "'hubcache config sockets --apply'") {
				t.Errorf("%q: warning %q, want %q", test.yaml, got[i], want)
			}
		}
		if !reflect.DeepEqual([]string(s.Listen), given["pull"]) || s.Source("listen") != "systemd socket hubcache-pull.socket" {
			t.Errorf("%q: listen is %v from %s", test.yaml, s.Listen, s.Source("listen"))
		}
	}
	s := loadSettings(t, "listen: [10.0.0.9:1]\n")
	if w := overrule(s, nil); w != nil || s.Listen[0] != "10.0.0.9:1" {
		t.Errorf("without sockets: %q, %v", w, s.Listen)
	}
}

func TestSameAddresses(t *testing.T) {
	for _, test := range []struct {
		a, b []string
		same bool
	}{
		{[]string{":5000"}, []string{"[::]:5000"}, true},
		{[]string{"LOCALHOST:1", "[::ffff:10.0.0.1]:2"}, []string{"10.0.0.1:2", "localhost:1"}, true},
		{[]string{"unix:/run/A"}, []string{"unix:/run/a"}, false},
		{[]string{"0.0.0.0:5000"}, []string{"[::]:5000"}, false},
		{[]string{"10.0.0.1:1"}, []string{"10.0.0.1:1", "10.0.0.1:2"}, false},
	} {
		if got := sameAddresses(test.a, test.b); got != test.same {
			t.Errorf("%v and %v: %v", test.a, test.b, got)
		}
	}
}

func TestListenStreams(t *testing.T) {
	got := listenStreams("/run/hubcache/admin.sock (Stream)\n127.0.0.1:5001 (Stream)\n/run/x (FIFO)\n\n")
	if want := []string{"unix:/run/hubcache/admin.sock", "127.0.0.1:5001"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestDropInsFollowTheSettings writes the drop-ins, writes them again, and takes them away.
func TestDropInsFollowTheSettings(t *testing.T) {
	dir := t.TempDir()
	write := func(yaml string) (changed []bool) {
		t.Helper()
		all, err := DropIns(loadSettings(t, yaml), dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range all {
			did, err := d.Write()
			if err != nil {
				t.Fatal(err)
			}
			changed = append(changed, did)
		}
		return changed
	}
	const lan = "listen: [10.0.0.2:5000, \"[fe80::1%eth0]:5000\", unix:/run/a, \":5005\"]\n"
	if got := write(lan); !slices.Equal(got, []bool{true, false}) {
		t.Errorf("first: %v", got)
	}
	b, err := os.ReadFile(filepath.Join(dir, "hubcache-pull.socket.d", "hubcache.conf"))
	if err != nil {
		t.Fatal(err)
	}
	const want = "[Socket]\nListenStream=\nListenStream=10.0.0.2:5000\nListenStream=[fe80::1%%eth0]:5000\nListenStream=/run/a\nListenStream=5005\n"
	if !strings.HasSuffix(string(b), want) {
		t.Errorf("the drop-in is %q", b)
	}
	if got := write(lan); !slices.Equal(got, []bool{false, false}) {
		t.Errorf("again: %v", got)
	}
	if got := write("budget: 1GiB\n"); !slices.Equal(got, []bool{true, false}) {
		t.Errorf("with the default: %v", got)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(files) > 0 {
		t.Errorf("left: %v", files)
	}
	if _, err := DropIns(loadSettings(t, "listen: [cache.lan:5000]\n"), dir); err == nil || !strings.Contains(err.Error(), "systemd needs the address in numbers") {
		t.Errorf("a host name: %v", err)
	}
}
