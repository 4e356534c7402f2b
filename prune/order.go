package prune

import (
	"cmp"
	"maps"
	"slices"
)

// inOrder puts the images that may be deleted into the order of their deletion, and fills in
// what each frees. h has the holders of all layers; it is used up.
func inOrder(going []ImageDecision, h holders) []ImageDecision {
	byID, children := map[string]*ImageDecision{}, map[string]int{}
	for i := range going {
		byID[going[i].Image.ID] = &going[i]
	}
	for _, d := range byID {
		children[d.Image.Parent]++
	}
	ordered := make([]ImageDecision, 0, len(going))
	for len(byID) > 0 {
		var best []*ImageDecision
		var bestFrees int64
		for _, head := range byID {
			if children[head.Image.ID] > 0 {
				continue
			}
			unit := withIntermediates(head, byID, children)
			age := 0
			if best != nil {
				age = head.LastUse.Compare(best[0].LastUse)
			}
			if age > 0 {
				continue
			}
			frees := h.wouldFree(unit)
			if best == nil || cmp.Or(age, cmp.Compare(bestFrees, frees), cmp.Compare(head.Image.ID, best[0].Image.ID)) < 0 {
				best, bestFrees = unit, frees
			}
		}
		if best == nil {
			return append(ordered, inCircle(byID)...)
		}
		for i, d := range best {
			if i > 0 {
				d.With, d.Rule = best[0].Image.ID, RuleParent
				d.Why = "nothing but " + label(best[0].Image) + " was built on it"
			}
			d.Frees = h.remove(d.Image)
			ordered = append(ordered, *d)
			delete(byID, d.Image.ID)
			children[d.Image.Parent]--
		}
	}
	return ordered
}

// inCircle keeps images of which each is the parent of another one: the Engine's data are damaged.
func inCircle(left map[string]*ImageDecision) []ImageDecision {
	kept := make([]ImageDecision, 0, len(left))
	for _, id := range slices.Sorted(maps.Keys(left)) {
		d := *left[id]
		d.Action, d.Rule, d.Frees = Keep, RuleChildren, 0
		d.Why = "it was built on images that were built on it, says the engine, whose data may be damaged"
		kept = append(kept, d)
	}
	return kept
}

// withIntermediates returns an image and, upwards, the images that have no name and that only
// this one needs.
func withIntermediates(head *ImageDecision, going map[string]*ImageDecision, children map[string]int) []*ImageDecision {
	unit := []*ImageDecision{head}
	for parent := going[head.Image.Parent]; parent != nil; parent = going[parent.Image.Parent] {
		if children[parent.Image.ID] > 1 || len(parent.Image.References()) > 0 || len(unit) > len(going) {
			break
		}
		unit = append(unit, parent)
	}
	return unit
}

// wouldFree returns how many bytes it frees to delete these images together.
func (h holders) wouldFree(unit []*ImageDecision) (n int64) {
	for _, d := range unit {
		n += h.remove(d.Image)
	}
	for _, d := range unit {
		h.put(d.Image)
	}
	return n
}

// choose marks the images that have to be deleted to free so many bytes; the others that may be
// deleted become [Deletable]. An image that frees nothing, because images that stay or the
// build cache hold its layers, isn't chosen, unless one that it was built on is. choose returns
// how many bytes the chosen images free. images is in the order of [Decide]; those that are
// deleted already don't count any more. h has the holders of the layers that are there.
func choose(images []ImageDecision, h holders, need int64) (frees int64) {
	h = maps.Clone(h)
	var chosen [][]*ImageDecision
	for _, unit := range unitsOf(images) {
		enough := frees >= need
		for _, d := range unit {
			d.Action, d.useless = Deletable, false
			if !enough {
				d.Frees = h.remove(d.Image)
				frees += d.Frees
			}
		}
		if !enough {
			chosen = append(chosen, unit)
		}
	}
	// Backwards, since an image must go if the one that it was built on goes.
	going := map[string]bool{}
	for _, unit := range slices.Backward(chosen) {
		goes := slices.ContainsFunc(unit, func(d *ImageDecision) bool { return h.freed(d.Image) || going[d.Image.Parent] })
		for _, d := range unit {
			if d.useless = !goes; goes {
				d.Action, going[d.Image.ID] = Delete, true
			}
		}
	}
	return frees
}

// freed reports whether the image, which was removed, had something that nothing else holds.
func (h holders) freed(img Image) bool {
	return img.Own > 0 || slices.ContainsFunc(img.Layers, func(l Layer) bool {
		return h[l.Chain] == 0 && l.Size > l.Cached
	})
}

// unitsOf returns the images that may be deleted and aren't yet, each with its intermediate
// images.
func unitsOf(images []ImageDecision) (units [][]*ImageDecision) {
	for i := range images {
		d := &images[i]
		if d.deleted || d.Action != Delete && d.Action != Deletable {
			continue
		}
		if n := len(units); d.With != "" && n > 0 && units[n-1][0].Image.ID == d.With {
			units[n-1] = append(units[n-1], d)
		} else {
			units = append(units, []*ImageDecision{d})
		}
	}
	return units
}
