package hubtest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// outcome is the result of a request for a blob that has a fault.
type outcome struct {
	answer
	err  error
	want []byte // the blob as it should be
	took time.Duration
}

// faults are the kinds of faults, each with a check of what a plain client receives.
var faults = map[string]struct {
	match  hubtest.Match
	faults []hubtest.Fault
	header string
	check  func(outcome) bool
}{
	"delay": {faults: one(hubtest.Delay(50 * time.Millisecond)),
		check: func(o outcome) bool { return o.whole() && o.took >= 50*time.Millisecond }},
	"status": {faults: one(hubtest.Status(503, "no\n", "Retry-After: 7")),
		check: func(o outcome) bool {
			return o.StatusCode == 503 && string(o.body) == "no\n" && o.Header.Get("Retry-After") == "7"
		}},
	"429 without Retry-After": {faults: one(hubtest.TooManyRequests()),
		check: func(o outcome) bool {
			return o.StatusCode == 429 && o.Header.Get("Retry-After") == "" && strings.Contains(string(o.body), "TOOMANYREQUESTS")
		}},
	"HAP429": {faults: one(hubtest.HAP429()),
		check: func(o outcome) bool { return o.err != nil && strings.Contains(o.err.Error(), "malformed MIME header") }},
	"HTML": {faults: one(hubtest.HTML()),
		check: func(o outcome) bool { return o.StatusCode == 200 && bytes.HasPrefix(o.body, []byte("<!DOCTYPE html>")) }},
	"reset": {faults: one(hubtest.Reset()),
		check: func(o outcome) bool { return errors.Is(o.err, syscall.ECONNRESET) }},
	"drop": {faults: one(hubtest.Drop()),
		check: func(o outcome) bool { return errors.Is(o.err, io.EOF) }},
	"cut": {faults: one(hubtest.CutAfter(50_000)),
		check: func(o outcome) bool { return o.broken(50_000, io.ErrUnexpectedEOF) }},
	"cut at nothing": {faults: one(hubtest.CutAfter(0)),
		check: func(o outcome) bool { return o.broken(0, io.ErrUnexpectedEOF) }},
	"cut before nothing": {faults: one(hubtest.CutAfter(-1)),
		check: func(o outcome) bool { return o.broken(0, io.ErrUnexpectedEOF) }},
	"cut at the end": {faults: one(hubtest.CutAfter(100_000)),
		check: func(o outcome) bool { return o.whole() }},
	"stall at the end": {faults: one(hubtest.StallAfter(100_000)),
		check: func(o outcome) bool { return o.whole() }},
	"cut without length": {faults: []hubtest.Fault{hubtest.Chunked(), hubtest.CutAfter(50_000)},
		check: func(o outcome) bool { return o.ContentLength == -1 && o.broken(50_000, io.ErrUnexpectedEOF) }},
	"reset in the body": {faults: one(hubtest.ResetAfter(50_000)),
		check: func(o outcome) bool { return len(o.body) <= 50_000 && errors.Is(o.answer.err, syscall.ECONNRESET) }},
	"wrong byte": {faults: one(hubtest.FlipByte(70_000)),
		check: func(o outcome) bool {
			o.want[70_000] ^= 0xff
			return o.whole()
		}},
	"wrong byte in a range": {faults: one(hubtest.FlipByte(70_000)), header: "Range: bytes=60000-79999",
		check: func(o outcome) bool {
			o.want[70_000] ^= 0xff
			return o.StatusCode == 206 && bytes.Equal(o.body, o.want[60_000:80_000])
		}},
	"shorter": {faults: one(hubtest.Shorter(10)),
		check: func(o outcome) bool {
			return o.answer.err == nil && o.ContentLength == 99_990 && bytes.Equal(o.body, o.want[:99_990])
		}},
	"shorter without length": {faults: []hubtest.Fault{hubtest.Shorter(10), hubtest.Chunked()},
		check: func(o outcome) bool {
			return o.answer.err == nil && o.ContentLength == -1 && bytes.Equal(o.body, o.want[:99_990])
		}},
	"longer": {faults: one(hubtest.Longer(10)),
		check: func(o outcome) bool {
			return o.answer.err == nil && o.ContentLength == 100_010 && bytes.Equal(o.body[:100_000], o.want)
		}},
	"longer range": {faults: one(hubtest.Longer(10)), header: "Range: bytes=0-9",
		check: func(o outcome) bool { return o.ContentLength == 20 && bytes.Equal(o.body, o.want[:20]) }},
	"longer range at the end": {faults: one(hubtest.Longer(10)), header: "Range: bytes=99995-",
		check: func(o outcome) bool {
			return o.ContentLength == 15 && string(o.body) == string(o.want[99_995:])+".........."
		}},
	"no length": {faults: one(hubtest.Chunked()),
		check: func(o outcome) bool { return o.ContentLength == -1 && o.whole() }},
	"range ignored": {faults: one(hubtest.IgnoreRange()), header: "Range: bytes=5-",
		check: func(o outcome) bool { return o.whole() }},
	"expired at the CDN": {faults: one(hubtest.ExpiredURL()),
		check: func(o outcome) bool { return o.StatusCode == 403 }},
	"expired at the registry": {match: hubtest.Match{Face: hubtest.Registry}, faults: one(hubtest.ExpiredURL()),
		check: func(o outcome) bool { return o.StatusCode == 403 }},
	"redirect loop": {faults: one(hubtest.RedirectLoop()),
		check: func(o outcome) bool { return o.err != nil && strings.Contains(o.err.Error(), "too many redirects") }},
	"redirect elsewhere": {match: hubtest.Match{Face: hubtest.Registry}, faults: one(hubtest.RedirectTo("ftp://elsewhere.invalid/x")),
		check: func(o outcome) bool { return o.err != nil && strings.Contains(o.err.Error(), "ftp") }},
	"redirect with credentials": {match: hubtest.Match{Face: hubtest.Registry},
		faults: one(hubtest.EditRedirect(func(u *url.URL) { u.User = url.UserPassword("u", "p") })),
		// net/http sends them as Authorization, which the CDN refuses
		check: func(o outcome) bool { return o.StatusCode == 400 }},
}

