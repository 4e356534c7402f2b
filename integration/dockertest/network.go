package dockertest

import (
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
)

// Network is a bridge between the test and its daemons. A daemon on it reaches listeners of the
// test at Addr and the other daemons, and nothing else: it has no route to any other address.
type Network struct {
	// Addr is the test's own address on the network, for its listeners.
	Addr netip.Addr

	bridge string
	prefix netip.Prefix
	next   netip.Addr
}

// Subnets contains the addresses of all networks.
var Subnets = netip.MustParsePrefix("10.128.0.0/10")

// networks counts the networks of this process, so that each gets a subnet of its own.
var networks atomic.Uint32

// NewNetwork makes a network, which is removed at the end of the test.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	// By the process ID, networks of test binaries that run at the same time differ.
	n, pid := networks.Add(1), os.Getpid()
	prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + byte(n%64), byte(pid), 0}), 24)
	w := &Network{
		Addr:   prefix.Addr().Next(),
		bridge: fmt.Sprintf("hct%d-%d", pid%100000, n%1000),
		prefix: prefix,
	}
	w.next = w.Addr
	run(t, "ip", "link", "add", w.bridge, "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "del", w.bridge) })
	run(t, "ip", "addr", "add", w.cidr(w.Addr), "dev", w.bridge)
	run(t, "ip", "link", "set", w.bridge, "up")
	return w
}

func (w *Network) cidr(a netip.Addr) string { return fmt.Sprintf("%s/%d", a, w.prefix.Bits()) }

// take reserves the next address.
func (w *Network) take() netip.Addr {
	w.next = w.next.Next()
	return w.next
}

// attach gives the network namespace of the process pid an interface eth0 with this address.
// The kernel removes the pair of interfaces with the namespace.
func (w *Network) attach(t testing.TB, pid int, a netip.Addr) {
	t.Helper()
	host := fmt.Sprintf("hcv%d", pid)
	run(t, "ip", "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", pidArg(pid))
	run(t, "ip", "link", "set", host, "master", w.bridge, "up")
	inside := func(args ...string) {
		run(t, "nsenter", append([]string{"-t", pidArg(pid), "-n", program(t, "ip")}, args...)...)
	}
	inside("addr", "add", w.cidr(a), "dev", "eth0")
	inside("link", "set", "eth0", "up")
}
