package history

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
)

// lab is a ring whose server has served so many bytes.
type lab struct {
	t      *testing.T
	path   string
	served atomic.Int64
	log    bytes.Buffer // read it when the ring is closed
	*Ring
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, path: filepath.Join(t.TempDir(), "history.db")}
	l.open()
	return l
}

func (l *lab) open() {
	l.served.Store(0)
	l.Ring = Open(Options{Path: l.path, Log: slog.New(slog.NewTextHandler(&l.log, nil)),
		Count: func() Counts { return Counts{Served: l.served.Load(), Requests: l.served.Load() / 10} }})
}

// restart is a new run of the server.
func (l *lab) restart() {
	l.Close()
	l.open()
}

// sums returns what was served in the last hour, day and month.
func (l *lab) sums() (sums [3]int64) {
	for i, s := range l.Series() {
		sums[i] = s.Sum().Served
	}
	return sums
}

func (l *lab) expect(want ...int64) {
	l.t.Helper()
	if got := l.sums(); got != [3]int64(want) {
		l.t.Errorf("%v: hour, day and month %v, want %v", time.Now().UTC(), got, want)
	}
}

// TestHistoryCountsByTime: what was served is in the step in which it was, seen at once, and leaves
// the hour, the day and the month one after the other.
func TestHistoryCountsByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer func() { l.Close() }()
		l.expect(0, 0, 0)
		time.Sleep(30 * time.Second)
		l.served.Add(100)
		l.expect(100, 100, 100)
		if p := l.Series()[0].Points; len(p) != 60 || p[59].Served != 100 || p[59].Requests != 10 || !p[59].At.Equal(time.Now().Truncate(time.Minute)) {
			t.Errorf("%+v", p[59])
		}
		time.Sleep(40 * time.Second) // into the next minute
		l.served.Add(7)
		if p := l.Series()[0].Points; p[58].Served != 100 || p[59].Served != 7 {
			t.Errorf("%+v", p[58:])
		}
		time.Sleep(2 * time.Hour)
		l.expect(0, 107, 107)
		time.Sleep(24 * time.Hour)
		l.expect(0, 0, 107)
		time.Sleep(31 * 24 * time.Hour)
		l.expect(0, 0, 0)
	})
}

// TestHistorySurvives: a restart adds to what was, and a kill loses a minute at most. A server that
// serves nothing writes nothing.
func TestHistorySurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		time.Sleep(10 * time.Minute)
		if _, err := os.Stat(l.path); err == nil {
			t.Error("a file of nothing")
		}
		l.served.Add(100)
		l.restart()
		l.served.Add(5)
		l.expect(105, 105, 105)
		time.Sleep(61 * time.Second)
		l.served.Add(1000)
		copied, err := os.ReadFile(l.path) // as a kill would leave it
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if err := os.WriteFile(l.path, copied, 0o600); err != nil {
			t.Fatal(err)
		}
		l.open()
		l.expect(105, 105, 105)
		l.Close()
		if l.log.Len() > 0 {
			t.Errorf("%s", &l.log)
		}
	})
}

// TestHistoryIsBounded: however long a server runs, the file stays small.
func TestHistoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		now := time.Now()
		for n := range 2000 {
			for _, res := range resolutions {
				l.served.Add(1)
				l.count(now.Add(time.Duration(n) * res.step))
			}
		}
		for i, p := range l.snapshot() {
			if len(p) > 2*resolutions[i].steps {
				t.Errorf("%s: %d points", resolutions[i].name, len(p))
			}
		}
		l.Close()
		if fi, err := os.Stat(l.path); err != nil || fi.Size() > 1<<20 {
			t.Errorf("%v %v", fi.Size(), err)
		}
	})
}

