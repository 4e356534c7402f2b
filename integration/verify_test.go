//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestVerifyRepairsWhatTheUpstreamHas: bad layers are fetched again and served without the upstream;
// what it hasn't got any more is said, and the exit code is 3.
func TestVerifyRepairsWhatTheUpstreamHas(t *testing.T) {
	hub := startHub(t, hubtest.Options{})
	img := hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: hubtest.Layers(2, 300<<10)})
	s := startServer(t, serverOptions{Hub: hub})
	if err := pullImage(t.Context(), s.URL, img, "1"); err != nil {
		t.Fatal(err)
	}
	layers := img.Manifests[0].Layers
	verify := func(code int, args ...string) (doc struct {
		Complete bool
		Bad      []admin.BadBlob
	}) {
		t.Helper()
		cmd := exec.Command(hubcacheProgram(t), append([]string{"verify", "--json"}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HUBCACHE_ADMIN=" + s.Admin}
		out, err := cmd.Output()
		if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited || cmd.ProcessState.ExitCode() != code {
			t.Fatalf("%v: exit code %d, want %d\n%s", err, cmd.ProcessState.ExitCode(), code, out)
		}
		if err := json.Unmarshal(out, &doc); err != nil {
			t.Fatal(err)
		}
		return doc
	}
	spoil := func(ds ...digest.Digest) {
		t.Helper()
		for _, d := range ds {
			path := filepath.Join(s.Data, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
			b, err := os.ReadFile(path)
			for began := time.Now(); err != nil && time.Since(began) < time.Minute; b, err = os.ReadFile(path) { // the client had it before it was synced
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil {
				t.Fatal(err)
			}
			b[100] ^= 1
			if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, b, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	spoil(img.Manifests[0].Digest, layers[0].Digest, layers[1].Digest)
	if doc := verify(0, "--repair"); !doc.Complete || len(doc.Bad) != 3 {
		t.Errorf("%+v", doc)
	}
	if doc := verify(0); !doc.Complete || len(doc.Bad) != 0 {
		t.Errorf("after the repair: %+v", doc)
	}

	spoil(layers[0].Digest)
	gone := hub.Inject(hubtest.Match{Reference: string(layers[0].Digest)}, hubtest.Status(http.StatusNotFound, `{"errors":[{"code":"BLOB_UNKNOWN","message":"unknown"}]}`))
	if doc := verify(3, "--repair"); len(doc.Bad) != 1 || doc.Bad[0].Repaired || doc.Bad[0].Error == nil || !doc.Bad[0].Dropped {
		t.Errorf("%+v", doc)
	}
	gone.Remove()
	if err := pullImage(t.Context(), s.URL, img, "1"); err != nil {
		t.Error(err)
	}
}
