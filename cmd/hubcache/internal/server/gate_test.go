package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/content"
)

func TestOnlyListedClientsMayConnect(t *testing.T) {
	s := settings.Default()
	s.ListenAllow = settings.List{"10.0.0.0/8", "192.0.2.7", "2001:db8::/32"}
	nets, err := s.AllowedClients()
	if err != nil {
		t.Fatal(err)
	}
	var g gate
	g.set(nets)
	tcp := func(addr string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }
	for _, c := range []struct {
		addr net.Addr
		in   bool
	}{
		{tcp("10.1.2.3:4"), true}, {tcp("[::ffff:10.1.2.3]:4"), true}, {tcp("192.0.2.7:4"), true}, {tcp("[2001:db8::9]:4"), true},
		{tcp("[2001:db8::9%eth0]:4"), true},
		{tcp("11.1.2.3:4"), false}, {tcp("192.0.2.8:4"), false}, {tcp("[2001:db9::9]:4"), false},
		{tcp("127.0.0.1:4"), false}, {tcp("[::1]:4"), false}, // loopback has to be listed too
		{&net.UnixAddr{Net: "unix"}, true},
	} {
		if got := g.open(c.addr); got != c.in {
			t.Errorf("%s: may connect is %v", c.addr, got)
		}
	}
	g.set(nil)
	if !g.open(tcp("203.0.113.1:4")) {
		t.Error("with an empty list not everyone may connect")
	}
}

// TestMappedNetworksMeanWhatTheySay: an IPv4 network or address that is written as an IPv6 one
// lets the same clients in as the plain one.
func TestMappedNetworksMeanWhatTheySay(t *testing.T) {
	for written, client := range map[string]struct{ in, out string }{
		"::ffff:10.0.0.0/104":     {"10.1.2.3:4", "11.1.2.3:4"},
		"::ffff:10.9.9.9/104":     {"10.1.2.3:4", "11.1.2.3:4"},
		"::ffff:a00:0/104":        {"10.1.2.3:4", "11.1.2.3:4"},
		"::ffff:192.0.2.7":        {"192.0.2.7:4", "192.0.2.8:4"},
		"::ffff:192.0.2.7/128":    {"192.0.2.7:4", "192.0.2.8:4"},
		"::ffff:0:0/96":           {"192.0.2.7:4", "[2001:db8::1]:4"},
		"::/0":                    {"[2001:db8::1]:4", "192.0.2.7:4"},
		"fe80::/10":               {"[fe80::1%eth0]:4", "[fec0::1]:4"},
		"2001:db8:0:0::c000:0207": {"[2001:db8::c000:207]:4", "192.0.2.7:4"},
	} {
		s := settings.Default()
		s.ListenAllow = settings.List{written}
		nets, err := s.AllowedClients()
		if err != nil {
			t.Errorf("%s: %v", written, err)
			continue
		}
		g := gate{}
		g.set(nets)
		may := func(addr string) bool { return g.open(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))) }
		if !may(client.in) || may(client.out) {
			t.Errorf("%s: %s may connect is %v, %s %v", written, client.in, may(client.in), client.out, may(client.out))
		}
	}
	for _, written := range []string{
		"::ffff:10.0.0.0/95", "::ffff:10.0.0.0/8", // of IPv4 and of IPv6 addresses: nobody can mean that
		"fe80::1%eth0", "10.0.0.0/33", "10.0.0", "localhost", "10.0.0.1:5000", "",
	} {
		s := settings.Default()
		s.ListenAllow = settings.List{written}
		if nets, err := s.AllowedClients(); err == nil {
			t.Errorf("%q is taken for %v", written, nets)
		}
	}
}

