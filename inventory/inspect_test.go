package inventory

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// inspect is Inspect, which must find the image.
func (l lab) inspect(reference string) *Detail {
	l.t.Helper()
	ref, err := name.ParseReference(reference)
	if err != nil {
		l.t.Fatal(err)
	}
	d, err := Inspect(l.t.Context(), l.store, ref)
	if err != nil {
		l.t.Fatal(err)
	}
	return d
}

// TestInspectTellsWhatIsHere: of an index with a whole platform, a partial one and an absent one.
func TestInspectTellsWhatIsHere(t *testing.T) {
	l := newLab(t)
	base := l.blob(redis, 1, 1000)
	whole := l.manifest(redis, "", l.blob(redis, 2, 10), base, l.blob(redis, 3, 200))
	half := l.manifest(redis, "", l.blob(redis, 4, 10), base, l.blob("", 5, 300))
	whole.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
	half.Platform = &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	absent := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 6, Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}
	index := l.index(redis, "7", whole, half, absent)
	other := l.manifest(app, "1", l.blob(app, 6, 20), base)
	l.store.SetVisibility(redis, storage.Visibility{Public: true, At: time.Now()})
	l.store.CountPull(redis, "7")

	d := l.inspect("redis:7")
	size := index.Size + whole.Size + half.Size + 10 + 10 + 1000 + 200
	if d.Reference() != redis+":7" || d.Digest != index.Digest || !d.Index || d.Size != size || d.Shared != 1000 || d.Freed != size-1000 || d.Complete || d.Pulls != 1 || d.Pinned || d.Checked.IsZero() {
		t.Errorf("%+v; want %d bytes", d.Image, size)
	}
	if d.Visibility == nil || !d.Visibility.Public {
		t.Errorf("visibility %v", d.Visibility)
	}
	if d.Sharers != 1 || d.Sharing[0] != (Sharing{app + ":1", 1000}) {
		t.Errorf("it shares with %v", d.Sharing)
	}
	var states []State
	for _, m := range d.Manifests {
		states = append(states, m.State)
	}
	if !slices.Equal(states, []State{Whole, Partial, Absent}) {
		t.Fatalf("states %v", states)
	}
	if m := d.Manifests[1]; m.Size != half.Size+10+1000+300 || m.Cached != m.Size-300 || m.Platform.Architecture != "arm64" {
		t.Errorf("the partial one: %+v", m)
	}
	config, shared, missing := d.Manifests[1].Parts[0], d.Manifests[1].Parts[1], d.Manifests[1].Parts[2]
	if config.State != Whole || config.Arrived.IsZero() || config.MediaType != v1.MediaTypeImageConfig || config.Images != 0 {
		t.Errorf("the config: %+v", config)
	}
	if shared.Images != 1 || !slices.Equal(shared.Repositories, []string{redis}) {
		t.Errorf("the base: %+v", shared)
	}
	if missing.State != Absent || missing.Size != 300 || missing.Cached != 0 || !missing.Arrived.IsZero() || missing.Repositories != nil {
		t.Errorf("what is missing: %+v", missing)
	}

	// By digest it is the same image, which its tag needs too.
	if d := l.inspect("redis@" + index.Digest.String()); d.Size != size || d.Freed != 0 || !d.Checked.IsZero() || d.Sharing[0].Reference != redis+":7" {
		t.Errorf("by digest: %+v, shares with %v", d.Image, d.Sharing)
	}
	if d := l.inspect("org/app:1"); d.Digest != other.Digest || d.Index || len(d.Manifests) != 1 || d.Visibility != nil || d.Freed != d.Size-1000 {
		t.Errorf("the other one: %+v", d)
	}
	if _, err := l.store.Pin(redis, "7", ""); err != nil {
		t.Fatal(err)
	}
	if d := l.inspect("redis:7"); !d.Pinned {
		t.Error("it isn't pinned")
	}
}

// TestInspectShowsWhatIsComing: a layer that is being downloaded, and one whose download has stopped.
func TestInspectShowsWhatIsComing(t *testing.T) {
	l := newLab(t)
	layer := l.blob("", 2, 3<<20)
	l.manifest(redis, "7", l.blob(redis, 1, 10), layer)
	in, err := l.store.Begin(from(redis), layer.Digest, layer.Size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt(make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		if p := l.inspect("redis:7").Manifests[0].Parts[1]; p.State != Partial || p.Cached != 1<<20 || p.Size != 3<<20 {
			t.Errorf("%s: %+v", when, p)
		}
	}
	check("while it comes")
	in.Abort(io.ErrUnexpectedEOF)
	check("when it has stopped")
}

// TestInspectReadsThePlatformOfASingleManifest: it is in the config.
func TestInspectReadsThePlatformOfASingleManifest(t *testing.T) {
	l := newLab(t)
	body := []byte(`{"os":"linux","architecture":"arm64","variant":"v8"}`)
	config := v1.Descriptor{Digest: digest.FromBytes(body), Size: int64(len(body))}
	in, err := l.store.Begin(from(redis), config.Digest, config.Size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt(body, 0); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	l.manifest(redis, "7", config)
	if p := l.inspect("redis:7").Manifests[0].Platform; p == nil || p.OS != "linux" || p.Architecture != "arm64" || p.Variant != "v8" {
		t.Errorf("platform %v", p)
	}
}

// TestInspectSaysWhyThereIsNothing: each with its own reason, and as fs.ErrNotExist.
func TestInspectSaysWhyThereIsNothing(t *testing.T) {
	l := newLab(t)
	layer := l.blob(redis, 1, 10)
	seven := l.manifest(redis, "7", layer)
	six := l.manifest(redis, "6", layer)
	l.store.Remove(six.Digest)
	for reference, want := range map[string]string{
		"redis:8":                          "nobody has pulled this tag",
		"redis:6":                          "has left the cache",
		"org/app@" + seven.Digest.String(): "has left the cache, or has never been here",
		"redis@" + layer.Digest.String():   "a layer or a config",
	} {
		ref, err := name.ParseReference(reference)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Inspect(t.Context(), l.store, ref)
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), ref.String()+" is not cached: ") {
			t.Errorf("%s: %v; want %q", reference, err, want)
		}
	}
}
