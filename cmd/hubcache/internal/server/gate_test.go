package server

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
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

// TestOtherConnectionsAreClosed: on a listener, a client that isn't listed gets no byte,
// and a change of the list counts from the next connection on.
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
	g.set([]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")})
	if _, err := client.Get(url); err != nil {
		t.Errorf("listed, and may not connect: %v", err)
	}
}
