package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

const dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"

// content makes blobs and manifests.
type content map[digest.Digest][]byte

func (c content) put(b []byte) digest.Digest {
	d := digest.FromBytes(b)
	c[d] = b
	return d
}

// image makes the manifest of an image with such layers.
func (c content) image(layers ...string) digest.Digest {
	m := v1.Manifest{MediaType: dockerManifest, Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: c.put(fmt.Appendf(nil, `{"of":%q}`, digest.FromString(strings.Join(layers, "+"))))}}
	m.SchemaVersion = 2
	m.Config.Size = int64(len(c[m.Config.Digest]))
	for _, l := range layers {
		d := c.put([]byte(l))
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(l))})
	}
	return c.json(m)
}

// index makes an index without a media type of its own, as some tools do.
func (c content) index(of ...digest.Digest) digest.Digest {
	i := v1.Index{}
	i.SchemaVersion = 2
	for n, d := range of {
		i.Manifests = append(i.Manifests, v1.Descriptor{MediaType: dockerManifest, Digest: d, Size: int64(len(c[d])), Platform: &v1.Platform{OS: "linux", Architecture: []string{"amd64", "arm64", "s390x"}[n]}})
	}
	return c.json(i)
}

func (c content) json(v any) digest.Digest {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		panic(err)
	}
	return c.put(b)
}

// registry2 writes the data directory of a registry.
type registryDir struct {
	t    *testing.T
	root string
}

func (c content) registryDir(t *testing.T) registryDir {
	r := registryDir{t, t.TempDir()}
	for d, b := range c {
		r.write("blobs/"+d.Algorithm().String()+"/"+d.Encoded()[:2]+"/"+d.Encoded()+"/data", b, time.Now())
	}
	os.MkdirAll(filepath.Join(r.root, "docker/registry/v2/repositories"), 0o700)
	return r
}

func (r registryDir) write(path string, b []byte, at time.Time) {
	r.t.Helper()
	path = filepath.Join(r.root, "docker/registry/v2", path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600), os.Chtimes(path, at, at)); err != nil {
		r.t.Fatal(err)
	}
}

func (r registryDir) revision(repository string, d digest.Digest, at time.Time) {
	r.write("repositories/"+repository+"/_manifests/revisions/sha256/"+d.Encoded()+"/link", []byte(d), at)
}

func (r registryDir) tag(repository, tag string, d digest.Digest, at time.Time) {
	r.write("repositories/"+repository+"/_manifests/tags/"+tag+"/current/link", []byte(d), at)
	r.revision(repository, d, at)
}

