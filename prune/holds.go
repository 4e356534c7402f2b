package prune

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld means that a hold is in force, and so no image may be deleted now.
var ErrHeld = errors.New("a hold is in force")

// ErrOverdue means that a hold has waited for the longest time allowed and is not in force yet.
var ErrOverdue = errors.New("prune did not pause in time for the hold")

const (
	// lockPoll is the pause between two attempts to take a lock. flock(2) can't wait with a
	// deadline. Several attempts have to fit into betweenDeletions.
	lockPoll = 20 * time.Millisecond

	// betweenDeletions is how long prune leaves the lock free between two deletions, so that
	// a waiting hold can take it.
	betweenDeletions = 5 * lockPoll

	// holdsVersion is the newest version of the lock files that this program knows. In
	// version 1 they are empty. A later version has its number in them, in decimal.
	holdsVersion = 1
)

// Holds are the locks that keep prune from deleting. They are two files in Dir, locked with
// flock(2). The kernel releases such a lock when its holder dies.
//
//   - gate: a hold has it, shared, while it takes the other one. A prune above the critical
//     watermark has it exclusively: new holds then wait, so that prune gets its turn.
//   - run: every hold in force has it, shared. A prune has it exclusively during one deletion.
//
// A lock belongs to the open file. A program that is started does not inherit it.
//
// Every method may return [ErrNewerFormat]: a newer program then locks in another way, so
// that no hold can be taken, and no image may be deleted. The methods are safe for concurrent
// use, by several processes too.
type Holds struct {
	// Dir is the folder of the lock files. It is created when missing.
	Dir string
}

// Hold is a hold that is in force, or waits to be, until [Hold.Release]. Keep a reference to
// it until then: when the garbage collector closes the file, the lock is released.
type Hold struct {
	run *os.File
}

// Acquire takes a hold. It waits at most maxWait for a prune to pause. waiting, if not nil,
// is called once if there is something to wait for.
//
// Errors: [ErrOverdue] if maxWait is over. The hold is then returned too, but isn't in force
// yet; the caller may go on, and calls [Hold.Wait]. With any other error, such as ctx's,
// there is no hold.
func (h Holds) Acquire(ctx context.Context, maxWait time.Duration, waiting func()) (*Hold, error) {
	gate, err := h.open("gate")
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	run, err := h.open("run")
	if err != nil {
		return nil, err
	}
	deadline, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	for _, f := range []*os.File{gate, run} {
		err = lock(f, unix.LOCK_SH)
		if errors.Is(err, ErrHeld) {
			if waiting != nil {
				waiting()
				waiting = nil
			}
			err = waitLock(deadline, f, unix.LOCK_SH)
		}
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return &Hold{run}, ErrOverdue
		}
		if err != nil {
			run.Close()
			return nil, err
		}
	}
	return &Hold{run}, nil
}

// Wait waits until an overdue hold is in force. Errors: ctx's.
func (h *Hold) Wait(ctx context.Context) error { return waitLock(ctx, h.run, unix.LOCK_SH) }

// File returns the file that has the lock. A process that inherits it keeps the hold in
// force, too.
func (h *Hold) File() *os.File { return h.run }

// Release ends the hold, unless another process has inherited its file.
func (h *Hold) Release() error { return h.run.Close() }

// errHoldsGone means that the lock files aren't those that a run began with: holds that are in
// force can't be seen any more.
var errHoldsGone = errors.New("the hold folder was removed or replaced while prune ran, so it isn't known whether a hold is in force; see what removes it, and run prune again")

// runFile returns which file the holds lock. It is created when missing.
func (h Holds) runFile() (os.FileInfo, error) {
	run, err := h.open("run")
	if err != nil {
		return nil, err
	}
	defer run.Close()
	return run.Stat()
}

// blockNewHolds makes new holds wait until unblock is called. It waits at most so long for the
// gate. Errors: [ErrHeld].
func (h Holds) blockNewHolds(ctx context.Context, wait time.Duration) (unblock func(), err error) {
	gate, err := h.open("gate")
	if err != nil {
		return nil, err
	}
	// A hold shares the gate only for moments, or while another prune deletes an image. One that
	// was stopped (Ctrl-Z) at that moment keeps it.
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err = waitLock(limited, gate, unix.LOCK_EX)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = h.heldBy("gate", fmt.Errorf("%w or another prune runs: the gate %s was locked for %v", ErrHeld, gate.Name(), wait))
	}
	if err != nil {
		gate.Close()
		return nil, err
	}
	return func() { gate.Close() }, nil
}

// tryExclusive calls do while no hold is in force and none can come into force. If a hold is
// in force, it returns [ErrHeld] at once. The lock file has to be the one given; nil: any, which
// is created when missing. Errors: errHoldsGone.
func (h Holds) tryExclusive(which os.FileInfo, do func() error) error {
	open := h.open
	if which != nil {
		open = h.openExisting
	}
	run, err := open("run")
	if which != nil && errors.Is(err, os.ErrNotExist) {
		return errHoldsGone
	}
	if err != nil {
		return err
	}
	defer run.Close()
	if err := lock(run, unix.LOCK_EX); err != nil {
		return err
	}
	if which != nil {
		now, err := os.Stat(run.Name()) // after locking: a hold locks what has the name
		if err != nil || !os.SameFile(now, which) {
			return errHoldsGone
		}
	}
	return do()
}

// create makes the folder and both lock files. A hold needs both, and a user who can't make them
// can take one as soon as root has used either.
func (h Holds) create() error {
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return fmt.Errorf("hold directory: %w", err)
	}
	for _, name := range []string{"gate", "run"} {
		f, err := os.OpenFile(filepath.Join(h.Dir, name), os.O_RDONLY|os.O_CREATE, 0o644)
		if err != nil {
			return fmt.Errorf("hold lock: %w", err)
		}
		f.Close()
	}
	return nil
}

// open opens a lock file and checks its version. flock(2) needs no permission to write, so
// that every user who can read the files can take holds.
func (h Holds) open(name string) (*os.File, error) {
	f, err := h.openExisting(name)
	if errors.Is(err, os.ErrNotExist) {
		if err := h.create(); err != nil {
			return nil, err
		}
		f, err = h.openExisting(name)
	}
	return f, err
}

// openExisting is open for a file that has to be there.
func (h Holds) openExisting(name string) (*os.File, error) {
	f, err := os.Open(filepath.Join(h.Dir, name))
	if err != nil {
		return nil, fmt.Errorf("hold lock: %w", err)
	}
	if err := checkLockFile(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkLockFile fails if this program doesn't know the version of the lock file.
func checkLockFile(f *os.File) error {
	version, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return fmt.Errorf("hold lock: %w", err)
	}
	if err := checkVersion(string(version), holdsVersion); err != nil {
		return fmt.Errorf("hold lock %s: %w", f.Name(), err)
	}
	return nil
}

// lock takes the lock, or returns ErrHeld if it isn't free.
func lock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrHeld
		default:
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// waitLock takes the lock as soon as it is free, or returns ctx's error when ctx ends before.
func waitLock(ctx context.Context, f *os.File, how int) error {
	for {
		if err := lock(f, how); !errors.Is(err, ErrHeld) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}
