package auth

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// parseRealm returns the realm's URL, and why no request is sent to it.
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

// trusted reports whether a token service at realm may see the registry's credential:
// it is the same host, or on the same registrable domain. An address, localhost and a
// name without a domain have none, so that only the same host will do.
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

func hostname(u *url.URL) string {
	return strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
}

// origin is what two URLs of one host have in common: scheme, host and port.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(hostname(u), port)
}
