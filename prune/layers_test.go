package prune

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/image"
)

// deletedIDs returns the hex digits of the images that are or would be deleted, in order, with
// what each frees.
func deletedIDs(r Report) (ids string, frees []int64) {
	for _, d := range r.Images {
		if d.Action == Delete {
			ids += d.Image.ID[7:8]
			frees = append(frees, d.Frees)
		}
	}
	return ids, frees
}

// wantAgreement makes a dry run and then a run, and checks that they have the same images, the
// same order and the same bytes, and that these are the bytes that the disk got.
func wantAgreement(t *testing.T, e *fakeEngine, p *Pruner) Report {
	t.Helper()
	dry := mustRun(t, p, false)
	before := e.used
	r := mustRun(t, p, true)
	dryIDs, dryFrees := deletedIDs(dry)
	ids, frees := deletedIDs(r)
	if dryIDs != ids || !slices.Equal(dryFrees, frees) || dry.Predicted() != r.Predicted() || dry.Decision != r.Decision {
		t.Errorf("the dry run: %s %v (%s), the run: %s %v (%s)", dryIDs, dryFrees, dry.Decision, ids, frees, r.Decision)
	}
	if freed := before - e.used; freed != r.Predicted() {
		t.Errorf("the disk got %d bytes, and %d were predicted", freed, r.Predicted())
	}
	return r
}

// addBuild adds what the classic builder leaves: an image with a tag or none, and its two
// intermediate images, on the base image.
func addBuild(e *fakeEngine, digits string, size int64, tags ...string) {
	base := layer{"base", 200}
	step := layer{"step-" + digits, size}
	e.addLayered(digits[0:1], "0", nil, base)
	e.addLayered(digits[1:2], digits[0:1], nil, base, step)
	e.addLayered(digits[2:3], digits[1:2], tags, base, step)
}

// TestDeletedImageTakesItsIntermediatesAlong: what the classic builder leaves goes as one, and
// one of three builds is enough.
func TestDeletedImageTakesItsIntermediatesAlong(t *testing.T) {
	for _, version := range []string{"1.41", "1.55"} {
		e, c := newEngine(t, version)
		e.addLayered("0", "", []string{"base:1"}, layer{"base", 200})
		addBuild(e, "123", 150)
		addBuild(e, "456", 150)
		addBuild(e, "789", 150)
		r := wantAgreement(t, e, newPruner(t, e, c))
		wantDecision(t, r, Pruned, "")
		if left := e.imagesLeft(); left != "0456789" {
			t.Errorf("%s: left %s", version, left)
		}
		for _, d := range r.Images {
			if want := map[string]string{"1": id("3"), "2": id("3"), "4": id("6"), "5": id("6"), "7": id("9"), "8": id("9")}[d.Image.ID[7:8]]; d.With != want {
				t.Errorf("%s: %s goes with %q, want %q", version, d.Image.ID, d.With, want)
			}
		}
	}
}

// TestIntermediateStaysWhileAnImageNeedsIt: an intermediate image of two builds goes with the
// second one, or stays with it.
func TestIntermediateStaysWhileAnImageNeedsIt(t *testing.T) {
	base, shared := layer{"base", 200}, layer{"shared", 60}
	add := func(e *fakeEngine, tags ...string) {
		e.addLayered("0", "", []string{"base:1"}, base)
		e.addLayered("1", "0", nil, base, shared)
		e.addLayered("2", "1", nil, base, shared, layer{"x", 50})
		e.addLayered("3", "1", tags, base, shared, layer{"y", 50})
	}
	e, c := newEngine(t, "1.41")
	add(e, "app:1")
	r := wantAgreement(t, e, newPruner(t, e, c))
	wantDecision(t, r, Incomplete, "")
	if left := e.imagesLeft(); left != "013" || r.Predicted() != 50 {
		t.Errorf("left %s, predicted %d", left, r.Predicted())
	}
	e, c = newEngine(t, "1.41")
	add(e)
	r = wantAgreement(t, e, newPruner(t, e, c))
	if ids, frees := deletedIDs(r); ids != "231" || !slices.Equal(frees, []int64{50, 0, 110}) && !slices.Equal(frees, []int64{50, 50, 60}) {
		t.Errorf("deleted %s, which frees %v", ids, frees)
	}
}

