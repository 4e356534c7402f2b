package prune

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// Pruner removes images under disk pressure. Set the exported fields before the first
// Run; a Pruner is for one goroutine.
type Pruner struct {
	Engine Engine
	Policy Policy
	Holds  Holds
	Uses   Uses
	// Transfers returns how many downloads the cache that this host pulls through has in
	// flight; nil doesn't ask. An error defers the run, as a transfer does.
	Transfers func(context.Context) (int, error)
	// Logger gets one line for every deletion and every wait; nil is silent.
	Logger *slog.Logger

	now  func() time.Time           // nil: time.Now
	stat func(string) (Disk, error) // nil: statDisk
}

// Run does what the policy says, or with apply false only finds out what that would be.
// A dry run deletes nothing and makes nobody wait; it ends as a real run would, as far
// as that can be foreseen.
//
// The error is what the Engine or the disk could not answer; the report's decision is
// then [Failed], and nothing was deleted after that.
func (p *Pruner) Run(ctx context.Context, apply bool) (Report, error) {
	r := Report{DryRun: !apply, High: p.Policy.High, Low: p.Policy.Low}
	err := p.run(ctx, apply, &r)
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

// errActive means that a deploy may be under way.
var errActive = errors.New("the host is busy")

func (p *Pruner) run(ctx context.Context, apply bool, r *Report) error {
	if err := p.Policy.Validate(); err != nil {
		return err
	}
	policy, err := p.Policy.withKeepFiles()
	if err != nil {
		return err
	}
	if r.Before, err = p.disks(ctx); err != nil {
		return err
	}
	r.After = r.Before
	pressed := p.above(r.Before, p.Policy.High)
	r.Critical = p.above(r.Before, p.Policy.Critical)
	if pressed && apply && r.Critical {
		open, err := p.Holds.closeGate(ctx)
		if err != nil {
			return err
		}
		defer open()
	}
	// Below the watermark too: without a watcher, the records are what runs see.
	s, o, err := p.look(ctx, r, policy)
	if !pressed {
		r.Decision, r.Reason = NotNeeded, "no file system is above the high watermark"
		p.spareAll(r)
		if errors.Is(err, ErrBusy) {
			return nil // nothing was to be done, and nothing was
		}
		return err
	}
	if err != nil {
		return err
	}
	if !apply {
		p.foresee(r)
	}
	nothing := func() error { return nil }
	if err := p.undisturbed(ctx, apply && r.Critical, nothing); err != nil {
		return err
	}
	why, err := p.busy(ctx, s, o.activity, r.Critical)
	if err != nil {
		return err
	}
	if why != "" {
		return fmt.Errorf("%w: %s", errActive, why)
	}
	if !apply {
		return nil
	}
	return p.sweep(ctx, r, policy)
}

// look takes a snapshot, notes it in the records, and decides.
func (p *Pruner) look(ctx context.Context, r *Report, policy Policy) (s Snapshot, o observation, err error) {
	if s, err = Look(ctx, p.Engine); err != nil {
		return s, o, err
	}
	now := p.time()
	if o, err = p.Uses.observe(s, now); err != nil {
		return s, o, err
	}
	r.Watched = o.watched
	r.Verdicts = Decide(s, policy, o.uses, now)
	return s, o, nil
}

// sweep deletes in rounds: an image that others were built on can go when they have.
func (p *Pruner) sweep(ctx context.Context, r *Report, policy Policy) error {
	var done []Verdict
	for {
		err := p.round(ctx, r)
		gone := slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return v.Action == Delete })
		done = append(done, handled(r.Verdicts)...)
		if err != nil || r.Decision == Pruned || !gone {
			r.Verdicts = append(done, rest(r.Verdicts)...)
			return err
		}
		if _, _, err := p.look(ctx, r, policy); err != nil {
			r.Verdicts = done
			return err
		}
		// What was skipped in an earlier round is not tried again.
		r.Verdicts = slices.DeleteFunc(r.Verdicts, func(v Verdict) bool {
			return slices.ContainsFunc(done, func(d Verdict) bool { return d.Image.ID == v.Image.ID })
		})
	}
}

// round goes once through the verdicts, deletes until the low watermark is reached, and
// writes into them what became of each.
func (p *Pruner) round(ctx context.Context, r *Report) error {
	defer p.spareAll(r)
	r.Decision, r.Reason = Incomplete, "everything that may go has gone, and a file system is still above the low watermark"
	for i := range r.Verdicts {
		v := &r.Verdicts[i]
		if v.Action != Delete {
			break // the rest stays
		}
		if err := p.remove(ctx, v, r.Critical); err != nil {
			return err
		}
		var err error
		if r.After, err = p.disks(ctx); err != nil {
			return err
		}
		if !p.above(r.After, p.Policy.Low) {
			r.Decision, r.Reason = Pruned, ""
			return nil
		}
	}
	return nil
}

