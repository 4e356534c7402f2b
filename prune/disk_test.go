package prune

import (
	"testing"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
)

func TestFullInodesStartARun(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	p := newPruner(t, e, c)
	p.stat = func(path string) (Disk, error) {
		return Disk{Path: path, Total: 1000, Used: 10, Inodes: 100, InodesUsed: 70 + 10*int64(len(e.imagesLeft()))}, nil
	}
	wantDecision(t, mustRun(t, p, true), Pruned, "")
	if e.imagesLeft() != "" {
		t.Errorf("left %q, want none: 75 %% of the inodes", e.imagesLeft())
	}
}

func TestContainerdStoreIsRecognised(t *testing.T) {
	e, c := newEngine(t, "1.51")
	e.info.DriverStatus = [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
	info, err := c.Info(t.Context(), client.InfoOptions{})
	if err != nil || !containerdStore(info.Info) {
		t.Fatalf("containerd store: %v, %v", containerdStore(info.Info), err)
	}
	if containerdStore(system.Info{DriverStatus: [][2]string{{"Backing Filesystem", "extfs"}}}) {
		t.Error("a graphdriver store was taken for containerd's")
	}
}