// TestImageThatFreesNothingStays: of an image whose layers are all in images that stay, or in the
// build cache, the deletion helps nobody.
func TestImageThatFreesNothingStays(t *testing.T) {
	e, c := newEngine(t, "1.55")
	e.addLayered("a", "", nil, layer{"x", 300})                    // the same layers as an image with a tag
	e.addLayered("b", "", nil, layer{"y", 250})                    // built by BuildKit a moment ago
	e.addLayered("c", "", nil, layer{"x", 300}, layer{"own", 160}) // this one helps
	e.addLayered("d", "", []string{"app:1"}, layer{"x", 300})
	e.cache = []int64{250}
	r := wantAgreement(t, e, newPruner(t, e, c))
	wantDecision(t, r, Pruned, "")
	if left := e.imagesLeft(); left != "abd" || r.Predicted() != 160 {
		t.Errorf("left %s, predicted %d", left, r.Predicted())
	}
	for _, d := range r.Images {
		if digit := d.Image.ID[7:8]; (digit == "a" || digit == "b") && (d.Action != Deletable || !strings.Contains(d.Why, "free nothing")) {
			t.Errorf("%s: %s, %s", digit, d.Action, d.Why)
		}
	}
}

// TestBuildCacheHasBuildKitsLayers: of two layers of the same size, built in the same second, the
// build cache has that of the image without a parent. The classic builder doesn't use the cache.
func TestBuildCacheHasBuildKitsLayers(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.cache = []int64{100}
	s := Snapshot{Images: []Image{
		{ID: id("1"), Parent: id("9"), Layers: chains([]string{"classic"})},
		{ID: id("2"), Layers: chains([]string{"buildkit"})},
	}}
	sizes := map[string]int64{s.Images[0].top(): 100, s.Images[1].top(): 100}
	cached, err := s.cachedLayers(t.Context(), c, sizes, sizes)
	if err != nil || len(cached) != 1 || cached[s.Images[1].top()] != 100 {
		t.Errorf("%v, %v", cached, err)
	}
}

// TestTwoImagesWithTheSameLayersGoTogether: each alone frees nothing, and both together free it.
func TestTwoImagesWithTheSameLayersGoTogether(t *testing.T) {
	e, c := newEngine(t, "1.41")
	e.addLayered("a", "", nil, layer{"x", 160})
	e.addLayered("b", "", nil, layer{"x", 160})
	e.addLayered("c", "", nil, layer{"z", 160})
	r := wantAgreement(t, e, newPruner(t, e, c))
	if left := e.imagesLeft(); left != "c" || r.Decision != Pruned {
		t.Errorf("left %s, %s", left, r.Decision)
	}
}

// TestSpaceThatComesBackLateIsCounted: the file system frees three seconds after each deletion.
func TestSpaceThatComesBackLateIsCounted(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 6)
	p := newPruner(t, e, c)
	var shown []struct {
		at   time.Time
		used int64
	}
	used := int64(900)
	p.stat = func(path string) (Disk, error) {
		d, err := e.disk(path)
		shown = append(shown, struct {
			at   time.Time
			used int64
		}{time.Now(), d.Used})
		for _, s := range shown {
			if time.Since(s.at) >= 3*time.Second {
				used = min(used, s.used)
			}
		}
		d.Used = used
		return d, err
	}
	r := mustRun(t, p, true)
	wantDecision(t, r, Pruned, "")
	if left := e.imagesLeft(); left != "cdef" || r.Freed() != 200 {
		t.Errorf("left %s, freed %d: two images are enough", left, r.Freed())
	}
}

// TestDamagedImageStopsNoOther: the Engine can't show one image, for ever. It is kept with what it
// was built on, and the others are pruned.
func TestDamagedImageStopsNoOther(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 4)
	e.images = append(e.images, image.Summary{ID: id("f"), ParentID: id("a"), Size: 100, SharedSize: -1})
	e.fail["GET /images/"+id("f")+"/json"] = 500
	e.fail["GET /images/"+id("f")+"/history"] = 500
	p := newPruner(t, e, c)
	r := mustRun(t, p, true)
	wantDecision(t, r, Pruned, "")
	if left := e.imagesLeft(); left != "adf" {
		t.Errorf("left %s", left)
	}
	for _, d := range r.Images {
		if rule := map[string]Rule{"f": RuleUnreadable, "a": RuleChildren}[d.Image.ID[7:8]]; rule != "" && d.Rule != rule {
			t.Errorf("%s: %s by %s", d.Image.ID, d.Action, d.Rule)
		}
	}
}

