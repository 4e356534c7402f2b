package dockerhost

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// MirrorURL is the URL by which this host reaches the pull API: the first TCP address of
// listen, or loopback if that is every address. "" if it listens on no TCP address.
func MirrorURL(s *settings.Settings) string { return mirrorURL(s.Listen, s.TLS.CertFile != "") }

func mirrorURL(listen []string, tls bool) string {
	scheme := "http://"
	if tls {
		scheme = "https://"
	}
	for _, addr := range listen {
		host, port, err := net.SplitHostPort(addr)
		if strings.HasPrefix(addr, "unix:") || err != nil {
			continue
		}
		if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		return scheme + net.JoinHostPort(host, port)
	}
	return ""
}

// isLoopback reports whether the host of the URL is a loopback address.
func isLoopback(mirror string) bool {
	u, err := url.Parse(mirror)
	if err != nil {
		return false
	}
	if u.Hostname() == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && addr.Unmap().IsLoopback()
}

// sameMirror reports whether two URLs name one mirror: letter case of scheme and host, and
// a slash at the end, make no difference.
func sameMirror(a, b string) bool { return normalMirror(a) == normalMirror(b) }

func normalMirror(mirror string) string {
	mirror = strings.TrimRight(mirror, "/")
	if u, err := url.Parse(mirror); err == nil && u.Host != "" {
		u.Scheme, u.Host = strings.ToLower(u.Scheme), strings.ToLower(u.Host)
		return u.String()
	}
	return mirror
}

// checkMirror finds what is wrong with the URL for every engine. It refuses more than an
// engine does: what an engine takes and can't use too.
func checkMirror(mirror string) error {
	u, err := url.Parse(mirror)
	if err := refusedByAll(mirror, u, err); err != nil {
		return err
	}
	port, err := strconv.Atoi(u.Port())
	switch {
	case u.Hostname() == "":
		return errors.New("it names no host")
	case u.Port() != "" && (err != nil || port < 1 || port > 65535), strings.HasSuffix(u.Host, ":"):
		return fmt.Errorf("%q is no port", u.Port())
	case strings.ContainsAny(mirror, "?#"):
		return errors.New("it has a query or a fragment")
	case slices.Contains(strings.Split(u.Path, "/"), "v2"):
		return errors.New("it has /v2 in its path: the engine adds that by itself")
	}
	return nil
}

// refusedByAll is why all engines refuse the URL as a mirror. It is as in ValidateMirror of
// Docker's sources, from 20.10 to 29.
func refusedByAll(mirror string, u *url.URL, err error) error {
	scheme, _, found := strings.Cut(mirror, "://")
	switch {
	case mirror == "":
		return errors.New("it is empty")
	case !found || scheme == "":
		return fmt.Errorf("it has no scheme, as in http://%s", strings.TrimLeft(mirror[strings.LastIndexByte(mirror, '@')+1:], ":/"))
	case err != nil:
		return errors.New("it is not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("its scheme is %s, and must be https or http", u.Scheme)
	case u.User != nil:
		return errors.New("it has a user name or a password, which a mirror's URL can't have")
	case u.RawQuery != "" || u.Fragment != "":
		return errors.New("it has a query or a fragment")
	}
	return nil
}

// refuses is why this engine refuses the URL as a mirror: one such entry in its file, and it
// doesn't start.
func (f engineFacts) refuses(mirror string) error {
	u, err := url.Parse(mirror)
	if err := refusedByAll(mirror, u, err); err != nil {
		return err
	}
	if f.version == "" { // no engine answered
		return nil
	}
	if u.Path != "" && u.Path != "/" && slices.Compare(f.release[:], pathsSince[:]) < 0 {
		return fmt.Errorf("it has the path %s, which Docker %s doesn't take (24.0.8 and later do)", u.Path, f.version)
	}
	return nil
}

// printable is the URL without what may be a password in it: all before the last @, but for the
// scheme if the URL begins with one of a mirror.
func printable(mirror string) string {
	at := strings.LastIndexByte(mirror, '@')
	if at < 0 {
		return mirror
	}
	for _, scheme := range []string{"https://", "http://"} {
		if strings.HasPrefix(mirror, scheme) {
			return scheme + "…" + mirror[at:]
		}
	}
	return "…" + mirror[at:]
}
