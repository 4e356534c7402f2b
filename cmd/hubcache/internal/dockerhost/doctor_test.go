package dockerhost

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// checkedHost is a host on which nothing is wrong: a cache, its upstream, and an engine
// that uses the cache.
type checkedHost struct {
	doctor Doctor
	asked  atomic.Int64 // manifests
	stats  atomic.Pointer[map[string]any]
	date   atomic.Pointer[time.Time] // the upstream's clock; nil: right
}

// address is the host and port of a URL.
func address(url string) string { return strings.TrimPrefix(url, "http://") }

func newHost(t *testing.T, version string, containerd bool, uses bool) *checkedHost {
	t.Helper()
	c := &checkedHost{}
	c.stats.Store(&map[string]any{"upstreams": []map[string]any{{"registry": "docker.io", "state": "ok", "authenticated": true}}})
	pull := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	}))
	t.Cleanup(pull.Close)
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		stats := map[string]any{"requests": map[string]any{"manifest": map[string]int64{"miss": c.asked.Load()}}}
		for k, v := range *c.stats.Load() {
			stats[k] = v
		}
		_ = json.NewEncoder(w).Encode(stats)
	}))
	t.Cleanup(admin.Close)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if date := c.date.Load(); date != nil {
			w.Header().Set("Date", date.UTC().Format(http.TimeFormat))
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(upstream.Close)
	host := fakeEngine(t, version, containerd, []string{pull.URL + "/"}, func() {
		if uses {
			c.asked.Add(1)
		}
	})
	secret := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secret, []byte("x"), 0o400); err != nil {
		t.Fatal(err)
	}
	s := settings.Default()
	s.Docker.Host, s.Docker.HoldDir = settings.Text(host), settings.Text(t.TempDir())
	s.Docker.State = settings.Text(filepath.Join(t.TempDir(), "uses.db"))
	s.Listen, s.Admin.Listen = settings.List{address(pull.URL)}, settings.List{address(admin.URL)}
	s.DataDir, s.Budget.Bytes, s.MinFree.Bytes = settings.Text(t.TempDir()), 1<<20, 1
	s.Upstream.URL, s.Upstream.Username, s.Upstream.PasswordFile = settings.Text(upstream.URL), "u", settings.Text(secret)
	c.doctor = Doctor{Image: "hello-world:latest", Certs: t.TempDir(), Settings: s}
	return c
}

// TestDoctorFindsEachFault: on a host where nothing is wrong nothing is broken, and each
// fault is found by the check for it and by no other.
func TestDoctorFindsEachFault(t *testing.T) {
	upstream := func(c *checkedHost, u map[string]any) {
		c.stats.Store(&map[string]any{"upstreams": []map[string]any{u}})
	}
	tests := []struct {
		name, version string
		containerd    bool
		asksHub       bool
		fault         func(*checkedHost)
		check, says   string
	}{
		{name: "nothing is wrong", version: "20.10.24"},
		{name: "hosts.toml makes loopback safe", version: "29.7.2", containerd: true, fault: func(c *checkedHost) {
			path := filepath.Join(c.doctor.Certs, "docker.io", "hosts.toml")
			_ = os.MkdirAll(filepath.Dir(path), 0o755)
			_ = os.WriteFile(path, []byte(hostsTOML(MirrorURL(c.doctor.Settings))), 0o644)
		}},
		{name: "no server", version: "20.10.24", fault: func(c *checkedHost) {
			c.doctor.Settings.Listen = settings.List{"127.0.0.1:1"}
		}, check: "server", says: "refused"},
		{name: "something else listens", version: "20.10.24", fault: func(c *checkedHost) {
			c.doctor.Settings.Listen = settings.List{address(string(c.doctor.Settings.Upstream.URL))}
		}, check: "server", says: "401"},
		{name: "no admin", version: "20.10.24", fault: func(c *checkedHost) { c.doctor.Settings.Admin.Listen = settings.List{"127.0.0.1:1"} }, check: "admin", says: "refused"},
		{name: "the mirror is missing", version: "20.10.24", fault: func(c *checkedHost) {
			c.doctor.Settings.Docker.Host = settings.Text(fakeEngine(t, "20.10.24", false, nil, func() { c.asked.Add(1) }))
		}, check: "docker", says: "does not have"},
		{name: "unsafe loopback", version: "29.7.2", containerd: true, check: "docker", says: "any certificate"},
		{name: "the daemon falls back", version: "20.10.24", asksHub: true, check: "pull", says: "not through the cache"},
		{name: "the token is refused", version: "20.10.24", fault: func(c *checkedHost) {
			upstream(c, map[string]any{"registry": "docker.io", "state": "denied"})
		}, check: "upstream docker.io", says: "refused"},
		{name: "the limit is reached", version: "20.10.24", fault: func(c *checkedHost) {
			upstream(c, map[string]any{"registry": "docker.io", "state": "cooling", "authenticated": true})
		}, check: "upstream docker.io", says: "limit"},
		{name: "the clock is wrong", version: "20.10.24", fault: func(c *checkedHost) {
			hour := time.Now().Add(time.Hour)
			c.date.Store(&hour)
		}, check: "clock", says: "off by"},
		{name: "the budget is larger than the disk", version: "20.10.24", fault: func(c *checkedHost) { c.doctor.Settings.Budget.Bytes = 1 << 60 }, check: "disk", says: "larger than the disk"},
		{name: "min_free is not there", version: "20.10.24", fault: func(c *checkedHost) { c.doctor.Settings.MinFree.Bytes = 1 << 60 }, check: "disk", says: "min_free"},
		{name: "everybody reads the token", version: "20.10.24", fault: func(c *checkedHost) { _ = os.Chmod(c.doctor.passwordFile(), 0o444) }, check: "password file", says: "every user"},
		{name: "no token", version: "20.10.24", fault: func(c *checkedHost) { c.doctor.Settings.Upstream.PasswordFile += "x" }, check: "password file", says: "no such file"},
		{name: "everybody writes the data", version: "20.10.24", fault: func(c *checkedHost) { _ = os.Chmod(string(c.doctor.Settings.DataDir), 0o777) }, check: "data_dir", says: "every user"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newHost(t, test.version, test.containerd, !test.asksHub)
			if test.fault != nil {
				test.fault(c)
			}
			found := false
			for _, f := range c.doctor.Examine(t.Context()) {
				if f.Status != StatusBroken {
					continue
				}
				if test.check != "" && f.Check == test.check && strings.Contains(f.Detail, test.says) {
					found = true
				} else if !(test.check == "server" && f.Check == "docker") { // then the engine has another mirror, too
					t.Errorf("%s is broken: %s", f.Check, f.Detail)
				}
			}
			if test.check != "" && !found {
				t.Errorf("not found: %s\n%+v", test.check, c.doctor.findings)
			}
		})
	}
}

// TestDoctorNotesALowQuota: a low quota is noted and breaks nothing.
func TestDoctorNotesALowQuota(t *testing.T) {
	c := newHost(t, "20.10.24", false, true)
	c.stats.Store(&map[string]any{"upstreams": []map[string]any{{"registry": "docker.io", "state": "ok", "authenticated": true,
		"rate_limit": map[string]int{"limit": 200, "remaining": 10}}}})
	for _, f := range c.doctor.Examine(t.Context()) {
		if f.Check == "quota" {
			if f.Status != StatusNote || !strings.Contains(f.Detail, "10 of 200") {
				t.Errorf("%+v", f)
			}
			return
		}
	}
	t.Error("no finding about the quota")
}
