package prune

import (
	"bytes"
	"errors"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

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
