package storage

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/index"
)

func fileIDOf(fi fs.FileInfo) fileID {
	id := fileID{size: fi.Size(), mtime: fi.ModTime().UnixNano()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		id.ino = st.Ino
	}
	return id
}

// load opens the index and fills the lru from it; a damaged one is set aside and rebuilt.
func (s *Store) load() error {
	entries, err := s.loadIndex()
	if errors.Is(err, index.ErrDamaged) {
		s.log.Error("the index is damaged: set aside and rebuilt from the files", "error", err)
		if err = index.SetAside(s.layout.index()); err != nil {
			return err
		}
		entries, err = s.loadIndex()
	}
	if err != nil {
		return err
	}
	s.loadAll(entries)
	s.loadPartials()
	if built, err := s.index.Get(bucketMeta, keyBuilt); err != nil || built != nil {
		return err
	}
	return s.rebuild()
}

// ahead is how many entries are brought into the CPU's caches together. By last use they
// lie anywhere in memory, and waiting for each on its own was half of filling the lru.
const ahead = 32

// loadAll fills the lru.
func (s *Store) loadAll(entries []lastUse) {
	slices.SortFunc(entries, func(a, b lastUse) int { return cmp.Compare(a.at, b.at) })
	var sum byte // or the compiler would leave out what is only read
	for part := range slices.Chunk(entries, ahead) {
		for _, l := range part {
			sum += l.e.Key[0] + l.e.Key[len(l.e.Key)-1] // in two lines of the cache
		}
		for _, l := range part {
			l.e.Value.used = l.at
			s.loadEntry(l.e)
		}
	}
	runtime.KeepAlive(sum)
}

// lastUse is an entry and the time to sort it by, which is read too often to be looked up.
type lastUse struct {
	at int64 // Unix nanoseconds
	e  *entry
}

func (s *Store) loadEntry(e *entry) {
	s.lru.Load(e, e.Value.again(e.Value.used))
	if e.Value.has(isManifest) {
		s.manifests++
	}
}

// loadIndex opens the index and reads all of it, so that damage shows now. It returns the
// entries in the order of their keys.
func (s *Store) loadIndex() (entries []lastUse, err error) {
	tags := int64(0)
	var left []lastUse // those whose last use is to come: both buckets are in the order of their keys
	visit := func(bucket, k, v []byte) error {
		switch string(bucket) {
		case string(bucketBlobs):
			r, _, err := decodeHead(v)
			if err != nil {
				return err
			}
			entries = append(entries, lastUse{e: r.entry(digest.Digest(k), 0)})
			left = entries
		case string(bucketUses):
			t, err := decodeTime(v)
			for len(left) > 0 && string(left[0].e.Key) < string(k) {
				left = left[1:]
			}
			if len(left) > 0 && string(left[0].e.Key) == string(k) {
				left[0].at = t
			}
			return err
		case string(bucketTags):
			tags++
			_, err := decodeTag(v)
			return err
		}
		return nil
	}
	s.index, err = index.Open(s.layout.index(), index.Options{
		Buckets: buckets,
		First:   [][]byte{bucketBlobs, bucketUses},
		Visit:   visit,
		Opened:  s.indexOpened,
	})
	s.tags.Store(tags)
	return entries, err
}

// loadPartials books the unfinished downloads that can be gone on with, and removes
// the others.
func (s *Store) loadPartials() {
	files, err := os.ReadDir(s.layout.ingest())
	if err != nil {
		s.diskFailed(err)
		return
	}
	for _, file := range files {
		path := filepath.Join(s.layout.ingest(), file.Name())
		name, isState := strings.CutSuffix(file.Name(), ".json")
		if isState {
			if _, err := os.Stat(filepath.Join(s.layout.ingest(), name)); err != nil {
				os.Remove(path)
			}
			continue
		}
		algorithm, hex, _ := strings.Cut(name, "-")
		d, ok := digestOf(algorithm, hex)
		st, resumable := readState(path + ".json")
		fi, err := file.Info()
		whole := false
		if ok {
			_, err := os.Lstat(s.layout.blob(d))
			whole = err == nil
		}
		if !ok || !resumable || err != nil || fi.Size() != st.Size || whole {
			os.Remove(path)
			os.Remove(path + ".json")
			continue
		}
		s.lru.LoadPartial(&entry{Key: d, Size: st.Size, Value: info{bits: isPartial}})
	}
}

// keepHouse writes what is batched, evicts for the free space to keep, and once, at the
// start, compares the index with the files.
func (s *Store) keepHouse() {
	s.reconcile()
	s.sweep(time.Now())
	tick := time.NewTicker(houseEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		s.writeRepos()
		if n%usesEvery == 0 {
			s.flush()
			s.shrink()
		}
		if n%sweepEvery == 0 {
			s.sweep(time.Now())
		}
	}
}

const (
	// houseEvery is how far repos/ may be behind the index.
	houseEvery = time.Second
	// usesEvery times that long, last uses wait to be written together: a synced
	// transaction per hit would be the slowest part of it.
	usesEvery = 10
	// sweepEvery times that long, links and tags of what has left wait to be forgotten.
	sweepEvery = 24 * 60 * 60
)

