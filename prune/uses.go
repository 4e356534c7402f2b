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
type Uses struct {
	// Path is the file. The file and its folder are created when missing.
	Path string
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
)

// update runs one batch in a transaction. It changes nothing in a file of a newer format.
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
	if err := chownLikeFolder(u.Path); err != nil {
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
		if err := checkVersion(string(meta.Get(versionKey)), usesVersion); err != nil {
			return err
		}
		return batch(&records{images, meta})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("last-use records %s: %w", u.Path, err)
	}
	return nil
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
func (r *records) settle(now time.Time) error {
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
	watched  bool     // a watcher is running
	activity Activity // the last one that it saw
}

// observe updates the records with what a snapshot shows: new images are first seen now,
// images in use are used now, and records of images that were removed are deleted. If the
// watcher has ended, nobody knows what happened since, and every image counts once as used now.
func (u Uses) observe(s Snapshot, now time.Time) (o observation, err error) {
	inUse := usersByImage(s)
	err = u.update(func(r *records) error {
		if err := r.settle(now); err != nil {
			return err
		}
		w, err := r.watchState()
		if err != nil {
			return err
		}
		o.watched, o.activity = !w.Alive.IsZero(), w.Activity
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
		o.uses, err = r.all()
		return err
	})
	return o, err
}

// deleteOthers deletes the records of images that are not among these. If such an image comes
// back, it is new.
func (r *records) deleteOthers(images []Image) error {
	present := map[string]bool{}
	for _, img := range images {
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
