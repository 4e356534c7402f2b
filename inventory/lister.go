package inventory

import (
	"context"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// Lister makes lists for all who ask, one at a time: to make one of 100,000 images takes a third of a
// second of CPU time and forty megabytes, which several at once would multiply. Its methods are safe for
// concurrent use.
type Lister struct {
	store   *storage.Store
	working chan struct{} // of one: held by whoever looks at all images
	free    *time.Timer   // gives memory back; nil until it is needed; guarded by working

	mu   sync.Mutex // guards next; held briefly
	next *listing   // the list that those who wait now will get; nil: nobody waits
}

// listing is a list that is made for all who asked before it was begun.
type listing struct {
	done chan struct{} // closed when list and err are set
	list *List
	err  error
	left int // how many still wait; guarded by Lister.mu
	stop context.CancelFunc
}

// NewLister returns a Lister of a store.
func NewLister(s *storage.Store) *Lister {
	return &Lister{store: s, working: make(chan struct{}, 1)}
}

// List is Make. Those who ask while another list is made get the next one together, so the list must
// not be changed. It has all that was there when List was called. When all who wait for it have left,
// it isn't made. Errors: those of Make.
func (l *Lister) List(ctx context.Context) (*List, error) {
	l.mu.Lock()
	n := l.next
	if n == nil {
		making, stop := context.WithCancel(context.WithoutCancel(ctx))
		n = &listing{done: make(chan struct{}), stop: stop}
		l.next = n
		go l.make(making, n)
	}
	n.left++
	l.mu.Unlock()
	select {
	case <-n.done:
		return n.list, n.err
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.left--; n.left == 0 {
		n.stop()
		if l.next == n { // or who comes now would wait for what was stopped
			l.next = nil
		}
	}
	return nil, context.Cause(ctx)
}

// make makes a list when its turn has come.
func (l *Lister) make(ctx context.Context, n *listing) {
	defer n.stop()
	defer close(n.done)
	select {
	case l.working <- struct{}{}:
	case <-ctx.Done():
		n.err = ctx.Err()
		return
	}
	defer func() { <-l.working }()
	l.mu.Lock()
	if l.next == n {
		l.next = nil // what changes from now on may not be in it
	}
	l.mu.Unlock()
	n.list, n.err = Make(ctx, l.store)
	l.worked()
}

const (
	// manyBlobs is from how many blobs on a look at all images leaves much garbage.
	manyBlobs = 30_000
	// quiet is how long nobody may have looked before the garbage is given back.
	quiet = 2 * time.Second
)

// worked has the memory given back that a look at all images took, when nobody has looked again for a while.
// Go by itself keeps it for minutes. The caller holds working.
func (l *Lister) worked() {
	if st := l.store.Stats(); st.Blobs+st.Manifests < manyBlobs {
		return
	}
	if l.free == nil {
		l.free = time.AfterFunc(quiet, debug.FreeOSMemory)
	} else {
		l.free.Reset(quiet)
	}
}

// Inspect is Inspect, in turn with the lists. Errors: those of Inspect.
func (l *Lister) Inspect(ctx context.Context, ref name.Reference) (*Detail, error) {
	if _, err := find(l.store, ref); err != nil { // at once
		return nil, err
	}
	select {
	case l.working <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-l.working }()
	defer l.worked()
	return Inspect(ctx, l.store, ref)
}
