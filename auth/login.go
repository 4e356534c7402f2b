package auth

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// refusedPause is the time between two attempts with a refused credential. If they
	// come faster, Docker Hub answers "too many failed login attempts" for hours.
	refusedPause = time.Minute
	// acceptedFor is how long after a success requests with the credential are sent side by
	// side. Before the first success, and after an idle time in which the credential may
	// have been revoked, one is sent alone: a thousand together could be a thousand failed
	// logins.
	acceptedFor = time.Minute
)

// login knows whether the credential works, and limits how often one that may not work is
// tried. All methods are safe for concurrent use.
type login struct {
	file *File        // of the credential; nil: there is none, and no method is called
	log  *slog.Logger // receives refusals

	exclusive chan struct{} // holds one value while a credential that may not work is tried

	mu       sync.Mutex // guards what follows; no other lock is taken under it
	version  uint64     // of the credential that the times below are about
	accepted time.Time  // the last success; zero: none, or refused since
	refused  time.Time  // no attempt before this time; zero: not refused
	turned   bool       // the last attempt was refused, however long ago
	expired  bool       // the refusal said that the token has expired
}

func newLogin(file *File, log *slog.Logger) *login {
	return &login{file: file, log: log, exclusive: make(chan struct{}, 1)}
}

// acquire waits until a request with cred may be sent to host. The caller must call release
// when it knows how the request ended. The error is a *RefusedError, or that of ctx.
func (l *login) acquire(ctx context.Context, host string, cred Credential) (release func(), err error) {
	if works, err := l.works(host, cred); works || err != nil {
		return func() {}, err
	}
	select {
	case l.exclusive <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	release = func() { <-l.exclusive }
	// The request before this one may have settled it.
	works, err := l.works(host, cred)
	if works || err != nil {
		release()
		return func() {}, err
	}
	return release, nil
}

// works reports whether cred was accepted lately. It returns a *RefusedError while cred must
// not be tried.
func (l *login) works(host string, cred Credential) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cred.Version > l.version {
		l.version, l.accepted, l.refused, l.turned, l.expired = cred.Version, time.Time{}, time.Time{}, false, false
	}
	now := time.Now()
	if now.Before(l.refused) {
		return false, &RefusedError{Username: cred.Username, Host: host, Until: l.refused, Expired: l.expired}
	}
	return !l.accepted.IsZero() && now.Sub(l.accepted) < acceptedFor, nil
}

// accept records a success with cred.
func (l *login) accept(cred Credential) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cred.Version == l.version {
		l.accepted, l.refused, l.turned, l.expired = time.Now(), time.Time{}, false, false
	}
}

// wasAccepted reports whether this version of cred has ever worked, and wasn't refused since.
func (l *login) wasAccepted(cred Credential) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cred.Version == l.version && !l.accepted.IsZero()
}

// refuse records that host refused cred, and logs it. said is what the host answered: Docker Hub
// says "personal access token is expired". It returns a *RefusedError.
func (l *login) refuse(host string, cred Credential, said []byte) error {
	expired := bytes.Contains(bytes.ToLower(said), []byte("expired"))
	err := &RefusedError{Username: cred.Username, Host: host, Until: time.Now().Add(refusedPause), Expired: expired}
	l.mu.Lock()
	if cred.Version == l.version {
		l.accepted, l.refused, l.turned, l.expired = time.Time{}, err.Until, true, expired
	}
	l.mu.Unlock()
	why := "was refused"
	if expired {
		why = "has expired"
	}
	l.log.Error("the access token "+why+": create a new one and put it in the password file; it is picked up within seconds",
		"user", cred.Username, "host", host, "password_file", l.file.Path(), "next_attempt", err.Until)
	return err
}

// state says of the newest credential how its last attempt ended.
func (l *login) state(version uint64) CredentialState {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case version != l.version:
		return CredentialUntried
	case l.expired:
		return CredentialExpired
	case l.turned:
		return CredentialRefused
	case l.accepted.IsZero():
		return CredentialUntried
	}
	return CredentialAccepted
}
