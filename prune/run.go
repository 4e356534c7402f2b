package prune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/moby/moby/client"
)

// Pruner deletes images when a disk is too full. Set the exported fields before the first
// Run. A Pruner is for one goroutine.
type Pruner struct {
	Engine Engine
	Policy Policy
	Holds  Holds
	Uses   Uses
	// Transfers returns how many downloads are in flight in the cache that this host pulls
	// through. nil: the cache isn't asked. An error defers the run, as a download does.
	Transfers func(context.Context) (int, error)
	// Logger gets one line for each deletion and each wait; nil: no log.
	Logger *slog.Logger

	limits limits // zero: defaultLimits

	// What follows is of one run.
	runFile  os.FileInfo   // the file that holds lock
	patience time.Duration // how much longer it waits for holds
	watched  bool          // a watcher records what happens meanwhile
	recent   recentEvents  // since the plan was made

	now  func() time.Time           // nil: time.Now
	stat func(string) (Disk, error) // nil: statDisk
}

// Run does what the policy says. If apply is false, it is a dry run: it only finds out what a
// real run would do, deletes nothing, makes no hold wait, and ends with the same decision as
// a real run, as far as that can be predicted.
//
// If ctx ends, the decision is [Deferred]. An error means that the Engine, the disk, a keep file or the records could not be read. The
// report's decision is then [Failed], and nothing was deleted after that.
func (p *Pruner) Run(ctx context.Context, apply bool) (Report, error) {
	r := Report{DryRun: !apply, High: p.Policy.High, Low: p.Policy.Low}
	run := *p
	run.recent = recentEvents{}
	run.Engine = boundedEngine{p.Engine, cmp.Or(p.limits, defaultLimits)}
	err := run.run(ctx, apply, &r)
	if err != nil && apply {
		r.markDeletable()
	}
	if ctx.Err() != nil && err != nil { // not the Engine's fault, whatever it was asked at the moment
		r.Decision, r.Reason = Deferred, "interrupted"
		return r, nil
	}
	for _, later := range []error{ErrHeld, ErrBusy, errActive} {
		if errors.Is(err, later) {
			r.Decision, r.Reason = Deferred, err.Error()
			return r, nil
		}
	}
	if err != nil {
		r.Decision, r.Reason = Failed, err.Error()
	}
	return r, err
}

// errActive means that a deploy may be going on.
var errActive = errors.New("the host is busy")

func (p *Pruner) run(ctx context.Context, apply bool, r *Report) error {
	if err := p.Policy.Validate(); err != nil {
		return err
	}
	policy, err := p.Policy.withKeepFiles(ctx)
	if err != nil {
		return err
	}
	if r.Before, err = p.disks(ctx); err != nil {
		return err
	}
	r.After = r.Before
	p.patience = p.Policy.MaxWait
	needed := anyAbove(r.Before, p.Policy.High)
	r.Critical = anyAbove(r.Before, p.Policy.Critical)
	if needed {
		if p.runFile, err = p.Holds.runFile(); err != nil {
			return err
		}
	}
	if needed && apply && r.Critical {
		began := time.Now()
		unblock, err := p.Holds.blockNewHolds(ctx, p.patience)
		if err != nil {
			return err
		}
		p.patience -= time.Since(began)
		defer unblock()
	}
	// Below the high watermark too: without a watcher, the records have only what runs see.
	s, o, err := p.plan(ctx, r, policy, needed)
	if !needed {
		r.Decision, r.Reason = NotNeeded, "no file system is above the high watermark"
		r.markDeletable()
		if errors.Is(err, ErrBusy) {
			return nil // nothing was to be deleted, so the records aren't needed
		}
		return err
	}
	if err != nil {
		return err
	}
	r.predict(s)
	nothing := func() error { return nil }
	if err := p.exclusively(ctx, apply && r.Critical, nothing); err != nil {
		return err
	}
	why, err := p.busy(ctx, s, o.activity, r.Critical)
	if err != nil {
		return err
	}
	if why != "" {
		return fmt.Errorf("%w: %s", errActive, why)
	}
	if apply {
		if err := p.deleteChosen(ctx, r, s); err != nil {
			return err
		}
	}
	if r.Decision == Incomplete {
		r.Help = p.help(ctx, s, policy, o.uses, p.time())
	}
	return nil
}

