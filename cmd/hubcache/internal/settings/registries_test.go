package settings

import (
	"maps"
	"strings"
	"testing"
	"time"
)

const registriesFile = `tags: {ttl: 5m, max_stale: 24h, rules: [{match: "a/*:*"}]}
quota: {reserve: 20%}
allow: [library/*]
registries:
  quay.io:
    username: robot
    password_file: quay
    ca_file: /ca.pem
    private: [me/*]
    allow: [me/*, you/*]
    deny: [you/bad]
    tags: {ttl: 1h, max_stale: 0, negative_ttl: 1s, on_gone: keep, rules: [{match: "me/*:*"}]}
    quota: {reserve: 0%}
  ghcr.io:
  registry.lan:5000: {url: "http://10.0.0.9:5000"}
  localhost: {}
`

// TestRegistries: each registry has its own settings, else those of tags and quota, and is shown,
// restored and read from the environment with them.
func TestRegistries(t *testing.T) {
	s, err := loading(t, registriesFile)
	if err != nil || len(s.Warnings()) > 0 {
		t.Fatal(err, s.Warnings())
	}
	all := s.Upstreams()
	if len(all) != 5 {
		t.Fatalf("%d registries: %+v", len(all), all)
	}
	for i, want := range []struct{ name, key, url string }{
		{"docker.io", "upstream", "https://registry-1.docker.io"},
		{"ghcr.io", "registries.ghcr.io", "https://ghcr.io"},
		{"localhost", "registries.localhost", "https://localhost"},
		{"quay.io", "registries.quay.io", "https://quay.io"},
		{"registry.lan:5000", "registries.registry.lan:5000", "http://10.0.0.9:5000"},
	} {
		if u := all[i]; u.Name != want.name || u.Key != want.key || u.URL != want.url {
			t.Errorf("registry %d is %+v, want %v", i, u, want)
		}
	}
	hub, ghcr, quay := all[0], all[1], all[3]
	if len(hub.Allow) != 1 || len(ghcr.Allow) != 0 || *ghcr.TagTTL != 5*time.Minute || ghcr.MaxStale != 24*time.Hour || len(ghcr.Rules) != 1 || ghcr.QuotaReserve != 0.2 || ghcr.OnGone != AnswerGone {
		t.Errorf("Docker Hub is %+v, and ghcr.io %+v", hub, ghcr)
	}
	if quay.Username != "robot" || quay.PasswordFile != "quay" || quay.CAFile != "/ca.pem" || len(quay.Private) != 1 || len(quay.Allow) != 2 || len(quay.Deny) != 1 ||
		*quay.TagTTL != time.Hour || quay.MaxStale != 0 || quay.NegativeTTL != time.Second || quay.OnGone != KeepGone || quay.Rules[0].Match != "me/*:*" || quay.QuotaReserve != 0 {
		t.Errorf("quay.io is %+v", quay)
	}
	shown := texts(s.Settings)
	if shown["registries.ghcr.io.url"] != "https://ghcr.io" || shown["registries.quay.io.tags.ttl"] != "1h" {
		t.Errorf("shown are %v", shown)
	}
	if got := texts(Restore(s.Show())); !maps.Equal(got, shown) {
		t.Errorf("restored as %v, want %v", got, shown)
	}
	t.Setenv("HUBCACHE_SETTINGS", "\nregistries:\n  quay.io: {}\n")
	t.Setenv("HUBCACHE_REGISTRIES_QUAY_IO_CA_FILE", "/other.pem")
	if s, err = (&Loader{File: writeYAML(t, map[string]any{"registries": map[string]any{"quay.io": map[string]any{"username": "x"}, "ghcr.io": nil}})}).Load(); err != nil {
		t.Fatal(err)
	}
	if len(s.Registries) != 1 || s.Registries["quay.io"].Username != "" || s.Registries["quay.io"].CAFile != "/other.pem" || s.Source("registries.quay.io.username") != "" || !strings.HasSuffix(s.Source("registries.quay.io"), "SETTINGS:3") {
		t.Errorf("the environment gives %+v from %v", s.Registries, s.source)
	}
}

// TestHubIsARegistry: Docker Hub may be set as an entry of registries too.
func TestHubIsARegistry(t *testing.T) {
	s, err := loading(t, "allow: [library/*]\nregistries: {docker.io: {username: jane, password_file: /x, tags: {ttl: 1h}}}")
	if err != nil {
		t.Fatal(err)
	}
	if all := s.Upstreams(); len(all) != 1 || all[0].URL != "https://registry-1.docker.io" || all[0].Username != "jane" || len(all[0].Allow) != 1 || *all[0].TagTTL != time.Hour {
		t.Errorf("%+v", all)
	}
}

// TestRegistriesReload: registries come, change and go with a reload, and so does Docker Hub.
func TestRegistriesReload(t *testing.T) {
	running, err := loading(t, "upstream: {url: 'https://a.example'}\nregistries: {ghcr.io: {username: a, password_file: /x}, quay.io: }")
	if err != nil {
		t.Fatal(err)
	}
	next, err := loading(t, "registries: {ghcr.io: {username: b, password_file: /x}, lscr.io: , docker.io: {url: 'https://b.example'}}")
	if err != nil {
		t.Fatal(err)
	}
	now, later := Reloaded(running, next)
	if len(later) > 0 || len(now.Registries) != 3 || now.Registries["ghcr.io"].Username != "b" || now.Upstreams()[0].URL != "https://b.example" {
		t.Errorf("%v wait for a restart; now %v", later, texts(now.Settings))
	}
	changes := ""
	for _, c := range Changes(running, now) {
		changes += c.String() + "\n"
	}
	for _, want := range []string{"registries.ghcr.io.username: a → b", "registries.lscr.io.url: nothing → https://lscr.io", "registries.quay.io.url: https://quay.io → nothing"} {
		if !strings.Contains(changes, want) {
			t.Errorf("changes are %s; want %s", changes, want)
		}
	}
}

