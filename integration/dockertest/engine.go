package dockertest

import (
	_ "embed"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

//go:embed engine.versions
var engineVersions string

// version returns the version of a part of the engine that integration/install-tools builds.
func version(t testing.TB, part string) string {
	t.Helper()
	for line := range strings.Lines(engineVersions) {
		if v, ok := strings.CutPrefix(line, part+"="); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("dockertest: engine.versions has no %s", part)
	return ""
}

// Docker29 returns the folder with dockerd 29, containerd 2, ctr, containerd's shim and runc,
// which integration/install-tools builds once for all checkouts. If it is missing, the test fails.
// To start such a dockerd, set Options.Docker29.
func Docker29(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "hubcache-test", "moby-"+version(t, "moby")+"-containerd-"+version(t, "containerd")+"-runc-"+version(t, "runc"))
	if _, err := os.Stat(filepath.Join(dir, "dockerd")); err != nil {
		t.Fatalf("dockertest: Docker 29 is missing; integration/install-tools builds it: %v", err)
	}
	return dir
}

// Docker28 returns the path of dockerd 28, which "integration/install-tools docker28" builds. If it
// is missing, the test fails. To start it, set Options.Docker28.
func Docker28(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "hubcache-test", "docker-"+version(t, "docker28"), "dockerd")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("dockertest: Docker 28 is missing; \"integration/install-tools docker28\" builds it: %v", err)
	}
	return path
}
