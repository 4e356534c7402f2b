package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestClosedTerminalStopsTheServer: SIGHUP reloads, but not when it means that the window
// of "make run" was closed; the next one would find the port taken.
func TestClosedTerminalStopsTheServer(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "admin.sock")
	cmd := exec.Command("script", "-qfec", "echo $$; exec hubcache serve", "/dev/null")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TERM=xterm", "HUBCACHE_CONFIG=/dev/null", "HUBCACHE_DATA_DIR=" + filepath.Join(dir, "data"),
		"HUBCACHE_LISTEN=127.0.0.1:0", "HUBCACHE_ADMIN_LISTEN=unix:" + sock, "HUBCACHE_UPSTREAM=http://127.0.0.1:1"}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("script (of util-linux, or bsdutils) gives the test a terminal: %v", err)
	}
	var pid int
	if _, err := fmt.Fscanln(bufio.NewReader(stdout), &pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	healthy := func() bool {
		resp, err := (&http.Client{Transport: overSocket(sock)}).Get("http://localhost/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	eventually(t, "the server runs", healthy)
	if err := cmd.Process.Kill(); err != nil { // and the terminal with it
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the server has ended", func() bool {
		_, err := os.Stat(sock)
		return err != nil && !healthy()
	})
}