// reconcile makes the books equal to the files: a blob whose file is gone is forgotten, a
// file that isn't in the index is adopted, others' files in our folders are left alone.
func (s *Store) reconcile() {
	err := s.walkBlobs(func(d digest.Digest, _ fs.FileInfo) {
		s.mu.Lock()
		e := s.lru.Peek(d)
		if e != nil {
			e.Value.bits |= onDisk
		}
		s.mu.Unlock()
		if e == nil {
			s.adoptFound(d)
		}
	})
	if err != nil {
		s.log.Error("can't read the blobs' folder", "error", err)
		return
	}
	if s.stopping() { // in the middle of the walk
		return
	}
	s.walked.Store(true)
	var lost []digest.Digest
	s.mu.Lock()
	s.lru.All(func(e *entry) {
		if !e.Value.has(onDisk) { // or came in during the walk: a look will tell
			lost = append(lost, e.Key)
		}
		e.Value.bits &^= onDisk
	})
	s.mu.Unlock()
	for _, d := range lost {
		if _, err := os.Lstat(s.layout.blob(d)); errors.Is(err, fs.ErrNotExist) {
			s.Remove(d)
		}
	}
	s.flush()
	s.shrink()
}

func (s *Store) stopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// walkBlobs calls f for every file under blobs/ that has a digest's name.
func (s *Store) walkBlobs(f func(digest.Digest, fs.FileInfo)) error {
	return filepath.WalkDir(s.layout.blobs(), func(path string, file fs.DirEntry, err error) error {
		if s.stopping() {
			return fs.SkipAll
		}
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !file.Type().IsRegular() {
			return nil
		}
		d, ok := digestOf(filepath.Base(filepath.Dir(filepath.Dir(path))), file.Name())
		if fi, err := file.Info(); ok && err == nil {
			f(d, fi)
		}
		return nil
	})
}

// adoptFound books the file of d, if there is one that the books don't know.
func (s *Store) adoptFound(d digest.Digest) {
	s.making.Lock() // nothing is unlinked meanwhile
	defer s.making.Unlock()
	if fi, err := os.Lstat(s.layout.blob(d)); err == nil && fi.Mode().IsRegular() {
		s.adopt(d, fi)
	}
}

// adopt books a file that the index doesn't know. Its digest is checked when it is first
// asked for.
func (s *Store) adopt(d digest.Digest, fi fs.FileInfo) {
	r := record{fileID: fileIDOf(fi), unverified: true, private: fi.Mode().Perm()&privateBit != 0}
	e := r.entry(d, r.mtime)
	s.mu.Lock()
	// Not what is being committed at this moment, or has been meanwhile.
	known := s.ingests[d] != nil || s.lru.Peek(d) != nil || s.unlinking[d] != nil
	if !known {
		s.loadEntry(e)
	}
	s.mu.Unlock()
	if !known {
		s.index.Set(bucketBlobs, []byte(d), r.encode())
	}
}

// rebuild makes a new index from the files: blobs, then what the repositories' files say.
// Lost are last uses (the files' times stand in), links that upstream had confirmed for
// blobs that no cached manifest names, and the newest second of tags and verdicts.
func (s *Store) rebuild() error {
	start := time.Now()
	type found struct {
		d  digest.Digest
		fi fs.FileInfo
	}
	var blobs []found
	if err := s.walkBlobs(func(d digest.Digest, fi fs.FileInfo) { blobs = append(blobs, found{d, fi}) }); err != nil {
		return err
	}
	slices.SortFunc(blobs, func(a, b found) int { return a.fi.ModTime().Compare(b.fi.ModTime()) })
	for _, b := range blobs {
		s.adopt(b.d, b.fi)
	}
	repos := 0
	err := filepath.WalkDir(s.layout.repos(), func(path string, file fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(file.Name(), tempPrefix):
			os.Remove(path)
		case file.Type().IsRegular():
			repo, err := readRepo(path)
			if err != nil {
				s.log.Warn("a repository's file can't be read; its tags are lost", "error", err)
				return nil
			}
			repos++
			s.restore(repo)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.index.Set(bucketMeta, keyBuilt, []byte{1})
	s.flush()
	if len(blobs) > 0 || repos > 0 {
		s.log.Info("index rebuilt", "blobs", len(blobs), "repositories", repos, "took", time.Since(start).Round(time.Millisecond).String())
	}
	return nil
}

// restore puts what a repository's file says back into the index.
func (s *Store) restore(repo repoFile) {
	name := repo.Repository
	if repo.Public != nil {
		s.index.Set(bucketVisibility, []byte(name), Visibility{*repo.Public, repo.VerdictAt}.encode())
	}
	for d, mediaType := range repo.Manifests {
		s.restoreManifest(name, d, mediaType)
	}
	for tag, t := range repo.Tags {
		if t.Digest.Validate() == nil {
			s.index.Set(bucketTags, pair(name, tag), Tag{t.Digest, t.Type, t.Size, t.Checked}.encode())
			s.tags.Add(1)
		}
	}
}

func (s *Store) restoreManifest(repository string, d digest.Digest, mediaType string) {
	if d.Validate() != nil {
		return
	}
	body, err := os.ReadFile(s.layout.blob(d))
	if err != nil || d.Algorithm().FromBytes(body) != d {
		return // gone or damaged: found out by Open
	}
	s.mu.Lock()
	e := s.lru.Peek(d)
	if e != nil {
		if !e.Value.has(isManifest) {
			s.manifests++
		}
		e.Value.bits = e.Value.bits&^unverified | isManifest
	}
	s.mu.Unlock()
	if e == nil {
		return
	}
	r := record{fileID: fileID{e.Size, e.Value.ino, e.Value.mtime}, private: e.Value.has(isPrivate), manifest: true, mediaType: mediaType, children: image.Children(body)}
	s.index.Set(bucketBlobs, []byte(d), r.encode())
	s.link(repository, d, Link{true, e.Size})
	for _, c := range r.children {
		s.name(repository, c)
	}
}

// amend changes the record of d.
func (s *Store) amend(d digest.Digest, f func(*record)) {
	s.amending.Lock()
	defer s.amending.Unlock()
	r, err := s.record(d)
	if err != nil {
		return
	}
	f(&r)
	s.index.Set(bucketBlobs, []byte(d), r.encode())
}
