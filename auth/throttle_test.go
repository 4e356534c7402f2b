package auth

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"60": time.Minute, " 7 ": 7 * time.Second, "0": time.Second, "901": 15 * time.Minute, "99999999999999999999": 15 * time.Minute,
		"": 0, "-1": 0, "1.5": 0, "soon": 0,
		"Fri, 01 May 2026 12:01:00 GMT": time.Minute, "Fri, 01 May 2026 11:00:00 GMT": time.Second, "Sat, 02 May 2026 12:00:00 GMT": 15 * time.Minute,
	} {
		if got, ok := ParseRetryAfter(value, now); got != want || ok != (want != 0) {
			t.Errorf("%q: %s, %v; want %s", value, got, ok, want)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, s := range []string{"60", "0", "-1", " 7 ", "99999999999999999999", "1.5", "", "Fri, 01 May 2026 12:01:00 GMT", "Friday, 01-May-26 11:00:00 GMT", "Fri May  1 12:30:00 2026"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		wait, ok := ParseRetryAfter(value, now)
		if ok && (wait < minPause || wait > maxPause) || !ok && wait != 0 {
			t.Errorf("%q: %s, %v", value, wait, ok)
		}
		// Written as a date, it means the same.
		if again, ok2 := ParseRetryAfter(now.Add(wait).Format(http.TimeFormat), now); ok && (!ok2 || again != wait.Truncate(time.Second)) {
			t.Errorf("%q: %s, as a date %s", value, wait, again)
		}
	})
}

func TestThrottledTokenServiceIsNotAskedDuringThePause(t *testing.T) {
	malformed := func(line string) error {
		_, err := http.ReadResponse(rawReader("HTTP/1.1 429 Too Many Requests\n" + line + "\n"))
		return fmt.Errorf("net/http: HTTP/1.x transport connection broken: %w", err)
	}
	for name, c := range map[string]struct {
		answer func(*http.Request) *http.Response
		fail   error
		wait   time.Duration
		abuse  bool
	}{
		"seconds":    {always(429, "{}", "Retry-After", "17"), nil, 17 * time.Second, false},
		"date":       {always(429, "{}", "Retry-After", "Sat, 01 Jan 2000 00:01:40 GMT"), nil, 100 * time.Second, false},
		"a day":      {always(429, "{}", "Retry-After", "86400"), nil, 15 * time.Minute, false},
		"none":       {always(429, "{}"), nil, time.Minute, false},
		"nonsense":   {always(429, "{}", "Retry-After", "soon"), nil, time.Minute, false},
		"abuse":      {always(429, "Too Many Requests (HAP429).", "Retry-After", "60"), nil, time.Minute, true},
		"abuse, raw": {nil, malformed("Too Many Requests (HAP429)."), time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up := newFakeUpstream()
				up.latency = 0
				f, _ := secretFile(t, secretText)
				tr, _ := transport(up, f)
				want(t, tr, redis, 200)
				up.takeRequests("")
				up.tokens, up.fail = c.answer, c.fail
				// The clock of a bubble starts at 2000-01-01, midnight UTC.
				start := time.Now()
				for range 3 {
					_, err := get(t, tr, "/v2/library/nginx/manifests/1")
					te, ok := errors.AsType[*ThrottledError](err)
					if !ok || te.Host != "auth.docker.io" || te.RetryAfter != c.wait || !te.Until.Equal(start.Add(c.wait)) {
						t.Fatalf("%#v; want %s", err, c.wait)
					}
					if te.Abuse != c.abuse || IsAbuseLimit(err) != c.abuse {
						t.Errorf("abuse limit: %v", te.Abuse)
					}
				}
				want(t, tr, redis, 200) // cached tokens still work
				up.wantRequests(t, "TOKEN", "TOKEN basic repository:library/nginx:pull")
				up.tokens, up.fail = nil, nil
				time.Sleep(c.wait - time.Millisecond)
				if _, err := get(t, tr, "/v2/library/nginx/manifests/1"); err == nil {
					t.Error("asked during the pause")
				}
				time.Sleep(time.Millisecond)
				want(t, tr, "/v2/library/nginx/manifests/1", 200)
				if s := tr.Stats(); s.Throttled != 1 {
					t.Errorf("stats %+v", s)
				}
			})
		})
	}
}

func TestPauseDoublesUntilASuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		up.latency = 0
		tr, _ := transport(up, nil)
		scope := 0
		ask := func() error {
			scope++
			_, err := get(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", scope))
			return err
		}
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		up.tokens = always(429, "")
		for _, minutes := range []time.Duration{1, 2, 4, 8, 15, 15} {
			te, ok := errors.AsType[*ThrottledError](ask())
			if !ok || te.RetryAfter != minutes*time.Minute {
				t.Fatalf("%v; want %d min", te, minutes)
			}
			time.Sleep(te.RetryAfter)
		}
		up.tokens = nil
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		up.tokens = always(429, "")
		if te, _ := errors.AsType[*ThrottledError](ask()); te == nil || te.RetryAfter != time.Minute {
			t.Errorf("after a success: %v; want a minute", te)
		}
		// Requests under way together count once: the pause doubles once.
		time.Sleep(time.Minute)
		up.latency = time.Second
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() { get(t, tr, fmt.Sprintf("/v2/library/s%d/manifests/1", i)) })
		}
		wg.Wait()
		if te, _ := errors.AsType[*ThrottledError](ask()); te == nil || te.RetryAfter != 2*time.Minute {
			t.Errorf("after ten 429s at once: %v; want two minutes", te)
		}
	})
}

func rawReader(text string) (*bufio.Reader, *http.Request) {
	return bufio.NewReader(strings.NewReader(text)), nil
}
