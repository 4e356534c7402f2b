//go:build integration

package integration

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestNodesTellEachOtherOfTagsAndLimits: a tag that one node has checked the others don't ask for, and the
// limit that one has met they don't run into. Without Redis each goes on by itself; when it is back,
// they share again.
func TestNodesTellEachOtherOfTagsAndLimits(t *testing.T) {
	t.Parallel()
	l := newTierLab(t)
	nodes := []*server{l.start(serverOptions{}), l.start(serverOptions{}), l.start(serverOptions{})}
	add := func(tag string) *hubtest.Image {
		return l.hub.AddImage("library/app", tag, hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 100, Seed: uint64(len(tag))}}})
	}
	count := func(of func(hubtest.Entry) bool) int {
		return l.hub.Ledger().Count(func(e hubtest.Entry) bool {
			return e.Kind == "manifests" && e.Status != http.StatusUnauthorized && of(e)
		})
	}
	checks := func(img *hubtest.Image) int {
		return count(func(e hubtest.Entry) bool { return strings.HasSuffix(e.Path, "/"+img.Tag) })
	}
	first := add("first")
	for _, n := range nodes {
		if err := l.pull(first, n); err != nil {
			t.Fatal(err)
		}
	}
	if n := checks(first); n != 1 {
		t.Errorf("the Hub was asked %d times for a tag that three nodes want", n)
	}

	l.hub.SetUsed(labUser, 1_000_000)
	for i, n := range nodes {
		img := add(fmt.Sprint("limited", i))
		resp, err := http.Get(at(n) + "/v2/library/app/manifests/" + img.Tag)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusTooManyRequests {
			t.Errorf("node %d: %s", i, resp.Status)
		}
		if u := n.Stats().Upstreams[0]; u.State != "cooling" || u.RateLimit == nil || u.RateLimit.Remaining != 0 {
			t.Errorf("node %d knows the upstream as %s, %+v", i, u.State, u.RateLimit)
		}
		if err := l.pull(first, n); err != nil { // what is cached is served
			t.Error(err)
		}
	}
	if n := count(func(e hubtest.Entry) bool { return e.Status == http.StatusTooManyRequests }); n != 1 {
		t.Errorf("the limit was met %d times by three nodes", n)
	}

	l.hub.SetUsed(labUser, 0)
	l.redis.Kill()
	fourth := l.start(serverOptions{})
	alone := add("alone")
	if err := l.pull(alone, fourth); err != nil {
		t.Error(err)
	}
	if s := fourth.Stats().Shared; s.State != "unwell" || !strings.Contains(s.Lease, "redis") {
		t.Errorf("nobody is told: %+v", s)
	}
	l.redis.Start()
	fifth := l.start(serverOptions{})
	eventually(t, "they share again", func() error {
		img := add("again" + fmt.Sprint(len(l.hub.Ledger())))
		if err := errors.Join(l.pull(img, fifth), l.pull(img, fourth)); err != nil {
			return err
		}
		if n := checks(img); n != 1 {
			return fmt.Errorf("the Hub was asked %d times", n)
		}
		return nil
	})
	if s := fourth.Stats().Shared; s.State != "well" || s.Recalls == 0 {
		t.Errorf("%+v", s)
	}
}
