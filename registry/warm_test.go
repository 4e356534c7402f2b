package registry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/registry"
)

// references parses the names of images.
func references(t testing.TB, names ...string) (all []name.Reference) {
	t.Helper()
	for _, n := range names {
		ref, err := name.ParseReference(n)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ref)
	}
	return all
}

// warm warms images and returns what became of the first.
func (l *lab) warm(o registry.WarmOptions, names ...string) registry.Warmed {
	l.t.Helper()
	return l.reg.Warm(l.t.Context(), references(l.t, names...), o)[0]
}

// state is how much of an image is cached.
func (l *lab) state(name string, platforms ...v1.Platform) registry.Completeness {
	l.t.Helper()
	c := l.reg.Cached(l.t.Context(), references(l.t, name), platforms)[0]
	if c.Err != nil {
		l.t.Error(c.Err)
	}
	return c.State
}

var (
	amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = v1.Platform{OS: "linux", Architecture: "arm64"}
)

// requested returns the requests that the Hub got, without tokens and redirects, ordered.
func requested(hub *hubtest.Hub) (lines []string) {
	for _, e := range hub.Ledger() {
		if e.Kind == "token" || e.Kind == "ping" || e.Status == http.StatusUnauthorized || e.Status/100 == 3 {
			continue
		}
		lines = append(lines, e.Method+" "+e.Kind+"/"+hubtest.Short(e.Reference))
	}
	slices.Sort(lines)
	return lines
}

// TestWarmFetchesEachThingOnce: the index, the manifest of the platform with its attestation, their
// referrers, configs and layers come once each, and nothing of other platforms. A pull asks nothing
// of the upstream afterwards, and the next warm asks for the tag and the referrers alone.
func TestWarmFetchesEachThingOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(3, 1<<20), Platforms: []string{"linux/amd64", "linux/arm64"}, Attestations: true})
		here, other, attestation := img.Manifests[0], img.Manifests[1], img.Manifests[2]
		signature, signed := sign(l.hub, "library/app", here.Digest)
		var want []string
		for _, d := range []digest.Digest{img.Digest, here.Digest, attestation.Digest, signature} {
			want = append(want, "GET manifests/"+hubtest.Short(string(d)))
		}
		for _, d := range []digest.Digest{img.Digest, here.Digest, attestation.Digest} {
			want = append(want, "GET referrers/"+hubtest.Short(string(d)))
		}
		for _, m := range []hubtest.Manifest{here, attestation} {
			for _, b := range append(m.Layers, m.Config) {
				want = append(want, "GET blobs/"+hubtest.Short(string(b.Digest)))
			}
		}
		want = append(want, "GET blobs/"+hubtest.Short(string(signed)), "HEAD manifests/1")
		slices.Sort(want)
		if s := l.state("app:1", amd64); s != registry.Absent {
			t.Error(s)
		}
		var last []registry.WarmEvent
		res := l.warm(registry.WarmOptions{Platforms: []v1.Platform{amd64}, Report: func(e registry.WarmEvent) { last = append(last, e) }}, "app:1")
		if res.Err != nil || res.Digest != img.Digest || res.Fetched != res.Bytes || res.Bytes < 3<<20 {
			t.Fatalf("%+v", res)
		}
		if diff := cmp.Diff(want, requested(l.hub)); diff != "" {
			t.Error(diff)
		}
		if e := last[len(last)-1]; e.Result == nil || *e.Result != res {
			t.Errorf("the last event is %+v", e)
		}
		if s := l.state("app:1"); s != registry.Complete {
			t.Error(s)
		}
		if s := l.state("app:1", amd64, arm64); s != registry.Partial {
			t.Error(s)
		}
		if _, ok := l.store.Has(other.Digest); ok {
			t.Error("another platform was fetched")
		}

		l.hub.ResetLedger()
		if res := l.warm(registry.WarmOptions{}, "app:1"); res.Err != nil || res.Fetched != 0 {
			t.Errorf("%+v", res)
		}
		if again := requested(l.hub); slices.ContainsFunc(again, func(line string) bool {
			return line != "HEAD manifests/1" && !strings.HasPrefix(line, "GET referrers/")
		}) {
			t.Errorf("asked again: %v", again)
		}

		l.hub.ResetLedger()
		l.hub.Inject(hubtest.Match{}, hubtest.Reset())
		for _, path := range []string{"manifests/1", "manifests/" + string(here.Digest), "manifests/" + string(attestation.Digest), "manifests/" + string(signature)} {
			if resp := l.get("/v2/library/app/" + path); resp.status != http.StatusOK {
				t.Errorf("%s: %d", path, resp.status)
			}
		}
		for _, b := range append(append(here.Layers, attestation.Layers...), here.Config, attestation.Config) {
			if resp := l.get("/v2/library/app/blobs/" + string(b.Digest)); resp.status != http.StatusOK {
				t.Errorf("%s: %d", b.Digest, resp.status)
			}
		}
	})
}

