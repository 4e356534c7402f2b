package registry_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/storage"
)

// pullLayers pulls an image by its tag, with all its blobs, and waits until what is in the
// background has seen it.
func (l *lab) pullLayers(repository string) {
	l.t.Helper()
	m := l.get("/v2/" + repository + "/manifests/1")
	for _, c := range image.Children(m.body) {
		if r := l.get(blobPath(repository, c.Digest)); r.status != 200 {
			l.t.Fatalf("%s: %d", c.Digest, r.status)
		}
	}
	l.drain()
	time.Sleep(15 * time.Second)
}

// fetched returns how many blobs come from the Hub during f.
func (l *lab) fetched(f func()) int {
	l.hub.ResetLedger()
	f()
	return l.hub.Ledger().BlobGETs()
}

// TestBudgetBelowAnImageIsSaid: an image that is larger than the budget is one warning, with a
// budget that would do, and so it is with a budget that was lowered. With that budget it is kept
// whole.
func TestBudgetBelowAnImageIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, budget: 20 * mib})
		l.addImage("library/big", "1", 2*mib, 2*mib+1, 2*mib+2)
		l.addImage("library/small", "1", mib)
		pull := func() { l.pullLayers("library/big"); l.pullLayers("library/small") }
		pull()
		if s := l.store.Stats().Shortages; len(s) != 0 || len(l.warnings("budget")) != 0 {
			t.Errorf("there is room, and %v: %q", s, l.warnings("budget"))
		}
		l.store.SetLimits(4*mib, 0)
		for range 5 {
			pull()
			time.Sleep(4 * time.Hour)
		}
		s := l.store.Stats().Shortages
		if len(s) != 1 || s[0].Kind != storage.ImageTooLarge || s[0].Image != "docker.io/library/big:1" || s[0].Has != 4*mib || s[0].Needs < 12*mib || s[0].Needs > 14*mib {
			t.Fatalf("%+v", s)
		}
		lines := l.warnings("smaller than the image")
		if len(lines) != 1 || !strings.Contains(lines[0], "a budget of 14MiB would do") || len(l.warnings("budget")) != 1 {
			t.Errorf("%q", l.warnings("budget"))
		}
		l.store.SetLimits(s[0].Needs, 0)
		l.pullLayers("library/big")
		if n := l.fetched(func() { l.pullLayers("library/big") }); n > 0 {
			t.Errorf("with the budget that would do, %d blobs are fetched again", n)
		}
		if s := l.store.Stats().Shortages; len(s) != 0 {
			t.Errorf("with the budget that would do: %+v", s)
		}
		l.store.SetLimits(4*mib, 0)
		time.Sleep(48 * time.Hour)
		if s := l.store.Stats().Shortages; len(s) != 0 {
			t.Errorf("nobody has asked for the image for two days: %+v", s)
		}
	})
}

// TestWorkingSetThatEvictsItselfIsSaid: two images that are pulled in turn, with room for one and a
// half, are one warning a day, with a budget in which both stay.
func TestWorkingSetThatEvictsItselfIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, budget: 5 * mib})
		for n, name := range []string{"library/a", "library/b"} {
			var sizes []int64
			for i := range 14 {
				sizes = append(sizes, mib/4+int64(100*n+i))
			}
			l.addImage(name, "1", sizes...)
		}
		both := func() { l.pullLayers("library/a"); l.pullLayers("library/b") }
		for range 10 {
			both()
			time.Sleep(5 * time.Minute)
		}
		s := l.store.Stats().Shortages
		// How much depends on the order in which downloads end: at most what is there and, with the
		// tenth more, what is fetched of both images in a round.
		if len(s) != 1 || s[0].Kind != storage.WorkingSet || s[0].Has != 5*mib || s[0].Needs < 7*mib || s[0].Needs > 14*mib {
			t.Fatalf("%+v", s)
		}
		if lines := l.warnings("too small for what is in use"); len(lines) != 1 || !strings.Contains(lines[0], "would do") {
			t.Errorf("%q", lines)
		}
		l.store.SetLimits(s[0].Needs, 0)
		both()
		if n := l.fetched(both); n > 0 {
			t.Errorf("with the budget that would do, %d blobs are fetched again", n)
		}
		if s := l.store.Stats().Shortages; len(s) != 0 {
			t.Errorf("with the budget that would do: %+v", s)
		}
	})
}

// TestWhatIsUsedOnceIsNoShortage: neither images that are pulled once, however many, nor one that
// comes back a day later, nor a blob or two that come back, say that the budget is too small.
func TestWhatIsUsedOnceIsNoShortage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, budget: 4 * mib})
		names := []string{}
		for n := range 30 {
			names = append(names, fmt.Sprintf("library/image%d", n))
			l.addImage(names[n], "1", 400_000+int64(n), 100_000+int64(n))
		}
		l.addImage("library/tiny", "1", 1000)
		for range 3 {
			l.pullLayers("library/tiny")
			for _, name := range names {
				l.pullLayers(name)
			}
			l.pullLayers("library/tiny")
			time.Sleep(24 * time.Hour)
		}
		if s := l.store.Stats().Shortages; len(s) != 0 || len(l.warnings("would do")) > 0 {
			t.Errorf("%+v: %q", s, l.warnings("would do"))
		}
	})
}
