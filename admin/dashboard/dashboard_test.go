package dashboard

import (
	"context"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/inventory"
	"github.com/hubcache/hubcache/registry"
)

// TestMain lets the tests of this package reach loopback addresses only.
func TestMain(m *testing.M) {
	hubtest.LoopbackOnly(http.DefaultTransport.(*http.Transport))
	os.Exit(m.Run())
}

// some are images of the repositories a, b and c, the first used last and the last the largest.
func some(n int) []inventory.Image {
	var all []inventory.Image
	at := time.Now()
	for i := range n {
		all = append(all, inventory.Image{Repository: "docker.io/library/" + string(rune('a'+i%3)), Tag: fmt.Sprint(i), Digest: digest.FromString(fmt.Sprint(i)),
			Size: int64(i+1) << 20, Pulls: int64(i % 7), Complete: i%5 > 0, LastUse: at.Add(-time.Duration(i) * time.Minute)})
	}
	return all
}

// with returns options that show these images.
func with(images []inventory.Image) Options {
	return Options{
		Stats: func() admin.Stats {
			return admin.Stats{Version: "1.2.3", Store: admin.Store{Bytes: 1 << 30, BudgetBytes: 4 << 30}, Upstreams: []admin.Upstream{{Registry: "docker.io", State: "ok"}}}
		},
		History: func() admin.History { return admin.History{} },
		Images:  func(context.Context) (*inventory.List, error) { return inventory.NewList(images, 0), nil },
		Verbs:   func(*http.Request) admin.Verbs { return admin.Verbs{} },
		Log:     slog.New(slog.DiscardHandler),
	}
}

// ask returns the answer to a GET of a new dashboard.
func ask(t *testing.T, o Options, target string) (*http.Response, string) {
	t.Helper()
	return look(New(o), target)
}

func look(d *Dashboard, target string) (*http.Response, string) {
	w := httptest.NewRecorder()
	d.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
	return w.Result(), w.Body.String()
}

// shows fails unless the page has these texts in this order, whatever tags are between.
func shows(t *testing.T, page string, texts ...string) {
	t.Helper()
	plain := strings.Join(strings.Fields(html.UnescapeString(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(page, " "))), " ")
	rest := plain
	for _, text := range texts {
		_, after, ok := strings.Cut(rest, text)
		if !ok {
			t.Errorf("no %q in (the rest of) %s", text, plain)
			return
		}
		rest = after
	}
}

// TestThePageLoadsNothingForeign: no outside asset, and nothing that the policy forbids: inline
// scripts, styles and handlers.
func TestThePageLoadsNothingForeign(t *testing.T) {
	resp, page := ask(t, with(some(60)), "/?q="+url.QueryEscape(`"><script>alert(1)</script>`))
	if got := resp.Header.Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'self';") || !strings.Contains(got, "frame-ancestors 'none'") {
		t.Error(got)
	}
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Content-Type": "text/html; charset=utf-8"} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, bad := range []string{`<script>`, `\sstyle=`, `<style`, `\son[a-z]+=`, `(src|href)="(https?:)?//`, `javascript:`} {
		if m := regexp.MustCompile(bad).FindString(page); m != "" {
			t.Errorf("the page has %q", m)
		}
	}
	for name, kind := range assets {
		resp, body := ask(t, with(nil), "/assets/"+name)
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != kind || body == "" || strings.Contains(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""), "://") {
			t.Errorf("%s: %s %s", name, resp.Status, resp.Header)
		}
		if !strings.Contains(page, `"/assets/`+name+`"`) {
			t.Errorf("the page doesn't load %s", name)
		}
	}
	if resp, _ := ask(t, with(nil), "/assets/page.html"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("the template: %s", resp.Status)
	}
}

