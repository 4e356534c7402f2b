package prune

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

const (
	// lateWait is how long a run waits, after a deletion that should have been enough, for the
	// disk to show it. File systems that free in the background need seconds.
	lateWait = 30 * time.Second
	// latePoll is how often it measures meanwhile.
	latePoll = 250 * time.Millisecond
)

// deletion is one run's work on its plan.
type deletion struct {
	*Pruner
	r       *Report
	left    holders       // of the layers that are there
	owed    late          // what the disks don't show yet
	waiting time.Duration // how long a wait for that may take
}

// deleteChosen deletes the images of the plan, in its order, until the low watermark is
// reached. If the disk then has less room than the plan said, it goes on with the next images
// that may be deleted. It notes in each decision what was done.
func (p *Pruner) deleteChosen(ctx context.Context, r *Report, s Snapshot) error {
	d := deletion{p, r, holdersOf(s.Images), late{before: r.Before}, lateWait}
	defer r.markDeletable()
	r.Decision, r.Reason = Incomplete, tooFew(r.After, p.Policy.Low)
	for {
		unit := nextUnit(r.Images)
		if unit == nil {
			missing, err := d.measure(ctx)
			if err != nil {
				return err
			}
			if missing > 0 && choose(r.Images, d.left, missing) > 0 && nextUnit(r.Images) != nil {
				continue
			}
			if missing == 0 {
				r.Decision, r.Reason = Pruned, ""
			} else {
				r.Reason = tooFew(r.After, p.Policy.Low)
			}
			return nil
		}
		if err := d.deleteUnit(ctx, unit); err != nil {
			return err
		}
		if missing, err := d.measure(ctx); err != nil {
			return err
		} else if missing == 0 {
			r.Decision, r.Reason = Pruned, ""
			return nil
		}
	}
}

// deleteUnit deletes an image, and then the intermediate images that only it needed.
func (d *deletion) deleteUnit(ctx context.Context, unit []*ImageDecision) error {
	for i, v := range unit {
		if i > 0 && !unit[i-1].deleted {
			v.skip(RuleChildren, label(unit[i-1].Image)+" was built on it, and stays")
			continue
		}
		if err := d.deleteImage(ctx, v, d.r.Critical); err != nil {
			return err
		}
		if v.deleted {
			v.Frees = d.left.remove(v.Image)
			d.owed.freed += v.Frees
		}
	}
	return nil
}

// measure measures the disks and returns how many bytes of images have still to be deleted. If
// it should be none, but the disks don't show that yet, it waits until they do. After a wait in
// vain only what they show counts, and it doesn't wait again.
func (d *deletion) measure(ctx context.Context) (missing int64, err error) {
	for deadline := time.Now().Add(d.waiting); ; {
		if d.r.After, err = d.disks(ctx); err != nil {
			return 0, err
		}
		missing = need(d.r.After, d.Policy.Low)
		expected := need(d.owed.expected(d.r.After), d.Policy.Low)
		switch {
		case missing == 0 || expected > 0 && nextUnit(d.r.Images) != nil:
			return missing, nil
		case expected > 0:
			return expected, nil // there may be more images to choose; waiting wouldn't be enough
		case !time.Now().Before(deadline):
			d.owed, d.waiting = late{before: d.r.After}, 0
			return missing, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(latePoll):
		}
	}
}

// nextUnit returns the next chosen image that isn't deleted yet, with its intermediate images;
// nil if there is none.
func nextUnit(images []ImageDecision) []*ImageDecision {
	for _, unit := range unitsOf(images) {
		if unit[0].Action == Delete {
			return unit
		}
	}
	return nil
}

// tooFew explains why a run didn't reach, or wouldn't reach, the low watermark.
func tooFew(disks []Disk, low float64) string {
	for _, d := range disks {
		if d.Full() > low && !d.images {
			return d.Path + " is above the low watermark, and the images are on another file system"
		}
	}
	return allDeleted
}

// deleteImage deletes an image, one reference at a time and never by force. Before each
// reference it checks that no hold is in force, and that the image has no new name or use.
// It notes in the decision what was done. An error ends the run.
func (p *Pruner) deleteImage(ctx context.Context, d *ImageDecision, critical bool) error {
	refs := d.Image.References()
	if len(refs) == 0 {
		refs = []string{d.Image.ID}
	}
	for _, ref := range refs {
		err := p.exclusively(ctx, critical, func() error { return p.deleteReference(ctx, d, ref) })
		if errors.Is(err, ErrHeld) {
			d.skip(RuleHeld, err.Error())
		}
		if err != nil || d.Action == Skip {
			return err
		}
	}
	_, err := p.Engine.ImageInspect(ctx, d.Image.ID)
	switch {
	case cerrdefs.IsNotFound(err):
		d.deleted = true
		p.log().Info("image deleted", "image", label(d.Image), "id", d.Image.ID, "why", d.Why)
		return nil
	case err != nil && !cerrdefs.IsInternal(err):
		return fmt.Errorf("inspect image %s: %w", d.Image.ID, err)
	}
	d.skip(RuleFailed, "the engine deleted its names and kept the image")
	return nil
}

