package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// tokenFile writes a file for upstream.password_file, and returns the part of a settings file
// that names it.
func tokenFile(t *testing.T, content string, mode os.FileMode) (path, config string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path, "upstream: {url: 'http://127.0.0.1:1', username: jane, password_file: " + path + "}\n"
}

// TestServeRefusesWhatIsNoToken: a file whose content can't be a token stops the start, with what
// is odd and where, and without the content.
func TestServeRefusesWhatIsNoToken(t *testing.T) {
	for content, says := range map[string]string{
		`"dckr_pat_hunter2"`:     "it is in quotation marks",
		"dckr_pat_ hunter2":      "character 10 is a blank",
		"dckr_pat_hunter2\x07":   "character 17 is a control character",
		"hunter2\nhunter2":       "more than one line",
		"jane:dckr_pat_hunter2 ": "character 22 is a blank, the last",
	} {
		path, config := tokenFile(t, content, 0o400)
		p := notStarted(t, config)
		stderr, err := p.run()
		if code := exitCodeOf(t, err); code != 2 || !strings.Contains(stderr, says) || !strings.Contains(stderr, path) || !strings.Contains(stderr, "upstream.password_file") {
			t.Errorf("%q: exit code %d: %s", content, code, stderr)
		}
		if strings.Contains(stderr, "hunter2") {
			t.Errorf("%q: it prints the secret: %s", content, stderr)
		}
	}
}

// TestServeStartsWithoutAToken: a file that isn't there, or is empty, may come later.
func TestServeStartsWithoutAToken(t *testing.T) {
	path, config := tokenFile(t, "", 0o400)
	startServer(t, config).awaitLog("is empty")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	startServer(t, config).awaitLog("no such file")
}

// TestReloadKeepsTheTokenWhenTheNewOneIsNone: what can't be a token doesn't take the place of one.
func TestReloadKeepsTheTokenWhenTheNewOneIsNone(t *testing.T) {
	path, config := tokenFile(t, "dckr_pat_hunter2", 0o600)
	p := startServer(t, config)
	if err := os.WriteFile(path, []byte("'dckr_pat_hunter3'"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	if line := p.awaitLog("the last one stays in force"); !strings.Contains(line, "in quotation marks") || strings.Contains(line, "hunter") {
		t.Error(line)
	}
}

// TestServeWarnsOfAnExposedToken: a token file that every user may read is a warning.
func TestServeWarnsOfAnExposedToken(t *testing.T) {
	path, config := tokenFile(t, "dckr_pat_hunter2", 0o444)
	line := startServer(t, config).awaitLog("every user of this machine may read the access token")
	if !strings.Contains(line, `"level":"WARN"`) || !strings.Contains(line, path) {
		t.Error(line)
	}
	_, config = tokenFile(t, "dckr_pat_hunter2", 0o440)
	if log := strings.Join(startServer(t, config).logged(), "\n"); strings.Contains(log, "every user") {
		t.Error(log)
	}
}
