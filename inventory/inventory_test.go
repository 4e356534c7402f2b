package inventory

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/storage"
)

// lab is a store that tests put images into.
type lab struct {
	t     testing.TB
	store *storage.Store
}

func newLab(t testing.TB) lab {
	t.Helper()
	s, err := storage.Open(storage.Options{Dir: t.TempDir(), Budget: 64 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab{t, s}
}

func from(repository string) storage.Origin { return storage.Origin{Repository: repository} }

// blob makes a blob of that size; its content follows from seed. It is cached if into isn't "".
func (l lab) blob(into string, seed, size int) v1.Descriptor {
	l.t.Helper()
	body := make([]byte, size)
	copy(body, fmt.Sprintf("%d ", seed))
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromBytes(body), Size: int64(size)}
	if _, ok := l.store.Has(d.Digest); into == "" || ok {
		return d
	}
	in, err := l.store.Begin(from(into), d.Digest, d.Size)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := in.WriteAt(body, 0); err != nil {
		l.t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		l.t.Fatal(err)
	}
	return d
}

// manifest caches a manifest and, unless tag is "", has the tag name it.
func (l lab) manifest(repository, tag string, config v1.Descriptor, layers ...v1.Descriptor) v1.Descriptor {
	l.t.Helper()
	config.MediaType = v1.MediaTypeImageConfig
	return l.put(repository, tag, v1.MediaTypeImageManifest, v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: config, Layers: layers})
}

func (l lab) index(repository, tag string, manifests ...v1.Descriptor) v1.Descriptor {
	l.t.Helper()
	return l.put(repository, tag, v1.MediaTypeImageIndex, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: manifests})
}

func (l lab) put(repository, tag, mediaType string, v any) v1.Descriptor {
	l.t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if err := l.store.PutManifest(from(repository), d.Digest, mediaType, body); err != nil {
		l.t.Fatal(err)
	}
	if tag != "" {
		l.store.SetTag(repository, tag, storage.Tag{Digest: d.Digest, MediaType: mediaType, Size: d.Size, Checked: time.Now()})
	}
	return d
}

// list is what Make says, by reference.
func (l lab) list() (map[string]Image, *List) {
	l.t.Helper()
	all, err := Make(l.t.Context(), l.store)
	if err != nil {
		l.t.Fatal(err)
	}
	images := map[string]Image{}
	for n := range all.Len() {
		i := all.At(n)
		images[i.Reference()] = i
	}
	return images, all
}

const (
	redis = "docker.io/library/redis"
	app   = "docker.io/org/app"
)

// TestSharedBytesAreThoseThatOthersNeed: Size counts each blob of an image once, Shared those that
// another image needs too, and what belongs to no image is Other.
func TestSharedBytesAreThoseThatOthersNeed(t *testing.T) {
	l := newLab(t)
	base := l.blob(redis, 1, 1000)
	one := l.manifest(redis, "7", l.blob(redis, 2, 10), base, l.blob(redis, 3, 200), base)
	two := l.manifest(app, "1", l.blob(app, 4, 20), base)
	l.blob(app, 5, 7) // of no image
	images, all := l.list()
	if len(images) != 2 {
		t.Fatalf("%d images: %v", len(images), images)
	}
	for ref, want := range map[string][2]int64{redis + ":7": {one.Size + 10 + 1000 + 200, 1000}, app + ":1": {two.Size + 20 + 1000, 1000}} {
		if i := images[ref]; i.Size != want[0] || i.Shared != want[1] || !i.Complete {
			t.Errorf("%s: size %d, shared %d, complete %v; want %v", ref, i.Size, i.Shared, i.Complete, want)
		}
	}
	if all.Other != 7 {
		t.Errorf("%d bytes belong to no image, want 7", all.Other)
	}
}

