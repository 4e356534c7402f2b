package prune

import (
	"testing"
	"time"
)

// decisionOn decides with the default policy, changed by edit, and returns the decision on one
// image.
func decisionOn(t *testing.T, digit string, s Snapshot, uses map[string]Record, edit func(*Policy)) ImageDecision {
	t.Helper()
	p := DefaultPolicy()
	if edit != nil {
		edit(&p)
	}
	for _, v := range Decide(s, p, uses, now) {
		if v.Image.ID == id(digit) {
			return v
		}
	}
	t.Fatalf("no decision on image %s", digit)
	return ImageDecision{}
}

// Each case has an image that only one rule keeps, and that would be deleted without the rule.
func TestEachRuleKeepsAnImage(t *testing.T) {
	bare := orphan("a")
	tagged := orphan("a")
	tagged.Tags = []string{"redis:7"}
	pulled := orphan("a") // as swarm pulls: by digest only
	pulled.Digests = []string{digestRef("redis", "d")}
	newer := orphan("b")
	newer.Tags, newer.Built = []string{"redis:8"}, daysAgo(1)
	multi := orphan("a")
	multi.Manifests = []string{id("e")}
	child := orphan("c") // tagged, so that it stays
	child.Parent, child.Tags = id("a"), []string{"child:1"}
	childless := orphan("c")
	childless.Tags = child.Tags
	recentTag := orphan("a")
	recentTag.Tagged = daysAgo(1)
	base := pulled
	base.Base = true
	damaged := orphan("a")
	damaged.Unreadable = "500"
	withTags := func(p *Policy) { p.Tagged = true }

	tests := []struct {
		name    string
		image   Image
		others  []Image
		user    *User
		worker  bool
		policy  func(*Policy)
		record  *Record // of the image; nil: seen and used long ago
		want    Rule
		without func(*Policy) // how the policy differs when the rule is switched off
		beside  []Image       // the others, with the rule switched off; nil: none
	}{
		{name: "a container by image ID", image: bare, user: &User{UseContainer, "web", id("a")}, want: Rule(UseContainer)},
		{name: "a container by manifest", image: multi, user: &User{UseContainer, "web", id("e")}, want: Rule(UseContainer)},
		{name: "an image mount by name", image: tagged, others: []Image{newer}, beside: []Image{newer}, policy: withTags, user: &User{UseMount, "web", "redis:7"}, want: Rule(UseMount)},
		{name: "an image mount by short ID", image: bare, user: &User{UseMount, "web", "aaaaaaaaaaaa"}, want: Rule(UseMount)},
		{name: "a service by digest", image: pulled, others: []Image{newer}, beside: []Image{newer}, user: &User{UseService, "db", "redis:7@" + id("d")}, want: Rule(UseService)},
		{name: "a service by tag", image: tagged, others: []Image{newer}, beside: []Image{newer}, policy: withTags, user: &User{UseService, "db", "docker.io/library/redis:7"}, want: Rule(UseService)},
		{name: "a service's rollback", image: pulled, others: []Image{newer}, beside: []Image{newer}, user: &User{UseRollback, "db", digestRef("redis", "d")}, want: Rule(UseRollback)},
		{name: "the keep list by tag", image: tagged, others: []Image{newer}, beside: []Image{newer}, policy: func(p *Policy) { p.Tagged, p.Keep = true, []string{"redis:7"} }, without: withTags, want: RuleKeepList},
		{name: "the keep list by glob", image: tagged, others: []Image{newer}, beside: []Image{newer}, policy: func(p *Policy) { p.Tagged, p.Keep = true, []string{"library/*:7*"} }, without: withTags, want: RuleKeepList},
		{name: "the keep list, tag not known", image: pulled, others: []Image{newer}, beside: []Image{newer}, policy: func(p *Policy) { p.Keep = []string{"redis:7"} }, without: func(*Policy) {}, want: RuleKeepList},
		{name: "children", image: bare, others: []Image{child}, beside: []Image{childless}, want: RuleChildren},
		{name: "a base by digest", image: base, others: []Image{newer}, beside: []Image{newer}, without: withTags, want: RuleTag},
		{name: "one that can't be shown", image: damaged, want: RuleUnreadable},
		{name: "a tag", image: tagged, others: []Image{newer}, beside: []Image{newer}, without: withTags, want: RuleTag},
		{name: "a swarm worker", image: pulled, others: []Image{newer}, beside: []Image{newer}, worker: true, want: RuleWorker},
		{name: "newest by digest", image: pulled, want: RuleNewest, beside: []Image{newer}},
		{name: "newest by tag", image: tagged, policy: withTags, want: RuleNewest, beside: []Image{newer}},
		{name: "unknown", image: bare, record: &Record{}, want: RuleUnknown},
		{name: "used lately", image: bare, record: &Record{daysAgo(30), daysAgo(2)}, want: RuleUsed},
		{name: "first seen lately", image: bare, record: &Record{daysAgo(2), daysAgo(2)}, want: RuleArrived},
		{name: "the clock was set back", image: bare, record: &Record{daysAgo(30), daysAgo(-2)}, want: RuleUsed},
		{name: "tagged lately", image: recentTag, want: RuleTagged, policy: nil, without: func(p *Policy) { p.MinAge = time.Hour }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := Snapshot{Images: append([]Image{test.image}, test.others...), Worker: test.worker}
			if test.user != nil {
				s.Users = []User{*test.user}
			}
			uses := old(s.Images...)
			if test.record != nil && *test.record == (Record{}) {
				delete(uses, test.image.ID)
			} else if test.record != nil {
				uses[test.image.ID] = *test.record
			}
			if v := decisionOn(t, "a", s, uses, test.policy); v.Action != Keep || v.Rule != test.want {
				t.Errorf("with the rule: %s by %s (%s), want keep by %s", v.Action, v.Rule, v.Why, test.want)
			} else if v.Why == "" {
				t.Error("kept without a reason in words")
			}
			without := test.policy
			if test.without != nil {
				without = test.without
			}
			other := test.image
			other.Unreadable = ""
			bare := Snapshot{Images: append([]Image{other}, test.beside...)}
			if v := decisionOn(t, "a", bare, old(bare.Images...), without); v.Action != Delete {
				t.Errorf("without the rule: %s by %s (%s), want delete", v.Action, v.Rule, v.Why)
			}
		})
	}
}

