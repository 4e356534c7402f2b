package main

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestPullAndAdminAreSeparate: the pull port has nothing of the admin API, and the
// admin port nothing of the pull API.
func TestPullAndAdminAreSeparate(t *testing.T) {
	p := startServer(t, "")
	for _, path := range []string{"/api/v1/stats", "/metrics", "/healthz", "/readyz", "/debug/pprof/"} {
		if status, body := p.get(p.pull + path); status != http.StatusNotFound {
			t.Errorf("%s on the pull port: %d %.80s", path, status, body)
		}
	}
	for _, path := range []string{"/v2/", "/v2/library/redis/manifests/7"} {
		if status, _ := p.get(p.admin + path); status != http.StatusNotFound {
			t.Errorf("%s on the admin port: %d", path, status)
		}
	}
}

// TestStartNeedsNoUpstream: the server is ready at once when the upstream accepts
// connections and never answers.
func TestStartNeedsNoUpstream(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	start := time.Now()
	p := startServer(t, "upstream: {url: 'http://"+silent.Addr().String()+"'}\n")
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, _ := p.get(p.admin + path); status != http.StatusOK {
			t.Errorf("%s: %d", path, status)
		}
	}
	if status, _ := p.get(p.pull + "/v2/"); status != http.StatusOK {
		t.Errorf("/v2/: %d", status)
	}
	if took := time.Since(start); took > 6*time.Second { // promised: 2 s
		t.Errorf("ready after %s", took)
	}
}

// TestPortInUse: the error names the address and says that it is in use.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := notStarted(t, "listen: "+l.Addr().String()+"\n").run()
	if code := exitCodeOf(t, err); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(out, l.Addr().String()) || !strings.Contains(out, "already in use") {
		t.Errorf("it says: %s", out)
	}
}
