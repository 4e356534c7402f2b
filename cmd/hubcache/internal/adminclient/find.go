package adminclient

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// packagedSocket is where the Debian package and the NixOS module let the server listen.
const packagedSocket = "/run/hubcache/admin.sock"

// Finder finds the admin address of the server for every command that asks it. The first of
// these that says something is used: Given, $HUBCACHE_ADMIN, admin.listen of the settings,
// the packaged socket if this user may use it, the default.
type Finder struct {
	Given  string                           // by --admin; "": nothing
	Load   func() (*settings.Loaded, error) // the settings of this host
	Socket string                           // the packaged socket; "" is /run/hubcache/admin.sock
}

// Find returns a client of the server. It asks nothing yet. It fails when the address is
// malformed, and when the settings are needed and can't be read; both are settings.UsageErrors.
func (f Finder) Find() (*Client, error) {
	addr, source, own, err := f.address()
	if err != nil {
		return nil, err
	}
	c, err := New(addr)
	if err != nil {
		return nil, settings.UsageError{Err: fmt.Errorf("%s: %w", source, err)}
	}
	c.source = "from " + source
	// The token is for the server of these settings, and for no other that the user may name.
	if own != nil && !strings.HasPrefix(addr, "unix:") { // a unix socket needs none
		c.token = token(own)
	}
	return c, nil
}

// token returns the token in admin.token_file, "" if there is none or this user can't read it. Most
// commands need none, and the server says so when one does.
func token(s *settings.Loaded) string {
	b, err := os.ReadFile(string(s.Admin.TokenFile))
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(b), "\r\n")
}

// Packaged returns a client of the packaged socket, for what the server tells nobody over TCP. It is
// nil if there is none that this user may use, and if the user has said which server is meant.
func (f Finder) Packaged() *Client {
	if f.Given != "" || os.Getenv("HUBCACHE_ADMIN") != "" || !usable(f.socket()) {
		return nil
	}
	c, err := New("unix:" + f.socket())
	if err != nil {
		return nil
	}
	c.source = "the packaged socket"
	return c
}

func (f Finder) socket() string {
	if f.Socket != "" {
		return f.Socket
	}
	return packagedSocket
}

// address returns the address, where it is from, and the settings if they say it.
func (f Finder) address() (addr, source string, own *settings.Loaded, err error) {
	if f.Given != "" {
		return f.Given, "--admin", nil, nil
	}
	if addr := os.Getenv("HUBCACHE_ADMIN"); addr != "" {
		return addr, "$HUBCACHE_ADMIN", nil, nil
	}
	s, err := f.Load()
	if err != nil {
		return "", "", nil, err
	}
	source = s.Source("admin.listen")
	if addr := listening(s.Admin.Listen); addr != "" && source != "" {
		return addr, "admin.listen, " + source, s, nil
	}
	_, missing := os.Stat(f.socket())
	if usable(f.socket()) {
		return "unix:" + f.socket(), "the packaged socket", s, nil
	}
	if source != "" {
		return "", "", nil, settings.UsageError{Err: fmt.Errorf("admin.listen is empty (%s), so the server answers nobody: --admin or $HUBCACHE_ADMIN names its address", source)}
	}
	source = "the default"
	if missing == nil {
		source += fmt.Sprintf(", since only the group %s may use unix:%s", groupOf(f.socket()), f.socket())
	}
	return listening(s.Admin.Listen), source, s, nil
}

// listening returns the address at which this host reaches a server that listens on addrs: a
// unix socket if this user may use it, else the first. "" when there is none.
func listening(addrs []string) string {
	for _, addr := range addrs {
		if path, ok := strings.CutPrefix(addr, "unix:"); ok && usable(path) {
			return addr
		}
	}
	if len(addrs) == 0 {
		return ""
	}
	host, port, err := net.SplitHostPort(addrs[0])
	if ip, parsed := netip.ParseAddr(host); err == nil && (host == "" || parsed == nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
		if ip.Is6() && !ip.Is4In6() {
			host = "::1" // it may be a socket for IPv6 alone
		}
		return net.JoinHostPort(host, port)
	}
	return addrs[0]
}

// usable reports whether there is a socket that this user may connect to.
func usable(path string) bool { return unix.Access(path, unix.W_OK) == nil }