// TestWrongRegistriesAreRefused: each fault names the key and its line, and shows no secret.
func TestWrongRegistriesAreRefused(t *testing.T) {
	for content, says := range map[string]string{
		"registries:\n  ghcr: {}":                                                    "config.yaml:2: registries.ghcr: has no dot and no port",
		"registries:\n  GHCR.io: {}":                                                 "config.yaml:2: registries.GHCR.io: is written in lower case",
		"registries:\n  ghcr.io/org: {}":                                             "has a slash",
		"registries:\n  https://ghcr.io: {}":                                         "is a URL",
		"registries:\n  index.docker.io: {}":                                         "is Docker Hub",
		"registries:\n  registry-1.docker.io: {}":                                    "is Docker Hub",
		"registries:\n  'a..b': {}":                                                  "is not the name of a registry",
		"registries:\n  'a.b:port': {}":                                              "is not the name of a registry",
		"registries:\n  ':5000': {}":                                                 "is not the name of a registry",
		"registries:\n  'a_b.c': {}":                                                 "is not the name of a registry",
		"registries:\n  ghcr.io:\n    name: x":                                       "config.yaml:3: registries.ghcr.io.name: unknown setting",
		"registries:\n  ghcr.io:\n    password: secret":                              "name a file with it in registries.ghcr.io.password_file",
		"registries:\n  ghcr.io:\n    url: ghcr.io":                                  "config.yaml:3: registries.ghcr.io.url: is not an http or https URL",
		"registries:\n  ghcr.io:\n    url: https://me:secret@ghcr.io":                "set registries.ghcr.io.username and registries.ghcr.io.password_file",
		"registries:\n  ghcr.io:\n    url: https://ghcr.io/org":                      "without a path",
		"registries:\n  localhost:5000: {url: 'http://localhost:5000'}":              "config.yaml:2: registries.localhost:5000.url: is 127.0.0.1:5000, an address of listen: the cache would ask itself",
		"registries:\n  localhost:5000: {}":                                          "the cache would ask itself",
		"registries:\n  ghcr.io:\n    username: me":                                  "config.yaml:3: registries.ghcr.io.username: is set, and registries.ghcr.io.password_file is not",
		"registries:\n  ghcr.io:\n    password_file: me":                             "registries.ghcr.io.username is not",
		"registries:\n  ghcr.io: {username: 'a:secret', password_file: x}":           "a name has no colon",
		"registries:\n  ghcr.io: {tags: {ttl: soon}}":                                "config.yaml:2: registries.ghcr.io.tags.ttl: ",
		"registries:\n  ghcr.io: {tags: {on_gone: stay}}":                            "config.yaml:2: registries.ghcr.io.tags.on_gone: ",
		"registries:\n  ghcr.io: {tags: {rules: [{ttl: 1m}]}}":                       "a rule needs match",
		"registries:\n  ghcr.io: {quota: {reserve: 5}}":                              "not a percentage",
		"registries:\n  ghcr.io: {}\n  ghcr.io: {}":                                  "config.yaml:3: registries.ghcr.io: is set twice, first on line 2",
		"registries: [ghcr.io]":                                                      "is a section",
		"registries: {ghcr.io: 5}":                                                   "is a section",
		"upstream:\n  username: me\n  password_file: x\nregistries: {docker.io: {}}": "config.yaml:2: upstream.username: Docker Hub has an entry in registries too: set registries.docker.io.username there alone",
		"deny: [a/b]\nregistries: {docker.io: {deny: [c/d]}}":                        "config.yaml:1: deny: is Docker Hub's, and registries.docker.io.deny is set too",
	} {
		if _, err := loading(t, content); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want %s", content, err, says)
		} else if strings.Contains(strings.ReplaceAll(err.Error(), "a secret is never", ""), "secret") {
			t.Errorf("%s: the error repeats what may be a secret: %v", content, err)
		}
	}
}

// TestRegistryDoubts: what works and is probably not meant is a warning that names the registry.
func TestRegistryDoubts(t *testing.T) {
	for content, says := range map[string]string{
		"registries: {ghcr.io: {private: [me/*]}}":                                              "registries.ghcr.io.private has no effect",
		"registries: {ghcr.io: {url: 'http://ghcr.lan:80', username: jane, password_file: /x}}": "registries.ghcr.io.url is plain http: whoever is between here and ghcr.lan:80 reads the access token",
		"registries: {ghcr.io: {allow: [me/*], deny: [me/*]}}":                                  "registries.ghcr.io.allow and registries.ghcr.io.deny both have me/*",
		"registries: {ghcr.io: {tags: {rules: [{match: 'a:*'}, {match: 'a:*'}]}}}":              "registries.ghcr.io.tags.rules: the second rule for a:* has no effect",
	} {
		s, err := loading(t, content)
		if err != nil {
			t.Errorf("%s: %v", content, err)
		} else if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], says) {
			t.Errorf("%s: %q; want %s", content, w, says)
		}
	}
	for _, content := range []string{"registries: {'localhost:6000': {url: 'http://127.0.0.1:6000', username: jane, password_file: /x}}", "registries: {ghcr.io: }", "registries: {'[::1]:6000': {}}"} {
		if s, err := loading(t, content); err != nil || len(s.Warnings()) > 0 {
			t.Errorf("%s: %v, %q", content, err, s.Warnings())
		}
	}
}
