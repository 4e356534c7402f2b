package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"
)

// tierOptions describe nodes, and the daemons that pull from them.
type tierOptions struct {
	seed           uint64
	nodes, daemons int
	shared         bool  // the nodes have a bucket and leases
	budget         int64 // of the disk of one node, in bytes
	catalogue      int64 // bytes of all images

	lasts time.Duration // how long the daemons pull
	every time.Duration // how often each of them does
	wave  time.Duration // when positive, all of them pull one new image, once, within that time

	tagTTL time.Duration

	// How long the first byte takes that comes from there, when nothing else goes on.
	disk, peer, bucket, upstream time.Duration

	// Bytes a second of one download from there, and of an upload.
	peerSpeed, bucketSpeed, upstreamSpeed, uploadSpeed float64
}

// soakSite are 1,000 daemons on 10 nodes, with catalogue, popularity and budget of the soak test.
var soakSite = tierOptions{
	seed: 1, nodes: 10, daemons: 1000, budget: 64 << 20, catalogue: 640 << 20,
	lasts: time.Hour, every: time.Minute, tagTTL: time.Minute,
	disk: 2500 * time.Microsecond, peer: 8 * time.Millisecond, bucket: 20 * time.Millisecond, upstream: 127 * time.Millisecond,
	peerSpeed: 200e6, bucketSpeed: 100e6, upstreamSpeed: 50e6, uploadSpeed: 50e6,
}

// tierResult is what daemons and nodes have asked for.
type tierResult struct {
	requested, fromDisk, joined           int64 // bytes; joined: of a download of the same node
	fromPeer, fromBucket, fromUpstream    int64 // bytes that a node has fetched
	inBucket                              int64 // bytes at the end
	heads, manifests, manifestsFromBucket int
	firsts                                []time.Duration
}

// soakImages returns the images of the soak test: a layer of 1 MiB that an eighth of the repositories
// share, and two of 128 KiB to 4 MiB for each of two tags.
func soakImages(catalogue int64) (images []*image) {
	id, bases := 0, make([]blob, 8)
	next := func(size int64) blob { id++; return blob{id, size} }
	for i := range bases {
		bases[i] = next(1 << 20)
	}
	for i, total := 0, int64(0); total < catalogue; i++ {
		for range 2 {
			size := int64(128<<10) << (i % 6)
			images = append(images, &image{id: len(images), layers: []blob{bases[i%8], next(size), next(size)}})
			total += 1<<20 + 2*size
		}
	}
	return images
}

// span is from when to when a download has bytes.
type span struct{ first, end time.Duration }

// tierNode is one node.
type tierNode struct {
	disk      policy
	coming    map[int]span // the last download of each blob
	manifests map[int]bool
	checked   map[int]time.Duration // until when a tag is fresh
}

// tierSim replays pulls on nodes.
type tierSim struct {
	tierOptions
	tierResult
	nodes    []*tierNode
	fetching map[int]span          // what a node fetches from the upstream, until the bucket has it
	uploaded map[int]time.Duration // from when the bucket has a blob
	known    map[int]bool          // manifests in the bucket
	checked  map[int]time.Duration // until when a tag is fresh by what any node was told
}

// simulate replays the pulls of all daemons. The same options have the same result.
func simulate(o tierOptions) tierResult {
	s := &tierSim{tierOptions: o, fetching: map[int]span{}, uploaded: map[int]time.Duration{}, known: map[int]bool{}, checked: map[int]time.Duration{}}
	for range o.nodes {
		s.nodes = append(s.nodes, &tierNode{newSegmented(0.25)(o.budget), map[int]span{}, map[int]bool{}, map[int]time.Duration{}})
	}
	rnd := rand.New(rand.NewPCG(o.seed, 1))
	images := soakImages(o.catalogue)
	zipf := rand.NewZipf(rnd, 1.1, 4, uint64(len(images)-1))
	type pull struct {
		at     time.Duration
		daemon int
		image  *image
	}
	var pulls []pull
	for d := range o.daemons {
		if o.wave > 0 {
			pulls = append(pulls, pull{within(rnd, o.wave), d, images[len(images)-1]})
			continue
		}
		for at := within(rnd, o.every); at < o.lasts; at += time.Duration(rnd.ExpFloat64() * float64(o.every)) {
			pulls = append(pulls, pull{at, d, images[zipf.Uint64()]})
		}
	}
	slices.SortStableFunc(pulls, func(a, b pull) int { return int(a.at - b.at) })
	for _, p := range pulls {
		s.pull(p.at, s.nodes[p.daemon%len(s.nodes)], p.image)
	}
	all := sizes(images)
	for id := range s.uploaded {
		s.inBucket += all[id]
	}
	slices.Sort(s.firsts)
	return s.tierResult
}

func within(rnd *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(rnd.Int64N(int64(most)))
}

