package storage

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/index"
)

// load opens the index and fills the room from it. A damaged index is set aside and rebuilt.
// Errors: NewerFormatError, before anything is changed or removed; those of Open.
func (h *housekeeping) load() (err error) {
	if err := h.checkPartials(); err != nil {
		return err
	}
	if _, err := os.Lstat(h.files.layout.index()); errors.Is(err, fs.ErrNotExist) {
		if err := h.checkRepos(); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil && h.catalogue.index != nil {
			h.catalogue.index.Close()
		}
	}()
	entries, err := h.loadIndex()
	if errors.Is(err, index.ErrDamaged) {
		if err := h.checkRepos(); err != nil {
			return err
		}
		h.log.Error("the index is damaged: set aside and rebuilt from the files", "error", err)
		if err = index.SetAside(h.files.layout.index()); err != nil {
			return err
		}
		entries, err = h.loadIndex()
	}
	if err != nil {
		return err
	}
	built, err := h.catalogue.isBuilt()
	if err != nil {
		return err
	}
	if !built {
		if err := h.checkRepos(); err != nil {
			return err
		}
	}
	h.loadEntries(entries)
	h.loadPartials()
	if built {
		return nil
	}
	return h.rebuild()
}

// checkPartials fails with NewerFormatError if a newer hubcache has written a partial.
func (h *housekeeping) checkPartials() error {
	dir := h.files.layout.ingest()
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil // loadPartials says it
	}
	for _, file := range files {
		if strings.HasSuffix(file.Name(), ".json") {
			if err := checkFormat(filepath.Join(dir, file.Name()), stateVersion, stateAdvice); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkRepos fails with NewerFormatError if a newer hubcache has written the file of a
// repository. It is called before the index is rebuilt, when the files are read.
func (h *housekeeping) checkRepos() error {
	return h.faults.walkReadable(h.files.layout.repos(), func(path string, file fs.DirEntry) error {
		if !file.Type().IsRegular() || strings.HasPrefix(file.Name(), tempPrefix) {
			return nil
		}
		return checkFormat(path, repoVersion, repoAdvice)
	})
}

// lastUse is an entry and the time of its last use, by which it is sorted: too often for
// looking it up in the entry each time.
type lastUse struct {
	at int64 // Unix nanoseconds
	e  *entry
}

// loadIndex opens the index and reads all of it, so that damage is found now. It returns the
// entries in the order of their keys.
func (h *housekeeping) loadIndex() (entries []lastUse, err error) {
	path, tags := h.files.layout.index(), int64(0)
	now := time.Now()
	h.aheadOfClock = nil
	h.catalogue.repositories.kept = map[string]bool{} // a damaged index may have been read before
	newerIndex := func(err error) error {
		if errors.Is(err, errUnknownFlag) {
			return &NewerFormatError{path, 0, indexVersion, indexAdvice}
		}
		return err
	}
	var left []lastUse // those whose last use is to come: both buckets are in the order of their keys
	visit := func(bucket, k, v []byte) error {
		switch string(bucket) {
		case string(bucketBlobs):
			r, _, err := decodeHead(v)
			if err != nil {
				return newerIndex(err)
			}
			entries = append(entries, lastUse{e: r.entry(digest.Digest(k), 0)})
			left = entries
		case string(bucketUses):
			t, err := decodeTime(v)
			if t > now.UnixNano() {
				t = now.UnixNano()
				h.isAhead(bucketUses, k, encodeTime(now))
			}
			for len(left) > 0 && string(left[0].e.Key) < string(k) {
				left = left[1:]
			}
			if len(left) > 0 && string(left[0].e.Key) == string(k) {
				left[0].at = t
			}
			return err
		case string(bucketTags):
			name, tag, _ := bytes.Cut(k, []byte{0})
			if !isReferrers(string(tag)) {
				tags++
			}
			h.catalogue.repositories.load(name)
			t, err := decodeTag(v)
			if t.Checked.After(now) {
				t.Checked = now
				h.isAhead(bucketTags, k, t.encode())
			}
			return err
		case string(bucketLinks):
			name, _, _ := bytes.Cut(k, []byte{0})
			h.catalogue.repositories.load(name)
			return newerIndex(checkFlag(v))
		case string(bucketVisibility):
			if seen, err := decodeVisibility(v); err == nil && seen.At.After(now) {
				seen.At = now
				h.isAhead(bucketVisibility, k, seen.encode())
			}
			return newerIndex(checkFlag(v))
		}
		return nil
	}
	h.catalogue.index, err = index.Open(path, index.Options{
		Buckets: buckets,
		First:   [][]byte{bucketBlobs, bucketUses},
		Visit:   visit,
		Opened:  h.indexOpened,
	})
	h.catalogue.repositories.tags.Store(tags)
	if err == nil {
		for _, c := range h.aheadOfClock {
			h.catalogue.index.Set(c.bucket, c.key, c.value)
		}
	}
	h.aheadOfClock = nil
	return entries, err
}

// correction is a new value for a key of the index.
type correction struct{ bucket, key, value []byte }

// isAhead notes that the time in a value of the index is ahead of the clock, and what the value
// is with the time now. The clock was wrong when it was written. The value is written back, so
// that what it is about grows old like everything else.
func (h *housekeeping) isAhead(bucket, key, value []byte) {
	h.aheadOfClock = append(h.aheadOfClock, correction{bucket, bytes.Clone(key), value})
}

// prefetchBatch is how many entries are brought into the CPU's caches together. In order of
// last use they are anywhere in memory, and to wait for each by itself was half of the time
// that it takes to fill the room.
const prefetchBatch = 32

// loadEntries fills the room, in order of last use.
func (h *housekeeping) loadEntries(entries []lastUse) {
	slices.SortFunc(entries, func(a, b lastUse) int { return cmp.Compare(a.at, b.at) })
	var sum byte // or the compiler would leave out what is only read
	for batch := range slices.Chunk(entries, prefetchBatch) {
		for _, l := range batch {
			sum += l.e.Key[0] + l.e.Key[len(l.e.Key)-1] // they may be in two cache lines
		}
		for _, l := range batch {
			l.e.Value.used = l.at
			h.room.load(l.e)
		}
	}
	runtime.KeepAlive(sum)
}

// loadPartials adds the unfinished downloads that can be resumed, and removes the others.
func (h *housekeeping) loadPartials() {
	dir := h.files.layout.ingest()
	files, err := os.ReadDir(dir)
	if err != nil {
		h.faults.disk(err)
		return
	}
	for _, file := range files {
		if file.IsDir() {
			continue // not ours
		}
		path := filepath.Join(dir, file.Name())
		name, isState := strings.CutSuffix(file.Name(), ".json")
		if isState {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				os.Remove(path)
			}
			continue
		}
		algorithm, hex, _ := strings.Cut(name, "-")
		d, ok := digestOf(algorithm, hex)
		st, resumable := readState(path + ".json")
		fi, err := file.Info()
		committed := false
		if ok {
			_, err := os.Lstat(h.files.layout.blob(d))
			committed = err == nil
		}
		if !ok || !resumable || err != nil || fi.Size() != st.Size || committed {
			os.Remove(path)
			os.Remove(path + ".json")
			continue
		}
		h.room.lru.LoadPartial(&entry{Key: d, Size: st.Size, Value: info{bits: isPartial}})
	}
}

// rebuild makes a new index from the files: from the blobs, and from what the files of the
// repositories say. Last uses are known to within a minute, by the times of the files. Lost are
// links that upstream had confirmed for blobs that no cached manifest names, and the newest second
// of tags and visibility.
func (h *housekeeping) rebuild() error {
	start := time.Now()
	var entries []lastUse
	before := h.room.count()                                                // of a rebuilding that was cut short
	err := h.files.walk(h.stopping, func(d digest.Digest, fi fs.FileInfo) { // in the order of their keys
		if h.room.state(d).cached {
			return
		}
		used := h.files.lastUse(d, fi, start.UnixNano())
		r := adoptedRecord(fi)
		entries = append(entries, lastUse{used, r.entry(d, used)})
		h.catalogue.setRecord(d, r)
		h.catalogue.setUse(d, time.Unix(0, used))
		h.flushMany()
	})
	if err != nil {
		return err
	}
	blobs := len(entries)
	h.loadEntries(entries)
	if before > 0 {
		h.room.reorderAll()
	}
	repos := 0
	err = h.faults.walkReadable(h.files.layout.repos(), func(path string, file fs.DirEntry) error {
		switch {
		case strings.HasPrefix(file.Name(), tempPrefix):
			os.Remove(path)
		case file.Type().IsRegular():
			repo, err := readRepo(path)
			if err == nil && h.repos.outdated(path, repo.Repository) {
				return nil
			}
			if err != nil {
				h.log.Warn("the file of a repository can't be read; its tags are lost", "error", err)
				return nil
			}
			repos++
			h.restore(repo)
			h.flushMany()
		}
		return nil
	})
	if err != nil {
		return err
	}
	h.catalogue.index.Set(bucketMeta, keyBuilt, []byte{1})
	h.flush()
	if blobs > 0 || repos > 0 {
		h.log.Info("index rebuilt", "blobs", blobs, "repositories", repos, "took", time.Since(start).Round(time.Millisecond).String())
	}
	if blobs > manyBlobs {
		debug.FreeOSMemory() // Go would keep what the files and folders took for minutes
	}
	return nil
}

const (
	// manyChanges is how many changes of the index a rebuild keeps in memory: they take about 50 MB while
	// they are written.
	manyChanges = 50_000
	// manyBlobs is from how many blobs on a rebuild leaves much garbage.
	manyBlobs = 10_000
)

// flushMany writes the index when much is waiting, so that memory doesn't grow with the number of files.
// What was written counts only once keyBuilt is. If the disk takes nothing, it tries again when as much
// more has come.
func (h *housekeeping) flushMany() {
	if h.catalogue.index.Pending() >= h.enough+manyChanges {
		h.flush()
		h.enough = h.catalogue.index.Pending()
	}
}

// restore puts back into the index what the file of a repository says.
func (h *housekeeping) restore(repo repoFile) {
	name, repositories := repo.Repository, h.catalogue.repositories
	for d, mediaType := range repo.Manifests {
		h.restoreManifest(name, d, mediaType)
	}
	for tag, t := range repo.Tags {
		if t.Digest.Validate() == nil {
			repositories.restoreTag(name, tag, Tag{t.Digest, t.Type, t.Size, notAhead(t.Checked)})
		}
	}
	if repo.Public != nil {
		repositories.setVisibility(name, Visibility{*repo.Public, notAhead(repo.VerdictAt)})
	}
}

func (h *housekeeping) restoreManifest(repository string, d digest.Digest, mediaType string) {
	if d.Validate() != nil {
		return
	}
	body, err := os.ReadFile(h.files.layout.blob(d))
	if err != nil || d.Algorithm().FromBytes(body) != d {
		return // gone or damaged: files.open will find out
	}
	e, _ := h.room.markManifest(d, true)
	if e.Key == "" {
		return // not cached
	}
	r := record{fileID: fileID{e.Size, e.Value.ino, e.Value.mtime}, private: e.Value.has(isPrivate)}
	r.setManifest(&Manifest{MediaType: mediaType, Children: image.Children(body)})
	h.catalogue.setRecord(d, r)
	h.catalogue.link(repository, d, Link{true, e.Size})
	h.catalogue.linkChildren(repository, r.children)
}

// The versions of the formats on disk. docs/design/disk-format.md has the rule by which they rise.
const (
	indexVersion = 1 // in the name of the index
	repoVersion  = 1 // "schema" in repos/*.json
	stateVersion = 1 // "schema" in ingest/*.json, which has none in version 1
	pinsVersion  = 1 // "schema" in pins.json
)

// indexName is the name of an index of that version. The index can be made again from the other
// files, so a version that an older program can't read gets another name: that program then
// makes its own.
func indexName(version int) string {
	if version == 1 {
		return "index.db"
	}
	return fmt.Sprintf("index-v%d.db", version)
}

// NewerFormatError says that a newer hubcache has written a file in a format that this one
// doesn't know. Nothing was changed, removed or set aside because of it.
type NewerFormatError struct {
	Path    string
	Version int    // of the format of the file; 0: not known
	Known   int    // the newest version that this hubcache knows
	Advice  string // what else can be done than to install the newer hubcache
}

// Error names the file and the version, and says what to do.
func (e *NewerFormatError) Error() string {
	version := "a newer format version"
	if e.Version > 0 {
		version = fmt.Sprintf("format version %d", e.Version)
	}
	return fmt.Sprintf("%s has %s, and this hubcache knows versions up to %d: install a hubcache that knows it, or %s",
		e.Path, version, e.Known, e.Advice)
}

// What can be done instead of installing the newer hubcache, by kind of file.
const (
	indexAdvice = "delete the file: it is made again from the others, without the last uses"
	repoAdvice  = "move the file away: the tags of that repository are then asked for again"
	pinsAdvice  = "move the file away: nothing is pinned then"
	stateAdvice = "move the file away: that download then begins anew"
)

// formatOf returns the version that a JSON document says it has, 0 if it says none or can't be
// read.
func formatOf(document []byte) int {
	var d struct {
		Schema int `json:"schema"`
	}
	if json.Unmarshal(document, &d) != nil {
		return 0
	}
	return d.Schema
}

// checkFormat fails with NewerFormatError if the JSON document at path has a newer version than
// known. A document that can't be read is not newer.
func checkFormat(path string, known int, advice string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	if version := formatOf(b); version > known {
		return &NewerFormatError{path, version, known, advice}
	}
	return nil
}
