package storage

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
)

// housekeeping loads the store, and works in the background: it compares the index with the
// files, writes what is only in memory, forgets what nothing needs, and evicts for the free
// space to keep.
type housekeeping struct {
	files       *files
	room        *room
	catalogue   *catalogue
	faults      *faults
	log         *slog.Logger
	indexOpened func(*bbolt.DB) // may be nil

	walked  atomic.Bool   // reconcile has seen all files
	dirty   chan struct{} // of one: the index is to be written now
	stop    chan struct{} // closed by close
	running sync.WaitGroup

	// mu guards changed. It is never held during I/O, and no other lock of this package is
	// taken while it is held.
	mu      sync.Mutex
	changed map[string]bool // repositories whose file is behind the index
}

const (
	// houseEvery is by how much the files of repositories may be behind the index.
	houseEvery = time.Second
	// usesEvery is for how many times houseEvery last uses wait to be written together: a
	// synced transaction for each hit would be the slowest part of it.
	usesEvery = 10
	// sweepEvery is for how many times houseEvery unneeded links and tags wait to be removed.
	sweepEvery = 24 * 60 * 60
)

// start begins the work in the background, and close ends it.
func (h *housekeeping) start() {
	h.running.Go(h.run)
	h.running.Go(h.writeIndex)
}

// close stops the work in the background, writes what is only in memory, and closes the index.
func (h *housekeeping) close() error {
	close(h.stop)
	h.running.Wait()
	h.writeRepos()
	return h.catalogue.index.Close()
}

func (h *housekeeping) run() {
	h.reconcile()
	h.sweep(time.Now())
	tick := time.NewTicker(houseEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-h.stop:
			return
		case <-tick.C:
		}
		h.writeRepos()
		if n%usesEvery == 0 {
			h.flush()
			h.room.shrink()
		}
		if n%sweepEvery == 0 {
			h.sweep(time.Now())
		}
	}
}

// flush writes the index. When that fails, run tries again.
func (h *housekeeping) flush() {
	if err := h.catalogue.index.Flush(); err != nil {
		h.faults.disk(err)
	}
}

// flushSoon has the index written at once, and doesn't wait for it. Changes that come in the
// meantime share one synced transaction.
func (h *housekeeping) flushSoon() {
	select {
	case h.dirty <- struct{}{}:
	default: // it will be written
	}
}

// writeIndex writes the index whenever flushSoon asks for it.
func (h *housekeeping) writeIndex() {
	for {
		select {
		case <-h.dirty:
			h.flush()
		case <-h.stop:
			return
		}
	}
}

// repoChanged says that the file of a repository is behind the index.
func (h *housekeeping) repoChanged(repository string) {
	h.mu.Lock()
	h.changed[repository] = true
	h.mu.Unlock()
}

// writeRepos brings the files of changed repositories up to date with the index.
func (h *housekeeping) writeRepos() {
	h.mu.Lock()
	changed := h.changed
	h.changed = map[string]bool{}
	h.mu.Unlock()
	if len(changed) > 0 {
		h.flush()
	}
	for name := range changed {
		err := h.writeRepo(name)
		if newer := (*NewerFormatError)(nil); errors.As(err, &newer) {
			h.log.Error("the file of a repository is not written", "error", err)
		} else if err != nil {
			h.faults.disk(err)
			h.repoChanged(name)
		}
	}
}

func (h *housekeeping) writeRepo(name string) error {
	file, err := h.catalogue.describe(name, func(d digest.Digest) bool { return h.room.state(d).manifest })
	if err != nil {
		return err
	}
	return file.write(h.files.layout.repo(name))
}