// The build date has no influence. Of two images with the same last use, the larger is first.
func TestLeastRecentlyUsedImagesAreFirst(t *testing.T) {
	images := []Image{orphan("a"), orphan("b"), orphan("c"), orphan("d")}
	images[0].Built = daysAgo(5000)
	for i := range images {
		images[i].Own = 10
	}
	images[3].Own = 99
	uses := old(images...)
	uses[id("a")] = Record{daysAgo(40), daysAgo(5)}
	uses[id("b")] = Record{daysAgo(40), daysAgo(30)}
	var got string
	for _, v := range Decide(Snapshot{Images: images}, DefaultPolicy(), uses, now) {
		got += v.Image.ID[7:8]
	}
	if got != "bdca" {
		t.Errorf("order %s, want bdca", got)
	}
}

// An image that was built years ago and pulled a minute ago is kept.
func TestBuildDateIsNotAge(t *testing.T) {
	img := orphan("a")
	uses := map[string]Record{img.ID: {now.Add(-time.Minute), now.Add(-time.Minute)}}
	if v := decisionOn(t, "a", Snapshot{Images: []Image{img}}, uses, nil); v.Action != Keep {
		t.Errorf("%s by %s", v.Action, v.Rule)
	}
}

// Of three images of one repository, two may be deleted. The only image of another repository is
// kept. An image without a name belongs to no repository.
func TestNewestIsPerRepository(t *testing.T) {
	a, b, c, d, e := orphan("a"), orphan("b"), orphan("c"), orphan("d"), orphan("e")
	a.Digests = []string{digestRef("redis", "1")}
	b.Digests, b.Built = []string{digestRef("redis", "2")}, daysAgo(1)
	c.Digests = []string{digestRef("docker.io/library/redis", "3")}
	d.Digests = []string{digestRef("ghcr.io/x/redis", "4")}
	s := Snapshot{Images: []Image{a, b, c, d, e}}
	want := map[string]Action{"a": Delete, "b": Keep, "c": Delete, "d": Keep, "e": Delete}
	for digit, action := range want {
		if v := decisionOn(t, digit, s, old(s.Images...), nil); v.Action != action {
			t.Errorf("image %s: %s by %s, want %s", digit, v.Action, v.Rule, action)
		}
	}
}

