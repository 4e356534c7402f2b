package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hubcache/hubcache/admin"
)

const (
	totalsName = "totals.json"
	// totalsSchema is the version of the file. A program keeps the counters that it doesn't know,
	// so a new counter needs no new version.
	totalsSchema = 1
	// totalsEvery is how often the file is written, at most. A crash loses the counts since.
	totalsEvery = time.Minute
	// totalsMost is how long a file can be that this or another version has written.
	totalsMost = 64 << 10
)

// totals keeps the counters of admin.Totals in a file of the data directory, so that they
// survive a restart. All methods are safe for concurrent use.
//
// A crash of the process loses the counts of a minute, one of the machine those of two.
type totals struct {
	path  string
	log   *slog.Logger
	count func() admin.Totals // of this run

	before map[string]int64 // by name, of earlier runs; immutable

	stop    chan struct{} // closed by close
	running sync.WaitGroup

	mu      sync.Mutex // guards what follows; held during writes
	since   time.Time  // use began
	foreign bool       // the file isn't ours to write
	failing bool       // the last write has failed, which the log says
	written map[string]int64
}

// totalsDocument is the file.
type totalsDocument struct {
	Schema   int              `json:"schema"`
	Since    time.Time        `json:"since"`
	Counters map[string]int64 `json:"counters"`
}

// openTotals reads the totals of earlier runs from dir, and begins to write them. A file that
// can't be used is logged: the counts then begin with this run. One of a newer version, and one
// that can't be read, stays as it is.
func openTotals(dir string, count func() admin.Totals, log *slog.Logger) *totals {
	t := &totals{path: filepath.Join(dir, totalsName), log: log, count: count, since: time.Now(), stop: make(chan struct{})}
	doc, err := readTotals(t.path)
	var newer *newerTotals
	switch {
	case err == nil:
		t.before = doc.Counters
		if doc.Since.Before(t.since) { // else the clock was wrong
			t.since = doc.Since
		}
		t.written = doc.Counters
	case errors.Is(err, fs.ErrNotExist):
	case errors.As(err, &newer), !errors.Is(err, errTotals):
		t.foreign = true
		log.Warn("the totals of earlier runs can't be used: their file stays as it is, and those of this run aren't kept", "path", t.path, "error", err)
	default:
		bad := t.path + ".bad"
		err = errors.Join(err, os.Rename(t.path, bad))
		log.Warn("the totals of earlier runs are damaged: they begin again", "path", bad, "error", err)
	}
	t.running.Go(t.run)
	return t
}

// errTotals says that the file isn't one of totals.
var errTotals = errors.New("not a file of totals")

// newerTotals says that a newer hubcache has written the file.
type newerTotals struct{ schema int }

func (e *newerTotals) Error() string {
	return fmt.Sprintf("it has version %d, and this hubcache knows %d: use the newer hubcache, or move the file away and lose the totals", e.schema, totalsSchema)
}

// readTotals reads the file. Errors: fs.ErrNotExist; *newerTotals; errTotals; that it is too long,
// so that nobody knows its version; those of reading.
func readTotals(path string) (doc totalsDocument, err error) {
	f, err := os.Open(path)
	if err != nil {
		return doc, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, totalsMost+1))
	if err != nil {
		return doc, err
	}
	var version struct {
		Schema int `json:"schema"`
	}
	if json.Unmarshal(b, &version) == nil && version.Schema > totalsSchema {
		return doc, &newerTotals{version.Schema}
	}
	if len(b) > totalsMost {
		return doc, fmt.Errorf("it is longer than %d bytes: no version up to %d writes such a file", totalsMost, totalsSchema)
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return doc, errors.Join(errTotals, err)
	}
	for name, n := range doc.Counters {
		if n < 0 {
			return doc, fmt.Errorf("%w: %s is %d", errTotals, name, n)
		}
	}
	if doc.Schema != totalsSchema {
		return doc, fmt.Errorf("%w: version %d", errTotals, doc.Schema)
	}
	return doc, nil
}

// run writes the file now and then, until close.
func (t *totals) run() {
	tick := time.NewTicker(totalsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.save()
		case <-t.stop:
			return
		}
	}
}

// close writes the file for the last time.
func (t *totals) close() {
	close(t.stop)
	t.running.Wait()
	t.save()
}

// add returns the totals: the counters of this run and those of earlier ones.
func (t *totals) add(now admin.Totals) (sum admin.Totals) {
	unflatten(t.sum(now), &sum)
	t.mu.Lock()
	defer t.mu.Unlock()
	sum.Since = t.began()
	return sum
}

// began returns when the totals begin, in seconds. A machine without a clock of its own thinks at its
// first start that it is 1970: the totals begin when its clock has been set. mu is held.
func (t *totals) began() time.Time {
	if t.since.Year() < 2000 {
		t.since = time.Now()
	}
	return t.since.UTC().Truncate(time.Second)
}

// sum adds the counters of this run to those of earlier ones, by name.
func (t *totals) sum(now admin.Totals) map[string]int64 {
	sum := maps.Clone(t.before)
	if sum == nil {
		sum = map[string]int64{}
	}
	for name, n := range flatten(now) {
		sum[name] += min(n, math.MaxInt64-sum[name])
	}
	return sum
}

// save writes the file, if anything has been counted since it was written.
func (t *totals) save() {
	sum := t.sum(t.count())
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.foreign || maps.Equal(sum, t.written) {
		return
	}
	err := t.write(sum)
	if err == nil {
		t.written = sum
	} else if !t.failing {
		t.log.Warn("the totals can't be written; this is tried again every minute", "error", err)
	}
	t.failing = err != nil
}

// write replaces the file: a crash leaves the old one or the new one. mu is held.
func (t *totals) write(sum map[string]int64) error {
	b, err := json.MarshalIndent(totalsDocument{totalsSchema, t.began(), sum}, "", "  ")
	if err != nil {
		return err
	}
	tmp := t.path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		return os.Rename(tmp, t.path)
	}
	return errors.Join(err, os.Remove(tmp))
}

// flatten returns the numbers of totals by their names in the document of stats:
// "requests.blob.hit". These names stay.
func flatten(t admin.Totals) map[string]int64 {
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // numbers and a time
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var doc map[string]any
	if err := dec.Decode(&doc); err != nil {
		panic(err)
	}
	flat := map[string]int64{}
	var walk func(prefix string, v any)
	walk = func(prefix string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				walk(prefix+"."+key, value)
			}
		case json.Number:
			if n, err := v.Int64(); err == nil {
				flat[prefix[1:]] = n
			}
		}
	}
	walk("", doc)
	return flat
}

// unflatten is the inverse of flatten. It leaves out names that this version doesn't know.
func unflatten(flat map[string]int64, t *admin.Totals) {
	doc := map[string]any{}
	for name := range flatten(*t) {
		in, path := doc, strings.Split(name, ".")
		for _, key := range path[:len(path)-1] {
			if in[key] == nil {
				in[key] = map[string]any{}
			}
			in = in[key].(map[string]any)
		}
		in[path[len(path)-1]] = flat[name]
	}
	b, err := json.Marshal(doc)
	if err == nil {
		err = json.Unmarshal(b, t)
	}
	if err != nil {
		panic(err) // numbers, in the shape that json.Marshal gave them
	}
}
