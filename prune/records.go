package prune

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"go.etcd.io/bbolt"

	"github.com/hubcache/hubcache/boltfile"
)

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
