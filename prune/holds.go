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

// ErrHeld means that a hold is in force: somebody's run must not be disturbed.
var ErrHeld = errors.New("a hold is in force")

// ErrOverdue means that a hold waited as long as it may and is not in force yet.
var ErrOverdue = errors.New("prune did not make way in time")

const (
	// lockPoll is how often a waiting side tries again. flock can't be waited for with a
	// deadline, and a hold must fit into breather.
	lockPoll = 20 * time.Millisecond
	// breather is how long prune leaves the lock free between two deletions, so that a
	// hold that waits gets in.
	breather = 5 * lockPoll

	// holdsVersion is the newest version of the lock files that this program knows. In
	// version 1 they are empty; a later version has its number in them, in decimal.
	holdsVersion = 1
)

// Holds are the locks by which runs keep prune away: two files in Dir, locked with
// flock(2), which the kernel releases when their holder dies.
//
//	gate  shared by a hold while it enters; exclusive for a prune that must not be
//	      starved (above the critical watermark): new holds wait outside
//	run   shared by every hold in force; exclusive for a prune during one deletion
//
// A lock belongs to the open file, and is not inherited by a program that is started.
//
// Every method may return [ErrNewerFormat]: a newer program locks in another way, so that
// no hold can be taken, and no image may be deleted.
type Holds struct {
	// Dir holds the lock files; it is made when missing.
	Dir string
}

// Hold is a hold in force, or on its way to be, until [Hold.Release]: keep it until then,
// for the lock ends when the garbage collector closes a forgotten file.
type Hold struct {
	run *os.File
}

// Enter takes a hold and waits for a prune to make way, at most maxWait. waiting, if not
// nil, is called once when there is something to wait for. With [ErrOverdue] the hold is
// valid but not in force yet: the caller may go on, and calls [Hold.Pursue]. Any other
// error means no hold, ctx's included.
func (h Holds) Enter(ctx context.Context, maxWait time.Duration, waiting func()) (*Hold, error) {
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

// Pursue goes on trying to bring an overdue hold into force until ctx is done.
func (h *Hold) Pursue(ctx context.Context) error { return waitLock(ctx, h.run, unix.LOCK_SH) }

// File is what carries the lock: a process that inherits it keeps the hold in force too.
func (h *Hold) File() *os.File { return h.run }

// Release ends the hold, unless another process has inherited it.
func (h *Hold) Release() error { return h.run.Close() }

// closeGate keeps new holds outside until the returned function is called.
func (h Holds) closeGate(ctx context.Context) (open func(), err error) {
	gate, err := h.open("gate")
	if err != nil {
		return nil, err
	}
	// Holds share the gate for as long as they enter: moments, or while another prune deletes.
	if err := waitLock(ctx, gate, unix.LOCK_EX); err != nil {
		gate.Close()
		return nil, err
	}
	return func() { gate.Close() }, nil
}

// alone runs do while no hold is in force and none can come into force. It returns
// [ErrHeld] at once when one is.
func (h Holds) alone(do func() error) error {
	run, err := h.open("run")
	if err != nil {
		return err
	}
	defer run.Close()
	if err := lock(run, unix.LOCK_EX); err != nil {
		return err
	}
	return do()
}

// open opens a lock file. Reading is enough for flock, so that a user who may not write
// to Dir can take holds once the files are there.
func (h Holds) open(name string) (*os.File, error) {
	path := filepath.Join(h.Dir, name)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(h.Dir, 0o755); err != nil {
			return nil, fmt.Errorf("hold directory: %w", err)
		}
		f, err = os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
	}
	if err != nil {
		return nil, fmt.Errorf("hold lock: %w", err)
	}
	if err := checkLockFile(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkLockFile makes sure that the lock file has the format that this program knows.
func checkLockFile(f *os.File) error {
	version, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return fmt.Errorf("hold lock: %w", err)
	}
	return checkVersion("hold lock "+f.Name(), string(version), holdsVersion)
}

// lock takes the lock now, or returns ErrHeld.
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

// waitLock takes the lock as soon as it is free; it returns ctx's error if that is first.
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
