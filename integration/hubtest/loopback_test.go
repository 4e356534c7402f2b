package hubtest_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestMain keeps the tests of this package on loopback, also those that use http.Get.
func TestMain(m *testing.M) {
	hubtest.LoopbackOnly(http.DefaultTransport.(*http.Transport))
	os.Exit(m.Run())
}

// TestDialRefusesAllButLoopback checks that an address or name elsewhere is refused at once,
// and that loopback addresses and unix sockets are dialled.
func TestDialRefusesAllButLoopback(t *testing.T) {
	for _, addr := range []string{
		"192.0.2.1:443", "[2001:db8::1]:443", "10.0.0.1:80", "[::ffff:192.0.2.1]:80", "0.0.0.0:80", ":80",
		"registry-1.docker.io:443", "localhost.example:80", "127.0.0.1", "127.0.0.1.example:80",
	} {
		start := time.Now()
		c, err := hubtest.Dial(t.Context(), "tcp", addr)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, hubtest.ErrNotLoopback) || time.Since(start) > time.Second {
			t.Errorf("%s: %v after %v, want %v at once", addr, err, time.Since(start), hubtest.ErrNotLoopback)
		}
	}
	sock := filepath.Join(t.TempDir(), "sock")
	for network, addr := range map[string]string{"tcp4": "127.0.0.2:0", "tcp6": "[::1]:0", "tcp": "localhost:0", "unix": sock} {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := hubtest.Dial(context.Background(), network, l.Addr().String())
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		c.Close()
	}
}

// TestLoopbackOnlyIgnoresProxies checks that a transport neither dials elsewhere by itself
// nor lets a proxy on loopback do so.
func TestLoopbackOnlyIgnoresProxies(t *testing.T) {
	proxy := httptest.NewServer(http.NotFoundHandler())
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	rt := hubtest.LoopbackOnly(&http.Transport{Proxy: http.ProxyFromEnvironment})
	defer rt.CloseIdleConnections()
	client := &http.Client{Transport: rt}
	if resp, err := client.Get("http://192.0.2.1/"); !errors.Is(err, hubtest.ErrNotLoopback) {
		t.Errorf("%v, %v", resp, err)
	}
	resp, err := client.Get(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}
