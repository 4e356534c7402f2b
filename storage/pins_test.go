package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// picture is an image that tests put into a store.
type picture struct {
	manifest digest.Digest
	body     []byte
	layers   [][]byte
}

// draw makes an image of layers with these sizes. seed tells its layers from those of others, and
// shared ones come first.
func draw(seed int, shared [][]byte, sizes ...int) picture {
	p := picture{layers: append([][]byte{}, shared...)}
	for i, size := range sizes {
		p.layers = append(p.layers, noise(uint64(seed*100+i), size))
	}
	var layers []string
	for _, l := range p.layers {
		layers = append(layers, fmt.Sprintf(`{"digest":%q,"size":%d}`, digest.FromBytes(l), len(l)))
	}
	p.body = fmt.Appendf(nil, `{"seed":%d,"layers":[%s]}`, seed, strings.Join(layers, ","))
	p.manifest = digest.FromBytes(p.body)
	return p
}

// size is all that p takes.
func (p picture) size() int64 {
	n := int64(len(p.body))
	for _, l := range p.layers {
		n += int64(len(l))
	}
	return n
}

// pull puts an image into the store, and a tag that names it unless tag is "". What doesn't fit
// isn't kept, as in a pull.
func (p picture) pull(t *testing.T, s *Store, repository, tag string) {
	t.Helper()
	from := Origin{Repository: repository}
	err := s.PutManifest(from, p.manifest, "application/x", p.body)
	if err != nil && !errors.Is(err, ErrNoRoom) {
		t.Fatal(err)
	}
	if tag != "" {
		s.SetTag(repository, tag, Tag{Digest: p.manifest, MediaType: "application/x", Size: int64(len(p.body)), Checked: time.Now()})
	}
	for _, l := range p.layers {
		in, err := s.Begin(from, digest.FromBytes(l), int64(len(l)))
		if errors.Is(err, fs.ErrExist) || errors.Is(err, ErrNoRoom) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.WriteAt(l, 0); err != nil {
			t.Fatal(err)
		}
		if err := in.Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

// missing returns how many of the parts of p aren't cached.
func (p picture) missing(s *Store) (n int) {
	if _, ok := s.Has(p.manifest); !ok {
		n++
	}
	for _, l := range p.layers {
		if _, ok := s.Has(digest.FromBytes(l)); !ok {
			n++
		}
	}
	return n
}

// fill pulls images that nobody needs until everything else has been evicted that can be.
func fill(t *testing.T, s *Store) {
	t.Helper()
	for n := range 14 {
		draw(1000+n, nil, int(s.Budget()/12)).pull(t, s, "docker.io/library/other", fmt.Sprint(n))
	}
}

const other = "docker.io/org/app"

// mustPin pins a tag.
func mustPin(t *testing.T, s *Store, repository, tag string) PinState {
	t.Helper()
	st, err := s.Pin(repository, tag, "")
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// stateOf returns what the pin of a tag does.
func stateOf(t *testing.T, s *Store, repository, tag string) PinState {
	t.Helper()
	all, err := s.Pins()
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range all {
		if st.Repository == repository && st.Tag == tag {
			return st
		}
	}
	t.Fatalf("%s:%s is not pinned: %+v", repository, tag, all)
	return PinState{}
}

// shortPins returns the shortage that is about pins, or nil.
func shortPins(st Stats) *Shortage {
	for _, short := range st.Shortages {
		if short.Kind == PinsTooLarge {
			return &short
		}
	}
	return nil
}

// TestPinnedImagesStay: a pinned image survives any number of other pulls, a smaller budget and
// restarts, also with the index lost; an unpinned one is evicted like all others. A layer that two
// pins share is counted once.
func TestPinnedImagesStay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const budget = 1 << 20
	s := open(t, dir, budget)
	base := [][]byte{noise(1, 200<<10)}
	one, two, three := draw(1, base, 50<<10), draw(2, base, 30<<10), draw(3, nil, 60<<10)
	one.pull(t, s, repo, "1")
	two.pull(t, s, other, "2")
	three.pull(t, s, repo, "3")
	mustPin(t, s, repo, "1")
	if _, err := s.Pin(other, "", two.manifest); err != nil {
		t.Fatal(err)
	}
	want := one.size() + two.size() - 200<<10
	check := func(when string) {
		t.Helper()
		if st := s.Stats(); st.PinnedBytes != want || st.Pins != 2 || shortPins(st) != nil {
			t.Errorf("%s: %d bytes of %d pins, want %d; %v", when, st.PinnedBytes, st.Pins, want, st.Shortages)
		}
		fill(t, s)
		if n := one.missing(s) + two.missing(s); n != 0 {
			t.Errorf("%s: %d blobs of pinned images are gone", when, n)
		}
		balanced(t, s)
	}
	check("at first")
	if three.missing(s) != 2 {
		t.Error("the image that isn't pinned has stayed")
	}
	s.SetLimits(budget/2, 0)
	check("smaller budget")
	s.SetLimits(budget, 0)
	shut(t, s)
	s = open(t, dir, budget)
	check("restart")
	shut(t, s)
	if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, budget)
	check("index lost")
	if p, err := s.Unpin(repo, "1", ""); err != nil || p.Digest != one.manifest {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := s.Unpin(repo, "1", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unpinned twice: %v", err)
	}
	fill(t, s)
	if one.missing(s) != 2 || two.missing(s) != 0 { // the base is two's, too
		t.Errorf("%d blobs of the unpinned image are gone, %d of the pinned one", one.missing(s), two.missing(s))
	}
}

// TestOnlyWhatIsCachedCanBePinned, and only for a repository that has it.
func TestOnlyWhatIsCachedCanBePinned(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 1<<20)
	p := draw(1, nil, 1000)
	p.pull(t, s, repo, "1")
	s.SetTag(repo, "gone", Tag{Digest: digest.FromString("x"), Checked: time.Now()})
	for _, c := range []struct {
		repository, tag string
		d               digest.Digest
	}{{repo, "2", ""}, {repo, "gone", ""}, {other, "1", ""}, {other, "", p.manifest}, {repo, "", digest.FromBytes(p.layers[0])}, {repo, "", digest.FromString("y")}} {
		if st, err := s.Pin(c.repository, c.tag, c.d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: %+v, %v", c, st, err)
		}
	}
	if st := s.Stats(); st.Pins != 0 || st.PinnedBytes != 0 {
		t.Errorf("%+v", st)
	}
}

// TestPinsLeaveATenthOfTheBudget: a pin that would take more than is left is refused with the
// figures, and changes nothing. What is missing of an image counts too.
func TestPinsLeaveATenthOfTheBudget(t *testing.T) {
	t.Parallel()
	const budget = 1000 << 10
	s := open(t, t.TempDir(), budget)
	one, two := draw(1, nil, 600<<10), draw(2, nil, 200<<10, 150<<10)
	one.pull(t, s, repo, "1")
	two.pull(t, s, repo, "2")
	s.Remove(digest.FromBytes(two.layers[1]))
	mustPin(t, s, repo, "1")
	_, err := s.Pin(repo, "2", "")
	large, ok := errors.AsType[*PinTooLarge](err)
	if !ok || large.Needs != two.size() || large.Pinned != one.size() || large.Limit != budget/100*90 {
		t.Fatalf("%v: %+v", err, large)
	}
	if st := s.Stats(); st.Pins != 1 || st.PinnedBytes != one.size() {
		t.Errorf("%+v", st)
	}
	again := mustPin(t, s, repo, "1")
	if st := s.Stats(); st.Pins != 1 || !again.Protected {
		t.Errorf("pinned twice: %d pins, %+v", st.Pins, again)
	}
}

// TestAPinFollowsItsTag: what the tag names now is protected, and what it named before isn't. If
// the new image is too large, the older pins stay protected, the pull doesn't fail, and the
// shortage says which image isn't protected.
func TestAPinFollowsItsTag(t *testing.T) {
	t.Parallel()
	const budget = 1000 << 10
	s := open(t, t.TempDir(), budget)
	old, next, huge, first := draw(1, nil, 100<<10), draw(2, nil, 120<<10), draw(3, nil, 300<<10, 300<<10), draw(4, nil, 400<<10)
	first.pull(t, s, other, "1")
	mustPin(t, s, other, "1")
	old.pull(t, s, repo, "1")
	mustPin(t, s, repo, "1")
	s.SetTag(repo, "1", Tag{Digest: next.manifest, Checked: time.Now()}) // a HEAD: the manifest isn't here
	fill(t, s)
	if n := old.missing(s); n != 0 {
		t.Errorf("%d blobs of the image are gone before the next one has come", n)
	}
	next.pull(t, s, repo, "1")
	if st := stateOf(t, s, repo, "1"); st.Digest != next.manifest || !st.Protected || st.Cached != next.size() {
		t.Errorf("%+v", st)
	}
	fill(t, s)
	if old.missing(s) != 2 || next.missing(s) != 0 {
		t.Errorf("%d blobs of the old image are gone, %d of the new one", old.missing(s), next.missing(s))
	}
	bare := huge
	bare.layers = nil // they come a moment later
	bare.pull(t, s, repo, "1")
	s.pins.apply()
	huge.pull(t, s, repo, "1")
	if st := stateOf(t, s, repo, "1"); st.Digest != huge.manifest || st.Protected {
		t.Errorf("%+v", st)
	}
	fill(t, s)
	st := s.Stats()
	if st.PinnedBytes != first.size()+int64(len(huge.body)) || first.missing(s) != 0 {
		t.Errorf("%d bytes pinned, %d blobs of the older pin are gone", st.PinnedBytes, first.missing(s))
	}
	short := shortPins(st)
	if short == nil || short.Image != repo+":1" || short.Has != s.PinLimit() || short.Pinned != first.size()+huge.size() {
		t.Fatalf("%+v", st.Shortages)
	}
	s.SetLimits(short.Needs, 0)
	if st := stateOf(t, s, repo, "1"); !st.Protected || shortPins(s.Stats()) != nil {
		t.Errorf("with the budget that would do: %+v, %v", st, s.Stats().Shortages)
	}
	s.DeleteTag(repo, "1") // the upstream has deleted it
	if st := stateOf(t, s, repo, "1"); st.Digest != huge.manifest || !st.Protected {
		t.Errorf("without the tag: %+v", st)
	}
}

// TestPinsAreProtectedTheOldestFirst: when the budget shrinks, the pins that don't fit any more
// can be evicted, the budget is kept, and they are protected again in a larger one.
func TestPinsAreProtectedTheOldestFirst(t *testing.T) {
	t.Parallel()
	const budget = 1000 << 10
	s := open(t, t.TempDir(), budget)
	var all []picture
	for n := range 4 {
		p := draw(n+1, nil, 200<<10)
		p.pull(t, s, repo, fmt.Sprint(n))
		mustPin(t, s, repo, fmt.Sprint(n))
		all = append(all, p)
	}
	s.SetLimits(budget/2, 0)
	balanced(t, s)
	for n, p := range all {
		if st := stateOf(t, s, repo, fmt.Sprint(n)); st.Protected != (n < 2) || n < 2 && p.missing(s) != 0 {
			t.Errorf("%d: %+v, %d blobs are gone", n, st, p.missing(s))
		}
	}
	s.SetLimits(budget, 0)
	for n, p := range all {
		p.pull(t, s, repo, fmt.Sprint(n))
		if st := stateOf(t, s, repo, fmt.Sprint(n)); !st.Protected || st.Missing != 0 {
			t.Errorf("%d: %+v", n, st)
		}
	}
}

// TestWhatIsPulledLaterOfAPinnedImageIsPinned: a layer that was missing, another platform, and
// what refers to the image. Platforms of which there is no more than the manifest don't count.
func TestWhatIsPulledLaterOfAPinnedImageIsPinned(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 4<<20)
	amd, arm, sig := draw(1, nil, 100<<10, 50<<10), draw(2, nil, 70<<10), draw(3, nil, 5<<10)
	body := fmt.Appendf(nil, `{"manifests":[{"digest":%q,"size":%d},{"digest":%q,"size":%d}]}`, amd.manifest, len(amd.body), arm.manifest, len(arm.body))
	index := digest.FromBytes(body)
	from := Origin{Repository: repo}
	if err := s.PutManifest(from, index, "application/index", body); err != nil {
		t.Fatal(err)
	}
	s.SetTag(repo, "1", Tag{Digest: index, Checked: time.Now()})
	amd.pull(t, s, repo, "")
	s.Remove(digest.FromBytes(amd.layers[1]))
	if err := s.PutManifest(from, arm.manifest, "application/x", arm.body); err != nil {
		t.Fatal(err)
	}
	st := mustPin(t, s, repo, "1")
	if st.Missing != 50<<10 || st.Cached != int64(len(body)+len(arm.body))+amd.size()-50<<10 {
		t.Errorf("%+v", st)
	}
	amd.pull(t, s, repo, "")
	if e, ok := s.Entry(digest.FromBytes(amd.layers[1])); !ok || !e.Pinned {
		t.Errorf("the layer that was missing: %+v, %v", e, ok)
	}
	arm.pull(t, s, repo, "")
	sig.pull(t, s, repo, "")
	list := fmt.Appendf(nil, `{"manifests":[{"digest":%q,"size":%d}]}`, sig.manifest, len(sig.body))
	if err := s.SetReferrers(from, index, "application/index", list); err != nil {
		t.Fatal(err)
	}
	want := int64(len(body)+len(list)) + amd.size() + arm.size() + sig.size()
	for deadline := time.Now().Add(time.Minute); s.Stats().PinnedBytes != want; {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are pinned, want %d", s.Stats().PinnedBytes, want)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if st := stateOf(t, s, repo, "1"); st.Cached != want || st.Missing != 0 {
		t.Errorf("%+v", st)
	}
}

