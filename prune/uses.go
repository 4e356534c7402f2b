package prune

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/boltfile"
)

// ErrBusy means that another process has locked the records. Try again later.
var ErrBusy = errors.New("the last-use records are locked by another process")

const (
	// usesVersion is the newest version of the file's format that this program knows.
	usesVersion = 1

	// lockWait is how long a batch waits for the lock of the file. Another process holds it
	// for one batch, which takes milliseconds. Two seconds mean that the disk has a problem.
	lockWait = 2 * time.Second

	// maxSilence is how long ago the watcher may have said that it is alive. It says so every
	// heartbeat (30 s). After five minutes it has ended.
	maxSilence = 5 * time.Minute
)

// Record says when an image was used on this host.
type Record struct {
	FirstSeen time.Time `json:"first_seen"`
	LastUsed  time.Time `json:"last_used"`
}

// Uses are the last-use records in a bbolt file. Each method opens the file, runs one batch
// and closes the file, so that a watcher and a prune can share it. The methods are safe for
// concurrent use, by several processes too. Each may return [ErrBusy] and [ErrNewerFormat].
//
// A file that is damaged is renamed to Path.bad, and a new one is begun: every image then counts as
// used at that time.
type Uses struct {
	// Path is the file. The file and its folder are created when missing.
	Path string

	clock func() (clockMark, error) // nil: readClock
}

// watchState is what the watcher stores for its next start and for prune.
type watchState struct {
	Alive    time.Time `json:"alive"`    // when it last said that it is alive; zero: there is no watcher
	Event    eventMark `json:"event"`    // the last event that is in the records
	Activity Activity  `json:"activity"` // the last activity of a deploy
}

var (
	imagesBucket = []byte("images") // image ID → Record
	metaBucket   = []byte("meta")
	watchKey     = []byte("watch")   // watchState
	versionKey   = []byte("version") // of the file's format, in decimal; absent in version 1
	clockKey     = []byte("clock")   // clockMark; absent if an older program wrote the file
	basePrefix   = "base "           // and an image ID: others were built on it
	aheadPrefix  = "ahead "          // and a time of the Engine that is ahead of the clock: when it was first seen
	sumKey       = []byte("sum")     // number of the transaction that wrote it, SHA-256 of all else, CRC-32 of both
)

// update runs one batch in a transaction. It changes nothing in a file of a newer format. A
// damaged file is set aside, and the batch is run on a new one: every image then counts as used.
func (u Uses) update(batch func(*records) error) error {
	if err := os.MkdirAll(filepath.Dir(u.Path), 0o755); err != nil {
		return fmt.Errorf("last-use records: %w", err)
	}
	err := u.attempt(batch, nil)
	if errors.Is(err, boltfile.ErrDamaged) {
		err = u.attempt(batch, err)
	}
	if errors.Is(err, ErrBusy) || err == nil {
		return err
	}
	return fmt.Errorf("last-use records %s: %w", u.Path, err)
}

// attempt runs one batch on the file as it is. The batch finds what was wrong with the file before
// in damage. A file that is damaged is set aside while it is locked, so that no other process can
// have made a new one. Errors: [boltfile.ErrDamaged].
func (u Uses) attempt(batch func(*records) error, damage error) (err error) {
	f, err := u.lock()
	if err != nil {
		return err
	}
	end := func() error { f.Close(); return nil }
	defer func() {
		if errors.Is(err, boltfile.ErrDamaged) {
			err = errors.Join(err, boltfile.SetAside(u.Path))
		}
		err = errors.Join(err, end())
	}()
	if err := checkRecords(f); err != nil {
		return err
	}
	defer boltfile.Recover(&err)()
	db, err := bbolt.Open(u.Path, 0o640, &bbolt.Options{OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil }})
	if err != nil {
		return err
	}
	if err := chownLikeFolder(u.Path); err != nil {
		return errors.Join(err, db.Close())
	}
	// If bbolt panics in here, its locks are lost, and it can't be closed. Closing the file frees it.
	err = db.Update(func(tx *bbolt.Tx) error { return run(tx, batch, damage) })
	end = db.Close
	if errors.Is(err, errNoChange) {
		return nil
	}
	return err
}

// errNoChange is what a batch returns that has only read.
var errNoChange = errors.New("nothing has changed")

