package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
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

// TestTableHasEveryField: a setting that is not in the table can't be set.
func TestTableHasEveryField(t *testing.T) {
	s := defaults()
	inTable := map[any]string{}
	for _, row := range s.table() {
		if other := inTable[row.value]; other != "" {
			t.Errorf("%s and %s are the same field", row.key, other)
		}
		inTable[row.value] = row.key
	}
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		if leaf, ok := v.Addr().Interface().(value); ok {
			if inTable[leaf] == "" {
				t.Errorf("%s is not in the table", path)
			}
			return
		}
		for i := range v.NumField() {
			walk(v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	}
	walk(reflect.ValueOf(s).Elem(), "settings")
}
