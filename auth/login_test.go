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

func TestRefusedCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.tokens = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != basicOf("good") {
				return reply(401, `{"details":"incorrect username or password"}`)
			}
			return w.issue(r)
		}
		f, path := secretFile(t, "bad")
		tr, log := transport(w, f)
		refused := func(scope int) {
			_, err := get(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", scope))
			re, ok := errors.AsType[*RefusedError](err)
			if !ok || re.Username != "someone" || re.Host != "auth.docker.io" {
				t.Fatalf("%d: %v; want a RefusedError", scope, err)
			}
		}
		var wg sync.WaitGroup
		for i := range 500 { // at once
			wg.Go(func() { refused(i) })
		}
		wg.Wait()
		for i := range 500 { // and over most of a minute
			refused(i)
			time.Sleep(100 * time.Millisecond)
		}
		if got := w.saw("TOKEN"); len(got) != 1 {
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
		if got := w.saw("TOKEN"); len(got) != 1 {
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

func TestRefusedCredentialFileSeenOnUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.tokens = func(r *http.Request) *http.Response {
			if r.Header.Get("Authorization") != basicOf("good") {
				return reply(401, "")
			}
			return w.issue(r)
		}
		f, path := secretFile(t, "bad")
		tr, _ := transport(w, f)
		if _, err := get(t, tr, redis); err == nil {
			t.Fatal("not refused")
		}
		write(t, path, "good")
		time.Sleep(recheck)
		want(t, tr, redis, 200)
	})
}

// TestRevokedCredential: the tokens at hand go on; a new one is tried once a minute.
func TestRevokedCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, _ := secretFile(t, secretText)
		tr, _ := transport(w, f)
		want(t, tr, redis, 200)
		w.saw("")
		time.Sleep(2 * time.Minute)
		w.tokens = always(401, "")
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { get(t, tr, fmt.Sprintf("/v2/library/r%d/manifests/1", i)) })
		}
		wg.Wait()
		want(t, tr, redis, 200)
		if got := w.saw("TOKEN"); len(got) != 1 {
			t.Errorf("%d attempts", len(got))
		}
	})
}

func TestChangedCredentialAsksAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		f, path := secretFile(t, "one")
		tr, _ := transport(w, f)
		want(t, tr, redis, 200)
		write(t, path, "two")
		f.Reload()
		want(t, tr, redis, 200)
		if got := w.saw("TOKEN"); len(got) != 2 {
			t.Errorf("the account changed and its tokens did not: %q", got)
		}
	})
}

func TestNoCredentialFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		tr, _ := transport(w, NewFile("someone", t.TempDir()+"/none"))
		_, err := get(t, tr, redis)
		if _, ok := errors.AsType[*FileError](err); !ok {
			t.Errorf("%v; want a FileError", err)
		}
		w.requests(t, "TOKEN") // never anonymously instead: it would be the wrong quota, in silence
	})
}

func TestBasic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.scheme = "Basic"
		f, path := secretFile(t, "bad")
		tr, _ := transport(w, f)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := get(t, tr, redis); err == nil || !strings.Contains(err.Error(), "registry-1.docker.io refused") {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
		if got := w.saw("GET"); len(got) != 101 { // each its 401, and one with the password
			t.Errorf("%d requests", len(got))
		}
		write(t, path, secretText)
		f.Reload()
		want(t, tr, redis, 200)
		w.requests(t, "", "GET registry-1.docker.io"+redis)
		// A known user's 401 is about the repository.
		w.registry = func(*http.Request) *http.Response { return w.challenge() }
		want(t, tr, redis, 401)
		w.registry = nil
		want(t, tr, redis, 200)

		tr, _ = transport(w, nil)
		w.saw("")
		want(t, tr, redis, 401)
		w.requests(t, "", "GET registry-1.docker.io"+redis)
	})
}
