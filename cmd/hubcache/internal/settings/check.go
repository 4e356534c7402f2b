package settings

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/hubcache/hubcache/disk"
)

// LeastBudget is the smallest budget, in bytes, that is of use: most images are larger, and what is
// larger than the budget isn't kept.
const LeastBudget = 100 << 20

// check finds what can't work. It looks at no files that the settings name, because they
// may not be on the machine that checks.
func (s *Settings) check() error {
	if len(s.Listen) == 0 {
		return fmt.Errorf("listen: at least one address is needed")
	}
	for _, addr := range s.Listen {
		if err := CheckAddress(addr); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	for _, addr := range s.Admin.Listen {
		if err := CheckAddress(addr); err != nil {
			return fmt.Errorf("admin.listen: %w", err)
		}
	}
	for _, addr := range s.Metrics.Listen {
		if err := CheckAddress(addr); err != nil {
			return fmt.Errorf("metrics.listen: %w", err)
		}
	}
	if err := s.checkConflicts(); err != nil {
		return err
	}
	if addr := string(s.Docker.Admin); addr != "" {
		if err := CheckAddress(addr); err != nil {
			return fmt.Errorf("docker.admin: %w", err)
		}
	}
	if _, err := s.AllowedClients(); err != nil {
		return err
	}
	if err := s.Shared.check(); err != nil {
		return err
	}
	if (s.TLS.CertFile == "") != (s.TLS.KeyFile == "") {
		return fmt.Errorf("tls.cert_file and tls.key_file belong together")
	}
	if s.TLS.ClientCAFile != "" && s.TLS.CertFile == "" {
		return fmt.Errorf("tls.client_ca_file: clients send certificates over https alone: set tls.cert_file and tls.key_file")
	}
	if s.DataDir == "" {
		return fmt.Errorf("data_dir: a folder is needed")
	}
	if s.Budget.Share == 0 && s.Budget.Bytes <= 0 {
		return fmt.Errorf("budget: more than nothing is needed")
	}
	return nil
}

// checkUpstream finds what is wrong with the URL. Its error doesn't repeat the URL, which
// may have a password in it. key is the section that the URL is in.
func checkUpstream(s, key string) error {
	u, err := url.Parse(s)
	switch {
	case strings.Contains(s, "@"):
		return fmt.Errorf("credentials don't belong in a URL: set %s.username and %s.password_file", key, key)
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("is not an http or https URL like https://registry-1.docker.io")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("is a scheme and a host, like https://registry-1.docker.io, without a path")
	}
	return nil
}

// maxSocketPath is how long the path of a unix socket may be, in bytes, on Linux.
const maxSocketPath = 107

// CheckAddress finds what is wrong with an address to listen on or to connect to. It has to
// be host:port or unix:/path.
func CheckAddress(addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q: a unix socket needs an absolute path", addr)
		}
		if len(path) > maxSocketPath {
			return fmt.Errorf("%q: the path of a unix socket has at most %d bytes, and this one has %d", addr, maxSocketPath, len(path))
		}
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err == nil && host != "" && strings.Trim(host, "0123456789.") == "" {
		_, err = netip.ParseAddr(host) // no name looks like this
	}
	if err != nil {
		return fmt.Errorf("%q is not an address like 127.0.0.1:5000, [::1]:5000 or unix:/run/hubcache.sock", addr)
	}
	return nil
}

// checkConflicts finds two addresses of which only one could be listened on.
func (s *Settings) checkConflicts() error {
	type address struct{ key, addr string }
	var all []address
	for _, side := range []struct {
		key   string
		addrs List
	}{{"listen", s.Listen}, {"admin.listen", s.Admin.Listen}, {"metrics.listen", s.Metrics.Listen}} {
		for _, addr := range side.addrs {
			for _, b := range all {
				if !conflict(addr, b.addr) {
					continue
				}
				if b.key == side.key {
					return fmt.Errorf("%s: %s and %s are the same address", b.key, b.addr, addr)
				}
				return fmt.Errorf("%s is %s, and %s is %s: each needs an address of its own", side.key, addr, b.key, b.addr)
			}
			all = append(all, address{side.key, addr})
		}
	}
	return nil
}

// conflict reports whether two addresses can't both be listened on.
func conflict(a, b string) bool {
	pathA, unixA := strings.CutPrefix(a, "unix:")
	pathB, unixB := strings.CutPrefix(b, "unix:")
	if unixA || unixB {
		return unixA && unixB && filepath.Clean(pathA) == filepath.Clean(pathB)
	}
	hostA, portA, _ := net.SplitHostPort(a) // both have been checked
	hostB, portB, _ := net.SplitHostPort(b)
	numA, _ := strconv.ParseUint(portA, 10, 16)
	numB, _ := strconv.ParseUint(portB, 10, 16)
	return numA == numB && numA != 0 && overlap(hostA, hostB)
}

