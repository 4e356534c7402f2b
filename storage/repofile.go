package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// repoFile is the file of a repository: what can't be found in the blobs when the index is
// lost.
type repoFile struct {
	Schema     int                      `json:"schema"`
	Repository string                   `json:"repository"`
	Public     *bool                    `json:"public,omitempty"`
	VerdictAt  time.Time                `json:"verdict_at,omitzero"`
	Tags       map[string]tagInFile     `json:"tags,omitempty"`
	Manifests  map[digest.Digest]string `json:"manifests,omitempty"` // media types
}

type tagInFile struct {
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size"`
	Type    string        `json:"media_type"`
	Checked time.Time     `json:"checked"`
}

// write writes the file of a repository to path, or removes it when there is nothing to say.
// Errors: NewerFormatError, and then the file is as before; that it can't be written.
func (r *repoFile) write(path string) error {
	if err := checkFormat(path, repoVersion, repoAdvice); err != nil {
		return err
	}
	if r.empty() {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}

// empty reports whether there is nothing to say.
func (r *repoFile) empty() bool { return len(r.Tags) == 0 && len(r.Manifests) == 0 && r.Public == nil }

// readRepo reads the file of a repository. Errors: NewerFormatError; it can't be read, or isn't
// one.
func readRepo(path string) (file repoFile, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return file, err
	}
	if version := formatOf(b); version > repoVersion {
		return file, &NewerFormatError{path, version, repoVersion, repoAdvice}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return file, fmt.Errorf("%s: %w", path, err)
	}
	if file.Schema != repoVersion || strings.ContainsRune(file.Repository, 0) {
		return file, fmt.Errorf("%s: not the file of a repository", path)
	}
	return file, nil
}

// repoWriter keeps the files of repositories up to date with the index, in a goroutine of its
// own: a disk that is slow or hangs must not keep anything else from being done.
type repoWriter struct {
	layout    layout
	catalogue *catalogue
	manifest  func(digest.Digest) bool // reports whether a blob is cached and a manifest
	pinned    func(repository, tag string) bool
	flush     func() // writes the index
	faults    *faults
	log       *slog.Logger
	stop      chan struct{} // closed when the store is closed
	swept     chan struct{} // of one: the index has been swept, so files may be left over
	noted     chan struct{} // of one: behind is no longer empty
	done      chan struct{} // closed when run has ended

	// mu guards what follows. It is never held during I/O or a read of the index, and of the
	// other locks only those of package index are taken while it is held.
	mu     sync.Mutex
	behind map[string]*behind // by repository: those whose file is behind the index
}

// behind says how far the file of a repository is behind the index.
type behind struct {
	since   time.Time
	changes int
	now     bool // the next tick writes it, however large it is
}

const (
	// repoEvery is by how much the files of repositories may be behind the index.
	repoEvery = time.Second
	// reposAtOnce is how many of them are written in repoEvery. The others wait.
	reposAtOnce = 200
	// smallRepo is the size in bytes up to which that holds. A larger file is written when a
	// part of repoShare of its rows has changed, or after repoLater: with a hundred thousand
	// manifests, each new one would cost tens of megabytes.
	smallRepo = 64 << 10
	repoShare = 4
	repoRow   = 200 // bytes of a row in such a file
	repoLater = 10 * time.Minute
	// closeRepos is for how long a store that is closed writes files of repositories. What is
	// left then is written after the next start.
	closeRepos = 3 * time.Second

	// maxTags is how many tags of a repository are kept. No client needs more; and to ask for
	// the headers of all tags that name a cached manifest costs nothing.
	maxTags = 4000
)

// changed says that the file of a repository is behind the index.
func (w *repoWriter) changed(repository string) { w.note(repository, false) }

// changedNow is changed for what must not come back with a rebuild: it doesn't wait because the
// file is large.
func (w *repoWriter) changedNow(repository string) { w.note(repository, true) }

func (w *repoWriter) note(repository string, now bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.behind[repository]
	if b == nil {
		if len(w.behind) == 0 {
			select {
			case w.noted <- struct{}{}:
			default: // it will be noticed
			}
		}
		b = &behind{since: time.Now()}
		w.behind[strings.Clone(repository)] = b
		// So that the next start knows it, should this process end before.
		w.catalogue.index.Set(bucketMeta, behindKey(repository), []byte{1})
	}
	b.changes++
	b.now = b.now || now
}

// behindKey is the key in bucketMeta that says that the file of the repository is behind.
func behindKey(repository string) []byte { return pair("behind", repository) }

// sweep says that the index has been swept.
func (w *repoWriter) sweep() {
	select {
	case w.swept <- struct{}{}:
	default: // it will be noticed
	}
}

