package dockerhost

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// TestDoctorLooksAtTheWarmSchedule: a file that the service can't read is broken, before any run and
// after; an image that isn't kept is worth a note.
func TestDoctorLooksAtTheWarmSchedule(t *testing.T) {
	next := time.Now()
	s := settings.Default()
	s.Warm.Files = []string{"/root/compose.yml"}
	run := func(failures ...admin.WarmFailure) admin.WarmStats {
		return admin.WarmStats{Schedule: "30 3 * * *", Next: &next, Last: &admin.WarmRun{Images: 2, Failures: failures}}
	}
	for name, row := range map[string]struct {
		unit   string
		stats  admin.WarmStats
		status string
		detail string
	}{
		"off":             {stats: admin.WarmStats{}},
		"no run yet":      {stats: admin.WarmStats{Schedule: "30 3 * * *", Next: &next}, status: StatusOK, detail: "the first run is still to come"},
		"all well":        {stats: run(), status: StatusOK, detail: "left 2 images whole"},
		"names nothing":   {stats: admin.WarmStats{Schedule: "30 3 * * *"}, status: StatusNote, detail: "name no image"},
		"an image":        {stats: run(admin.WarmFailure{What: "docker.io/library/redis:7", Error: "no such thing"}), status: StatusNote, detail: "redis:7 is not kept: no such thing"},
		"a file":          {stats: run(admin.WarmFailure{What: "/root/compose.yml", Error: "open: permission denied"}), status: StatusBroken, detail: "permission denied"},
		"before a run":    {unit: "[Service]\nProtectHome=true\nExecStart=hubcache serve --config /etc/c.yaml\n", stats: admin.WarmStats{Schedule: "30 3 * * *", Next: &next}, status: StatusBroken, detail: "hubcache.service can't read /root/compose.yml: /root is empty for the service"},
		"another service": {unit: "[Service]\nProtectHome=true\nExecStart=hubcache serve --config /etc/d.yaml\n", stats: run(), status: StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if row.unit != "" {
				dir := filepath.Join(root, "etc/systemd/system")
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "hubcache.service"), []byte(row.unit), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			d := &Doctor{Root: root, running: s, told: &admin.Settings{File: "/etc/c.yaml"}}
			d.checkWarm(row.stats)
			if row.status == "" && len(d.findings) == 0 {
				return
			}
			if len(d.findings) != 1 || d.findings[0].Status != row.status || !strings.Contains(d.findings[0].Detail, row.detail) {
				t.Errorf("%+v", d.findings)
			}
		})
	}
}
