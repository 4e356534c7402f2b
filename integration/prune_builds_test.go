//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/dockertest"
)

// TestPruneFreesWhatItPredicts builds images that share layers, with both builders and on both
// image stores. A dry run and the run after it delete the same images, in the same order, and say
// the same bytes; and those are the bytes that the disk gets.
func TestPruneFreesWhatItPredicts(t *testing.T) {
	t.Run("graph driver", func(t *testing.T) { pruneFreesWhatItPredicts(t, dockertest.Options{}) })
	t.Run("containerd", func(t *testing.T) { pruneFreesWhatItPredicts(t, dockertest.Options{Docker29: true}) })
}

// TestSoakPruneOnDocker28 is the same with Docker 28 and containerd's store, which one has to switch
// on there. Its images share fewer bytes than they do by what it says.
func TestSoakPruneOnDocker28(t *testing.T) {
	if os.Getenv("HUBCACHE_SOAK") == "" {
		t.Skip("needs an engine that only make soak builds")
	}
	pruneFreesWhatItPredicts(t, dockertest.Options{Docker28: true})
}

func pruneFreesWhatItPredicts(t *testing.T, engine dockertest.Options) {
	store := "graph driver"
	if engine.Docker28 || engine.Docker29 {
		store = "containerd"
	}
	h := newPruneHostOf(t, engine)
	h.daemon.ImportBusybox("base:1", "base")
	const builds, own = 5, 6 << 20
	each := int64(own) // what one image has alone
	if store == "containerd" {
		each *= 2 // packed and unpacked
	}
	for _, builder := range []string{"classic", "buildkit"} {
		shared := randomBytes(4 << 20)
		for n := range builds {
			h.build(builder, fmt.Sprintf("%s:%d", builder, n), map[string][]byte{
				"Dockerfile": fmt.Appendf(nil, "FROM base:1\nCOPY shared /shared\nWORKDIR /app\nENV N=%d\nCOPY own /own\nCMD [\"x\"]\n", n),
				"shared":     shared, "own": randomBytes(own),
			})
		}
	}
	h.collectGarbage()
	all := h.daemon.Docker("image", "ls", "--all", "--quiet")

	t.Run("classic builder, two are enough", func(t *testing.T) {
		r := h.pruneTwice(t, "classic", 0, "pruned", each*3/2)
		if n := len(strings.Fields(all)) - len(strings.Fields(h.daemon.Docker("image", "ls", "--all", "--quiet"))); n != len(r.Images) {
			t.Errorf("%d images are gone, and the report has %d", n, len(r.Images))
		}
		if tagged := h.tags("classic"); len(tagged) != builds-2 {
			t.Errorf("left: %v", tagged)
		}
	})
	t.Run("classic builder, all that may go", func(t *testing.T) {
		h.pruneTwice(t, "classic", 3, "incomplete", 300<<20)
		if tagged := h.tags("classic"); len(tagged) != 1 {
			t.Errorf("left: %v", tagged)
		}
	})
	// The build cache has all that BuildKit built. containerd's store has the packed layers, too.
	t.Run("BuildKit, with the build cache", func(t *testing.T) {
		r := h.pruneTwice(t, "buildkit", 3, "incomplete", 300<<20)
		if tagged := h.tags("buildkit"); store == "graph driver" && (len(tagged) != builds || r.Predicted != 0) {
			t.Errorf("left: %v, though their deletion frees nothing; predicted %d", tagged, r.Predicted)
		}
	})
	h.post("/build/prune?all=1", nil)
	if store == "containerd" { // the images are gone by now
		for n := range builds {
			h.build("buildkit", fmt.Sprintf("buildkit:%d", n), map[string][]byte{
				"Dockerfile": []byte("FROM base:1\nCOPY own /own\n"), "own": randomBytes(own),
			})
		}
		h.post("/build/prune?all=1", nil)
	}
	h.collectGarbage()
	t.Run("BuildKit, without the build cache", func(t *testing.T) {
		h.pruneTwice(t, "buildkit", 0, "pruned", each*3/2)
		if tagged := h.tags("buildkit"); len(tagged) >= builds {
			t.Errorf("left: %v", tagged)
		}
	})
}

// pruneTwice makes a dry run and a run that have to free so many bytes, of the images of one
// repository, and checks that they agree, and that the disk gets what they say. It returns the
// report of the run, with only the images that were deleted.
func (h *pruneHost) pruneTwice(t *testing.T, repository string, code int, decision string, bytes int64) pruneReport {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(h.disk, &st); err != nil {
		t.Fatal(err)
	}
	used, total := float64(st.Blocks-st.Bfree), float64(st.Blocks-st.Bfree+st.Bavail)
	low := max(0.01, 100*(used-float64(bytes)/float64(st.Bsize))/total)
	flags := []string{"--tagged", "--min-age=0s", "--quiet=0s", fmt.Sprintf("--low-watermark=%.4f%%", low), fmt.Sprintf("--high-watermark=%.4f%%", low+0.01)}
	for _, other := range []string{"classic", "buildkit"} {
		if other != repository {
			flags = append(flags, "--keep="+other)
		}
	}
	dry := h.prune(code, decision, flags...)
	r := h.prune(code, decision, append(flags, "--apply")...)
	list := func(r pruneReport) (lines []string) {
		for _, img := range r.Images {
			if img.Action == "delete" {
				lines = append(lines, fmt.Sprintf("%s %v frees %d", img.ID, img.References, img.Frees))
			}
		}
		return lines
	}
	if !slices.Equal(list(dry), list(r)) || dry.Predicted != r.Predicted {
		t.Errorf("the dry run: %d bytes of\n%s\nthe run: %d bytes of\n%s", dry.Predicted, strings.Join(list(dry), "\n"), r.Predicted, strings.Join(list(r), "\n"))
	}
	if diff := r.Freed - r.Predicted; max(diff, -diff) > 1<<20+r.Predicted/50 {
		t.Errorf("the disk got %d bytes, and %d were predicted for\n%s", r.Freed, r.Predicted, strings.Join(list(r), "\n"))
	}
	t.Logf("predicted %d, freed %d, of %d images", r.Predicted, r.Freed, len(list(r)))
	r.Images = slices.DeleteFunc(r.Images, func(img reportImage) bool { return img.Action != "delete" })
	return r
}