// run writes files until stop is closed, and then for at most closeRepos what is left. While
// none is behind, it sleeps.
func (w *repoWriter) run() {
	defer close(w.done)
	w.load()
	tick := time.NewTicker(repoEvery)
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			w.writeLast()
			return
		case <-w.swept:
			tick.Reset(repoEvery)
			w.tidy(tick.C)
		case <-w.noted:
			tick.Reset(repoEvery)
		case <-tick.C:
			w.writeDue()
			if w.nothingBehind() {
				tick.Stop()
			}
		}
	}
}

func (w *repoWriter) nothingBehind() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.behind) == 0
}

// load notes the files that were behind when the last process ended.
func (w *repoWriter) load() {
	var names []string
	err := w.catalogue.index.Each(bucketMeta, behindKey(""), func(k, _ []byte) error {
		_, name := unpair(k)
		names = append(names, name)
		return nil
	})
	if err != nil {
		w.faults.disk(err)
	}
	for _, name := range names {
		w.changedNow(name)
	}
}

// wait waits until run has ended, for as long as it may take.
func (w *repoWriter) wait() {
	// A disk that hangs keeps run from looking at its own clock.
	timer := time.NewTimer(closeRepos + repoEvery)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
		w.log.Warn("the files of some repositories can't be written now; the next start does it", "dir", w.layout.repos())
	}
}

// writeLast writes what is behind, for at most closeRepos.
func (w *repoWriter) writeLast() {
	names := w.take(0, func(string, *behind) bool { return true })
	end := time.Now().Add(closeRepos)
	if len(names) > 0 {
		w.flush()
	}
	for i, name := range names {
		if time.Now().After(end) {
			w.log.Warn("the files of some repositories are written after the next start", "repositories", len(names)-i)
			return
		}
		w.write(name)
	}
}

// writeDue writes those of the files that are due, the oldest first.
func (w *repoWriter) writeDue() {
	names := w.take(reposAtOnce, w.due)
	if len(names) > 0 {
		w.flush() // no file is ahead of the index
	}
	for _, name := range names {
		if w.stopping() {
			w.changedNow(name)
			continue
		}
		w.write(name)
	}
}

func (w *repoWriter) stopping() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

// take takes from behind the repositories that wanted reports true for, the oldest first, and
// at most so many; 0 means all.
func (w *repoWriter) take(most int, wanted func(string, *behind) bool) (names []string) {
	w.mu.Lock()
	all := make(map[string]behind, len(w.behind))
	for name, b := range w.behind {
		all[name] = *b
		names = append(names, name)
	}
	w.mu.Unlock()
	slices.SortFunc(names, func(a, b string) int { return all[a].since.Compare(all[b].since) })
	taken := names[:0]
	for _, name := range names {
		if b := all[name]; wanted(name, &b) {
			taken = append(taken, name)
		}
		if len(taken) == most && most > 0 {
			break
		}
	}
	w.mu.Lock()
	for _, name := range taken {
		delete(w.behind, name)
	}
	w.mu.Unlock()
	return taken
}

// due reports whether the file of a repository is to be written now.
func (w *repoWriter) due(name string, b *behind) bool {
	if b.now || time.Since(b.since) >= repoLater {
		return true
	}
	fi, err := os.Lstat(w.layout.repo(name))
	return err != nil || fi.Size() <= smallRepo || int64(b.changes)*repoRow*repoShare >= fi.Size()
}

