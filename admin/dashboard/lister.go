package dashboard

import (
	"cmp"
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hubcache/hubcache/inventory"
	"github.com/hubcache/hubcache/name"
)

const (
	// listEvery and listShare bound how often the list of images is made while somebody looks at
	// it: it takes a third of a second for 100,000 images.
	listEvery = 5 * time.Second
	listShare = 20 // the list is made for a twentieth of the time at most
	// listWait is how long a page waits for the first list. It comes without one then.
	listWait = 100 * time.Millisecond
	// freshWait is how long a page waits for a new list, if it has just changed something.
	freshWait = 3 * time.Second
	// listKept is how long a list is kept that nobody looks at: of 100,000 images it takes 18 MB.
	listKept = time.Minute
)

// lister keeps a list of the images for the page. It is made in the background, so that no page
// waits for it.
type lister struct {
	list   func(context.Context) (*inventory.List, error)
	stored func() int64 // bytes in the store
	log    *slog.Logger

	mu     sync.Mutex // guards what follows; not held while a list is made
	now    *listing
	err    error         // of the last attempt
	tried  time.Time     // when the last attempt began
	took   time.Duration // so long
	making chan struct{} // closed when the list that is being made is there; nil: none is
	forget *time.Timer   // drops the list that nobody looks at
}

// get returns the list, or nil while there is none yet. fresh asks for one that is made now, but
// doesn't wait for it long.
func (l *lister) get(fresh bool) (*listing, error) {
	now, wait := time.Now(), listWait
	l.mu.Lock()
	age := now.Sub(l.tried)
	if l.making == nil && (l.now == nil || fresh || age > max(listEvery, listShare*l.took) || age < 0) {
		l.making, l.tried = make(chan struct{}), now
		go l.make(l.making, now)
	}
	if fresh {
		wait = freshWait
	}
	if l.forget != nil {
		l.forget.Stop()
	}
	l.forget = time.AfterFunc(listKept, l.drop)
	making, have := l.making, l.now
	l.mu.Unlock()
	if making != nil && (have == nil || fresh) {
		select {
		case <-making:
		case <-time.After(wait):
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now, l.err
}

func (l *lister) make(done chan struct{}, began time.Time) {
	all, err := l.list(context.Background())
	var made *listing
	if err == nil {
		made = newListing(all, l.stored(), began)
	} else {
		l.log.Error("the images can't be listed", "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now, l.err, l.took, l.making = cmp.Or(made, l.now), err, time.Since(began), nil
	close(done)
}

func (l *lister) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = nil
}

// listing is what the store had at a time, in all orders. It is immutable.
type listing struct {
	made    time.Time
	images  *inventory.List
	orders  map[string]func() []int32 // the images, by the name of the order; sorted when it is first asked for
	largest int64                     // size of the largest image, for the bars
	tiles   []tile
}

// order is a way to sort the images.
type order struct{ Key, Title string }

// orders are the columns of the table that it can be sorted by; the first is the default.
var orders = []order{{"last-use", "Last use"}, {"name", "Image"}, {"size", "Size"}, {"pulls", "Pulls"}}

func newListing(all *inventory.List, stored int64, made time.Time) *listing {
	l := &listing{made: made, images: all, orders: map[string]func() []int32{}}
	for n := range all.Len() {
		l.largest = max(l.largest, all.At(n).Size)
	}
	for _, o := range orders {
		l.orders[o.Key] = sync.OnceValue(func() []int32 {
			places, _ := all.Sorted(o.Key)
			return places
		})
	}
	l.tiles = tilesOf(all, stored)
	return l
}

// find returns one page of the images that match, and how many match in all.
func (l *listing) find(text, sort string, page int) (found []inventory.Image, total int) {
	for _, at := range l.orders[sort]() {
		if i := l.images.At(int(at)); matches(i, text) {
			if total >= (page-1)*pageSize && len(found) < pageSize {
				found = append(found, i)
			}
			total++
		}
	}
	return found, total
}

// matches reports whether an image is what somebody looks for: text is a part of its name, or a
// pattern as hubcache ls takes it.
func matches(i inventory.Image, text string) bool {
	if text == "" {
		return true
	}
	if strings.ContainsAny(text, "*?[") {
		return i.Match(text)
	}
	ref := i.Reference()
	return strings.Contains(ref, text) || strings.Contains(name.Familiar(ref), text)
}
