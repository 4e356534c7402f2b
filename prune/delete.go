package prune

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// deleteInRounds deletes until the low watermark is reached or nothing more may be deleted.
// It takes several rounds, because an image can only be deleted after those that were built
// on it.
func (p *Pruner) deleteInRounds(ctx context.Context, r *Report, policy Policy) error {
	var done []ImageDecision
	for {
		err := p.deleteRound(ctx, r)
		deleted := slices.ContainsFunc(r.Images, func(d ImageDecision) bool { return d.Action == Delete })
		done = append(done, handled(r.Images)...)
		if err != nil || r.Decision == Pruned || !deleted {
			r.Images = append(done, unhandled(r.Images)...)
			return err
		}
		if _, _, err := p.plan(ctx, r, policy); err != nil {
			r.Images = done
			return err
		}
		// Images that were skipped in an earlier round are not tried again.
		r.Images = slices.DeleteFunc(r.Images, func(d ImageDecision) bool {
			return slices.ContainsFunc(done, func(other ImageDecision) bool { return other.Image.ID == d.Image.ID })
		})
	}
}

// deleteRound deletes the images of the plan, in its order, until the low watermark is
// reached. It notes in each decision what was done.
func (p *Pruner) deleteRound(ctx context.Context, r *Report) error {
	defer r.markDeletable()
	r.Decision, r.Reason = Incomplete, "every image that may be deleted was deleted, and a file system is still above the low watermark"
	for i := range r.Images {
		d := &r.Images[i]
		if d.Action != Delete {
			break // those that follow are kept
		}
		if err := p.deleteImage(ctx, d, r.Critical); err != nil {
			return err
		}
		var err error
		if r.After, err = p.disks(ctx); err != nil {
			return err
		}
		if !anyAbove(r.After, p.Policy.Low) {
			r.Decision, r.Reason = Pruned, ""
			return nil
		}
	}
	return nil
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
	case err != nil:
		return fmt.Errorf("inspect image %s: %w", d.Image.ID, err)
	}
	d.skip(RuleFailed, "the engine deleted its names and kept the image")
	return nil
}

// deleteReference deletes one reference, if the image still has it, and has no new name and
// no use.
func (p *Pruner) deleteReference(ctx context.Context, d *ImageDecision, ref string) error {
	now, err := p.Engine.ImageInspect(ctx, d.Image.ID)
	if cerrdefs.IsNotFound(err) {
		return nil // with the last tag, the Engine has deleted the digests too
	}
	if err != nil {
		return fmt.Errorf("inspect image %s: %w", d.Image.ID, err)
	}
	names := append(withoutPlaceholders(now.RepoTags), withoutPlaceholders(now.RepoDigests)...)
	for _, name := range names {
		if !slices.Contains(d.Image.References(), name) {
			d.skip(RuleChanged, "since the plan was made it was named "+name)
			return nil
		}
	}
	if ref != d.Image.ID && !slices.Contains(names, ref) {
		return nil
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

// handled returns the decisions on which a round has acted; unhandled returns the others.
func handled(all []ImageDecision) []ImageDecision {
	return slices.DeleteFunc(slices.Clone(all), func(d ImageDecision) bool { return d.Action == Keep || d.Action == Deletable })
}

func unhandled(all []ImageDecision) []ImageDecision {
	return slices.DeleteFunc(slices.Clone(all), func(d ImageDecision) bool { return d.Action != Keep && d.Action != Deletable })
}

// predict marks, in a dry run, the images that would not be deleted any more once the low
// watermark is reached, and sets the decision of the run.
func (r *Report) predict(low float64) {
	var need int64 // bytes
	for _, d := range r.Before {
		need = max(need, d.Above(low))
	}
	if need == 0 { // the inodes are the problem, and how many an image has isn't known
		need = 1 << 62
	}
	for i := range r.Images {
		if d := &r.Images[i]; d.Action == Delete && need > 0 {
			need -= d.Image.Unique
		} else if d.Action == Delete {
			d.Action = Deletable
		}
	}
	r.Decision = Pruned
	if need > 0 {
		r.Decision, r.Reason = Incomplete, "the images that may be deleted are not enough to reach the low watermark"
	}
}

// markDeletable marks the images that may be deleted and were not.
func (r *Report) markDeletable() {
	for i := range r.Images {
		if d := &r.Images[i]; d.Action == Delete && !d.deleted {
			d.Action = Deletable
		}
	}
}
