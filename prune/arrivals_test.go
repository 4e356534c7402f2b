package prune

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
)

// host is a host whose images change from day to day. A day is how long ago something was.
type host struct {
	t      *testing.T
	uses   Uses
	images []Image
}

func newHost(t *testing.T) *host {
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	uses.clock = func() (clockMark, error) { return clockMark{}, nil }
	return &host{t: t, uses: uses}
}

// on sets the images of one day, and runs a prune that has nothing to delete.
func (h *host) on(day float64, images ...Image) {
	h.t.Helper()
	h.images = images
	err := h.uses.update(func(r *records) error { return r.meta.Delete(clockKey) }) // days pass at once here
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.uses.observe(&Snapshot{Images: slices.Clone(images)}, daysAgo(day)); err != nil {
		h.t.Fatal(err)
	}
}

// kept returns the images that stay now, with tagged set, because they are the newest.
func (h *host) kept() string {
	h.t.Helper()
	if err := h.uses.update(func(r *records) error { return r.meta.Delete(clockKey) }); err != nil {
		h.t.Fatal(err)
	}
	s := Snapshot{Images: slices.Clone(h.images)}
	o, err := h.uses.observe(&s, now)
	if err != nil {
		h.t.Fatal(err)
	}
	p := DefaultPolicy()
	p.Tagged = true
	var ids []string
	for _, v := range Decide(s, p, o.uses, now) {
		if v.Rule == RuleNewest {
			ids = append(ids, v.Image.ID[7:8])
		}
	}
	slices.Sort(ids)
	return strings.Join(ids, "")
}

// img is an image with these names. tagged is the Engine's tag time, in days ago; 0: it has none.
func img(digit string, tagged float64, names ...string) Image {
	i := orphan(digit)
	i.Built = daysAgo(1000)
	for _, name := range names {
		if strings.Contains(name, "@") {
			i.Digests = append(i.Digests, name)
		} else {
			i.Tags = append(i.Tags, name)
		}
	}
	if tagged != 0 {
		i.Tagged = daysAgo(tagged)
	}
	return i
}

// The newest image of a repository is the one that came to that repository last. What happens to
// other repositories' names doesn't matter. a is db:15, b is db:16.
func TestNewestIsTheLastThatCameToTheRepository(t *testing.T) {
	tests := []struct {
		name string
		days func(*host)
		want string
	}{
		{"a name for another repository, which is removed again, on the graphdriver store", func(h *host) {
			h.on(40, img("a", 0, "db:15"))
			h.on(20, img("a", 0, "db:15"), img("b", 0, "db:16"))
			h.on(10, img("a", 10, "db:15", "mirror.lan/db:15"), img("b", 0, "db:16"))
			h.on(9, img("a", 10, "db:15"), img("b", 0, "db:16"))
		}, "b"},
		{"the same on containerd's store, where a pull is a tag time too", func(h *host) {
			h.on(40, img("a", 40, "db:15"))
			h.on(20, img("a", 40, "db:15"), img("b", 20, "db:16"))
			h.on(10, img("a", 10, "db:15", "mirror.lan/db:15"), img("b", 20, "db:16"))
			h.on(9, img("a", 10, "db:15"), img("b", 20, "db:16"))
		}, "b"},
		{"no run saw the name in between", func(h *host) {
			h.on(40, img("a", 40, "db:15"))
			h.on(20, img("a", 40, "db:15"), img("b", 20, "db:16"))
			h.on(9, img("a", 10, "db:15"), img("b", 20, "db:16"))
		}, "b"},
		{"the older one is pulled again, though nothing is new", func(h *host) {
			h.on(40, img("a", 40, "db:15"))
			h.on(20, img("a", 40, "db:15"), img("b", 20, "db:16"))
			h.on(5, img("a", 5, "db:15"), img("b", 20, "db:16"))
		}, "b"},
		{"both were there before hubcache was", func(h *host) {
			h.on(9, img("a", 40, "db:15"), img("b", 20, "db:16"))
		}, "b"},
		{"docker pull db:latest moves the tag", func(h *host) {
			h.on(40, img("a", 0, "db:latest", digestRef("db", "1")))
			h.on(20, img("a", 0, digestRef("db", "1")), img("b", 0, "db:latest", digestRef("db", "2")))
		}, "b"},
		{"the tag is moved back to the older image", func(h *host) {
			h.on(40, img("a", 0, "db:latest", digestRef("db", "1")))
			h.on(20, img("a", 0, digestRef("db", "1")), img("b", 0, "db:latest", digestRef("db", "2")))
			h.on(19, img("a", 19, "db:latest", digestRef("db", "1")), img("b", 0, digestRef("db", "2")))
		}, "a"},
		{"a push gives the older image a digest", func(h *host) {
			h.on(40, img("a", 40, "db:15"))
			h.on(20, img("a", 40, "db:15"), img("b", 20, "db:16"))
			h.on(10, img("a", 40, "db:15", digestRef("db", "1")), img("b", 20, "db:16"))
		}, "b"},
		{"the older image was removed and came back", func(h *host) {
			h.on(40, img("a", 0, "db:15"))
			h.on(20, img("b", 0, "db:16"))
			h.on(10, img("a", 0, "db:15"), img("b", 0, "db:16"))
		}, "a"},
		{"its name in the repository was removed and came back", func(h *host) {
			h.on(40, img("a", 0, "db:15", "mirror.lan/db:15"))
			h.on(20, img("a", 0, "mirror.lan/db:15"), img("b", 0, "db:16"))
			h.on(10, img("a", 10, "db:15", "mirror.lan/db:15"), img("b", 0, "db:16"))
		}, "a"},
		{"one came since the last run, and it isn't known when", func(h *host) {
			h.on(40, img("a", 40, "db:15"))
			h.on(20, img("a", 40, "db:15"))
			h.on(19, img("a", 19.8, "db:15", "db:old"), img("b", 19.5, "db:16"))
		}, "ab"},
		{"the same, until the next one comes", func(h *host) {
			h.on(40, img("a", 40, "db:15"))
			h.on(20, img("a", 40, "db:15"))
			h.on(19, img("a", 19.8, "db:15", "db:old"), img("b", 19.5, "db:16"))
			h.on(9, img("a", 19.8, "db:15", "db:old"), img("b", 19.5, "db:16"), img("c", 9.5, "db:17"))
		}, "c"},
		{"swarm pulls by digest alone", func(h *host) {
			h.on(40, img("a", 0, digestRef("db", "1")))
			h.on(20, img("a", 0, digestRef("db", "1")), img("b", 0, digestRef("db", "2")))
			h.on(10, img("a", 10, digestRef("db", "1"), "mirror.lan/db:15"), img("b", 0, digestRef("db", "2")))
		}, "ab"}, // a is the newest of mirror.lan/db
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t)
			test.days(h)
			if got := h.kept(); got != test.want {
				t.Errorf("the newest are %q, want %q", got, test.want)
			}
		})
	}
}