func one(f hubtest.Fault) []hubtest.Fault { return []hubtest.Fault{f} }

// whole reports whether the whole blob arrived with status 200.
func (o outcome) whole() bool {
	return o.err == nil && o.answer.err == nil && o.StatusCode == 200 && bytes.Equal(o.body, o.want)
}

// broken reports whether n right bytes arrived and then err.
func (o outcome) broken(n int, err error) bool {
	return o.err == nil && errors.Is(o.answer.err, err) && bytes.Equal(o.body, o.want[:n])
}

// TestFaultsAreAlikeOverSocketsAndInMemory checks that every kind of fault has the same effect on
// a plain client over sockets and in memory, and that the request after it succeeds.
func TestFaultsAreAlikeOverSocketsAndInMemory(t *testing.T) {
	for name, row := range faults {
		t.Run(name, func(t *testing.T) {
			onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
				c, path, want := faulty(t, hub, rt)
				m := row.match
				m.Method, m.Kind = "GET", "blobs"
				if m.Face == "" {
					m.Face = hubtest.CDN
				}
				if name != "redirect loop" {
					m.Times = 1
				}
				rule := hub.Inject(m, row.faults...)

				start := time.Now()
				var header []string
				if row.header != "" {
					header = append(header, row.header)
				}
				a, err := c.tryGet("GET", faultyRepo, path, header...)
				o := outcome{answer: a, err: err, want: bytes.Clone(want), took: time.Since(start)}
				if !row.check(o) {
					t.Errorf("error %v, response %v, %d bytes, body error %v", o.err, o.Response, len(o.body), o.answer.err)
				}
				if rule.Hits() == 0 {
					t.Error("the rule never fired")
				}
				rule.Remove()
				if a := c.get("GET", faultyRepo, path); !bytes.Equal(a.body, want) {
					t.Errorf("after the fault was removed: %d, %d bytes", a.StatusCode, len(a.body))
				}
			})
		})
	}
}

// TestHangAndStallEndWhenReleased checks that a hanging or stalled request lasts until the client
// gives up, or until the rule is released.
func TestHangAndStallEndWhenReleased(t *testing.T) {
	for name, row := range map[string]struct {
		fault hubtest.Fault
		bytes int // that arrive before it is released
	}{
		"hang":                 {hubtest.Hang(), 0},
		"stall":                {hubtest.StallAfter(50_000), 50_000},
		"stall at nothing":     {hubtest.StallAfter(0), 0},
		"stall before nothing": {hubtest.StallAfter(-1), 0},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
				c, path, want := faulty(t, hub, rt)
				rule := hub.Inject(hubtest.Match{Face: hubtest.CDN}, row.fault)

				c.http.Timeout = 100 * time.Millisecond
				start := time.Now()
				a, err := c.tryGet("GET", faultyRepo, path)
				if err == nil {
					err = a.err
				}
				if !errors.Is(err, context.DeadlineExceeded) || !bytes.Equal(a.body, want[:row.bytes]) {
					t.Errorf("%v and %d bytes after %v", err, len(a.body), time.Since(start))
				}
				if err := hub.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}

				c.http.Timeout = 10 * time.Second
				time.AfterFunc(50*time.Millisecond, rule.Release)
				if a := c.get("GET", faultyRepo, path); !bytes.Equal(a.body, want) {
					t.Errorf("released: %d, %d bytes, %v", a.StatusCode, len(a.body), a.err)
				}
			})
		})
	}
}

