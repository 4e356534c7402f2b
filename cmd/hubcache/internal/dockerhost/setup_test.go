package dockerhost

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
)

// fakeEngine answers GET /info, and calls distribution for GET /distribution/….
func fakeEngine(t *testing.T, version string, containerd bool, mirrors []string, distribution func()) (host string) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	info := system.Info{ServerVersion: version, RegistryConfig: &registry.ServiceConfig{Mirrors: mirrors}}
	if containerd {
		info.DriverStatus = [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("API-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/info"):
			_ = json.NewEncoder(w).Encode(info)
		case strings.Contains(r.URL.Path, "/distribution/"):
			distribution()
			_, _ = w.Write([]byte("{}"))
		}
	}))
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return "unix://" + listener.Addr().String()
}

// newSetup returns a Setup whose files are in a temporary directory.
func newSetup(t *testing.T, host, mirror string) (*Setup, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	out := new(bytes.Buffer)
	return &Setup{Engine: Location{Host: host}, Mirror: mirror, Out: out, Paths: SetupPaths{
		DaemonJSON: filepath.Join(dir, "docker", "daemon.json"), Certs: filepath.Join(dir, "certs.d"),
		PIDFile: filepath.Join(dir, "docker.pid"), NixOS: filepath.Join(dir, "NIXOS"),
	}}, out
}

const loopback = "http://127.0.0.1:5000"

// TestSetupFitsTheEngine: setup writes the files that the engine's version and store need.
func TestSetupFitsTheEngine(t *testing.T) {
	for _, test := range []struct {
		name, version, mirror string
		containerd            bool
		mirrors, hosts        bool
	}{
		{"graphdriver 20.10", "20.10.24+dfsg1", loopback, false, true, false},
		{"graphdriver 20.10, another host", "20.10.24", "http://10.0.0.1:5000", false, true, false},
		{"graphdriver 28: its BuildKit needs hosts.toml", "28.5.2", loopback, false, true, true},
		{"graphdriver 28, another host", "28.5.2", "http://10.0.0.1:5000", false, true, false},
		{"containerd 27 knows no hosts.toml", "27.5.1", loopback, true, true, false},
		{"containerd 29", "29.7.2", loopback, true, false, true},
		{"containerd 29, IPv6 loopback", "29.7.2", "http://[::1]:5000", true, false, true},
		{"containerd 29, another host", "29.7.2", "https://cache.example:5000", true, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, out := newSetup(t, fakeEngine(t, test.version, test.containerd, nil, nil), test.mirror)
			if err := s.Run(t.Context(), false, false); err != nil {
				t.Fatal(err)
			}
			if body, _ := readOptional(s.Paths.DaemonJSON); body != nil {
				t.Error("it wrote without --apply")
			}
			if err := s.Run(t.Context(), true, false); err != nil && !strings.Contains(err.Error(), "systemctl reload docker") {
				t.Fatal(err)
			}
			config, _ := readOptional(s.Paths.DaemonJSON)
			hosts, _ := readOptional(filepath.Join(s.Paths.Certs, "docker.io", "hosts.toml"))
			if got := strings.Contains(string(config), test.mirror); got != test.mirrors {
				t.Errorf("registry-mirrors has it: %v, want %v\n%s", got, test.mirrors, config)
			}
			if got := strings.Contains(string(hosts), test.mirror); got != test.hosts {
				t.Errorf("hosts.toml has it: %v, want %v\n%s", got, test.hosts, hosts)
			}
			for _, client := range []string{"containerd", "podman", "BuildKit"} {
				if !strings.Contains(out.String(), "For "+client) && !strings.Contains(out.String(), "For a "+client) {
					t.Errorf("no snippet for %s", client)
				}
			}
		})
	}
}

// TestSetupMergesAndUndoes: daemon.json keeps everything else, and --undo takes the
// mirror out again.
func TestSetupMergesAndUndoes(t *testing.T) {
	s, _ := newSetup(t, fakeEngine(t, "20.10.24", false, []string{"https://other.example/"}, nil), loopback)
	before := `{"zeta": 1e3, "registry-mirrors": ["https://other.example"], "log-opts": {"max-size": "10m"}, "big": 9007199254740993}`
	if err := os.MkdirAll(filepath.Dir(s.Paths.DaemonJSON), 0o755); err != nil {
		t.Fatal(err)
	}
	real := filepath.Join(t.TempDir(), "real.json")
	if err := errors.Join(os.WriteFile(real, []byte(before), 0o600), os.Symlink(real, s.Paths.DaemonJSON)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if err := s.Run(t.Context(), true, false); err != nil && !strings.Contains(err.Error(), "reload") {
			t.Fatal(err)
		}
	}
	got, _ := os.ReadFile(real)
	want := `{
  "zeta": 1e3,
  "registry-mirrors": [
    "http://127.0.0.1:5000",
    "https://other.example"
  ],
  "log-opts": {
    "max-size": "10m"
  },
  "big": 9007199254740993
}
`
	if string(got) != want {
		t.Errorf("daemon.json is\n%s\nwant\n%s", got, want)
	}
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if kept, _ := os.ReadFile(real + ".before-hubcache"); string(kept) != before {
		t.Errorf("the backup is %q", kept)
	}
	if err := s.Run(t.Context(), false, true); err != nil && !strings.Contains(err.Error(), "reload") {
		t.Fatal(err)
	}
	undone, _ := os.ReadFile(real)
	var a, b map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(undone, &a), json.Unmarshal([]byte(before), &b)); err != nil || len(a) != len(b) || strings.Contains(string(undone), "127.0.0.1") {
		t.Errorf("after --undo: %s (%v)", undone, err)
	}
}

