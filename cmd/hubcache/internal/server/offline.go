package server

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/boltfile"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/disk"
	"github.com/hubcache/hubcache/storage"
)

// Offline is the store of a server that doesn't run.
type Offline struct {
	Store *storage.Store // nil: there is no data directory yet
	Room  int64          // bytes that may come in without anything being evicted

	// Private reports whether what comes in under a repository has to count as private, until the
	// upstream says that it isn't.
	Private func(repository string) bool
}

// OpenOffline opens the store for a command that works on it while the server is stopped. If root
// calls it, the process becomes the owner of the data directory, so that all files do that are
// made from then on; it can still read everything. If create is false, a missing data directory
// isn't made. sameDisk says that each byte that comes in frees one on the disk.
//
// Errors: that the server runs, with the command that stops it; that this user may not write
// there; those of storage.Open.
func OpenOffline(s *settings.Settings, create bool, sameDisk func(dir string) bool) (*Offline, error) {
	dir := string(s.DataDir)
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("data_dir: %w", err)
		}
	}
	withToken := map[string]bool{}
	for _, u := range s.Upstreams() {
		withToken[u.Name] = u.Username != ""
	}
	o := &Offline{Private: func(repository string) bool {
		registry, _, _ := strings.Cut(repository, "/")
		return withToken[registry]
	}}
	fi, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) && !create {
		dir = "/"
		budget, err := s.Budget.In(dir)
		o.Room = budget
		return o, err
	}
	if err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	budget, err := s.Budget.In(dir)
	if err != nil {
		return nil, err
	}
	if err := becomeOwner(dir, fi); err != nil {
		return nil, err
	}
	o.Store, err = storage.Open(storage.Options{Dir: dir, Budget: budget, MinFree: s.MinFree.Bytes, Log: slog.New(slog.DiscardHandler)})
	if errors.Is(err, boltfile.ErrLocked) {
		return nil, fmt.Errorf("the server runs, and has %s open: stop it first. For the installed service that is\n  systemctl stop hubcache-pull.socket hubcache-admin.socket hubcache.service", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the cache in %s: %w", dir, err)
	}
	st := o.Store.Stats()
	o.Room = max(0, budget-st.Bytes-st.ReservedBytes)
	if space, err := disk.Measure(dir); err == nil && !sameDisk(dir) {
		o.Room = max(0, min(o.Room, space.Available-s.MinFree.Bytes))
	}
	return o, nil
}

// becomeOwner makes root the owner of the data directory.
// Errors: that this user is neither.
func becomeOwner(dir string, fi fs.FileInfo) error {
	owner, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("who owns %s can't be told", dir)
	}
	uid, gid := int(owner.Uid), int(owner.Gid)
	switch os.Geteuid() {
	case uid:
		return nil
	case 0:
	default:
		return fmt.Errorf("%s belongs to %s: run this as that user or as root", dir, userName(uid))
	}
	if err := syscall.Setresgid(-1, gid, -1); err != nil {
		return fmt.Errorf("becoming the group of %s: %w", dir, err)
	}
	// The real user stays root, so what root may do isn't given up, but only put aside.
	if err := syscall.Setresuid(-1, uid, -1); err != nil {
		return fmt.Errorf("becoming the owner of %s: %w", dir, err)
	}
	if err := keepRights(); err != nil {
		return fmt.Errorf("as the owner of %s: %w", dir, err)
	}
	return nil
}

// keepRights lets the process read and delete what isn't its own: the source of an import, and
// folders that lead to the data directory, such as /var/lib/private.
func keepRights() error {
	const rights = 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective = data[0].Permitted & rights
	data[1].Effective = 0
	// Rights belong to a thread, and any thread may do the work.
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return errno
	}
	return nil
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "user " + strconv.Itoa(uid)
}

// SameDisk reports whether two folders are on the same file system.
func SameDisk(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Dev == y.Dev
}
