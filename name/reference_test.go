package name

import (
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	const digest = "sha256:" + hex64
	for text, want := range map[string]string{
		"redis":                                     "docker.io/library/redis:latest",
		"redis:7":                                   "docker.io/library/redis:7",
		"library/redis:7":                           "docker.io/library/redis:7",
		"docker.io/library/redis:7":                 "docker.io/library/redis:7",
		"docker.io/redis":                           "docker.io/library/redis:latest",
		"index.docker.io/library/redis:7":           "docker.io/library/redis:7",
		"org/app":                                   "docker.io/org/app:latest",
		"org/app@" + digest:                         "docker.io/org/app@" + digest,
		"org/app:1@" + digest:                       "docker.io/org/app@" + digest,
		"ghcr.io/org/app:V1.0":                      "ghcr.io/org/app:V1.0",
		"registry.example.org:5000/a/b/c/d:1":       "registry.example.org:5000/a/b/c/d:1",
		"localhost/app":                             "localhost/app:latest",
		"registry.example.org/app@sha512:" + hex128: "registry.example.org/app@sha512:" + hex128,
	} {
		got, err := ParseReference(text)
		if err != nil || got.String() != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                                   "not the name of an image",
		"Redis:7":                            "must be lowercase",
		"redis:":                             "not the name of an image",
		"redis:7 ":                           "not the name of an image",
		"redis@sha256:abc":                   "not the name of an image",
		"redis@" + digest[:20]:               "not the name of an image",
		"redis@sha384:" + hex64 + hex64[:32]: "neither sha256 nor sha512",
		"a/b/c:1":                            "docker.io can have no repository a/b/c",
		"http://docker.io/redis":             "not the name of an image",
		"redis*":                             "not the name of an image",
		digest:                               "a digest alone",
		hex64:                                "not the name of an image",
		"../etc/passwd":                      "not the name of an image",
		strings.Repeat("x", 300):             "not the name of an image",
	} {
		got, err := ParseReference(text)
		if err == nil {
			t.Errorf("%q: %v, no error", text, got)
		} else if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}

func TestFamiliarNames(t *testing.T) {
	for reference, want := range map[string]string{
		"docker.io/library/redis:7": "redis:7", "docker.io/org/app:1": "org/app:1", "ghcr.io/org/app:1": "ghcr.io/org/app:1",
		"docker.io/library/redis@sha256:0": "redis@sha256:0", "docker.io/my.org/app:1": "docker.io/my.org/app:1", "ghcr.io/library/redis:7": "ghcr.io/library/redis:7", "docker.io/library/redis": "redis",
	} {
		if got := Familiar(reference); got != want {
			t.Errorf("%s: %s, want %s", reference, got, want)
		}
	}
}

func TestBegins(t *testing.T) {
	for text, want := range map[string]string{
		"": "redis:7", "re": "redis:7", "redis:7": "redis:7", "library/r": "library/redis:7", "docker.io/": "docker.io/library/redis:7", "docker": "docker.io/library/redis:7", "nginx": "", "redis:78": "",
	} {
		if got := Begins("docker.io/library/redis:7", text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// FuzzReference: what was understood is understood as the same again, whole and as people write it.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"redis", "redis:7", "org/app@sha256:" + hex64, "docker.io/localhost/app", "docker.io/my.org/app:1", "docker.io/library/app", "ghcr.io/library/app:1", "localhost:5000/a/b", "docker.io/library/localhost"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		if (ref.Tag == "") == (ref.Digest == "") || ref.Tag != "" && !ValidTag(ref.Tag) {
			t.Errorf("%q: tag %q, digest %q", s, ref.Tag, ref.Digest)
		}
		for _, again := range []string{ref.String(), Familiar(ref.String())} {
			if got, err := ParseReference(again); err != nil || got != ref {
				t.Errorf("%q is %v, and %q is %v, %v", s, ref, again, got, err)
			}
		}
	})
}
