package registry_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// rows counts the keys of the index that begin with prefix.
func rows(t *testing.T, db *bbolt.DB, prefix string) (n int) {
	t.Helper()
	err := db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(k, _ []byte) error {
				if strings.HasPrefix(string(k), prefix) {
					n++
				}
				return nil
			})
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// repoFiles returns the files and folders under repos/ of a lab.
func (l *lab) repoFiles() (paths []string) {
	l.t.Helper()
	repos := filepath.Join(l.dir, "data", "repos")
	err := filepath.WalkDir(repos, func(path string, _ fs.DirEntry, err error) error {
		if path != repos {
			paths = append(paths, strings.TrimPrefix(path, repos+"/"))
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return paths
}

// TestInventedRepositoriesLeaveNothing: with a token, what clients ask for and isn't there is
// remembered in memory only, however it is asked for. Names that the registry can't have don't
// reach it.
func TestInventedRepositoriesLeaveNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var db *bbolt.DB
		l := newLab(t, labOptions{index: func(opened *bbolt.DB) { db = opened }})
		l.smallImage("library/redis", "7")
		const digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
		for n := range 200 {
			for _, path := range []string{"manifests/latest", "manifests/" + digest, "blobs/" + digest, "tags/list", "referrers/" + digest} {
				for _, name := range []string{fmt.Sprint("library/invented", n), fmt.Sprintf("org%d/invented", n)} {
					l.get("/v2/" + name + "/" + path)
				}
			}
		}
		l.hub.ResetLedger()
		for _, path := range []string{"manifests/latest", "blobs/" + digest} {
			if r := l.get("/v2/library/invented199/" + path); r.status != 404 {
				t.Errorf("%s: %d", path, r.status)
			}
			if r := l.get("/v2/" + strings.Repeat("a/", 100) + "b/" + path); r.status != 404 {
				t.Errorf("a hundred parts: %d", r.status)
			}
		}
		if seen := l.hub.Ledger(); len(seen) > 0 {
			t.Errorf("upstream saw\n%s", seen)
		}
		time.Sleep(time.Minute)
		if n := rows(t, db, "docker.io/"); n > 0 {
			t.Errorf("%d rows in the index", n)
		}
		if files := l.repoFiles(); len(files) > 0 {
			t.Errorf("%d files and folders, such as %s", len(files), files[0])
		}
	})
}

// TestPulledRepositoryOutlivesARestart: as soon as something of a repository is cached, its
// visibility and tag are in the index and in repos/, in whatever order clients ask. Without
// upstream the image is then served after a restart, and after the loss of the index.
func TestPulledRepositoryOutlivesARestart(t *testing.T) {
	t.Parallel()
	for name, paths := range map[string]func(img *hubtest.Image) []string{
		"as dockerd": func(img *hubtest.Image) []string {
			return []string{"HEAD " + manifestPath(img), "GET /v2/" + img.Repository + "/manifests/" + string(img.Digest)}
		},
		"as skopeo": func(img *hubtest.Image) []string { return []string{"GET " + manifestPath(img)} },
		"after a tag": func(img *hubtest.Image) []string {
			return []string{"HEAD /v2/library/redis/manifests/other", "HEAD " + manifestPath(img), "GET " + manifestPath(img)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{})
				img := l.smallImage("library/redis", "7")
				for _, p := range paths(img) {
					method, path, _ := strings.Cut(p, " ")
					l.do(method, path)
				}
				l.blob(img.Repository, string(img.Manifests[0].Config.Digest))
				for _, layer := range img.Manifests[0].Layers {
					l.blob(img.Repository, string(layer.Digest))
				}
				time.Sleep(2 * time.Second)
				l.hub.Inject(hubtest.Match{}, hubtest.Status(500, "oops"))
				for _, lose := range []bool{false, true} {
					l.stop()
					if lose {
						l.removeIndex()
					}
					l.start()
					if r := l.do("HEAD", manifestPath(img)); r.status != 200 {
						t.Errorf("index lost %v: %d", lose, r.status)
					}
				}
			})
		})
	}
}

// TestHeadersOfTagsLeaveNothing: a tag whose manifest nobody has fetched is in memory only.
func TestHeadersOfTagsLeaveNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var db *bbolt.DB
		l := newLab(t, labOptions{index: func(opened *bbolt.DB) { db = opened }})
		img := l.smallImage("library/redis", "7")
		for n := range 300 {
			tag := fmt.Sprint("tag", n)
			l.hub.AddManifest("library/redis", tag, img.MediaType, img.Bytes)
			if r := l.do("HEAD", "/v2/library/redis/manifests/"+tag); r.status != 200 {
				t.Fatal(r.status)
			}
		}
		time.Sleep(time.Minute)
		if n := rows(t, db, "docker.io/"); n > 0 {
			t.Errorf("%d rows in the index", n)
		}
		if files := l.repoFiles(); len(files) > 0 {
			t.Errorf("%d files and folders, such as %s", len(files), files[0])
		}
		l.get(manifestPath(img))
		time.Sleep(2 * time.Second)
		if _, err := os.Stat(filepath.Join(l.dir, "data", "repos", "docker.io", "library", "redis.json")); err != nil {
			t.Error("after a pull:", err)
		}
	})
}
