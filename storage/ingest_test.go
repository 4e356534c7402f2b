package storage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

// TestReadersFollowAGrowingBlob: many readers get all bytes in order while they arrive in any
// order.
func TestReadersFollowAGrowingBlob(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	body := noise(3, 5<<20)
	d := digest.FromBytes(body)
	in, err := s.Begin(Origin{Repository: repo}, d, int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		r, _ := in.Reader()
		wg.Go(func() {
			defer r.Close()
			if got, err := io.ReadAll(&follow{r: r}); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	// Ranges arrive out of order.
	const chunk = 100 << 10
	var order []int
	for at := 0; at < len(body); at += chunk {
		order = append(order, at)
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, at := range order {
		if _, err := in.WriteAt(body[at:min(at+chunk, len(body))], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	balanced(t, s)
}

// TestLastByteIsHeldUntilTheDigestIsRight: no reader gets all of a blob with a wrong digest, or any
// byte of a small one, and it isn't kept.
func TestLastByteIsHeldUntilTheDigestIsRight(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	for _, size := range []int{0, 1, 1000, VerifyFirst, VerifyFirst + 1, 3 << 20} {
		body := noise(uint64(size), size)
		d := digest.FromString("something else")
		in, err := s.Begin(Origin{Repository: repo}, d, int64(size))
		if err != nil {
			t.Fatal(err)
		}
		r, _ := in.Reader()
		if size > 0 {
			if _, err := in.WriteAt(body, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := in.Commit(); !errors.Is(err, ErrDigest) {
			t.Fatalf("%d bytes: Commit = %v", size, err)
		}
		got, err := io.ReadAll(&follow{r: r})
		if !errors.Is(err, ErrDigest) {
			t.Errorf("%d bytes: reader got %v", size, err)
		}
		if len(got) >= max(size, 1) || size <= VerifyFirst && len(got) > 0 {
			t.Errorf("of %d wrong bytes a reader got %d", size, len(got))
		}
		r.Close()
		if get(t, s, d) != nil {
			t.Error("wrong bytes were kept")
		}
		balanced(t, s)
	}
}

// TestMissingBytesAreNotCommitted: a blob with a gap is not committed, and one that is too long
// neither.
func TestMissingBytesAreNotCommitted(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	body := noise(4, 2<<20)
	in, err := s.Begin(Origin{Repository: repo}, digest.FromBytes(body), int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	in.WriteAt(body[:1<<20], 0)
	if _, err := in.WriteAt(body, 1<<20); err == nil {
		t.Error("more bytes than announced were taken")
	}
	if err := in.Commit(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Commit = %v", err)
	}
	balanced(t, s)
}

// TestNoByteIsChangedOnceWritten: bytes that are written a second time, after they were hashed, don't
// get into the blob.
func TestNoByteIsChangedOnceWritten(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	b := noise(3, 4<<20)
	d := digest.FromBytes(b)
	in, _ := s.Begin(Origin{Repository: repo}, d, int64(len(b)))
	in.WriteAt(b[:2<<20], 0)
	for {
		in.mu.Lock()
		h := in.hashed
		in.mu.Unlock()
		if h == 2<<20 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	in.WriteAt([]byte("garbage"), 1<<20)
	in.WriteAt(b[2<<20:], 2<<20)
	if err := in.Commit(); err != nil {
		return
	}
	f, err := s.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s.Verify(context.Background(), d, nil) != nil {
		t.Error("a blob with other bytes was committed as", d)
	}
}

// TestFailedCommitLeavesNoFile: the process is out of file descriptors during the commit. So no other
// test may run beside it.
func TestFailedCommitLeavesNoFile(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	put(t, s, noise(1, 100))
	b := noise(4, 2<<20)
	d := digest.FromBytes(b)
	os.MkdirAll(filepath.Dir(s.files.layout.blob(d)), 0o700)
	in, err := s.Begin(Origin{Repository: repo}, d, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	in.WriteAt(b, 0)
	var old syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old)
	low := old
	low.Cur = 3
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low)
	err = in.Commit()
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)
	if err == nil {
		t.Fatal("no error")
	}
	balanced(t, s)
}

// TestUnknownSizeGrowsInSteps: a blob of unknown size reserves a little more than has arrived.
func TestUnknownSizeGrowsInSteps(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), 100<<20)
	body := noise(5, 20<<20)
	d := digest.FromBytes(body)
	in, err := s.Begin(Origin{Repository: repo}, d, -1)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(body); at += 1 << 20 {
		if _, err := in.WriteAt(body[at:at+1<<20], int64(at)); err != nil {
			t.Fatal(err)
		}
		if st := s.Stats(); st.Bytes != int64(at+1<<20) || st.ReservedBytes > growStep {
			t.Fatalf("at %d: %+v", at, st)
		}
	}
	if err := in.SetSize(int64(len(body))); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, s, d), body) {
		t.Error("other bytes")
	}
	balanced(t, s)
}

// TestPartialIsResumed: after a restart only the missing bytes of an unfinished blob are needed.
func TestPartialIsResumed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	body := noise(6, 4<<20)
	d := digest.FromBytes(body)
	in, err := s.Begin(Origin{Repository: repo}, d, int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	resumed := func() bool {
		r, _ := in.Reader()
		defer r.Close()
		return r.Resumed()
	}
	if resumed() {
		t.Error("a new one is said to be resumed")
	}
	in.WriteAt(body[:1<<20], 0)
	in.WriteAt(body[2<<20:3<<20], 2<<20)
	in.Abort(errors.New("upstream went away"))
	balanced(t, s)
	shut(t, s)

	s = open(t, dir, 100<<20)
	balanced(t, s)
	in, err = s.Begin(Origin{Repository: repo}, d, int64(len(body)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Span{{1 << 20, 2 << 20}, {3 << 20, 4 << 20}}, in.Missing()); diff != "" {
		t.Error(diff)
	}
	if !resumed() {
		t.Error("a resumed one is said to be new")
	}
	for _, g := range in.Missing() {
		in.WriteAt(body[g.From:g.To], g.From)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, s, d), body) {
		t.Error("other bytes")
	}
	balanced(t, s)
}

// TestPartialOfAnotherBootIsDropped: after a crash of the machine nobody knows which bytes are there.
func TestPartialOfAnotherBootIsDropped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	body := noise(7, 2<<20)
	in, _ := s.Begin(Origin{Repository: repo}, digest.FromBytes(body), int64(len(body)))
	in.WriteAt(body[:1<<20], 0)
	in.Abort(errors.New("upstream went away"))
	path := s.files.layout.partialState(in.digest)
	shut(t, s)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(path, bytes.Replace(b, []byte(bootID()), []byte("another"), 1), 0o600)
	s = open(t, dir, 100<<20)
	if files, _ := os.ReadDir(s.files.layout.ingest()); len(files) > 0 {
		t.Errorf("%d files stay in ingest/", len(files))
	}
	balanced(t, s)
}
