package registry_test

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestOneBrokenBodyCostsNoOtherRequest: one body of a blob is wrong, or breaks for good. Clients
// that ask for it right afterwards get it, those of a small blob even with the first request.
func TestOneBrokenBodyCostsNoOtherRequest(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{5 << 17, 5 << 18} { // sent when verified, and as it comes
		for _, c := range []struct {
			name  string
			times int // how many bodies in a row are broken until a download is given up
			fault hubtest.Fault
		}{
			{"wrong last byte", 1, hubtest.FlipByte(size - 1)},
			{"cut at the first byte", 3, hubtest.CutAfter(0)},
			{"reset at the first byte", 3, hubtest.ResetAfter(0)},
		} {
			t.Run(fmt.Sprint(c.name, " of ", size), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					l := newLab(t, labOptions{hub: hubtest.Options{TLS: true, Bandwidth: 20 << 20}})
					d := l.addImage("library/app", "1", size)[0]
					l.get("/v2/library/app/manifests/1")
					l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: string(d), Times: c.times}, c.fault)
					first := &client{name: "first"}
					first.get(l, "library/app", d)
					if want := broken; size > 1<<20 {
						first.check(t, l, d, want)
					} else {
						first.check(t, l, d, whole)
					}
					var clients sync.WaitGroup
					for range 3 {
						clients.Go(func() {
							c := &client{name: "next"}
							c.get(l, "library/app", d)
							c.check(t, l, d, whole)
						})
					}
					clients.Wait()
					l.checkStore(d)
				})
			})
		}
	}
}

// TestBlobThatBreaksEachTimeIsAskedForEverMoreRarely: clients ask ten times a second for a blob
// whose bodies are all wrong. Upstream is asked again at once after the first one, and then after
// pauses that double from 1 s to 20 s. When the blob is right again, the pauses begin anew.
func TestBlobThatBreaksEachTimeIsAskedForEverMoreRarely(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}})
		d := l.addImage("library/app", "1", 5<<18)[0]
		l.get("/v2/library/app/manifests/1")
		for range 2 {
			rule := l.hub.Inject(hubtest.Match{Face: hubtest.CDN, Reference: string(d)}, hubtest.FlipByte(5<<18-1))
			l.hub.ResetLedger()
			for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(100 * time.Millisecond) {
				c := &client{}
				c.get(l, "library/app", d)
				c.check(t, l, d, refusedOrBroken)
			}
			var pauses []time.Duration
			asked := l.cdnRequests(d)
			for i := range asked[1:] {
				pauses = append(pauses, asked[i+1].Started.Sub(asked[i].Started).Truncate(time.Second)/time.Second)
			}
			if want := []time.Duration{0, 1, 2, 4, 8, 16, 20}; !slices.Equal(pauses, want) {
				t.Errorf("upstream was asked after %v s, want %v", pauses, want)
			}
			rule.Remove()
			time.Sleep(20 * time.Second)
			l.fetch("library/app", d)
			l.waitIdle()
			l.store.Remove(d)
		}
	})
}

// TestOneSilenceRefusesNoBlob: upstream doesn't answer one request, so that the circuit breaker
// opens, or can't be reached for a second. The blobs that are asked for then come through: their
// retries don't all fall into the breaker's first pause.
func TestOneSilenceRefusesNoBlob(t *testing.T) {
	t.Parallel()
	for _, outage := range []time.Duration{0, time.Second} {
		t.Run(fmt.Sprint("outage ", outage), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}})
				layers := l.addImage("library/app", "1", 5<<18, 6<<18, 100, 200, 300)
				l.get("/v2/library/app/manifests/1")
				if outage > 0 {
					back := time.Now().Add(outage)
					l.intercept(func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
						if time.Now().Before(back) {
							return deadUpstream{}.RoundTrip(req)
						}
						return next.RoundTrip(req)
					})
				} else {
					defer l.hub.ClearFaults()
					l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: "blobs", Times: 1}, hubtest.Hang())
				}
				var clients sync.WaitGroup
				for i, d := range layers {
					clients.Go(func() {
						if i > 0 { // while the breaker is open
							time.Sleep(time.Duration(i) * 100 * time.Millisecond)
							if outage == 0 {
								time.Sleep(4 * time.Second)
							}
						}
						c := &client{name: fmt.Sprint("client ", i)}
						c.get(l, "library/app", d)
						c.check(t, l, d, whole)
					})
				}
				clients.Wait()
				l.checkStore(layers...)
			})
		})
	}
}

// TestPauseOfUpstreamIsNoFailureOfTheBlob: a 429 that names a second delays blobs by it and
// refuses none. After a longer one, the blobs that were refused are asked for when it ends.
func TestPauseOfUpstreamIsNoFailureOfTheBlob(t *testing.T) {
	t.Parallel()
	for _, face := range []hubtest.Face{hubtest.Registry, hubtest.CDN} {
		t.Run(string(face), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}})
				layers := l.addImage("library/app", "1", 5<<18, 6<<18, 7<<18)
				l.get("/v2/library/app/manifests/1")
				all := func(want result, ds ...digest.Digest) {
					var clients sync.WaitGroup
					for _, d := range ds {
						clients.Go(func() {
							c := &client{}
							c.get(l, "library/app", d)
							c.check(t, l, d, want)
						})
					}
					clients.Wait()
				}
				l.hub.Inject(hubtest.Match{Face: face, Kind: "blobs", Times: 1}, hubtest.TooManyRequests("Retry-After: 1"))
				all(whole, layers[:2]...)
				rule := l.hub.Inject(hubtest.Match{Face: face, Kind: "blobs", Times: 1}, hubtest.TooManyRequests("Retry-After: 30"))
				began := time.Now()
				all(refused, layers[2])
				for time.Since(began) < 27*time.Second {
					time.Sleep(time.Second)
					all(refused, layers[2])
				}
				time.Sleep(time.Until(began.Add(30*time.Second + time.Millisecond)))
				all(whole, layers[2])
				if n := rule.Hits(); n != 1 {
					t.Errorf("upstream was asked %d times", n)
				}
				l.checkStore(layers...)
			})
		})
	}
}
