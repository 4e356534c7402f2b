package prune

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Action is what happens to an image.
type Action string

// What can happen to an image.
const (
	Delete Action = "delete" // goes, or would go in a dry run
	Keep   Action = "keep"   // a rule keeps it
	Skip   Action = "skip"   // was to go, but the Engine or a newcomer had an objection
	Spare  Action = "spare"  // may go, but there is room enough without it
)

// Rule names the reason of a verdict, for programs.
type Rule string

// The rules that keep, in the order in which they are asked; the first that holds is the
// one that is reported. The uses of an image ([UseContainer] and so on) come before them.
const (
	RuleKeepList Rule = "keep-list" // matches Policy.Keep or a compose file of Policy.KeepFiles
	RuleChildren Rule = "children"  // another image was built on it here
	RuleTag      Rule = "tag"       // has a tag, and Policy.Tagged is not set
	RuleWorker   Rule = "worker"    // has a name, on a swarm node that can't see the services
	RuleNewest   Rule = "newest"    // is the newest of one of its repositories
	RuleUnknown  Rule = "unknown"   // no record of it: counts as used now
	RuleUsed     Rule = "used"      // used within MinAge
	RuleArrived  Rule = "arrived"   // first seen within MinAge
	RuleTagged   Rule = "tagged"    // tagged within MinAge
)

// The rules that don't keep.
const (
	RuleOrphan   Rule = "orphan"   // no tag, no user, old enough
	RuleOld      Rule = "old"      // has a tag, Policy.Tagged is set, old enough
	RuleConflict Rule = "conflict" // the Engine said 409
	RuleChanged  Rule = "changed"  // was named, used or removed since the plan was made
	RuleHeld     Rule = "held"     // a hold came
	RuleFailed   Rule = "failed"   // the Engine could not delete it
)

// Verdict is the decision about one image.
type Verdict struct {
	Image  Image
	Action Action
	Rule   Rule
	Why    string // for people
	// LastUse is when the image was last known to be used, tagged or seen for the first time.
	LastUse time.Time

	removed bool // it has been deleted
}

func (v *Verdict) skip(rule Rule, why string) { v.Action, v.Rule, v.Why = Skip, rule, why }

// Decide returns one verdict for every image: first those that may go, in the order in
// which they go (least recently used first), then those that stay. It has no effects and
// asks nobody. uses are the records by image ID; now is the time to compare with.
func Decide(s Snapshot, p Policy, uses map[string]Record, now time.Time) []Verdict {
	d := decider{s: s, p: p, uses: uses, now: now, users: users(s), newest: newest(s, uses, now), parents: map[string]string{}}
	for _, glob := range p.Keep {
		d.keep = append(d.keep, parsePattern(glob))
	}
	for _, img := range s.Images {
		d.parents[img.Parent] = label(img)
	}
	verdicts := make([]Verdict, 0, len(s.Images))
	for _, img := range s.Images {
		verdicts = append(verdicts, d.decide(img))
	}
	slices.SortStableFunc(verdicts, func(a, b Verdict) int {
		return cmp.Or(
			cmp.Compare(place(a.Action), place(b.Action)),
			a.LastUse.Compare(b.LastUse),
			cmp.Compare(b.Image.Unique, a.Image.Unique), // as old: the fewer deletions, the better
			cmp.Compare(a.Image.ID, b.Image.ID),
		)
	})
	return verdicts
}

func place(a Action) int {
	if a == Delete {
		return 0
	}
	return 1
}

type decider struct {
	s       Snapshot
	p       Policy
	uses    map[string]Record
	now     time.Time
	keep    []pattern
	users   map[string]User   // by image ID
	newest  map[string]string // image ID → the repository whose newest it is
	parents map[string]string // image ID → label of one that was built on it
}

func (d *decider) decide(img Image) Verdict {
	v := Verdict{Image: img, Action: Keep, LastUse: lastUse(img, d.uses, d.now)}
	if u, ok := d.users[img.ID]; ok {
		v.Rule, v.Why = Rule(u.Use), u.why()
		return v
	}
	for _, p := range d.keep {
		if p.keeps(img) {
			v.Rule, v.Why = RuleKeepList, "the keep list has "+p.String()
			return v
		}
	}
	if v.Rule, v.Why = d.standing(img); v.Rule != "" {
		return v
	}
	if v.Rule, v.Why = d.recent(img); v.Rule != "" {
		return v
	}
	v.Action, v.Rule, v.Why = Delete, RuleOrphan, "no tag, no container, no service; last used "+ago(d.now.Sub(v.LastUse))
	if len(img.Tags) > 0 {
		v.Rule, v.Why = RuleOld, "no container, no service; last used "+ago(d.now.Sub(v.LastUse))
	}
	return v
}

// standing are the rules about what an image is.
func (d *decider) standing(img Image) (Rule, string) {
	switch repo, newest := d.newest[img.ID]; {
	case d.parents[img.ID] != "":
		return RuleChildren, d.parents[img.ID] + " was built on it"
	case len(img.Tags) > 0 && !d.p.Tagged:
		return RuleTag, "has a tag"
	case d.s.Worker && len(img.Tags)+len(img.Digests) > 0:
		return RuleWorker, "this node is no swarm manager: which services use it is not known"
	case newest:
		return RuleNewest, "is the newest image of " + repo
	}
	return "", ""
}

// recent are the rules about when an image was last needed.
func (d *decider) recent(img Image) (Rule, string) {
	within := func(t time.Time) bool { return d.now.Sub(t) < d.p.MinAge } // a time in the future too: the clock was set back
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

// lastUse is the latest of what is known about img; without a record it is now.
func lastUse(img Image, uses map[string]Record, now time.Time) time.Time {
	rec, known := uses[img.ID]
	if !known {
		return now
	}
	return slices.MaxFunc([]time.Time{rec.LastUsed, rec.FirstSeen, img.Tagged}, time.Time.Compare)
}

// users maps image IDs to the first container or service that uses them.
func users(s Snapshot) map[string]User {
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

// newest maps the ID of each repository's newest image to the repository. An image that
// swarm pulled has a digest there and no tag; it counts all the same. Newest is what came
// to this host last; of two that came together, what was built last.
func newest(s Snapshot, uses map[string]Record, now time.Time) map[string]string {
	came := func(img Image) time.Time {
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
			if !ok || cmp.Or(came(img).Compare(came(other)), img.Built.Compare(other.Built), cmp.Compare(img.ID, other.ID)) > 0 {
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

// ago is a duration as people say it.
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
