package storage

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
)

// Pin keeps an image from being evicted.
type Pin struct {
	Repository string        // with its registry
	Tag        string        // "" for an image by its digest
	Digest     digest.Digest // the image; of a tag, what it named last of what was cached
	Since      time.Time
}

// Reference is the whole name of what is pinned: docker.io/library/redis:7, or with @ and the digest.
func (p Pin) Reference() string {
	if p.Tag == "" {
		return p.Repository + "@" + p.Digest.String()
	}
	return p.Repository + ":" + p.Tag
}

// PinState is a pin and what it does now. Sizes are in bytes.
type PinState struct {
	Pin
	Cached  int64 // what is here of the image
	Missing int64 // what isn't, of the platforms that are cached

	// Protected says that nothing of the image is evicted. Otherwise nothing of it is cached, or
	// the older pins leave no room for it: its manifests and what it shares with them are protected,
	// and the rest is evicted like all else.
	Protected bool
}

const (
	// pinShare is which share of the budget pins may take, in per cent. The rest is for what comes
	// in: without it, every pull of something else would pass through without being kept.
	pinShare = 90
	// maxPins is how many pins there may be. To find out what they cover takes a second for so many.
	maxPins = 10_000
	// pinPause is for how many times as long as it took to apply the pins they aren't applied again.
	pinPause = 10
)

// pinnable returns how many bytes pins may take of a budget.
func pinnable(budget int64) int64 { return budget / 100 * pinShare }

// PinTooLarge says that an image isn't pinned, because the pins would take too much of the budget.
type PinTooLarge struct {
	Reference string
	Needs     int64 // bytes that the image takes besides what is pinned already
	Pinned    int64 // bytes that are pinned already, or kept for pinned images
	Limit     int64 // bytes that may be pinned
}

// Error has the figures.
func (e *PinTooLarge) Error() string {
	size := func(n int64) string { return units.BytesSize(float64(n)) }
	return fmt.Sprintf("%s needs %s more, and %s of the %s that pins may take (%d %% of the budget) are taken: unpin something, or raise the budget",
		e.Reference, size(e.Needs), size(e.Pinned), size(e.Limit), pinShare)
}

// ErrTooManyPins: there are as many pins as there may be.
var ErrTooManyPins = fmt.Errorf("there are %d pins already, and no more are taken", maxPins)

// pins are what the operator has pinned. They are made sure of in the background whenever
// something has changed that they may cover.
//
// A pin is protected as a whole or not at all, the oldest first, as long as they fit into their
// share of the budget. So what is protected follows from the pins and from what is cached alone,
// and is the same after a restart. Of a pin that doesn't fit, the manifests are.
type pins struct {
	store  *Store
	path   string
	faults *faults
	log    *slog.Logger
	kicked chan struct{} // of one: something may have changed

	// changing queues those who change the pins or apply them. It is taken before all other locks,
	// and held during I/O.
	changing sync.Mutex

	// mu guards what follows. It is never held during I/O, and no other lock is taken while it is
	// held.
	mu     sync.Mutex
	list   []Pin // the oldest first; replaced, never changed in place
	states []PinState
	short  *Shortage // if not all are protected; else nil
}

// load reads the file of the pins. A damaged one is set aside. Errors: NewerFormatError; that it
// can't be read.
func (p *pins) load() error {
	list, err := readPins(p.path)
	if errors.Is(err, errPins) {
		bad := p.path + ".bad"
		if rerr := os.Rename(p.path, bad); rerr != nil {
			return errors.Join(err, rerr)
		}
		p.log.Error("the file of the pins is damaged: it is set aside, and nothing is pinned", "path", bad, "error", err)
		return nil
	}
	p.list = list
	return err
}

// kick has the pins applied soon. It may be called with any lock held.
func (p *pins) kick() {
	select {
	case p.kicked <- struct{}{}:
	default: // they will be
	}
}

// run applies the pins whenever something may have changed, until stop is closed.
func (p *pins) run(stop <-chan struct{}) {
	for {
		select {
		case <-p.kicked:
		case <-stop:
			return
		}
		began := time.Now()
		p.apply()
		select {
		case <-time.After(pinPause * time.Since(began)):
		case <-stop:
			return
		}
	}
}

// apply finds out what the pins cover now, and protects it.
func (p *pins) apply() {
	p.changing.Lock()
	defer p.changing.Unlock()
	p.mu.Lock()
	list, before := p.list, p.states
	p.mu.Unlock()
	if len(list) == 0 && len(before) == 0 {
		return
	}
	if err := p.use(list); err != nil {
		p.faults.disk(err)
		// The budget is kept whatever happens.
		if p.store.room.pinned() > pinnable(p.store.room.budget()) {
			p.store.room.protect(nil)
		}
	}
}

