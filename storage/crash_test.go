package storage

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// The tests of crashes start the test binary as a writer, and kill it (kill -9) at a random moment.

const (
	crashDir    = "HUBCACHE_CRASH_DIR"
	crashBudget = "HUBCACHE_CRASH_BUDGET"
	crashPins   = "HUBCACHE_CRASH_PINS" // not empty: the writer pins, unpins and purges, too
)

// crashRounds is how often the writer is killed: 10 times, or 200 times if HUBCACHE_SOAK is set.
func crashRounds() int {
	if os.Getenv("HUBCACHE_SOAK") != "" {
		return 200
	}
	return 10
}

// TestCrashWriter is the writer. It prints what has been committed.
func TestCrashWriter(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		return // it is run by the tests below only
	}
	var budget int64
	fmt.Sscan(os.Getenv(crashBudget), &budget)
	s, err := Open(Options{Dir: dir, Budget: budget, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		go crashWrite(s)
	}
	crashWrite(s)
}

func crashWrite(s *Store) {
	for {
		repository := fmt.Sprintf("docker.io/library/app%d", rand.IntN(5))
		b := noise(rand.Uint64(), 1+rand.IntN(3<<20))
		d := digest.FromBytes(b)
		in, err := s.Begin(Origin{Repository: repository}, d, int64(len(b)))
		if err != nil {
			continue
		}
		half := len(b) / 2
		in.WriteAt(b[half:], int64(half)) // the second half first
		if rand.IntN(4) == 0 {
			in.Abort(io.ErrUnexpectedEOF)
			continue
		}
		in.WriteAt(b[:half], 0)
		if in.Commit() != nil {
			continue
		}
		if rand.IntN(8) == 0 { // lost, which verify finds and drops; a crash may come in between
			os.Remove(s.files.layout.blob(d))
			s.Verify(context.Background(), d, nil)
			continue
		}
		fmt.Println("blob", d)
		m := fmt.Appendf(nil, `{"layers":[{"digest":%q,"size":%d}]}`, d, len(b))
		md := digest.FromBytes(m)
		if s.PutManifest(Origin{Repository: repository}, md, "application/x", m) == nil {
			s.SetTag(repository, "1", Tag{Digest: md, MediaType: "application/x", Size: int64(len(m)), Checked: time.Now()})
			fmt.Println("blob", md)
			if os.Getenv(crashPins) != "" {
				crashPin(s, repository, md)
			}
		}
	}
}

// crashPin pins an image that has been committed, and may take the pin back or purge the image. It
// prints what stays pinned, and before it is done what may not be.
func crashPin(s *Store, repository string, manifest digest.Digest) {
	if _, err := s.Pin(repository, "", manifest); err != nil {
		return
	}
	fmt.Println("pin", repository, manifest)
	if rand.IntN(3) == 0 {
		return
	}
	fmt.Println("unpin", repository, manifest)
	s.Unpin(repository, "", manifest)
	if all, err := s.Closure(repository, manifest); err == nil && rand.IntN(2) == 0 {
		parts := slices.Collect(maps.Keys(all))
		s.Purge(Removal{Repository: repository, Tags: []string{"1"}, Links: parts, Blobs: parts})
	}
}

// crash runs a writer for a while, kills it, and returns what it had committed.
func crash(t *testing.T, dir string, budget int64) (committed []digest.Digest) {
	t.Helper()
	for _, line := range crashLines(t, dir, budget) {
		if d, ok := strings.CutPrefix(line, "blob "); ok && digest.Digest(d).Validate() == nil {
			committed = append(committed, digest.Digest(d))
		}
	}
	return committed
}

// crashLines is crash for all that the writer has said, with more of its environment.
func crashLines(t *testing.T, dir string, budget int64, env ...string) (said []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashWriter$")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, fmt.Sprintf("%s=%d", crashBudget, budget))
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Duration(50+rand.IntN(400))*time.Millisecond, func() { cmd.Process.Kill() })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
	}
	cmd.Wait()
	return said
}