// tags returns the tags of a repository.
func (h *pruneHost) tags(repository string) []string {
	h.t.Helper()
	return strings.Fields(h.daemon.Docker("image", "ls", "--format", "{{.Tag}}", repository))
}

// collectGarbage makes containerd free what builds left behind, as it does after a deletion.
func (h *pruneHost) collectGarbage() {
	h.t.Helper()
	h.daemon.ImportBusybox("garbage:1", fmt.Sprint(time.Now()))
	h.daemon.Docker("rmi", "garbage:1")
}

// build builds an image. The client of Debian can't use BuildKit without a plugin, so it is
// asked by the API.
func (h *pruneHost) build(builder, tag string, files map[string][]byte) {
	h.t.Helper()
	if builder == "classic" {
		dir := h.t.TempDir()
		for name, body := range files {
			if err := os.WriteFile(filepath.Join(dir, name), body, 0o644); err != nil {
				h.t.Fatal(err)
			}
		}
		cmd := h.daemon.Command("build", "--quiet", "--network=none", "--tag", tag, dir)
		cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=0")
		runCommand(h.t, cmd)
		return
	}
	var context bytes.Buffer
	w := tar.NewWriter(&context)
	for name, body := range files {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg})
		_, werr := w.Write(body)
		if err := errors.Join(err, werr); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		h.t.Fatal(err)
	}
	out := h.post("/build?version=2&networkmode=none&t="+url.QueryEscape(tag), &context)
	if strings.Contains(out, `"errorDetail"`) || !strings.Contains(h.daemon.Docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}"), tag) {
		h.t.Fatalf("BuildKit didn't build %s:\n%.3000s", tag, out)
	}
}

// post sends a request to the daemon's API and returns its answer.
func (h *pruneHost) post(path string, body io.Reader) string {
	h.t.Helper()
	client := http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", h.daemon.Socket)
		},
	}}
	answer, err := client.Post("http://docker/v1.41"+path, "application/x-tar", body)
	if err != nil {
		h.t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		h.t.Fatalf("POST %s: %s, %v\n%.1000s", path, answer.Status, err, b)
	}
	return string(b)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails
	return b
}

// TestPruneKeepsPinnedBasesAndTheNewest, on both image stores: a base image that is pinned by
// digest has no tag, and stays when what was built on it has gone. A name in another repository
// doesn't make an image the newest of its own.
func TestPruneKeepsPinnedBasesAndTheNewest(t *testing.T) {
	for _, store := range []string{"graph driver", "containerd"} {
		t.Run(store, func(t *testing.T) {
			network := dockertest.NewNetwork(t)
			registry := newTinyRegistry(t, network.Addr.String())
			h := newPruneHostOf(t, dockertest.Options{Network: network, Docker29: store == "containerd",
				Config: map[string]any{"insecure-registries": []string{registry.addr}}})
			pinned, newer := registry.add(t, "base", time.Now().Add(-time.Hour)), registry.add(t, "base", time.Now())
			h.build("classic", "app:1", map[string][]byte{"Dockerfile": []byte("FROM " + pinned + "\nCOPY own /own\n"), "own": randomBytes(1 << 20)})
			h.daemon.Docker("pull", "-q", newer)
			flags := []string{"--apply", "--min-age=0s", "--quiet=0s", "--high-watermark=2%", "--low-watermark=1%"}
			h.prune(3, "incomplete", flags...)
			h.daemon.Docker("rmi", "app:1")
			if r := h.prune(3, "incomplete", flags...); r.rule(pinned) != "tag" || !h.has(pinned) {
				t.Errorf("the pinned base: %s; left:\n%s", r.rule(pinned), h.images())
			}
			h.daemon.ImportBusybox("db:15", "15")
			time.Sleep(time.Second)
			h.daemon.ImportBusybox("db:16", "16")
			time.Sleep(time.Second)
			h.daemon.Docker("tag", "db:15", "mirror.lan/db:15")
			if r := h.prune(3, "incomplete", append(flags, "--tagged")...); r.rule("db:16") != "newest" || !h.has("db:16") || h.has(pinned) {
				t.Errorf("db:16: %s; left:\n%s", r.rule("db:16"), h.images())
			}
		})
	}
}