// TestOtherConnectionsAreClosed: on a listener, a client that isn't listed gets no byte,
// and one that is listed meanwhile may connect at once.
func TestOtherConnectionsAreClosed(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{log: slog.New(slog.DiscardHandler)}
	g.set([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go server.Serve(gated{raw, g})
	defer server.Close()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	url := "http://" + raw.Addr().String()
	if resp, err := client.Get(url); err == nil {
		t.Errorf("not listed, and served: %s", resp.Status)
	}
	if g.refused.Load() == 0 {
		t.Error("the refusal is not counted")
	}
	refused := g.refused.Load() // a client may try again
	g.set([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")})
	if _, err := client.Get(url); err != nil {
		t.Errorf("listed, and may not connect: %v", err)
	}
	if n := g.refused.Load(); n != refused {
		t.Errorf("%d refusals after one that wasn't, %d before", n, refused)
	}
}

// fakeConn is a connection of a client at an address.
type fakeConn struct {
	net.Conn
	from string
}

func (c fakeConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.from))
}
func (c fakeConn) Close() error { return nil }

// TestRefusalsAreCountedAndLoggedNowAndThen: each refusal counts. The log has the first one at
// once, and then one line a minute with the number of those since the last.
func TestRefusalsAreCountedAndLoggedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		g := &gate{log: slog.New(slog.NewTextHandler(&log, nil))}
		g.set([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
		for range 600 { // for ten minutes
			g.refuse(fakeConn{from: "10.1.2.3:4711"})
			time.Sleep(time.Second)
		}
		g.track(fakeConn{from: "10.9.9.9:1"}, http.StateNew) // listed when it was accepted
		if n := g.refused.Load(); n != 601 {
			t.Errorf("%d refusals are counted, of 601", n)
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 11 {
			t.Errorf("%d lines in ten minutes:\n%s", len(lines), log.String())
		}
		if want := "level=WARN msg=\"a client was refused: its address is not in listen_allow\" client=10.1.2.3 connections="; !strings.HasSuffix(lines[0], want+"1") || !strings.HasSuffix(lines[1], want+"60") {
			t.Errorf("%s\n%s", lines[0], lines[1])
		}
	})
}

// TestNarrowedListReachesOpenConnections: a client that is no longer listed loses its
// connections at once, whatever goes on over them, and one that still is keeps its own.
func TestNarrowedListReachesOpenConnections(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, certFile, keyFile, 1)
	file, err := os.Create(filepath.Join(dir, "layer"))
	if err == nil {
		err = file.Truncate(1 << 30)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/layer":
			content.SendFile(w, nil, file, 0, 1<<30)
		case "/waiting":
			http.NewResponseController(w).Flush()
			<-req.Context().Done()
		}
	})
	for _, c := range []struct {
		name    string
		tls, h2 bool
	}{{name: "http"}, {name: "https", tls: true}, {name: "h2", tls: true, h2: true}} {
		for _, path := range []string{"/", "/layer", "/waiting", "no request"} {
			t.Run(c.name+" "+path, func(t *testing.T) {
				raw, err := net.Listen("tcp", "0.0.0.0:0")
				if err != nil {
					t.Fatal(err)
				}
				g := &gate{log: slog.New(slog.DiscardHandler)}
				g.set(nil)
				server := &http.Server{Handler: handler, ConnState: g.track, ErrorLog: log.New(io.Discard, "", 0)}
				defer server.Close()
				if c.tls {
					go server.ServeTLS(gated{raw, g}, certFile, keyFile)
				} else {
					go server.Serve(gated{raw, g})
				}
				_, port, _ := net.SplitHostPort(raw.Addr().String())
				connect := func(from string) *client { return dialFrom(t, from, port, c.tls, c.h2) }
				narrowed, listed := connect("127.0.0.2"), connect("127.0.0.3")
				if path != "no request" {
					narrowed.get(path)
					listed.get(path)
				}
				g.set([]netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")})
				narrowed.ends()
				for forgotten := false; !forgotten; time.Sleep(time.Millisecond) { // until the test's own limit
					g.mu.Lock()
					forgotten = len(g.conns) <= 1
					g.mu.Unlock()
				}
				if path == "/" {
					listed.get(path)
				} else if path == "/layer" {
					listed.reads(8 << 20)
				}
			})
		}
	}
}

// client is an HTTP client with one connection.
type client struct {
	t    *testing.T
	base string
	http http.Client
	conn net.Conn
	resp *http.Response
}

// dialFrom connects from an address of this machine.
func dialFrom(t *testing.T, from, port string, withTLS, h2 bool) *client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &client{t: t, conn: conn, base: "http://127.0.0.1:" + port}
	dialed := false
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: h2, WriteBufferSize: 1 << 10, ReadBufferSize: 1 << 10,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if dialed {
				return nil, errors.New("the connection was closed")
			}
			dialed = true
			return conn, nil
		},
	}
	if withTLS {
		c.base = "https://127.0.0.1:" + port
	}
	c.http.Transport = transport
	t.Cleanup(transport.CloseIdleConnections)
	return c
}

func (c *client) get(path string) {
	c.t.Helper()
	resp, err := c.http.Get(c.base + path)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.resp = resp; path == "/" {
		resp.Body.Close()
		return
	}
	c.t.Cleanup(func() { resp.Body.Close() })
}

func (c *client) reads(n int64) {
	c.t.Helper()
	if _, err := io.CopyN(io.Discard, c.resp.Body, n); err != nil {
		c.t.Error(err)
	}
}

// ends waits for the connection to end, and fails if what was on its way comes to its end.
func (c *client) ends() {
	c.t.Helper()
	c.conn.SetReadDeadline(time.Now().Add(time.Minute))
	var err error
	if c.resp == nil || c.resp.Body == nil || c.resp.ContentLength == 0 {
		if _, err = c.http.Get(c.base + "/"); err == nil {
			c.t.Error("another request is answered")
		}
	} else if _, err = io.Copy(io.Discard, c.resp.Body); err == nil {
		c.t.Error("the body comes to its end")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Errorf("the connection is open: %v", err)
	}
}

// TestConnectionBetweenAcceptAndServe: a connection that is accepted before the list is
// narrowed, and served after, is closed too; one whose client has left isn't kept in mind.
func TestConnectionBetweenAcceptAndServe(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	g := &gate{log: slog.New(slog.DiscardHandler)}
	g.set(nil)
	client, err := net.Dial("tcp", raw.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := gated{raw, g}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	g.set([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
	g.track(conn, http.StateNew)
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is open: %v", err)
	}
	g.track(conn, http.StateClosed)
	if len(g.conns) != 0 {
		t.Errorf("%d closed connections are kept in mind", len(g.conns))
	}
}