// intact compares a store that was just opened with its files.
func intact(t *testing.T, s *Store) {
	t.Helper()
	err := filepath.WalkDir(s.files.layout.blobs(), func(path string, f fs.DirEntry, err error) error {
		if err != nil || f.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && digest.FromBytes(b).Encoded() != f.Name() {
			t.Errorf("%s has other bytes", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// A file whose record the crash has lost is adopted in the background.
	for deadline := time.Now().Add(time.Minute); bytesOnDisk(t, s) != s.Stats().Bytes && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	balanced(t, s)
	files, err := os.ReadDir(s.files.layout.ingest())
	if err != nil {
		t.Error(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), ".json")
		if size, gaps := s.Partial(digest.Digest(strings.Replace(name, "-", ":", 1))); size == 0 || len(gaps) == 0 {
			t.Errorf("ingest/%s can't be resumed", f.Name())
		}
	}
}

// TestCrashLosesNothingCommitted: with room for all, all that was committed is there after each
// crash, and tags name manifests that are there.
func TestCrashLosesNothingCommitted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const budget = 8 << 30
	all := map[digest.Digest]bool{}
	for range crashRounds() {
		for _, d := range crash(t, dir, budget) {
			all[d] = true
		}
		s := open(t, dir, budget)
		intact(t, s)
		for d := range all {
			if _, ok := s.Has(d); !ok {
				t.Errorf("%s was committed and is gone", d)
			}
		}
		for i := range 5 {
			repository := fmt.Sprintf("docker.io/library/app%d", i)
			if tag, err := s.Tag(repository, "1"); err == nil {
				if _, err := s.Manifest(tag.Digest); err != nil {
					t.Errorf("%s: %v", repository, err)
				}
			}
		}
		shut(t, s)
		if len(all) > 600 { // more would take too long to hash
			dir, all = t.TempDir(), map[digest.Digest]bool{}
		}
	}
}

// TestCrashDuringEviction: with room for a few blobs only, files and accounts agree after each crash.
func TestCrashDuringEviction(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const budget = 20 << 20
	for range crashRounds() {
		crash(t, dir, budget)
		s := open(t, dir, budget)
		intact(t, s)
		shut(t, s)
	}
}

// TestCrashKeepsPins: what is pinned is there after each crash, with the index or without, while
// everything else is evicted; and what was said to be pinned is.
func TestCrashKeepsPins(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const budget = 20 << 20
	image := draw(1, nil, 2<<20, 1<<20)
	s := open(t, dir, budget)
	image.pull(t, s, repo, "7")
	mustPin(t, s, repo, "7")
	shut(t, s)
	for round := range crashRounds() {
		pinned := map[string]bool{}
		for _, line := range crashLines(t, dir, budget, crashPins+"=1") {
			words := strings.Fields(line)
			if len(words) == 3 && len(words[2]) == len(image.manifest) { // the last one may be cut
				pinned[words[1]+"@"+words[2]] = words[0] == "pin"
			}
		}
		if round%2 == 1 {
			if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
				t.Fatal(err)
			}
		}
		s := open(t, dir, budget)
		intact(t, s)
		if st := stateOf(t, s, repo, "7"); !st.Protected || image.missing(s) != 0 {
			t.Errorf("round %d: %+v, %d blobs are gone", round, st, image.missing(s))
		}
		all, err := s.Pins()
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range all {
			delete(pinned, st.Reference())
		}
		for ref, sure := range pinned {
			if sure {
				t.Errorf("round %d: %s isn't pinned", round, ref)
			}
		}
		if st := s.Stats(); st.PinnedBytes > s.PinLimit() {
			t.Errorf("round %d: %d bytes are pinned", round, st.PinnedBytes)
		}
		shut(t, s)
	}
}

// TestCrashAndDamagedIndex: the crash damages the index. Blobs, tags and links are there all the same.
func TestCrashAndDamagedIndex(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string, size int64) error{
		"truncated": func(path string, size int64) error { return os.Truncate(path, rand.Int64N(size)) },
		"zeroed":    func(path string, size int64) error { return os.WriteFile(path, make([]byte, size), 0o600) },
		"deleted":   func(path string, _ int64) error { return os.Remove(path) },
		"corrupt": func(path string, size int64) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(noise(rand.Uint64(), 4096), rand.Int64N(size-4096))
			return err
		},
		"text": func(path string, _ int64) error {
			return os.WriteFile(path, bytes.Repeat([]byte("index?\n"), 5000), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			const budget = 8 << 30
			s := open(t, dir, budget)
			b := noise(7, 3<<20)
			d := put(t, s, b)
			m := fmt.Appendf(nil, `{"layers":[{"digest":%q,"size":%d}]}`, d, len(b))
			md := digest.FromBytes(m)
			if err := s.PutManifest(Origin{Repository: repo}, md, "application/x", m); err != nil {
				t.Fatal(err)
			}
			s.SetTag(repo, "7", Tag{Digest: md, MediaType: "application/x", Size: int64(len(m)), Checked: time.Now()})
			s.SetVisibility(repo, Visibility{Public: true, At: time.Now()})
			shut(t, s)
			committed := crash(t, dir, budget)
			index := filepath.Join(dir, "index.db")
			fi, err := os.Stat(index)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(index, fi.Size()); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			s = open(t, dir, budget)
			if took := time.Since(start); took > 20*time.Second { // ten times what is promised, as the machine may be slow and busy
				t.Errorf("the start took %s", took)
			}
			intact(t, s)
			for _, d := range append(committed, d, md) {
				if err := s.Verify(context.Background(), d, nil); err != nil {
					t.Errorf("%s: %v", d, err)
				}
			}
			if tag, err := s.Tag(repo, "7"); err != nil || tag.Digest != md {
				t.Errorf("tag: %+v, %v", tag, err)
			}
			if got, err := s.Manifest(md); err != nil || got.MediaType != "application/x" || !bytes.Equal(got.Body, m) {
				t.Errorf("manifest: %v", err)
			}
			if _, err := s.Link(repo, d); err != nil {
				t.Errorf("link: %v", err)
			}
			if v, err := s.Visibility(repo); err != nil || !v.Public {
				t.Errorf("visibility: %+v, %v", v, err)
			}
			shut(t, s)
		})
	}
}
