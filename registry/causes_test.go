package registry_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// errorsOf is how many errors of manifests and of blobs have which cause.
type errorsOf struct{ manifest, blob registry.Errors }

// counted returns the causes of the errors since before, and fails if their sum isn't Error.
func (l *lab) counted(before registry.Stats) errorsOf {
	l.t.Helper()
	now := l.reg.Stats()
	less := func(a, b registry.Requests) registry.Errors {
		d := registry.Errors{
			Client: a.Errors.Client - b.Errors.Client, Policy: a.Errors.Policy - b.Errors.Policy,
			Upstream: a.Errors.Upstream - b.Errors.Upstream, Disk: a.Errors.Disk - b.Errors.Disk,
		}
		if sum := d.Client + d.Policy + d.Upstream + d.Disk; sum != a.Error-b.Error {
			l.t.Errorf("%d errors, and the causes add up to %d: %+v", a.Error-b.Error, sum, d)
		}
		return d
	}
	return errorsOf{less(now.Manifest, before.Manifest), less(now.Blob, before.Blob)}
}

// TestErrorsAreCountedByTheirCause: what is asked for and doesn't exist is the client's fault;
// what the settings or a limit refuse the policy's; and so on. The sum is Error.
func TestErrorsAreCountedByTheirCause(t *testing.T) {
	absent := "sha256:" + strings.Repeat("0", 64)
	deny := func(p *registry.Policy) { p.Deny = []string{"library/app"} }
	down := func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("connection refused")}
	}
	client, policy, byUpstream := registry.Errors{Client: 1}, registry.Errors{Policy: 1}, registry.Errors{Upstream: 1}
	manifest := func(e registry.Errors) errorsOf { return errorsOf{manifest: e} }
	blob := func(e registry.Errors) errorsOf { return errorsOf{blob: e} }
	for name, c := range map[string]struct {
		options labOptions
		fault   hubtest.Fault // of the registry's manifests and blobs
		path    string        // $layer is the image's first layer
		header  []string
		want    errorsOf
	}{
		"a tag that doesn't exist":          {path: "library/app/manifests/none", want: manifest(client)},
		"a digest that doesn't exist":       {path: "library/app/manifests/" + absent, want: manifest(client)},
		"a blob that doesn't exist":         {path: "library/app/blobs/" + absent, want: blob(client)},
		"a repository that doesn't exist":   {path: "library/none/manifests/1", want: manifest(client)},
		"a blob of such a repository":       {path: "library/none/blobs/" + absent, want: blob(client)},
		"the same without a credential":     {options: labOptions{anonymous: true}, path: "library/none/manifests/1", want: manifest(client)},
		"a name that can't exist":           {path: "a/b/c/d/manifests/1", want: manifest(client)},
		"a tag that can't exist":            {path: "library/app/manifests/-", want: manifest(client)},
		"a digest that can't exist":         {path: "library/app/blobs/sha256:abc", want: blob(client)},
		"a range behind the end":            {path: "library/app/blobs/$layer", header: []string{"Range", "bytes=9999999-"}, want: blob(client)},
		"a denied manifest":                 {options: labOptions{policy: deny}, path: "library/app/manifests/1", want: manifest(policy)},
		"a denied blob":                     {options: labOptions{policy: deny}, path: "library/app/blobs/$layer", want: blob(policy)},
		"a registry that isn't configured":  {path: "library/app/manifests/1?ns=ghcr.io", want: manifest(policy)},
		"a manifest when upstream fails":    {fault: hubtest.Status(500, "x"), path: "library/app/manifests/1", want: manifest(byUpstream)},
		"a blob when upstream fails":        {fault: hubtest.Status(500, "x"), path: "library/app/blobs/$layer", want: blob(byUpstream)},
		"a manifest that is throttled":      {fault: hubtest.TooManyRequests(), path: "library/app/manifests/1", want: manifest(byUpstream)},
		"a blob that is throttled":          {fault: hubtest.TooManyRequests(), path: "library/app/blobs/$layer", want: blob(byUpstream)},
		"a manifest while upstream is down": {options: labOptions{anonymous: true, intercept: down}, path: "library/app/manifests/1", want: manifest(byUpstream)},
		"a blob while upstream is down":     {options: labOptions{anonymous: true, intercept: down}, path: "library/app/blobs/$layer", want: blob(byUpstream)},
		"no error":                          {path: "library/app/manifests/1"},
		"a list":                            {path: "library/none/tags/list"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, c.options)
				img := l.smallImage("library/app", "1")
				if c.fault != nil {
					l.get("/v2/library/other/manifests/1") // the token of a first request, and the visibility
					for _, kind := range []string{"manifests", "blobs"} {
						l.hub.Inject(hubtest.Match{Face: hubtest.Registry, Kind: kind}, c.fault)
					}
				}
				path := "/v2/" + strings.ReplaceAll(c.path, "$layer", string(img.Manifests[0].Layers[0].Digest))
				for _, method := range []string{"GET", "HEAD"} {
					if c.header != nil && method == "HEAD" {
						continue // has no range
					}
					before := l.reg.Stats()
					r := l.do(method, path, c.header...)
					if got := l.counted(before); got != c.want {
						t.Errorf("%s: %d %s: %+v, want %+v", method, r.status, r.body, got, c.want)
					}
					time.Sleep(time.Hour) // nothing is remembered
				}
			})
		})
	}
}

// TestLimitsAreThePolicysErrors: what limits.client and limits.transfers refuse is not the
// upstream's fault.
func TestLimitsAreThePolicysErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waiting atomic.Bool
		release := make(chan struct{})
		l := newLab(t, labOptions{anonymous: true, policy: func(p *registry.Policy) {
			p.Limits = fetch.Limits{Transfers: 1, Orphans: 1, Ranges: 1, Bypass: 1}
		}, intercept: func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			if waiting.Load() && strings.Contains(req.URL.Path, "/blobs/") {
				<-release
			}
			return next.RoundTrip(req)
		}})
		first, second := l.addImage("library/app", "1", 5*mib), l.addImage("library/app", "2", 6*mib)
		waiting.Store(true)
		done := make(chan struct{})
		go func() { defer close(done); l.get(blobPath("library/app", first[0])) }()
		synctest.Wait()
		before := l.reg.Stats()
		r := l.get(blobPath("library/app", second[0]))
		if got, want := l.counted(before), (errorsOf{blob: registry.Errors{Policy: 1}}); r.status != 429 || got != want {
			t.Errorf("without a slot: %d, %+v", r.status, got)
		}
		close(release)
		<-done
	})
}

// TestUnreadableIndexIsTheDisks: a manifest that can't be looked up is an error of the disk.
func TestUnreadableIndexIsTheDisks(t *testing.T) {
	l := newLab(t, labOptions{anonymous: true})
	img := l.smallImage("library/app", "1")
	l.get("/v2/library/app/manifests/" + string(img.Digest))
	l.setPolicy(func(*registry.Policy) {}) // nothing is answered from memory
	if err := l.store.Close(); err != nil {
		t.Fatal(err)
	}
	defer l.start() // for the end of the lab
	before := l.reg.Stats()
	r := l.get(blobPath("library/app", img.Digest))
	if got, want := l.counted(before), (errorsOf{blob: registry.Errors{Disk: 1}}); got != want {
		t.Errorf("%d %s: %+v, want %+v", r.status, r.body, got, want)
	}
}
