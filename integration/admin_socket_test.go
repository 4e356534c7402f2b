//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestAdminSocketNamesItsGroup: whoever may not use the admin socket is told which group may, and
// a member of that group may.
func TestAdminSocketNamesItsGroup(t *testing.T) {
	const daemon, nobody = 1, 65534
	programs := buildPrograms(t)
	socket := filepath.Join(programs, "admin.sock")
	startServer(t, serverOptions{Hub: startHub(t, hubtest.Options{}), Args: []string{"--admin-listen", "unix:" + socket}})
	if err := os.Chown(socket, 0, daemon); err != nil {
		t.Fatal(err)
	}
	stats := func(gid uint32) (string, error) {
		cmd := exec.Command(filepath.Join(programs, "hubcache"), "stats", "--admin", "unix:"+socket)
		cmd.Dir, cmd.Env = "/", []string{"PATH=" + os.Getenv("PATH")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: gid}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := stats(nobody); err == nil || !strings.Contains(out, "the group daemon may") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := stats(daemon); err != nil {
		t.Errorf("a member of the group: %v: %s", err, out)
	}
}