// sign adds an artifact that refers to a manifest, and returns its digest and that of its blob.
func sign(hub *hubtest.Hub, repository string, subject digest.Digest) (manifest, blob digest.Digest) {
	layer := []byte("signature of " + subject)
	blob = hub.AddBlob(repository, "application/vnd.example", layer).Digest
	body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.example","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.example","digest":%q,"size":%d}],"subject":{"mediaType":%q,"digest":%q,"size":1}}`,
		v1.MediaTypeImageManifest, blob, len(layer), blob, len(layer), v1.MediaTypeImageManifest, subject)
	hub.AddManifest(repository, "", v1.MediaTypeImageManifest, body)
	return digest.FromBytes(body), blob
}

// TestWarmSaysWhatKeepsAnImageAway: each reason has one clear text and its own error, and nothing of
// the image is fetched.
func TestWarmSaysWhatKeepsAnImageAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{budget: 20 << 20, policy: func(p *registry.Policy) { p.Deny = []string{"denied/*"} }})
		l.hub.AddImage("denied/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20)})
		l.hub.AddImage("org/private", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20)})
		l.hub.SetPrivate("org/private", true)
		l.hub.AddImage("library/large", "1", hubtest.ImageSpec{Layers: hubtest.Layers(3, 8<<20)})
		l.hub.AddImage("library/multi", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20), Platforms: []string{"linux/amd64", "linux/arm/v7"}})
		for _, row := range []struct {
			name string
			is   error
			says string
		}{
			{"ghcr.io/org/app:1", registry.ErrUnserved, "this cache does not serve its registry: ghcr.io"},
			{"denied/app:1", nil, "not allowed by this cache's settings"},
			{"org/private:1", nil, "unknown, or private and not named in the setting private of its registry"},
			{"library/none:1", nil, "unknown, or private and not named in the setting private of its registry"},
			{"library/multi:2", nil, "has no such thing (HTTP 404)"},
			{"library/multi@" + string(digest.FromString("none")), nil, "has no such thing (HTTP 404)"},
			{"library/multi:1", nil, "there is none for linux/riscv64, but for linux/amd64, linux/arm/v7"},
			{"library/large:1", registry.ErrNoRoom, "there is no room for it: it needs 24MiB, and the budget leaves 20MiB that are not pinned: raise budget, or warm less"},
		} {
			platforms := []v1.Platform{{OS: "linux", Architecture: "riscv64"}}
			res := l.warm(registry.WarmOptions{Platforms: platforms}, row.name)
			if res.Err == nil || !strings.Contains(res.Err.Error(), row.says) || row.is != nil && !errors.Is(res.Err, row.is) {
				t.Errorf("%s: %v", row.name, res.Err)
			}
		}
		if n := l.hub.Ledger().BlobGETs(); n != 0 {
			t.Errorf("%d blobs were fetched", n)
		}
		l.setPolicy(func(p *registry.Policy) { p.Private = []string{"org/*"} })
		if res := l.warm(registry.WarmOptions{}, "org/private:1"); res.Err != nil {
			t.Error(res.Err)
		}
	})
}