// TestImageThatBecomesDamagedIsSkipped: the Engine can't show it any more when its turn comes.
func TestImageThatBecomesDamagedIsSkipped(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 4)
	e.before = func(request string) {
		if strings.HasPrefix(request, "DELETE") {
			e.mu.Lock()
			e.fail["GET /images/"+id("b")+"/json"] = 500
			e.mu.Unlock()
		}
	}
	r := mustRun(t, newPruner(t, e, c), true)
	wantDecision(t, r, Pruned, "")
	if left := e.imagesLeft(); left != "bd" {
		t.Errorf("left %s", left)
	}
}

// TestBaseByDigestIsKept: "FROM base@sha256:…" leaves an image without a tag. It stays as one with
// a tag does, also after all that was built on it has gone. So it is with BuildKit, which records
// no parents.
func TestBaseByDigestIsKept(t *testing.T) {
	for _, parent := range []string{"0", ""} {
		e, c := newEngine(t, "1.41")
		e.addLayered("0", "", nil, layer{"base", 200})
		e.addLayered("1", "", nil, layer{"newer", 1})
		e.addLayered("2", parent, nil, layer{"base", 200}, layer{"app", 300})
		e.images[0].RepoDigests, e.images[1].RepoDigests = []string{digestRef("base", "a")}, []string{digestRef("base", "b")}
		e.images[0].Created, e.images[1].Created = 1, 2
		p := newPruner(t, e, c)
		p.Policy.Low = 0.01
		for range 2 {
			mustRun(t, p, true)
			if left := e.imagesLeft(); left != "01" {
				t.Errorf("parent %q: left %s", parent, left)
			}
			e.mu.Lock()
			e.used = 990
			e.mu.Unlock()
		}
		p.Policy.Tagged = true
		mustRun(t, p, true)
		if left := e.imagesLeft(); left != "1" {
			t.Errorf("parent %q: with --tagged left %s, want the newest of the repository", parent, left)
		}
	}
}

// TestLayerSizesAreToldByHistory checks which steps of a history are layers.
func TestLayerSizesAreToldByHistory(t *testing.T) {
	step := func(by string, size int64) image.HistoryResponseItem {
		return image.HistoryResponseItem{CreatedBy: by, Size: size}
	}
	history := []image.HistoryResponseItem{ // the latest first
		step(`CMD ["x"]`, 0), step("COPY f /f # buildkit", 10), step("WORKDIR /app", 0),
		step("/bin/sh -c #(nop)  ENV A=1", 0), step("/bin/sh -c true", 0), step("", 20),
	}
	for n, want := range map[int][]int64{2: {20, 10}, 4: {20, 0, 0, 10}, 3: nil} {
		if got := historySizes(history, n); !slices.Equal(got, want) {
			t.Errorf("%d layers: %v, want %v", n, got, want)
		}
	}
}

// TestPackedLayersCount: containerd's store has each layer twice, and the sizes of its images have
// both. The build cache holds only the unpacked ones.
func TestPackedLayersCount(t *testing.T) {
	img := func(digit, parent string, size, shared int64, diffs ...string) Image {
		i := Image{ID: id(digit), Size: size, Shared: shared, Layers: chains(diffs)}
		if parent != "" {
			i.Parent = id(parent)
		}
		return i
	}
	images := []Image{
		img("1", "", 140, 140, "base"),
		img("2", "", 140+150, 140, "base", "a"), // unpacked 100, packed 50
		img("3", "", 140+110, 140, "base", "b"), // unpacked 100, packed 10
	}
	unpacked := map[string]int64{chains([]string{"base"})[0].Chain: 70, images[1].top(): 100, images[2].top(): 100}
	sizes := layerSizes(images, unpacked)
	for i, want := range []int64{140, 150, 110} {
		if got := sizes[images[i].top()]; got != want {
			t.Errorf("the last layer of image %d has %d bytes, want %d", i+1, got, want)
		}
	}
}

