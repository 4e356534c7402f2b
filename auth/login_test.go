package auth

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRefusedCredentialIsNotTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		up.tokens = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != basicOf("good") {
				return reply(401, `{"details":"incorrect username or password"}`)
			}
			return up.issue(r)
		}
		f, path := secretFile(t, "bad")
		tr, log := transport(up, f)
		refused := func(scope int) {
			_, err := get(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", scope))
			re, ok := errors.AsType[*RefusedError](err)
			if !ok || re.Username != "someone" || re.Host != "auth.docker.io" {
				t.Fatalf("%d: %v; want a RefusedError", scope, err)
			}
		}
		var wg sync.WaitGroup
		for i := range 500 { // together
			wg.Go(func() { refused(i) })
		}
		wg.Wait()
		for i := range 500 { // and spread over most of a minute
			refused(i)
			time.Sleep(100 * time.Millisecond)
		}
		if got := up.takeRequests("TOKEN"); len(got) != 1 {
			t.Errorf("%d attempts with a refused credential in a minute", len(got))
		}
		if n := strings.Count(log.String(), "ERROR"); n != 1 {
			t.Errorf("logged %d times: %s", n, log)
		}
		time.Sleep(15 * time.Second)
		for i := range 100 {
			wg.Go(func() { refused(i) })
		}
		wg.Wait()
		if got := up.takeRequests("TOKEN"); len(got) != 1 {
			t.Errorf("%d attempts in the second minute", len(got))
		}
		write(t, path, "good\n")
		if err := f.Reload(); err != nil {
			t.Fatal(err)
		}
		want(t, tr, redis, 200)
		if s := tr.Stats(); s != (Stats{OK: 1, Denied: 2}) {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestReplacedCredentialIsTriedWithoutReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		up.tokens = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != basicOf("good") {
				return reply(401, "")
			}
			return up.issue(r)
		}
		f, path := secretFile(t, "bad")
		tr, _ := transport(up, f)
		if _, err := get(t, tr, redis); err == nil {
			t.Fatal("not refused")
		}
		write(t, path, "good")
		time.Sleep(checkInterval)
		want(t, tr, redis, 200)
	})
}

// After the credential was revoked, cached tokens are used until they expire.
func TestRevokedCredentialIsTriedOnceAndCachedTokensStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		f, _ := secretFile(t, secretText)
		tr, _ := transport(up, f)
		want(t, tr, redis, 200)
		up.takeRequests("")
		time.Sleep(2 * time.Minute)
		up.tokens = always(401, "")
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { get(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", i)) })
		}
		wg.Wait()
		want(t, tr, redis, 200)
		if got := up.takeRequests("TOKEN"); len(got) != 1 {
			t.Errorf("%d attempts", len(got))
		}
	})
}

func TestChangedCredentialAsksAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		f, path := secretFile(t, "one")
		tr, _ := transport(up, f)
		want(t, tr, redis, 200)
		write(t, path, "two")
		f.Reload()
		want(t, tr, redis, 200)
		if got := up.takeRequests("TOKEN"); len(got) != 2 {
			t.Errorf("the account changed and its tokens did not: %q", got)
		}
	})
}

func TestMissingCredentialIsNoAnonymousRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		tr, _ := transport(up, NewFile("someone", t.TempDir()+"/none"))
		_, err := get(t, tr, redis)
		if _, ok := errors.AsType[*FileError](err); !ok {
			t.Errorf("%v; want a FileError", err)
		}
		up.wantRequests(t, "TOKEN") // an anonymous one would silently use another quota
	})
}

func TestBasicPasswordIsTriedOnceUntilItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := newFakeUpstream()
		up.scheme = "Basic"
		f, path := secretFile(t, "bad")
		tr, _ := transport(up, f)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := get(t, tr, redis); err == nil || !strings.Contains(err.Error(), "registry-1.docker.io refused") {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
		if got := up.takeRequests("GET"); len(got) != 101 { // a 401 for each, and one with the password
			t.Errorf("%d requests", len(got))
		}
		write(t, path, secretText)
		f.Reload()
		want(t, tr, redis, 200)
		up.wantRequests(t, "", "GET registry-1.docker.io"+redis)
		// After a success with the password, a 401 is about the repository.
		up.registry = func(*http.Request) *http.Response { return up.challenge() }
		want(t, tr, redis, 401)
		up.registry = nil
		want(t, tr, redis, 200)

		tr, _ = transport(up, nil)
		up.takeRequests("")
		want(t, tr, redis, 401)
		up.wantRequests(t, "", "GET registry-1.docker.io"+redis)
	})
}