// TestWarmNeverEvictsWhatItHasWarmed: of several images that don't fit together, those that come
// first stay whole.
func TestWarmNeverEvictsWhatItHasWarmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{budget: 20 << 20})
		var names []string
		for i := range 4 {
			repository := fmt.Sprintf("library/app%d", i)
			l.hub.AddImage(repository, "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 3<<20)})
			names = append(names, repository+":1")
		}
		whole := 0
		for i, res := range l.reg.Warm(t.Context(), references(t, names...), registry.WarmOptions{}) {
			switch {
			case res.Err == nil:
				whole++
				if s := l.state(names[i]); s != registry.Complete {
					t.Errorf("%s is %s", names[i], s)
				}
			case !errors.Is(res.Err, registry.ErrNoRoom) || !strings.Contains(res.Err.Error(), "beside the"):
				t.Error(res.Err)
			}
		}
		if whole != 3 {
			t.Errorf("%d images are whole", whole)
		}
	})
}

// TestWarmEndsWithItsCaller: soon, and the next one goes on where it was.
func TestWarmEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 4<<20)})
		rule := l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: string(img.Manifests[0].Layers[0].Digest)}, hubtest.StallAfter(2<<20))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan registry.Warmed, 1)
		go func() { ended <- l.reg.Warm(ctx, references(t, "app:1"), registry.WarmOptions{})[0] }()
		time.Sleep(time.Second)
		began := time.Now()
		cancel()
		if res := <-ended; !errors.Is(res.Err, context.Canceled) {
			t.Errorf("%v", res.Err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %s", took)
		}
		if n := len(l.reg.Stats().Inflight); n != 0 {
			t.Errorf("%d downloads go on", n)
		}
		rule.Remove()
		before := l.hub.Ledger().BlobBytes()
		if res := l.warm(registry.WarmOptions{}, "app:1"); res.Err != nil {
			t.Error(res.Err)
		}
		if again := l.hub.Ledger().BlobBytes() - before; again > 3<<20 {
			t.Errorf("%d bytes were fetched again", again)
		}
	})
}

// TestWarmRefreshesATagInsideItsTTL: for the platforms that were cached of the image before; and
// what was remembered as absent is asked for.
func TestWarmRefreshesATagInsideItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ttl := time.Hour
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.TagTTL = &ttl }})
		spec := hubtest.ImageSpec{Layers: hubtest.Layers(1, 1<<20), Platforms: []string{"linux/amd64", "linux/arm64"}}
		l.hub.AddImage("library/app", "1", spec)
		if res := l.warm(registry.WarmOptions{Platforms: []v1.Platform{arm64}}, "app:1"); res.Err != nil {
			t.Fatal(res.Err)
		}
		spec.Layers = hubtest.Layers(1, 2<<20)
		moved := l.hub.AddImage("library/app", "1", spec)
		if res := l.warm(registry.WarmOptions{}, "app:1"); res.Err != nil || res.Digest == moved.Digest {
			t.Errorf("asked inside the TTL: %+v", res)
		}
		if res := l.warm(registry.WarmOptions{Refresh: true}, "app:1"); res.Err != nil || res.Digest != moved.Digest {
			t.Errorf("%+v", res)
		}
		if s := l.state("app:1"); s != registry.Complete {
			t.Error(s)
		}
		if s := l.state("app:1", arm64); s != registry.Complete {
			t.Error("arm64 is", s)
		}
		if s := l.state("app:1", amd64); s != registry.Partial {
			t.Error("amd64 is", s)
		}
		if r := l.get("/v2/library/app/manifests/1"); r.header.Get("Docker-Content-Digest") != string(moved.Digest) {
			t.Error("clients get the old image")
		}
		if res := l.warm(registry.WarmOptions{}, "app:2"); res.Err == nil {
			t.Error("there is no such tag yet")
		}
		l.hub.AddImage("library/app", "2", spec)
		if res := l.warm(registry.WarmOptions{}, "app:2"); res.Err == nil {
			t.Error("the no is remembered")
		}
		if res := l.warm(registry.WarmOptions{Refresh: true}, "app:2"); res.Err != nil {
			t.Error(res.Err)
		}
	})
}