// TestNewestIsByTheTagTimeOfEachRepository: db:15 was pulled, then db:16, and then db:15 got a name
// in another repository. The Engine's one tag time of db:15 is that of the other repository.
func TestNewestIsByTheTagTimeOfEachRepository(t *testing.T) {
	old15, new16, older := orphan("a"), orphan("b"), orphan("c")
	old15.Tags, old15.Tagged, old15.Built = []string{"db:15", "mirror.lan/db:15"}, daysAgo(5), daysAgo(100)
	new16.Tags, new16.Tagged, new16.Built = []string{"db:16"}, daysAgo(6), daysAgo(90)
	older.Tags, older.Tagged, older.Built = []string{"db:14"}, daysAgo(8), daysAgo(80)
	s := Snapshot{Images: []Image{old15, new16, older}}
	uses := map[string]Record{id("a"): {daysAgo(7), daysAgo(7)}, id("b"): {daysAgo(6), daysAgo(6)}, id("c"): {daysAgo(8), daysAgo(8)}}
	for digit, action := range map[string]Action{"a": Keep, "b": Keep, "c": Delete} {
		if v := decisionOn(t, digit, s, uses, func(p *Policy) { p.Tagged, p.MinAge = true, time.Hour }); v.Action != action {
			t.Errorf("image %s: %s by %s, want %s", digit, v.Action, v.Rule, action)
		}
	}
}

// TestNamesInTwoRepositoriesDontKeepEveryImage: a host that tags each build for a registry too
// keeps the newest build, and not all of them.
func TestNamesInTwoRepositoriesDontKeepEveryImage(t *testing.T) {
	images := []Image{orphan("a"), orphan("b"), orphan("c")}
	for i := range images {
		at := daysAgo(float64(10 - i))
		images[i].Tags = []string{"app:" + images[i].ID[7:8], "registry.lan/app:" + images[i].ID[7:8]}
		images[i].Built, images[i].Tagged = at, at.Add(time.Minute)
	}
	s := Snapshot{Images: images}
	for digit, action := range map[string]Action{"a": Delete, "b": Delete, "c": Keep} {
		if v := decisionOn(t, digit, s, old(images...), func(p *Policy) { p.Tagged = true }); v.Action != action {
			t.Errorf("image %s: %s by %s, want %s", digit, v.Action, v.Rule, action)
		}
	}
}

// TestParentsInACircleAreReported: they are kept, since nobody knows which one has to go first.
func TestParentsInACircleAreReported(t *testing.T) {
	a, b, c, d := orphan("a"), orphan("b"), orphan("c"), orphan("d")
	a.Parent, b.Parent, c.Parent, d.Parent = b.ID, a.ID, c.ID, a.ID
	s := Snapshot{Images: []Image{a, b, c, d}}
	for digit, action := range map[string]Action{"a": Keep, "b": Keep, "c": Keep, "d": Delete} {
		if v := decisionOn(t, digit, s, old(s.Images...), nil); v.Action != action || v.Why == "" {
			t.Errorf("image %s: %s by %s (%s), want %s", digit, v.Action, v.Rule, v.Why, action)
		}
	}
}
