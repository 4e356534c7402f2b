package main

import (
	"math"
	"math/rand/v2"
)

// blob is a layer or a config.
type blob struct {
	id   int
	size int64
}

// image has base layers, which it shares with other images, and layers of its own.
type image struct {
	id     int
	layers []blob
}

// pull is one entry of the trace. A host requests the manifest, and the layers that it does not
// have from other images. Host -1 has no layers and keeps none: it is a fresh CI runner or the
// mirror job.
type pull struct {
	image *image
	host  int
}

// traceOptions describe a site.
type traceOptions struct {
	seed    uint64
	days    int
	repos   int     // repositories in use
	bases   int     // base images
	hosts   int     // that pull: CI runners, swarm nodes
	perDay  int     // pulls a day
	zipf    float64 // exponent of the repositories' popularity
	drift   float64 // share of the repositories that swap their popularity every day
	deploys int     // the site's own repositories, rebuilt and deployed daily on several hosts
	scan    float64 // share of the pulls that come from a mirror job: each image once, in bursts
	cold    float64 // share of the other pulls whose host was wiped (a prune, a fresh runner)
}

// site is a trace and the size of its catalogue.
type site struct {
	trace     []pull
	catalogue int64 // bytes of all blobs in the trace
}

// generate makes a trace. The same options make the same trace.
func generate(o traceOptions) site {
	g := &generator{traceOptions: o, rnd: rand.New(rand.NewPCG(o.seed, 1)), seen: map[int]bool{}}
	g.bases()
	rank := g.rnd.Perm(o.repos) // popularity rank → repository
	current := make([]*image, o.repos)
	for i := range current {
		current[i] = g.image()
	}
	var s site
	for range o.days {
		for range int(o.drift * float64(o.repos)) {
			i, j := g.rnd.IntN(o.repos), g.rnd.IntN(o.repos)
			rank[i], rank[j] = rank[j], rank[i]
		}
		for i := range o.repos {
			if i < o.deploys || g.rnd.IntN(20) == 0 { // others release every few weeks
				current[i] = g.next(current[i])
			}
		}
		s.trace = append(s.trace, g.day(rank, current)...)
	}
	for _, p := range s.trace {
		for _, b := range p.image.layers {
			if !g.seen[b.id] {
				g.seen[b.id] = true
				s.catalogue += b.size
			}
		}
	}
	return s
}

type generator struct {
	traceOptions
	rnd    *rand.Rand
	base   [][]blob
	blobs  int
	images int
	seen   map[int]bool
}

// size is log-normal, as layers are: median 4 MB, some of hundreds.
func (g *generator) size() int64 {
	return int64(min(4e6*math.Exp(1.6*g.rnd.NormFloat64()), 1e9)) + 1000
}

func (g *generator) newBlob() blob {
	g.blobs++
	return blob{g.blobs, g.size()}
}

func (g *generator) bases() {
	g.base = make([][]blob, g.traceOptions.bases)
	for i := range g.base {
		for range 1 + g.rnd.IntN(3) {
			g.base[i] = append(g.base[i], g.newBlob())
		}
		g.base[i][0].size += 25e6 // a distribution's root file system
	}
}

// image makes the image of a new repository: a base, popular ones more often, and layers of its
// own.
func (g *generator) image() *image {
	i := int(float64(len(g.base)) * math.Pow(g.rnd.Float64(), 3))
	return g.make(g.base[i], 1+g.rnd.IntN(6))
}

func (g *generator) make(base []blob, own int) *image {
	g.images++
	img := &image{id: g.images, layers: append([]blob{}, base...)}
	for range own {
		img.layers = append(img.layers, g.newBlob())
	}
	return img
}

// next makes the next release of an image: its last layers are new.
func (g *generator) next(old *image) *image {
	keep := len(old.layers) - 1 - g.rnd.IntN(2)
	return g.make(old.layers[:max(keep, 1)], min(len(old.layers)-max(keep, 1), 2))
}

// day makes the pulls of a day. Those of the mirror job are one burst.
func (g *generator) day(rank []int, current []*image) []pull {
	scans := int(g.scan * float64(g.perDay))
	var day []pull
	for i := range g.deploys { // each deployment goes to three hosts
		at := g.rnd.IntN(g.hosts)
		for h := range 3 {
			day = append(day, pull{current[i], (at + h) % g.hosts})
		}
	}
	sum := 0.0
	cumulative := make([]float64, len(rank))
	for i := range rank {
		sum += 1 / math.Pow(float64(i+1), g.zipf)
		cumulative[i] = sum
	}
	for len(day) < g.perDay-scans {
		x := g.rnd.Float64() * sum
		i := search(cumulative, x)
		host := g.rnd.IntN(g.hosts)
		if g.rnd.Float64() < g.cold {
			host = -1
		}
		day = append(day, pull{current[rank[i]], host})
	}
	g.rnd.Shuffle(len(day), func(i, j int) { day[i], day[j] = day[j], day[i] })
	var burst []pull
	for range scans {
		burst = append(burst, pull{g.image(), -1})
	}
	at := g.rnd.IntN(len(day) + 1)
	return append(append(append([]pull{}, day[:at]...), burst...), day[at:]...)
}

// search returns the first index whose value is x or more.
func search(cumulative []float64, x float64) int {
	lo, hi := 0, len(cumulative)-1
	for lo < hi {
		if mid := (lo + hi) / 2; cumulative[mid] < x {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}
