package admin

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// TestWhoMayChangeTheCache is the table of access: unix socket, token, or a user of this machine
// where there is neither; never a foreign page, and never without the header.
func TestWhoMayChangeTheCache(t *testing.T) {
	const secret = "s3cret-of-the-test"
	tcp, sock := net.Addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5001}), net.Addr(&net.UnixAddr{Name: "/run/a.sock", Net: "unix"})
	const here, there = "127.0.0.1:40000", "10.0.0.9:40000"
	for _, c := range []struct {
		name   string
		admin  []string // the listeners
		token  bool     // is one set?
		local  net.Addr
		remote string
		header string // "Name: value", several with "; "; the verb header is added unless it is "-"
		host   string // "" is localhost
		status int
		says   string
	}{
		{name: "unix socket", local: sock, remote: "@", status: 200},
		{name: "unix socket with a token set", token: true, local: sock, remote: "@", status: 200},
		{name: "unix socket without the header", local: sock, remote: "@", header: "-", status: 403, says: "X-Hubcache-Admin: 1"},
		{name: "another value of the header", local: sock, remote: "@", header: "-; X-Hubcache-Admin: true", status: 403, says: "X-Hubcache-Admin: 1"},
		{name: "loopback", local: tcp, remote: here, status: 200},
		{name: "loopback, a page of this listener", local: tcp, remote: here, header: "Origin: http://localhost:5001", status: 200},
		{name: "loopback, a foreign page", local: tcp, remote: here, header: "Origin: https://evil.example", status: 403, says: "another site"},
		{name: "loopback, a page without an origin", local: tcp, remote: here, header: "Origin: null", status: 403, says: "another site"},
		{name: "unix socket, a foreign page", local: sock, remote: "@", header: "Origin: https://evil.example", status: 403, says: "another site"},
		{name: "a foreign Host", local: tcp, remote: here, host: "evil.example", status: 403, says: "Host"},
		{name: "loopback beside a socket", admin: []string{"unix:/run/a.sock"}, local: tcp, remote: here, status: 403, says: "over unix:/run/a.sock only"},
		{name: "another machine", local: tcp, remote: there, status: 403, says: "on this machine only"},
		{name: "a proxy on this machine", local: tcp, remote: here, header: "X-Forwarded-For: 10.0.0.9", status: 403, says: "through a proxy"},
		{name: "token", token: true, local: tcp, remote: there, header: "Authorization: Bearer " + secret, status: 200},
		{name: "token through a proxy", token: true, local: tcp, remote: here, header: "Authorization: Bearer " + secret + "; Via: 1.1 p", status: 200},
		{name: "token beside a socket", token: true, admin: []string{"unix:/run/a.sock"}, local: tcp, remote: there, header: "Authorization: Bearer " + secret, status: 200},
		{name: "token, a foreign page", token: true, local: tcp, remote: there, header: "Authorization: Bearer " + secret + "; Origin: https://evil.example", status: 403, says: "another site"},
		{name: "no token, on loopback", token: true, local: tcp, remote: here, status: 401, says: "Authorization: Bearer"},
		{name: "wrong token", token: true, local: tcp, remote: here, header: "Authorization: Bearer " + secret + "x", status: 401, says: "not the token"},
		{name: "token as a password", token: true, local: tcp, remote: here, header: "Authorization: Basic " + secret, status: 401, says: "Authorization: Bearer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			o := idle()
			o.Log = slog.New(slog.NewTextHandler(&log, nil))
			o.Settings = func() Settings { return Settings{Admin: c.admin} }
			if c.token {
				o.Token = func(text string) bool { return text == secret }
			}
			req := httptest.NewRequest(http.MethodPut, "/api/v1/pins/x?dry_run=1", nil)
			req = req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, c.local))
			req.Host, req.RemoteAddr = "localhost", c.remote
			if c.host != "" {
				req.Host = c.host
			}
			req.Header.Set(VerbHeader, "1")
			for h := range strings.SplitSeq(c.header, "; ") {
				if h == "-" {
					req.Header.Del(VerbHeader)
				} else if name, value, ok := strings.Cut(h, ": "); ok {
					req.Header.Set(name, value)
				}
			}
			ran := false
			a := newAdmin(o)
			w := httptest.NewRecorder()
			a.guarded(func(w http.ResponseWriter, _ *http.Request) error {
				ran = true
				writeJSON(w, http.StatusOK, nil)
				return nil
			}).ServeHTTP(w, req)
			if w.Code != c.status || ran != (c.status == 200) || !strings.Contains(w.Body.String(), c.says) {
				t.Errorf("status %d, ran %v: %s; want %d, %s", w.Code, ran, w.Body, c.status, c.says)
			}
			if lines := strings.Count(log.String(), "\n"); lines != 1 && c.host == "" {
				t.Errorf("%d lines in the log: %s", lines, &log)
			}
			if strings.Contains(log.String()+w.Body.String(), secret) {
				t.Errorf("the secret is shown: %s %s", &log, w.Body)
			}
		})
	}
}

// TestLogNamesThePeerOfAUnixSocket: over a real socket the log has the user's number.
func TestLogNamesThePeerOfAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	who := make(chan string, 1)
	s := &http.Server{ConnContext: ConnContext, Handler: http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { who <- asker(req) })}
	go s.Serve(l)
	defer s.Close()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Get("http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := <-who; !strings.HasPrefix(got, "uid ") || !strings.Contains(got, "(process ") {
		t.Errorf("the peer is %q", got)
	}
}
