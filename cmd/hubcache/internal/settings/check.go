package settings

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
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
	if _, err := s.AllowedClients(); err != nil {
		return err
	}
	if (s.TLS.CertFile == "") != (s.TLS.KeyFile == "") {
		return fmt.Errorf("tls.cert_file and tls.key_file belong together")
	}
	if u := s.Upstream; u.Username == "" && u.PasswordFile != "" {
		return fmt.Errorf("upstream.password_file is set, and upstream.username is not")
	} else if u.Username != "" && u.PasswordFile == "" {
		return fmt.Errorf("upstream.username is set, and upstream.password_file is not")
	}
	if err := checkUpstream(string(s.Upstream.URL)); err != nil {
		return fmt.Errorf("upstream.url: %w", err)
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
// may have a password in it.
func checkUpstream(s string) error {
	u, err := url.Parse(s)
	switch {
	case strings.Contains(s, "@"):
		return errors.New("credentials don't belong in a URL: set upstream.username and upstream.password_file")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("is not an http or https URL like https://registry-1.docker.io")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("is a scheme and a host, like https://registry-1.docker.io, without a path")
	}
	return nil
}

// CheckAddress finds what is wrong with an address to listen on or to connect to. It has to
// be host:port or unix:/path.
func CheckAddress(addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q: a unix socket needs an absolute path", addr)
		}
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is not an address like 127.0.0.1:5000, [::1]:5000 or unix:/run/hubcache.sock", addr)
	}
	return nil
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
