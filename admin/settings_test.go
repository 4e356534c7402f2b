package admin

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestSettingsAreToldToWhoMayKnow: over a unix socket always; over TCP on this machine alone, not
// through a proxy, and only where there is no unix socket.
func TestSettingsAreToldToWhoMayKnow(t *testing.T) {
	tcp, unix := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5001}, &net.UnixAddr{Name: "/run/hubcache/admin.sock", Net: "unix"}
	for _, c := range []struct {
		name   string
		admin  []string
		local  net.Addr
		remote string
		header string
		says   string // "": it is told
	}{
		{name: "unix", admin: []string{"unix:/run/hubcache/admin.sock", "http://127.0.0.1:5001"}, local: unix, remote: "@"},
		{name: "loopback", admin: []string{"http://127.0.0.1:5001"}, local: tcp, remote: "127.0.0.1:40000"},
		{name: "IPv6", admin: []string{"http://[::]:5001"}, local: &net.TCPAddr{IP: net.IPv6loopback, Port: 5001}, remote: "[::1]:40000"},
		{name: "loopback beside a socket", admin: []string{"http://127.0.0.1:5001", "unix:/run/hubcache/admin.sock"}, local: tcp, remote: "127.0.0.1:40000", says: "over unix:/run/hubcache/admin.sock only"},
		{name: "another machine", admin: []string{"http://10.0.0.2:5001"}, local: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 5001}, remote: "10.0.0.9:40000", says: "on this machine only"},
		{name: "proxy", admin: []string{"http://127.0.0.1:5001"}, local: tcp, remote: "127.0.0.1:40000", header: "X-Forwarded-For", says: "through a proxy"},
		{name: "another proxy", admin: []string{"http://127.0.0.1:5001"}, local: tcp, remote: "127.0.0.1:40000", header: "Via", says: "through a proxy"},
		{name: "a third proxy", admin: []string{"http://127.0.0.1:5001"}, local: tcp, remote: "127.0.0.1:40000", header: "Forwarded", says: "through a proxy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := idle()
			o.Settings = func() Settings {
				return Settings{Admin: c.admin, Listen: []string{"http://127.0.0.1:5000"}, Settings: []Setting{{"budget", "20GiB", "default"}}}
			}
			req := httptest.NewRequest(http.MethodGet, "/api/v1/settings", nil)
			req = req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, c.local))
			req.Host, req.RemoteAddr = "localhost", c.remote
			if c.header != "" {
				req.Header.Set(c.header, "10.0.0.9")
			}
			w := httptest.NewRecorder()
			New(o).ServeHTTP(w, req)
			if c.says != "" {
				if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), c.says) || strings.Contains(w.Body.String(), "20GiB") {
					t.Errorf("%d %s; want %s", w.Code, w.Body, c.says)
				}
				return
			}
			var s Settings
			if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || w.Code != http.StatusOK || s.Schema != 1 || len(s.Settings) != 1 || s.Settings[0].Value != "20GiB" {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

// TestSettingsNeedAnOwnHost: a foreign web page whose name leads here gets nothing.
func TestSettingsNeedAnOwnHost(t *testing.T) {
	o := idle()
	o.Settings = func() Settings { return Settings{} }
	req := httptest.NewRequest(http.MethodGet, "/api/v1/settings", nil)
	req.Host, req.RemoteAddr = "evil.example", "127.0.0.1:40000"
	if resp := ask(t, o, req); resp.StatusCode != http.StatusForbidden {
		t.Error(resp.Status)
	}
}
