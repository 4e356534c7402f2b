package prune

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Action says what happens to an image. Its values are those of the JSON report.
type Action string

// What can happen to an image.
const (
	Delete    Action = "delete" // is deleted, or would be in a dry run
	Keep      Action = "keep"   // a rule keeps it
	Skip      Action = "skip"   // was to be deleted, but the Engine refused or the image changed
	Deletable Action = "spare"  // may be deleted, but there is enough room without that
)

// Rule is the reason of a decision, for programs. Its values are those of the JSON report.
type Rule string

// The rules that keep an image, in the order in which they are checked. The first one that
// applies is reported. The uses of an image ([UseContainer] and so on) are checked before.
const (
	RuleUnreadable Rule = "unreadable" // the Engine can't show it
	RuleKeepList   Rule = "keep-list"  // matches Policy.Keep or a compose file of Policy.KeepFiles
	RuleChildren   Rule = "children"   // an image that stays was built on it on this host
	RuleTag        Rule = "tag"        // has a tag or is a base, and Policy.Tagged is not set
	RuleWorker     Rule = "worker"     // has a name, on a swarm node that can't see the services
	RuleNewest     Rule = "newest"     // is the newest image of one of its repositories
	RuleUnknown    Rule = "unknown"    // has no record: counts as used now
	RuleUsed       Rule = "used"       // used within MinAge
	RuleArrived    Rule = "arrived"    // first seen within MinAge
	RuleTagged     Rule = "tagged"     // tagged within MinAge
)

// The reasons of the other decisions.
const (
	RuleOrphan   Rule = "orphan"   // no tag, not in use, old enough
	RuleOld      Rule = "old"      // has a tag or is a base, Policy.Tagged is set, old enough
	RuleParent   Rule = "parent"   // an intermediate image that only images that go were built on
	RuleConflict Rule = "conflict" // the Engine answered 409
	RuleChanged  Rule = "changed"  // got a name or a use after the decision was made
	RuleHeld     Rule = "held"     // a hold came into force
	RuleFailed   Rule = "failed"   // the Engine could not delete it
)

// ImageDecision is the decision about one image.
type ImageDecision struct {
	Image  Image
	Action Action
	Rule   Rule
	Why    string // for people
	// LastUse is when the image was last known to be used, tagged or seen for the first time.
	LastUse time.Time
	// Used is when the image was last seen in use; zero if it never was. FirstSeen is when it was
	// seen for the first time.
	Used, FirstSeen time.Time
	// With is the ID of the image that this one goes with, as an intermediate image that
	// nothing else needs; "" for an image that goes by itself, and one that stays.
	With string
	// Frees is how many bytes the deletion frees, after those that come before it in the list.
	// 0 for an image that stays.
	Frees int64

	deleted bool      // it has been deleted
	planned time.Time // when the plan was begun
	record  Record    // as it was then
	useless bool      // it isn't deleted because that would free nothing
}

// Deleted reports whether the image was deleted, and not only chosen.
func (d ImageDecision) Deleted() bool { return d.deleted }

// Useless reports whether the image may be deleted and isn't because that would free nothing:
// images that stay, or the build cache, have all its layers.
func (d ImageDecision) Useless() bool { return d.Action == Deletable && d.useless }

// skip notes that the image is not deleted after all.
func (d *ImageDecision) skip(rule Rule, why string) { d.Action, d.Rule, d.Why = Skip, rule, why }

// Decide returns one decision for each image: first the images that may be deleted, in the
// order of their deletion, then those that are kept. The least recently used image is first, of
// two that were used at the same time the one that frees more. It comes after all images that
// were built on it, and its intermediate images follow it. Decide has no effects and asks
// nobody. uses has the records by image ID; ages are counted from now.
func Decide(s Snapshot, p Policy, uses map[string]Record, now time.Time) []ImageDecision {
	d := decider{s: s, p: p, uses: uses, now: now, users: usersByImage(s), newest: newestImages(s, uses, now), needed: map[string]string{}}
	d.keep = p.patterns()
	byID := map[string]Image{}
	for _, img := range s.Images {
		byID[img.ID] = img
	}
	for _, img := range s.Images {
		// What an image that stays was built on stays too, whether it has a reason of its own or not.
		if v := d.decide(img); v.Action != Keep {
			continue
		}
		for child := img; child.Parent != "" && d.needed[child.Parent] == ""; {
			d.needed[child.Parent] = label(child)
			var known bool
			if child, known = byID[child.Parent]; !known {
				break
			}
		}
	}
	var going, staying []ImageDecision
	for _, img := range s.Images {
		if v := d.decide(img); v.Action == Delete {
			going = append(going, v)
		} else {
			staying = append(staying, v)
		}
	}
	slices.SortFunc(staying, func(a, b ImageDecision) int {
		return cmp.Or(a.LastUse.Compare(b.LastUse), cmp.Compare(b.Image.Unique, a.Image.Unique), cmp.Compare(a.Image.ID, b.Image.ID))
	})
	return append(inOrder(going, holdersOf(s.Images)), staying...)
}

// decider has what the decision about each image needs.
type decider struct {
	s      Snapshot
	p      Policy
	uses   map[string]Record
	now    time.Time
	keep   []pattern
	users  map[string]User   // by image ID
	newest map[string]string // image ID → the repository of which it is the newest image
	needed map[string]string // image ID → label of an image that was built on it and stays
}

