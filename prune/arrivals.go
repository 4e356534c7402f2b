package prune

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"go.etcd.io/bbolt"
)

// arrival is when an image came to one of its repositories: when it got its last new tag there,
// or, without a tag, its digest. Both times are the same if that is known exactly.
//
// The Engine knows one tag time of each image. That may be the time of a name in another
// repository, and of one that was removed since. So the records have the arrivals.
type arrival struct {
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Tags      []string  `json:"tags,omitempty"` // that the image has in the repository, sorted
}

var (
	// arrivalPrefix and an image ID, a space and a repository: arrival. Older programs leave these
	// rows as they are.
	arrivalPrefix = "came "
	// arrivalsKey is when the names of all images were last compared with the rows: a time.
	arrivalsKey = []byte("names seen")
)

// estimate returns when an image came to its repositories, as far as the Engine tells. It was first
// seen at that time, whichever names it had then.
func estimate(img Image, repos int, firstSeen time.Time) arrival {
	if img.Tagged.IsZero() { // the graphdriver store has no tag time of an image that was pulled
		return arrival{NotBefore: firstSeen, NotAfter: firstSeen}
	}
	a := arrival{NotBefore: img.Tagged, NotAfter: img.Tagged}
	if firstSeen.Before(a.NotBefore) {
		a.NotBefore = firstSeen
	}
	if repos > 1 || a.NotBefore.Before(img.Built) { // one of the names came then, and the others before
		a.NotBefore = img.Built
	}
	a.NotBefore = notAfter(a.NotBefore, a.NotAfter)
	return a
}

// arrivedIn returns when an image of a snapshot came to one of its repositories. Without a row,
// that is what the Engine tells.
func arrivedIn(img Image, repo string, repos int, uses map[string]Record, now time.Time) arrival {
	if a, known := img.came[repo]; known {
		return a
	}
	if rec, known := uses[img.ID]; known {
		return estimate(img, repos, rec.FirstSeen)
	}
	return estimate(img, repos, now)
}

// noteNames updates the rows of an image with the names that it has. A name that is new came
// between those times. It returns the rows.
//
// A digest isn't an arrival if the image is in the repository already: it gets one when it is
// pushed. And a known name that is set again changes nothing, since the Engine doesn't say which
// one that was.
func (r *records) noteNames(img Image, between, at time.Time) (map[string]arrival, error) {
	rows, err := r.arrivals(img.ID)
	if err != nil {
		return nil, err
	}
	rec, known, err := r.get(img.ID)
	if err != nil {
		return nil, err
	}
	if !known {
		rec.FirstSeen = at
	}
	came, names := map[string]arrival{}, namesByRepository(img)
	for repo, tags := range names {
		row, inRepo := rows[repo]
		switch {
		case len(rows) == 0: // the image is new here, or the program is
			row = estimate(img, len(names), rec.FirstSeen)
		case !inRepo, slices.ContainsFunc(tags, func(tag string) bool { return !slices.Contains(row.Tags, tag) }):
			if at.After(row.NotAfter) {
				row.NotBefore, row.NotAfter = notAfter(between, at), at
			}
		}
		row.Tags = tags
		came[repo] = row
	}
	return came, r.putArrivals(img.ID, rows, came)
}

// namesByRepository returns the tags of an image in each of its repositories, sorted; none where it
// has only a digest.
func namesByRepository(img Image) map[string][]string {
	names := map[string][]string{}
	for repo := range repositories(img) {
		names[repo] = nil
	}
	for _, ref := range img.Tags {
		if named, err := reference.ParseNormalizedNamed(ref); err == nil {
			names[named.Name()] = append(names[named.Name()], named.String())
		}
	}
	for _, tags := range names {
		slices.Sort(tags)
	}
	return names
}

// arrivals returns the rows of an image, by repository.
func (r *records) arrivals(id string) (map[string]arrival, error) {
	rows := map[string]arrival{}
	err := eachWith(r.meta, arrivalPrefix+id+" ", func(repo string, value []byte) error {
		var a arrival
		err := json.Unmarshal(value, &a)
		rows[repo] = a
		return err
	})
	return rows, err
}