// checkChildren skips an image on which another one was built that is there. With containerd's
// store the Engine would delete it all the same.
func (p *Pruner) checkChildren(ctx context.Context, d *ImageDecision) error {
	list, err := p.Engine.ImageList(ctx, client.ImageListOptions{All: true})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, item := range list.Items {
		if item.ParentID == d.Image.ID {
			tags, digests := names(item.RepoTags, item.RepoDigests)
			d.skip(RuleChildren, label(Image{ID: item.ID, Tags: tags, Digests: digests})+" was built on it")
			return nil
		}
	}
	return nil
}

// deleteReference deletes one reference, if the image still has it, and has no new name and
// no use.
func (p *Pruner) deleteReference(ctx context.Context, d *ImageDecision, ref string) error {
	now, err := p.Engine.ImageInspect(ctx, d.Image.ID)
	if cerrdefs.IsNotFound(err) {
		return nil // with the last tag, the Engine has deleted the digests too
	}
	if cerrdefs.IsInternal(err) {
		d.skip(RuleUnreadable, "the engine can't show it any more: "+err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("inspect image %s: %w", d.Image.ID, err)
	}
	tags, digests := names(now.RepoTags, now.RepoDigests)
	names := append(tags, digests...)
	for _, name := range names {
		if !slices.Contains(d.Image.References(), name) {
			d.skip(RuleChanged, "since the plan was made it was named "+name)
			return nil
		}
	}
	if ref != d.Image.ID && !slices.Contains(names, ref) {
		return nil
	}
	if err := p.checkChildren(ctx, d); err != nil || d.Action == Skip {
		return err
	}
	latest := Snapshot{Images: []Image{d.Image}}
	if err := latest.addUsers(ctx, p.Engine); err != nil {
		return err
	}
	if len(latest.Busy) > 0 {
		return fmt.Errorf("%w: %s", errActive, strings.Join(latest.Busy, ", "))
	}
	for _, u := range usersByImage(latest) {
		d.skip(RuleChanged, "since the plan was made "+u.why())
		return nil
	}
	why, err := p.usedSince(ctx, *d)
	if err != nil {
		return err
	}
	if why != "" {
		d.skip(RuleChanged, why)
		return nil
	}
	_, err = p.Engine.ImageRemove(ctx, ref, client.ImageRemoveOptions{})
	switch {
	case err == nil || cerrdefs.IsNotFound(err):
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errSilent):
		return err
	case cerrdefs.IsConflict(err):
		d.skip(RuleConflict, err.Error())
	default:
		d.skip(RuleFailed, err.Error())
	}
	return nil
}

// predict chooses the images to delete. In a dry run it also sets the decision of the run.
func (r *Report) predict(s Snapshot) {
	missing := need(r.Before, r.Low)
	frees := choose(r.Images, holdersOf(s.Images), missing)
	if !r.DryRun {
		return
	}
	r.Decision = Pruned
	switch {
	case need(r.Before, r.Low) == math.MaxInt64:
		r.Decision, r.Reason = Incomplete, "inodes are short, and how many an image has isn't known: it would delete until there are enough"
	case missing == 0 || frees < missing:
		r.Decision, r.Reason = Incomplete, notEnough
		if missing == 0 {
			r.Reason = tooFew(r.Before, r.Low)
		}
	}
	r.markDeletable()
}

// markDeletable marks the images that may be deleted and were not: those that a run has left,
// and those that it would leave.
func (r *Report) markDeletable() {
	for i := range r.Images {
		d := &r.Images[i]
		if d.Action == Delete && !d.deleted && (!r.DryRun || r.Decision == NotNeeded) {
			d.Action = Deletable
		}
		if d.Action == Deletable && d.useless {
			d.Why = "its deletion would free nothing: images that stay, or the build cache, have all its layers"
		}
	}
}

// Predicted returns how many bytes the images free that were deleted, or would be in a dry run,
// by the sizes that the Engine tells. A dry run and the run after it have the same, if nothing
// changes in between.
func (r Report) Predicted() (bytes int64) {
	for _, d := range r.Images {
		if d.Action == Delete {
			bytes += d.Frees
		}
	}
	return bytes
}
