package tier

import (
	"testing"
	"time"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/storage"
)

// TestTheNewestVerdictWinsAndPrivateOverAll: whoever writes it, and in whatever order.
func TestTheNewestVerdictWinsAndPrivateOverAll(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := l.node(nil), l.node(nil)
	at := time.Now().Add(-time.Hour).Truncate(time.Second).UTC()
	type told struct {
		public  bool
		checked time.Time
	}
	for name, c := range map[string]struct {
		told       []told
		public, ok bool
		checked    time.Time
	}{
		"nobody-knows":        {nil, false, false, time.Time{}},
		"public":              {[]told{{true, at}}, true, true, at},
		"private":             {[]told{{false, at}}, false, true, at},
		"private-later":       {[]told{{true, at}, {false, at.Add(time.Second)}}, false, true, at.Add(time.Second)},
		"private-written-1st": {[]told{{false, at.Add(time.Second)}, {true, at}}, false, true, at.Add(time.Second)},
		"almost-together":     {[]told{{false, at}, {true, at.Add(clocksDiffer)}}, false, true, at},
		"public-again":        {[]told{{false, at}, {true, at.Add(2 * clocksDiffer)}}, true, true, at.Add(2 * clocksDiffer)},
		"an-older-private":    {[]told{{false, at}, {false, at.Add(-30 * time.Minute)}, {true, at.Add(-time.Minute)}}, false, true, at},
	} {
		for i, v := range c.told {
			n := []*node{a, b}[i%2]
			if err := n.tier.writeVerdict(t.Context(), "docker.io/"+name, v.public, v.checked); err != nil {
				t.Fatal(err)
			}
		}
		if public, checked, ok := b.tier.visibility(t.Context(), "docker.io/"+name); public != c.public || ok != c.ok || !checked.Equal(c.checked) {
			t.Errorf("%s: public %v, %v, ok %v", name, public, checked, ok)
		}
	}
}

// TestAPrivateVerdictIsToldLater, if the bucket can't be told at once.
func TestAPrivateVerdictIsToldLater(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.node(nil)
	l.s3.Fault(refuse)
	n.tier.setVisibility("docker.io/me/app", false, time.Now())
	l.eventually("a failure", func() bool { return n.tier.Stats().Bucket != Well })
	if len(l.s3.Names()) > 0 {
		t.Fatalf("it was written: %v", l.s3.Names())
	}
	l.s3.Fault(nil)
	l.eventually("it is told", func() bool { return l.s3.Object(verdictName("docker.io/me/app", false)) != nil })
}

// TestANodeWithoutAnAccountServesOnlyWhatAnybodyMayRead, though another one has brought more into the bucket.
func TestANodeWithoutAnAccountServesOnlyWhatAnybodyMayRead(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	body := []byte(`{"schemaVersion":2}`)
	d := l.upstream.add("me/secret", body)
	l.upstream.tags["me/secret:1"] = d
	first := l.node(nil)
	mine := first.tier.Source("docker.io", AccountOf("memory", "me"), l.upstream)
	if _, err := mine.Resolve(t.Context(), "me/secret", fetch.Manifests, "1"); err != nil {
		t.Fatal(err)
	}
	m, err := mine.Manifest(t.Context(), "me/secret", string(d))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.store.PutManifest(storage.Origin{Repository: "docker.io/me/secret", Private: true}, d, m.MediaType, m.Body); err != nil {
		t.Fatal(err)
	}
	first.uploaded()
	l.eventually("the tag", func() bool { return l.s3.Object(tagName("docker.io/me/secret", "1")) != nil })
	l.upstream.setDown(true)
	second := l.node(nil)
	other := second.tier.Source("docker.io", AccountOf("memory", "me"), l.upstream)
	ask := func(s fetch.Source) (errs []error) {
		_, err1 := s.Resolve(t.Context(), "me/secret", fetch.Manifests, "1")
		_, err2 := s.Resolve(t.Context(), "me/secret", fetch.Manifests, string(d))
		_, err3 := s.Manifest(t.Context(), "me/secret", string(d))
		return []error{err1, err2, err3, s.Confirm(t.Context(), "me/secret", fetch.Manifests, d)}
	}
	for i, err := range ask(second.source) {
		if err == nil {
			t.Errorf("question %d was answered without an account", i)
		}
	}
	for i, err := range ask(other) {
		if err != nil {
			t.Errorf("question %d with the account: %v", i, err)
		}
	}
	if err := first.tier.writeVerdict(t.Context(), "docker.io/me/secret", true, time.Now()); err != nil {
		t.Fatal(err)
	}
	for i, err := range ask(second.source) {
		if err != nil {
			t.Errorf("question %d when it is public: %v", i, err)
		}
	}
}