// TestCloseEndsHangs checks that Close does not wait for a fault to end.
func TestCloseEndsHangs(t *testing.T) {
	onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		c, path, _ := faulty(t, hub, rt)
		hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.Hang())
		done := make(chan error)
		go func() {
			_, err := c.tryGet("GET", faultyRepo, path)
			done <- err
		}()
		time.Sleep(20 * time.Millisecond)
		hub.Close()
		if err := <-done; err == nil {
			t.Error("a request survived Close")
		}
	})
}

// TestRulesFireForTheirRequests checks for which of several requests a rule fires.
func TestRulesFireForTheirRequests(t *testing.T) {
	onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		c, path, _ := faulty(t, hub, rt)
		hub.Inject(hubtest.Match{Face: hubtest.CDN, Repository: "library/*", Skip: 1, Times: 2}, hubtest.Status(500, ""))
		hub.Inject(hubtest.Match{Face: hubtest.CDN, Repository: "other/*"}, hubtest.Status(501, ""))
		hub.Inject(hubtest.Match{Path: "*/data", Ranged: true}, hubtest.Status(502, ""))
		var got []int
		for range 4 {
			got = append(got, c.get("GET", faultyRepo, path).StatusCode)
		}
		got = append(got, c.get("GET", faultyRepo, path, "Range: bytes=0-").StatusCode)
		hub.ClearFaults()
		got = append(got, c.get("GET", faultyRepo, path, "Range: bytes=0-").StatusCode)
		for i, want := range []int{200, 500, 500, 200, 502, 206} {
			if got[i] != want {
				t.Errorf("statuses %v", got)
				break
			}
		}
	})
}

// TestChanceIsReproducible checks that a rule fires for about its share of the requests, and for
// the same ones on every run.
func TestChanceIsReproducible(t *testing.T) {
	hits := func() []int {
		var statuses []int
		synctest.Test(t, func(t *testing.T) {
			hub := hubtest.New(hubtest.Options{Seed: 7})
			defer hub.Close()
			hub.Inject(hubtest.Match{Kind: "ping", Chance: 0.3}, hubtest.Status(500, ""))
			c := newClient(t, "", hub.Transport())
			for range 100 {
				statuses = append(statuses, c.do("GET", hub.RegistryURL()+"/v2/").StatusCode)
			}
		})
		return statuses
	}
	first := hits()
	n := 0
	for _, status := range first {
		if status == 500 {
			n++
		}
	}
	if n < 15 || n > 45 || !slices.Equal(first, hits()) {
		t.Errorf("%d of 100, %v", n, first)
	}
}

// TestFaultsOfOneRuleHaveAnOrder checks which of several faults in a rule counts, in either order,
// and that no quota is spent where the real service isn't asked.
func TestFaultsOfOneRuleHaveAnOrder(t *testing.T) {
	drop, raw, status := hubtest.Drop(), hubtest.Raw(501, "HTTP/1.1 501 Raw\r\n\r\n"), hubtest.Status(502, "")
	for name, row := range map[string]struct {
		first, second hubtest.Fault
		status        int // 0: no response
	}{
		"drop and raw":    {drop, raw, 0},
		"drop and status": {drop, status, 0},
		"raw and status":  {raw, status, 501},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
				c, _, _ := faulty(t, hub, rt)
				for _, list := range [][]hubtest.Fault{{row.first, row.second}, {row.second, row.first}} {
					rule := hub.Inject(hubtest.Match{Kind: "manifests"}, list...)
					a, err := c.tryGet("GET", faultyRepo, "manifests/1")
					if (err != nil) != (row.status == 0) || err == nil && a.StatusCode != row.status {
						t.Errorf("%v, %v", a.Response, err)
					}
					rule.Remove()
				}
				if n := hub.Used(""); n != 0 {
					t.Errorf("%d pulls of the quota are spent", n)
				}
			})
		})
	}
}
