package inventory

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/hubcache/hubcache/name"
)

// TestListsAreSharedByThoseWhoWait: while one list is made, all others who ask get one more,
// together, and it has what was there when they asked.
func TestListsAreSharedByThoseWhoWait(t *testing.T) {
	l := newLab(t)
	l.manifest(redis, "6", l.blob(redis, 1, 10))
	lister := NewLister(l.store)
	synctest.Test(t, func(t *testing.T) {
		lister.working = make(chan struct{}, 1)
		lister.working <- struct{}{} // as if a list was being made
		lists := make([]*List, 20)
		var asked sync.WaitGroup
		for n := range lists {
			asked.Go(func() {
				var err error
				if lists[n], err = lister.List(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		l.manifest(redis, "7", l.blob(redis, 1, 10))
		<-lister.working
		asked.Wait()
		for _, list := range lists {
			if list != lists[0] || list.Len() != 2 {
				t.Errorf("%d images, or another list", list.Len())
			}
		}
		if next, err := lister.List(t.Context()); err != nil || next == lists[0] {
			t.Errorf("a later one has the same list, %v", err)
		}
	})
}

// TestNobodyWaitsForAListThatNobodyWants: who leaves gets the error at once, and who comes after that
// gets a list.
func TestNobodyWaitsForAListThatNobodyWants(t *testing.T) {
	l := newLab(t)
	lister := NewLister(l.store)
	lister.working <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lister.List(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	l.manifest(redis, "7", l.blob(redis, 1, 10))
	ref, _ := name.ParseReference("redis:7")
	if _, err := lister.Inspect(ctx, ref); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-lister.working
	if list, err := lister.List(t.Context()); err != nil || list.Len() != 1 {
		t.Errorf("%v, %v", list, err)
	}
}
