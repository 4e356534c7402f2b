package main

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/prune"
)

// TestPruneExitCodes has the exit codes that need no engine. The integration tests have
// the others.
func TestPruneExitCodes(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("docker: {host: unix:///does/not/exist.sock}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want int
	}{
		{nil, 1}, // no engine answers
		{[]string{"--high-watermark", "85"}, 2},
		{[]string{"--high-watermark", "50%"}, 2}, // below the low one
		{[]string{"--keep", "[redis"}, 2},
		{[]string{"--min-age", "soon"}, 2},
		{[]string{"--no-such-flag"}, 2},
		{[]string{"image"}, 2},
	} {
		var out, errs bytes.Buffer
		args := append([]string{"--config", config, "docker", "prune"}, test.args...)
		if got := run(args, nil, &out, &errs); got != test.want {
			t.Errorf("%q: exit code %d, want %d\n%s", test.args, got, test.want, errs.String())
		}
	}
	for decision, want := range map[prune.Decision]int{prune.Pruned: 0, prune.NotNeeded: 0, prune.Incomplete: 3, prune.Deferred: 75} {
		code, _ := errors.AsType[exitCode](pruneExit(decision))
		if int(code) != want {
			t.Errorf("%s: exit code %d, want %d", decision, code, want)
		}
	}
}

// TestPruneFailurePrintsOneError and no table.
func TestPruneFailurePrintsOneError(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("docker: {host: unix:///does/not/exist.sock}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if code := run([]string{"--config", config, "docker", "prune"}, nil, &out, &errs); code != 1 || out.Len() > 0 || strings.Count(errs.String(), "\n") != 1 {
		t.Errorf("exit code %d, output %q, errors %q", code, out.String(), errs.String())
	}
}

// TestPruneDoesntWaitForACacheThatNobodyRuns: the package sets docker.admin, and its service may be
// disabled. A cache that listens and doesn't answer may have transfers in flight.
func TestPruneDoesntWaitForACacheThatNobodyRuns(t *testing.T) {
	dir := t.TempDir()
	refused := filepath.Join(dir, "refused.sock")
	l, err := net.Listen("unix", refused)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp.Close()
	for _, addr := range []string{"unix:" + filepath.Join(dir, "missing.sock"), "unix:" + refused, tcp.Addr().String()} {
		if n, err := transfersOf(addr)(t.Context()); n != 0 || err != nil {
			t.Errorf("%s: %d transfers, %v", addr, n, err)
		}
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	if _, err := transfersOf(strings.TrimPrefix(other.URL, "http://"))(t.Context()); err == nil {
		t.Error("something else that answers is no error")
	}
}

func TestPruneTable(t *testing.T) {
	img := prune.Image{ID: "sha256:0123456789abcdef0123", Tags: []string{"redis:7", "redis:latest"}, Size: 3 << 20}
	var out bytes.Buffer
	err := writePruneTable(&out, prune.Report{Decision: prune.Incomplete, Reason: "the rules keep the rest", DryRun: true, High: 0.85, Low: 0.75,
		Before: []prune.Disk{{Path: "/var/lib/docker", Total: 100, Used: 90}},
		Images: []prune.ImageDecision{{Image: img, Action: prune.Delete, Why: "old"}, {Image: prune.Image{ID: img.ID}, Action: prune.Keep, Why: "container web uses it"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"would go", "redis:7 (+1)", "3MiB", "stays", "sha256:0123456789ab ", "container web uses it", "90.0% full", "incomplete: the rules keep the rest", "--apply deletes", "docker watch is not running"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}
