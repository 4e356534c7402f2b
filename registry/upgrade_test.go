package registry_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// oldData is the data folder of testdata/README.md, opened by the current code an hour after
// the old version was stopped.
type oldData struct {
	t       *testing.T
	hub     *hubtest.Hub
	content *oldContent
	store   *storage.Store
	reg     *registry.Registry
	log     *slog.Logger
}

// oldDataOptions says what happens to the data folder before it is opened.
type oldDataOptions struct {
	withoutIndex bool          // index.db is deleted, so that it is rebuilt
	otherBoot    bool          // the machine was restarted since
	tagTTL       time.Duration // 0: a week, which is more than the age of every tag
}

// openOldData opens a copy of the data folder. Call it inside a synctest bubble.
func openOldData(t *testing.T, o oldDataOptions) *oldData {
	t.Helper()
	time.Sleep(time.Until(november(7, 19)))
	dir := filepath.Join(t.TempDir(), "data")
	unpackOldData(t, "testdata/data-a8918c7.tar.gz", dir)
	if o.withoutIndex {
		if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
			t.Fatal(err)
		}
	}
	if !o.otherBoot {
		setOldBoot(t, filepath.Join(dir, "ingest"))
	}
	d := &oldData{t: t, hub: hubtest.New(hubtest.Options{
		Accounts: []hubtest.Account{{Username: oldUsername, PAT: oldToken, Private: []string{"*"}, Limit: hubtest.Unlimited}},
	})}
	d.content = publishOldContent(d.hub)
	var lines bytes.Buffer
	d.log = slog.New(slog.NewTextHandler(&lines, nil))
	var err error
	if d.store, err = storage.Open(storage.Options{Dir: dir, Budget: 1 << 30, Log: d.log}); err != nil {
		t.Fatal(err)
	}
	if d.reg, err = registry.New(oldDataRegistry(t, d, o.tagTTL)); err != nil {
		t.Fatal(err)
	}
	synctest.Wait() // the index has been compared with the files
	t.Cleanup(func() {
		if err := errors.Join(d.reg.Close(context.Background()), d.store.Close()); err != nil {
			t.Error(err)
		}
		d.hub.Close()
		if t.Failed() {
			t.Logf("log:\n%s", lines.String())
		}
	})
	return d
}

