package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// scenario is a measurement that is made with some servers.
type scenario struct {
	name     string
	servers  []string
	once     []string // those of them that are too slow to be measured more than once
	upstream pace
	tls      bool // clients come by TLS
	cold     bool // each run begins with an empty cache and a new process
	warm     func(context.Context, *target) error
	measure  func(context.Context, *target) (values, error)
}

func scenarios(b *bench) []scenario {
	caches := []string{hubcache, nginx, r3, r2}
	withDirect := []string{direct, hubcache, nginx, r3, r2}
	withStatic := []string{nginxStatic, hubcache, nginx, r3, r2}
	slow := []string{r3, r2}
	capped, lazily := pace{connection: 20e6}, pace{connection: 8 << 20}
	big, warm, many := b.upstream.big, b.upstream.warm, b.upstream.many
	wrk := func(path string) func(context.Context, *target) (values, error) {
		return func(ctx context.Context, t *target) (values, error) { return b.sameManifest(ctx, t, path) }
	}
	return []scenario{
		{name: "warm-one", servers: withStatic, warm: warmUp(big), measure: b.oneStream},
		{name: "warm-many", servers: withStatic, once: slow, warm: warmUp(warm), measure: b.manyStreams},
		{name: "digest", servers: withStatic, warm: warmUp(warm),
			measure: wrk(warm.Repository + "/manifests/" + warm.Manifests[0].Digest.String())},
		{name: "tag", servers: withStatic, warm: warmUp(warm), measure: wrk(warm.Repository + "/manifests/" + warm.Tag)},
		{name: "warm-tag", servers: caches, warm: warmUp(many), measure: b.warmTag},
		{name: "cold", servers: withDirect, upstream: capped, cold: true, measure: b.coldPull(many, 1)},
		{name: "cold-fast", servers: withDirect, cold: true, measure: b.coldPull(big, 1)},
		{name: "stampede", servers: caches, once: slow, upstream: pace{20e6, 125e6}, cold: true, measure: b.coldPull(many, 20)},
		{name: "stampede-tls", servers: []string{hubcache, nginx, r3}, once: slow, upstream: pace{20e6, 125e6}, tls: true, cold: true, measure: b.coldPull(many, 20)},
		{name: "tail-first", servers: withDirect, once: slow, upstream: lazily, cold: true, measure: b.ofLayer(tailFirst)},
		{name: "lazy-mount", servers: withDirect, once: slow, upstream: lazily, cold: true, measure: b.ofLayer(lazyMount)},
		{name: "multi-range", servers: withDirect, once: slow, upstream: lazily, cold: true, measure: b.ofLayer(multiRange)},
		{name: "parallel-ranges", servers: withDirect, once: slow, upstream: capped, cold: true, measure: b.ofLayer(parallelRanges)},
		{name: "leave", servers: caches, once: caches, upstream: capped, cold: true, measure: b.leave},
		{name: "small", servers: withDirect, once: slow, upstream: pace{20e6, 125e6}, cold: true, measure: b.smallImages},
	}
}

// warmUp fills a cache and checks the digests of what it serves.
func warmUp(img *hubtest.Image) func(context.Context, *target) error {
	return func(ctx context.Context, t *target) error {
		c := newClient(t)
		defer c.close()
		c.verify = true
		if t.name == nginxStatic { // it has no config and no index
			return c.blob(ctx, img.Repository, img.Manifests[0].Layers[0], nil)
		}
		for range 2 {
			if err := c.pull(ctx, img); err != nil {
				return err
			}
		}
		return nil
	}
}

const gib = 1 << 30

// oneStream reads the large blob, first as clients do, then with a client that uses almost no
// CPU time.
func (b *bench) oneStream(ctx context.Context, t *target) (values, error) {
	repository, layer := b.upstream.big.Repository, b.upstream.big.Manifests[0].Layers[0]
	const times = 4 // CPU time comes in ticks of 10 ms
	c := newClient(t)
	defer c.close()
	cpu, start := t.cpu(), time.Now()
	for range times {
		if err := c.blob(ctx, repository, layer, nil); err != nil {
			return nil, err
		}
	}
	total := float64(times) * float64(layer.Size)
	v := values{
		"MiB/s":     total / (1 << 20) / time.Since(start).Seconds(),
		"s/GiB":     (t.cpu() - cpu).Seconds() / (total / gib),
		"raw s/GiB": 0,
	}
	cpu = t.cpu()
	for range times {
		if err := raw(ctx, t, repository, layer.Digest, layer.Size); err != nil {
			return nil, err
		}
	}
	v["raw s/GiB"] = (t.cpu() - cpu).Seconds() / (total / gib)
	return v, nil
}

