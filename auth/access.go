package auth

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hubcache/hubcache/answer"
	"github.com/hubcache/hubcache/name"
)

// Visibility says who may pull a repository.
type Visibility uint8

const (
	Unknown Visibility = iota // not found out; comes with an error
	Public                    // everybody may pull
	Private                   // not everybody may, or there is no such repository: registries don't tell which
)

// String returns "unknown", "public" or "private".
func (v Visibility) String() string {
	return [...]string{"unknown", "public", "private"}[min(v, Private)]
}

// Access finds out whether an anonymous client may pull repository, such as
// "library/redis". It never sends the credential.
//
// It gets an anonymous token and reads which actions the token allows. Where the token can't
// be read, or the registry wants none, it asks anonymously for the tag "latest": a success and
// a tag that isn't there mean Public, a repository that isn't there or may not be read means
// Private, as far as package answer finds them the registry's own.
//
// A refusal, by the token service or by the registry, means Private only while another
// repository that is known to be public is granted. A token that lacks the right to pull is no
// refusal, and neither is a registry's "insufficient_scope": they are about this repository.
//
// Calls for one repository at the same time share their requests, which end when none of
// them waits any more, and the token is cached.
// The result isn't: the caller keeps it.
//
// Every other outcome is Unknown and an error: *ThrottledError (429 from the token service,
// or from the registry to the HEAD), *TokenError, that of ctx, or a plain one that names
// what the registry did.
func (t *Transport) Access(ctx context.Context, repository string) (Visibility, error) {
	if t.Registry == nil || !name.ValidRepository(repository) {
		return Unknown, fmt.Errorf("auth: %q is not a repository name", repository)
	}
	t.init()
	v, err := t.checks.Do(ctx, repository, func(ctx context.Context) (Visibility, error) {
		return t.checkAccess(ctx, repository)
	})
	if err != nil {
		err = cmp.Or(ctx.Err(), err)
	}
	return v, err
}

// Learn asks the registry's /v2/ which credentials it wants, unless that is known, so that
// the first request need not find out. It doesn't send the credential. Errors are those of
// Base.
func (t *Transport) Learn() error {
	if t.challenges.known() != nil || t.Registry == nil {
		return nil
	}
	_, _, err := t.sendAnonymous(context.Background(), http.MethodGet, "", "")
	return err
}

// checkAccess is Access without its sharing.
func (t *Transport) checkAccess(ctx context.Context, repository string) (Visibility, error) {
	if t.challenges.known() == nil {
		resp, _, err := t.sendAnonymous(ctx, http.MethodGet, "", "")
		if err != nil {
			return Unknown, err
		}
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
			return Unknown, t.unexpected(resp)
		}
	}
	c := t.challenges.known()
	v, err := t.checkUnder(ctx, c, repository)
	// A registry whose /v2/ is open may still want a token for this repository.
	if now := t.challenges.known(); c == nil && now != nil && (v == Private || errors.Is(err, errRefused)) {
		c = now
		v, err = t.checkUnder(ctx, c, repository)
	}
	if !errors.Is(err, errRefused) {
		return v, err
	}
	granted := func(other string) (bool, error) {
		v, err := t.checkUnder(context.WithoutCancel(ctx), c, other) // the result is for others, too
		if errors.Is(err, errRefused) {
			err = nil
		}
		return v == Public, err
	}
	if t.visible.grant(repository, granted) {
		return Private, nil
	}
	return Unknown, err
}

// errRefused is the error for a registry's refusal that counts only while it grants another
// repository.
var errRefused = errors.New("the registry refuses, and there is no other repository that it grants")

// checkUnder checks in the way that challenge c allows. The error for a registry's refusal is
// errRefused.
func (t *Transport) checkUnder(ctx context.Context, c *Challenge, repository string) (v Visibility, err error) {
	defer func() {
		if v == Public {
			t.tokens.anonymous.saw(repository)
		}
	}()
	if c == nil || c.Scheme != "bearer" {
		return t.checkByHead(ctx, repository, "")
	}
	r, err := t.tokenRequest(c, pull(repository))
	if err != nil {
		return Unknown, err
	}
	for {
		k, _, err := t.tokens.token(ctx, r)
		if err != nil {
			return Unknown, err
		}
		if k.value == "" {
			return Private, nil
		}
		if v, ok := checkByToken(k.value, repository); ok {
			return v, nil
		}
		v, err := t.checkByHead(ctx, repository, "Bearer "+k.value)
		if !errors.Is(err, errInvalidToken) || !k.giveUp(time.Now()) {
			return v, err
		}
	}
}

