package registry_test

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// TestWrongBytesAreNeverASuccess: the right length and one wrong byte. No client's body
// ends well, nothing is kept, it is counted, and the next one is right.
func TestWrongBytesAreNeverASuccess(t *testing.T) {
	for _, how := range fetchings {
		t.Run(how.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 20 << 20}, policy: func(p *registry.Policy) { p.ReadAhead = how.ahead }})
				layers := l.image("library/app", "1", how.size, how.size)
				l.get("/v2/library/app/manifests/1")
				target := layers[1]
				rule := l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: string(target)}, hubtest.FlipByte(how.size/2))
				if how.ahead {
					l.fetch("library/app", layers[0])
				}
				for _, c := range l.crowd("library/app", target) {
					switch {
					case c.leave || c.from > how.size/2: // the wrong byte lies before what it asked for
					case c.status == 0, c.status >= 400, c.err != nil:
					default:
						t.Errorf("%s: %d, %d bytes, a success", c.name, c.status, c.n)
					}
				}
				if l.reg.Stats().DigestMismatches == 0 {
					t.Error("not counted")
				}
				if _, ok := l.store.Has(target); ok {
					t.Error("kept")
				}
				l.settled(target)
				rule.Remove()
				time.Sleep(21 * time.Second)
				l.fetch("library/app", target)
				l.settled(target)
			})
		})
	}
}

// TestSharedLayerSurvivesItsImage: of two images with a layer in common one is evicted,
// and the layer's file is lost besides. The other is pulled whole, and then from the cache.
func TestSharedLayerSurvivesItsImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}, budget: 10 << 20})
		a := l.image("library/a", "1", 5<<18, 3<<20)
		b := l.image("library/b", "1", 5<<18, 4<<20)
		if a[0] != b[0] {
			t.Fatal("nothing is shared")
		}
		pull := func(repository string) {
			l.get("/v2/" + repository + "/manifests/1")
			for _, c := range l.image(repository, "1", 5<<18, map[string]int64{"library/a": 3 << 20, "library/b": 4 << 20}[repository]) {
				l.fetch(repository, c)
			}
			l.idle()
		}
		pull("library/a")
		time.Sleep(2 * time.Second)
		pull("library/b")
		filler := l.image("library/filler", "1", 1000, 5<<20)
		l.get("/v2/library/filler/manifests/1")
		l.fetch("library/filler", filler[1])
		l.idle()
		if _, ok := l.store.Has(a[1]); ok {
			t.Error("a's own layer was not evicted")
		}
		if err := os.Remove(l.file(b[0])); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		pull("library/b")
		l.hub.ResetLedger()
		pull("library/b")
		if g := l.hub.Ledger(); g.BlobGETs() > 0 {
			t.Errorf("pulled again:\n%s", g)
		}
		l.settled(append(a, b...)...)
	})
}

// TestHeadersBeforeTheLastByte: a blob takes a minute; its headers don't.
func TestHeadersBeforeTheLastByte(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 5 << 18 / 60}})
		d := l.image("library/app", "1", 5<<18)[0]
		l.get("/v2/library/app/manifests/1")
		start := time.Now()
		c := &visitor{name: "patient"}
		c.visit(l, "library/app", d)
		c.check(t, l, d, whole)
		if c.took > time.Second {
			t.Errorf("headers after %s", c.took)
		}
		if total := time.Since(start); total < 50*time.Second {
			t.Errorf("the blob took %s: the test is too fast", total)
		}
	})
}