// oldDataRegistry returns the options of a registry with the settings of the old version.
func oldDataRegistry(t *testing.T, d *oldData, tagTTL time.Duration) registry.Options {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(oldToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	up, err := url.Parse(d.hub.RegistryURL())
	if err != nil {
		t.Fatal(err)
	}
	if tagTTL == 0 {
		tagTTL = 7 * 24 * time.Hour
	}
	return registryOptions(d.store, d.log,
		upstream.Options{URL: up, Credential: auth.NewFile(oldUsername, token), Transport: d.hub.Transport()},
		registry.Policy{TagTTL: &tagTTL, MaxStale: 168 * time.Hour, Private: []string{"acme/private"}})
}

func november(day, hour int) time.Time { return time.Date(2026, 11, day, hour, 0, 0, 0, time.UTC) }

// unpackOldData unpacks an archive, with modes and times, into dir, which it makes.
func unpackOldData(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, fs.FileMode(h.Mode))
		} else {
			err = unpackOldFile(path, h, r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func unpackOldFile(path string, h *tar.Header, r io.Reader) error {
	body, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, body, 0o600); err != nil {
		return err
	}
	return errors.Join(os.Chmod(path, fs.FileMode(h.Mode)), os.Chtimes(path, h.ModTime, h.ModTime))
}

// setOldBoot writes the id of this boot into the states of unfinished downloads. A download is
// only resumed in the boot in which it was written: after a crash of the machine its bytes
// may be missing. That the old version wrote the file in this boot can't be had in a test.
func setOldBoot(t *testing.T, ingest string) {
	t.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	states, err := filepath.Glob(filepath.Join(ingest, "*.json"))
	if err != nil || len(states) != 1 {
		t.Fatalf("unfinished downloads: %v (%v)", states, err)
	}
	state, err := os.ReadFile(states[0])
	if err != nil {
		t.Fatal(err)
	}
	state = bytes.ReplaceAll(state, []byte("00000000-0000-4000-8000-000000000000"), bytes.TrimSpace(boot))
	if err := os.WriteFile(states[0], state, 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask sends one request to the registry.
func (d *oldData) ask(method, repository, kind, reference string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	d.reg.ServeHTTP(w, httptest.NewRequest(method, "http://cache.test/v2/"+repository+"/"+kind+"/"+reference, nil))
	return w
}

// want asks for something, which must come from the cache and have the right bytes.
func (d *oldData) want(method, repository, kind, reference string, dgst digest.Digest) *httptest.ResponseRecorder {
	d.t.Helper()
	w := d.ask(method, repository, kind, reference)
	what := fmt.Sprintf("%s %s %s (%s)", method, repository, reference, d.content.names[dgst])
	if w.Code != 200 || w.Header().Get("X-Hubcache") != "hit" || w.Header().Get("Docker-Content-Digest") != string(dgst) {
		d.t.Errorf("%s: %d %v", what, w.Code, w.Header())
	} else if method == "GET" && digest.FromBytes(w.Body.Bytes()) != dgst {
		d.t.Errorf("%s: wrong bytes", what)
	}
	return w
}

// pull pulls an image as dockerd does; all of it must be cached, but for the large layer.
func (d *oldData) pull(img oldImage) {
	d.t.Helper()
	if w := d.want("HEAD", img.repository, "manifests", img.tag, img.top); w.Header().Get("Content-Type") != img.mediaType {
		d.t.Errorf("%s:%s is a %s, want %s", img.repository, img.tag, w.Header().Get("Content-Type"), img.mediaType)
	}
	d.want("GET", img.repository, "manifests", string(img.top), img.top)
	d.want("GET", img.repository, "manifests", string(img.manifest), img.manifest)
	for _, blob := range img.blobs {
		if blob != d.content.large {
			d.want("GET", img.repository, "blobs", string(blob), blob)
		}
	}
}

// wantRequests compares the requests to upstream since the last call with those wanted, and
// forgets them. Those for a token, and what they answer, don't count.
func (d *oldData) wantRequests(want ...string) {
	d.t.Helper()
	synctest.Wait()
	got := d.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face != hubtest.Token && e.Status != 401 }).Lines()
	if !slices.Equal(got, want) {
		d.t.Errorf("upstream got\n%s\nand not\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	d.hub.ResetLedger()
}

// confirmation is the request that asks upstream whether a repository has a cached blob.
func (d *oldData) confirmation(repository string, blob digest.Digest, status int) string {
	return fmt.Sprintf("HEAD registry %s blobs/%s range=- account=%s → %d", repository, hubtest.Short(string(blob)), oldUsername, status)
}

// withAndWithoutIndex runs test on the data folder as it is, and with a rebuilt index.
func withAndWithoutIndex(t *testing.T, test func(t *testing.T, d *oldData, rebuilt bool)) {
	for _, rebuilt := range []bool{false, true} {
		t.Run(map[bool]string{false: "index kept", true: "index rebuilt"}[rebuilt], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, openOldData(t, oldDataOptions{withoutIndex: rebuilt}), rebuilt) })
		})
	}
}

func TestUpgradeServesWhatWasCachedWithoutUpstream(t *testing.T) {
	withAndWithoutIndex(t, func(t *testing.T, d *oldData, rebuilt bool) {
		c := d.content
		for _, img := range []oldImage{c.redis7, c.redis6, c.tools1, c.tools2, c.private} {
			d.pull(img)
		}
		synctest.Wait()
		if l := d.hub.Ledger(); len(l) > 0 && !rebuilt {
			t.Errorf("upstream got\n%s", l)
		}
		if rebuilt {
			// The files say that these two are private, and not which repository has them.
			d.wantRequests(d.confirmation("acme/private", c.private.blobs[0], 307), d.confirmation("acme/private", c.private.blobs[1], 307))
		}
		if st := d.store.Stats(); st.Blobs+st.Manifests != 19 || st.Tags != 6 || st.Corrupt != 0 {
			t.Errorf("stats: %+v", st)
		}
	})
}