// errInvalidToken is the error for a registry that doesn't know an anonymous token.
var errInvalidToken = errors.New("the registry doesn't know the token that its own token service has given")

// checkByHead asks for the tag "latest", with this value of Authorization. A HEAD whose answer
// doesn't tell, or says only that something is missing, is followed by a GET.
func (t *Transport) checkByHead(ctx context.Context, repository, authorization string) (Visibility, error) {
	latest := repository + "/manifests/latest"
	resp, a, err := t.sendAnonymous(ctx, http.MethodHead, latest, authorization)
	if s := a.Subject(); err == nil && resp.StatusCode >= 400 && (s == answer.Unclear || s == answer.Missing) {
		resp, a, err = t.sendAnonymous(ctx, http.MethodGet, latest, authorization)
	}
	if err != nil {
		return Unknown, err
	}
	if resp.StatusCode < 400 {
		return t.checkByHeader(resp)
	}
	switch a.Subject() {
	case answer.Missing:
		if strings.HasPrefix(answer.Code(a.Body), "NAME_") {
			return Private, nil // not the tag is missing, but the repository
		}
		return Public, nil
	case answer.Access:
		if a.Problem == "insufficient_scope" {
			return Private, nil // it knows the token, and what that is good for
		}
		return Unknown, errRefused
	case answer.Token:
		return Unknown, errInvalidToken
	}
	return Unknown, t.unexpected(resp)
}

// checkByHeader judges an answer of success to an anonymous request for a manifest. A captive
// portal answers so, too, and a repository must not become public by that.
func (t *Transport) checkByHeader(resp *http.Response) (Visibility, error) {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNoContent, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		h := resp.Header
		if answer.Marked(h) || h.Get("Docker-Content-Digest") != "" || strings.HasPrefix(h.Get("Content-Type"), "application/vnd.") {
			return Public, nil
		}
	}
	return Unknown, t.unexpected(resp)
}

// unexpected returns the error for an answer that says nothing about who may pull. A 429
// of the registry begins no pause here: the caller, who sends all other requests, does that.
func (t *Transport) unexpected(resp *http.Response) error {
	if resp.StatusCode != http.StatusTooManyRequests {
		return fmt.Errorf("%s answered %s to an anonymous request", t.Registry.Host, resp.Status)
	}
	limited := newThrottled()
	now := time.Now()
	limited.start(resp.Header.Get("Retry-After"), false, now)
	return limited.check(t.Registry.Host, now)
}

// sendAnonymous asks the registry for a path below /v2/ without the credential, and learns
// from a 401. The body of the response is closed. The answer says what an error is about; it
// is of no use for a status below 400.
func (t *Transport) sendAnonymous(ctx context.Context, method, path, authorization string) (*http.Response, answer.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	u := *t.Registry
	u.Path, u.RawPath, u.RawQuery = strings.TrimSuffix(u.Path, "/")+"/v2/"+path, "", ""
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, answer.Answer{}, err
	}
	resp, err := t.base().RoundTrip(withAuthorization(req, authorization))
	if err != nil {
		return nil, answer.Answer{}, fmt.Errorf("%s: %w", t.Registry.Host, err)
	}
	defer drain(resp)
	var a answer.Answer
	if resp.StatusCode >= 400 {
		resp.Request = req
		a = ReadAnswer(answer.Registry, resp)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		t.challenges.learn(resp.Header)
	}
	return resp, a, nil
}

// drain reads a small body to its end, so that the connection can be used again, and closes it.
func drain(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// checkByToken reads whether a token allows to pull repository. ok is false if the token is
// not a JWT, or its access claim isn't what the token specification says, or if it has none: there
// are registries that know by other means what a token is good for.
//
// The signature isn't checked: the token came from the registry's own token service, and
// grants nothing here.
func checkByToken(jwt, repository string) (v Visibility, ok bool) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return Unknown, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return Unknown, false
	}
	var body struct {
		Access json.RawMessage `json:"access"`
	}
	var access []struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	if json.Unmarshal(payload, &body) != nil || body.Access == nil || json.Unmarshal(body.Access, &access) != nil {
		return Unknown, false
	}
	for _, a := range access {
		if a.Type == "repository" && a.Name == repository && (slices.Contains(a.Actions, "pull") || slices.Contains(a.Actions, "*")) {
			return Public, true
		}
	}
	return Private, true
}
