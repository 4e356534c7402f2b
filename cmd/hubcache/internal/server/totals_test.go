package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/admin"
)

// counting is the server of a test: it has served so many bytes since its start.
type counting struct {
	served atomic.Int64
	log    bytes.Buffer
}

func (c *counting) count() (t admin.Totals) {
	t.Bytes.Served = c.served.Load()
	t.Requests.Blob.Errors.Disk = c.served.Load() / 10
	return t
}

func (c *counting) open(dir string) *totals {
	return openTotals(dir, c.count, slog.New(slog.NewTextHandler(&c.log, nil)))
}

// TestTotalsSurviveRestarts: the counts of all runs add up, whether a run ended by itself or was
// killed; a kill loses the counts of its last minute.
func TestTotalsSurviveRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, began := t.TempDir(), time.Now().UTC().Truncate(time.Second)
		expect := func(when string, served int64) {
			t.Helper()
			var c counting
			totals := c.open(dir)
			defer totals.close()
			got := totals.add(c.count())
			if got.Bytes.Served != served || got.Requests.Blob.Errors.Disk != served/10 || !got.Since.Equal(began) {
				t.Errorf("%s: %+v, want %d bytes since %s", when, got, served, began)
			}
			if c.log.Len() > 0 {
				t.Errorf("%s: %s", when, c.log.String())
			}
		}
		var first counting
		totals := first.open(dir) // data of an older version has no file
		first.served.Store(100)
		totals.close()
		expect("after a stop", 100)

		time.Sleep(time.Hour)
		var second counting
		totals = second.open(dir)
		second.served.Store(50)
		time.Sleep(totalsEvery + time.Second)
		second.served.Store(70) // and is killed
		expect("after a kill", 150)
		second.served.Store(0)
		close(totals.stop)
		totals.running.Wait()
	})
}

// TestTotalsAreWrittenSeldom: once a minute, however much is counted, and not at all when nothing
// is.
func TestTotalsAreWrittenSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var c counting
		totals := c.open(dir)
		defer totals.close()
		written := func(pause time.Duration, served int64) (n int) {
			var last os.FileInfo
			for range 600 {
				time.Sleep(pause)
				c.served.Add(served)
				if fi, err := os.Stat(filepath.Join(dir, totalsName)); err == nil && (last == nil || !os.SameFile(fi, last)) {
					last = fi
					n++
				}
			}
			return n
		}
		if n := written(time.Second, 10); n < 9 || n > 10 {
			t.Errorf("written %d times in ten minutes", n)
		}
		time.Sleep(2 * time.Minute)
		if n := written(time.Second, 0); n != 1 { // the file that is there
			t.Errorf("nothing was counted, and there were %d files", n)
		}
	})
}

// TestTotalsOfOtherVersions: a newer file stays as it is, and the log says which version is
// needed. Counters that this version doesn't know are kept.
func TestTotalsOfOtherVersions(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, totalsName)
	newer := `{"schema": 2, "counters": {"x": "` + strings.Repeat("y", totalsMost) + `"}}`
	for _, text := range []string{`{"schema": 2, "counters": "of another kind"}`, newer} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var c counting
		totals := c.open(dir)
		c.served.Store(100)
		if got := totals.add(c.count()); got.Bytes.Served != 100 {
			t.Errorf("%+v", got)
		}
		totals.close()
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("the file of a newer version is now %.100s, %v", b, err)
		}
		if len(text) < 1000 && !strings.Contains(c.log.String(), "it has version 2, and this hubcache knows 1") {
			t.Errorf("the log says %s", c.log.String())
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%v, %v", left, err)
		}
	}
	if err := os.WriteFile(path, []byte(`{"schema": 1, "since": "2026-01-02T03:04:05Z", "counters": {"bytes.served": 5, "bytes": 6, "of.the.future": 7}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var c counting
	totals := c.open(dir)
	c.served.Store(100)
	totals.close()
	doc, err := readTotals(path)
	if err != nil || doc.Counters["bytes.served"] != 105 || doc.Counters["of.the.future"] != 7 || doc.Counters["bytes"] != 6 {
		t.Errorf("%v, %v", doc, err)
	}
	if got := totals.add(c.count()); got.Bytes.Served != 105 || got.Since.Year() != 2026 {
		t.Errorf("%+v", got)
	}
}

// TestDamagedTotalsBeginAgain: whatever the file holds, the server starts, keeps what it counts,
// and says what happened.
func TestDamagedTotalsBeginAgain(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "cut short": `{"schema": 1, "counters": {"bytes.served": 5`, "zeros": string(make([]byte, 4096)),
		"negative": `{"schema": 1, "counters": {"bytes.served": -5}}`, "not a number": `{"schema": 1, "counters": {"bytes.served": "5"}}`,
		"no version": `{"counters": {"bytes.served": 5}}`, "a list": "[1, 2]",
		"too large a number": `{"schema": 1, "counters": {"bytes.served": 99999999999999999999}}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, totalsName)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var c counting
			totals := c.open(dir)
			c.served.Store(100)
			if got := totals.add(c.count()); got.Bytes.Served != 100 || time.Since(got.Since) > time.Minute {
				t.Errorf("%+v", got)
			}
			totals.close()
			if doc, err := readTotals(path); err != nil || doc.Counters["bytes.served"] != 100 {
				t.Errorf("%v, %v", doc, err)
			}
			if !strings.Contains(c.log.String(), "damaged") {
				t.Errorf("the log says %q", c.log.String())
			}
		})
	}
}

