package auth

import (
	"net/http"
	"testing"
)

func TestChallengeMemoryPrefersBearerAndKeepsTheLast(t *testing.T) {
	var m challengeMemory
	if c := m.known(); c != nil {
		t.Fatalf("before the first 401: %v", c)
	}
	for _, step := range []struct{ header, want string }{
		{`Negotiate`, ``},
		{`Bearer service="s"`, ``}, // without a realm there is nowhere to ask
		{`Basic realm="x"`, `basic`},
		{`Basic realm="x", Bearer realm="https://a/token",service="s",scope="repository:x:pull"`, `bearer realm="https://a/token",service="s"`},
		{``, `bearer realm="https://a/token",service="s"`},
		{`Bearer realm="https://b/token"`, `bearer realm="https://b/token",service=""`},
	} {
		got := ""
		if c := m.learn(http.Header{"Www-Authenticate": {step.header}}); c != nil {
			got = c.String()
		}
		if got != step.want {
			t.Errorf("after %s: %s; want %s", step.header, got, step.want)
		}
	}
	before := m.known()
	if after := m.learn(http.Header{"Www-Authenticate": {before.String()}}); after != before {
		t.Error("the same challenge again is another pointer")
	}
}
