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

	"golang.org/x/sys/unix"
)

func TestHoldsAreShared(t *testing.T) {
	h := Holds{Dir: filepath.Join(t.TempDir(), "made", "here")}
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
		if err := h.tryExclusive(nil, nothing); !errors.Is(err, ErrHeld) {
			t.Errorf("alone in spite of a hold: %v", err)
		}
		hold.Release()
	}
	if err := h.tryExclusive(nil, nothing); err != nil {
		t.Errorf("after the last hold: %v", err)
	}
}

// A program that was started during the hold and goes on after it does not keep it in force.
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
	if err := h.tryExclusive(nil, func() error { return nil }); err != nil {
		t.Errorf("with the child running: %v", err)
	}
}

// A hold that has waited for the longest time allowed is returned, and comes into force as soon
// as it can.
func TestOverdueHoldComesIntoForceLater(t *testing.T) {
	h := Holds{t.TempDir()}
	open, err := h.blockNewHolds(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer open()
	var hold *Hold
	waited := 0
	err = h.tryExclusive(nil, func() error {
		hold, err = h.Acquire(t.Context(), 5*lockPoll, func() { waited++ })
		return err
	})
	if !errors.Is(err, ErrOverdue) || waited != 1 {
		t.Fatalf("err %v, waited %d times", err, waited)
	}
	if err := h.tryExclusive(nil, func() error { return nil }); err != nil {
		t.Errorf("an overdue hold is in force already: %v", err)
	}
	if err := hold.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.tryExclusive(nil, func() error { return nil }); !errors.Is(err, ErrHeld) {
		t.Errorf("after Pursue: %v", err)
	}
}

func TestAcquireEndsWithItsContext(t *testing.T) {
	h := Holds{t.TempDir()}
	open, err := h.blockNewHolds(t.Context(), time.Hour)
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

// Once the lock files exist, every user who can read them can take a hold.
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

// A program that is older than the lock files takes no hold, deletes no image, leaves the files
// as they are, and says which version is needed.
func TestNewerHoldFilesAreLeftAlone(t *testing.T) {
	for _, name := range []string{"gate", "run"} {
		e, c := newEngine(t, "1.51")
		addOrphans(e, 3)
		e.used = 990 // above the critical watermark prune uses both files
		p := newPruner(t, e, c)
		file := filepath.Join(p.Holds.Dir, name)
		if err := os.WriteFile(file, []byte("2\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := p.Run(t.Context(), true)
		if r.Decision != Failed || !errors.Is(err, ErrNewerFormat) || !strings.Contains(err.Error(), `"2"`) || e.imagesLeft() != "abc" {
			t.Errorf("%s: %s, error %v, left %q", name, r.Decision, err, e.imagesLeft())
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

func TestHoldDefers(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	p := newPruner(t, e, c)
	hold, err := p.Holds.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, apply := range []bool{true, false} {
		wantDecision(t, mustRun(t, p, apply), Deferred, "hold")
	}
	if e.imagesLeft() != "abc" {
		t.Errorf("left %q", e.imagesLeft())
	}
	hold.Release()
	wantDecision(t, mustRun(t, p, true), Pruned, "")
}

// A hold that is wanted between two deletions comes into force, and ends the run.
func TestHoldStopsARun(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	p := newPruner(t, e, c)
	var hold *Hold
	entered, waits := make(chan error, 1), make(chan struct{})
	e.before = func(request string) {
		if strings.HasPrefix(request, "DELETE") {
			go func() {
				var err error
				hold, err = p.Holds.Acquire(context.Background(), time.Minute, func() { close(waits) })
				entered <- err
			}()
			e.mu.Lock()
			e.before = nil
			e.mu.Unlock()
			<-waits // while the deletion goes on
		}
	}
	wantDecision(t, mustRun(t, p, true), Deferred, "hold")
	if err := <-entered; err != nil || e.imagesLeft() != "bc" {
		t.Errorf("hold: %v; left %q", err, e.imagesLeft())
	}
	hold.Release()
}

// Above the critical watermark, prune waits for the hold in force. A hold that is wanted meanwhile
// waits for prune.
func TestCriticalRunWaitsForHolds(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	e.used = 960
	p := newPruner(t, e, c)
	first, err := p.Holds.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan Report)
	go func() { r, _ := p.Run(context.Background(), true); done <- r }()
	waitGateClosed(t, p.Holds)
	second := make(chan string)
	go func() {
		if _, err := p.Holds.Acquire(context.Background(), time.Minute, nil); err != nil {
			t.Error(err)
		}
		second <- e.imagesLeft()
	}()
	select {
	case <-done:
		t.Fatal("prune did not wait for the hold in force")
	case <-second:
		t.Fatal("a new hold got in while prune waited: prune may starve")
	case <-time.After(10 * lockPoll):
	}
	if e.imagesLeft() != "abc" {
		t.Error("deleted in the middle of a run")
	}
	first.Release()
	wantDecision(t, <-done, Pruned, "")
	if left := <-second; left != e.imagesLeft() {
		t.Errorf("the second hold came in when %q was left, and then %q was", left, e.imagesLeft())
	}
}

func waitGateClosed(t *testing.T, h Holds) {
	t.Helper()
	gate, err := h.open("gate")
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	for range 6000 {
		if errors.Is(lock(gate, unix.LOCK_SH), ErrHeld) {
			return
		}
		_ = unix.Flock(int(gate.Fd()), unix.LOCK_UN)
		time.Sleep(lockPoll / 2)
	}
	t.Fatal("prune never closed the gate")
}

func TestCriticalRunGivesUpAfterMaxWait(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	e.used = 960
	p := newPruner(t, e, c)
	p.Policy.MaxWait = 5 * lockPoll
	hold, err := p.Holds.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Release()
	wantDecision(t, mustRun(t, p, true), Deferred, "after waiting")
	if e.imagesLeft() != "abc" {
		t.Errorf("left %q", e.imagesLeft())
	}
}

// TestStoppedProcessAtTheGateDefers: above the critical watermark a run waits for the gate for
// MaxWait, and for no longer.
func TestStoppedProcessAtTheGateDefers(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	e.used = 960
	p := newPruner(t, e, c)
	p.Policy.MaxWait = 5 * lockPoll
	gate, err := p.Holds.open("gate")
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
	if err := lock(gate, unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := p.Run(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	wantDecision(t, r, Deferred, "gate")
	if e.imagesLeft() != "abc" {
		t.Errorf("left %q", e.imagesLeft())
	}
}

// TestWaitingOfARunIsBoundedAsAWhole, not for each image.
func TestWaitingOfARunIsBoundedAsAWhole(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 3)
	e.used = 960
	p := newPruner(t, e, c)
	p.Policy.MaxWait = time.Second
	p.patience, p.runFile = p.Policy.MaxWait, nil
	hold, err := p.Holds.Acquire(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	nothing := func() error { return nil }
	time.AfterFunc(600*time.Millisecond, func() { hold.Release() })
	if err := p.exclusively(t.Context(), true, nothing); err != nil {
		t.Fatal(err)
	}
	if p.patience > p.Policy.MaxWait/2 {
		t.Errorf("it has waited for 600 ms of %v, and would wait for %v more", p.Policy.MaxWait, p.patience)
	}
}

// TestVanishedHoldFolderEndsTheRun: an empty folder of the same name says nothing about the holds
// that were taken in the old one.
func TestVanishedHoldFolderEndsTheRun(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"removed":  os.RemoveAll,
		"replaced": func(dir string) error { return errors.Join(os.RemoveAll(dir), Holds{Dir: dir}.create()) },
		"the file": func(dir string) error { return os.Remove(filepath.Join(dir, "run")) },
	} {
		for _, used := range []int64{900, 960} {
			e, c := newEngine(t, "1.41")
			addOrphans(e, 3)
			e.used = used
			p := newPruner(t, e, c)
			e.before = func(request string) {
				if strings.HasPrefix(request, "DELETE /images/"+id("a")) {
					if err := change(p.Holds.Dir); err != nil {
						t.Error(err)
					}
				}
			}
			r, err := p.Run(t.Context(), true)
			if r.Decision != Failed || !errors.Is(err, errHoldsGone) || e.imagesLeft() != "bc" {
				t.Errorf("%s: %s (%v), left %q", name, r.Decision, err, e.imagesLeft())
			}
		}
	}
}