// write brings the file of a repository, which has been taken from behind, up to date with the
// index.
func (w *repoWriter) write(name string) {
	err := w.writeFile(name)
	if newer := (*NewerFormatError)(nil); errors.As(err, &newer) {
		w.log.Error("the file of a repository is not written", "error", err)
	} else if err != nil {
		w.faults.disk(err)
		w.changedNow(name)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.behind[name] == nil {
		w.catalogue.index.Delete(bucketMeta, behindKey(name))
	}
}

func (w *repoWriter) writeFile(name string) error {
	file, err := w.describe(name)
	if err != nil {
		return err
	}
	w.limitTags(&file, maxTags, func(tag string) bool { return !isReferrers(tag) && !w.pinned(name, tag) })
	w.limitTags(&file, maxReferrers, isReferrers)
	path := w.layout.repo(name)
	if err := file.write(path); err != nil {
		return err
	}
	if file.empty() {
		w.removeFolders(filepath.Dir(path))
	}
	if old := w.layout.nestedRepo(name); old != path {
		w.removeOld(old)
	}
	return nil
}

// limitTags forgets the oldest rows among the tags of a repository that are of a kind, if it has
// more than most.
func (w *repoWriter) limitTags(file *repoFile, most int, kind func(tag string) bool) {
	var tags []string
	for tag := range file.Tags {
		if kind(tag) {
			tags = append(tags, tag)
		}
	}
	if len(tags) <= most {
		return
	}
	slices.SortFunc(tags, func(a, b string) int { return file.Tags[a].Checked.Compare(file.Tags[b].Checked) })
	for _, tag := range tags[:len(tags)-most] {
		delete(file.Tags, tag)
		w.catalogue.repositories.deleteTag(file.Repository, tag)
	}
}

// describe returns what the file of a repository is to say. Errors: that the index can't be
// read.
func (w *repoWriter) describe(name string) (repoFile, error) {
	file := repoFile{Schema: repoVersion, Repository: name, Tags: map[string]tagInFile{}, Manifests: map[digest.Digest]string{}}
	index := w.catalogue.index
	encoded, err := index.Get(bucketVisibility, []byte(name))
	if err != nil {
		return file, err
	}
	if v, err := decodeVisibility(encoded); encoded != nil && err == nil {
		file.Public, file.VerdictAt = &v.Public, v.At
	}
	prefix := pair(name, "")
	err = index.Each(bucketTags, prefix, func(k, v []byte) error {
		_, tag := unpair(k)
		t, err := decodeTag(v)
		file.Tags[tag] = tagInFile{t.Digest, t.Size, t.MediaType, t.Checked}
		return err
	})
	if err != nil {
		return file, err
	}
	var manifests []digest.Digest
	err = index.Each(bucketLinks, prefix, func(k, v []byte) error {
		_, d := unpair(k)
		l, err := decodeLink(v)
		// A manifest that an index only names comes back with the index, and its link with it.
		if l.Confirmed && w.manifest(digest.Digest(d)) {
			manifests = append(manifests, digest.Digest(d))
		}
		return err
	})
	if err != nil {
		return file, err
	}
	for _, d := range manifests {
		if r, err := w.catalogue.record(d); err == nil {
			file.Manifests[d] = r.mediaType
		}
	}
	return file, nil
}

// tidy removes files of repositories of which the index has nothing, moves those that an older
// program has put elsewhere, and removes empty folders. Meanwhile it writes what is due. It is
// run by the goroutine that writes the files, so nothing else changes the folders.
func (w *repoWriter) tidy(tick <-chan time.Time) {
	known := map[string]bool{}
	for _, bucket := range [][]byte{bucketLinks, bucketTags, bucketVisibility} {
		names, err := w.catalogue.repositoriesIn(bucket)
		if err != nil {
			w.faults.disk(err)
			return
		}
		for _, name := range names {
			known[w.layout.repo(name)] = true
		}
	}
	w.tidyFolder(w.layout.repos(), known, tick)
}

// tidyFolder is tidy for a folder. It reports whether the folder is empty now.
func (w *repoWriter) tidyFolder(dir string, known map[string]bool, tick <-chan time.Time) (empty bool) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	empty = true
	for _, entry := range entries {
		select {
		case <-w.stop:
			return false
		case <-tick:
			w.writeDue()
		default:
		}
		path, gone := filepath.Join(dir, entry.Name()), false
		switch {
		case entry.IsDir():
			gone = w.tidyFolder(path, known, tick) && os.Remove(path) == nil
		case strings.HasPrefix(entry.Name(), tempPrefix):
			gone = os.Remove(path) == nil
		case entry.Type().IsRegular() && !known[path]:
			gone = w.tidyFile(path)
		}
		empty = empty && gone
	}
	return empty
}

// tidyFile is tidy for a file that isn't where the index has a repository. It reports whether
// the file has gone. What isn't the file of a repository is left alone.
func (w *repoWriter) tidyFile(path string) (gone bool) {
	file, err := readRepo(path)
	if err != nil || path != w.layout.repo(file.Repository) && path != w.layout.nestedRepo(file.Repository) {
		return false
	}
	if err := w.writeFile(file.Repository); err != nil {
		return false // it is tried again when the index is swept again
	}
	_, err = os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// outdated reports whether a file was written by this version, and an older program has written
// its own for the same repository since.
func (w *repoWriter) outdated(path, name string) bool {
	old := w.layout.nestedRepo(name)
	if path == old || path != w.layout.repo(name) {
		return false
	}
	_, err := os.Lstat(old)
	return err == nil
}

// removeOld removes the file of a repository that an older program has put at path, if there
// is one.
func (w *repoWriter) removeOld(path string) {
	if _, err := readRepo(path); err == nil && os.Remove(path) == nil {
		w.removeFolders(filepath.Dir(path))
	}
}

// removeFolders removes the folder dir and those above it, below repos/, that are empty.
func (w *repoWriter) removeFolders(dir string) {
	for ; strings.HasPrefix(dir, w.layout.repos()+string(filepath.Separator)); dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			return
		}
	}
}
