package adminclient

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// TestStatsOverTCPAndUnix: an address may be host:port, with http:// or without, or a unix
// socket.
func TestStatsOverTCPAndUnix(t *testing.T) {
	const document = `{"schema": 1, "version": "1.2.3"}`
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/stats" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(document))
	})
	tcp := httptest.NewServer(handler)
	defer tcp.Close()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	unix := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	unix.Start()
	defer unix.Close()
	for _, addr := range []string{tcp.URL, tcp.URL + "/", strings.TrimPrefix(tcp.URL, "http://"), "unix:" + path} {
		c, err := New(addr)
		if err != nil {
			t.Fatal(err)
		}
		s, raw, err := c.Stats(t.Context())
		if err != nil || s.Version != "1.2.3" || string(raw) != document {
			t.Errorf("%s: version %q, document %s, %v", addr, s.Version, raw, err)
		}
	}
}

// TestStatsErrors: each error says what to look at.
func TestStatsErrors(t *testing.T) {
	answer := func(status int, body string) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}))
		t.Cleanup(srv.Close)
		return srv.URL
	}
	for _, c := range []struct{ addr, says string }{
		{"127.0.0.1:1", "is 'hubcache serve' running"},
		{"unix:" + filepath.Join(t.TempDir(), "nobody"), "is 'hubcache serve' running"},
		{answer(http.StatusNotFound, "no such page"), "no such page (is it the admin address?)"},
		{answer(http.StatusOK, "<html>"), "is not hubcache"},
		{answer(http.StatusNotFound, `{"error": "no such path"}`), "is another version, which can't do this: update it"},
		{answer(http.StatusMethodNotAllowed, `{"error": "method not allowed"}`), "is another version, which can't do this: update it"},
	} {
		_, err := Stats(t.Context(), c.addr)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.addr, err)
		}
	}
	for _, addr := range []string{"", "nonsense", "https://127.0.0.1:1", "unix:relative"} {
		_, err := New(addr)
		if _, usage := errors.AsType[settings.UsageError](err); !usage {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

// TestNoPermissionNamesTheGroup: who may not use the socket is told who may.
func TestNoPermissionNamesTheGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(strconv.Itoa(os.Getegid()))
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]string{"unix:" + path: "the group " + group.Name + " may", "unix:/nowhere/admin.sock": "the group hubcache may"} {
		c, err := New(addr)
		if err != nil {
			t.Fatal(err)
		}
		got := c.unanswered(&url.Error{Op: "Get", URL: "http://localhost/", Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}})
		if !strings.Contains(got.Error(), want) || !strings.Contains(got.Error(), addr) {
			t.Errorf("%s: %v", addr, got)
		}
	}
}
