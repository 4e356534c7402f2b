package dockerhost

import (
	"net/url"
	"strings"
	"testing"
)

func TestMirrorURL(t *testing.T) {
	for _, test := range []struct {
		listen []string
		tls    bool
		want   string
	}{
		{[]string{"127.0.0.1:5000"}, false, "http://127.0.0.1:5000"},
		{[]string{"unix:/run/x", "10.0.0.1:80"}, true, "https://10.0.0.1:80"},
		{[]string{"0.0.0.0:5000"}, false, "http://127.0.0.1:5000"},
		{[]string{":5000"}, false, "http://127.0.0.1:5000"},
		{[]string{"[::]:5000"}, false, "http://127.0.0.1:5000"},
		{[]string{"unix:/run/x"}, false, ""},
	} {
		if got := mirrorURL(test.listen, test.tls); got != test.want {
			t.Errorf("%v: %q, want %q", test.listen, got, test.want)
		}
	}
}

// TestMirrorsThatDockerRefuses: each URL is refused exactly by the engines that refuse it, or
// by all where no engine could use it.
func TestMirrorsThatDockerRefuses(t *testing.T) {
	for _, test := range []struct{ mirror, version, says string }{
		{"http://127.0.0.1:6000", "20.10.24+dfsg1", ""},
		{"https://cache.lan", "20.10.24", ""},
		{"http://[::1]:5000", "20.10.24", ""},
		{"HTTP://Cache.Lan:5000", "28.5.2", ""},
		{"127.0.0.1:6000", "20.10.24", "no scheme, as in http://127.0.0.1:6000"},
		{"127.0.0.1:6000", "29.7.2", "no scheme"},
		{"cache.lan:5000", "20.10.24", "no scheme, as in http://cache.lan:5000"},
		{"cache.lan", "29.7.2", "no scheme"},
		{"", "20.10.24", "empty"},
		{"://cache.lan", "20.10.24", "no scheme"},
		{"u:p@cache.lan", "20.10.24", "no scheme, as in http://cache.lan"},
		{" http://cache.lan", "20.10.24", "not a URL"},
		{"http://cache lan", "20.10.24", "not a URL"},
		{"http://[::1", "20.10.24", "not a URL"},
		{"ftp://cache.lan", "29.7.2", "scheme is ftp"},
		{"unix:///run/hubcache.sock", "29.7.2", "scheme is unix"},
		{"https://u:p@cache.lan", "20.10.24", "user name"},
		{"https://u:p@cache.lan", "29.7.2", "user name"},
		{"https://u@cache.lan", "29.7.2", "user name"},
		{"http://cache.lan?ns=docker.io", "29.7.2", "query"},
		{"http://cache.lan#x", "29.7.2", "fragment"},
		{"http://cache.lan/hub", "20.10.24", "path /hub, which Docker 20.10.24"},
		{"http://cache.lan/hub", "24.0.7", "path"},
		{"http://cache.lan/hub", "24.0.8", ""},
		{"http://cache.lan/hub", "29.7.2", ""},
		{"http://cache.lan/hub", "dev", "path"},
		{"http://cache.lan/v2/", "20.10.24", "/v2"},
		{"http://cache.lan/v2", "29.7.2", "/v2"},
		{"http://", "29.7.2", "no host"},
		{"http://:5000", "29.7.2", "no host"},
		{"http://cache.lan:", "29.7.2", "no port"},
		{"http://cache.lan:99999", "29.7.2", "no port"},
		{"http://cache.lan?", "29.7.2", "query"},
	} {
		err := checkMirror(test.mirror)
		if err == nil {
			err = engineFacts{version: test.version, release: releaseOf(test.version)}.refuses(test.mirror)
		}
		if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%q on %s: %v, want %q", test.mirror, test.version, err, test.says)
		}
		if err != nil && strings.Contains(err.Error(), "p@") {
			t.Errorf("%q: the password is in %q", test.mirror, err)
		}
	}
}

// FuzzMirrorURL: what setup writes, every engine takes: those that take a path, and those
// that don't.
func FuzzMirrorURL(f *testing.F) {
	for _, seed := range []string{"http://a:1", "https://u@a", "http://a/b?c#d", "a:1", "http://a/%zz", "http:a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, mirror string) {
		for _, version := range []string{"20.10.24", "29.7.2"} {
			if checkMirror(mirror) != nil || (engineFacts{release: releaseOf(version)}).refuses(mirror) != nil {
				continue
			}
			if err := engineTakes(mirror, version); err != nil {
				t.Errorf("%q would be written for %s, which refuses it: %v", mirror, version, err)
			}
			if u, err := url.Parse(mirror); err != nil || u.Host == "" {
				t.Errorf("%q names no host", mirror)
			}
		}
	})
}

// TestPrintableHidesPasswords: also those of a URL without a scheme, or with one in a wrong place.
func TestPrintableHidesPasswords(t *testing.T) {
	for mirror, want := range map[string]string{
		"https://cache.lan":            "https://cache.lan",
		"https://u:secret@cache.lan":   "https://…@cache.lan",
		"https://u:se@cret@cache.lan":  "https://…@cache.lan",
		"u:secret@cache.lan:5000":      "…@cache.lan:5000",
		"u:secret@cache.lan/https://x": "…@cache.lan/https://x",
		"http:/u:secret@cache.lan":     "…@cache.lan",
		"u:secret://x@cache.lan":       "…@cache.lan",
	} {
		if got := printable(mirror); got != want {
			t.Errorf("%q: %q, want %q", mirror, got, want)
		}
	}
}
