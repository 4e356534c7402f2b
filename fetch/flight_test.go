package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/storage"
)

// memory is a BlobSource with a blob in memory. While hold is open, its bodies bring nothing.
type memory struct {
	blob   []byte
	hold   chan struct{} // nil: nothing is held
	opened int
}

func (m *memory) Open(ctx context.Context, p Part) (*Body, error) {
	m.opened++
	if p.To < 0 {
		p.To = int64(len(m.blob))
	}
	r := io.Reader(bytes.NewReader(m.blob[p.From:p.To]))
	return &Body{ReadCloser: io.NopCloser(held{r, m.hold, ctx}), From: p.From, To: p.To, Size: int64(len(m.blob)), Ranged: true}, nil
}

type held struct {
	io.Reader
	hold chan struct{}
	ctx  context.Context
}

func (h held) Read(p []byte) (int, error) {
	if h.hold != nil {
		select {
		case <-h.hold:
		case <-h.ctx.Done():
			return 0, context.Cause(h.ctx)
		}
	}
	return h.Reader.Read(p)
}

// newPool returns a Pool with a store of budget bytes.
func newPool(t *testing.T, budget int64, l Limits) *Pool {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	store, err := storage.Open(storage.Options{Dir: t.TempDir(), Budget: budget, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	p := New(Options{Store: store, Limits: l, Log: log})
	t.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// blobOf returns a blob of n bytes that is fetched from m, which it fills.
func blobOf(m *memory, n int, seed string) Blob {
	m.blob = bytes.Repeat([]byte(seed), n/len(seed)+1)[:n]
	return Blob{Digest: digest.FromBytes(m.blob), Size: int64(n), Origin: storage.Origin{Repository: "docker.io/library/a"}, Source: m}
}

// TestReadersOfAFlightShareItsDownload: all get all bytes, and the source is asked once.
func TestReadersOfAFlightShareItsDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, 1<<30, Limits{})
		m := &memory{hold: make(chan struct{})}
		b := blobOf(m, 2<<20, "shared ")
		got := make(chan int, 10)
		var firsts atomic.Int32
		for i := range cap(got) {
			go func() {
				f, first, err := p.Start(t.Context(), b)
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Leave()
				if first {
					firsts.Add(1)
				}
				rd, err := f.Reader(t.Context(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				defer rd.Close()
				all, err := io.ReadAll(&reader{rd, t.Context(), 0})
				if err != nil || !bytes.Equal(all, m.blob) {
					t.Errorf("reader %d: %d bytes, %v", i, len(all), err)
				}
				got <- len(all)
			}()
		}
		synctest.Wait()
		if s := p.Stats().Inflight; len(s) != 1 || s[0].Readers != cap(got) || s[0].Repository != b.Origin.Repository {
			t.Errorf("in flight: %+v", s)
		}
		close(m.hold)
		for range cap(got) {
			<-got
		}
		synctest.Wait()
		if n := firsts.Load(); n != 1 || m.opened != 1 {
			t.Errorf("%d were first, and the source was asked %d times", n, m.opened)
		}
		if _, err := p.Join(t.Context(), b.Digest); !errors.Is(err, ErrNoFlight) {
			t.Errorf("after the end: %v", err)
		}
		if _, ok := p.store.Has(b.Digest); !ok {
			t.Error("the blob is not in the store")
		}
	})
}

// reader reads a storage.Reader from the start.
type reader struct {
	rd  *storage.Reader
	ctx context.Context
	at  int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.rd.ReadAt(r.ctx, p, r.at)
	r.at += int64(n)
	return n, err
}

// TestReadersAreCountedRight: whatever comes and leaves, the pool's count of flights that have
// readers is right, and no more flights go on without readers than the limit allows.
func TestReadersAreCountedRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const orphans = 2
		p := newPool(t, 1<<30, Limits{Orphans: orphans, Transfers: 100})
		random := rand.New(rand.NewPCG(3, 4))
		var sources []*memory
		var blobs []Blob
		for i := range 6 {
			m := &memory{hold: make(chan struct{})}
			sources, blobs = append(sources, m), append(blobs, blobOf(m, 2<<20, fmt.Sprint("blob ", i)))
		}
		var joined []*Flight
		for step := range 400 {
			switch i := random.IntN(len(blobs)); random.IntN(5) {
			case 0, 1:
				if f, _, err := p.Start(t.Context(), blobs[i]); err == nil {
					joined = append(joined, f)
				}
			case 2, 3:
				if n := len(joined); n > 0 {
					j := random.IntN(n)
					joined[j].Leave()
					joined[j] = joined[n-1]
					joined = joined[:n-1]
				}
			case 4:
				if step%10 == 0 { // it ends, and may be fetched again
					close(sources[i].hold)
					synctest.Wait()
					sources[i].hold = make(chan struct{})
					p.store.Remove(blobs[i].Digest)
				}
			}
			synctest.Wait()
			p.mu.Lock()
			read := 0
			for _, f := range p.flights {
				if f.readers > 0 {
					read++
				}
			}
			if read != p.withReaders || len(p.flights)-read > orphans {
				t.Errorf("step %d: %d of %d flights have readers, counted are %d", step, read, len(p.flights), p.withReaders)
			}
			p.mu.Unlock()
		}
		for _, f := range joined {
			f.Leave()
		}
		for _, m := range sources {
			close(m.hold)
		}
	})
}

