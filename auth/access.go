package auth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

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
// be read, or the registry wants none, it sends an anonymous HEAD for the tag "latest":
// 200, 204, 307, 308 and 404 mean Public, 401 and 403 mean Private.
//
// Calls for one repository at the same time share their requests, and the token is cached.
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
	result := t.checks.DoChan(repository, func() (any, error) {
		return t.checkAccess(repository)
	})
	select {
	case r := <-result:
		return r.Val.(Visibility), r.Err
	case <-ctx.Done():
		return Unknown, ctx.Err()
	}
}

// Learn asks the registry's /v2/ which credentials it wants, unless that is known, so that
// the first request need not find out. It doesn't send the credential. Errors are those of
// Base.
func (t *Transport) Learn() error {
	if t.challenges.known() != nil || t.Registry == nil {
		return nil
	}
	_, err := t.sendAnonymous(http.MethodGet, "", "")
	return err
}

// checkAccess is Access without its sharing.
func (t *Transport) checkAccess(repository string) (Visibility, error) {
	if t.challenges.known() == nil {
		resp, err := t.sendAnonymous(http.MethodGet, "", "")
		if err != nil {
			return Unknown, err
		}
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
			return Unknown, t.unexpected(resp)
		}
	}
	c := t.challenges.known()
	v, err := t.checkUnder(c, repository)
	// A registry whose /v2/ is open may still want a token for this repository.
	if now := t.challenges.known(); c == nil && now != nil && v == Private {
		return t.checkUnder(now, repository)
	}
	return v, err
}

// checkUnder checks once, in the way that challenge c allows.
func (t *Transport) checkUnder(c *Challenge, repository string) (Visibility, error) {
	if c == nil || c.Scheme != "bearer" {
		return t.checkByHead(repository, "")
	}
	r, err := t.tokenRequest(c, pull(repository))
	if err != nil {
		return Unknown, err
	}
	k, _, err := t.tokens.token(context.Background(), r) // ends within fetchTimeout
	if err != nil {
		return Unknown, err
	}
	if k.value == "" {
		return Private, nil
	}
	if v, ok := checkByToken(k.value, repository); ok {
		return v, nil
	}
	return t.checkByHead(repository, "Bearer "+k.value)
}

// checkByHead asks for the tag "latest", with this value of Authorization.
func (t *Transport) checkByHead(repository, authorization string) (Visibility, error) {
	resp, err := t.sendAnonymous(http.MethodHead, repository+"/manifests/latest", authorization)
	if err != nil {
		return Unknown, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNoContent, http.StatusNotFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return Public, nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return Private, nil
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
// from a 401. The body of the response is closed.
func (t *Transport) sendAnonymous(method, path, authorization string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	u := *t.Registry
	u.Path, u.RawPath, u.RawQuery = strings.TrimSuffix(u.Path, "/")+"/v2/"+path, "", ""
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.base().RoundTrip(withAuthorization(req, authorization))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Registry.Host, err)
	}
	drain(resp)
	if resp.StatusCode == http.StatusUnauthorized {
		t.challenges.learn(resp.Header)
	}
	return resp, nil
}

// drain reads a small body to its end, so that the connection can be used again, and closes it.
func drain(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// checkByToken reads whether a token allows to pull repository. ok is false if the token is
// not a JWT, or its access claim isn't what the token specification says.
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
	var body *struct {
		Access []struct {
			Type    string   `json:"type"`
			Name    string   `json:"name"`
			Actions []string `json:"actions"`
		} `json:"access"`
	}
	if json.Unmarshal(payload, &body) != nil || body == nil {
		return Unknown, false
	}
	for _, a := range body.Access {
		if a.Type == "repository" && a.Name == repository && (slices.Contains(a.Actions, "pull") || slices.Contains(a.Actions, "*")) {
			return Public, true
		}
	}
	return Private, true
}
