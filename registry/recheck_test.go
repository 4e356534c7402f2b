package registry_test

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestRecheckYieldsToServing: the blob that a client asks for twice is hashed at 256 MiB a second,
// and at 32 while another client gets a blob.
func TestRecheckYieldsToServing(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	for name, row := range map[string]struct {
		served       bool
		after, until time.Duration // when the blob isn't yet, and is found bad
	}{
		"nobody is served":   {false, 50 * time.Millisecond, 80 * time.Millisecond},
		"a client is served": {true, 450 * time.Millisecond, 600 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TLS: true}})
				layers := l.addImage("library/app", "1", size, 3*mib)
				l.get("/v2/library/app/manifests/1")
				for _, d := range layers {
					l.fetch("library/app", d)
				}
				l.tamper(layers[0], flipByteOnDisk)
				time.Sleep(10*time.Minute + time.Second)
				if row.served {
					resp, err := l.ask(t.Context(), "GET", blobPath("library/app", layers[1]))
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					if _, err := io.CopyN(io.Discard, resp.Body, 1); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					(&client{}).get(l, "library/app", layers[0])
				}
				time.Sleep(row.after)
				if n := l.store.Stats().Corrupt; n != 0 {
					t.Errorf("it was hashed in %s", row.after)
				}
				time.Sleep(row.until - row.after)
				if n := l.store.Stats().Corrupt; n != 1 {
					t.Errorf("it was not hashed in %s", row.until)
				}
			})
		})
	}
}