func sizes(images []*image) map[int]int64 {
	all := map[int]int64{}
	for _, img := range images {
		for _, b := range img.layers {
			all[b.id] = b.size
		}
	}
	return all
}

// pull is one pull of an image that keeps nothing of earlier ones, as those of the soak test.
func (s *tierSim) pull(at time.Duration, n *tierNode, img *image) {
	s.manifest(at, n, img)
	for _, b := range img.layers {
		n.disk.touch(b)
	}
	for _, b := range img.layers {
		s.requested += b.size
		if n.disk.get(b) {
			first := s.disk
			if c := n.coming[b.id]; at < c.end {
				s.joined += b.size
				first += max(c.first-at, 0)
			} else {
				s.fromDisk += b.size
			}
			s.firsts = append(s.firsts, first)
			continue
		}
		c := s.fetch(at, b)
		n.coming[b.id] = c
		s.firsts = append(s.firsts, c.first-at+s.disk)
	}
}

// manifest counts what tag and manifest cost at the upstream.
func (s *tierSim) manifest(at time.Duration, n *tierNode, img *image) {
	if at >= n.checked[img.id] {
		fresh := at + s.tagTTL
		if s.shared && at < s.checked[img.id] {
			fresh = s.checked[img.id]
		} else {
			s.heads++
			s.checked[img.id] = fresh
		}
		n.checked[img.id] = fresh
	}
	if n.manifests[img.id] {
		return
	}
	n.manifests[img.id] = true
	if s.shared && s.known[img.id] {
		s.manifestsFromBucket++
		return
	}
	s.known[img.id] = true
	s.manifests++
}

// fetch brings a blob to a node that hasn't got it.
func (s *tierSim) fetch(at time.Duration, b blob) span {
	took := func(speed float64) time.Duration {
		return time.Duration(float64(b.size) / speed * float64(time.Second))
	}
	in, ok := s.uploaded[b.id]
	switch {
	case s.shared && ok && at >= in:
		s.fromBucket += b.size
		return span{at + s.bucket, at + s.bucket + took(s.bucketSpeed)}
	case s.shared && ok: // another node fetches it, or uploads it
		s.fromPeer += b.size
		f := s.fetching[b.id]
		first := max(f.first, at) + s.peer
		return span{first, max(f.end+s.peer, first+took(s.peerSpeed))}
	}
	s.fromUpstream += b.size
	f := span{at + s.upstream, at + s.upstream + took(s.upstreamSpeed)}
	s.fetching[b.id] = f
	s.uploaded[b.id] = f.end + took(s.uploadSpeed)
	return f
}

// quantile returns of sorted times the one that a share of them doesn't exceed.
func quantile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(share*float64(len(sorted)-1))]
}

// reportTier prints what the shared tier changes.
func reportTier(w io.Writer) {
	wave := soakSite
	wave.wave = 10 * time.Second
	half := soakSite
	half.budget = half.catalogue / 2
	for _, site := range []struct {
		name string
		tierOptions
	}{
		{"An hour: each daemon pulls once a minute, a node's disk holds a tenth of the catalogue", soakSite},
		{"The same, a node's disk holds half of the catalogue", half},
		{"A new image, which all daemons pull within 10 s", wave},
	} {
		alone, shared := site.tierOptions, site.tierOptions
		shared.shared = true
		a, b := simulate(alone), simulate(shared)
		fmt.Fprintf(w, "**%s**\n\n| | %d nodes alone | with the tier |\n|---|---|---|\n", site.name, alone.nodes)
		row := func(what string, of func(tierResult) string) {
			fmt.Fprintf(w, "| %s | %s | %s |\n", what, of(a), of(b))
		}
		mib := func(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }
		percent := func(part, of int64) string { return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(max(of, 1))) }
		row("requested", func(r tierResult) string { return mib(r.requested) })
		row("from the upstream", func(r tierResult) string { return mib(r.fromUpstream) })
		row("from the bucket", func(r tierResult) string { return mib(r.fromBucket) })
		row("from other nodes", func(r tierResult) string { return mib(r.fromPeer) })
		row("in the bucket at the end", func(r tierResult) string {
			if r.fromBucket+r.fromPeer == 0 {
				return "–"
			}
			return mib(r.inBucket)
		})
		row("byte hit ratio of the node's own disk, with shared downloads", func(r tierResult) string { return percent(r.fromDisk+r.joined, r.requested) })
		row("not from the upstream", func(r tierResult) string { return percent(r.requested-r.fromUpstream, r.requested) })
		row("HEADs of tags", func(r tierResult) string { return fmt.Sprint(r.heads) })
		row("manifests from the upstream (pulls)", func(r tierResult) string { return fmt.Sprint(r.manifests) })
		for _, q := range []float64{.5, .95, .99} {
			row(fmt.Sprintf("first byte of a layer, p%.0f", 100*q), func(r tierResult) string { return quantile(r.firsts, q).Round(100 * time.Microsecond).String() })
		}
		fmt.Fprintln(w)
	}
}