// TestTheFileOfThePins: a damaged one is set aside, one of a newer version keeps the store from
// being opened and stays as it is, and what can't be written isn't pinned.
func TestTheFileOfThePins(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 1<<20)
	p := draw(1, nil, 1000)
	p.pull(t, s, repo, "1")
	mustPin(t, s, repo, "1")
	shut(t, s)
	path := filepath.Join(dir, "pins.json")
	good, err := os.ReadFile(path)
	var doc map[string]any
	if err == nil {
		err = json.Unmarshal(good, &doc)
	}
	if err != nil || doc["schema"] != 1.0 {
		t.Fatalf("%v: %s", err, good)
	}
	newer := []byte(`{"schema": 2, "pins": "?"}`)
	if err := os.WriteFile(path, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(Options{Dir: dir, Budget: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	if e, ok := errors.AsType[*NewerFormatError](err); !ok || e.Version != 2 || e.Path != path {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); string(b) != string(newer) {
		t.Errorf("the file of the newer version has become %s", b)
	}
	for _, damaged := range []string{"", "{", `{"schema":1,"pins":[{"repository":"x"}]}`, `{"schema":0}`} {
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, 1<<20)
		if st := s.Stats(); st.Pins != 0 {
			t.Errorf("%q: %d pins", damaged, st.Pins)
		}
		mustPin(t, s, repo, "1")
		shut(t, s)
		if b, err := os.ReadFile(path + ".bad"); err != nil || string(b) != damaged {
			t.Errorf("%q set aside: %q, %v", damaged, b, err)
		}
	}
	s = open(t, dir, 1<<20)
	if err := os.Mkdir(path+".tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Unpin(repo, "1", ""); !errors.Is(err, ErrDisk) || s.Stats().Pins != 1 {
		t.Errorf("%v, %d pins", err, s.Stats().Pins)
	}
	p.pull(t, s, repo, "2")
	if _, err := s.Pin(repo, "2", ""); !errors.Is(err, ErrDisk) || s.Stats().Pins != 1 {
		t.Errorf("%v, %d pins", err, s.Stats().Pins)
	}
}

// TestPinsStayWhenTheDiskIsFull: for min_free everything else is evicted, and what comes in then
// has to bypass the cache at once. Who reads what is purged reads on.
func TestPinsStayWhenTheDiskIsFull(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	kept, free := draw(1, nil, 1<<20), draw(2, nil, 1<<20)
	kept.pull(t, s, repo, "1")
	free.pull(t, s, other, "1")
	mustPin(t, s, repo, "1")
	s.room.space.mu.Lock()
	s.room.space.measure = func() (int64, error) { return 10 << 20, nil } // others have filled it
	s.room.space.until = time.Time{}
	s.room.space.mu.Unlock()
	s.SetLimits(100<<20, 50<<20)
	if kept.missing(s) != 0 || free.missing(s) != 2 {
		t.Errorf("%d blobs of the pinned image are gone, %d of the other", kept.missing(s), free.missing(s))
	}
	b := noise(7, 1<<20)
	if _, err := s.Begin(Origin{Repository: repo}, digest.FromBytes(b), int64(len(b))); !errors.Is(err, ErrNoRoom) {
		t.Errorf("what has no room: %v", err)
	}
	if err := s.Purge(Removal{Repository: repo, Blobs: []digest.Digest{kept.manifest}}); !errors.Is(err, ErrPinned) {
		t.Errorf("the purge of what is pinned: %v", err)
	}
	open, err := s.Open(kept.manifest)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, err := s.Unpin(repo, "1", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(Removal{Repository: repo, Blobs: []digest.Digest{kept.manifest}}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(kept.body))
	if n, err := open.File.ReadAt(got, 0); err != nil || string(got) != string(kept.body) {
		t.Errorf("who was reading what is purged: %d bytes, %v", n, err)
	}
}
