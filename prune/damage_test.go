package prune

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// manyUses makes records of n images that were last used in days of their own, in a few batches,
// and returns the content of the file.
func manyUses(t *testing.T, n int) (Snapshot, map[string]Record, []byte) {
	t.Helper()
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	var s Snapshot
	want := map[string]Record{}
	for i := range n {
		img := Image{ID: fmt.Sprintf("sha256:%064x", i*7919), Size: 10}
		s.Images = append(s.Images, img)
		want[img.ID] = Record{daysAgo(float64(100 + i%50)), daysAgo(float64(10 + i%80))}
	}
	for part := range 4 {
		err := uses.update(func(r *records) error {
			mark, err := uses.mark(now)
			if err != nil {
				return err
			}
			if err := errors.Join(r.settle(mark), r.setWatchState(watchState{Alive: now, Event: eventMark{Nano: int64(part)}})); err != nil {
				return err
			}
			for i := part; i < n; i += 4 {
				if err := r.put(s.Images[i].ID, want[s.Images[i].ID]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	body, err := os.ReadFile(uses.Path)
	if err != nil {
		t.Fatal(err)
	}
	return s, want, body
}

// wantWholeOrUsedNow fails unless the file gives each record as it was, or all of them as used now. No
// image may look older than it is.
func wantWholeOrUsedNow(t *testing.T, what string, body []byte, s Snapshot, want map[string]Record) {
	t.Helper()
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	if err := os.WriteFile(uses.Path, body, 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := uses.observe(&s, now)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	_, err = os.Stat(uses.Path + ".bad")
	if setAside := err == nil; setAside != (o.damage != nil) {
		t.Errorf("%s: set aside: %v, reported: %v", what, setAside, o.damage)
	}
	whole, usedNow := true, true
	for id, rec := range want {
		got := o.uses[id]
		whole = whole && got.FirstSeen.Equal(rec.FirstSeen) && got.LastUsed.Equal(rec.LastUsed)
		usedNow = usedNow && got.LastUsed.Equal(now)
	}
	if !whole && !usedNow {
		t.Errorf("%s: the records are neither as they were nor as used now (damage: %v)", what, o.damage)
	}
	if err := uses.update(func(*records) error { return nil }); err != nil {
		t.Errorf("%s: the next batch: %v", what, err)
	}
}

// TestDamagedRecordsCountAsUsed: whatever a disk has made of the file, nothing panics, and no image
// looks older than it is.
func TestDamagedRecordsCountAsUsed(t *testing.T) {
	s, want, good := manyUses(t, 120)
	const page = 4096
	wantWholeOrUsedNow(t, "undamaged", good, s, want)
	for at := 0; at < len(good); at += page {
		wantWholeOrUsedNow(t, fmt.Sprintf("cut off at %d", at), good[:at], s, want)
		wantWholeOrUsedNow(t, fmt.Sprintf("cut off at %d", at+page/3), good[:min(at+page/3, len(good))], s, want)
		for name, change := range map[string]func(p []byte){
			"zeros": func(p []byte) { clear(p) },
			"ones":  func(p []byte) { copy(p, bytes.Repeat([]byte{0xff}, len(p))) },
			"noise": func(p []byte) {
				for i := range p {
					p[i] = byte(rand.Uint32())
				}
			},
			"another page": func(p []byte) { copy(p, good[(at+3*page)%len(good)/page*page:]) },
			"half of it":   func(p []byte) { clear(p[len(p)/2:]) },
		} {
			bad := bytes.Clone(good)
			change(bad[at:min(at+page, len(bad))])
			wantWholeOrUsedNow(t, fmt.Sprintf("%s at %d", name, at), bad, s, want)
		}
		for range 12 {
			bad, i := bytes.Clone(good), at+rand.IntN(page)
			if rand.IntN(2) == 0 { // the beginning of a page has what bbolt follows
				i = at + rand.IntN(200)
			}
			if i >= len(bad) {
				continue
			}
			bad[i] ^= byte(1 + rand.IntN(255))
			wantWholeOrUsedNow(t, fmt.Sprintf("byte %d was %#x and is %#x", i, good[i], bad[i]), bad, s, want)
		}
	}
}

// FuzzDamagedRecords changes bytes anywhere.
func FuzzDamagedRecords(f *testing.F) {
	f.Add(uint32(4096*3+17), byte(1), uint32(4096*2+8), byte(7))
	f.Fuzz(func(t *testing.T, i uint32, a byte, j uint32, b byte) {
		s, want, good := manyUses(t, 20)
		good[int(i)%len(good)] ^= a
		good[int(j)%len(good)] ^= b
		wantWholeOrUsedNow(t, "fuzz", good, s, want)
	})
}

// TestRunOnDamagedRecordsSaysSo, deletes nothing, and keeps the damaged file.
func TestRunOnDamagedRecordsSaysSo(t *testing.T) {
	for _, body := range [][]byte{bytes.Repeat([]byte("x"), 1<<16), nil} {
		e, c := newEngine(t, "1.41")
		addOrphans(e, 3)
		p := newPruner(t, e, c)
		if body == nil { // a wrong digit, which only a checksum shows
			good, err := os.ReadFile(p.Uses.Path)
			if err != nil {
				t.Fatal(err)
			}
			year := fmt.Sprint(time.Now().AddDate(0, 0, -30).Year())
			body = bytes.ReplaceAll(good, []byte(`"`+year), []byte(`"1`+year[1:]))
		}
		if err := os.WriteFile(p.Uses.Path, body, 0o600); err != nil {
			t.Fatal(err)
		}
		r := mustRun(t, p, true)
		wantDecision(t, r, Incomplete, "")
		if e.imagesLeft() != "abc" || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "damaged") {
			t.Errorf("left %q, warnings %q", e.imagesLeft(), r.Warnings)
		}
		if kept, err := os.ReadFile(p.Uses.Path + ".bad"); err != nil || !bytes.Equal(kept, body) {
			t.Errorf("the damaged file isn't there: %v", err)
		}
		p.age(t, e, 30*24*time.Hour)
		wantDecision(t, mustRun(t, p, true), Pruned, "")
	}
}

// TestWatcherGoesOnWithDamagedRecords, and doesn't crash in a loop.
func TestWatcherGoesOnWithDamagedRecords(t *testing.T) {
	e, c := newEngine(t, "1.41")
	addOrphans(e, 2)
	uses := Uses{Path: filepath.Join(t.TempDir(), "uses.db")}
	if err := os.WriteFile(uses.Path, bytes.Repeat([]byte("x"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	b := batch{engine: c, images: map[string][]string{}, used: map[string]time.Time{id("a"): now}}
	if err := (&Watcher{Engine: c, Uses: uses}).flush(&b); err != nil {
		t.Fatal(err)
	}
	all, _ := allRecords(t, uses)
	if len(all) != 1 || !all[id("a")].LastUsed.Equal(now) {
		t.Errorf("records %v", all)
	}
}

// TestRecordsOfAnOlderProgramAreGood, also after it has written between two batches of this one.
func TestRecordsOfAnOlderProgramAreGood(t *testing.T) {
	uses := oldUses(t)
	for i := range 3 {
		if all, _ := allRecords(t, uses); len(all) != 4 {
			t.Fatalf("round %d: records %v", i, all)
		}
		db, err := bbolt.Open(uses.Path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket(imagesBucket).Put([]byte(id("a")), fmt.Appendf(nil, `{"first_seen":"2026-11-0%dT00:00:00Z","last_used":"2026-11-05T00:00:00Z"}`, i+1))
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
