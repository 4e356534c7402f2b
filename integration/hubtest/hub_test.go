package hubtest_test

import (
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestConcurrentUse calls methods concurrently, for the race detector, and checks that Close ends
// all goroutines.
func TestConcurrentUse(t *testing.T) {
	before := runtime.NumGoroutine()
	hub := hubtest.New(hubtest.Options{TotalBandwidth: 50 << 20})
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	rt := hubtest.LoopbackOnly(&http.Transport{})
	c, path, want := faulty(t, hub, rt)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 5 {
				if a := c.get("GET", faultyRepo, path); len(a.body) != len(want) {
					t.Errorf("%d bytes, %v", len(a.body), a.err)
				}
				hub.AddImage("library/other", fmt.Sprint(i), hubtest.ImageSpec{Layers: hubtest.Layers(1, 100)})
				hub.Inject(hubtest.Match{Face: hubtest.Token}, hubtest.Hang()).Remove()
				hub.Set(func(o *hubtest.Options) { o.Latency = time.Microsecond })
				_ = hub.Ledger().BlobBytes() + int64(hub.Used(""))
			}
		})
	}
	wg.Wait()
	if n := hub.Ledger().BlobBytes(); n != int64(16*5*len(want)) {
		t.Errorf("%d bytes in the ledger", n)
	}
	rt.CloseIdleConnections()
	hub.Close()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, and there were %d", runtime.NumGoroutine(), before)
		}
	}
}
