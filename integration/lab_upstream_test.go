//go:build integration

package integration

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// connectProxy is an HTTP proxy that opens tunnels to the Hubs, under their host names, and to no
// other host.
type connectProxy struct {
	URL string

	mu    sync.Mutex
	hosts map[string]bool // that clients have requested
}

// startProxy starts a proxy to these Hubs that listens on this address.
func startProxy(t testing.TB, host string, hubs ...*hubtest.Hub) *connectProxy {
	t.Helper()
	p := &connectProxy{hosts: map[string]bool{}}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		p.mu.Lock()
		p.hosts[host] = true
		p.mu.Unlock()
		if r.Method != http.MethodConnect {
			http.Error(w, "use CONNECT", http.StatusMethodNotAllowed)
			return
		}
		far, err := dialAny(r.Context(), hubs, r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer far.Close()
		w.WriteHeader(http.StatusOK)
		near, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer near.Close()
		go func() {
			_, _ = io.Copy(far, buffered) // an error ends the other direction too
			_ = far.Close()
		}()
		_, _ = io.Copy(near, far)
	}))
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	p.URL = server.URL
	return p
}

// dialAny connects to the Hub that has the address.
func dialAny(ctx context.Context, hubs []*hubtest.Hub, addr string) (conn net.Conn, err error) {
	for _, hub := range hubs {
		if conn, err = hub.Network.DialContext(ctx, "tcp", addr); err == nil {
			break
		}
	}
	return conn, err
}

// Hosts returns the hosts that clients have requested, sorted.
func (p *connectProxy) Hosts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.hosts))
}

// writeCA writes the certificates of the Hubs' authorities to a file and returns its path.
func writeCA(t testing.TB, hubs ...*hubtest.Hub) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	var all []byte
	for _, hub := range hubs {
		ca, _ := hub.Network.CA()
		all = append(all, ca...)
	}
	if err := os.WriteFile(path, all, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
