package content

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// TestSlowClientGivesItsRoom: over each kind of connection, and for each way to send a file, a
// client that doesn't read is cut when another blob needs the room.
func TestSlowClientGivesItsRoom(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	for _, c := range []struct {
		name, network string
		tls, h2       bool
	}{{"tcp", "tcp", false, false}, {"unix", "unix", false, false}, {"https", "tcp", true, false}, {"h2", "tcp", true, true}} {
		for _, path := range []string{"/blob", "/manifest", "/download", "/bypass"} {
			if path == "/bypass" && c.tls {
				continue // a download is copied there too
			}
			t.Run(c.name+path, func(t *testing.T) {
				t.Parallel()
				store, err := storage.Open(storage.Options{Dir: t.TempDir(), Budget: size + size/2, Log: slog.New(slog.DiscardHandler), Patience: 200 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				defer store.Close()
				origin := storage.Origin{Repository: "docker.io/library/a"}
				body := make([]byte, size)
				d := digest.FromBytes(body)
				in, err := store.Begin(origin, d, size)
				if err != nil {
					t.Fatal(err)
				}
				rd, _ := in.Reader()
				defer rd.Close()
				if _, err := in.WriteAt(body, 0); err != nil {
					t.Fatal(err)
				}
				if err := in.Commit(); err != nil {
					t.Fatal(err)
				}
				blob, err := store.Open(d)
				if err != nil {
					t.Fatal(err)
				}
				defer blob.Close()
				if path == "/download" {
					blob.Close()
				} else {
					rd.Close()
				}
				ended := make(chan error, 1)
				srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					w.Header().Set("Content-Length", strconv.Itoa(size))
					switch req.URL.Path {
					case "/blob":
						_, err = SendFile(w, blob.Recipient(), blob.File, 0, size)
					case "/manifest":
						_, err = SendShort(w, blob.Recipient(), blob.File, 0, size)
					case "/bypass":
						_, err = Copy(w, blob.Recipient(), 0, size, blob.File.ReadAt)
					case "/download":
						_, err = Growing(req, rd)(w, 0, size)
					}
					rd.Close()
					blob.Close()
					ended <- err
					panic(http.ErrAbortHandler)
				}))
				address := "127.0.0.1:0"
				if c.network == "unix" {
					address = filepath.Join(t.TempDir(), "s")
				}
				srv.Listener.Close()
				if srv.Listener, err = net.Listen(c.network, address); err != nil {
					t.Fatal(err)
				}
				srv.EnableHTTP2 = c.h2
				if c.tls {
					srv.StartTLS()
				} else {
					srv.Start()
				}
				defer srv.Close()
				tr := &http.Transport{
					ForceAttemptHTTP2: c.h2, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
					DialContext: func(context.Context, string, string) (net.Conn, error) {
						conn, err := net.Dial(c.network, srv.Listener.Addr().String())
						if tcp, ok := conn.(*net.TCPConn); ok {
							tcp.SetReadBuffer(64 << 10)
						}
						return conn, err
					},
				}
				defer tr.CloseIdleConnections()
				url := "http://cache.test" + path
				if c.tls {
					url = "https://cache.test" + path
				}
				resp, err := (&http.Client{Transport: tr}).Get(url)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if (resp.ProtoMajor == 2) != c.h2 {
					t.Fatal(resp.Proto)
				}
				for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
					other, err := store.Begin(origin, digest.FromString("other"), size)
					if err == nil {
						other.Abort(storage.ErrNoRoom)
						break
					}
					if time.Now().After(deadline) {
						t.Fatal("no room: ", err)
					}
				}
				if err := <-ended; err != storage.ErrSlow {
					t.Errorf("the sending ended with %v", err)
				}
				if n := store.Stats().SlowReaders; n != 1 {
					t.Errorf("%d slow readers are counted", n)
				}
				if n, err := io.Copy(io.Discard, resp.Body); err == nil {
					t.Errorf("%d bytes look like the whole", n)
				}
			})
		}
	}
}
