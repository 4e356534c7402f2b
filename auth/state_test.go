package auth

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestCredentialStatus: the status follows what the token service and the file say, and stays
// until the next attempt.
func TestCredentialStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		answer := func(r *http.Request) *http.Response { return up.issue(r) }
		up.tokens = func(r *http.Request) *http.Response { return answer(r) }
		f, path := secretFile(t, "one")
		tr, log := transport(up, f)
		is := func(state CredentialState, usable bool) {
			t.Helper()
			if s := tr.CredentialStatus(); s.State != state || s.Usable != usable {
				t.Errorf("%+v; want %s, usable %v", s, state, usable)
			}
		}
		put := func(secret string) {
			t.Helper()
			write(t, path, secret)
			_ = f.Reload() // the status says what is wrong
		}
		is(CredentialUntried, true)
		want(t, tr, redis, 200)
		is(CredentialAccepted, true)

		answer = func(*http.Request) *http.Response { return reply(401, `{"details":"incorrect username or password"}`) }
		put("two")
		is(CredentialUntried, true)
		_, _ = get(t, tr, "/v2/library/a/manifests/1")
		is(CredentialRefused, true)
		time.Sleep(time.Hour) // it is still refused, although it may be tried again
		is(CredentialRefused, true)

		answer = func(*http.Request) *http.Response {
			return reply(401, `{"details":"personal access token is expired"}`)
		}
		put("three")
		_, err := get(t, tr, "/v2/library/b/manifests/1")
		is(CredentialExpired, true)
		if err == nil || !strings.Contains(err.Error(), "has expired") || !strings.Contains(log.String(), "has expired") {
			t.Errorf("error %v, log %s", err, log)
		}

		answer = func(*http.Request) *http.Response {
			return reply(429, `{"detail":"too many requests"}`)
		}
		put("four")
		_, _ = get(t, tr, "/v2/library/c/manifests/1")
		is(CredentialThrottled, true)
		time.Sleep(time.Hour)
		is(CredentialUntried, true)

		put("\"five\"")
		is(CredentialState(FileMalformed), true) // the one before stays in use
		put("")
		is(CredentialState(FileEmpty), true)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		_ = f.Reload()
		is(CredentialState(FileMissing), true)
		tr, _ = transport(up, NewFile("someone", path))
		is(CredentialState(FileMissing), false)
		tr, _ = transport(up, nil)
		is(CredentialNone, false)
	})
}

// TestCredentialStatusOfAnExposedFile: a file that everybody may read is known.
func TestCredentialStatusOfAnExposedFile(t *testing.T) {
	f, path := secretFile(t, "one")
	for mode, want := range map[os.FileMode]bool{0o400: false, 0o640: false, 0o644: true, 0o604: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_ = f.Reload() // for root it never fails, and the mode is seen in any case
		tr, _ := transport(newFakeUpstream(), f)
		if got := tr.CredentialStatus().Exposed; got != want {
			t.Errorf("mode %o: %v", mode, got)
		}
	}
}