// use makes list the pins, and protects what they cover. changing is held.
// Errors: that the index or a manifest can't be read; then nothing has changed.
func (p *pins) use(list []Pin) error {
	found, err := p.decide(list)
	if err == nil {
		p.settle(list, found)
	}
	return err
}

// settle is use with what was found of the list. A tag that has moved since is written to the
// file; if that fails, it is tried again the next time.
func (p *pins) settle(list []Pin, found *pinned) {
	p.store.room.protect(found.protect)
	now := make([]Pin, len(list))
	for i, st := range found.states {
		now[i] = st.Pin
	}
	if !slices.Equal(now, list) {
		if err := writePins(p.path, now); err != nil {
			p.faults.disk(err)
			now = list
		}
	}
	short := found.shortage(p.store.room.budget())
	p.mu.Lock()
	p.list, p.states, p.short = now, found.states, short
	p.mu.Unlock()
	if short != nil {
		p.store.room.shortages.say([]Shortage{*short}, p.log)
	}
}

// Pin pins the image that a tag names, or, with tag "", the one with digest d. A pin that is there
// already stays as old as it is. The pin is durable when Pin returns.
//
// Errors: fs.ErrNotExist when the image isn't cached; *PinTooLarge; ErrTooManyPins; ErrDisk when it
// can't be written; that the index can't be read. Then nothing has changed.
func (s *Store) Pin(repository, tag string, d digest.Digest) (PinState, error) {
	p := &s.pins
	p.changing.Lock()
	defer p.changing.Unlock()
	if err := s.isImage(repository, tag, &d); err != nil {
		return PinState{}, err
	}
	list := slices.Clone(p.pinned())
	at := indexOfPin(list, repository, tag, d)
	if at < 0 {
		at = len(list)
		list = append(list, Pin{Repository: repository, Tag: tag, Digest: d, Since: time.Now().UTC().Truncate(time.Second)})
	}
	found, err := p.decide(list)
	if err != nil {
		return PinState{}, err
	}
	if at == len(p.pinned()) {
		if at >= maxPins {
			return PinState{}, ErrTooManyPins
		}
		if last := found.states[at]; !last.Protected {
			return PinState{}, &PinTooLarge{last.Reference(), found.more, found.before, pinnable(s.room.budget())}
		}
		if err := writePins(p.path, list); err != nil {
			return PinState{}, s.files.faults.diskError(err)
		}
	}
	p.settle(list, found)
	return found.states[at], nil
}

// isImage finds the digest of a tag in d, and checks that the repository has it as an image.
// Errors: fs.ErrNotExist; that the index can't be read.
func (s *Store) isImage(repository, tag string, d *digest.Digest) error {
	if tag != "" {
		t, err := s.repos.tag(repository, tag)
		if err != nil {
			return err
		}
		*d = t.Digest
	} else if _, err := s.catalogue.linkOf(repository, *d); err != nil {
		return err
	}
	if !s.room.state(*d).manifest {
		return missing{"not cached"}
	}
	return nil
}

// Unpin takes back Pin, durably, and returns the pin. Errors: fs.ErrNotExist when there is no such
// pin; ErrDisk when that can't be written, and then it stays.
func (s *Store) Unpin(repository, tag string, d digest.Digest) (Pin, error) {
	p := &s.pins
	p.changing.Lock()
	defer p.changing.Unlock()
	list := slices.Clone(p.pinned())
	at := indexOfPin(list, repository, tag, d)
	if at < 0 {
		return Pin{}, missing{"not pinned"}
	}
	pin := list[at]
	list = slices.Delete(list, at, at+1)
	if err := writePins(p.path, list); err != nil {
		return Pin{}, s.files.faults.diskError(err)
	}
	p.mu.Lock()
	p.list = list // whatever becomes of use
	p.mu.Unlock()
	if err := p.use(list); err != nil {
		p.kick()
	}
	return pin, nil
}

// Pins returns all pins and what they do now, the oldest first. Errors: that the index or a
// manifest can't be read.
func (s *Store) Pins() ([]PinState, error) {
	p := &s.pins
	p.changing.Lock()
	defer p.changing.Unlock()
	if err := p.use(p.pinned()); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.states), nil
}

// PinLimit returns how many bytes of the budget pins may take.
func (s *Store) PinLimit() int64 { return pinnable(s.room.budget()) }

// pinned returns the pins. Don't change the list.
func (p *pins) pinned() []Pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.list
}

// has reports whether a tag is pinned.
func (p *pins) has(repository, tag string) bool {
	return slices.ContainsFunc(p.pinned(), func(pin Pin) bool { return pin.Repository == repository && pin.Tag == tag })
}

func indexOfPin(list []Pin, repository, tag string, d digest.Digest) int {
	return slices.IndexFunc(list, func(p Pin) bool {
		return p.Repository == repository && p.Tag == tag && (tag != "" || p.Digest == d)
	})
}
