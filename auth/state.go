package auth

import "time"

// CredentialState says in one word what is known of a credential. A fault of its file is one,
// too: CredentialState(FileMissing) and so on.
type CredentialState string

// The states beside those of the file.
const (
	CredentialNone      CredentialState = "none"      // requests are anonymous
	CredentialUntried   CredentialState = "untried"   // not sent yet
	CredentialAccepted  CredentialState = "accepted"  // the last attempt was accepted
	CredentialRefused   CredentialState = "refused"   // the last attempt was refused
	CredentialExpired   CredentialState = "expired"   // refused, since it has expired
	CredentialThrottled CredentialState = "throttled" // the token service limits requests, and isn't asked for now
)

// CredentialStatus is what is known of the credential of a Transport.
type CredentialStatus struct {
	State CredentialState
	// Detail says what is wrong with the file, without its name and without its content; "" when
	// nothing is.
	Detail string
	// Usable says that there is a secret to send: with a fault of the file, an earlier one.
	Usable bool
	// Exposed says that every user of the machine may read the file.
	Exposed bool
}

// CredentialStatus returns what is known of the credential. It asks nothing of the network.
func (t *Transport) CredentialStatus() CredentialStatus {
	if t.Credential == nil {
		return CredentialStatus{State: CredentialNone}
	}
	t.init()
	fault, detail, version := t.Credential.look()
	s := CredentialStatus{Detail: detail, Usable: version != 0, Exposed: t.Credential.Exposed()}
	switch {
	case fault != "":
		s.State = CredentialState(fault)
	case t.tokens.limited(time.Now()):
		s.State = CredentialThrottled
	default:
		s.State = t.login.state(version)
	}
	return s
}

// limited reports whether the token service isn't asked now because it limits requests.
func (s *tokenSource) limited(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.throttled.pause.Left(now) > 0
}