// TestSetupUndoTakesBackEverything: nothing that setup wrote stays, but for an
// empty list of mirrors, without which the daemon would keep the mirror.
func TestSetupUndoTakesBackEverything(t *testing.T) {
	s, _ := newSetup(t, fakeEngine(t, "28.5.2", false, nil, nil), loopback)
	_ = s.Run(t.Context(), true, false)
	_ = s.Run(t.Context(), false, true) // fails: without a pid file the daemon has to be told by hand
	if body, err := readOptional(filepath.Join(s.Paths.Certs, "docker.io", "hosts.toml")); body != nil || err != nil {
		t.Errorf("hosts.toml: %q, %v", body, err)
	}
	if body, err := readOptional(s.Paths.DaemonJSON); string(body) != "{\n  \"registry-mirrors\": []\n}\n" {
		t.Errorf("daemon.json: %q, %v", body, err)
	}
}

func TestSetupRefuses(t *testing.T) {
	t.Run("NixOS", func(t *testing.T) {
		s, _ := newSetup(t, fakeEngine(t, "28.5.2", false, nil, nil), loopback)
		if err := os.WriteFile(s.Paths.NixOS, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context(), true, false); err == nil || !strings.Contains(err.Error(), "services.hubcache.registryMirror") {
			t.Errorf("err %v", err)
		}
	})
	t.Run("mirrors on the command line", func(t *testing.T) {
		s, _ := newSetup(t, fakeEngine(t, "20.10.24", false, []string{"https://other.example/"}, nil), loopback)
		if err := s.Run(t.Context(), true, false); err == nil || !strings.Contains(err.Error(), "command line") {
			t.Errorf("err %v", err)
		}
	})
	t.Run("somebody's hosts.toml", func(t *testing.T) {
		s, _ := newSetup(t, fakeEngine(t, "29.7.2", true, nil, nil), loopback)
		path := filepath.Join(s.Paths.Certs, "docker.io", "hosts.toml")
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("mine"), 0o644)); err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context(), true, false); err == nil {
			t.Error("it was overwritten")
		}
		if body, _ := os.ReadFile(path); string(body) != "mine" {
			t.Errorf("it is %q now", body)
		}
	})
	for name, body := range map[string]string{"broken": `{"a": `, "an array": `[]`, "mirrors no list": `{"registry-mirrors": "x"}`, "a key twice": `{"a":1,"a":2}`} {
		t.Run(name, func(t *testing.T) {
			s, _ := newSetup(t, fakeEngine(t, "20.10.24", false, nil, nil), loopback)
			if err := errors.Join(os.MkdirAll(filepath.Dir(s.Paths.DaemonJSON), 0o755), os.WriteFile(s.Paths.DaemonJSON, []byte(body), 0o644)); err != nil {
				t.Fatal(err)
			}
			if err := s.Run(t.Context(), true, false); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// FuzzObject: an object that is written and read again has the same keys and values, in
// the same order.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a": 1, "b": [1, {"c": "<&>"}]}`, `{"registry-mirrors": ["x"], "é": null}`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := parseObject(body)
		if err != nil || len(bytes.TrimSpace(body)) == 0 {
			return
		}
		again, err := parseObject(o.bytes())
		if err != nil || len(again) != len(o) {
			t.Fatalf("%q became %q: %v", body, o.bytes(), err)
		}
		for i := range o {
			var a, b bytes.Buffer
			if err := errors.Join(json.Compact(&a, o[i].value), json.Compact(&b, again[i].value)); err != nil {
				t.Fatal(err)
			}
			if o[i].key != again[i].key || a.String() != b.String() {
				t.Errorf("%s: %s became %s: %s", o[i].key, a.String(), again[i].key, b.String())
			}
		}
	})
}

func TestMirrorURL(t *testing.T) {
	for _, test := range []struct {
		listen []string
		tls    bool
		want   string
	}{
		{[]string{"127.0.0.1:5000"}, false, "http://127.0.0.1:5000"},
		{[]string{"unix:/run/x", "10.0.0.1:80"}, true, "https://10.0.0.1:80"},
		{[]string{"0.0.0.0:5000"}, false, "http://127.0.0.1:5000"},
		{[]string{":5000"}, false, "http://127.0.0.1:5000"},
		{[]string{"[::]:5000"}, false, "http://127.0.0.1:5000"},
		{[]string{"unix:/run/x"}, false, ""},
	} {
		if got := mirrorURL(test.listen, test.tls); got != test.want {
			t.Errorf("%v: %q, want %q", test.listen, got, test.want)
		}
	}
}
