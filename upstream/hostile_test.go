package upstream

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// TestNoConnectionToInsideByAPublicName: a public name can have an address inside the
// network. Its URL looks right, and the connection isn't made.
func TestNoConnectionToInsideByAPublicName(t *testing.T) {
	called := false
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }))
	defer inside.Close()
	port := inside.URL[strings.LastIndex(inside.URL, ":")+1:]
	base, _ := url.Parse("https://registry-1.docker.io")
	u, err := New(Options{URL: base})
	if err != nil {
		t.Fatal(err)
	}
	// localhost stands for any name with such an address; the dialer sees the name only.
	for _, host := range []string{"localhost", "127.0.0.1", "[::ffff:127.0.0.1]"} {
		conn, err := u.dialer.dial(context.Background(), "tcp", host+":"+port)
		if err == nil {
			conn.Close()
			t.Errorf("%s: connected", host)
		} else if !strings.Contains(err.Error(), "inside") {
			t.Errorf("%s: %v", host, err)
		}
	}
	if called {
		t.Error("a request went in")
	}
	if u.dialer.inside.Load() {
		t.Error("the upstream is taken for one inside")
	}
}

// TestRefusedConnectionIsNotOpened: the owner of a name can't have hubcache probe ports
// inside the network.
func TestRefusedConnectionIsNotOpened(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{}, 1)
	go func() {
		if conn, err := l.Accept(); err == nil {
			conn.Close()
			accepted <- struct{}{}
		}
	}()
	base, _ := url.Parse("https://registry-1.docker.io")
	u, err := New(Options{URL: base})
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := u.dialer.dial(context.Background(), "tcp", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("connected")
	}
	l.Close()
	select {
	case <-accepted:
		t.Error("a connection was opened")
	default:
	}
}

// TestManifestOverTheLimitIsRefusedWhileItStreams: no more is read than needed to know its size.
func TestManifestOverTheLimitIsRefusedWhileItStreams(t *testing.T) {
	sent := int64(0)
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		piece := make([]byte, 64<<10)
		for r.Context().Err() == nil && sent < 1<<30 {
			n, err := w.Write(piece)
			sent += int64(n)
			if err != nil {
				return
			}
		}
	}))
	base, _ := url.Parse(hub.URL)
	u, err := New(Options{URL: base})
	if err != nil {
		t.Fatal(err)
	}
	_, err = u.Manifest(context.Background(), "library/x", "1")
	if err == nil || !strings.Contains(err.Error(), "4194304") {
		t.Errorf("error %v", err)
	}
	hub.Close() // waits for the handler
	if sent > 3*MaxManifest {
		t.Errorf("%d bytes were taken", sent)
	}
}
