package auth

import (
	"context"
	"time"
)

const (
	// refusedPause is the time between two attempts with a refused credential: Docker
	// Hub answers "too many failed login attempts" for hours when they come faster.
	refusedPause = time.Minute
	// acceptedFor is how long a success lets requests with the credential go out side by
	// side. Before the first one, and after an idle time in which the credential may have
	// been revoked, one goes alone: a thousand at once would be a thousand failed logins.
	acceptedFor = time.Minute
)

// login is what is known about one version of the credential. The Transport's mutex guards it.
type login struct {
	version  uint64
	accepted time.Time // of the last success; zero: none, or refused since
	refused  time.Time // no attempt before; zero: not refused
}

// enter waits until a request with cred may go out, and returns what to call when its
// outcome is known. It fails with a *RefusedError or the context's error.
func (t *Transport) enter(ctx context.Context, host string, cred Credential) (leave func(), err error) {
	if sure, err := t.admit(host, cred); sure || err != nil {
		return func() {}, err
	}
	select {
	case t.alone <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	leave = func() { <-t.alone }
	sure, err := t.admit(host, cred)
	if sure || err != nil {
		leave()
		return func() {}, err
	}
	return leave, nil
}

// admit reports whether cred is sure to be accepted, or fails while it is refused.
func (t *Transport) admit(host string, cred Credential) (sure bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cred.Version > t.login.version {
		t.login = login{version: cred.Version}
	}
	now := time.Now()
	if now.Before(t.login.refused) {
		return false, &RefusedError{Username: cred.Username, Host: host, Until: t.login.refused}
	}
	return !t.login.accepted.IsZero() && now.Sub(t.login.accepted) < acceptedFor, nil
}

// accept notes a success with cred.
func (t *Transport) accept(cred Credential) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cred.Version == t.login.version {
		t.login.accepted, t.login.refused = time.Now(), time.Time{}
	}
}

// wasAccepted reports whether cred has ever worked, in this version, without a refusal since.
func (t *Transport) wasAccepted(cred Credential) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return cred.Version == t.login.version && !t.login.accepted.IsZero()
}

// refuse notes that cred was refused, and says so loudly.
func (t *Transport) refuse(host string, cred Credential) error {
	err := &RefusedError{Username: cred.Username, Host: host, Until: time.Now().Add(refusedPause)}
	t.mu.Lock()
	if cred.Version == t.login.version {
		t.login.accepted, t.login.refused = time.Time{}, err.Until
	}
	t.mu.Unlock()
	t.log().Error("the access token was refused: create a new one and put it in the password file; it is picked up within seconds",
		"user", cred.Username, "host", host, "password_file", t.Credential.Path(), "next_attempt", err.Until)
	return err
}
