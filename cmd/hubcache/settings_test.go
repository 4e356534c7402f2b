package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hubcache/hubcache/admin"
)

// settingsOf asks a server what it runs with.
func settingsOf(t *testing.T, p *process) (admin.Settings, map[string]admin.Setting) {
	t.Helper()
	status, body := p.get(p.admin + "/api/v1/settings")
	var doc admin.Settings
	if err := json.Unmarshal([]byte(body), &doc); err != nil || status != 200 {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	all := map[string]admin.Setting{}
	for _, s := range doc.Settings {
		all[s.Key] = s
	}
	return doc, all
}

// TestServerTellsItsSettings: the server says what it runs with, from flags, environment and file,
// where it really listens, and after a reload what has changed then. No secret is in it.
func TestServerTellsItsSettings(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("dckr_pat_hunter2"), 0o400); err != nil {
		t.Fatal(err)
	}
	config := "deny: [a/*]\nupstream: {url: 'http://127.0.0.1:1', username: jane, password_file: token}\n"
	p := startServer(t, config, "CREDENTIALS_DIRECTORY="+filepath.Dir(token), "HUBCACHE_BUDGET=3GiB")
	doc, all := settingsOf(t, p)
	for key, want := range map[string]admin.Setting{
		"deny":                   {Key: "deny", Value: "a/*", Source: "file " + p.config + ":1"},
		"budget":                 {Key: "budget", Value: "3GiB", Source: "environment HUBCACHE_BUDGET"},
		"upstream.password_file": {Key: "upstream.password_file", Value: "token", Source: "file " + p.config + ":2"},
		"min_free":               {Key: "min_free", Value: "1GiB", Source: "default"},
	} {
		if all[key] != want {
			t.Errorf("%+v, want %+v", all[key], want)
		}
	}
	if doc.File != p.config || doc.PasswordFile != token || doc.User == "" || len(doc.Listen) != 1 || doc.Listen[0] != p.pull || len(doc.Admin) != 1 || doc.Admin[0] != p.admin {
		t.Errorf("%+v", doc)
	}
	if text, err := json.Marshal(doc); err != nil || strings.Contains(string(text), "hunter2") {
		t.Errorf("%s, %v", text, err)
	}
	p.configure("deny: [b/*]\nread_ahead: false\n" + config[len("deny: [a/*]\n"):])
	p.signal(syscall.SIGHUP)
	p.awaitLog("settings read again")
	if _, all = settingsOf(t, p); all["deny"].Value != "b/*" || all["read_ahead"].Value != "false" {
		t.Errorf("after a reload: %+v", all)
	}
}
