package dockerhost

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/go-units"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/disk"
)

// checkDisk compares budget and min_free with the disk.
func (d *Doctor) checkDisk(stats admin.Stats) {
	space, err := disk.Measure(string(d.Settings.DataDir))
	if err != nil {
		d.say("disk", StatusBroken, err.Error(), "data_dir must exist and belong to the server's user")
		return
	}
	budget, err := d.Settings.Budget.In(string(d.Settings.DataDir))
	if err != nil {
		d.say("disk", StatusBroken, err.Error(), "")
		return
	}
	free, total := space.Available, space.Total
	room := free + stats.Store.Bytes - d.Settings.MinFree.Bytes // how large the cache can become
	switch {
	case budget > total:
		d.say("disk", StatusBroken, fmt.Sprintf("the budget (%s) is larger than the disk (%s)", human(budget), human(total)), "lower budget, or give it as a percentage")
	case free < d.Settings.MinFree.Bytes:
		d.say("disk", StatusBroken, fmt.Sprintf("%s are free, less than min_free (%s): the cache evicts everything that it may", human(free), human(d.Settings.MinFree.Bytes)), "make room: hubcache docker prune --apply")
	case budget > room:
		d.say("disk", StatusNote, fmt.Sprintf("the budget is %s, and the disk has room for %s", human(budget), human(max(0, room))), "lower budget, or make room")
	default:
		d.ok("disk", "%s free, budget %s", human(free), human(budget))
	}
}

// passwordFile is the file with the access token; "" for none. A relative name is looked up
// where the service manager puts credentials.
func (d *Doctor) passwordFile() string {
	path := string(d.Settings.Upstream.PasswordFile)
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && path != "" && !filepath.IsAbs(path) {
		return filepath.Join(dir, path)
	}
	return path
}

// checkFiles looks which users may read the access token, and which may write to the
// directories.
func (d *Doctor) checkFiles() {
	if path := d.passwordFile(); path != "" {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, os.ErrPermission):
			d.say("password file", StatusNote, "this user may not look at it", "run doctor as root")
		case err != nil:
			d.say("password file", StatusBroken, err.Error(), "upstream.password_file names the file that holds the access token")
		case info.Size() == 0:
			d.say("password file", StatusBroken, path+" is empty", "put the access token into it")
		case info.Mode().Perm()&0o007 != 0:
			d.say("password file", StatusBroken, fmt.Sprintf("every user of this machine may read %s (mode %04o)", path, info.Mode().Perm()), "chmod 0400 "+path)
		default:
			d.ok("password file", "%s", path)
		}
	}
	d.checkDirectory("data_dir", string(d.Settings.DataDir))
	d.checkDirectory("docker.hold_dir", string(d.Settings.Docker.HoldDir))
	d.checkDirectory("docker.state", filepath.Dir(string(d.Settings.Docker.State)))
}

// checkDirectory looks whether a directory can be used, and by whom. Only data_dir has to
// exist.
func (d *Doctor) checkDirectory(name, dir string) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist) && name != "data_dir":
		d.ok(name, "%s is made on first use", dir)
	case err != nil:
		d.say(name, StatusBroken, err.Error(), "")
	case !info.IsDir():
		d.say(name, StatusBroken, dir+" is not a directory", "")
	case info.Mode().Perm()&0o002 != 0:
		d.say(name, StatusBroken, "every user may write to "+dir, "chmod o-w "+dir)
	default:
		d.ok(name, "%s", dir)
	}
}

// human is a number of bytes as people read it.
func human(n int64) string { return units.BytesSize(float64(n)) }
