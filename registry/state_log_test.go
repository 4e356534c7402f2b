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

	"github.com/hubcache/hubcache/integration/hubtest"
)

// warnings returns the lines of the log that are warnings or errors and have the text.
func (l *lab) warnings(text string) (lines []string) {
	for line := range strings.Lines(l.log.String()) {
		if (strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")) && strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestDeadUpstreamIsLogged: the log says once that the upstream can't be reached, however many
// requests find out, and once that it answers again. One that fails now and then gets a line a
// minute.
func TestDeadUpstreamIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		l := newLab(t, labOptions{intercept: func(req *http.Request, next http.RoundTripper) (*http.Response, error) {
			if down.Load() {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: fmt.Errorf("connection refused")}
			}
			return next.RoundTrip(req)
		}})
		l.smallImage("library/app", "1")
		const dead, alive = "the upstream can't be reached", "the upstream answers again"
		for range 10 {
			l.get("/v2/library/app/manifests/1")
			time.Sleep(10 * time.Second)
		}
		if lines := l.warnings(dead); len(lines) != 1 || !strings.Contains(lines[0], "Docker Hub") || !strings.Contains(lines[0], "connection refused") {
			t.Errorf("an upstream that is down for more than a minute: %q", lines)
		}
		down.Store(false)
		time.Sleep(time.Minute)
		l.get("/v2/library/app/manifests/1")
		if n := strings.Count(l.log.String(), alive); n != 1 {
			t.Errorf("%d lines say that it is back", n)
		}
		for n := range 120 { // it answers every other time, for half an hour
			down.Store(n%2 == 0)
			l.get(fmt.Sprintf("/v2/library/app/manifests/other%d", n))
			time.Sleep(15 * time.Second)
		}
		if n := len(l.warnings(dead)); n < 3 || n > 31 {
			t.Errorf("%d lines within half an hour", n)
		}
	})
}

// TestQuotaThatIsUsedUpIsLogged: once for each pause, however many requests meet it, with the
// time until when nothing is asked.
func TestQuotaThatIsUsedUpIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{anonymous: true, hub: hubtest.Options{AnonymousLimit: 1, Window: 6 * time.Hour}})
		for n := range 20 {
			l.smallImage("library/app", fmt.Sprint(n))
			l.get(fmt.Sprintf("/v2/library/app/manifests/%d", n))
		}
		lines := l.warnings("the pull quota is used up")
		if len(lines) != 1 || !strings.Contains(lines[0], "next_attempt=") || !strings.Contains(lines[0], "limit=1 window=6h0m0s") {
			t.Errorf("%q", lines)
		}
	})
}

// TestAbuseLimitIsLogged: that limit has a line of its own.
func TestAbuseLimitIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		l.hub.Inject(hubtest.Match{Face: hubtest.Registry}, hubtest.HAP429())
		l.smallImage("library/app", "1")
		for range 20 {
			l.get("/v2/library/app/manifests/1")
		}
		if lines := l.warnings("the upstream limits requests"); len(lines) != 1 {
			t.Errorf("%q", lines)
		}
	})
}
