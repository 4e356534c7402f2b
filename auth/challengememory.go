package auth

import (
	"maps"
	"net/http"
	"sync"
)

// challengeMemory remembers how the registry asks for credentials, so that only the first
// request is sent without any. The zero value remembers nothing. All methods are safe for
// concurrent use.
type challengeMemory struct {
	mu   sync.Mutex // guards last; no other lock is taken under it
	last *Challenge // nil: the registry has sent none; never changed in place
}

// known returns the registry's challenge, or nil if it hasn't sent one yet. Callers must not
// change it. Two calls return the same pointer as long as the registry doesn't change its mind.
func (m *challengeMemory) known() *Challenge {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

// learn remembers the challenge in the header of a 401 and returns what is known now, as
// known does. If the header offers both Bearer and Basic, learn takes Bearer. It leaves out
// the scope, which is that of one request. A registry that wants tokens stays one: Basic is what
// a proxy in front of it wants, and what would give it our credential.
func (m *challengeMemory) learn(h http.Header) *Challenge {
	var best *Challenge
	for _, c := range ParseChallenges(h) {
		if c.Scheme == "bearer" && c.Params["realm"] != "" {
			best = &Challenge{Scheme: c.Scheme, Params: map[string]string{"realm": c.Params["realm"], "service": c.Params["service"]}}
			break
		}
		if c.Scheme == "basic" && best == nil {
			best = &Challenge{Scheme: c.Scheme}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if best != nil && best.Scheme == "basic" && m.last != nil && m.last.Scheme == "bearer" {
		return m.last
	}
	if best != nil && (m.last == nil || m.last.Scheme != best.Scheme || !maps.Equal(m.last.Params, best.Params)) {
		m.last = best
	}
	return m.last
}