// manyStreams measures 64 clients that read eight blobs each.
func (b *bench) manyStreams(ctx context.Context, t *target) (values, error) {
	img := b.upstream.warm
	t.resetPeak()
	cpu, start := t.cpu(), time.Now()
	total := float64(0)
	g, ctx := errgroup.WithContext(ctx)
	for range 64 {
		c := newClient(t)
		defer c.close()
		for _, l := range img.Manifests[0].Layers {
			total += float64(l.Size)
		}
		g.Go(func() error {
			for _, l := range img.Manifests[0].Layers {
				if err := c.blob(ctx, img.Repository, l, nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return values{
		"MiB/s":   total / (1 << 20) / time.Since(start).Seconds(),
		"s/GiB":   (t.cpu() - cpu).Seconds() / (total / gib),
		"RSS MiB": float64(t.peak()) / (1 << 20),
	}, nil
}

// sameManifest requests one manifest again and again, as fast as it can.
func (b *bench) sameManifest(ctx context.Context, t *target, path string) (values, error) {
	c := newClient(t)
	defer c.close()
	repository, rest, _ := strings.Cut(path, "/manifests/")
	resp, err := c.get(ctx, http.MethodGet, repository, "/manifests/"+rest) // so that the cached tag is fresh
	if err != nil {
		return nil, err
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	cpu := t.cpu()
	out, err := exec.CommandContext(ctx, b.wrk, "-t2", "-c32", "-d3s", "-H", "Accept: "+accept, t.url+"/v2/"+path).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	if strings.Contains(string(out), "Non-2xx") {
		return nil, fmt.Errorf("wrk got errors:\n%s", out)
	}
	spent := t.cpu() - cpu
	_, after, ok := strings.Cut(string(out), "Requests/sec:")
	rate, err := strconv.ParseFloat(strings.TrimSpace(strings.SplitN(after, "\n", 2)[0]), 64)
	if !ok || err != nil {
		return nil, fmt.Errorf("no rate in the output of wrk:\n%s", out)
	}
	return values{"req/s": rate, "µs CPU/req": spent.Seconds() * 1e6 / (rate * 3)}, nil
}

// warmTag counts the upstream requests that pulls of a cached tag within its TTL cause.
func (b *bench) warmTag(ctx context.Context, t *target) (values, error) {
	const times = 5
	start := time.Now()
	for range times {
		c := newClient(t)
		err := c.pull(ctx, b.upstream.many)
		c.close()
		if err != nil {
			return nil, err
		}
	}
	took := time.Since(start)
	if err := b.upstream.quiet(ctx); err != nil {
		return nil, err
	}
	return values{"upstream requests": float64(len(b.upstream.hub.Ledger())) / times, "ms": took.Seconds() * 1000 / times}, nil
}

// coldPull measures clients that pull one image at the same moment through an empty cache.
func (b *bench) coldPull(img *hubtest.Image, clients int) func(context.Context, *target) (values, error) {
	return func(ctx context.Context, t *target) (values, error) {
		cpu, start := t.cpu(), time.Now()
		g, gctx := errgroup.WithContext(ctx)
		all := make([]*client, clients)
		for i := range all {
			all[i] = newClient(t)
			defer all[i].close()
			g.Go(func() error { return all[i].pull(gctx, img) })
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		took := time.Since(start)
		if err := b.upstream.quiet(ctx); err != nil {
			return nil, err
		}
		var first []time.Duration
		for _, c := range all {
			first = append(first, c.first...)
		}
		slices.Sort(first)
		v := values{
			"s":                 took.Seconds(),
			"first byte p50 ms": first[len(first)/2].Seconds() * 1000,
			"bytes/image":       float64(b.upstream.hub.Ledger().BlobBytes()) / float64(img.Size()),
		}
		if t.process != nil {
			v["s/GiB"] = (t.cpu() - cpu).Seconds() / (float64(clients) * float64(img.Size()) / gib)
			v["RSS MiB"] = float64(t.peak()) / (1 << 20)
		}
		return v, nil
	}
}

// leave measures a client that leaves in the middle of a blob, and another one that reads the
// blob after that.
func (b *bench) leave(ctx context.Context, t *target) (values, error) {
	img := b.upstream.many
	layer := img.Manifests[0].Layers[0]
	c := newClient(t)
	for _, d := range []string{img.Digest.String(), img.Manifests[0].Digest.String()} {
		resp, err := c.get(ctx, http.MethodGet, img.Repository, "/manifests/"+d)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
	}
	half, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.get(half, http.MethodGet, img.Repository, "/blobs/"+layer.Digest.String())
	if err != nil {
		return nil, err
	}
	_, err = io.CopyN(io.Discard, resp.Body, layer.Size/2)
	cancel()
	resp.Body.Close()
	c.close()
	if err != nil {
		return nil, err
	}
	second := newClient(t)
	defer second.close()
	second.verify = true
	if err := second.blob(ctx, img.Repository, layer, nil); err != nil {
		return nil, err
	}
	if err := b.upstream.quiet(ctx); err != nil {
		return nil, err
	}
	sent := int64(0)
	for _, e := range b.upstream.hub.Ledger() {
		if e.Face == hubtest.CDN && e.Reference == layer.Digest.String() {
			sent += e.BodyBytes
		}
	}
	return values{"bytes/blob": float64(sent) / float64(layer.Size)}, nil
}

// smallImages measures four clients that share the work of pulling all small images.
func (b *bench) smallImages(ctx context.Context, t *target) (values, error) {
	unique := map[string]int64{}
	for _, img := range b.upstream.small {
		for _, d := range img.Blobs() {
			unique[d.Digest.String()] = d.Size
		}
	}
	all := int64(0)
	for _, n := range unique {
		all += n
	}
	next := make(chan *hubtest.Image, len(b.upstream.small))
	for _, img := range b.upstream.small {
		next <- img
	}
	close(next)
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	for range 4 {
		c := newClient(t)
		defer c.close()
		g.Go(func() error {
			for img := range next {
				// As if each image went to another host, no layer is left out.
				if err := c.pull(gctx, img); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	took := time.Since(start)
	if err := b.upstream.quiet(ctx); err != nil {
		return nil, err
	}
	l := b.upstream.hub.Ledger()
	if all == 0 {
		return nil, errors.New("no images")
	}
	return values{
		"s":                took.Seconds(),
		"bytes/unique":     float64(l.BlobBytes()) / float64(all),
		"manifests/needed": float64(l.ManifestGETs()) / float64(2*len(b.upstream.small)),
	}, nil
}
