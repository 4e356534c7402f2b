// Evictsim replays synthetic traces of image pulls against eviction policies. For each policy it
// prints the share of the requested bytes that the cache would have served.
//
//	go run ./integration/evictsim
//
// docs/design/eviction.md has its table and the decision that follows from it. With -tier it prints what
// ten nodes for a thousand daemons gain by a shared tier; docs/evidence/scale-out.md has that.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

func main() {
	seeds := flag.Int("seeds", 5, "`number` of traces for each kind of site; the figures are their means")
	tier := flag.Bool("tier", false, "simulate nodes with and without a shared tier")
	flag.Parse()
	if *tier {
		reportTier(os.Stdout)
		return
	}
	report(os.Stdout, *seeds)
}

// policies are the candidates, in the order of the table.
var policies = []struct {
	name string
	make func(max int64) policy
}{
	{"LRU by blob", newLRU},
	{"image-aware LRU", newImageLRU},
	{"two segments, fresh 10 %", newSegmented(0.10)},
	{"**two segments, fresh 25 %**", newSegmented(0.25)},
	{"two segments, fresh 50 %", newSegmented(0.50)},
	{"SIEVE", newSieve(false)},
	{"image-aware SIEVE", newSieve(true)},
	{"S3-FIFO", newS3FIFO},
	{"W-TinyLFU", newTinyLFU},
}

// budgets are shares of the size of all blobs in the trace.
var budgets = []float64{0.05, 0.10, 0.25, 0.50}

// sites are the kinds of sites that pull images.
var sites = []struct {
	name string
	traceOptions
}{
	{"a site with CI and a swarm, no scans", traceOptions{scan: 0}},
	{"the same, a mirror job makes 10 % of the pulls", traceOptions{scan: 0.1}},
	{"the same, 30 %", traceOptions{scan: 0.3}},
	{"CI only: every runner is fresh, 10 % scans", traceOptions{scan: 0.1, cold: 1}},
}

func (o traceOptions) withDefaults() traceOptions {
	o.days, o.repos, o.bases, o.hosts, o.perDay = 60, 600, 40, 20, 400
	o.zipf, o.drift, o.deploys = 0.9, 0.02, 12
	if o.cold == 0 {
		o.cold = 0.3
	}
	return o
}

func report(w io.Writer, seeds int) {
	for _, s := range sites {
		ratios := make([][]float64, len(policies))
		for i := range ratios {
			ratios[i] = make([]float64, len(budgets))
		}
		var mu sync.Mutex // guards ratios
		var runs sync.WaitGroup
		for seed := range seeds {
			o := s.traceOptions.withDefaults()
			o.seed = uint64(seed + 1)
			runs.Go(func() {
				site := generate(o)
				for i, p := range policies {
					for j, share := range budgets {
						r := replay(site.trace, o.hosts, p.make(int64(share*float64(site.catalogue))))
						mu.Lock()
						ratios[i][j] += r / float64(seeds)
						mu.Unlock()
					}
				}
			})
		}
		runs.Wait()
		fmt.Fprintf(w, "**%s**\n\n| byte hit ratio, budget as a share of the catalogue | 5 %% | 10 %% | 25 %% | 50 %% |\n|---|%s\n",
			strings.ToUpper(s.name[:1])+s.name[1:], strings.Repeat("---|", len(budgets)))
		for i, p := range policies {
			fmt.Fprintf(w, "| %s |", p.name)
			for _, r := range ratios[i] {
				fmt.Fprintf(w, " %.1f |", 100*r)
			}
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w)
	}
}

// pruneEvery is how many pulls a host makes before its images are pruned.
const pruneEvery = 150

// replay returns the share of the requested bytes that the cache had. The first tenth of the
// trace only fills the cache.
func replay(trace []pull, hosts int, c policy) float64 {
	has := make([]map[int]bool, hosts)
	pulls := make([]int, hosts)
	var hit, all float64
	for i, p := range trace {
		var have map[int]bool
		if p.host >= 0 {
			if pulls[p.host]%pruneEvery == 0 {
				has[p.host] = map[int]bool{}
			}
			pulls[p.host]++
			have = has[p.host]
		}
		for _, b := range p.image.layers {
			c.touch(b)
		}
		for _, b := range p.image.layers {
			if have[b.id] {
				continue
			}
			if have != nil {
				have[b.id] = true
			}
			ok := c.get(b)
			if i < len(trace)/10 {
				continue
			}
			all += float64(b.size)
			if ok {
				hit += float64(b.size)
			}
		}
	}
	return hit / all
}