func TestUpgradeKeepsTags(t *testing.T) {
	withAndWithoutIndex(t, func(t *testing.T, d *oldData, rebuilt bool) {
		c := d.content
		privateChecked := november(7, 14)
		if rebuilt {
			privateChecked = november(1, 4) // repos/ has only the checks in which something changed
		}
		for _, tag := range []struct {
			img     oldImage
			checked time.Time
		}{
			{c.redis7, november(7, 10)}, {c.redis6, november(5, 9)}, {c.tools1, november(7, 16)},
			{c.tools2, november(1, 5)}, {c.once, november(1, 6)}, {c.private, privateChecked},
		} {
			got, err := d.store.Tag("docker.io/"+tag.img.repository, tag.img.tag)
			if err != nil || got.Digest != tag.img.top || got.MediaType != tag.img.mediaType || got.Size <= 0 || !got.Checked.Equal(tag.checked) {
				t.Errorf("%s:%s: %+v (%v), want %s checked %v", tag.img.repository, tag.img.tag, got, err, tag.img.top, tag.checked)
			}
		}
	})
}

// The time of the last check decides whether upstream is asked about a tag.
func TestUpgradeChecksOldTagsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := openOldData(t, oldDataOptions{tagTTL: 24 * time.Hour})
		d.want("HEAD", "library/redis", "manifests", "7", d.content.redis7.top)
		d.wantRequests()
		if w := d.ask("HEAD", "library/redis", "manifests", "6"); w.Code != 200 || w.Header().Get("X-Hubcache") != "revalidated" {
			t.Errorf("redis:6: %d %v", w.Code, w.Header())
		}
		d.wantRequests("HEAD registry library/redis manifests/6 range=- account=ci-bot → 200")
	})
}

func TestUpgradeKeepsLinks(t *testing.T) {
	withAndWithoutIndex(t, func(t *testing.T, d *oldData, rebuilt bool) {
		c := d.content
		mirrored, tools, private := c.redis7.blobs[2], c.tools1.blobs[2], c.private.blobs[1]
		d.want("GET", "acme/mirror", "blobs", string(mirrored), mirrored)
		if rebuilt { // no manifest names it there: one HEAD brings the link back
			d.wantRequests(d.confirmation("acme/mirror", mirrored, 307))
		}
		d.wantRequests()
		d.want("GET", "acme/mirror", "blobs", string(mirrored), mirrored)
		d.wantRequests()
		for _, blob := range []digest.Digest{tools, private} {
			if w := d.ask("GET", "library/redis", "blobs", string(blob)); w.Code != 404 {
				t.Errorf("the %s under library/redis: %d", c.names[blob], w.Code)
			}
			d.wantRequests(d.confirmation("library/redis", blob, 404))
		}
		for _, img := range []oldImage{c.redis7, c.redis6, c.tools1, c.tools2, c.private, c.once} {
			for _, dgst := range img.all() {
				if l, err := d.store.Link("docker.io/"+img.repository, dgst); err != nil || l.Size <= 0 {
					t.Errorf("%s is linked to %s as %+v (%v)", c.names[dgst], img.repository, l, err)
				}
			}
		}
	})
}

func TestUpgradeKeepsVisibility(t *testing.T) {
	withAndWithoutIndex(t, func(t *testing.T, d *oldData, rebuilt bool) {
		for name, want := range map[string]storage.Visibility{
			"library/redis": {Public: true, At: november(7, 10)}, "acme/tools": {Public: true, At: november(7, 16)},
			"acme/mirror": {Public: true, At: november(7, 17)}, "acme/once": {Public: true, At: november(1, 6)},
			"corp/secret": {Public: false, At: november(1, 9)},
		} {
			if v, err := d.store.Visibility("docker.io/" + name); err != nil || v.Public != want.Public || !v.At.Equal(want.At) {
				t.Errorf("%s: %+v (%v), want %+v", name, v, err, want)
			}
		}
		c := d.content
		for blob, private := range map[digest.Digest]bool{c.private.blobs[1]: true, c.private.manifest: true, c.base: false, c.redis7.top: false} {
			b, err := d.store.Open(blob)
			if err != nil {
				t.Fatal(err)
			}
			if b.Private != private {
				t.Errorf("%s: private %v", c.names[blob], b.Private)
			}
			b.Close()
		}
		if w := d.ask("GET", "corp/secret", "manifests", "1"); w.Code != 404 {
			t.Errorf("corp/secret: %d", w.Code)
		}
		d.wantRequests()
	})
}

