package prune

import (
	"context"
	"fmt"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// holdByFlock starts a process that has the lock file locked, as a hold has.
func holdByFlock(t *testing.T, h Holds, name string) *exec.Cmd {
	t.Helper()
	if err := h.create(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("flock", "--shared", "--no-fork", filepath.Join(h.Dir, name), "sleep", "123")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 6000 {
		if all, err := h.holdersOf(name); err != nil {
			t.Fatal(err)
		} else if len(all) > 0 {
			return cmd
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the holder isn't listed")
	return nil
}

// TestListSaysWhoHolds: the process, its user, since when, and its command.
func TestListSaysWhoHolds(t *testing.T) {
	h := Holds{Dir: t.TempDir()}
	if all, err := h.List(); err != nil || len(all) != 0 {
		t.Errorf("without lock files: %v, %v", all, err)
	}
	began := time.Now()
	cmd := holdByFlock(t, h, "run")
	all, err := h.List()
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	got := all[0]
	if got.PID != cmd.Process.Pid || got.User != me.Username || got.CommandLine() != "sleep 123" || got.Since.Before(began.Add(-2*time.Second)) || got.Since.After(time.Now().Add(time.Second)) {
		t.Errorf("%+v", got)
	}
	for args, want := range map[string]string{
		"hubcache docker hold -- make test":            "make test",
		"hubcache docker hold --host x -- sh -c hold":  "sh -c hold",
		"hubcache --config x docker hold make -- test": "test",
		"hubcache docker hold make":                    "make",
		"flock run docker":                             "flock run docker",
	} {
		if got := strings.Join(heldCommand(strings.Fields(args)), " "); got != want {
			t.Errorf("%q holds for %q, want %q", args, got, want)
		}
	}
}

// TestDeferredSaysWhoseHold it waits for.
func TestDeferredSaysWhoseHold(t *testing.T) {
	for name, used := range map[string]int64{"run": 900, "gate": 960} {
		e, c := newEngine(t, "1.41")
		addOrphans(e, 3)
		e.used = used
		p := newPruner(t, e, c)
		p.Policy.MaxWait = 5 * lockPoll
		cmd := holdByFlock(t, p.Holds, name)
		r := mustRun(t, p, true)
		wantDecision(t, r, Deferred, "hold")
		me, _ := user.Current()
		for _, want := range []string{me.Username, "sleep 123", fmt.Sprint("PID ", cmd.Process.Pid), "since"} {
			if !strings.Contains(r.Reason, want) {
				t.Errorf("%s: %q is missing in %q", name, want, r.Reason)
			}
		}
	}
}

// TestInterruptIsNoFailure of the engine's, whatever the run was doing.
func TestInterruptIsNoFailure(t *testing.T) {
	for _, at := range []string{"GET /info", "GET /images/json", "GET /containers/json", "DELETE /images/" + id("b"), "GET /events"} {
		e, c := newEngine(t, "1.41")
		addOrphans(e, 3)
		e.runContainer("web", "c", time.Now().Add(-24*time.Hour))
		p := newPruner(t, e, c)
		ctx, interrupt := context.WithCancel(t.Context())
		e.before = func(request string) {
			if request == at {
				interrupt()
				time.Sleep(10 * time.Millisecond)
			}
		}
		r, err := p.Run(ctx, true)
		if err != nil {
			t.Errorf("%s: %v", at, err)
		}
		wantDecision(t, r, Deferred, "interrupted")
		if strings.Contains(r.Reason, "context") {
			t.Errorf("%s: %s", at, r.Reason)
		}
		deleted := slices.ContainsFunc(r.Images, func(d ImageDecision) bool { return d.Action == Delete })
		if deleted != strings.HasPrefix(at, "DELETE") {
			t.Errorf("%s: the report says that images were deleted: %v", at, deleted)
		}
	}
}
