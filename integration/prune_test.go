//go:build integration

package integration

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPruneUnderPressure fills the disk of a CI host, with the real program, a real daemon and a
// real swarm, and checks which images a prune deletes, when it waits, and what it keeps.
func TestPruneUnderPressure(t *testing.T) {
	h := newPruneHost(t)
	r := h.registry
	// On a real host these are days and minutes.
	const minAge, quiet = 25 * time.Second, 4 * time.Second
	flags := func(args ...string) []string {
		return append(args, "--min-age", minAge.String(), "--quiet", quiet.String(), "--max-wait", "2s")
	}
	long2015 := time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC)

	h.daemon.SwarmInit()
	h.watch()
	before, after := r.add(t, "web", long2015), r.add(t, "web", time.Now())
	h.daemon.Docker("service", "create", "--detach", "--no-resolve-image", "--name=web", "--network=host", before)
	h.service("web", before)
	h.daemon.Docker("service", "update", "--detach", "--no-resolve-image", "--image", after, "web")
	h.service("web", after)
	h.daemon.Docker("container", "prune", "--force") // of the first task, so that only a rollback needs its image
	base := r.tag(r.add(t, "base", long2015), "1")
	h.daemon.Docker("pull", "-q", base)
	h.daemon.Docker("run", "--detach", "--network=none", "--health-cmd=true", "--health-interval=1s", "--name=healthy", base)
	recipe := r.add(t, "recipe", long2015)
	h.daemon.Docker("pull", "-q", recipe)
	var apps []string
	for h.full() < 82 {
		apps = append(apps, r.add(t, "app", time.Now()))
		h.daemon.Docker("pull", "-q", apps[len(apps)-1])
	}
	if len(apps) < 4 {
		t.Fatalf("%d images filled the disk", len(apps))
	}
	time.Sleep(minAge)
	ancient := r.add(t, "app", long2015)
	h.daemon.Docker("pull", "-q", ancient)
	if full := h.full(); full <= 85 || full >= 95 {
		t.Fatalf("the disk is %.1f %% full; the test needs 85 to 95", full)
	}
	all := h.images()

	t.Run("it waits after a pull", func(t *testing.T) {
		if r := h.prune(75, "deferred", flags("--apply")...); !strings.Contains(r.Reason, "quiet") {
			t.Errorf("reason: %s", r.Reason)
		}
	})
	time.Sleep(quiet)
	t.Run("it waits for a hold", func(t *testing.T) {
		hold := h.hubcache("hold", "--", "sh", "-c", "echo held; read line")
		stdin, _ := hold.StdinPipe()
		stdout, _ := hold.StdoutPipe()
		if err := hold.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := stdout.Read(make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if r := h.prune(75, "deferred", flags("--apply")...); !strings.Contains(r.Reason, "hold") {
			t.Errorf("reason: %s", r.Reason)
		}
		stdin.Close()
		_ = hold.Wait() // read fails at the end of its input
	})
	var planned []string
	t.Run("a dry run deletes nothing", func(t *testing.T) {
		r := h.prune(0, "pruned", flags()...)
		planned = r.deleted()
		if !r.Watched {
			t.Error("the report does not say that a watcher runs")
		}
		for ref, rule := range map[string]string{before: "previous-spec", after: "container", base: "container", recipe: "newest", ancient: "newest", apps[0]: "orphan"} {
			if got := r.rule(ref); got != rule {
				t.Errorf("%s: %s, want %s", ref, got, rule)
			}
		}
	})
	if h.images() != all {
		t.Fatalf("a dry run deleted images; left:\n%s\nbefore:\n%s", h.images(), all)
	}
	t.Run("it prunes to the low watermark, also with a health check", func(t *testing.T) {
		r := h.prune(0, "pruned", flags("--apply")...)
		if full := h.full(); full > 75 || full < 75-100*float64(pruneImage)/pruneDisk-1 {
			t.Errorf("the disk is %.1f %% full: want 75, or one image less", full)
		}
		n := len(r.deleted())
		if n == 0 || !slices.Equal(r.deleted(), apps[:n]) || !slices.Equal(r.deleted(), planned) {
			t.Errorf("deleted %v\nwant the least recently used of %v\nas planned %v", r.deleted(), apps, planned)
		}
		for i, ref := range apps {
			if h.has(ref) != (i >= n) {
				t.Errorf("app %d: exists: %v, and %d apps were deleted", i, h.has(ref), n)
			}
		}
	})
	t.Run("it does nothing below the high watermark", func(t *testing.T) { h.prune(0, "not-needed", flags("--apply")...) })
	// From now on no image can be pulled again.
	r.close()
	t.Run("it keeps what may be needed", func(t *testing.T) {
		h.prune(3, "incomplete", flags("--apply", "--high-watermark=2%", "--low-watermark=1%")...)
		for name, ref := range map[string]string{"a service's rollback image": before, "a service's image": after,
			"a base image cached by tag": base, "an image held by digest only": recipe, "an image built years ago and pulled a minute ago": ancient} {
			if !h.has(ref) {
				t.Errorf("%s was deleted", name)
			}
		}
		if h.has(apps[len(apps)-1]) {
			t.Error("an orphan was kept")
		}
		h.daemon.Docker("service", "rollback", "--detach", "web")
		h.service("web", before)
		h.daemon.Docker("inspect", "healthy")
	})
}

