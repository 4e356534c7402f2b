package main

import (
	"math/rand/v2"
	"reflect"
	"testing"
)

// held returns the size of the blobs that a policy holds.
func held(t *testing.T, p policy) (bytes int64) {
	t.Helper()
	var all map[int]*item
	switch c := p.(type) {
	case *lru:
		all = c.all
	case imageLRU:
		all = c.all
	case *segmented:
		all = c.all
	case *sieve:
		all = c.all
	case *s3fifo:
		all = c.all
	case *tinyLFU:
		all = c.all
	default:
		t.Fatalf("%T", p)
	}
	for _, it := range all {
		bytes += it.size
	}
	return bytes
}

func TestPoliciesKeepTheBudget(t *testing.T) {
	for _, p := range policies {
		c := p.make(1000)
		rnd := rand.New(rand.NewPCG(1, 2))
		hits := 0
		for range 20_000 {
			id := int(rnd.ExpFloat64() * 30)
			b := blob{id, int64(id*37%300) + 1}
			if rnd.IntN(4) == 0 {
				c.touch(b)
			}
			if c.get(b) {
				hits++
			}
			if n := held(t, c); n > 1000 {
				t.Fatalf("%s holds %d bytes of 1000", p.name, n)
			}
		}
		if hits < 2000 {
			t.Errorf("%s: only %d hits", p.name, hits)
		}
	}
}

// survivors counts which of the blobs are still cached.
func survivors(c policy, ids ...int) (n int) {
	for _, id := range ids {
		if c.get(blob{id, 1}) {
			n++
		}
	}
	return n
}

// TestPopularBlobsSurviveScan checks that blobs that were used several times survive a scan of ten
// times the budget, except with LRU.
func TestPopularBlobsSurviveScan(t *testing.T) {
	want := map[string]int{"LRU by blob": 0, "image-aware LRU": 0}
	for _, p := range policies {
		c := p.make(100)
		for range 3 {
			survivors(c, 1, 2, 3, 4, 5)
		}
		for id := range 1000 {
			c.get(blob{1000 + id, 1})
		}
		n, known := want[p.name]
		if !known {
			n = 5
		}
		// SIEVE's hand passes the blobs more than once during the scan, so it evicts them.
		if s, ok := c.(*sieve); ok {
			if len(s.all) != 100 {
				t.Errorf("%s holds %d blobs", p.name, len(s.all))
			}
			continue
		}
		if got := survivors(c, 1, 2, 3, 4, 5); got != n {
			t.Errorf("%s: %d of 5 survive a scan, want %d", p.name, got, n)
		}
	}
}

// TestImageAwareKeepsSharedBase checks that uses of images keep their base cached, though clients
// have it and don't request it.
func TestImageAwareKeepsSharedBase(t *testing.T) {
	for _, p := range policies[:2] {
		c := p.make(10)
		c.get(blob{1, 1})
		for id := range 50 {
			c.touch(blob{1, 1})
			c.get(blob{100 + id, 1})
		}
		if got, want := survivors(c, 1) == 1, p.name != "LRU by blob"; got != want {
			t.Errorf("%s: the base is cached: %t", p.name, got)
		}
	}
}

// TestSievePassesOverUsedBlobs checks which blob SIEVE evicts.
func TestSievePassesOverUsedBlobs(t *testing.T) {
	c := newSieve(false)(3)
	survivors(c, 1, 2, 3, 1)
	c.get(blob{4, 1}) // the hand passes over 1 and evicts 2
	s := c.(*sieve)
	if s.all[1] == nil || s.all[2] != nil || s.all[3] == nil || s.all[4] == nil {
		t.Errorf("%v is left", s.all)
	}
}

// TestS3FIFOPromotesReturningBlobs checks that a blob that is requested again soon after it was
// evicted from the small queue enters the main queue.
func TestS3FIFOPromotesReturningBlobs(t *testing.T) {
	c := newS3FIFO(10).(*s3fifo)
	for id := range 11 {
		c.get(blob{id, 1})
	}
	if c.all[0] != nil {
		t.Fatal("the first blob was not evicted")
	}
	c.get(blob{0, 1})
	if it := c.all[0]; it == nil || it.in != &c.main {
		t.Errorf("%+v", it)
	}
}

func TestTracesAreReproducible(t *testing.T) {
	o := sites[1].traceOptions.withDefaults()
	o.days, o.seed = 3, 7
	a, b := generate(o), generate(o)
	if !reflect.DeepEqual(a, b) {
		t.Error("the same options make different traces")
	}
	if o.seed = 8; reflect.DeepEqual(a, generate(o)) {
		t.Error("another seed makes the same trace")
	}
	scans := 0
	for _, p := range a.trace {
		if p.host < 0 {
			scans++
		}
	}
	if len(a.trace) != 3*o.perDay || scans < 3*o.perDay/10 {
		t.Errorf("%d pulls, %d of them by hosts without images", len(a.trace), scans)
	}
}
