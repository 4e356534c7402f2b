package prune

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// randomImages makes images as builders leave them: chains of intermediate images, images that
// share layers without a parent, names, and damaged ones. The digits are the seed.
func randomImages(seed uint64, n int) []Image {
	r := rand.New(rand.NewPCG(seed, 1))
	images := make([]Image, 0, n)
	for i := range n {
		img := Image{ID: fmt.Sprintf("sha256:%064d", i), Built: daysAgo(1000), Shared: -1}
		var diffs []string
		if i > 0 && r.IntN(4) > 0 {
			below := images[r.IntN(i)]
			if r.IntN(3) > 0 {
				img.Parent = below.ID
			}
			img.Layers = slices.Clone(below.Layers)
		}
		for range r.IntN(3) {
			diffs = append(diffs, fmt.Sprint("diff ", r.IntN(6)))
		}
		for _, l := range diffs {
			chain := fmt.Sprintf("%s/%s", img.top(), l)
			size := int64(len(chain)*7%90) * 100_000 // by the chain, so that it is the same in all images
			img.Layers = append(img.Layers, Layer{Chain: chain, Size: size, Cached: size * int64(len(chain)%5/4)})
		}
		for _, l := range img.Layers {
			img.Size += l.Size
		}
		if len(img.Layers) == 0 {
			img.Own = int64(r.IntN(9)) * 100_000
			img.Size = img.Own
		}
		switch r.IntN(6) {
		case 0:
			img.Tags = []string{fmt.Sprintf("app:%d", i)}
		case 1:
			img.Digests = []string{fmt.Sprintf("web@sha256:%064d", i)}
		case 2:
			if r.IntN(4) == 0 {
				img.Unreadable = "500"
			}
		}
		images = append(images, img)
	}
	return images
}

// bytesOf returns what images occupy together, without what the build cache has of them.
func bytesOf(images []Image) (n int64) {
	seen := map[string]bool{}
	for _, img := range images {
		n += img.Own
		for _, l := range img.Layers {
			if !seen[l.Chain] {
				seen[l.Chain] = true
				n += l.Size - l.Cached
			}
		}
	}
	return n
}

// FuzzPlan: whatever the images are, a plan predicts the bytes that its deletions free, deletes no
// image that one which stays was built on, deletes children first, and nothing in vain.
func FuzzPlan(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(seed, uint8(3+seed), uint32(seed*300_000), seed%2 == 0)
	}
	f.Fuzz(func(t *testing.T, seed uint64, n uint8, missing uint32, tagged bool) {
		images := randomImages(seed, int(n%50)+1)
		p := DefaultPolicy()
		p.Tagged = tagged
		decisions := Decide(Snapshot{Images: images}, p, old(images...), now)
		if len(decisions) != len(images) {
			t.Fatalf("%d decisions about %d images", len(decisions), len(images))
		}
		predicted := choose(decisions, holdersOf(images), int64(missing))
		gone := map[string]bool{}
		var sum int64
		for _, d := range decisions {
			if d.Action == Delete {
				gone[d.Image.ID] = true
				sum += d.Frees
			}
		}
		left := slices.DeleteFunc(slices.Clone(images), func(img Image) bool { return gone[img.ID] })
		if freed := bytesOf(images) - bytesOf(left); freed != sum || predicted != sum {
			t.Errorf("the disk gets %d bytes, the images say %d, and the plan %d", freed, sum, predicted)
		}
		for _, img := range left {
			if gone[img.Parent] {
				t.Errorf("%s stays, and its parent goes", img.ID)
			}
		}
		deleted := map[string]bool{}
		for _, d := range decisions {
			for _, img := range images {
				if d.Action == Delete && img.Parent == d.Image.ID && !deleted[img.ID] {
					t.Errorf("%s goes before %s, which was built on it", d.Image.ID, img.ID)
				}
			}
			deleted[d.Image.ID] = d.Action == Delete
		}
		for _, unit := range unitsOf(decisions) {
			if unit[0].Action != Delete {
				continue
			}
			kept, needed := slices.Clone(left), false
			for _, d := range unit {
				kept = append(kept, d.Image)
				needed = needed || gone[d.Image.Parent] // or its parent couldn't go
			}
			if !needed && bytesOf(kept) == bytesOf(left) {
				t.Errorf("the deletion of %s frees nothing", unit[0].Image.ID)
			}
		}
	})
}

// TestDryRunAndRunAgreeOnAnyHost makes a dry run and a run on engines with random images.
func TestDryRunAndRunAgreeOnAnyHost(t *testing.T) {
	for seed := range uint64(8) {
		e, c := newEngine(t, "1.41")
		digits := "0123456789abcdef"
		for i, img := range randomImages(seed, len(digits)) {
			parent := ""
			if img.Parent != "" {
				var n int
				if _, err := fmt.Sscanf(img.Parent, "sha256:%d", &n); err != nil {
					t.Fatal(err)
				}
				parent = digits[n : n+1]
			}
			var layers []layer
			for _, l := range img.Layers {
				layers = append(layers, layer{l.Chain, l.Size})
			}
			if len(layers) == 0 {
				layers = []layer{{img.ID, img.Own}}
			}
			e.addLayered(digits[i:i+1], parent, img.Tags, layers...)
		}
		p := newPruner(t, e, c)
		e.used = e.occupied()
		total := e.used*10/9 + 1
		p.stat = func(path string) (Disk, error) {
			d, err := e.disk(path)
			d.Total = total
			return d, err
		}
		t.Logf("seed %d: %s", seed, wantAgreement(t, e, p).Decision)
	}
}
