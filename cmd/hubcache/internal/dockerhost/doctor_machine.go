package dockerhost

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/go-units"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// checkDisk compares budget and min_free with what clients have asked for, and with the disk, as
// the server has measured it: this user may not look there, and it may be another machine.
func (d *Doctor) checkDisk(store admin.Store) {
	for _, short := range store.Shortages {
		status := StatusNote
		if short.Kind == "image" { // every pull of it goes to Docker Hub
			status = StatusBroken
		}
		remedy := "raise budget, make room on the disk, or ask for less"
		if short.Kind == "pins" {
			remedy = "raise budget, or unpin something (hubcache unpin)"
		}
		d.say("room", status, short.Message, remedy)
	}
	if store.DiskBytes == 0 {
		d.note("disk", "the server can't measure its disk, or is too old to say", "look into its log (journalctl -u hubcache)")
		return
	}
	budget, free, minFree := store.BudgetBytes, store.DiskFreeBytes, d.running.MinFree.Bytes
	room := free + store.Bytes - minFree // how large the cache can become
	switch {
	case budget < settings.LeastBudget:
		d.broken("disk", fmt.Sprintf("the budget is %s, and most images are larger: they pass through, and nothing of them is kept", human(budget)), "raise budget to 20GiB, for example")
	case budget > store.DiskBytes:
		d.broken("disk", fmt.Sprintf("the budget (%s) is larger than the disk (%s)", human(budget), human(store.DiskBytes)), "lower budget, or give it as a percentage")
	case free < minFree:
		d.broken("disk", fmt.Sprintf("the disk is full: %s are free, less than min_free (%s), so the cache evicts everything that it may, and keeps nothing new", human(free), human(minFree)), "make room: hubcache docker prune --apply")
	case budget > room:
		d.note("disk", fmt.Sprintf("the budget is %s, and the disk has room for %s", human(budget), human(max(0, room))), "lower budget, or make room")
	default:
		d.ok("disk", "%s free, budget %s", human(free), human(budget))
	}
}

// checkDirectories looks which users may write to the directories of this host.
func (d *Doctor) checkDirectories() {
	d.checkDirectory("docker.hold_dir", string(d.Settings.Docker.HoldDir))
	d.checkDirectory("docker.state", filepath.Dir(string(d.Settings.Docker.State)))
}

// checkDirectory looks whether a directory can be used, and by whom.
func (d *Doctor) checkDirectory(name, dir string) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		d.ok(name, "%s is made on first use", dir)
	case errors.Is(err, os.ErrPermission):
		d.note(name, "this user may not look at "+dir, "run doctor as root")
	case err != nil:
		d.broken(name, err.Error(), "")
	case !info.IsDir():
		d.broken(name, dir+" is not a directory", "")
	case info.Mode().Perm()&0o002 != 0:
		d.broken(name, "every user may write to "+dir, "chmod o-w "+dir)
	default:
		d.ok(name, "%s", dir)
	}
}

// human is a number of bytes as people read it.
func human(n int64) string { return units.BytesSize(float64(n)) }
