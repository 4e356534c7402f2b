package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
)

func TestShortDigests(t *testing.T) {
	full := strings.Repeat("0a", 32)
	for text, want := range map[string]bool{
		"redis": false, "redis:7": false, "redis@sha256:" + full: false, "redis@sha256:" + full[:63]: true, "redis@sha256:0a0a0a": true,
		"redis@sha256:0a0a0": false, "redis@sha256:0a0a0x": false, "redis@sha512:" + full: true, "redis@0a0a0a0a": false, "sha256:0a0a0a0a": false,
	} {
		if got := hasShortDigest(text); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// TestAmbiguousShortDigest: what could be two images is an error that shows one of them.
func TestAmbiguousShortDigest(t *testing.T) {
	one := "docker.io/org/app@sha256:" + strings.Repeat("0a", 32)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if got := req.URL.Query().Get("prefix"); got != "org/app@sha256:0a0a0a" {
			t.Errorf("asked for %q", got)
		}
		w.Write([]byte(`{"schema":1,"images":[{"reference":"` + one + `"},{"reference":"` + one[:len(one)-1] + `b"}],"total":3}`))
	}))
	defer s.Close()
	c, err := adminclient.New(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = wholeReference(t.Context(), c, "org/app@sha256:0a0a0a")
	want := "org/app@sha256:0a0a0a: the digests of 3 images begin like that; write more of it, such as org/app@sha256:" + strings.Repeat("0a", 32)
	if err == nil || err.Error() != want {
		t.Errorf("%v; want %s", err, want)
	}
}
