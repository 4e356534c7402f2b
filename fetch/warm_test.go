package fetch

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
)

// TestWarmBringsABlobOnce: two of Warm at once, and a client, share one download.
func TestWarmBringsABlobOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, 1<<30, Limits{})
		m := &memory{hold: make(chan struct{})}
		b := blobOf(m, 3<<20, "warm ")
		ended := make(chan error, 3)
		seen := make(chan int64, 100)
		for range 2 {
			go func() {
				ended <- p.Warm(t.Context(), b, func(received, size int64) { seen <- size })
			}()
		}
		synctest.Wait()
		f, first, err := p.Start(t.Context(), b)
		if err != nil || first {
			t.Fatal(first, err)
		}
		f.Leave()
		for range 2 {
			if size := <-seen; size != 3<<20 {
				t.Errorf("%d bytes are reported", size)
			}
		}
		close(m.hold)
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if err := p.Warm(t.Context(), b, nil); err != nil || m.opened != 1 {
			t.Errorf("asked %d times, %v", m.opened, err)
		}
	})
}

// TestWarmEndsWithItsCaller: a download that only Warm wants ends and is resumed later; one that a
// client has joined goes on.
func TestWarmEndsWithItsCaller(t *testing.T) {
	for _, joined := range []bool{false, true} {
		t.Run("joined="+strconv.FormatBool(joined), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, 1<<30, Limits{})
				m := &memory{hold: make(chan struct{})}
				b := blobOf(m, 3<<20, "leave ")
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- p.Warm(ctx, b, nil) }()
				synctest.Wait()
				if joined {
					f, _, err := p.Start(t.Context(), b)
					if err != nil {
						t.Fatal(err)
					}
					defer f.Leave()
				}
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				synctest.Wait()
				if on := len(p.Stats().Inflight) == 1; on != joined {
					t.Errorf("the download goes on: %v", on)
				}
				close(m.hold)
				if err := p.Warm(t.Context(), b, nil); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestWarmGivesWay: it leaves a slot to clients; with a single slot it makes room and goes on after.
func TestWarmGivesWay(t *testing.T) {
	for slots, most := range map[int]int{1: 1, 2: 1, 4: 3} {
		t.Run(strconv.Itoa(slots), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, 1<<30, Limits{Transfers: slots, Ranges: 1})
				ended := make(chan error, 5)
				hold := make(chan struct{})
				for i := range cap(ended) {
					b := blobOf(&memory{hold: hold}, 1<<20, strconv.Itoa(i))
					go func() { ended <- p.Warm(t.Context(), b, nil) }()
				}
				synctest.Wait()
				if n := len(p.Stats().Inflight); n != most {
					t.Errorf("%d downloads, want %d", n, most)
				}
				client := &memory{}
				f, _, err := p.Start(t.Context(), blobOf(client, 1<<20, "client"))
				if err != nil {
					t.Fatal(err)
				}
				if rd, err := f.Reader(t.Context(), nil); err == nil {
					rd.Close()
				} else if !errors.Is(err, ErrEnded) { // all of it was here before the reader was opened
					t.Fatal(err)
				}
				f.Leave()
				close(hold)
				for range cap(ended) {
					if err := <-ended; err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// TestWarmSaysThatThereIsNoRoom: what doesn't fit the budget isn't tried again and again.
func TestWarmSaysThatThereIsNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, 1<<20, Limits{})
		m := &memory{}
		if err := p.Warm(t.Context(), blobOf(m, 2<<20, "large"), nil); !NotKept(err) || m.opened != 1 {
			t.Errorf("asked %d times, %v", m.opened, err)
		}
	})
}