// putArrivals writes the rows of an image that have changed, and deletes those of repositories that
// it has left.
func (r *records) putArrivals(id string, before, after map[string]arrival) error {
	for repo := range before {
		if _, stays := after[repo]; !stays {
			if err := r.meta.Delete([]byte(arrivalPrefix + id + " " + repo)); err != nil {
				return err
			}
		}
	}
	for repo, a := range after {
		if b, known := before[repo]; known && a.equal(b) {
			continue
		}
		text, err := json.Marshal(a)
		if err != nil {
			return err
		}
		if err := r.meta.Put([]byte(arrivalPrefix+id+" "+repo), text); err != nil {
			return err
		}
	}
	return nil
}

func (a arrival) equal(b arrival) bool {
	return a.NotBefore.Equal(b.NotBefore) && a.NotAfter.Equal(b.NotAfter) && slices.Equal(a.Tags, b.Tags)
}

// noteAllNames updates the rows of all images, and fills in when each came to its repositories. The
// tag time of an image that the Engine can't show isn't known, so it gets no rows.
func (r *records) noteAllNames(images []Image, now time.Time) error {
	last := now
	if text := r.meta.Get(arrivalsKey); text != nil {
		if err := last.UnmarshalText(text); err != nil {
			return err
		}
	}
	for i := range images {
		if images[i].Unreadable != "" {
			continue
		}
		var err error
		if images[i].came, err = r.noteNames(images[i], last, now); err != nil {
			return err
		}
	}
	text, err := now.MarshalText()
	if err != nil {
		return err
	}
	return r.meta.Put(arrivalsKey, text)
}

// namedImage is an image as it was after an event.
type namedImage struct {
	img Image
	at  time.Time // of the event
}

// addNames notes the names that an image has after an event.
func (b *batch) addNames(img Image, at time.Time) {
	before := b.named[img.ID]
	if n := len(before); n > 0 && slices.Equal(before[n-1].img.References(), img.References()) {
		return
	}
	b.named[img.ID] = append(before, namedImage{img, at})
}

// noteNames records which names the images have got, and when.
func (b *batch) noteNames(r *records) error {
	if b.all != nil {
		if err := r.noteAllNames(b.all, b.began); err != nil {
			return err
		}
	}
	for _, all := range b.named {
		for _, n := range all {
			if _, err := r.noteNames(n.img, n.at, n.at); err != nil {
				return err
			}
		}
	}
	return nil
}

// settleArrivals corrects the times that are ahead of the clock, as settle does with the uses.
func (r *records) settleArrivals(now time.Time) error {
	ahead := map[string]arrival{}
	err := eachWith(r.meta, arrivalPrefix, func(key string, value []byte) error {
		var a arrival
		err := json.Unmarshal(value, &a)
		if a.NotAfter.After(now) {
			a.NotBefore, a.NotAfter = notAfter(a.NotBefore, now), now
			ahead[key] = a
		}
		return err
	})
	for key, a := range ahead {
		text, marshalErr := json.Marshal(a)
		err = errors.Join(err, marshalErr, r.meta.Put([]byte(arrivalPrefix+key), text))
	}
	return err
}

// forgetArrivals deletes the rows of images that are not among these.
func (r *records) forgetArrivals(present map[string]bool) error {
	gone := map[string]bool{}
	err := eachWith(r.meta, arrivalPrefix, func(key string, _ []byte) error {
		if id, _, _ := strings.Cut(key, " "); !present[id] {
			gone[key] = true
		}
		return nil
	})
	for key := range maps.Keys(gone) {
		err = errors.Join(err, r.meta.Delete([]byte(arrivalPrefix+key)))
	}
	return err
}

// eachWith calls do for each key with that prefix, without the prefix. do must not change the bucket.
func eachWith(bucket *bbolt.Bucket, prefix string, do func(key string, value []byte) error) error {
	c := bucket.Cursor()
	for k, v := c.Seek([]byte(prefix)); k != nil; k, v = c.Next() {
		key, ok := strings.CutPrefix(string(k), prefix)
		if !ok {
			return nil
		}
		if err := do(key, v); err != nil {
			return err
		}
	}
	return nil
}