// run runs the batch between a check of the content and a new checksum.
func run(tx *bbolt.Tx, batch func(*records) error, damage error) error {
	if name, _ := tx.Cursor().First(); name != nil && (tx.Bucket(imagesBucket) == nil || tx.Bucket(metaBucket) == nil) {
		return fmt.Errorf("%w: a bucket is missing", boltfile.ErrDamaged) // each version makes both at once
	}
	images, err := tx.CreateBucketIfNotExists(imagesBucket)
	if err != nil {
		return err
	}
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	if err := checkVersion(string(meta.Get(versionKey)), usesVersion); err != nil {
		return err
	}
	r := &records{images, meta, damage}
	if err := r.checkSum(uint64(tx.ID()) - 1); err != nil {
		return err
	}
	if err := batch(r); err != nil {
		return err
	}
	sum, err := r.sum()
	if err != nil {
		return err
	}
	row := append(binary.LittleEndian.AppendUint64(nil, uint64(tx.ID())), sum...)
	return meta.Put(sumKey, binary.LittleEndian.AppendUint32(row, crc32.ChecksumIEEE(row)))
}

// lock opens the file and locks it. Another process may set the file aside meanwhile; then the
// lock is that of the wrong file.
func (u Uses) lock() (*os.File, error) {
	for {
		f, err := os.OpenFile(u.Path, os.O_RDWR|os.O_CREATE, 0o640)
		if err != nil {
			return nil, err
		}
		if err := boltfile.Lock(f, lockWait); err != nil {
			f.Close()
			if errors.Is(err, boltfile.ErrLocked) {
				return nil, fmt.Errorf("%s: %w", u.Path, ErrBusy)
			}
			return nil, err
		}
		opened, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if named, err := os.Stat(u.Path); err == nil && os.SameFile(opened, named) {
			return f, nil
		}
		f.Close()
	}
}