// TestFailureIsRememberedFromTheSecondInARowOn: and only for the repository that it was met
// under. Readers who have got nothing of the first one are told to look again.
func TestFailureIsRememberedFromTheSecondInARowOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, 1<<30, Limits{})
		m := &memory{}
		b := blobOf(m, 1000, "other bytes ")
		b.Digest = digest.FromString("what was asked for")
		for i, want := range []error{ErrEnded, storage.ErrDigest} {
			f, _, err := p.Start(t.Context(), b)
			if err == nil {
				_, err = f.Reader(t.Context(), nil)
				f.Leave()
			} else if errors.Is(err, ErrEnded) {
				want = ErrEnded // it has failed before Start returned
			}
			if !errors.Is(err, want) {
				t.Errorf("a blob with the wrong bytes, time %d: %v", i, err)
			}
			synctest.Wait()
			if err := p.Failed(b.Origin.Repository, b.Digest); (err != nil) != (i > 0) || i > 0 && !errors.Is(err, storage.ErrDigest) {
				t.Errorf("time %d is remembered as %v", i, err)
			}
		}
		if err := p.Failed("docker.io/library/b", b.Digest); err != nil {
			t.Errorf("another repository is told %v", err)
		}
		if n := p.Stats().DigestMismatches; n != 2 {
			t.Errorf("%d mismatches are counted", n)
		}
		time.Sleep(failedFirst)
		if err := p.Failed(b.Origin.Repository, b.Digest); err != nil {
			t.Errorf("later: %v", err)
		}
	})
}

// TestBlobThatBrokeIsVerifiedFirst: the headers of a blob whose last body broke wait until it is
// verified, for 10 s at most while bytes come, and fail after 4 s when none do.
func TestBlobThatBrokeIsVerifiedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			last byte
			hold bool
			want error
			took time.Duration
		}{
			{'x', false, storage.ErrDigest, 0},
			{0, false, nil, 0},
			{0, true, ErrTimeout, 4 * time.Second},
		} {
			p := newPool(t, 1<<30, Limits{})
			m := &memory{}
			b := blobOf(m, 2<<20, "large ")
			good := m.blob
			for i, last := range []byte{'y', c.last} {
				m.blob = bytes.Clone(good)
				if last > 0 {
					m.blob[len(good)-1] = last
				}
				if m.hold = nil; i > 0 && c.hold {
					m.hold = make(chan struct{})
				}
				began := time.Now()
				f, _, err := p.Start(t.Context(), b)
				if err != nil {
					t.Fatal(err)
				}
				rd, err := f.Reader(t.Context(), nil)
				if _, whole := p.store.Has(b.Digest); errors.Is(err, ErrEnded) && whole {
					err = nil // it was verified and has ended: the client gets it from the store
				}
				if took := time.Since(began); i > 0 && (!errors.Is(err, c.want) || took != c.took) {
					t.Errorf("%+v: %v after %s", c, err, took)
				}
				if rd != nil {
					rd.Close()
				}
				f.Leave()
				if m.hold != nil {
					close(m.hold)
				}
				synctest.Wait()
			}
		}
	})
}

// TestBypassHoldsTheLastByteBack: a blob that isn't kept is verified too, and the client of one
// with wrong bytes doesn't get all of it.
func TestBypassHoldsTheLastByteBack(t *testing.T) {
	p := newPool(t, 1<<20, Limits{})
	for _, size := range []int{1000, 3 << 20} {
		m := &memory{}
		b := blobOf(m, size, "x")
		for _, wrong := range []bool{false, true} {
			if wrong {
				b.Digest = digest.FromString("what was asked for")
			}
			by, err := p.Bypass(t.Context(), b, Part{To: -1})
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			n, err := by.Send(w, 0, by.Size())
			by.Close()
			if wrong != errors.Is(err, storage.ErrDigest) || wrong != (n < int64(size)) || n != int64(w.Body.Len()) {
				t.Errorf("%d bytes, wrong %v: %d sent, %v", size, wrong, n, err)
			}
		}
	}
}

// TestNobodyJoinsAFlightThatHasFailed: its readers know that the bytes were wrong before it has
// left the pool. Who asks then waits until it has, and gets the next one.
func TestNobodyJoinsAFlightThatHasFailed(t *testing.T) {
	for _, join := range []bool{true, false} {
		t.Run(fmt.Sprint("join ", join), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPool(t, 1<<30, Limits{})
				ends := make(chan struct{})
				p.log = slog.New(blockingHandler{slog.DiscardHandler, ends}) // a failure is logged before the flight leaves the pool
				m := &memory{}
				b := blobOf(m, 2<<20, "wrong ")
				right := m.blob
				m.blob = bytes.Clone(right)
				m.blob[len(right)-1]++
				f, _, err := p.Start(t.Context(), b)
				if err != nil {
					t.Fatal(err)
				}
				rd, err := f.Reader(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadAll(&reader{rd, t.Context(), 0}); !errors.Is(err, storage.ErrDigest) {
					t.Fatalf("the first reader: %v", err)
				}
				rd.Close()
				f.Leave()
				m.blob = right
				synctest.Wait()
				time.AfterFunc(time.Second, func() { close(ends) })
				if join {
					f, err = p.Join(t.Context(), b.Digest)
				} else {
					f, _, err = p.Start(t.Context(), b)
				}
				if err == nil {
					f.Leave()
				}
				if !errors.Is(err, ErrEnded) {
					t.Errorf("the next client joined the flight that has failed: %v", err)
				}
				<-ends
				synctest.Wait()
				f, first, err := p.Start(t.Context(), b)
				if err != nil || !first {
					t.Fatalf("after its end: first is %v, %v", first, err)
				}
				defer f.Leave()
				rd, err = f.Reader(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer rd.Close()
				if err := f.Verified(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// blockingHandler handles a message when ends is closed.
type blockingHandler struct {
	slog.Handler
	ends chan struct{}
}

func (h blockingHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h blockingHandler) Handle(context.Context, slog.Record) error {
	<-h.ends
	return nil
}
