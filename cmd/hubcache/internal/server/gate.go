package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// gate decides which clients may connect: those of some networks, or all if there are no
// networks. It is safe for concurrent use.
type gate struct {
	log     *slog.Logger
	nets    atomic.Pointer[[]netip.Prefix]
	refused atomic.Int64 // connections

	mu     sync.Mutex // guards what follows; no other lock is taken under it
	conns  map[net.Conn]struct{}
	said   time.Time // when the log last said that clients are refused
	unsaid int64     // connections that were refused since
}

// sayEvery is how often, at most, the log says that clients are refused: a client may try
// again as often as it likes.
const sayEvery = time.Minute

// refuse closes a connection of a client that may not connect.
func (g *gate) refuse(c net.Conn) {
	g.sayRefused(c.RemoteAddr(), "a client was refused: its address is not in listen_allow")
	cut(c) // last, so that whoever sees its end finds it counted
}

// sayRefused counts a connection that was refused, and warns of it, unless another warning was logged
// a moment ago.
func (g *gate) sayRefused(from net.Addr, why string) {
	g.refused.Add(1)
	g.mu.Lock()
	g.unsaid++
	n, now := g.unsaid, time.Now()
	say := g.said.IsZero() || now.Sub(g.said) >= sayEvery
	if say {
		g.said, g.unsaid = now, 0
	}
	g.mu.Unlock()
	client := from.String()
	if host, _, err := net.SplitHostPort(client); err == nil {
		client = host
	}
	level := slog.LevelDebug
	if say {
		level = slog.LevelWarn
	}
	g.log.Log(context.Background(), level, why, "client", client, "connections", n)
}

// set replaces the networks, and closes the open connections of clients that may no longer
// connect, even in the middle of an answer.
func (g *gate) set(nets []netip.Prefix) {
	g.nets.Store(&nets)
	var closing []net.Conn
	g.mu.Lock()
	for c := range g.conns {
		if !g.open(c.RemoteAddr()) {
			closing = append(closing, c)
		}
	}
	g.mu.Unlock()
	for _, c := range closing {
		cut(c)
	}
	if len(closing) > 0 {
		g.log.Info("connections closed: their clients are no longer in listen_allow", "connections", len(closing))
	}
}

// track is for http.Server.ConnState: it knows which connections are open. A connection that
// set can't have seen yet is closed here.
func (g *gate) track(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		g.mu.Lock()
		if g.conns == nil {
			g.conns = map[net.Conn]struct{}{}
		}
		g.conns[c] = struct{}{}
		g.mu.Unlock()
		if !g.open(c.RemoteAddr()) { // set was called since it was accepted
			g.refuse(c)
		}
	case http.StateClosed, http.StateHijacked:
		g.mu.Lock()
		delete(g.conns, c)
		g.mu.Unlock()
	}
}

// cut closes a connection at once. Bytes that the kernel has not sent yet are dropped.
func cut(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn() // tls.Conn.Close would wait for a client that doesn't read
	}
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// open reports whether a client at that address may connect.
func (g *gate) open(addr net.Addr) bool {
	nets := *g.nets.Load()
	if len(nets) == 0 || addr.Network() == "unix" {
		return true
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return false
	}
	ip := ap.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// gated is a listener that closes connections of clients that may not connect.
type gated struct {
	net.Listener
	gate *gate
}

func (l gated) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || l.gate.open(c.RemoteAddr()) {
			return c, err
		}
		l.gate.refuse(c)
	}
}
