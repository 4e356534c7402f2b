package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestServesUntilStopped starts the program, gets a challenge and the ledger, and stops it.
func TestServesUntilStopped(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	pat := filepath.Join(t.TempDir(), "pat")
	if err := os.WriteFile(pat, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{
			"--registry", "127.0.0.1:0", "--token", "127.0.0.1:0", "--cdn", "127.0.0.1:0", "--username", "alice",
			"--password-file", pat, "--private", "alice/app", "--image", "big:1=2 x 5MiB", "--bandwidth", "20MB",
		}, w, io.Discard)
		w.Close()
	}()
	var text strings.Builder
	for !strings.Contains(text.String(), "Ctrl-C") {
		buf := make([]byte, 4096)
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("%v; run: %v", err, <-done)
		}
		text.Write(buf[:n])
	}
	for _, want := range []string{"library/busybox:latest", "library/big:1", "alice/app:latest", " --username alice --password-file " + pat} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if strings.Contains(text.String(), "secret") {
		t.Error("the token was printed")
	}
	base := regexp.MustCompile(`hubcache serve --upstream (http://\S+)`).FindStringSubmatch(text.String())
	if base == nil {
		t.Fatalf("no command in\n%s", &text)
	}
	if status, _ := get(t, base[1]+"/v2/library/big/manifests/1"); status != 401 {
		t.Errorf("manifest without a token: %d", status)
	}
	want := "GET registry library/big manifests/1 range=- account=- → 401\n"
	if _, body := get(t, base[1]+"/ledger"); body != want {
		t.Errorf("ledger %q, want %q", body, want)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: hubtest.LoopbackOnly(&http.Transport{DisableKeepAlives: true})}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestWrongUsageIsReported(t *testing.T) {
	for _, args := range []string{"--nonsense", "word", "--username alice", "--image big=1x1", "--ca-file x", "--account-limit 0"} {
		if err := run(t.Context(), strings.Fields(args), io.Discard, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
