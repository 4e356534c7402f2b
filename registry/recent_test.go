package registry_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// TestFailuresAreKeptWithTheirReason: what a client asked for and didn't get is told, with whose
// fault that is and why.
func TestFailuresAreKeptWithTheirReason(t *testing.T) {
	absent := "sha256:" + strings.Repeat("0", 64)
	down := func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("connection refused")}
	}
	for name, c := range map[string]struct {
		options labOptions
		fault   hubtest.Fault // of the registry's manifests and blobs
		path    string
		want    registry.Failure
	}{
		"absent":      {path: "library/app/manifests/none", want: registry.Failure{Cause: "client", Reason: "absent", Reference: "none"}},
		"absent blob": {path: "library/app/blobs/" + absent, want: registry.Failure{Cause: "client", Reason: "absent", Reference: absent}},
		"denied": {options: labOptions{policy: func(p *registry.Policy) { p.Deny = []string{"library/app"} }}, path: "library/app/manifests/1",
			want: registry.Failure{Cause: "policy", Reason: "settings", Reference: "1"}},
		"broken":      {fault: hubtest.Status(500, "x"), path: "library/app/manifests/1", want: registry.Failure{Cause: "upstream", Reason: "broken", Reference: "1"}},
		"a list":      {fault: hubtest.Status(500, "x"), path: "library/app/tags/list", want: registry.Failure{Cause: "upstream", Reason: "broken"}},
		"throttled":   {fault: hubtest.TooManyRequests(), path: "library/app/manifests/1", want: registry.Failure{Cause: "upstream", Reason: "throttled", Reference: "1"}},
		"unreachable": {options: labOptions{anonymous: true, intercept: down}, path: "library/app/manifests/1", want: registry.Failure{Cause: "upstream", Reason: "unreachable", Reference: "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, c.options)
				l.smallImage("library/app", "1")
				if c.fault != nil {
					l.get("/v2/library/other/manifests/1")
					l.hub.Inject(hubtest.Match{Face: hubtest.Registry}, c.fault)
				}
				began := time.Now()
				for range 3 {
					l.get("/v2/" + c.path)
					time.Sleep(time.Hour)
				}
				got := l.reg.Stats().Recent[0]
				if got.Detail == "" || got.First.Before(began) || got.Last.Sub(got.First) < 2*time.Hour {
					t.Errorf("%+v", got)
				}
				got.Detail, got.First, got.Last = "", time.Time{}, time.Time{}
				c.want.Registry, c.want.Repository, c.want.Count = "docker.io", "library/app", 3
				if got != c.want {
					t.Errorf("got  %+v\nwant %+v", got, c.want)
				}
			})
		})
	}
}

// TestFailuresAreBounded: names that clients invent push out nothing but each other.
func TestFailuresAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.Deny = []string{"library/denied"} }})
		l.get("/v2/library/denied/manifests/1")
		for n := range 100 {
			l.get(fmt.Sprintf("/v2/library/invented%d/manifests/1", n))
			time.Sleep(time.Second)
		}
		l.get("/nothing") // tells nobody anything
		got := l.reg.Stats().Recent
		if len(got) != 17 || got[0].Repository != "library/invented99" || got[16].Repository != "library/denied" {
			t.Errorf("%d: %+v", len(got), got)
		}
	})
}

// TestBrokenBodiesAreFailures: a layer that breaks off was answered with 200, and failed all the
// same. One whose client left didn't.
func TestBrokenBodiesAreFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true})
		l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.FlipByte(2*mib))
		layers := l.addImage("library/app", "1", 5*mib)
		l.get(blobPath("library/app", layers[0]))
		got := l.reg.Stats().Recent
		if len(got) != 1 || got[0].Cause != "upstream" || got[0].Reason != registry.ReasonCorrupt {
			t.Errorf("%+v", got)
		}
	})
}
