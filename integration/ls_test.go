//go:build integration

package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestLsListsWhatWasPulled: a tag, and an image that was pulled by digest alone, with the sizes
// that Docker Hub has, and one pull each; partial while a layer is missing; and the same after a restart without the
// upstream.
func TestLsListsWhatWasPulled(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	tagged := hub.AddImage("library/tagged", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 300<<10)})
	swarm := hub.AddImage("org/swarm", "1", hubtest.ImageSpec{Layers: hubtest.Layers(1, 200<<10)})
	half := hub.AddImage("org/half", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 100<<10)})
	s := startServer(t, serverOptions{Hub: hub, Env: []string{"HUBCACHE_READ_AHEAD=false"}})
	for img, reference := range map[*hubtest.Image]string{tagged: "1", swarm: swarm.Digest.String()} {
		if err := pullImage(t.Context(), s.URL, img, reference); err != nil {
			t.Fatal(err)
		}
	}
	if err := pullManifest(t.Context(), s.URL, "org/half", "1", half.MediaType, half.Bytes); err != nil {
		t.Fatal(err)
	}
	size := func(img *hubtest.Image) int64 {
		n := int64(len(img.Bytes))
		for _, b := range img.Blobs() {
			n += b.Size
		}
		return n
	}
	check := func() {
		t.Helper()
		var doc admin.Images
		if err := json.Unmarshal([]byte(s.Command("ls", "--json")), &doc); err != nil {
			t.Fatal(err)
		}
		want := map[string]struct {
			bytes    int64
			complete bool
		}{
			"docker.io/library/tagged:1":                   {size(tagged), true},
			"docker.io/org/swarm@" + swarm.Digest.String(): {size(swarm), true},
			"docker.io/org/half:1":                         {int64(len(half.Bytes)), false},
		}
		for _, i := range doc.Images {
			if w, ok := want[i.Reference]; !ok || i.Bytes != w.bytes || i.Complete != w.complete || i.Pulls != 1 {
				t.Errorf("%s: %d bytes, complete %v, %d pulls; want %v %+v", i.Reference, i.Bytes, i.Complete, i.Pulls, ok, w)
			}
			delete(want, i.Reference)
		}
		if len(want) > 0 {
			t.Errorf("not listed: %v", want)
		}
		if out := s.Command("__complete", "ls", "ta"); !strings.HasPrefix(out, "tagged:1\n:") {
			t.Errorf("ls ta<TAB>:\n%s", out)
		}
		if out := s.Command("ls", "tagged"); !strings.Contains(out, "\ntagged:1 ") || !strings.Contains(out, "1 image;") {
			t.Errorf("ls tagged:\n%s", out)
		}
	}
	check()
	hub.Close()
	s.Restart()
	check()
}
