package name

import (
	_ "crypto/sha512" // for go-digest
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

const (
	hex64  = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	hex128 = hex64 + hex64
)

// The regular expressions are those of the distribution-spec.
var (
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// FuzzValidRepository compares the fast check with the specification's regular expression.
func FuzzValidRepository(f *testing.F) {
	for _, s := range []string{
		"", "/", "a", "redis", "library/redis", "a/b/c", "a//b", "/a", "a/", "A", "a b", "..", "../a", "a/../b", "a.b", "a..b", "a_b", "a__b", "a___b",
		"a-b", "a---b", "a-", "-a", "a._b", "a-.b", "host.io:443/a", "a\x00b", "a\n", "é", "a%2fb", strings.Repeat("x", 245), strings.Repeat("x", 246),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want := len(s) <= MaxRepository && repositoryPattern.MatchString(s)
		if ValidRepository(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	})
}

// FuzzValidTag compares the fast check with the specification's regular expression.
func FuzzValidTag(f *testing.F) {
	for _, s := range []string{"", "latest", "7.4-alpine", "_x", ".x", "-x", "A", "a:b", "a/b", "a\n", "é", strings.Repeat("x", 128), strings.Repeat("x", 129)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if want := tagPattern.MatchString(s); ValidTag(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	})
}

// FuzzValidDigest compares the fast check with go-digest's.
func FuzzValidDigest(f *testing.F) {
	for _, s := range []string{"", "sha256:", "sha256:" + hex64, "sha256:" + hex64 + "0", "sha512:" + hex128, "sha384:" + hex64, "SHA256:" + hex64, "sha256:" + strings.ToUpper(hex64), "sha256:../" + hex64[3:]} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := digest.Digest(s)
		want := d.Validate() == nil && (d.Algorithm() == digest.SHA256 || d.Algorithm() == digest.SHA512)
		if ValidDigest(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	})
}

func TestNamesOfOfficialImagesGetTheirFolder(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "redis": "library/redis", "library/redis": "library/redis", "org/app": "org/app", "a/b/c": "a/b/c",
	} {
		if got := WithLibrary(s); got != want {
			t.Errorf("%q: %q; want %q", s, got, want)
		}
	}
}

func TestPatternsMatchNamesWithTheirFolder(t *testing.T) {
	for s, want := range map[string]string{
		"*": "*", "docker.io/*": "*", "redis": "library/redis", "docker.io/redis": "library/redis", "docker.io/library/redis": "library/redis",
		"redis:*": "library/redis:*", "re*": "library/re*", "org/**": "org/**", "docker.io/org/*": "org/*", "ghcr.io/org/app": "ghcr.io/org/app",
	} {
		if got := NormalizePattern(s); got != want {
			t.Errorf("%q: %q; want %q", s, got, want)
		}
	}
}

func TestRegistriesAreToldFromFolders(t *testing.T) {
	for s, want := range map[string]bool{
		"": false, "library": false, "ghcr.io": true, "GHCR.io": true, "localhost": true, "localhosts": false, "cache:5000": true, "a.b:1": true, ".": false, "..": false, ".a:b": false, ":5000": false, "[::1]:5000": true, "a_b-c": false,
	} {
		if got := IsRegistry(s); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestChecksAllocateNothing(t *testing.T) {
	d := "sha256:" + hex64
	if n := testing.AllocsPerRun(100, func() {
		if !ValidRepository("library/redis") || !ValidTag("7.4-alpine") || !ValidDigest(d) || WithLibrary("library/redis") == "" {
			t.Error("not valid")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestCanExist: Docker Hub has names of two components, and no registry has very deep ones.
func TestCanExist(t *testing.T) {
	deep := strings.TrimSuffix(strings.Repeat("a/", MaxParts), "/")
	for _, c := range []struct {
		host, repository string
		want             bool
	}{
		{"registry-1.docker.io", "library/redis", true}, {"registry-1.docker.io:443", "org/app", true}, {"docker.io", "a/b", true},
		{"registry-1.docker.io", "a/b/c", false}, {"registry-1.docker.io:443", "a/b/c", false}, {"docker.io", "a", false},
		{"mirror.test", "a/b/c", true}, {"mirror.test:5000", "a", true}, {"notdocker.io", "a/b/c", true},
		{"mirror.test", deep, true}, {"mirror.test", deep + "/a", false},
	} {
		if got := CanExist(c.host, c.repository); got != c.want {
			t.Errorf("%s %s: %v", c.host, c.repository, got)
		}
	}
}