// TestPackedLayersThatAreSharedOnDocker28: what that engine said of four images with the layers base,
// shared and work, and each its own, which take 12,589,058 bytes packed and unpacked. Their shared sizes
// are those of the unpacked layers alone.
func TestPackedLayersThatAreSharedOnDocker28(t *testing.T) {
	img := func(digit, parent string, size, shared int64, diffs ...string) Image {
		return Image{ID: id(digit), Parent: parent, Size: size, Shared: shared, Layers: chains(diffs)}
	}
	s := Snapshot{Containerd: true, Images: []Image{
		img("1", "", 3059895, 1994752, "base"),
		img("2", id("1"), 11454691, 6193152, "base", "shared"),
		img("3", id("2"), 11492046, 6201344, "base", "shared", "work"),
		img("4", id("3"), 24081691, 12496896, "base", "shared", "work", "classic"),
		img("5", id("4"), 24081813, 12496896, "base", "shared", "work", "classic"),
		img("6", "", 24052999, 6201344, "base", "copied", "moved", "own 6"), // of BuildKit
		img("7", "", 24053003, 6201344, "base", "copied", "moved", "own 7"),
	}}
	unpacked := map[string]int64{}
	for _, i := range s.Images {
		for j, size := range []int64{1994752, 4198400, 8192, 6295552}[:len(i.Layers)] {
			unpacked[i.Layers[j].Chain] = size
		}
	}
	if !packedSharesMissing(s.Images, unpacked) {
		t.Fatal("the packed layers count as shared")
	}
	for i := range s.Images {
		s.Images[i].Shared = -1
	}
	sizes := layerSizes(s.Images, unpacked)
	for _, i := range s.Images[4:] {
		if got, want := sizes[i.top()], int64(12589058); max(got-want, want-got) > want/200 {
			t.Errorf("the last layer of %s has %d bytes, want about %d", i.ID[7:8], got, want)
		}
	}
	// The build cache has the layers of the images that BuildKit made.
	e, c := newEngine(t, "1.51")
	e.cache = []int64{1064447, 8394118, 12589058, 8285, 12589062}
	cached, err := s.cachedLayers(t.Context(), c, unpacked, sizes)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]int64{4: 0, 5: 6295552, 6: 6295552} {
		if got := cached[s.Images[n].top()]; got != want {
			t.Errorf("the build cache has %d bytes of the last layer of %s, want %d", got, s.Images[n].ID[7:8], want)
		}
	}

	// An engine that counts the packed layers too, as Docker 29 does, is believed.
	for i := range s.Images {
		s.Images[i].Shared = s.Images[i].Size - 100
	}
	if packedSharesMissing(s.Images, unpacked) {
		t.Error("the packed layers don't count as shared")
	}
}

// TestUnreadableImageHoldsItsLayers: f has the layer base too, but the Engine can't show it. So the
// deletion of a and b frees less than they have.
func TestUnreadableImageHoldsItsLayers(t *testing.T) {
	for name, shared := range map[string]int64{"it shares the base": 60, "it shares nothing": 0} {
		e, c := newEngine(t, "1.51")
		e.addLayered("a", "", nil, layer{"base", 60}, layer{"a", 30})
		e.addLayered("b", "", nil, layer{"base", 60}, layer{"b", 40})
		e.addLayered("f", "", nil, layer{"base", 60}, layer{"f", 10})
		for i, unique := range []int64{30, 40, 70 - shared} {
			e.images[i].SharedSize = e.images[i].Size - unique
		}
		e.fail["GET /images/"+id("f")+"/json"] = 500
		e.fail["GET /images/"+id("f")+"/history"] = 500
		p := newPruner(t, e, c)
		p.Policy.Low = 0.6
		want := int64(130)
		if shared > 0 {
			want = 70
		}
		if r := mustRun(t, p, false); r.Predicted() != want {
			t.Errorf("%s: a dry run would free %d bytes, want %d", name, r.Predicted(), want)
		}
	}
}

// TestImageThatGoesDuringTheSnapshot: it isn't damaged, and it is no error. One that stays in the list
// and can't be found is damaged.
func TestImageThatGoesDuringTheSnapshot(t *testing.T) {
	e, c := newEngine(t, "1.51")
	addOrphans(e, 3)
	e.fail["GET /images/"+id("c")+"/json"] = 404
	e.before = func(request string) {
		if request == "GET /images/"+id("b")+"/json" {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.images = slices.DeleteFunc(e.images, func(s image.Summary) bool { return s.ID == id("b") })
		}
	}
	s, err := TakeSnapshot(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, img := range s.Images {
		got = append(got, img.ID[7:8])
		if (img.Unreadable != "") != (img.ID == id("c")) {
			t.Errorf("image %s: %q", img.ID[7:8], img.Unreadable)
		}
	}
	if !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("images %q, want a and c", got)
	}
}
