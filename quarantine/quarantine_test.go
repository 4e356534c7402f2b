package quarantine

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	tag  = "docker.io/library/redis:7"
	wait = 72 * time.Hour
)

var nothing = func(digest.Digest) bool { return false }

func sighting(n int) Sighting {
	return Sighting{Digest: digest.FromString(fmt.Sprint(n)), MediaType: "application/json", Size: int64(n)}
}

// TestPickNeverServesWhatHasNotWaited: whatever tags do, and whatever the clock does but run ahead, a
// digest that was not served before is picked only when it has been known for the whole time; and one
// that was named long enough ago is picked, if nothing has replaced it.
func TestPickNeverServesWhatHasNotWaited(t *testing.T) {
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			b, first := New(), map[digest.Digest]time.Time{}
			for range 200 {
				s := sighting(r.IntN(30))
				if _, ok := first[s.Digest]; !ok {
					first[s.Digest] = time.Now()
				}
				b.Named(tag, s, Sighting{})
				got, left, ok := b.Pick(tag, wait, nothing)
				switch {
				case ok && time.Since(first[got.Digest]) < wait:
					t.Fatalf("seed %d: %s has waited %v", seed, got.Digest, time.Since(first[got.Digest]))
				case !ok && (left <= 0 || left > wait):
					t.Fatalf("seed %d: %v left", seed, left)
				}
				time.Sleep(time.Duration(r.Int64N(int64(wait / 4))))
			}
			last := sighting(1000)
			b.Named(tag, last, Sighting{})
			time.Sleep(wait)
			if got, _, ok := b.Pick(tag, wait, nothing); !ok || got.Digest != last.Digest {
				t.Fatalf("seed %d: %s, %v, want the last one", seed, got.Digest, ok)
			}
		})
	}
}

// TestBookIsBounded: however often a tag moves, and however many tags there are; and a tag that moves
// all the time is still answered with newer and newer digests.
func TestBookIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New()
		best := -1
		for n := range 5000 { // one an hour
			b.Named(tag, sighting(n), Sighting{})
			if got, _, ok := b.Pick(tag, wait, nothing); ok {
				if int(got.Size) < best {
					t.Fatalf("%d is served after %d", got.Size, best)
				}
				best = int(got.Size)
				b.Named(tag, sighting(n), got) // as the cache does with what it serves
			}
			time.Sleep(time.Hour)
		}
		if best < 5000-200 {
			t.Errorf("the last one served is %d of 5000", best)
		}
		if n := len(b.tags[tag].Sightings); n > maxDigests {
			t.Errorf("%d digests", n)
		}
		for n := range maxTags + 100 {
			b.Named(fmt.Sprint("docker.io/library/app:", n), sighting(n), Sighting{})
			time.Sleep(time.Second)
		}
		if len(b.tags) > maxTags || b.tags[tag] != nil {
			t.Errorf("%d tags", len(b.tags))
		}
	})
}

// TestClockThatIsSetBackWaitsLonger: of a digest that seems to be of the future, the whole wait is
// still to come.
func TestClockThatIsSetBackWaitsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New()
		b.Named(tag, sighting(1), Sighting{})
		b.tags[tag].Sightings[0].Seen = time.Now().Add(24 * time.Hour)
		time.Sleep(wait + time.Hour)
		if _, left, ok := b.Pick(tag, wait, nothing); ok || left != 23*time.Hour {
			t.Errorf("%v, %v left", ok, left)
		}
	})
}

// TestBookSurvives: a restart changes nothing, a damaged file is set aside, one of a newer version
// stays, and a kill loses a second.
func TestBookSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.NewTextHandler(io.Discard, nil))
		path := filepath.Join(t.TempDir(), "quarantine.json")
		b := Open(path, log)
		b.Named(tag, sighting(1), sighting(0))
		time.Sleep(2 * writeEvery)
		killed, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b.Named(tag, sighting(2), Sighting{})
		b.Close()
		b = Open(path, log)
		if n := len(b.tags[tag].Sightings); n != 3 {
			t.Errorf("%d digests after a restart", n)
		}
		if w := b.Waiting(tag, wait); w == nil || w.Digest != sighting(2).Digest {
			t.Errorf("waiting: %+v", w)
		}
		b.Close()
		for name, body := range map[string]string{
			"killed": string(killed), "cut": string(killed[:len(killed)/2]), "empty": "", "newer": `{"schema": 2, "tags": {}}`, "null": `{"schema": 1, "tags": {"a:b": null}}`,
		} {
			if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
			b := Open(path, log)
			_, _, ok := b.Pick(tag, wait, nothing)
			if ok != (name == "killed") {
				t.Errorf("%s: something has waited: %v", name, ok)
			}
			b.Named(tag, sighting(3), Sighting{})
			b.Close()
			after, err := os.ReadFile(path)
			if err != nil || (string(after) == body) != (name == "newer") {
				t.Errorf("%s: %q, %v", name, after, err)
			}
		}
	})
}
