package prune

import (
	"cmp"
	"fmt"
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
	RuleKeepList Rule = "keep-list" // matches Policy.Keep or a compose file of Policy.KeepFiles
	RuleChildren Rule = "children"  // another image was built on it on this host
	RuleTag      Rule = "tag"       // has a tag, and Policy.Tagged is not set
	RuleWorker   Rule = "worker"    // has a name, on a swarm node that can't see the services
	RuleNewest   Rule = "newest"    // is the newest image of one of its repositories
	RuleUnknown  Rule = "unknown"   // has no record: counts as used now
	RuleUsed     Rule = "used"      // used within MinAge
	RuleArrived  Rule = "arrived"   // first seen within MinAge
	RuleTagged   Rule = "tagged"    // tagged within MinAge
)

// The reasons of the other decisions.
const (
	RuleOrphan   Rule = "orphan"   // no tag, not in use, old enough
	RuleOld      Rule = "old"      // has a tag, Policy.Tagged is set, old enough
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

	deleted bool      // it has been deleted
	planned time.Time // when the plan was begun
	record  Record    // as it was then
}

// Deleted reports whether the image was deleted, and not only chosen.
func (d ImageDecision) Deleted() bool { return d.deleted }

// skip notes that the image is not deleted after all.
func (d *ImageDecision) skip(rule Rule, why string) { d.Action, d.Rule, d.Why = Skip, rule, why }

// Decide returns one decision for each image: first the images that may be deleted, least
// recently used first, then those that are kept. It has no effects and asks nobody. uses has
// the records by image ID; ages are counted from now.
func Decide(s Snapshot, p Policy, uses map[string]Record, now time.Time) []ImageDecision {
	d := decider{s: s, p: p, uses: uses, now: now, users: usersByImage(s), newest: newestImages(s, uses, now), parents: map[string]string{}}
	d.keep = p.patterns()
	for _, img := range s.Images {
		d.parents[img.Parent] = label(img)
	}
	decisions := make([]ImageDecision, 0, len(s.Images))
	for _, img := range s.Images {
		decisions = append(decisions, d.decide(img))
	}
	slices.SortStableFunc(decisions, func(a, b ImageDecision) int {
		return cmp.Or(
			cmp.Compare(rank(a.Action), rank(b.Action)),
			a.LastUse.Compare(b.LastUse),
			cmp.Compare(b.Image.Unique, a.Image.Unique), // larger ones first: fewer deletions are needed
			cmp.Compare(a.Image.ID, b.Image.ID),
		)
	})
	return decisions
}

// rank sorts images to be deleted before the others.
func rank(a Action) int {
	if a == Delete {
		return 0
	}
	return 1
}

// decider has what the decision about each image needs.
type decider struct {
	s       Snapshot
	p       Policy
	uses    map[string]Record
	now     time.Time
	keep    []pattern
	users   map[string]User   // by image ID
	newest  map[string]string // image ID → the repository of which it is the newest image
	parents map[string]string // image ID → label of an image that was built on it
}

func (d *decider) decide(img Image) ImageDecision {
	v := ImageDecision{Image: img, Action: Keep, LastUse: lastUse(img, d.uses, d.now)}
	if u, ok := d.users[img.ID]; ok {
		v.Rule, v.Why = Rule(u.Use), u.why()
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
	v.Action, v.Rule, v.Why = Delete, RuleOrphan, "no tag, no container, no service; last used "+ago(d.now.Sub(v.LastUse))
	if len(img.Tags) > 0 {
		v.Rule, v.Why = RuleOld, "no container, no service; last used "+ago(d.now.Sub(v.LastUse))
	}
	return v
}

// keptByKind applies the rules about what an image is.
func (d *decider) keptByKind(img Image) (Rule, string) {
	switch repo, newest := d.newest[img.ID]; {
	case d.parents[img.ID] != "":
		return RuleChildren, d.parents[img.ID] + " was built on it"
	case len(img.Tags) > 0 && !d.p.Tagged:
		return RuleTag, "has a tag"
	case d.s.Worker && len(img.Tags)+len(img.Digests) > 0:
		return RuleWorker, "this node is not a swarm manager, so it isn't known which services use it"
	case newest:
		return RuleNewest, "is the newest image of " + repo
	}
	return "", ""
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
// newest image is the one that came to this host last; of two that came at the same time,
// the one that was built last.
func newestImages(s Snapshot, uses map[string]Record, now time.Time) map[string]string {
	arrival := func(img Image) time.Time {
		if rec, known := uses[img.ID]; img.Tagged.IsZero() && known {
			return rec.FirstSeen
		} else if img.Tagged.IsZero() {
			return now
		}
		return img.Tagged
	}
	best := map[string]Image{}
	for _, img := range s.Images {
		for repo := range repositories(img) {
			other, ok := best[repo]
			if !ok || cmp.Or(arrival(img).Compare(arrival(other)), img.Built.Compare(other.Built), cmp.Compare(img.ID, other.ID)) > 0 {
				best[repo] = img
			}
		}
	}
	ids := map[string]string{}
	for repo, img := range best {
		if ids[img.ID] == "" || repo < ids[img.ID] {
			ids[img.ID] = repo
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
