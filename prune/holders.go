package prune

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Holder is a process that has a hold in force.
type Holder struct {
	PID     int
	User    string    // who runs it; the number if it has no name
	Since   time.Time // when the process was started
	Command []string  // what runs under the hold
}

// String describes the holder to people.
func (h Holder) String() string {
	return fmt.Sprintf("%s runs %q since %s (%s, PID %d)", h.User, h.CommandLine(), h.Since.Format("15:04"), ago(time.Since(h.Since)), h.PID)
}

// CommandLine returns the command in one line.
func (h Holder) CommandLine() string { return strings.Join(h.Command, " ") }

// List returns the holds in force, the oldest first. The kernel says which processes have the
// lock; those of another PID namespace, such as a container's, it doesn't name to this one. An
// empty folder, or a missing one, has no holds.
func (h Holds) List() ([]Holder, error) { return h.holdersOf("run") }

// holdersOf returns the processes that have one of the lock files locked.
func (h Holds) holdersOf(name string) ([]Holder, error) {
	file, err := h.openExisting(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	key, err := lockKey(file)
	if err != nil {
		return nil, fmt.Errorf("hold lock %s: %w", file.Name(), err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return nil, fmt.Errorf("the kernel's list of locks: %w", err)
	}
	var all []Holder
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  READ  1234 00:19:567 0 EOF
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != key {
			continue
		}
		pid, err := strconv.Atoi(f[4])
		if err != nil || pid == os.Getpid() {
			continue
		}
		if holder, ok := holderOf(pid); ok {
			all = append(all, holder)
		}
	}
	slices.SortFunc(all, func(a, b Holder) int { return a.Since.Compare(b.Since) })
	return all, nil
}

// lockKey returns how the kernel's list of locks names the file: by device and inode. The device
// is that of the mount, which may differ from stat's (btrfs, overlayfs).
func lockKey(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		return "", err
	}
	mount := ""
	for line := range strings.Lines(string(info)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			mount = strings.TrimSpace(id)
		}
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || fields[0] != mount {
			continue
		}
		var major, minor int
		if _, err := fmt.Sscanf(fields[2], "%d:%d", &major, &minor); err != nil {
			return "", err
		}
		return fmt.Sprintf("%02x:%02x:%d", major, minor, st.Ino), nil
	}
	return fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino), nil
}

// holderOf describes a process; ok is false if it has ended.
func holderOf(pid int) (h Holder, ok bool) {
	dir := fmt.Sprintf("/proc/%d", pid)
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return h, false
	}
	h = Holder{PID: pid, User: "somebody", Command: heldCommand(strings.Split(strings.TrimRight(string(line), "\x00"), "\x00"))}
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil {
		h.User = strconv.Itoa(int(st.Uid))
		if u, err := user.LookupId(h.User); err == nil {
			h.User = u.Username
		}
	}
	h.Since = startOf(dir)
	return h, true
}

// heldCommand returns what runs under the hold, of the command line of hubcache docker hold.
// Another program's is returned whole.
func heldCommand(args []string) []string {
	hold := slices.Index(args, "hold")
	if hold < 1 || args[hold-1] != "docker" {
		return args
	}
	if i := slices.Index(args, "--"); i > hold {
		return args[i+1:]
	}
	return args[hold+1:]
}

// startOf returns when a process was started; now if that can't be read.
func startOf(dir string) time.Time {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return time.Now()
	}
	// The name, in parentheses, may have spaces; the start time is the 20th field after it, in
	// hundredths of a second since the machine was started.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return time.Now()
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	up, upErr := readClock()
	if err != nil || upErr != nil {
		return time.Now()
	}
	return time.Now().Add(time.Duration(ticks)*10*time.Millisecond - up.Up)
}

// heldBy returns err with who has the lock file locked.
func (h Holds) heldBy(name string, err error) error {
	holders, listErr := h.holdersOf(name)
	if listErr != nil || len(holders) == 0 {
		return fmt.Errorf("%w, by a process that can't be seen from here, such as one in a container", err)
	}
	if n := len(holders) - 1; n > 0 {
		return fmt.Errorf("%w: %s, and %d more (hubcache docker hold --list)", err, holders[0], n)
	}
	return fmt.Errorf("%w: %s", err, holders[0])
}
