package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// loading loads a file, without what this machine has set.
func loading(t *testing.T, content string) (*Loaded, error) {
	t.Helper()
	isolate(t)
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return (&Loader{File: path}).Load()
}

// TestCheckFindsWhatCannotWork: what can't work on any machine is a fault.
func TestCheckFindsWhatCannotWork(t *testing.T) {
	const needsOwn = "each needs an address of its own"
	for content, says := range map[string]string{
		"admin: {listen: 127.0.0.1:5000}":                             "admin.listen is 127.0.0.1:5000, and listen is 127.0.0.1:5000: " + needsOwn,
		"listen: 127.0.0.1:5001":                                      needsOwn,
		"metrics: {listen: ':5000'}":                                  "metrics.listen is :5000, and listen is 127.0.0.1:5000: " + needsOwn,
		"metrics: {listen: 'localhost:5001'}":                         "metrics.listen is localhost:5001, and admin.listen is 127.0.0.1:5001: " + needsOwn,
		"metrics: {listen: [':5002', '127.0.0.1:5002']}":              "metrics.listen: :5002 and 127.0.0.1:5002 are the same address",
		"metrics: {listen: '5002'}":                                   "metrics.listen: \"5002\" is not an address",
		"listen: 0.0.0.0:5001":                                        needsOwn,
		"listen: ':5001'":                                             needsOwn,
		"listen: '[::]:5001'":                                         needsOwn,
		"listen: localhost:5001":                                      needsOwn,
		"listen: 127.0.0.1:05001":                                     needsOwn,
		"listen: '[::ffff:127.0.0.1]:5001'":                           needsOwn,
		"listen: 'cache.lan:7000'\nadmin: {listen: 'Cache.lan:7000'}": needsOwn,
		"listen: 'unix:/run/a'\nadmin: {listen: 'unix:/run/./a'}":     needsOwn,
		"listen: [127.0.0.1:6000, 0.0.0.0:6000]":                      "listen: 127.0.0.1:6000 and 0.0.0.0:6000 are the same address",
		"admin: {listen: [127.0.0.1:6000, 127.0.0.1:6000]}":           "admin.listen: 127.0.0.1:6000 and 127.0.0.1:6000 are the same address",
		"listen: 300.1.2.3:5000":                                      `listen: "300.1.2.3:5000" is not an address`,
		"listen: 'unix:/" + strings.Repeat("x", 107) + "'":            "at most 107 bytes",
		"upstream: {url: 'http://127.0.0.1:5000'}":                    "the cache would ask itself",
		"upstream: {url: 'http://localhost:5000'}":                    "the cache would ask itself",
		"listen: ':5000'\nupstream: {url: 'http://[::1]:5000'}":       "the cache would ask itself",
		"listen: 10.0.0.2:443\nupstream: {url: 'https://10.0.0.2'}":   "the cache would ask itself",
		"upstream: {username: 'jane:secret', password_file: /x}":      "upstream.username: a name has no colon",
		"docker: {admin: nonsense}":                                   "docker.admin:",
	} {
		if _, err := loading(t, content); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want %s", content, err, says)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error repeats what may be a secret: %v", content, err)
		}
	}
}

// TestCheckTakesWhatWorks: addresses that differ, if only a little, are no fault.
func TestCheckTakesWhatWorks(t *testing.T) {
	for _, content := range []string{
		"", "listen: 127.0.0.2:5001", "listen: '[::1]:5001'", "listen: 10.0.0.2:5001", "listen: cache.lan:5001",
		"listen: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:0}", "listen: [127.0.0.1:5000, '[::1]:5000', 'unix:/run/a']", "admin: {listen: []}",
		"listen: 0.0.0.0:5000\nupstream: {url: 'http://10.0.0.9:5000'}", "upstream: {url: 'https://127.0.0.1'}",
	} {
		if s, err := loading(t, content); err != nil || len(s.Warnings()) > 0 {
			t.Errorf("%s: %v, %v", content, err, s.Warnings())
		}
	}
}

// TestCheckDoubts: what works and is probably not meant is a warning.
func TestCheckDoubts(t *testing.T) {
	for content, says := range map[string]string{
		"budget: 50MiB":              "budget is 50MiB, and most images are larger",
		"listen_allow: [10.0.0.0/8]": "nobody can connect",
		"listen: 'unix:/run/a'\ntls: {cert_file: /c, key_file: /k}":                 "tls has no effect",
		"listen: 'unix:/run/a'\nlisten_allow: [10.0.0.0/8]":                         "listen_allow has no effect",
		"upstream: {private: [me/*]}":                                               "upstream.private has no effect",
		"upstream: {url: 'http://registry.lan', username: jane, password_file: /x}": "plain http: whoever is between here and registry.lan reads the access token",
		"allow: [me/*]\ndeny: [me/*]":                                               "allow and deny both have me/*",
		"tags: {rules: [{match: 'a:*'}, {match: 'a:*'}]}":                           "the second rule for a:* has no effect",
	} {
		s, err := loading(t, content)
		if err != nil {
			t.Errorf("%s: %v", content, err)
		} else if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], says) {
			t.Errorf("%s: %q; want %s", content, w, says)
		}
	}
	for _, content := range []string{"budget: 100MiB", "budget: 1%", "listen_allow: [127.0.0.1]", "listen_allow: ['::1']", "listen: 10.0.0.2:5000\nlisten_allow: [10.0.0.0/8]",
		"upstream: {url: 'http://127.0.0.1:6000', username: jane, password_file: /x}"} {
		if s, err := loading(t, content); err != nil || len(s.Warnings()) > 0 {
			t.Errorf("%s: %v, %q", content, err, s.Warnings())
		}
	}
}