// TestClockJumps: a machine that thinks for some minutes that it is 1970, or ten years ahead, has
// its history again when the clock is right. What is counted at a jump belongs to the time after it.
func TestClockJumps(t *testing.T) {
	l := newLab(t)
	now := time.Date(2026, 1, 2, 12, 0, 30, 0, time.UTC)
	for n := range 120 {
		l.served.Add(1)
		l.count(now.Add(time.Duration(n) * time.Minute))
	}
	now = now.Add(120 * time.Minute)
	before := l.snapshot()
	for _, wrong := range []time.Time{time.Unix(5, 0), now.AddDate(10, 0, 0)} {
		for n := range 5 {
			l.served.Add(1000)
			l.count(wrong.Add(time.Duration(n) * time.Minute))
		}
		l.count(now)
		for i, p := range before {
			for at, c := range p {
				if got := l.snapshot()[i][at]; got != c && now.Unix()-at < 3600 {
					t.Errorf("after %v: %v has %+v, want %+v", wrong, time.Unix(at, 0), got, c)
				}
			}
		}
	}
	l.served.Add(7)
	l.count(now.Add(time.Second))
	if got := l.snapshot()[0][stepOf(now, time.Minute)]; got.Served != 7 {
		t.Errorf("%+v", got)
	}
	l.Close()
}

// TestDamagedHistoryIsSetAside: whatever is in the file, the server runs, and what it counts itself
// is kept, even if the damage is done while it runs.
func TestDamagedHistoryIsSetAside(t *testing.T) {
	good := func(t *testing.T) []byte {
		var b []byte
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			l.served.Add(100)
			l.Close()
			b, _ = os.ReadFile(l.path)
		})
		return b
	}(t)
	flip := func(text string) []byte {
		at := bytes.Index(good, []byte(text))
		if at < 0 {
			t.Fatalf("%q isn't in the file", text)
		}
		b := bytes.Clone(good)
		b[at+len(text)-1]++
		return b
	}
	for name, content := range map[string][]byte{
		"not bbolt": []byte(strings.Repeat("x", 40000)), "cut": good[:len(good)/2], "a digit": flip(`"served":1`), "a name": flip(`"serv`),
		"zeros": make([]byte, len(good)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				l.Close()
				if err := os.WriteFile(l.path, content, 0o600); err != nil {
					t.Fatal(err)
				}
				l.open()
				l.expect(0, 0, 0)
				l.served.Add(3)
				time.Sleep(time.Minute)
				synctest.Wait()
				if err := os.WriteFile(l.path, content, 0o600); err != nil { // again, under the running server
					t.Fatal(err)
				}
				l.served.Add(1)
				l.restart()
				l.expect(4, 4, 4)
				l.Close()
				if !strings.Contains(l.log.String(), "set aside") {
					t.Errorf("%s", &l.log)
				}
			})
		})
	}
}

// TestNewerHistoryStays: a file of a newer version is neither read nor written.
func TestNewerHistoryStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.served.Add(100)
		l.Close()
		db, err := bbolt.Open(l.path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket(metaBucket).Put(versionKey, []byte("2"))
		})
		if err != nil || db.Close() != nil {
			t.Fatal(err)
		}
		newer, _ := os.ReadFile(l.path)
		l.open()
		l.served.Add(3)
		l.expect(3, 3, 3)
		time.Sleep(10 * time.Minute)
		l.Close()
		if now, _ := os.ReadFile(l.path); !bytes.Equal(now, newer) {
			t.Error("the file was changed")
		}
		if n := strings.Count(l.log.String(), "newer hubcache"); n != 1 {
			t.Errorf("%d lines: %s", n, &l.log)
		}
	})
}

// TestHistoryComesLate: a file that can't be read at the start is added when it can.
func TestHistoryComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		l.served.Add(100)
		l.Close()
		hidden := l.path + ".hidden"
		if os.Rename(l.path, hidden) != nil || os.Mkdir(l.path, 0o700) != nil {
			t.Fatal("can't hide the file")
		}
		l.open()
		l.served.Add(3)
		time.Sleep(5*time.Minute + time.Second) // not while it is tried again, which makes a file
		l.expect(3, 3, 3)
		if os.Remove(l.path) != nil || os.Rename(hidden, l.path) != nil {
			t.Fatal("can't put the file back")
		}
		time.Sleep(5 * time.Minute)
		l.expect(103, 103, 103)
		l.restart()
		l.expect(103, 103, 103)
		l.Close()
		if n := strings.Count(l.log.String(), "tried again"); n != 1 {
			t.Errorf("%d lines: %s", n, &l.log)
		}
	})
}
