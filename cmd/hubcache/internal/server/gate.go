package server

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
)

// gate decides which clients may connect: those of some networks, or all if there are no
// networks. It is safe for concurrent use.
type gate struct {
	log  *slog.Logger
	nets atomic.Pointer[[]netip.Prefix]
}

func (g *gate) set(nets []netip.Prefix) { g.nets.Store(&nets) }

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
		l.gate.log.Debug("connection refused: its address is not in listen_allow", "client", c.RemoteAddr().String())
		c.Close()
	}
}