// TestImagesAreSortedFoundAndPaged: by the query alone, without a script.
func TestImagesAreSortedFoundAndPaged(t *testing.T) {
	d := New(with(some(120)))
	for query, want := range map[string][]string{
		"":                   {"a:0 ", "b:1 ", "b:49 ", "1 to 50 of 120", "Next"},
		"?page=3":            {"b:100 ", "c:119 ", "101 to 120 of 120", "Previous"},
		"?page=99":           {"101 to 120 of 120"},
		"?page=-1":           {"1 to 50 of 120"},
		"?sort=size":         {"c:119 ", "120 MiB", "b:118 "},
		"?sort=nonsense":     {"a:0 ", "b:1 "},
		"?sort=size&q=a:":    {"a:117 ", "a:114 ", "1 to 40 of 40 that match"},
		"?q=a:1*":            {"a:12 ", "of 9 that match"},
		"?q=docker.io/lib":   {"of 120 that match"},
		"?q=no-such&page=2":  {"No image matches no-such"},
		"?q=%5b&part=images": {"No image matches ["},
	} {
		resp, page := look(d, "/"+query)
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", query, resp.Status)
		}
		shows(t, page, want...)
	}
	_, page := look(d, "/?q=a:&sort=size")
	if !strings.Contains(page, `aria-sort="descending"`) || !strings.Contains(page, `href="/?q=a%3A#images"`) {
		t.Errorf("the links of the columns: %s", page)
	}
}

// TestManyImagesMakeASmallPage: of 100,000 images a page has fifty.
func TestManyImagesMakeASmallPage(t *testing.T) {
	d := New(with(nil))
	d.images.now, d.images.tried = newListing(inventory.NewList(some(100_000), 0), 1<<50, time.Now()), time.Now()
	_, page := look(d, "/?sort=size")
	shows(t, page, "Images 100000", "1 to 50 of 100000")
	if len(page) > 120_000 {
		t.Errorf("%d bytes", len(page))
	}
}

// TestNoPageWaitsForTheList: while the list is made, the page says so. Then it is there, is made
// again when it is old and somebody looks, and is dropped when nobody does.
func TestNoPageWaitsForTheList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, made, fail := with(nil), 0, false
		o.Images = func(context.Context) (*inventory.List, error) {
			time.Sleep(time.Second)
			if made++; fail {
				return nil, errors.New("broken")
			}
			return inventory.NewList(some(made), 0), nil
		}
		d := New(o)
		images := func(query string) string { _, page := look(d, "/?part=images"+query); return page }
		began := time.Now()
		for range 3 {
			shows(t, images(""), "The list is being made")
		}
		if took := time.Since(began); took > 3*listWait {
			t.Errorf("waited for %v", took)
		}
		time.Sleep(time.Second)
		shows(t, images(""), "Images 1 ")
		shows(t, images("&fresh=1"), "Images 2 ") // it has waited for a new one
		for range 100 {
			images("")
			time.Sleep(time.Second)
		}
		if made < 5 || made > 7 {
			t.Errorf("made %d times in 100 s, and it takes one second", made)
		}
		fail = true
		images("&fresh=1")
		shows(t, images(""), "Images") // the last list stays
		time.Sleep(2 * listKept)
		shows(t, images(""), "Images 0") // nobody looked
		time.Sleep(2 * time.Second)
		shows(t, images(""), "can't be listed")
		time.Sleep(2 * listKept)
	})
}