// overlap reports whether two hosts have an address in common, as far as is known without asking
// for names.
func overlap(a, b string) bool {
	allA, allB := addresses(a), addresses(b)
	if len(allA) == 0 || len(allB) == 0 {
		return strings.EqualFold(a, b)
	}
	for _, x := range allA {
		for _, y := range allB {
			if x == y || x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified()) {
				return true
			}
		}
	}
	return false
}

// addresses are what a host stands for: none for a name that has to be looked up. A listener on
// every IPv6 address takes IPv4 connections too.
func addresses(host string) []netip.Addr {
	switch host {
	case "", "::":
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	case "localhost":
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return nil
	}
	return []netip.Addr{ip.Unmap()}
}

// loop returns the address of listen that an upstream's URL leads to, "" if it is another host.
func (s *Settings) loop(upstream string) string {
	u, err := url.Parse(upstream)
	if err != nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	for _, addr := range s.Listen {
		host, own, err := net.SplitHostPort(addr)
		if strings.HasPrefix(addr, "unix:") || err != nil || own != port {
			continue
		}
		// Another machine's address may have the same port, so a server that listens on every
		// address is meant by a loopback address alone.
		if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
			host = "localhost"
		}
		if overlap(host, u.Hostname()) {
			return addr
		}
	}
	return ""
}

// doubts are about settings that work, and that are probably not meant so. They are known without
// the machine that the settings are for.
func (s *Settings) doubts() (all []string) {
	say := func(doubt bool, format string, args ...any) {
		if doubt {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	say(s.Budget.Share == 0 && s.Budget.Bytes < LeastBudget, "budget is %s, and most images are larger: they pass through, and nothing of them is kept", textOf(&s.Budget))
	nets, err := s.AllowedClients()
	say(err == nil && len(nets) > 0 && !s.anybodyConnects(nets), "listen has loopback addresses alone, and listen_allow none of them: nobody can connect; add 127.0.0.0/8")
	say(s.TLS.CertFile != "" && !slices.ContainsFunc(s.Listen, isTCP), "tls has no effect: listen has no TCP address")
	say(len(s.ListenAllow) > 0 && !slices.ContainsFunc(s.Listen, isTCP), "listen_allow has no effect: listen has no TCP address")
	s.registryDoubts(say)
	listed := len(s.Warm.References) + len(s.Warm.Files)
	say(listed > 0 && s.Warm.Schedule.at == nil, "warm has no effect: warm.schedule says when, like \"30 3 * * *\"")
	say(listed == 0 && s.Warm.Schedule.at != nil, "warm.schedule has no effect: warm.references and warm.files name no image")
	return all
}

// DiskDoubt says that the disk of this machine is too small for the budget; "" if it isn't, or if
// data_dir isn't on this machine.
func (s *Settings) DiskDoubt() string {
	space, err := disk.Measure(string(s.DataDir))
	if err != nil || s.Budget.Bytes <= space.Total {
		return ""
	}
	return fmt.Sprintf("budget is %s, and the disk of data_dir has %s in all: lower it, or give it as a percentage", textOf(&s.Budget), units.BytesSize(float64(space.Total)))
}

// anybodyConnects reports whether some client may use some address of listen.
func (s *Settings) anybodyConnects(nets []netip.Prefix) bool {
	for _, addr := range s.Listen {
		host, _, err := net.SplitHostPort(addr)
		if !isTCP(addr) || err != nil || !loopback(host) {
			return true // others may connect there
		}
	}
	return slices.ContainsFunc(nets, func(p netip.Prefix) bool {
		return p.Overlaps(netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)) || p.Contains(netip.IPv6Loopback())
	})
}

func isTCP(addr string) bool { return !strings.HasPrefix(addr, "unix:") }

// loopback reports whether a host is this machine alone.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// AllowedClients returns the networks of listen_allow, which may be single addresses. IPv4
// networks are plain, however they are written. It fails when one is neither a network nor an
// address; Load has checked that.
func (s *Settings) AllowedClients() (nets []netip.Prefix, err error) {
	for _, cidr := range s.ListenAllow {
		p, err := parseNetwork(cidr)
		if err != nil {
			return nil, fmt.Errorf("listen_allow: %w", err)
		}
		nets = append(nets, p)
	}
	return nets, nil
}

// mappedBits is how many bits of an IPv4-mapped IPv6 address stand before the IPv4 address.
const mappedBits = 96

// parseNetwork reads a network like 10.0.0.0/8, or a single address.
func parseNetwork(cidr string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		a, err := netip.ParseAddr(cidr)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a network like 10.0.0.0/8", cidr)
		}
		if a.Zone() != "" { // a Prefix has no zone, and would let in more than is written
			return netip.Prefix{}, fmt.Errorf("%q: leave out the zone, which can't be told apart here", cidr)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < mappedBits {
			return netip.Prefix{}, fmt.Errorf("%q holds IPv4 and IPv6 addresses: write a network of each kind, like 10.0.0.0/8 and fd00::/8", cidr)
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-mappedBits)
	}
	return p.Masked(), nil
}