func (r registryDir) open() Source {
	r.t.Helper()
	src, err := OpenSource(r.root, Naming{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { src.Close() })
	return src
}

func openStore(t *testing.T, dir string) *storage.Store {
	t.Helper()
	s, err := storage.Open(storage.Options{Dir: dir, Budget: 1 << 30, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newStore(t *testing.T) *storage.Store {
	s := openStore(t, t.TempDir())
	t.Cleanup(func() { s.Close() })
	return s
}

// bring plans and runs an import.
func bring(t *testing.T, src Source, s *storage.Store, room int64, o Options) (*Plan, Result) {
	t.Helper()
	p, err := MakePlan(t.Context(), src, s, room)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), p, src, s, o)
	if err != nil {
		t.Fatal(err)
	}
	return p, r
}

func references(images []Image) (refs []string) {
	for _, i := range images {
		refs = append(refs, i.Reference())
	}
	return refs
}

func planned(p *Plan) (refs []string) {
	for _, i := range p.Images {
		refs = append(refs, i.Reference())
	}
	return refs
}

// holds checks that the store has an image byte for byte, linked to its repository.
func (c content) holds(t *testing.T, s *storage.Store, repository string, d digest.Digest, mediaType string) {
	t.Helper()
	m, err := s.Manifest(d)
	if err != nil || !bytes.Equal(m.Body, c[d]) || m.MediaType != mediaType {
		t.Fatalf("manifest %s: %v, %+v; want %s of %s", d, err, m, c[d], mediaType)
	}
	for _, child := range m.Children {
		if _, err := s.Link(repository, child.Digest); err != nil {
			t.Errorf("%s isn't linked to %s: %v", child.Digest, repository, err)
		}
		b, err := s.Open(child.Digest)
		if err != nil {
			t.Errorf("%s of %s: %v", child.Digest, d, err)
			continue
		}
		got, err := io.ReadAll(b.File)
		b.Close()
		if err != nil || !bytes.Equal(got, c[child.Digest]) {
			t.Errorf("%s: %v, %d bytes", child.Digest, err, len(got))
		}
	}
}

// TestRegistry2ComesIn: tags, an image that has no tag, and an index of which one platform is
// there, as a registry in proxy mode leaves them; with the times of its files and its scheduler.
func TestRegistry2ComesIn(t *testing.T) {
	c := content{}
	one, two, swarm := c.image("base", "one"), c.image("base", strings.Repeat("two", 1<<20)), c.image("swarm")
	absent := digest.FromString("a platform that nobody pulled")
	c[absent] = []byte("x") // only its size is needed to name it
	index := c.index(two, absent)
	delete(c, absent)
	r := c.registryDir(t)
	now := time.Now().Truncate(time.Second)
	day := func(n int) time.Time { return now.Add(-time.Duration(n) * 24 * time.Hour) }
	r.tag("library/redis", "7", one, day(30))
	r.tag("library/redis", "8", index, day(20))
	r.revision("library/redis", two, day(20))
	r.revision("org/deep/app", swarm, day(1)) // Docker Hub has no such name
	r.revision("org/app", swarm, day(10))
	state := fmt.Sprintf(`{"library/redis@%s":{"Key":"x","ExpiryData":%q,"EntryType":1}}`, one, day(2).Add(scheduledFor).Format(time.RFC3339))
	if err := os.WriteFile(filepath.Join(r.root, "scheduler-state.json"), []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}

	s := newStore(t)
	p, done := bring(t, r.open(), s, 1<<30, Options{Public: true})
	want := []string{"docker.io/library/redis:8", "docker.io/org/app@" + swarm.String(), "docker.io/library/redis:7"} // by last use
	if got := planned(p); !slices.Equal(got, want) {
		t.Errorf("images %v, want %v", got, want)
	}
	if len(p.Problems) != 1 || !strings.Contains(p.Problems[0], "org/deep/app") || len(done.Problems) > 0 || done.Images != 3 || done.Bytes != p.Bytes {
		t.Errorf("problems %v, %+v; the plan has %d bytes", p.Problems, done, p.Bytes)
	}
	c.holds(t, s, "docker.io/library/redis", one, dockerManifest)
	c.holds(t, s, "docker.io/library/redis", two, dockerManifest)
	c.holds(t, s, "docker.io/org/app", swarm, dockerManifest)
	if m, err := s.Manifest(index); err != nil || !bytes.Equal(m.Body, c[index]) || m.MediaType != v1.MediaTypeImageIndex {
		t.Errorf("the index: %v, %+v", err, m)
	}
	if tag, err := s.Tag("docker.io/library/redis", "7"); err != nil || tag.Digest != one || tag.MediaType != dockerManifest || !tag.Checked.Equal(day(30)) {
		t.Errorf("redis:7: %v, %+v", err, tag)
	}
	for d, at := range map[digest.Digest]time.Time{one: day(2), index: day(20), two: day(20), swarm: day(10), digest.FromString("base"): day(2)} {
		if e, ok := s.Entry(d); !ok || !e.LastUse.Equal(at) {
			t.Errorf("%s was last used %v, want %v", d, e.LastUse, at)
		}
	}
	if v, err := s.Visibility("docker.io/org/app"); err != nil || !v.Public {
		t.Errorf("the operator's word counts for nothing: %v, %v", v, err)
	}

	again, err := MakePlan(t.Context(), r.open(), s, 1<<30)
	if err != nil || again.Bytes != 0 {
		t.Errorf("a second import has %d bytes, %v", again.Bytes, err)
	}
}

// TestLastUsesOutliveTheIndex: what came in counts as used when it was, also when the index is
// lost.
func TestLastUsesOutliveTheIndex(t *testing.T) {
	c := content{}
	old := c.image("old")
	r := c.registryDir(t)
	at := time.Now().Add(-90 * 24 * time.Hour).Truncate(time.Second)
	r.tag("library/old", "1", old, at)
	dir := t.TempDir()
	s := openStore(t, dir)
	bring(t, r.open(), s, 1<<30, Options{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	defer s.Close()
	for _, d := range []digest.Digest{old, digest.FromString("old")} {
		if e, ok := s.Entry(d); !ok || !e.LastUse.Equal(at) {
			t.Errorf("%s: used %v, want %v", d, e.LastUse, at)
		}
	}
}

// TestTheOldestAreLeftOut, and what is in the cache stays.
func TestTheOldestAreLeftOut(t *testing.T) {
	c := content{}
	fill := func(s string) string { return strings.Repeat(s, 1<<20) }
	var all []digest.Digest
	for n := range 5 {
		all = append(all, c.image(fill(string(rune('a'+n))), fill("shared")[:1<<20]))
	}
	huge := c.image(fill("huge!"))
	r := c.registryDir(t)
	for n, d := range all {
		r.tag("org/app", fmt.Sprint(n), d, time.Now().Add(-time.Duration(n+1)*time.Hour))
	}
	r.tag("org/huge", "1", huge, time.Now().Add(-time.Minute))
	s := newStore(t)
	const room = 4<<20 + 1<<16 // for three, and what they share
	p, done := bring(t, r.open(), s, room, Options{})
	if got, want := planned(p), []string{"docker.io/org/app:2", "docker.io/org/app:1", "docker.io/org/app:0"}; !slices.Equal(got, want) {
		t.Errorf("came in: %v, want %v", got, want)
	}
	if got, want := references(p.NoRoom), []string{"docker.io/org/huge:1", "docker.io/org/app:3", "docker.io/org/app:4"}; !slices.Equal(got, want) {
		t.Errorf("left out: %v, want %v", got, want)
	}
	if st := s.Stats(); st.Bytes != done.Bytes || st.Bytes > room || st.Evictions > 0 {
		t.Errorf("%d bytes, %d evictions; %d came in", st.Bytes, st.Evictions, done.Bytes)
	}
}

// TestDamageIsLeftOut: neither a wrong layer nor a wrong manifest comes in, all else does, and the
// report names both.
func TestDamageIsLeftOut(t *testing.T) {
	c := content{}
	good, bad, worse := c.image("good"), c.image("bad", "good"), c.image("worse")
	r := c.registryDir(t)
	blob := func(d digest.Digest) string { return "blobs/sha256/" + d.Encoded()[:2] + "/" + d.Encoded() + "/data" }
	for n, d := range []digest.Digest{good, bad, worse} {
		r.tag("org/app", []string{"good", "bad", "worse"}[n], d, time.Now().Add(-time.Hour))
	}
	r.write(blob(digest.FromString("bad")), []byte("BAD"), time.Now())
	r.write(blob(worse), []byte("{}"), time.Now())
	r.write("repositories/org/app/_manifests/tags/empty/current/link", nil, time.Now())
	s := newStore(t)
	p, done := bring(t, r.open(), s, 1<<30, Options{})
	c.holds(t, s, "docker.io/org/app", good, dockerManifest)
	if _, ok := s.Has(digest.FromString("bad")); ok {
		t.Error("a damaged layer came in")
	}
	if _, err := s.Tag("docker.io/org/app", "worse"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the tag of a damaged manifest: %v", err)
	}
	if got := strings.Join(append(p.Problems, done.Problems...), "\n"); strings.Count(got, "\n") != 2 ||
		!strings.Contains(got, "org/app:empty") || !strings.Contains(got, "org/app:worse: "+worse.String()+" is damaged") || !strings.Contains(got, "org/app:bad: "+digest.FromString("bad").String()) {
		t.Errorf("problems:\n%s", got)
	}
}

// TestInterruptedImportGoesOn: what came in stays, the bytes of a layer that had come in half are
// not lost, and nothing comes twice.
func TestInterruptedImportGoesOn(t *testing.T) {
	c := content{}
	one, two := c.image("one"), c.image("two", strings.Repeat("x", 2<<20))
	r := c.registryDir(t)
	r.tag("org/app", "one", one, time.Now().Add(-2*time.Hour))
	r.tag("org/app", "two", two, time.Now().Add(-time.Hour))
	s := newStore(t)
	p, err := MakePlan(t.Context(), r.open(), s, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var came int64
	_, err = Run(ctx, p, r.open(), s, Options{Progress: func(n int64) {
		if came += n; came > int64(len("one")) {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if _, done := bring(t, r.open(), s, 1<<30, Options{}); came+done.Bytes != p.Bytes {
		t.Errorf("%d bytes, then %d; the plan had %d", came, done.Bytes, p.Bytes)
	}
	c.holds(t, s, "docker.io/org/app", one, dockerManifest)
	c.holds(t, s, "docker.io/org/app", two, dockerManifest)
}

// TestMoveLeavesNothingBehind but what didn't come in.
func TestMoveLeavesNothingBehind(t *testing.T) {
	c := content{}
	one, two := c.image("base", "one"), c.image("base", "two")
	index := c.index(one, two)
	r := c.registryDir(t)
	r.tag("org/app", "1", index, time.Now())
	r.tag("org/other", "1", two, time.Now().Add(-time.Hour))
	s := newStore(t)
	bring(t, r.open(), s, 1<<30, Options{Move: true})
	c.holds(t, s, "docker.io/org/app", one, dockerManifest)
	c.holds(t, s, "docker.io/org/other", two, dockerManifest)
	left, err := filepath.Glob(filepath.Join(r.root, "docker/registry/v2/blobs/*/*/*/data"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestNewerTagStays: what the cache knows from later than the import.
func TestNewerTagStays(t *testing.T) {
	c := content{}
	old, now := c.image("old"), c.image("now")
	r := c.registryDir(t)
	r.tag("org/app", "1", old, time.Now().Add(-time.Hour))
	s := newStore(t)
	s.PutManifest(storage.Origin{Repository: "docker.io/org/app"}, now, dockerManifest, c[now])
	s.SetTag("docker.io/org/app", "1", storage.Tag{Digest: now, MediaType: dockerManifest, Checked: time.Now()})
	bring(t, r.open(), s, 1<<30, Options{})
	if tag, err := s.Tag("docker.io/org/app", "1"); err != nil || tag.Digest != now {
		t.Errorf("%v, %+v", err, tag)
	}
}

// export writes an archive into a file.
func export(t *testing.T, s *storage.Store, refs ...string) string {
	t.Helper()
	var wanted []Wanted
	for _, text := range refs {
		ref, err := name.ParseReference(text)
		if err != nil {
			t.Fatal(err)
		}
		wanted = append(wanted, Wanted{Reference: ref})
	}
	a, err := NewArchive(s, wanted)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "images.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := a.Write(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != a.Size() {
		t.Errorf("%d bytes, %v; %d were announced", fi.Size(), err, a.Size())
	}
	return path
}

// TestRoundTrip: what one cache exports, another imports: byte for byte, tags and digests, and of an
// index those platforms that were cached.
func TestRoundTrip(t *testing.T) {
	c := content{}
	one, two, third := c.image("base", "one"), c.image("base", "two"), c.image("third")
	index := c.index(one, two)
	r := c.registryDir(t)
	r.tag("library/redis", "7", index, time.Now())
	r.tag("org/app", "1", third, time.Now())
	a := newStore(t)
	bring(t, r.open(), a, 1<<30, Options{})
	a.Remove(digest.FromString("two")) // so one platform isn't whole
	path := export(t, a, "redis:7", "org/app@"+third.String())

	b := newStore(t)
	src, err := OpenSource(path, Naming{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	p, _ := bring(t, src, b, 1<<30, Options{})
	if got, want := planned(p), []string{"docker.io/org/app@" + third.String(), "docker.io/library/redis:7"}; !slices.Equal(got, want) {
		t.Errorf("came in: %v, want %v", got, want)
	}
	c.holds(t, b, "docker.io/library/redis", one, dockerManifest)
	c.holds(t, b, "docker.io/org/app", third, dockerManifest)
	if m, err := b.Manifest(index); err != nil || !bytes.Equal(m.Body, c[index]) || m.MediaType != v1.MediaTypeImageIndex {
		t.Errorf("index: %v, %+v", err, m)
	}
	if _, ok := b.Has(two); ok {
		t.Error("a platform without its layers came along")
	}
	if err := archiveError(b, "docker.io/library/nothing:1"); !errors.Is(err, ErrNotCached) || !strings.Contains(err.Error(), "docker.io/library/nothing:1 is not cached") {
		t.Errorf("what isn't cached: %v", err)
	}
	if err := archiveError(a, "redis@"+two.String()); !errors.Is(err, ErrNotComplete) {
		t.Errorf("what isn't whole: %v", err)
	}
}

// TestReferrersComeAlong: what refers to a manifest of an image, and to that, is exported and imported with
// it, but for what isn't cached as a whole or refers to something else. A list that is there already stays.
func TestReferrersComeAlong(t *testing.T) {
	const repository = "docker.io/library/redis"
	c := content{}
	one, third := c.image("base", "one"), c.image("third")
	index := c.index(one)
	r := c.registryDir(t)
	r.tag("library/redis", "7", index, time.Now())
	r.tag("library/redis", "8", third, time.Now())
	a := newStore(t)
	bring(t, r.open(), a, 1<<30, Options{})
	artifact := func(subject digest.Digest, layer string) v1.Descriptor {
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/x-signature", Config: v1.DescriptorEmptyJSON, Layers: []v1.Descriptor{{Digest: digest.FromString(layer), Size: int64(len(layer))}}}
		m.SchemaVersion = 2
		m.Subject = &v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: subject, Size: int64(len(c[subject]))}
		d := c.json(m)
		for _, b := range [][]byte{v1.DescriptorEmptyJSON.Data, []byte(layer)} {
			if layer == "missing" {
				continue
			}
			in, err := a.Begin(storage.Origin{Repository: repository}, digest.FromBytes(b), int64(len(b)))
			if errors.Is(err, fs.ErrExist) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := in.WriteAt(b, 0); err != nil {
				t.Fatal(err)
			}
			if err := in.Commit(); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.PutManifest(storage.Origin{Repository: repository}, d, v1.MediaTypeImageManifest, c[d]); err != nil {
			t.Fatal(err)
		}
		return v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: d, Size: int64(len(c[d])), ArtifactType: "application/x-signature"}
	}
	list := func(s *storage.Store, subject digest.Digest, all ...v1.Descriptor) {
		body, err := json.Marshal(v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: all})
		if err == nil {
			err = s.SetReferrers(storage.Origin{Repository: repository}, subject, v1.MediaTypeImageIndex, body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	signature, ofThird := artifact(one, "signature"), artifact(third, "third's")
	timestamp := artifact(signature.Digest, "timestamp")
	list(a, one, signature, artifact(one, "missing"), ofThird)
	list(a, signature.Digest, timestamp)
	list(a, third, ofThird)
	path := export(t, a, "redis:7", "redis:8")

	b := newStore(t)
	src, err := OpenSource(path, Naming{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	p, res := bring(t, src, b, 1<<30, Options{})
	if len(p.Images) != 2 || len(p.Problems)+len(res.Problems) > 0 || p.Images[0].Partial || p.Images[1].Partial {
		t.Fatalf("%+v, %+v", p, res)
	}
	for subject, want := range map[digest.Digest]v1.Descriptor{one: signature, signature.Digest: timestamp, third: ofThird} {
		var got v1.Index
		m, err := b.Referrers(repository, subject)
		if err == nil {
			err = json.Unmarshal(m.Body, &got)
		}
		if err != nil || len(got.Manifests) != 1 || got.Manifests[0].Digest != want.Digest || got.Manifests[0].ArtifactType != want.ArtifactType {
			t.Errorf("what refers to %s: %+v, %v", subject, got.Manifests, err)
		}
		if m, err := b.Manifest(want.Digest); err != nil || !bytes.Equal(m.Body, c[want.Digest]) {
			t.Errorf("%s: %v", want.Digest, err)
		}
	}
	list(b, one)
	bring(t, src, b, 1<<30, Options{})
	if m, err := b.Referrers(repository, one); err != nil || bytes.Contains(m.Body, []byte(signature.Digest)) {
		t.Errorf("the upstream's own list: %v", err)
	}
}

func archiveError(s *storage.Store, text string) error {
	ref, err := name.ParseReference(text)
	if err != nil {
		return err
	}
	_, err = NewArchive(s, []Wanted{{Reference: ref}})
	return err
}

// TestPrivateImagesAreExportedByNameOnly, and not because a compose file names them.
func TestPrivateImagesAreExportedByNameOnly(t *testing.T) {
	c := content{}
	d := c.image("secret")
	r := c.registryDir(t)
	r.tag("org/secret", "1", d, time.Now())
	s := newStore(t)
	bring(t, r.open(), s, 1<<30, Options{Private: func(string) bool { return true }})
	ref := name.Reference{Repository: "docker.io/org/secret", Tag: "1"}
	if _, err := NewArchive(s, []Wanted{{ref, true}}); !errors.Is(err, ErrPrivate) {
		t.Errorf("named by a file: %v", err)
	}
	if _, err := NewArchive(s, []Wanted{{ref, false}}); err != nil {
		t.Errorf("named: %v", err)
	}
}

// TestWhatNoEngineCanRunIsExported: in a manifest from the upstream anything may stand for a digest. The
// image comes along, and docker load isn't told of it.
func TestWhatNoEngineCanRunIsExported(t *testing.T) {
	s := newStore(t)
	for n, body := range []string{
		`{"config":{"mediaType":"` + v1.MediaTypeImageConfig + `","digest":"nonsense"},"layers":[]}`,
		`{"config":{"mediaType":"` + v1.MediaTypeImageConfig + `"},"layers":[{"digest":"nonsense"}]}`,
	} {
		d := digest.FromString(body)
		if err := s.PutManifest(storage.Origin{Repository: "docker.io/org/odd"}, d, v1.MediaTypeImageManifest, []byte(body)); err != nil {
			t.Fatal(err)
		}
		a, err := NewArchive(s, []Wanted{{Reference: name.Reference{Repository: "docker.io/org/odd", Digest: d}}})
		if err != nil {
			t.Fatal(n, err)
		}
		if list := string(a.head[2].body); list != "[]" || len(a.blobs) != 1 {
			t.Errorf("%d: manifest.json is %s, with %d blobs", n, list, len(a.blobs))
		}
	}
}

// TestWrongBytesAreNotExported: a blob that has changed on disk ends the export before its last
// byte, and leaves the store.
func TestWrongBytesAreNotExported(t *testing.T) {
	c := content{}
	d := c.image("layer")
	r := c.registryDir(t)
	r.tag("org/app", "1", d, time.Now())
	dir := t.TempDir()
	s := openStore(t, dir)
	defer s.Close()
	bring(t, r.open(), s, 1<<30, Options{})
	layer := digest.FromString("layer")
	path := filepath.Join(dir, "blobs/sha256", layer.Encoded()[:2], layer.Encoded())
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(path, 0o600), overwrite(path, "LAYER"), os.Chtimes(path, time.Now(), fi.ModTime())); err != nil {
		t.Fatal(err)
	}
	a, err := NewArchive(s, []Wanted{{Reference: name.Reference{Repository: "docker.io/org/app", Tag: "1"}}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := a.Write(t.Context(), &out); !errors.Is(err, storage.ErrDigest) || strings.Contains(out.String(), "LAYER") {
		t.Errorf("error %v", err)
	}
	if _, ok := s.Has(layer); ok {
		t.Error("the wrong bytes are still in the store")
	}
}

func overwrite(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// TestWhatIsNoSource: each is refused with what it is, or what to do.
func TestWhatIsNoSource(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("old/manifest.json", "[]")
	file("nameless/index.json", `{"manifests":[{"digest":"`+digest.FromString("x").String()+`"}]}`)
	file("tagonly/index.json", `{"manifests":[{"digest":"`+digest.FromString("x").String()+`","annotations":{"org.opencontainers.image.ref.name":"7"}}]}`)
	for path, want := range map[string]string{
		filepath.Join(dir, "old"):           "what an older docker save wrote",
		filepath.Join(dir, "nothing"):       "no such file",
		dir:                                 "neither the data directory of a registry:2 nor an OCI layout",
		file("text", "hello"):               "no whole tar",
		file("packed.tar.gz", "\x1f\x8b.."): "compressed with gzip",
		filepath.Join(dir, "nameless"):      "--as docker.io/library/redis:7",
		filepath.Join(dir, "tagonly"):       `is called "7", which is no whole name`,
	} {
		src, err := OpenSource(path, Naming{})
		if err == nil {
			_, err = MakePlan(t.Context(), src, nil, 1<<30)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestNameFromTheCommand: --as names the one image of a layout.
func TestNameFromTheCommand(t *testing.T) {
	c := content{}
	d := c.image("x")
	dir := t.TempDir()
	put := func(path string, b []byte) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700), os.WriteFile(filepath.Join(dir, path), b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for d, b := range c {
		put("blobs/sha256/"+d.Encoded(), b)
	}
	put("index.json", fmt.Appendf(nil, `{"manifests":[{"mediaType":%q,"digest":%q,"annotations":{"org.opencontainers.image.ref.name":"7"}}]}`, dockerManifest, d))
	src, err := OpenSource(dir, Naming{As: "redis:7"})
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	bring(t, src, s, 1<<30, Options{})
	if tag, err := s.Tag("docker.io/library/redis", "7"); err != nil || tag.Digest != d {
		t.Errorf("%v, %+v", err, tag)
	}
}
