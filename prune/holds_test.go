package prune

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestHoldsAreShared(t *testing.T) {
	h := Holds{filepath.Join(t.TempDir(), "made", "here")}
	first, err := h.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := h.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	nothing := func() error { return nil }
	for _, hold := range []*Hold{first, second} {
		if err := h.tryExclusive(nothing); !errors.Is(err, ErrHeld) {
			t.Errorf("alone in spite of a hold: %v", err)
		}
		hold.Release()
	}
	if err := h.tryExclusive(nothing); err != nil {
		t.Errorf("after the last hold: %v", err)
	}
}

// TestHoldIsNotInherited: a program that outlives the hold does not keep it in force.
func TestHoldIsNotInherited(t *testing.T) {
	h := Holds{t.TempDir()}
	hold, err := h.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	hold.Release()
	if err := h.tryExclusive(func() error { return nil }); err != nil {
		t.Errorf("with the child running: %v", err)
	}
}

// TestOverdueHold: a hold that waited as long as it may goes on, and comes into force as
// soon as it can.
func TestOverdueHold(t *testing.T) {
	h := Holds{t.TempDir()}
	open, err := h.blockNewHolds(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open()
	var hold *Hold
	waited := 0
	err = h.tryExclusive(func() error {
		hold, err = h.Acquire(t.Context(), 5*lockPoll, func() { waited++ })
		return err
	})
	if !errors.Is(err, ErrOverdue) || waited != 1 {
		t.Fatalf("err %v, waited %d times", err, waited)
	}
	if err := h.tryExclusive(func() error { return nil }); err != nil {
		t.Errorf("an overdue hold is in force already: %v", err)
	}
	if err := hold.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.tryExclusive(func() error { return nil }); !errors.Is(err, ErrHeld) {
		t.Errorf("after Pursue: %v", err)
	}
}

func TestEnterIsCancelled(t *testing.T) {
	h := Holds{t.TempDir()}
	open, err := h.blockNewHolds(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer open()
	ctx, cancel := context.WithTimeout(t.Context(), 2*lockPoll)
	defer cancel()
	if hold, err := h.Acquire(ctx, time.Hour, nil); hold != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hold %v, err %v", hold, err)
	}
}

// TestHoldNeedsNoWritePermission: once the lock files are there, whoever may read them
// can take a hold.
func TestHoldNeedsNoWritePermission(t *testing.T) {
	h := Holds{t.TempDir()}
	for _, name := range []string{"gate", "run"} {
		if err := os.WriteFile(filepath.Join(h.Dir, name), nil, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	hold, err := h.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	hold.Release()
}

// A program that is older than the lock files takes no hold, deletes no image, leaves the
// files alone, and says which version is needed.
func TestNewerHoldFilesAreLeftAlone(t *testing.T) {
	for _, name := range []string{"gate", "run"} {
		e, c := newEngine(t, "1.51")
		orphans(e, 3)
		e.used = 990 // above the critical watermark prune uses both files
		p := newPruner(t, e, c)
		file := filepath.Join(p.Holds.Dir, name)
		if err := os.WriteFile(file, []byte("2\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := p.Run(t.Context(), true)
		if r.Decision != Failed || !errors.Is(err, ErrNewerFormat) || !strings.Contains(err.Error(), `"2"`) || e.left() != "abc" {
			t.Errorf("%s: %s, error %v, left %q", name, r.Decision, err, e.left())
		}
		if hold, err := p.Holds.Acquire(t.Context(), 0, nil); hold != nil || !errors.Is(err, ErrNewerFormat) {
			t.Errorf("%s: a hold was taken, error %v", name, err)
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != "2\n" {
			t.Errorf("%s: the file is now %q (%v)", name, b, err)
		}
	}
}

func TestKnownVersionOfHoldFilesIsRead(t *testing.T) {
	h := Holds{t.TempDir()}
	for _, name := range []string{"gate", "run"} {
		if err := os.WriteFile(filepath.Join(h.Dir, name), []byte("1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	hold, err := h.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	hold.Release()
}