// An older program wrote the records: they don't say when db:15 came to db. It may have come before
// db:16 and been tagged for another repository since.
func TestNewestWithoutArrivalsIsEachThatMayBe(t *testing.T) {
	images := []Image{img("a", 10, "db:15"), img("b", 20, "db:16"), img("c", 50, "db:14")}
	uses := map[string]Record{id("a"): {daysAgo(40), daysAgo(40)}, id("b"): {daysAgo(20), daysAgo(20)}, id("c"): {daysAgo(50), daysAgo(50)}}
	for digit, action := range map[string]Action{"a": Keep, "b": Keep, "c": Delete} {
		if v := decisionOn(t, digit, Snapshot{Images: images}, uses, func(p *Policy) { p.Tagged = true }); v.Action != action {
			t.Errorf("image %s: %s by %s, want %s", digit, v.Action, v.Rule, action)
		}
	}
}

// A damaged image is not what the next deploy can use.
func TestUnreadableImageIsNotTheNewest(t *testing.T) {
	h := newHost(t)
	damaged := img("b", 0, "db:16")
	damaged.Unreadable = "500"
	h.on(40, img("a", 40, "db:15"))
	h.on(20, img("a", 40, "db:15"), damaged)
	if got := h.kept(); got != "a" {
		t.Errorf("the newest are %q, want a", got)
	}
}

// Arrivals that a wrong clock put into the future don't stay there.
func TestArrivalsAheadOfTheClockAreSettled(t *testing.T) {
	h := newHost(t)
	h.on(-400, img("a", 0, "db:15"))
	h.on(40, img("a", 0, "db:15"))
	h.on(20, img("a", 0, "db:15"), img("b", 0, "db:16"))
	if got := h.kept(); got != "b" {
		t.Errorf("the newest are %q, want b", got)
	}
}

// Rows don't outlive their images and names.
func TestArrivalsAreForgotten(t *testing.T) {
	h := newHost(t)
	h.on(40, img("a", 0, "db:15", "mirror.lan/db:15"), img("b", 0, "db:16"))
	h.on(30, img("a", 0, "db:15"))
	var rows []string
	err := h.uses.update(func(r *records) error {
		return eachWith(r.meta, arrivalPrefix, func(key string, _ []byte) error { rows = append(rows, key); return nil })
	})
	if want := id("a") + " docker.io/library/db"; err != nil || len(rows) != 1 || rows[0] != want {
		t.Errorf("rows %q (%v), want %s", rows, err, want)
	}
}

// The watcher records names when they come. So of two that came between two runs it is known which
// one was the last.
func TestWatcherRecordsArrivals(t *testing.T) {
	e, c := newEngine(t, "1.51")
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	e.add("a", []string{"db:15"}, nil)
	e.add("b", []string{"db:14"}, nil)
	setRecords(t, e, uses)
	stop := watch(t, c, uses)
	name := func(digit string, tags ...string) {
		e.mu.Lock()
		e.images[slices.IndexFunc(e.images, func(s image.Summary) bool { return s.ID == id(digit) })].RepoTags = tags
		e.mu.Unlock()
		e.send(message("image", "tag", id(digit)))
	}
	name("b", "db:14", "db:old")
	e.send(events.Message{Type: "image", Action: "untag", Actor: events.Actor{ID: id("c")}})
	name("a", "db:15", "db:latest")
	name("b", "db:14", "db:old", "mirror.lan/db:14")
	last := message("network", "connect", "last")
	e.send(last)
	waitFor(t, uses, func(_ map[string]Record, s watchState) bool { return s.Event.Actor == "last" })
	stop()
	s, err := TakeSnapshot(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	o, err := uses.observe(&s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	newest := newestImages(s, o.uses, time.Now())
	if newest[id("a")] != "docker.io/library/db" || newest[id("b")] != "mirror.lan/db" {
		t.Errorf("the newest are %v", newest)
	}
}
