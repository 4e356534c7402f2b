package prune

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// ErrBusy means that the records are locked by another process. Try again later.
var ErrBusy = errors.New("the last-use records are locked by another process")

// lockWait is how long a batch waits for the file's lock. The other side holds it for a
// batch, which is milliseconds; two seconds are a disk in trouble.
const lockWait = 2 * time.Second

// staleWatch is how old a watcher's last sign of life may be. It gives one every
// heartbeat (30 s); five minutes are a watcher that has gone.
const staleWatch = 5 * time.Minute

// Record is what is known about an image's use on this host.
type Record struct {
	FirstSeen time.Time `json:"first_seen"`
	LastUsed  time.Time `json:"last_used"`
}

// Uses are the last-use records in a bbolt file. Every method opens the file, does one
// batch and closes it, so that a watcher and a prune can share it. Its methods are safe
// for concurrent use, by several processes too; each may return [ErrBusy] and
// [ErrNewerFormat].
type Uses struct {
	// Path is the file; it and its directory are made when missing.
	Path string
}

// watchState is what the watcher leaves for its next start, and for prune.
type watchState struct {
	Alive    time.Time `json:"alive"`    // last sign of life; zero: nobody watches
	Event    eventMark `json:"event"`    // the last event that is in the records
	Activity Activity  `json:"activity"` // the last sign of a deploy
}

var (
	imagesBucket = []byte("images") // image ID → Record
	metaBucket   = []byte("meta")
	watchKey     = []byte("watch")   // watchState
	versionKey   = []byte("version") // of the file's format, in decimal; absent in version 1
)

// usesVersion is the newest version of the file's format that this program knows.
const usesVersion = 1

// update runs one batch. In a file of a newer format it changes nothing.
func (u Uses) update(batch func(*records) error) error {
	if err := os.MkdirAll(filepath.Dir(u.Path), 0o755); err != nil {
		return fmt.Errorf("last-use records: %w", err)
	}
	db, err := bbolt.Open(u.Path, 0o640, &bbolt.Options{Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("%s: %w", u.Path, ErrBusy)
	}
	if err != nil {
		return fmt.Errorf("last-use records %s can't be opened (if the file is damaged, remove it: every image then counts as used now): %w", u.Path, err)
	}
	if err := handOver(u.Path); err != nil {
		return errors.Join(err, db.Close())
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		images, err := tx.CreateBucketIfNotExists(imagesBucket)
		if err != nil {
			return err
		}
		meta, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		if err := checkVersion("the file", string(meta.Get(versionKey)), usesVersion); err != nil {
			return err
		}
		return batch(&records{images, meta})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("last-use records %s: %w", u.Path, err)
	}
	return nil
}

// handOver gives the file to its directory's owner: root may be the first to look, and
// the watcher, which runs as somebody else, must be able to write.
func handOver(path string) error {
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

// records are the file's content within one batch.
type records struct{ images, meta *bbolt.Bucket }

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

// use notes that the image was used at that time; it never moves a record back.
func (r *records) use(id string, at time.Time) error {
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

// useAll notes a use of every image on record.
func (r *records) useAll(at time.Time) error {
	all, err := r.all()
	if err != nil {
		return err
	}
	for id := range all {
		if err := r.use(id, at); err != nil {
			return err
		}
	}
	return nil
}

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

func (r *records) watch() (w watchState, err error) {
	if b := r.meta.Get(watchKey); b != nil {
		err = json.Unmarshal(b, &w)
	}
	return w, err
}

func (r *records) setWatch(w watchState) error {
	b, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return r.meta.Put(watchKey, b)
}

// observation is what a run learns from the records.
type observation struct {
	uses     map[string]Record
	watched  bool     // a watcher is at work
	activity Activity // the last that it saw
}

// observe notes what a snapshot shows: new images are first seen now, those in use are
// used now, those that are gone are forgotten. When a watcher has gone away, what
// happened since isn't known, and every image counts as used now, once.
func (u Uses) observe(s Snapshot, now time.Time) (o observation, err error) {
	inUse := users(s)
	err = u.update(func(r *records) error {
		w, err := r.watch()
		if err != nil {
			return err
		}
		o.watched, o.activity = !w.Alive.IsZero(), w.Activity
		if o.watched && now.Sub(w.Alive) > staleWatch {
			if err := errors.Join(r.useAll(now), r.setWatch(watchState{Activity: w.Activity})); err != nil {
				return err
			}
			o.watched = false
		}
		if err := r.forget(s); err != nil {
			return err
		}
		for _, img := range s.Images {
			_, known, err := r.get(img.ID)
			if err != nil {
				return err
			}
			if _, used := inUse[img.ID]; used || !known {
				if err := r.use(img.ID, now); err != nil {
					return err
				}
			}
		}
		o.uses, err = r.all()
		return err
	})
	return o, err
}

// forget drops the records of images that are not in the snapshot: one that comes back is new.
func (r *records) forget(s Snapshot) error {
	present := map[string]bool{}
	for _, img := range s.Images {
		present[img.ID] = true
	}
	all, err := r.all()
	if err != nil {
		return err
	}
	for id := range all {
		if !present[id] {
			if err := r.images.Delete([]byte(id)); err != nil {
				return err
			}
		}
	}
	return nil
}