// TestPruneKeepsTaggedImagesUnlessTold checks that a base image that nothing uses is kept because
// of its tag, and is deleted only with --tagged and if its repository has a newer image.
func TestPruneKeepsTaggedImagesUnlessTold(t *testing.T) {
	h := newPruneHost(t)
	old, newer := h.registry.tag(h.registry.add(t, "base", time.Now().Add(-time.Hour)), "1"), h.registry.tag(h.registry.add(t, "base", time.Now()), "2")
	h.daemon.Docker("pull", "-q", old)
	time.Sleep(time.Second)
	h.daemon.Docker("pull", "-q", newer)
	flags := []string{"--apply", "--min-age=0s", "--quiet=0s", "--high-watermark=2%", "--low-watermark=1%"}
	if r := h.prune(3, "incomplete", flags...); r.rule(old) != "tag" || !h.has(old) {
		t.Errorf("%s: %s", old, r.rule(old))
	}
	if r := h.prune(3, "incomplete", append(flags, "--tagged", "--keep", h.registry.addr+"/base:1")...); r.rule(old) != "keep-list" || !h.has(old) {
		t.Errorf("%s: %s", old, r.rule(old))
	}
	if r := h.prune(3, "incomplete", append(flags, "--tagged")...); h.has(old) || !h.has(newer) || r.rule(newer) != "newest" {
		t.Errorf("left:\n%s", h.images())
	}
}

// TestPruneDoesntWaitForACrashLoop: a container that ends and is started again by its restart policy is
// no deploy, neither in the daemon's events nor in the watcher's records.
func TestPruneDoesntWaitForACrashLoop(t *testing.T) {
	h := newPruneHost(t)
	h.watch()
	image := h.registry.add(t, "loop", time.Now())
	h.daemon.Docker("pull", "-q", image)
	h.daemon.Docker("run", "--detach", "--network=none", "--restart=always", "--name=loop", image, "/bin/sh", "-c", "exit 1")
	const quiet = 15 * time.Second // in which the daemon starts it several times
	flags := []string{"--min-age=0s", "--quiet", quiet.String(), "--high-watermark=2%", "--low-watermark=1%"}
	if r := h.prune(75, "deferred", flags...); !strings.Contains(r.Reason, "quiet") {
		t.Errorf("after docker run: %s", r.Reason)
	}
	time.Sleep(quiet + 2*time.Second)
	if starts := h.daemon.Docker("inspect", "--format", "{{.RestartCount}}", "loop"); starts == "0" {
		t.Fatal("the container doesn't crash")
	}
	h.prune(3, "incomplete", flags...)
	h.daemon.Docker("run", "--network=none", "--name=person", image, "/bin/true")
	if r := h.prune(75, "deferred", flags...); !strings.Contains(r.Reason, "person") {
		t.Errorf("after docker run beside the loop: %s", r.Reason)
	}
}