func (d *decider) decide(img Image) ImageDecision {
	v := ImageDecision{Image: img, Action: Keep, LastUse: lastUse(img, d.uses, d.now)}
	if u, ok := d.users[img.ID]; ok {
		v.Rule, v.Why = Rule(u.Use), u.why()
		return v
	}
	if img.Unreadable != "" {
		v.Rule, v.Why = RuleUnreadable, "the engine can't show it: "+img.Unreadable
		return v
	}
	for _, p := range d.keep {
		if p.keeps(img) {
			v.Rule, v.Why = RuleKeepList, p.why()
			return v
		}
	}
	if v.Rule, v.Why = d.keptByKind(img); v.Rule != "" {
		return v
	}
	if v.Rule, v.Why = d.keptByAge(img); v.Rule != "" {
		return v
	}
	v.Action, v.Rule, v.Why = Delete, RuleOrphan, "no tag, no container, no service; "+d.seen(v)
	if len(img.Tags) > 0 || img.Base {
		v.Rule, v.Why = RuleOld, "no container, no service; "+d.seen(v)
	}
	return v
}

// keptByKind applies the rules about what an image is.
func (d *decider) keptByKind(img Image) (Rule, string) {
	switch repo, newest := d.newest[img.ID]; {
	case d.needed[img.ID] != "":
		return RuleChildren, d.needed[img.ID] + " was built on it"
	case len(img.Tags) > 0 && !d.p.Tagged:
		return RuleTag, "has a tag"
	case img.Base && !d.p.Tagged:
		return RuleTag, "has a digest, and images were built on it here"
	case d.s.Worker && len(img.Tags)+len(img.Digests) > 0:
		return RuleWorker, "this node is not a swarm manager, so it isn't known which services use it"
	case newest:
		return RuleNewest, "is the newest image of " + repo
	}
	return "", ""
}

// seen says when the image was last used, or, if no use was seen, since when there was none.
func (d *decider) seen(v ImageDecision) string {
	if rec := d.uses[v.Image.ID]; !rec.LastUsed.After(rec.FirstSeen) {
		return "no use was seen since it came or was tagged " + ago(d.now.Sub(v.LastUse))
	}
	return "last used " + ago(d.now.Sub(v.LastUse))
}

// keptByAge applies the rules about when an image was last needed.
func (d *decider) keptByAge(img Image) (Rule, string) {
	within := func(t time.Time) bool { return d.now.Sub(t) < d.p.MinAge } // also if t is in the future: the clock was set back
	rec, known := d.uses[img.ID]
	switch {
	case !known && d.p.MinAge > 0:
		return RuleUnknown, "was never seen before: counts as used now"
	case within(rec.LastUsed) && rec.LastUsed.After(rec.FirstSeen):
		return RuleUsed, "was used " + ago(d.now.Sub(rec.LastUsed))
	case within(rec.FirstSeen):
		return RuleArrived, "was first seen " + ago(d.now.Sub(rec.FirstSeen))
	case within(img.Tagged):
		return RuleTagged, "was tagged " + ago(d.now.Sub(img.Tagged))
	}
	return "", ""
}

// lastUse returns the latest time at which img is known to have been needed. Without a
// record, that is now.
func lastUse(img Image, uses map[string]Record, now time.Time) time.Time {
	rec, known := uses[img.ID]
	if !known {
		return now
	}
	return slices.MaxFunc([]time.Time{rec.LastUsed, rec.FirstSeen, img.Tagged}, time.Time.Compare)
}

// usersByImage maps the ID of each image in use to the first container or service that uses it.
func usersByImage(s Snapshot) map[string]User {
	all, c := map[string]User{}, newCatalog(s.Images)
	for _, u := range s.Users {
		for _, i := range c.find(u.Ref) {
			if id := s.Images[i].ID; all[id].Use == "" {
				all[id] = u
			}
		}
	}
	return all
}

// newestImages maps the ID of each repository's newest image to the repository. An image that
// swarm pulled has only a digest in its repository and no tag; it counts all the same. The
// newest image is the one that came to the repository last; of two that came at the same time,
// the one that was built last.
//
// When an image came may be known only roughly. So each one that may be the newest counts as the
// newest, beside the one that else would be. An image that the Engine can't show doesn't count:
// it may be damaged, and then the next one is needed.
func newestImages(s Snapshot, uses map[string]Record, now time.Time) map[string]string {
	type candidate struct {
		img  Image
		came arrival
	}
	byRepo := map[string][]candidate{}
	for _, img := range s.Images {
		if img.Unreadable != "" {
			continue
		}
		repos := repositories(img)
		for repo := range repos {
			byRepo[repo] = append(byRepo[repo], candidate{img, arrivedIn(img, repo, len(repos), uses, now)})
		}
	}
	ids := map[string]string{}
	for _, repo := range slices.Sorted(maps.Keys(byRepo)) {
		all := byRepo[repo]
		newest := slices.MaxFunc(all, func(a, b candidate) int {
			return cmp.Or(a.came.NotBefore.Compare(b.came.NotBefore), a.came.NotAfter.Compare(b.came.NotAfter), a.img.Built.Compare(b.img.Built), cmp.Compare(a.img.ID, b.img.ID))
		})
		for _, c := range all {
			if ids[c.img.ID] == "" && (c.img.ID == newest.img.ID || c.came.NotAfter.After(newest.came.NotBefore)) {
				ids[c.img.ID] = repo
			}
		}
	}
	return ids
}

// why explains a use to people.
func (u User) why() string {
	switch u.Use {
	case UseContainer:
		return "container " + u.Name + " uses it"
	case UseMount:
		return u.Name + " mounts it"
	case UseService:
		return "service " + u.Name + " uses it"
	default:
		return "service " + u.Name + " would roll back to it"
	}
}

// ago is a duration in words.
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return "in the future (was the clock set back?)"
	case d < time.Minute:
		return "just now"
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}
