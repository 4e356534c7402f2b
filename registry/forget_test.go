package registry_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/storage"
)

// TestNothingIsRememberedOfWhatWasPurged: the next pull asks the upstream for the tag, the manifests
// and the blobs, as the first did; and for lists, and for what it hadn't got. Other repositories
// keep what they have.
func TestNothingIsRememberedOfWhatWasPurged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		const repository = "library/app"
		img := l.hub.AddImage(repository, "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 1000)})
		other := l.smallImage("library/app2", "1")
		paths := []string{"/v2/library/app/tags/list", "/v2/library/app/manifests/2"}
		pull := func() (asked int, replies []reply) {
			before := l.registryRequests()
			l.pull(img)
			for _, path := range paths {
				replies = append(replies, l.get(path))
			}
			return l.registryRequests() - before, replies
		}
		l.pull(other)
		first, _ := pull()
		l.waitIdle()
		if again, replies := pull(); again != 0 || replies[1].status != 404 {
			t.Fatalf("%d requests for what is cached and remembered", again)
		}
		l.hub.AddImage(repository, "2", hubtest.ImageSpec{Layers: hubtest.Layers(1, 500)})
		full := "docker.io/" + repository
		closure, err := l.store.Closure(full, img.Digest)
		if err != nil {
			t.Fatal(err)
		}
		all := slices.Collect(maps.Keys(closure))
		if err := l.store.Purge(storage.Removal{Repository: full, Tags: []string{"1"}, Links: all, Blobs: all}); err != nil {
			t.Fatal(err)
		}
		l.reg.Forget(full)
		again, replies := pull()
		if again != first+1 || replies[1].status != 200 || !strings.Contains(string(replies[0].body), `"2"`) {
			t.Errorf("%d requests after the purge, %d at first, and one more for the new tag; %d, %s", again, first, replies[1].status, replies[0].body)
		}
		before := l.registryRequests()
		l.pull(other)
		if n := l.registryRequests() - before; n != 0 {
			t.Errorf("%d requests for another repository", n)
		}
		l.reg.ForgetManifests()
		l.reg.Forget("ghcr.io/no/upstream") // does nothing
	})
}
