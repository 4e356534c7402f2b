package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
)

// TestConfirmedLinkWinsOverNamedOne: that a manifest names a blob doesn't overwrite what Confirm sets
// at the same time.
func TestConfirmedLinkWinsOverNamedOne(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	for n := range 4000 {
		d := digest.FromString(fmt.Sprint(n))
		var wg sync.WaitGroup
		wg.Go(func() { s.Confirm(repo, d, 10) })
		s.catalogue.linkChildren(repo, []image.Child{{Digest: d, Size: 10, Role: image.RoleLayer}})
		wg.Wait()
		if l, err := s.Link(repo, d); err != nil || !l.Confirmed {
			t.Fatalf("try %d: %+v %v", n, l, err)
		}
	}
}

// TestRecordAndEntryAgree: several changes of a record at the same time are all kept.
func TestRecordAndEntryAgree(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	for n := range 3000 {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"n":%d}`, n%50)
		d := digest.FromBytes(body)
		s.Remove(d)
		put(t, s, body)
		s.room.mu.Lock()
		s.room.lru.Peek(d).Value.bits |= unverified // as if found without a record
		s.room.mu.Unlock()
		var wg sync.WaitGroup
		wg.Go(func() {
			if b, err := s.Open(d); err == nil {
				b.Close()
			}
		})
		err := s.PutManifest(Origin{Repository: repo}, d, "x", body)
		wg.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Manifest(d); err != nil {
			again := s.PutManifest(Origin{Repository: repo}, d, "x", body)
			_, err2 := s.Manifest(d)
			t.Fatalf("try %d: %v; put again: %v, %v", n, err, again, err2)
		}
	}
}

// TestLinksWithoutRoomAreWrittenAtOnce: docs/design/disk-format.md says that a link is written with the
// synced transaction that follows at once. That holds when there is no room for the manifest too.
func TestLinksWithoutRoomAreWrittenAtOnce(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 10)
	settleDown(t, s)
	body := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":10}]}`, digest.FromString("x"))
	if err := s.PutManifest(Origin{Repository: repo}, digest.FromBytes(body), "x", body); !errors.Is(err, ErrNoRoom) {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if n := s.catalogue.index.Pending(); n > 0 {
		t.Errorf("%d changes are only in memory", n)
	}
}

// TestSweepForgetsWhatNothingNeeds: the links of blobs that have left are forgotten, except those that
// a cached manifest names, and tags whose manifest left long ago.
func TestSweepForgetsWhatNothingNeeds(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	kept, gone := put(t, s, noise(60, 2000)), put(t, s, noise(61, 2000))
	image := []byte(`{"layers":[{"digest":"` + kept.String() + `","size":2000}]}`)
	di := digest.FromBytes(image)
	if err := s.PutManifest(Origin{Repository: repo}, di, "application/x", image); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s.SetTag(repo, "here", Tag{Digest: di, Checked: now})
	s.SetTag(repo, "left", Tag{Digest: gone, Checked: now})
	s.Remove(kept)
	s.Remove(gone)
	s.house.sweep(now.Add(time.Hour))
	if _, err := s.Link(repo, kept); err != nil {
		t.Errorf("a link that a manifest names: %v", err)
	}
	if _, err := s.Link(repo, gone); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link that nothing needs: %v", err)
	}
	if _, err := s.Tag(repo, "left"); err != nil {
		t.Errorf("a young tag: %v", err)
	}
	s.house.sweep(now.Add(tagsKept + time.Hour))
	if _, err := s.Tag(repo, "left"); err == nil {
		t.Error("an old tag without its manifest stays")
	}
	if _, err := s.Tag(repo, "here"); err != nil {
		t.Error(err)
	}
}

// TestSweepDuringPutManifestKeepsLinks: a sweep after what a manifest names has been linked, and before
// the manifest is there, takes no link away.
func TestSweepDuringPutManifestKeepsLinks(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	settleDown(t, s)
	child := digest.FromString("child")
	body := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":10}]}`, child)
	d := digest.FromBytes(body)
	s.room.evicting.Lock() // PutManifest needs an eviction, and waits as if another one were going on
	s.room.minFree.Store(1 << 60)
	done := make(chan error)
	go func() { done <- s.PutManifest(Origin{Repository: repo}, d, "x", body) }()
	for {
		if _, err := s.Link(repo, child); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	s.room.minFree.Store(0)
	// By now d is known as coming in; its children are not.
	time.Sleep(50 * time.Millisecond)
	s.house.sweep(time.Now())
	s.room.evicting.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Manifest(d); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Link(repo, child); err != nil {
		t.Error("the manifest is here and its layer's link is gone:", err)
	}
}

// TestSweptLinkStaysAwayAfterARebuild: otherwise a public repository would be linked to the manifest of
// a private one.
func TestSweptLinkStaysAwayAfterARebuild(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	settleDown(t, s)
	body := []byte(`{"schemaVersion":2,"secret":true}`)
	d := digest.FromBytes(body)
	if err := s.PutManifest(Origin{Repository: "docker.io/a/public", Private: false}, d, "x", body); err != nil {
		t.Fatal(err)
	}
	s.SetVisibility("docker.io/a/public", Visibility{true, time.Now()})
	s.house.repos.writeDue()
	s.Remove(d)
	s.house.sweep(time.Now())
	if err := s.PutManifest(Origin{Repository: "docker.io/corp/app", Private: true}, d, "x", body); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Link("docker.io/a/public", d); err == nil {
		t.Fatal("the sweep has left the link")
	}
	shut(t, s)
	os.Remove(filepath.Join(dir, "index.db"))
	s = open(t, dir, 100<<20)
	if l, err := s.Link("docker.io/a/public", d); err == nil {
		t.Errorf("a/public is linked to corp/app's manifest after a rebuild: %+v", l)
	}
}