// checkRecords checks the file before bbolt opens it. Errors: [boltfile.ErrDamaged], and
// [ErrNewerFormat], even if such a file is not what this program expects.
func checkRecords(f *os.File) error {
	err := boltfile.Walk(f, [][]byte{metaBucket, imagesBucket}, func(bucket, key, row []byte) error {
		value := row[len(key):]
		var target any
		switch {
		case string(bucket) == string(metaBucket) && string(key) == string(versionKey):
			return checkVersion(string(value), usesVersion)
		case string(bucket) == string(imagesBucket):
			target = &Record{}
		case string(bucket) == string(metaBucket) && string(key) == string(watchKey):
			target = &watchState{}
		default:
			return nil
		}
		if err := json.Unmarshal(value, target); err != nil {
			return fmt.Errorf("%w: the value of %q: %w", boltfile.ErrDamaged, key, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return boltfile.CheckMetas(f)
}

// chownLikeFolder gives the file to the owner of its folder. If root runs prune before the
// watcher first starts, the file is root's, and the watcher, which runs as another user,
// couldn't write it.
func chownLikeFolder(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var dir, file unix.Stat_t
	if err := errors.Join(unix.Stat(filepath.Dir(path), &dir), unix.Stat(path, &file)); err != nil {
		return fmt.Errorf("last-use records %s: %w", path, err)
	}
	if dir.Uid == file.Uid {
		return nil
	}
	return os.Chown(path, int(dir.Uid), int(dir.Gid))
}

// records is the content of the file during one batch.
type records struct {
	images, meta *bbolt.Bucket
	damage       error // what was wrong with the file before this one, if it was set aside just now
}

// sum returns the checksum of all that is in the file, but for the checksum itself. A value has
// none of its own, and a wrong digit in a time would make an image look old.
func (r *records) sum() ([]byte, error) {
	hash := sha256.New()
	for _, b := range []*bbolt.Bucket{r.images, r.meta} {
		err := b.ForEach(func(k, v []byte) error {
			if string(k) != string(sumKey) {
				fmt.Fprintf(hash, "%d %d %s%s", len(k), len(v), k, v)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return hash.Sum(nil), nil
}

// checkSum compares the content with its checksum, if the checksum was written by the last
// transaction. An older program writes neither this checksum nor the clock's mark, and leaves
// both as they are. Errors: [boltfile.ErrDamaged].
func (r *records) checkSum(lastTransaction uint64) error {
	stored := r.meta.Get(sumKey)
	const size = 8 + sha256.Size
	switch {
	case stored == nil && r.meta.Get(clockKey) == nil:
		return nil
	case len(stored) != size+4 || binary.LittleEndian.Uint32(stored[size:]) != crc32.ChecksumIEEE(stored[:size]):
		return fmt.Errorf("%w: the checksum itself is damaged or missing", boltfile.ErrDamaged)
	}
	if binary.LittleEndian.Uint64(stored) != lastTransaction {
		return nil
	}
	sum, err := r.sum()
	if err == nil && string(sum) != string(stored[8:size]) {
		err = fmt.Errorf("%w: the checksum is wrong", boltfile.ErrDamaged)
	}
	return err
}

func (r *records) get(id string) (rec Record, ok bool, err error) {
	b := r.images.Get([]byte(id))
	if b == nil {
		return Record{}, false, nil
	}
	return rec, true, json.Unmarshal(b, &rec)
}

func (r *records) put(id string, rec Record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return r.images.Put([]byte(id), b)
}

// addUse records that the image was used at that time. The last use never becomes older.
func (r *records) addUse(id string, at time.Time) error {
	rec, known, err := r.get(id)
	if err != nil {
		return err
	}
	if !known {
		rec.FirstSeen = at
	}
	if at.After(rec.LastUsed) {
		rec.LastUsed = at
	}
	return r.put(id, rec)
}

// addUseOfAll records a use of every image that has a record.
func (r *records) addUseOfAll(at time.Time) error {
	all, err := r.all()
	if err != nil {
		return err
	}
	for id := range all {
		if err := r.addUse(id, at); err != nil {
			return err
		}
	}
	return nil
}

// all returns the records by image ID.
func (r *records) all() (map[string]Record, error) {
	all := map[string]Record{}
	err := r.images.ForEach(func(k, v []byte) error {
		var rec Record
		if err := json.Unmarshal(v, &rec); err != nil {
			return err
		}
		all[string(k)] = rec
		return nil
	})
	return all, err
}

func (r *records) watchState() (w watchState, err error) {
	if b := r.meta.Get(watchKey); b != nil {
		err = json.Unmarshal(b, &w)
	}
	return w, err
}

func (r *records) setWatchState(w watchState) error {
	b, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return r.meta.Put(watchKey, b)
}

// settle corrects the times that are ahead of the clock: it was wrong when they were stored, and is
// right now. They count as now, and grow old from then on. The last recorded event is forgotten
// then, as if it had been missed: a daemon isn't asked for events of the future.
//
// If the clock was set since the last batch, every image counts as used now: nobody knows how long
// ago anything was.
func (r *records) settle(now clockMark) error {
	if err := r.checkClock(now); err != nil {
		return err
	}
	return errors.Join(r.settleTimes(now.Wall), r.settleArrivals(now.Wall))
}

func (r *records) settleTimes(now time.Time) error {
	all, err := r.all()
	if err != nil {
		return err
	}
	for id, rec := range all {
		if settled := (Record{notAfter(rec.FirstSeen, now), notAfter(rec.LastUsed, now)}); settled != rec {
			if err := r.put(id, settled); err != nil {
				return err
			}
		}
	}
	w, err := r.watchState()
	if err != nil {
		return err
	}
	settled := w
	settled.Alive, settled.Activity.At = notAfter(w.Alive, now), notAfter(w.Activity.At, now)
	if settled.Event.Nano > now.UnixNano() {
		settled.Event = eventMark{}
	}
	if settled == w {
		return nil
	}
	return r.setWatchState(settled)
}

// notAfter returns t, or now if t is later.
func notAfter(t, now time.Time) time.Time {
	if t.After(now) {
		return now
	}
	return t
}

// observation is what a run learns from the records.
type observation struct {
	uses     map[string]Record
	damage   error    // the records were damaged, and are new
	watched  bool     // a watcher is running
	activity Activity // the last one that it saw
}

// observe updates the records with what a snapshot shows: new images are first seen now,
// images in use are used now, and records of images that were removed are deleted. If the
// watcher has ended, nobody knows what happened since, and every image counts once as used now.
// It fills in what the snapshot needs from the records: which images are bases, when each came to
// its repositories, and since when times of the Engine are ahead of the clock.
func (u Uses) observe(s *Snapshot, now time.Time) (o observation, err error) {
	inUse := usersByImage(*s)
	mark, err := u.mark(now)
	if err != nil {
		return o, err
	}
	err = u.update(func(r *records) error {
		o.damage = r.damage
		if err := errors.Join(r.settle(mark), r.settleEngine(s, now), r.markBases(s.Images)); err != nil {
			return err
		}
		w, err := r.watchState()
		if err != nil {
			return err
		}
		o.watched, o.activity = !w.Alive.IsZero(), w.Activity
		for _, a := range s.Activities {
			if a.At.After(o.activity.At) {
				o.activity = a
			}
		}
		if o.watched && now.Sub(w.Alive) > maxSilence {
			if err := errors.Join(r.addUseOfAll(now), r.setWatchState(watchState{Activity: w.Activity})); err != nil {
				return err
			}
			o.watched = false
		}
		if err := r.deleteOthers(s.Images); err != nil {
			return err
		}
		for _, img := range s.Images {
			_, known, err := r.get(img.ID)
			if err != nil {
				return err
			}
			if _, used := inUse[img.ID]; used || !known {
				if err := r.addUse(img.ID, now); err != nil {
					return err
				}
			}
		}
		if err := r.noteAllNames(s.Images, now); err != nil {
			return err
		}
		o.uses, err = r.all()
		return err
	})
	return o, err
}

// get returns the record of an image.
func (u Uses) get(id string) (rec Record, known bool, err error) {
	err = u.update(func(r *records) error {
		if rec, known, err = r.get(id); err != nil {
			return err
		}
		return errNoChange
	})
	return rec, known, err
}

// settleEngine corrects the Engine's own times that are ahead of the clock, as settle does with
// the records. The Engine tells the same time again at the next run, so it is recorded when each
// was first seen.
func (r *records) settleEngine(s *Snapshot, now time.Time) error {
	seen := map[string]bool{}
	settled := func(what string, at time.Time) (time.Time, error) {
		if !at.After(now) {
			return at, nil
		}
		key := aheadPrefix + what + " " + at.UTC().Format(time.RFC3339Nano)
		seen[key] = true
		var first time.Time
		if first.UnmarshalText(r.meta.Get([]byte(key))) == nil && !first.After(now) {
			return first, nil
		}
		text, err := now.MarshalText()
		if err != nil {
			return now, err
		}
		return now, r.meta.Put([]byte(key), text)
	}
	var err error
	for i := range s.Images {
		img := &s.Images[i]
		if img.Tagged, err = settled(img.ID, img.Tagged); err != nil {
			return err
		}
	}
	for i := range s.Activities {
		a := &s.Activities[i]
		if a.At, err = settled(a.What, a.At); err != nil {
			return err
		}
	}
	return keepOnly(r.meta, aheadPrefix, seen)
}

// markBases records which images others were built on, and sets Base of those that have only
// a digest.
func (r *records) markBases(images []Image) error {
	for id := range basesOf(images) {
		if err := r.addBase(id); err != nil {
			return err
		}
	}
	for i := range images {
		img := &images[i]
		img.Base = len(img.Tags) == 0 && len(img.Digests) > 0 && r.meta.Get([]byte(basePrefix+img.ID)) != nil
	}
	return nil
}

// addBase records that an image was built on this one.
func (r *records) addBase(id string) error { return r.meta.Put([]byte(basePrefix+id), []byte("1")) }

// deleteOthers deletes the records of images that are not among these. If such an image comes
// back, it is new.
func (r *records) deleteOthers(images []Image) error {
	present, bases := map[string]bool{}, map[string]bool{}
	for _, img := range images {
		present[img.ID], bases[basePrefix+img.ID] = true, true
	}
	return errors.Join(keepOnly(r.images, "", present), keepOnly(r.meta, basePrefix, bases), r.forgetArrivals(present))
}

// keepOnly deletes all keys of a bucket that have the prefix and are not among these.
func keepOnly(bucket *bbolt.Bucket, prefix string, keys map[string]bool) error {
	var others [][]byte
	err := bucket.ForEach(func(k, _ []byte) error {
		if strings.HasPrefix(string(k), prefix) && !keys[string(k)] {
			others = append(others, bytes.Clone(k))
		}
		return nil
	})
	for _, k := range others {
		err = errors.Join(err, bucket.Delete(k))
	}
	return err
}
