package hubtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
)

// ErrNotLoopback is the reason for which [Dial] refuses an address.
var ErrNotLoopback = errors.New("tests may dial loopback addresses and unix sockets only")

// Dial connects to loopback addresses, localhost and unix sockets. Any other address is a
// *net.OpError that wraps [ErrNotLoopback]; no packet is sent and no name is looked up. It is
// for the DialContext of a test's [http.Transport].
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if !isLocal(network, addr) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("%s: %w", addr, ErrNotLoopback)}
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

func isLocal(network, addr string) bool {
	switch network {
	case "unix", "unixgram", "unixpacket":
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// LoopbackOnly makes a transport dial with [Dial] and ignore proxies of the environment. It
// returns the transport. A TestMain may give it http.DefaultTransport. It must be called
// before the transport is used.
func LoopbackOnly(t *http.Transport) *http.Transport {
	t.DialContext, t.DialTLSContext, t.Proxy = Dial, nil, nil
	return t
}
