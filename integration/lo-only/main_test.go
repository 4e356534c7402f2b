//go:build linux

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// inNamespace skips a test that was not started by lo-only. The Makefile's unit target sets
// LO_ONLY together with -exec, so there, as root, these tests never skip.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Getenv("LO_ONLY") == "" {
		t.Skip("LO_ONLY is not set: this needs the network namespace that `make unit` makes when it is run as root")
	}
}

// TestNamespaceHasLoopbackAlone checks that there is no second interface, and that programs
// can talk to each other over both loopback addresses.
func TestNamespaceHasLoopbackAlone(t *testing.T) {
	inNamespace(t)
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(interfaces) != 1 || interfaces[0].Name != "lo" || interfaces[0].Flags&net.FlagUp == 0 {
		t.Errorf("interfaces %v, want lo alone, up", interfaces)
	}
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Error(err)
			continue
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
		l.Close()
	}
}

// TestDialOutOfLoopbackFailsAtOnce dials documentation addresses (RFC 5737, RFC 3849), and
// expects an error in less than a second where a packet that is dropped would mean a wait of
// minutes.
func TestDialOutOfLoopbackFailsAtOnce(t *testing.T) {
	inNamespace(t)
	for _, address := range []string{"192.0.2.1:443", "[2001:db8::1]:443"} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		start := time.Now()
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		took := time.Since(start)
		cancel()
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("dialling %s: %v, want %v", address, err, syscall.ENETUNREACH)
		}
		if took > time.Second {
			t.Errorf("dialling %s took %v", address, took)
		}
	}
}

// TestMissingProgramIsReported checks that a wrong command line never runs a test outside
// the namespace, and says what is wrong.
func TestMissingProgramIsReported(t *testing.T) {
	if err := run("no-such-program", []string{"no-such-program"}); err == nil {
		t.Error("no error")
	}
}
