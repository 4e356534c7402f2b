package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// TestConfigCheckAsksTheInstalledService: settings that the installed service uses are refused if
// it can't read the access token, and other settings aren't.
func TestConfigCheckAsksTheInstalledService(t *testing.T) {
	root := t.TempDir()
	put := func(path, content string, mode os.FileMode) string {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := put("config.yaml", "upstream: {username: jane, password_file: /root/token}\n", 0o600)
	check := func() error {
		s, err := (&settings.Loader{File: config}).Load()
		if err != nil {
			t.Fatal(err)
		}
		return checkService(root, s)
	}
	if err := check(); err != nil {
		t.Errorf("without a service: %v", err)
	}
	unit := "[Service]\nDynamicUser=true\nUser=hubcache-server\nProtectHome=true\nExecStart=/usr/bin/hubcache serve --config "
	put("etc/systemd/system/hubcache.service", unit+"/etc/other.yaml\n", 0o644)
	if err := check(); err != nil {
		t.Errorf("a service with other settings: %v", err)
	}
	put("etc/systemd/system/hubcache.service", unit+config+"\n", 0o644)
	if err := check(); err == nil || !strings.Contains(err.Error(), "upstream.password_file: hubcache.service can't read /root/token") {
		t.Error(err)
	}
	config = put("config.yaml", "warm: {schedule: '30 3 * * *', files: [/home/jane/compose.yml, /srv/none.yml]}\n", 0o600)
	if err := check(); err == nil || !strings.Contains(err.Error(), "warm.files: hubcache.service can't read /home/jane/compose.yml: /home is empty for the service. Instead: put it into /srv") || strings.Contains(err.Error(), "none.yml") {
		t.Error(err)
	}
}
