package auth

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// parseRealm returns the URL of a token service. The error says why no request may be sent
// to it; the URL is then the one to name in a message: the realm, or else the registry.
func parseRealm(registry *url.URL, realm string) (*url.URL, error) {
	u, err := url.Parse(realm)
	switch {
	case err != nil:
		return registry, errors.New("the registry names a token service that is not a URL")
	case u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		return registry, errors.New("the registry names a token service that is not an http URL")
	case u.User != nil:
		return u, errors.New("the registry names a token service with a user name in its URL: refused")
	case u.Scheme == "http" && registry.Scheme == "https":
		return u, errors.New("the registry is https and its token service plain http: refused")
	}
	return u, nil
}

// trusted reports whether a token service at realm may see the registry's credential. It
// may if it is on the same host, or on the same registrable domain ("docker.io"). For an
// address, localhost and a name without a domain, only the same host is trusted.
func trusted(registry, realm *url.URL) bool {
	a, b := hostname(registry), hostname(realm)
	if a == b {
		return true
	}
	if _, err := netip.ParseAddr(a); err == nil {
		return false
	}
	da, errA := publicsuffix.EffectiveTLDPlusOne(a)
	db, errB := publicsuffix.EffectiveTLDPlusOne(b)
	return errA == nil && errB == nil && da == db
}

// hostname returns the host of a URL in lower case, without port and trailing dot.
func hostname(u *url.URL) string {
	return strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
}

// origin returns the scheme, host and port of a URL, in the same spelling for equal ones.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(hostname(u), port)
}
