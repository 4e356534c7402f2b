package hubtest

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
)

// Transport reaches the three faces without a socket: real HTTP/1.1 over pipes in memory,
// with the same handlers, latencies and faults. It may be used inside a testing/synctest
// bubble, where waiting for the Hub is durably blocking and takes no real time. Host names
// are those of the URLs and of AddHost; any other is an error like a failed look-up. With Options.TLS the
// URLs are https, but nothing is encrypted.
//
// Each call returns a transport of its own, which opens a connection per request and leaves
// no goroutine behind once the bodies are read or closed. Settings such as
// ResponseHeaderTimeout may be changed before use; who sets DisableKeepAlives to false must
// call CloseIdleConnections (or [Hub.Close]) before the bubble ends.
func (h *Hub) Transport() *http.Transport { return h.TransportFrom("192.0.2.1") }

// TransportFrom is Transport for a client with this IP address, for the pull limit's sake.
func (h *Hub) TransportFrom(ip string) *http.Transport {
	dial := func(_ context.Context, _, addr string) (net.Conn, error) { return h.dial(ip, addr) }
	return &http.Transport{
		DialContext:        dial,
		DialTLSContext:     dial,
		DisableKeepAlives:  true,
		DisableCompression: true, // what the client did not ask for is not added
	}
}

// dial makes a connection to the face that the address belongs to.
func (h *Hub) dial(ip, addr string) (net.Conn, error) {
	srv := h.serverAt(addr)
	if srv == nil {
		return nil, noSuchHost(addr)
	}
	client, server := net.Pipe()
	broken := new(atomic.Bool)
	local := &net.TCPAddr{IP: net.ParseIP(ip), Port: 49152}
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 254), Port: 443}
	l := &oneConn{conn: &memConn{server, remote, local, broken}}
	if err := srv.Serve(l); errors.Is(err, http.ErrServerClosed) {
		client.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: remote, Err: syscall.ECONNREFUSED}
	}
	return &memConn{client, local, remote, broken}, nil
}

// AddHost makes Transport reach a handler under one more host name or IP address: a place
// outside the Hub that a redirect or a token realm leads to. Its requests are in no ledger,
// and it takes no faults. Sockets know nothing of it.
func (h *Hub) AddHost(host string, handler http.Handler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hosts[host] = &http.Server{Handler: handler, ErrorLog: log.New(quiet{}, "", 0)}
}

func (h *Hub) serverAt(addr string) *http.Server {
	if face, ok := h.faceAt(addr); ok {
		return h.servers[face]
	}
	host, _, _ := net.SplitHostPort(addr)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.hosts[host]
}

// DialContext connects to the socket of the face that a name or address belongs to, and to
// nothing else: for clients that are to reach a started Hub under Docker Hub's own names.
func (h *Hub) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	face, ok := h.faceAt(addr)
	h.mu.Lock()
	l := h.listeners[face]
	h.mu.Unlock()
	if !ok || l == nil {
		return nil, noSuchHost(addr)
	}
	return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
}

func noSuchHost(addr string) error {
	host, _, _ := net.SplitHostPort(addr)
	return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}}
}

func (h *Hub) faceAt(addr string) (Face, bool) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, face := range faces {
		l := h.listeners[face]
		if l != nil && l.Addr().String() == addr || cmp.Or(h.opts.name(face), defaultNames[face]) == host {
			return face, true
		}
	}
	return "", false
}

// oneConn is a listener that accepts one connection. It makes Serve return at once.
type oneConn struct{ conn net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if l.conn == nil {
		return nil, io.EOF
	}
	conn := l.conn
	l.conn = nil
	return conn, nil
}

func (l *oneConn) Close() error { return nil }

func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// memConn is an end of a pipe that has addresses and can be reset.
type memConn struct {
	net.Conn
	local, remote net.Addr
	broken        *atomic.Bool // shared by both ends
}

func (c *memConn) LocalAddr() net.Addr  { return c.local }
func (c *memConn) RemoteAddr() net.Addr { return c.remote }

// reset makes the other end read ECONNRESET instead of an end of file.
func (c *memConn) reset() { c.broken.Store(true) }

func (c *memConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF && c.broken.Load() {
		err = &net.OpError{Op: "read", Net: "tcp", Source: c.local, Addr: c.remote, Err: syscall.ECONNRESET}
	}
	return n, err
}