// TestThePageSaysWhatIsWrong: an upstream that is down, a budget that is too small, what has failed
// and what to do.
func TestThePageSaysWhatIsWrong(t *testing.T) {
	o := with(some(3))
	now := time.Now()
	o.Verbs = func(*http.Request) admin.Verbs { return admin.Verbs{Refused: "this is answered over unix:/run/x only"} }
	o.Stats = func() admin.Stats {
		return admin.Stats{
			Store: admin.Store{Bytes: 3 << 30, ReservedBytes: 1 << 29, PinnedBytes: 1 << 30, BudgetBytes: 4 << 30, Shortages: []admin.Shortage{{Message: "the budget is too small for x"}}},
			Upstreams: []admin.Upstream{
				{Registry: "docker.io", State: "down", Failure: &admin.Failure{Kind: "dns", Host: "registry-1.docker.io"}, RateLimit: &admin.RateLimit{Limit: 200, Remaining: 13, WindowSeconds: 21600, Observed: now.Add(-time.Hour)}},
				{Registry: "ghcr.io", State: "denied", Authenticated: true, Credential: admin.Credential{State: "refused", Exposed: true}},
			},
			Inflight: []admin.Inflight{{Digest: "sha256:0123456789abcdef", Repository: "docker.io/library/redis", Size: 200, Received: 50, Readers: 3}, {Digest: "sha256:00", Repository: "docker.io/library/b", Size: -1, Received: 5 << 20}},
			Failures: []admin.Failed{{Cause: "upstream", Reason: registry.ReasonThrottled, Reference: "docker.io/library/redis:7", Detail: "<b>limits</b>", Count: 12, Last: now.Add(-2 * time.Minute)}},
		}
	}
	_, page := ask(t, o, "/")
	shows(t, page, "docker.io can't be used.", "registry-1.docker.io can't be resolved", "Cached images are served", "ghcr.io access token refused", "too small for x",
		"3.50 GiB of 4.00 GiB used, 88 %", "pinned 1.00 GiB", "other images 2.00 GiB", "reserved for downloads 512 MiB", "free 512 MiB",
		"13 of 200 pulls left", "within 5 hours", "Every user of the machine may read",
		"Being fetched 2", "redis 0123456789ab 25 % of 200 B, 3 readers", "5.00 MiB, 0 readers",
		"Recent failures 1", "redis:7 12 times, last 2 minutes ago", "the quota is used up", "It comes back by itself", "<b>limits",
		"The cache can't be changed from here: this is answered over unix:/run/x only")
	_, page = ask(t, with(nil), "/")
	shows(t, page, "Nothing has failed", "Nothing cached yet: pull an image through this cache")
}

// TestEveryReasonHasWords: a failure whose reason is new would be shown without them.
func TestEveryReasonHasWords(t *testing.T) {
	source, err := os.ReadFile("../../registry/recent.go")
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^\tReason\w+ += "(\w+)"`).FindAllSubmatch(source, -1)
	if len(all) < 10 {
		t.Fatalf("%q", all)
	}
	for _, m := range all {
		if w := reasons[string(m[1])]; w.What == "" || w.Todo == "" {
			t.Errorf("%s has no words", m[1])
		}
	}
}

// TestControlsAreForWhoMayUseThem: none without the verbs, and none where they are refused.
func TestControlsAreForWhoMayUseThem(t *testing.T) {
	o := with(some(2))
	o.Pinned = func() (map[string]bool, error) { return map[string]bool{"docker.io/library/a:0": true}, nil }
	o.Purge, o.Warm = true, true
	_, page := ask(t, o, "/")
	for _, want := range []string{`data-verb="unpin" data-reference="docker.io/library/a:0"`, `data-verb="pin" data-reference="docker.io/library/b:1"`, `data-verb="purge"`, `id="warm"`} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s", want)
		}
	}
	shows(t, page, "a:0 pinned")
	o.Verbs = func(*http.Request) admin.Verbs { return admin.Verbs{Refused: "no"} }
	if _, page = ask(t, o, "/"); strings.Contains(page, "data-verb") || strings.Contains(page, `id="warm"`) {
		t.Error("controls that are refused")
	}
	if _, page = ask(t, with(some(2)), "/"); strings.Contains(page, "data-verb") || strings.Contains(page, `id="warm"`) {
		t.Error("controls without verbs")
	}
}

func BenchmarkListing(b *testing.B) {
	images := some(100_000)
	for b.Loop() {
		l := newListing(inventory.NewList(images, 0), 1<<50, time.Now())
		l.find("a:1", "size", 1)
	}
}
