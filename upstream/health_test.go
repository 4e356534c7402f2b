package upstream

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// TestPullPauseIsTheCredentials: the pause after a 429 holds for the credential that met the
// limit. A new one begins with the first pause, an answer to the old one that comes late changes
// nothing for it, and requests without a credential have a limit of their own.
func TestPullPauseIsTheCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealth("hub")
		for range 4 {
			h.throttle(pulls, 0, 1)
			time.Sleep(throttleMost)
		}
		h.throttle(pulls, time.Hour, 1)
		if wait, _ := h.throttle(pulls, 0, 2); wait != throttleFirst {
			t.Errorf("the new credential pauses for %s", wait)
		}
		time.Sleep(throttleFirst)
		if err := h.admit(pulls, 2); err != nil {
			t.Errorf("the new credential: %v", err)
		}
		h.throttle(pulls, time.Hour, 1) // a request that was under way
		if err := h.admit(pulls, 2); err != nil {
			t.Errorf("the new credential, after a late answer to the old one: %v", err)
		}
		if s := h.state(2); s != "ok" {
			t.Error(s)
		}
		h.throttle(pulls, time.Hour, 0)
		if err := h.admit(pulls, 2); err != nil {
			t.Errorf("after an anonymous 429: %v", err)
		}
		if at := h.nextAttempt(2); !at.IsZero() {
			t.Errorf("the new credential is said to wait until %s", at)
		}
		h.throttle(pulls, time.Hour, 2)
		end := time.Now().Add(time.Hour)
		time.Sleep(time.Minute)
		if at := h.nextAttempt(2); !at.Equal(end) {
			t.Errorf("the next attempt is said to be at %s, want %s", at, end)
		}
		for _, version := range []uint64{0, 2} {
			if err := h.admit(pulls, version); err == nil {
				t.Errorf("version %d is let through", version)
			}
		}
	})
}

// TestFailuresAtOnceOpenTheBreakerOnce: requests that were under way together fail together. The
// breaker's pause is its first one, and only a probe that fails makes it longer.
func TestFailuresAtOnceOpenTheBreakerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealth("hub")
		down := &Error{Cause: Timeout}
		sent := time.Now()
		time.Sleep(4 * time.Second)
		for range 10 {
			h.failed(down, sent)
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(probeFirst)
		if err := h.admit(plain, 0); err != nil {
			t.Fatalf("no probe after the first pause: %v", err)
		}
		sent = time.Now()
		for range 2 {
			h.failed(down, sent)
		}
		if in := h.probeIn(); in != 2*probeFirst {
			t.Errorf("after a probe that failed, the next one is in %s", in)
		}
	})
}

// TestOnlyAPullEndsTheDoublingOfThePullLimit: HEADs of manifests don't count against the limit,
// so their success says nothing about it.
func TestOnlyAPullEndsTheDoublingOfThePullLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limited := true
		c, _ := fakeClient(t, func(req *http.Request) *http.Response {
			if limited && req.Method == http.MethodGet {
				return answerOf(req, 429, `{"errors":[{"code":"TOOMANYREQUESTS"}]}`)
			}
			return answerOf(req, 200, "{}", "Docker-Content-Digest", "sha256:00")
		})
		wait := func() time.Duration {
			_, err := c.Manifest(t.Context(), "library/x", "1")
			u, _ := errors.AsType[*Error](err)
			if u == nil || u.Cause != Throttled {
				t.Fatalf("not limited: %v", err)
			}
			time.Sleep(u.RetryAfter)
			return u.RetryAfter
		}
		head := func() {
			if _, err := c.Resolve(t.Context(), "library/x", Manifests, "1"); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []time.Duration{throttleFirst, 2 * throttleFirst, 4 * throttleFirst} {
			if got := wait(); got != want {
				t.Errorf("a pause of %s; want %s", got, want)
			}
			head()
		}
		limited = false
		if _, err := c.Manifest(t.Context(), "library/x", "1"); err != nil {
			t.Fatal(err)
		}
		limited = true
		if got := wait(); got != throttleFirst {
			t.Errorf("after a pull, a pause of %s", got)
		}
	})
}

// TestRefusalIsTheCredentials: that a credential was refused says nothing of the next one, and
// the answer to a request without it doesn't make it good.
func TestRefusalIsTheCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHealth("hub")
		h.credentialRefused(time.Now().Add(time.Minute), 1)
		if err := h.blobsBlocked(2); err != nil || h.state(2) != "ok" {
			t.Errorf("the new credential: %v, %s", err, h.state(2))
		}
		h.answered(0)
		if err := h.blobsBlocked(1); err == nil || h.state(1) != "denied" {
			t.Errorf("after an anonymous answer: %v, %s", err, h.state(1))
		}
		h.answered(1)
		if err := h.blobsBlocked(1); err != nil || h.state(1) != "ok" {
			t.Errorf("after an answer: %v, %s", err, h.state(1))
		}
	})
}