// remove takes one image away, one reference at a time and never by force. Before each it
// makes sure that no hold has come, and that nobody has begun to use or name the image.
// What became of it is in the verdict; an error ends the run.
func (p *Pruner) remove(ctx context.Context, v *Verdict, critical bool) error {
	refs := v.Image.References()
	if len(refs) == 0 {
		refs = []string{v.Image.ID}
	}
	for _, ref := range refs {
		err := p.undisturbed(ctx, critical, func() error { return p.removeRef(ctx, v, ref) })
		if errors.Is(err, ErrHeld) {
			v.skip(RuleHeld, err.Error())
		}
		if err != nil || v.Action == Skip {
			return err
		}
	}
	_, err := p.Engine.ImageInspect(ctx, v.Image.ID)
	switch {
	case cerrdefs.IsNotFound(err):
		v.removed = true
		p.log().Info("image deleted", "image", label(v.Image), "id", v.Image.ID, "why", v.Why)
		return nil
	case err != nil:
		return fmt.Errorf("inspect image %s: %w", v.Image.ID, err)
	}
	v.skip(RuleFailed, "the engine took its names and kept it")
	return nil
}

// removeRef deletes one reference, if the image still has it, has no new one and no user.
func (p *Pruner) removeRef(ctx context.Context, v *Verdict, ref string) error {
	now, err := p.Engine.ImageInspect(ctx, v.Image.ID)
	if cerrdefs.IsNotFound(err) {
		return nil // the last tag took the digests along
	}
	if err != nil {
		return fmt.Errorf("inspect image %s: %w", v.Image.ID, err)
	}
	names := append(named(now.RepoTags), named(now.RepoDigests)...)
	for _, name := range names {
		if !slices.Contains(v.Image.References(), name) {
			v.skip(RuleChanged, "since the plan was made it was named "+name)
			return nil
		}
	}
	if ref != v.Image.ID && !slices.Contains(names, ref) {
		return nil
	}
	around := Snapshot{Images: []Image{v.Image}}
	if err := around.lookAtUsers(ctx, p.Engine); err != nil {
		return err
	}
	if len(around.Busy) > 0 {
		return fmt.Errorf("%w: %s", errActive, strings.Join(around.Busy, ", "))
	}
	for _, u := range users(around) {
		v.skip(RuleChanged, "since the plan was made "+u.why())
		return nil
	}
	_, err = p.Engine.ImageRemove(ctx, ref, client.ImageRemoveOptions{})
	switch {
	case err == nil || cerrdefs.IsNotFound(err):
	case ctx.Err() != nil:
		return ctx.Err()
	case cerrdefs.IsConflict(err):
		v.skip(RuleConflict, err.Error())
	default:
		v.skip(RuleFailed, err.Error())
	}
	return nil
}

// undisturbed runs do while no hold is in force, after letting in those that wait. When
// one is in force it returns ErrHeld, with wait only after waiting MaxWait for it to end.
func (p *Pruner) undisturbed(ctx context.Context, wait bool, do func() error) error {
	pause, deadline := breather, time.Now().Add(p.Policy.MaxWait)
	for said := false; ; pause = lockPoll {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		err := p.Holds.alone(do)
		switch {
		case !errors.Is(err, ErrHeld) || !wait:
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("%w, after waiting %v for it to end", ErrHeld, p.Policy.MaxWait)
		case !said:
			said = true
			p.log().Warn("the disk is nearly full: waiting for the holds in force to end, and new ones wait", "at_most", p.Policy.MaxWait)
		}
	}
}

// disks measures every file system that holds images.
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
	return disks, nil
}

func (p *Pruner) above(disks []Disk, mark float64) bool {
	return slices.ContainsFunc(disks, func(d Disk) bool { return d.Full() > mark })
}

// foresee marks in a dry run what would be left alone once the low watermark is reached.
func (p *Pruner) foresee(r *Report) {
	var need int64
	for _, d := range r.Before {
		need = max(need, d.Above(p.Policy.Low))
	}
	if need == 0 { // it is the inodes: how many an image has, nobody knows
		need = 1 << 62
	}
	for i := range r.Verdicts {
		if v := &r.Verdicts[i]; v.Action == Delete && need > 0 {
			need -= v.Image.Unique
		} else if v.Action == Delete {
			v.Action = Spare
		}
	}
	r.Decision = Pruned
	if need > 0 {
		r.Decision, r.Reason = Incomplete, "what may go does not add up to the low watermark"
	}
}

// spareAll marks what may go and did not as not needed.
func (p *Pruner) spareAll(r *Report) {
	for i := range r.Verdicts {
		if v := &r.Verdicts[i]; v.Action == Delete && !v.removed {
			v.Action = Spare
		}
	}
}

// handled are the verdicts that led to something; rest are the others.
func handled(all []Verdict) []Verdict {
	return slices.DeleteFunc(slices.Clone(all), func(v Verdict) bool { return v.Action == Keep || v.Action == Spare })
}

func rest(all []Verdict) []Verdict {
	return slices.DeleteFunc(slices.Clone(all), func(v Verdict) bool { return v.Action != Keep && v.Action != Spare })
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