// TestImagesWithoutATag: what is known by digest alone is an image, unless an index of the same
// repository names it.
func TestImagesWithoutATag(t *testing.T) {
	l := newLab(t)
	amd := l.manifest(redis, "", l.blob(redis, 1, 10), l.blob(redis, 2, 100))
	arm := l.manifest(redis, "", l.blob("", 3, 10), l.blob("", 4, 100))
	l.index(redis, "7", amd, arm)
	swarm := l.manifest(app, "", l.blob(app, 5, 10))
	both := l.manifest(app, "1", l.blob(app, 6, 10))
	l.store.SetTag(app, "2", storage.Tag{Digest: both.Digest, MediaType: both.MediaType, Size: both.Size})
	images, _ := l.list()
	want := []string{redis + ":7", app + "@" + swarm.Digest.String(), app + ":1", app + ":2"}
	for _, ref := range want {
		if _, ok := images[ref]; !ok {
			t.Errorf("%s is missing", ref)
		}
	}
	if len(images) != len(want) {
		t.Errorf("%d images: %v", len(images), images)
	}
	if i := images[app+"@"+swarm.Digest.String()]; i.MediaType != v1.MediaTypeImageManifest {
		t.Errorf("media type %q", i.MediaType)
	}
	if i := images[app+":1"]; i.Shared != i.Size {
		t.Errorf("two tags of one manifest share %d of %d bytes", i.Shared, i.Size)
	}
}

// TestComplete: an image is complete when every platform that is cached is there as a whole.
func TestComplete(t *testing.T) {
	l := newLab(t)
	whole := l.manifest(redis, "whole", l.blob(redis, 1, 10), l.blob(redis, 2, 100))
	partial := l.manifest(redis, "partial", l.blob(redis, 1, 10), l.blob("", 3, 100))
	foreign := l.blob("", 4, 100)
	foreign.URLs = []string{"https://example.org/layer"}
	l.manifest(redis, "foreign", l.blob(redis, 1, 10), foreign)
	absent := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 6}
	l.index(redis, "one-platform", whole, absent)
	l.index(redis, "half-platform", whole, partial)
	l.index(redis, "no-platform", absent)
	images, _ := l.list()
	for tag, want := range map[string]bool{"whole": true, "partial": false, "foreign": true, "one-platform": true, "half-platform": false, "no-platform": false} {
		if i, ok := images[redis+":"+tag]; !ok || i.Complete != want {
			t.Errorf("%s: listed %v, complete %v, want %v", tag, ok, i.Complete, want)
		}
	}
}

func TestMatch(t *testing.T) {
	i := Image{Repository: redis, Tag: "7-alpine"}
	for pattern, want := range map[string]bool{
		"": true, "*": true, "redis": true, "redis:7*": true, "redis:8*": false, "library/*": true, "docker.io/library/redis": true, "docker.io/*/*": true,
		"re*": true, "org/*": false, "ghcr.io/*/*": false, "redis:": true, "library/redis:7-alpine": true,
	} {
		if i.Match(pattern) != want {
			t.Errorf("%q: %v", pattern, !want)
		}
	}
	ghcr := Image{Repository: "ghcr.io/org/app", Digest: digest.FromString("x")}
	for pattern, want := range map[string]bool{"ghcr.io/*/*": true, "ghcr.io/org/app": true, "org/app": false, "ghcr.io/org/app:*": false} {
		if ghcr.Match(pattern) != want {
			t.Errorf("%q: %v", pattern, !want)
		}
	}
}

// TestPulls: a tag counts those by the tag, an image without one those by digest.
func TestPulls(t *testing.T) {
	l := newLab(t)
	seven := l.manifest(redis, "7", l.blob(redis, 1, 10))
	swarm := l.manifest(app, "", l.blob(app, 2, 10))
	l.manifest(app, "1", l.blob(app, 3, 10))
	for range 3 {
		l.store.CountPull(redis, "7")
	}
	l.store.CountPull(redis, seven.Digest.String())
	l.store.CountPull(app, swarm.Digest.String())
	l.store.CountPull(app, "2")
	l.list()
	for range 2 {
		l.store.CountPull(app, "1") // beside an image without a tag
	}
	images, _ := l.list()
	for ref, want := range map[string]int64{redis + ":7": 3, app + "@" + swarm.Digest.String(): 1, app + ":1": 2} {
		if got := images[ref].Pulls; got != want {
			t.Errorf("%s: %d pulls, want %d", ref, got, want)
		}
	}
}

// BenchmarkMake lists 20,000 images on 200 bases.
func BenchmarkMake(b *testing.B) {
	l := newLab(b)
	const images = 20_000
	for n := range images {
		repository := fmt.Sprintf("docker.io/org/app%d", n%2000)
		l.manifest(repository, fmt.Sprint(n), l.blob(repository, 1_000_000+n, 64), l.blob(repository, n%200, 100), l.blob(repository, 1000+n%200, 100))
	}
	b.ReportAllocs()
	for b.Loop() {
		if all, err := Make(b.Context(), l.store); err != nil || all.Len() != images {
			b.Fatal(all.Len(), err)
		}
	}
}
