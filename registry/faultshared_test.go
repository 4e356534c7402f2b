package registry_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// TestReadAheadOfASharedBase: two images have their first layer in common. Each is read
// ahead under its own repository, whichever manifest was handed out last.
func TestReadAheadOfASharedBase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Latency: 20 * time.Millisecond}, policy: func(p *registry.Policy) { p.ReadAhead = true }})
		one := l.image("library/one", "1", 1000, 5<<18)
		two := l.image("library/two", "1", 1000, 6<<18)
		l.get("/v2/library/one/manifests/1")
		l.get("/v2/library/two/manifests/1")
		l.fetch("library/one", one[0])
		synctest.Wait()
		for _, e := range l.hub.Ledger() {
			if e.Status == 404 {
				t.Errorf("asked for under the wrong repository: %s", e)
			}
		}
		l.idle()
		l.hub.ResetLedger()
		l.fetch("library/one", one[1])
		if g := l.hub.Ledger(); len(g) > 0 {
			t.Errorf("not read ahead:\n%s", g)
		}
		l.settled(append(one, two...)...)
	})
}

// TestFailureUnderAnotherRepository: somebody asks for a blob under a repository that
// hasn't got it. Who asks for it meanwhile where it is, gets it.
func TestFailureUnderAnotherRepository(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Latency: 100 * time.Millisecond}})
		d := l.image("library/app", "1", 5<<18)[0]
		l.image("evil/repo", "1", 1001)
		l.get("/v2/library/app/manifests/1")
		l.get("/v2/evil/repo/manifests/1")
		evil := make(chan *visitor)
		go func() {
			c := &visitor{name: "evil"}
			c.visit(l, "evil/repo", d)
			evil <- c
		}()
		time.Sleep(20 * time.Millisecond)
		for _, c := range l.crowd("library/app", d) {
			c.check(t, l, d, whole)
		}
		if c := <-evil; c.status != 404 {
			t.Errorf("evil: %d", c.status)
		}
		l.settled(d)
	})
}
