package storage

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
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
	pins        *pins
	files       *files
	room        *room
	catalogue   *catalogue
	pulls       *pulls
	faults      *faults
	log         *slog.Logger
	indexOpened func(*bbolt.DB) // may be nil
	repos       repoWriter

	enough       int          // while the index is rebuilt: changes that couldn't be written
	aheadOfClock []correction // while the index is loaded: what has a time that is to come

	walked  atomic.Bool   // reconcile has seen all files
	dirty   chan struct{} // of one: the index is to be written now
	lost    chan struct{} // of one: files were removed, so the index is to be compared with them
	stop    chan struct{} // closed by close
	running sync.WaitGroup
}

const (
	// houseEvery is how long last uses wait to be written together: a synced transaction for
	// each hit would be the slowest part of it.
	houseEvery = 10 * time.Second
	// sweepEvery is for how many times houseEvery what nothing needs waits to be removed: a day.
	sweepEvery = 24 * 60 * 6
)

// start begins the work in the background, and close ends it.
func (h *housekeeping) start() {
	h.running.Go(h.run)
	h.running.Go(h.writeIndex)
	h.running.Go(h.makeRoom)
	h.running.Go(func() { h.pins.run(h.stop) })
	go h.repos.run()
}

// close stops the work in the background, writes what is only in memory, and closes the index.
func (h *housekeeping) close() error {
	close(h.stop)
	h.running.Wait()
	h.repos.wait()
	h.pulls.note()
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
		case <-h.lost:
			h.reconcile()
			continue
		case <-tick.C:
		}
		h.flush()
		h.room.shrink()
		h.room.shortages.say(h.pins.store.tooSmall(), h.log)
		if n%sweepEvery == 0 {
			h.sweep(time.Now())
		}
	}
}

// flush writes the index. When that fails, run tries again.
func (h *housekeeping) flush() {
	h.pulls.note()
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

// makeRoom ends the sending to slow clients while room is short.
func (h *housekeeping) makeRoom() {
	for {
		select {
		case <-h.room.isShort:
		case <-h.stop:
			return
		}
		for h.room.endSlow() {
			select {
			case <-time.After(slowEvery):
			case <-h.stop:
				return
			}
		}
	}
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
		} else if used := h.files.lastUse(d, fi, now); used > indexed {
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
	h.pins.apply()
	h.room.shrink()
}

// folderLost says that a folder of the data directory is gone: somebody has removed its content
// under the running server. The bytes of what is gone must not fill the budget.
func (h *housekeeping) folderLost() {
	select {
	case h.lost <- struct{}{}:
		h.log.Warn("files of the data directory were removed while the server runs; what is gone is fetched again", "dir", h.faults.dir)
	default: // it has been said
	}
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

const (
	// tagsKept is how long a tag is remembered after its manifest has left: the next pull has to
	// fetch that anyway.
	tagsKept = 30 * 24 * time.Hour
	// bareTags is how many such tags of a repository are remembered, the newest.
	bareTags = 100
)

// sweep forgets the links of blobs that are neither cached nor named by a cached manifest, and
// old tags whose manifests have left, and the visibility of repositories of which nothing is left. Eviction leaves both, because a blob that comes back to
// a manifest that stayed needs its links.
func (h *housekeeping) sweep(now time.Time) {
	h.catalogue.beginSweep()
	h.flush()
	repositories, err := h.catalogue.repositoriesIn(bucketLinks)
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
		h.repos.changedNow(name) // or the link would come back with a rebuild
	}
	if err != nil {
		h.faults.disk(err)
		return
	}
	h.sweepTags(now)
	if err := errors.Join(h.sweepReferrers(), h.pulls.sweep()); err != nil {
		h.faults.disk(err)
	}
	if err := h.catalogue.repositories.sweep(); err != nil {
		h.faults.disk(err)
	}
	h.flush()
	h.repos.sweep()
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

// sweepTags forgets tags whose manifests are not cached: those that were last checked before
// tagsKept, and the oldest of a repository that has many.
func (h *housekeeping) sweepTags(now time.Time) {
	type bareTag struct {
		tag     string
		checked time.Time
	}
	var repository string // the tags of one repository at a time are in memory
	var bare []bareTag
	var stale []taggedName
	next := func(name string) {
		slices.SortFunc(bare, func(a, b bareTag) int { return b.checked.Compare(a.checked) })
		for i, t := range bare {
			if i >= bareTags || t.checked.Before(now.Add(-tagsKept)) {
				stale = append(stale, taggedName{repository, t.tag})
			}
		}
		repository, bare = name, bare[:0]
	}
	err := h.catalogue.index.Each(bucketTags, nil, func(k, v []byte) error {
		name, tag := unpair(k)
		if name != repository {
			next(name)
		}
		t, err := decodeTag(v)
		if !isReferrers(tag) && !h.catalogue.repositories.cached(t.Digest) {
			bare = append(bare, bareTag{tag, t.Checked})
		}
		return err
	})
	next("")
	if err != nil {
		h.faults.disk(err)
	}
	for _, t := range stale {
		if h.catalogue.repositories.deleteTag(t.repository, t.tag) {
			h.repos.changed(t.repository)
		}
	}
}