// TestTotalsThatCannotBeWrittenAreTriedAgain: the log says so once, and nothing is lost.
func TestTotalsThatCannotBeWrittenAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		blocker := filepath.Join(dir, totalsName+".tmp", "not-empty") // a folder where the file is written
		if err := os.MkdirAll(blocker, 0o700); err != nil {
			t.Fatal(err)
		}
		var c counting
		totals := c.open(dir)
		for range 10 {
			c.served.Add(10)
			time.Sleep(totalsEvery)
		}
		synctest.Wait()
		if n := strings.Count(c.log.String(), "the totals can't be written"); n != 1 {
			t.Errorf("said %d times: %s", n, c.log.String())
		}
		if err := os.RemoveAll(filepath.Dir(blocker)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(totalsEvery + time.Second)
		synctest.Wait()
		if doc, err := readTotals(filepath.Join(dir, totalsName)); err != nil || doc.Counters["bytes.served"] != 100 {
			t.Errorf("%v, %v", doc, err)
		}
		totals.close()
	})
}

// TestTotalsNeverOverflow: a sum stops at the largest number.
func TestTotalsNeverOverflow(t *testing.T) {
	dir := t.TempDir()
	text := fmt.Sprintf(`{"schema": 1, "counters": {"bytes.served": %d}}`, int64(math.MaxInt64)-5)
	if err := os.WriteFile(filepath.Join(dir, totalsName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var c counting
	totals := c.open(dir)
	defer totals.close()
	c.served.Store(100)
	if got := totals.add(c.count()).Bytes.Served; got != math.MaxInt64 {
		t.Errorf("%d", got)
	}
}

// TestEveryCounterIsInTheTotals: what admin.Totals counts comes back from the file's form, each
// under a name of its own.
func TestEveryCounterIsInTheTotals(t *testing.T) {
	var want, got admin.Totals
	n := int64(0)
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).Type != reflect.TypeFor[time.Time]() {
					fill(v.Field(i))
				}
			}
		case reflect.Int64:
			n++
			v.SetInt(n)
		default:
			t.Errorf("a counter is a %s", v.Kind())
		}
	}
	fill(reflect.ValueOf(&want).Elem())
	flat := flatten(want)
	if int64(len(flat)) != n {
		t.Errorf("%d names for %d counters: %v", len(flat), n, flat)
	}
	unflatten(flat, &got)
	if a, _ := json.Marshal(got); got != want {
		t.Errorf("got %s", a)
	}
	if !maps.Equal(flat, flatten(got)) {
		t.Error("the way back changes names")
	}
}

// TestServerKeepsItsTotals: a server that is stopped and started again knows what it has served.
func TestServerKeepsItsTotals(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, totalsName), []byte(`{"schema": 1, "since": "2026-01-02T03:04:05Z", "counters": {"bytes.served": 5}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startReloading(t, "data_dir: "+dir+"\n")
	now := admin.Count(r.store.Stats(), r.registry.Stats())
	if got := r.totals.add(now); got.Bytes.Served != 5 {
		t.Errorf("%+v", got)
	}
}

// TestTotalsBeginWhenTheClockIsSet: a machine without a clock of its own believes at its first start
// that it is 1970, until it has asked what time it is. The totals don't count from 1970 on.
func TestTotalsBeginWhenTheClockIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		old := `{"schema": 1, "since": "1970-01-01T00:01:00Z", "counters": {"bytes.served": 100}}`
		if err := os.WriteFile(filepath.Join(dir, totalsName), []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		var c counting
		totals := c.open(dir)
		if got := totals.add(c.count()); got.Bytes.Served != 100 || !got.Since.Equal(time.Now()) {
			t.Errorf("of an earlier run: %d bytes since %s", got.Bytes.Served, got.Since)
		}
		totals.since = time.Unix(60, 0) // as though this run had begun then
		set := time.Now()
		if got := totals.add(c.count()); !got.Since.Equal(set) {
			t.Errorf("of this run: since %s", got.Since)
		}
		c.served.Store(1)
		time.Sleep(time.Hour)
		totals.close()
		if doc, err := readTotals(totals.path); err != nil || !doc.Since.Equal(set) {
			t.Errorf("in the file: since %s, %v", doc.Since, err)
		}
	})
}