// A visibility of the 1st is used at once, and asked for again meanwhile.
func TestUpgradeRenewsOldVisibility(t *testing.T) {
	withAndWithoutIndex(t, func(t *testing.T, d *oldData, rebuilt bool) {
		d.pull(d.content.once)
		synctest.Wait()
		if l := d.hub.Ledger(); l.TokenRequests("") != 1 {
			t.Errorf("upstream got\n%s", l)
		}
		if v, err := d.store.Visibility("docker.io/acme/once"); err != nil || !v.Public || v.At.Before(november(7, 19)) {
			t.Errorf("visibility %+v (%v)", v, err)
		}
	})
}

// The order is the one in which commit a8918c7 itself evicts. A rebuilt index knows no last
// uses, and goes by the times of the files.
func TestUpgradeKeepsLastUses(t *testing.T) {
	withAndWithoutIndex(t, func(t *testing.T, d *oldData, rebuilt bool) {
		want := []string{
			"redis6 manifest", "redis6 config", "redis6 layer 2",
			"redis7 index", "redis7 manifest", "redis7 config",
			"private manifest", "private config", "private layer 1",
			"tools1 manifest", "tools1 config", "base layer", // tools1 used it last
			"tools2 manifest", "tools2 config", // used once: these two images stayed while they were a quarter
			"once manifest", "once config", "once layer 1",
			"tools1 layer 2", "redis7 layer 2",
		}
		if rebuilt {
			want = []string{
				"redis6 manifest", "redis6 config", "base layer", "redis6 layer 2",
				"redis7 manifest", "redis7 index", "redis7 config", "redis7 layer 2",
				"tools1 manifest", "tools1 config", "tools1 layer 2",
				"private manifest", "private config", "private layer 1",
				"tools2 manifest", "tools2 config",
				"once manifest", "once config", "once layer 1",
			}
		}
		c := d.content
		cached := func() map[digest.Digest]bool {
			has := map[digest.Digest]bool{}
			for dgst := range c.names {
				if _, ok := d.store.Has(dgst); ok {
					has[dgst] = true
				}
			}
			return has
		}
		before := d.store.Stats().Bytes
		d.store.SetLimits(before-1, 0) // the unfinished download is first
		if after := d.store.Stats().Bytes; before-after != largeSize {
			t.Fatalf("%d bytes were evicted first, want the unfinished download's %d", before-after, largeSize)
		}
		var got []string
		for before := cached(); len(before) > 0; {
			d.store.SetLimits(d.store.Stats().Bytes-1, 0)
			after := cached()
			for dgst := range before {
				if !after[dgst] {
					got = append(got, c.names[dgst])
				}
			}
			before = after
		}
		if !slices.Equal(got, want) {
			t.Errorf("evicted\n%q\nwant\n%q", got, want)
		}
	})
}

func TestUpgradeResumesPartialDownload(t *testing.T) {
	withAndWithoutIndex(t, func(t *testing.T, d *oldData, rebuilt bool) {
		large := d.content.large
		if w := d.ask("GET", "acme/tools", "blobs", string(large)); w.Code != 200 || digest.FromBytes(w.Body.Bytes()) != large {
			t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
		}
		if l := d.hub.Ledger(); l.BlobGETs() != 1 || l.BlobBytes() != largeSize-largeHas {
			t.Errorf("upstream sent %d bytes, want the missing %d:\n%s", l.BlobBytes(), largeSize-largeHas, l)
		}
	})
}

// After a restart of the machine nobody knows what the disk has of an unfinished download.
func TestUpgradeFetchesPartialDownloadOfAnotherBootAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := openOldData(t, oldDataOptions{otherBoot: true})
		large := d.content.large
		if st := d.store.Stats(); st.Bytes >= largeHas {
			t.Errorf("%d bytes are in use: the unfinished download is still there", st.Bytes)
		}
		if w := d.ask("GET", "acme/tools", "blobs", string(large)); w.Code != 200 || digest.FromBytes(w.Body.Bytes()) != large {
			t.Errorf("%d, %d bytes", w.Code, w.Body.Len())
		}
		if l := d.hub.Ledger(); l.BlobBytes() != largeSize {
			t.Errorf("upstream sent %d bytes, want all:\n%s", l.BlobBytes(), l)
		}
	})
}
