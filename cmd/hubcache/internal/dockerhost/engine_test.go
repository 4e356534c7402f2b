package dockerhost

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
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
