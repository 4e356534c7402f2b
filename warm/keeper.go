package warm

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/compose"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/registry"
)

// Plan says what is kept in the cache, and when it is looked at.
type Plan struct {
	Schedule   string                    // as people write it; it is only told
	Next       func(time.Time) time.Time // the first time after another one; zero, or a nil Next: never
	References []name.Reference
	Files      []string // compose files, each by itself
	Platforms  []v1.Platform
}

// Run is what one run did.
type Run struct {
	Began    time.Time
	Took     time.Duration
	Images   int   // that are kept
	Fetched  int64 // bytes
	Failures []Failure
}

// Failure is an image that is not whole after a run, or a compose file that couldn't be read.
type Failure struct {
	What string // whole reference, or file
	Err  error
}

// State is what a Keeper does.
type State struct {
	Schedule string    // of the plan
	Next     time.Time // zero: never
	Running  bool
	Last     *Run // nil: none yet
	// Succeeded is when a run last ended without a failure; zero: never.
	Succeeded time.Time
}

// wake is how long a Keeper sleeps at most: the clock may be set, and the machine may sleep.
const wake = time.Minute

// Keeper keeps images in the cache. A run begins at each time of the plan, but for those that pass
// while a run is under way: there is one at a time. All methods are safe for concurrent use.
//
// What the last run did is in a file, so that it is known after a restart. Times at which the program isn't
// running are not made up for.
type Keeper struct {
	path string
	warm func(context.Context, []name.Reference, registry.WarmOptions) []registry.Warmed
	log  *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{}
	poke   chan struct{} // has room for one: the plan has changed

	mu    sync.Mutex // guards what follows
	plan  Plan
	state State
	stop  context.CancelFunc // ends the run that is under way; nil: there is none
}

// New returns a Keeper that does nothing until SetPlan. warm is [registry.Registry.Warm], path that of the
// file with the last run.
func New(warm func(context.Context, []name.Reference, registry.WarmOptions) []registry.Warmed, path string, log *slog.Logger) *Keeper {
	k := &Keeper{warm: warm, path: path, log: log, ended: make(chan struct{}), poke: make(chan struct{}, 1)}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	var err error
	if k.state.Last, k.state.Succeeded, err = readLast(path); err != nil {
		log.Warn("what the last run of the warm schedule did can't be read", "error", err)
	}
	go k.loop()
	return k
}

// SetPlan replaces the plan. A run that is under way goes on, unless the new plan has no times.
func (k *Keeper) SetPlan(p Plan) {
	k.mu.Lock()
	k.plan = p
	k.state.Schedule, k.state.Next = p.Schedule, p.next(time.Now())
	if k.state.Next.IsZero() && k.stop != nil {
		k.stop()
	}
	k.mu.Unlock()
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

func (p Plan) next(after time.Time) time.Time {
	if p.Next == nil || len(p.References)+len(p.Files) == 0 {
		return time.Time{}
	}
	return p.Next(after)
}

// State returns what the Keeper does now and did last.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Stop ends a run that is under way, keeping what has come, and begins no other.
func (k *Keeper) Stop() { k.cancel() }

// Close is Stop, and waits for the end or that of ctx. Errors: ctx's cause.
func (k *Keeper) Close(ctx context.Context) error {
	k.Stop()
	select {
	case <-k.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// loop waits for the times of the plan.
func (k *Keeper) loop() {
	defer close(k.ended)
	for k.ctx.Err() == nil {
		at := k.State().Next
		wait := wake
		if at.IsZero() {
			wait = time.Hour
		} else if until := time.Until(at); until <= 0 {
			k.run()
			continue
		} else {
			wait = min(wait, until)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-k.poke:
		case <-k.ctx.Done():
		}
		timer.Stop()
	}
}

// run warms what the plan names. A failure of one image keeps no other away.
func (k *Keeper) run() {
	ctx, stop := context.WithCancel(k.ctx)
	defer stop()
	k.mu.Lock()
	p := k.plan
	k.state.Running, k.stop = true, stop
	k.mu.Unlock()
	r := &Run{Began: time.Now()}
	refs := k.references(ctx, p, r)
	for _, res := range k.warm(ctx, refs, registry.WarmOptions{Platforms: p.Platforms, Refresh: true, Scheduled: true}) {
		r.Fetched += res.Fetched
		switch {
		case res.Err == nil:
			r.Images++
			continue
		case errors.Is(res.Err, registry.ErrUnserved) && !slices.Contains(p.References, res.Reference):
			continue // a compose file may name it all the same
		}
		r.Failures = append(r.Failures, Failure{res.Reference.String(), res.Err})
	}
	r.Took = time.Since(r.Began)
	k.tell(r)
	succeeded := k.State().Succeeded
	if len(r.Failures) == 0 && ctx.Err() == nil {
		succeeded = r.Began.Add(r.Took)
	}
	if err := writeLast(k.path, r, succeeded); err != nil {
		k.log.Warn("what this run of the warm schedule did can't be kept", "error", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state.Running, k.stop, k.state.Last, k.state.Succeeded = false, nil, r, succeeded
	k.state.Next = k.plan.next(time.Now())
}

// references returns what the plan names, each once. Files that can't be read are failures of r.
func (k *Keeper) references(ctx context.Context, p Plan, r *Run) (refs []name.Reference) {
	refs = append(refs, p.References...)
	for _, file := range p.Files {
		images, notes, err := Images(ctx, compose.Project{Files: []string{file}})
		if err != nil {
			r.Failures = append(r.Failures, Failure{file, err})
		}
		for _, note := range notes {
			k.log.Warn("a compose file of warm.files", "file", file, "note", note)
		}
		refs = append(refs, images...)
	}
	var once []name.Reference
	for _, ref := range refs {
		if !slices.Contains(once, ref) {
			once = append(once, ref)
		}
	}
	return once
}

// tell logs a run and its failures.
func (k *Keeper) tell(r *Run) {
	for _, f := range r.Failures {
		if !errors.Is(f.Err, context.Canceled) {
			k.log.Warn("an image of the warm schedule is not kept", "what", f.What, "error", f.Err)
		}
	}
	k.log.Info("the images of the warm schedule were looked at", "images", r.Images, "fetched", r.Fetched, "failures", len(r.Failures), "took", r.Took.Round(time.Millisecond).String())
}
