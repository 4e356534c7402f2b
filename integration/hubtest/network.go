package hubtest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
)

// defaultNames are the hosts in URLs while there are neither names nor listeners.
var defaultNames = map[Face]string{Registry: "registry.hub.test", Token: "auth.hub.test", CDN: "cdn.hub.test"}

// Network is how clients reach a Hub: over three listeners, or over pipes in memory. Its
// methods may be called concurrently.
type Network struct {
	settings *settings
	servers  map[Face]*http.Server
	ca       *authority     // nil without TLS, or with a given certificate
	serving  sync.WaitGroup // one for each listener

	mu        sync.Mutex // guards all below
	closed    bool
	listeners map[Face]net.Listener   // nil until start
	hosts     map[string]*http.Server // of addHost
}

func newNetwork(s *settings, handler func(Face) http.Handler) *Network {
	n := &Network{settings: s, servers: map[Face]*http.Server{}, hosts: map[string]*http.Server{}}
	if o := s.get(); o.TLS && o.Certificate == nil {
		n.ca = newAuthority(hostNames(o))
	}
	for _, face := range faces {
		n.servers[face] = &http.Server{
			Handler:      handler(face),
			ConnContext:  withConn,
			TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1, as registry-1
			ErrorLog:     newQuietLog(),
		}
	}
	return n
}

func (n *Network) start() error {
	o := n.settings.get()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.listeners != nil {
		return errors.New("hubtest: started or closed already")
	}
	listeners := map[Face]net.Listener{}
	for _, face := range faces {
		l, err := net.Listen("tcp", cmp.Or(o.addr(face), "127.0.0.1:0"))
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return fmt.Errorf("hubtest: %s: %w", face, err)
		}
		listeners[face] = l
	}
	n.listeners = listeners
	for face, l := range listeners {
		if o.TLS {
			l = tls.NewListener(l, n.ca.serverConfig(o.Certificate))
		}
		n.serving.Go(func() { n.servers[face].Serve(l) })
	}
	return nil
}

// close closes every connection and returns when no listener is served any more.
func (n *Network) close() {
	n.mu.Lock()
	n.closed = true
	servers := slices.AppendSeq(slices.Collect(maps.Values(n.servers)), maps.Values(n.hosts))
	n.mu.Unlock()
	for _, s := range servers {
		s.Close()
	}
	n.serving.Wait()
}

func (n *Network) addHost(host string, handler http.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[host] = &http.Server{Handler: handler, ErrorLog: newQuietLog()}
}

// listener is the one of a face, or nil before start.
func (n *Network) listener(face Face) net.Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.listeners[face]
}

// URL is the base URL of a face, without a slash at the end. Tokens come from /token at the
// token service; the CDN's base is that of the signed URLs.
func (n *Network) URL(face Face) string {
	o := n.settings.get()
	scheme, defaultPort := "http://", "80"
	if o.TLS {
		scheme, defaultPort = "https://", "443"
	}
	l := n.listener(face)
	name := o.name(face)
	switch {
	case l == nil:
		return scheme + cmp.Or(name, defaultNames[face])
	case name == "":
		return scheme + l.Addr().String()
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if port == defaultPort {
		return scheme + name
	}
	return scheme + net.JoinHostPort(name, port)
}

// faceAt returns the face that an address, or a host name with or without a port, belongs to.
func (n *Network) faceAt(addr string) (Face, bool) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	o := n.settings.get()
	for _, face := range faces {
		l := n.listener(face)
		if l != nil && l.Addr().String() == addr || cmp.Or(o.name(face), defaultNames[face]) == host {
			return face, true
		}
	}
	return "", false
}

// serverAt returns the server of a face or of addHost, or nil.
func (n *Network) serverAt(addr string) *http.Server {
	if face, ok := n.faceAt(addr); ok {
		return n.servers[face]
	}
	host, _, _ := net.SplitHostPort(addr)
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[host]
}

// DialContext connects to the listener of the face that a name or address belongs to, and to
// nothing else: for clients that must reach a started Hub under Docker Hub's own names. Any
// other address is an error like that of a failed look-up.
func (n *Network) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	face, ok := n.faceAt(addr)
	l := n.listener(face)
	if !ok || l == nil {
		return nil, noSuchHost(addr)
	}
	return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
}

// TransportFrom reaches the three faces without a socket, for a client that has this IP
// address, by which pulls are counted. It is real HTTP/1.1 over pipes in memory, with the
// same handlers, latencies and faults, and may be used inside a testing/synctest bubble,
// where waiting for the Hub is durably blocking and takes no real time. Host names are those
// of the URLs and of [Hub.AddHost]; any other is an error like that of a failed look-up. With
// Options.TLS the URLs are https, but nothing is encrypted.
//
// Each call returns a new transport, which opens a connection for each request and leaves
// no goroutine behind once the bodies are read or closed. Settings such as
// ResponseHeaderTimeout may be changed before use; if DisableKeepAlives is set to false,
// CloseIdleConnections (or [Hub.Close]) must be called before the bubble ends.
func (n *Network) TransportFrom(ip string) *http.Transport {
	dial := func(_ context.Context, _, addr string) (net.Conn, error) { return n.dialPipe(ip, addr) }
	return &http.Transport{
		DialContext:        dial,
		DialTLSContext:     dial,
		DisableKeepAlives:  true,
		DisableCompression: true, // the ledger shows the headers that the client itself sets
	}
}

// dialPipe makes a connection in memory to the face that the address belongs to.
func (n *Network) dialPipe(ip, addr string) (net.Conn, error) {
	srv := n.serverAt(addr)
	if srv == nil {
		return nil, noSuchHost(addr)
	}
	client, server := Pipe()
	reset := new(atomic.Bool)
	local := &net.TCPAddr{IP: net.ParseIP(ip), Port: 49152}
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 254), Port: 443}
	l := &singleListener{conn: &pipeConn{server, remote, local, reset}}
	if err := srv.Serve(l); errors.Is(err, http.ErrServerClosed) {
		client.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: remote, Err: syscall.ECONNREFUSED}
	}
	return &pipeConn{client, local, remote, reset}, nil
}

func noSuchHost(addr string) error {
	host, _, _ := net.SplitHostPort(addr)
	return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}}
}

// singleListener accepts one connection. It makes Serve return at once.
type singleListener struct{ conn net.Conn }

func (l *singleListener) Accept() (net.Conn, error) {
	if l.conn == nil {
		return nil, io.EOF
	}
	conn := l.conn
	l.conn = nil
	return conn, nil
}

func (l *singleListener) Close() error { return nil }

func (l *singleListener) Addr() net.Addr { return &net.TCPAddr{} }

// pipeConn is one end of a pipe that has addresses and can be reset.
type pipeConn struct {
	net.Conn
	local, remote net.Addr
	wasReset      *atomic.Bool // shared by both ends
}

func (c *pipeConn) LocalAddr() net.Addr  { return c.local }
func (c *pipeConn) RemoteAddr() net.Addr { return c.remote }

// reset makes the other end read ECONNRESET instead of an end of file.
func (c *pipeConn) reset() { c.wasReset.Store(true) }

func (c *pipeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF && c.wasReset.Load() {
		err = &net.OpError{Op: "read", Net: "tcp", Source: c.local, Addr: c.remote, Err: syscall.ECONNRESET}
	}
	return n, err
}