// reconcile compares the index with the files: a blob whose file is gone is forgotten, a file
// that isn't in the index is adopted, and a last use that a crash has taken from the index is
// taken from the file. Files that aren't ours are left alone.
func (h *housekeeping) reconcile() {
	later := map[digest.Digest]int64{} // last uses that the index doesn't know
	now := time.Now().UnixNano()
	err := h.files.walk(h.stopping, func(d digest.Digest, fi fs.FileInfo) {
		indexed, ok := h.room.found(d)
		if !ok {
			h.adoptFile(d)
		} else if used := lastUseOf(fi, now); used > indexed {
			later[d] = used
		}
	})
	if err != nil {
		h.log.Error("can't read the folder of the blobs", "error", err)
		return
	}
	if h.stopping() { // in the middle of the walk
		return
	}
	h.room.recoverUses(later)
	h.walked.Store(true)
	for _, d := range h.room.notFound() {
		if _, err := os.Lstat(h.files.layout.blob(d)); errors.Is(err, fs.ErrNotExist) {
			h.room.remove(d, nil)
		}
	}
	h.flush()
	h.room.shrink()
}

func (h *housekeeping) stopping() bool {
	select {
	case <-h.stop:
		return true
	default:
		return false
	}
}

// adoptFile adopts the file of d, if there is one that the index doesn't know.
func (h *housekeeping) adoptFile(d digest.Digest) {
	h.room.evicting.Lock() // so that it isn't unlinked in between
	defer h.room.evicting.Unlock()
	if fi, err := os.Lstat(h.files.layout.blob(d)); err == nil && fi.Mode().IsRegular() {
		h.files.adopt(d, fi)
	}
}

// adoptUnknown adopts the file of d if reconcile may not have come to it yet. Otherwise it
// would be adopted beside a download of the same digest.
func (h *housekeeping) adoptUnknown(d digest.Digest) {
	if !h.walked.Load() {
		h.adoptFile(d)
	}
}

// tagsKept is how long a tag is remembered after its manifest has left: the next pull has to
// fetch that anyway.
const tagsKept = 30 * 24 * time.Hour

// sweep forgets the links of blobs that are neither cached nor named by a cached manifest, and
// old tags whose manifests have left. Eviction leaves both, because a blob that comes back to
// a manifest that stayed needs its links.
func (h *housekeeping) sweep(now time.Time) {
	h.catalogue.beginSweep()
	h.flush()
	repositories, err := h.catalogue.linkedRepositories()
	var unneeded [][]byte
	for _, name := range repositories { // the links of one repository at a time are in memory
		links, linksErr := h.catalogue.links(name)
		err = errors.Join(err, linksErr)
		for _, key := range h.unneeded(links) {
			unneeded = append(unneeded, key)
		}
	}
	if err != nil {
		unneeded = nil
	}
	for _, name := range h.catalogue.endSweep(unneeded) {
		h.repoChanged(name) // or the link would come back with a rebuild
	}
	if err != nil {
		h.faults.disk(err)
		return
	}
	h.sweepTags(now)
	h.flush()
}

// unneeded returns those of a repository's links that nothing needs.
func (h *housekeeping) unneeded(links map[digest.Digest][]byte) map[digest.Digest][]byte {
	unneeded := map[digest.Digest][]byte{}
	named := map[digest.Digest]bool{}
	for d, key := range links {
		st, coming := h.files.state(d)
		switch {
		case st.manifest:
			if r, err := h.catalogue.record(d); err == nil {
				for _, c := range r.children {
					named[c.Digest] = true
				}
			}
		case !st.cached && !coming:
			unneeded[d] = key
		}
	}
	for d := range unneeded {
		if named[d] {
			delete(unneeded, d)
		}
	}
	return unneeded
}

func (h *housekeeping) sweepTags(now time.Time) {
	stale, err := h.catalogue.staleTags(now.Add(-tagsKept), func(d digest.Digest) bool { return h.room.state(d).cached })
	if err != nil {
		h.faults.disk(err)
	}
	for _, t := range stale {
		if h.catalogue.deleteTag(t.repository, t.tag) {
			h.repoChanged(t.repository)
		}
	}
}
