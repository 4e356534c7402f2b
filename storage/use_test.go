package storage

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestLastUsesOutliveACrash: a base image that came in before all others and is in use is not the
// first to be evicted after a crash, with an index that is behind and without one. Only the
// process that used it knew of that; it had no time to write its index.
func TestLastUsesOutliveACrash(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, dir string, before []byte){
		"the index is behind": func(t *testing.T, dir string, before []byte) {
			if err := os.WriteFile(filepath.Join(dir, "index.db"), before, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"the index is lost": func(t *testing.T, dir string, _ []byte) {
			if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, 100<<20)
			settleDown(t, s)
			now := time.Now()
			base := put(t, s, noise(1, 1<<20))
			manifest := fmt.Appendf(nil, `{"schemaVersion":2,"layers":[{"digest":%q,"size":%d}]}`, base, 1<<20)
			image := digest.FromBytes(manifest)
			if err := s.PutManifest(Origin{Repository: repo}, image, "x", manifest); err != nil {
				t.Fatal(err)
			}
			all := []digest.Digest{base, image}
			for i := range 4 {
				all = append(all, put(t, s, noise(uint64(10+i), 1<<20)))
			}
			for i, d := range all { // they came in long ago, one after the other
				came := now.Add(time.Duration(i-60) * time.Minute)
				os.Chtimes(s.files.layout.blob(d), came, came.Add(time.Microsecond))
				s.room.mu.Lock()
				s.room.lru.Peek(d).Value.used = came.UnixNano()
				s.room.mu.Unlock()
				s.catalogue.setUse(d, came)
			}
			shut(t, s)
			before, err := os.ReadFile(filepath.Join(dir, "index.db"))
			if err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, 100<<20)
			s.Touch(image)
			shut(t, s)
			lose(t, dir, before)
			for range 2 { // what was found again isn't lost with the next start
				s = open(t, dir, 100<<20)
				settleDown(t, s)
				shut(t, s)
			}
			s = open(t, dir, 100<<20)
			settleDown(t, s)
			s.SetLimits(2<<20, 0)
			if get(t, s, base) == nil || get(t, s, image) == nil {
				t.Error("the image in use was evicted before those that nobody used")
			}
			if got := get(t, s, all[len(all)-1]); got != nil {
				t.Error("the youngest of the unused ones has stayed, and there is no room for it")
			}
			balanced(t, s)
		})
	}
}

// TestRestartsEverySecondKeepTheHottestImage: the process is killed soon after each start, over
// and over, before it can write last uses into its index. What each of them has used stays, and
// what none has used leaves.
func TestRestartsEverySecondKeepTheHottestImage(t *testing.T) {
	if dir := os.Getenv(crashDir); dir != "" {
		s, err := Open(Options{Dir: dir, Budget: 100 << 20})
		if err != nil {
			t.Fatal(err)
		}
		s.Touch(digest.Digest(os.Getenv("HUBCACHE_CRASH_USE")))
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	dir := t.TempDir()
	s := open(t, dir, 100<<20)
	old := time.Now().Add(-time.Hour)
	hot := put(t, s, noise(1, 1<<20))
	s.catalogue.setUse(hot, old)
	os.Chtimes(s.files.layout.blob(hot), old, old)
	var cold []digest.Digest
	for i := range 3 {
		cold = append(cold, put(t, s, noise(uint64(10+i), 1<<20)))
		came := old.Add(time.Duration(i+1) * time.Minute)
		s.catalogue.setUse(cold[i], came)
		os.Chtimes(s.files.layout.blob(cold[i]), came, came)
	}
	shut(t, s)
	for range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestRestartsEverySecondKeepTheHottestImage$")
		cmd.Env = append(os.Environ(), crashDir+"="+dir, "HUBCACHE_CRASH_USE="+string(hot))
		cmd.Run()
		if ws := cmd.ProcessState.Sys().(interface{ Signaled() bool }); !ws.Signaled() {
			t.Fatalf("it was not killed: %s", cmd.ProcessState)
		}
	}
	s = open(t, dir, 100<<20)
	settleDown(t, s)
	s.SetLimits(1<<20, 0)
	if get(t, s, hot) == nil {
		t.Error("the blob that every process has used was evicted")
	}
	for _, d := range cold {
		if get(t, s, d) != nil {
			t.Errorf("%s has stayed, and there is no room for it", d)
		}
	}
}

// TestReadingAFileIsNoUse: neither a backup that reads all files nor the hashing of a blob changes
// what is known of its last use.
func TestReadingAFileIsNoUse(t *testing.T) {
	s := open(t, t.TempDir(), 100<<20)
	d := put(t, s, noise(1, 1<<20))
	path := s.files.layout.blob(d)
	old := time.Now().Add(-48 * time.Hour).Truncate(time.Second)
	lastUse := func() time.Time {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		at, _ := lastUseOf(fi, time.Now().UnixNano())
		return time.Unix(0, at)
	}
	used := old.Add(time.Hour)
	os.Chtimes(path, used, old)
	if got := lastUse(); !got.Equal(used) {
		t.Errorf("last use %s, marked %s", got, used)
	}
	get(t, s, d) // old enough for the kernel to change the access time, if it were asked to
	if got := lastUse(); !got.Equal(used) {
		t.Errorf("last use %s after hubcache has read the file, marked %s", got, used)
	}
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	os.Chtimes(path, time.Now().Truncate(time.Second).Add(123456789), old) // as the read may have done
	if got := lastUse(); !got.Equal(old) {
		t.Errorf("last use %s after a backup, came in %s", got, old)
	}
}