// plan takes a snapshot, updates the records with it, and decides about each image. The layers
// are measured if something may have to be deleted.
func (p *Pruner) plan(ctx context.Context, r *Report, policy Policy, measure bool) (s Snapshot, o observation, err error) {
	began := p.time()
	if s, err = TakeSnapshot(ctx, p.Engine); err != nil {
		return s, o, err
	}
	now := p.time()
	if o, err = p.Uses.observe(&s, now); err != nil {
		return s, o, err
	}
	r.Watched, p.watched = o.watched, o.watched
	if measure {
		if err := s.measure(ctx, p.Engine); err != nil {
			return s, o, err
		}
	}
	r.Images = Decide(s, policy, o.uses, now)
	for i := range r.Images {
		d := &r.Images[i]
		d.planned, d.record = began, o.uses[d.Image.ID]
		if d.FirstSeen = d.record.FirstSeen; d.record.LastUsed.After(d.FirstSeen) {
			d.Used = d.record.LastUsed
		}
	}
	r.warn(policy.unmatched(s.Images)...)
	for _, img := range s.Images {
		if img.Unreadable != "" {
			r.warn("the engine can't show the image " + label(img) + ", which may be damaged; it stays, and so does what it was built on: " + img.Unreadable)
		}
	}
	if o.damage != nil {
		r.warn(fmt.Sprintf("the last-use records were damaged (%v): every image counts as used now, and the damaged file is %s.bad", o.damage, p.Uses.Path))
	}
	return s, o, nil
}

// exclusively calls do while no hold is in force. Before that it pauses, so that holds that
// wait can come into force. If one is in force, it returns ErrHeld; if wait is set, only after
// the run has waited MaxWait for holds to end.
func (p *Pruner) exclusively(ctx context.Context, wait bool, do func() error) error {
	pause := betweenDeletions
	for logged := false; ; pause = lockPoll {
		began := time.Now()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		err := p.Holds.tryExclusive(p.runFile, do)
		if !errors.Is(err, ErrHeld) {
			return err
		}
		if !wait {
			return p.Holds.heldBy("run", err)
		}
		if p.patience -= time.Since(began); p.patience < 0 {
			return p.Holds.heldBy("run", fmt.Errorf("%w, after waiting %v for it to end", ErrHeld, p.Policy.MaxWait))
		}
		if !logged {
			logged = true
			p.log().Warn("the disk is nearly full: waiting for the holds in force to end; new holds have to wait", "at_most", p.Policy.MaxWait)
		}
	}
}

// disks measures each file system that has images on it.
func (p *Pruner) disks(ctx context.Context) ([]Disk, error) {
	info, err := p.Engine.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask the engine about itself: %w", err)
	}
	paths, err := diskPaths(info.Info)
	if err != nil {
		return nil, err
	}
	stat := p.stat
	if stat == nil {
		stat = statDisk
	}
	var disks []Disk
	for _, path := range paths {
		d, err := stat(path)
		if err != nil {
			return nil, err
		}
		disks = append(disks, d)
	}
	disks[len(disks)-1].images = true
	return disks, nil
}

// anyAbove reports whether one of the disks is above the watermark.
func anyAbove(disks []Disk, mark float64) bool {
	return slices.ContainsFunc(disks, func(d Disk) bool { return d.Full() > mark })
}

func (p *Pruner) time() time.Time {
	if p.now != nil {
		return p.now()
	}
	return time.Now()
}

func (p *Pruner) log() *slog.Logger {
	if p.Logger != nil {
		return p.Logger
	}
	return slog.New(slog.DiscardHandler)
}
