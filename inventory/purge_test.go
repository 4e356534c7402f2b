package inventory

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/name"
)

// reference reads the name of an image.
func reference(t testing.TB, text string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// refer caches a manifest that refers to another one, and the list that says so.
func (l lab) refer(repository string, subject, artifact v1.Descriptor) {
	l.t.Helper()
	body, err := json.Marshal(v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{artifact}})
	if err == nil {
		err = l.store.SetReferrers(from(repository), subject.Digest, v1.MediaTypeImageIndex, body)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// purge plans a purge twice, which must be the same, runs it, and checks that just what was planned
// has gone.
func (l lab) purge(ref string, unpin bool) *Purge {
	l.t.Helper()
	plan := func() (*Purge, error) {
		if d := digest.Digest(ref); d.Validate() == nil {
			return PlanPurgeBlob(l.t.Context(), l.store, d, unpin)
		}
		return PlanPurge(l.t.Context(), l.store, reference(l.t, ref), unpin)
	}
	dry, err := plan()
	if err != nil {
		l.t.Fatalf("%s: %v", ref, err)
	}
	p, err := plan()
	if err != nil || !slices.Equal(p.Blobs, dry.Blobs) || p.Freed != dry.Freed || p.Kept != dry.Kept {
		l.t.Fatalf("%s: %+v after %+v, %v", ref, p, dry, err)
	}
	before := l.store.Stats().Bytes
	if err := p.Run(l.store); err != nil {
		l.t.Fatalf("%s: %v", ref, err)
	}
	if freed := before - l.store.Stats().Bytes; freed != p.Freed {
		l.t.Errorf("%s: %d bytes were freed, %d were planned", ref, freed, p.Freed)
	}
	for _, d := range p.Blobs {
		if _, ok := l.store.Has(d); ok {
			l.t.Errorf("%s: %s is still there", ref, d)
		}
	}
	return p
}

// TestPurgeKeepsWhatOthersNeed: of an image goes what no other image needs, of whatever repository;
// its tag, its links and what refers to it go with it.
func TestPurgeKeepsWhatOthersNeed(t *testing.T) {
	l := newLab(t)
	base, own := l.blob(redis, 1, 1000), l.blob(redis, 2, 200)
	one := l.manifest(redis, "7", l.blob(redis, 3, 10), base, own)
	l.manifest(app, "1", l.blob(app, 4, 20), base)
	l.manifest(redis, "6", l.blob(redis, 5, 30), l.blob(redis, 6, 40))
	sig := l.manifest(redis, "", l.blob(redis, 7, 5), l.blob(redis, 8, 6))
	l.refer(redis, one, sig)
	if images, _ := l.list(); len(images) != 3 {
		t.Fatalf("a list of what refers to an image, or that itself, is an image: %v", slices.Collect(maps.Keys(images)))
	}
	inspected := l.inspect("redis:7")
	p := l.purge("redis:7", false)
	if inspected.Freed != p.Freed {
		t.Errorf("inspect says that %d bytes would be freed, and %d were", inspected.Freed, p.Freed)
	}
	if !slices.Equal(p.References, []string{redis + ":7"}) || p.Kept != 1000 || !slices.Equal(p.KeptFor, []string{app + ":1"}) || len(p.Blobs) != 7 {
		t.Errorf("%+v", p)
	}
	if _, err := l.store.Tag(redis, "7"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the tag: %v", err)
	}
	for _, d := range []digest.Digest{one.Digest, base.Digest, own.Digest} {
		if _, err := l.store.Link(redis, d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the link to %s: %v", d, err)
		}
	}
	if _, err := l.store.Referrers(redis, one.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the list of referrers: %v", err)
	}
	images, all := l.list()
	if len(images) != 2 || !images[app+":1"].Complete || !images[redis+":6"].Complete || all.Other != 0 {
		t.Errorf("%v; %d bytes of no image", images, all.Other)
	}
	if _, err := PlanPurge(t.Context(), l.store, reference(t, "redis:7"), false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("purged twice: %v", err)
	}
}

// TestPurgeOfATag keeps the image for its other tags; by digest all tags go.
func TestPurgeOfATag(t *testing.T) {
	l := newLab(t)
	one := l.manifest(redis, "7", l.blob(redis, 1, 10), l.blob(redis, 2, 100))
	l.manifest(redis, "7.2", l.blob(redis, 1, 10), l.blob(redis, 2, 100))
	l.manifest(app, "7", l.blob(app, 1, 10), l.blob(app, 2, 100)) // the same in another repository
	if p := l.purge("redis:7", false); p.Freed != 0 || p.Kept != one.Size+110 || !slices.Equal(p.KeptFor, []string{redis + ":7.2", app + ":7"}) && !slices.Equal(p.KeptFor, []string{app + ":7", redis + ":7.2"}) {
		t.Errorf("%+v", p)
	}
	if images, _ := l.list(); len(images) != 2 {
		t.Errorf("%v", images)
	}
	l.manifest(redis, "7", l.blob(redis, 1, 10), l.blob(redis, 2, 100))
	if p := l.purge("redis@"+one.Digest.String(), false); p.Freed != 0 || len(p.References) != 2 || !slices.Equal(p.KeptFor, []string{app + ":7"}) {
		t.Errorf("%+v", p)
	}
	if _, err := l.store.Link(redis, one.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link: %v", err)
	}
	if p := l.purge("org/app:7", false); p.Freed != one.Size+110 {
		t.Errorf("%+v", p)
	}
	if _, all := l.list(); all.Len() != 0 || l.store.Stats().Bytes != 0 {
		t.Errorf("%+v, %d bytes", all, l.store.Stats().Bytes)
	}
}

// TestPurgeOfAPlatform: a part of an image isn't purged by its repository and digest, but says what
// it is a part of. The digest alone drops the one manifest, and says which images lack it.
func TestPurgeOfAPlatform(t *testing.T) {
	l := newLab(t)
	amd := l.manifest(redis, "", l.blob(redis, 1, 10), l.blob(redis, 2, 100))
	arm := l.manifest(redis, "", l.blob(redis, 3, 10), l.blob(redis, 4, 100))
	index := l.index(redis, "7", amd, arm)
	_, err := PlanPurge(t.Context(), l.store, reference(t, "redis@"+amd.Digest.String()), true)
	if part, ok := errors.AsType[*PartError](err); !ok || !slices.Equal(part.Of, []string{redis + ":7"}) {
		t.Errorf("%v", err)
	}
	layer := l.blob("", 2, 100)
	if p := l.purge(layer.Digest.String(), false); p.Freed != 100 || !slices.Equal(p.Partial, []string{redis + ":7"}) {
		t.Errorf("%+v", p)
	}
	if images, _ := l.list(); images[redis+":7"].Complete {
		t.Error("the image is complete without its layer")
	}
	l.purge(amd.Digest.String(), false)
	if p := l.purge("redis:7", false); p.Freed != index.Size+arm.Size+110 {
		t.Errorf("%+v", p)
	}
	for _, ref := range []string{"redis@" + digest.FromString("x").String(), "nginx"} {
		if _, err := PlanPurge(t.Context(), l.store, reference(t, ref), true); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := PlanPurgeBlob(t.Context(), l.store, digest.FromString("x"), true); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestPurgeOfWhatIsPinned: it takes unpin, and then the pins of the image itself go. Pins of other
// images keep what they need.
func TestPurgeOfWhatIsPinned(t *testing.T) {
	l := newLab(t)
	base := l.blob(redis, 1, 1000)
	one := l.manifest(redis, "7", l.blob(redis, 2, 10), base)
	l.manifest(redis, "7.2", l.blob(redis, 2, 10), base)
	two := l.manifest(app, "1", l.blob(app, 3, 20), base)
	for _, pin := range []struct{ repository, tag string }{{redis, "7"}, {app, "1"}} {
		if _, err := l.store.Pin(pin.repository, pin.tag, ""); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(ref string, by ...string) {
		t.Helper()
		_, err := PlanPurge(t.Context(), l.store, reference(t, ref), false)
		if pinned, ok := errors.AsType[*PinnedError](err); !ok || !slices.Equal(pinned.By, by) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	refused("redis:7", redis+":7")
	refused("redis@"+one.Digest.String(), redis+":7")
	if _, err := PlanPurgeBlob(t.Context(), l.store, base.Digest, false); err == nil {
		t.Error("the layer of two pinned images isn't pinned")
	}
	if p := l.purge("redis:7.2", false); p.Freed != 0 { // the pinned tag names it too
		t.Errorf("%+v", p)
	}
	l.store.DeleteTag(app, "1") // the pin is all that keeps it
	if p := l.purge("redis:7", true); p.Freed != one.Size+10 || p.Kept != 1000 || !slices.Equal(p.Unpinned, []string{redis + ":7"}) {
		t.Errorf("%+v", p)
	}
	if st := l.store.Stats(); st.Pins != 1 || st.PinnedBytes != two.Size+1020 {
		t.Errorf("%+v", st)
	}
	if p := l.purge(base.Digest.String(), true); p.Freed != 1000 || !slices.Equal(p.Unpinned, []string{app + ":1"}) {
		t.Errorf("%+v", p)
	}
	if st := l.store.Stats(); st.Pins != 0 || st.PinnedBytes != 0 {
		t.Errorf("%+v", st)
	}
}
