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
	Unknown Visibility = iota // nothing learned; comes with an error
	Public                    // everybody
	Private                   // not everybody, or nobody: registries don't tell the two apart
)

func (v Visibility) String() string {
	return [...]string{"unknown", "public", "private"}[min(v, Private)]
}

// Access finds out whether an anonymous client may pull repository ("library/redis"),
// and never sends the credential. The access claim of an anonymous token tells; where a
// token can't be read, or the registry wants none, an anonymous HEAD of the tag "latest"
// does: 2xx, 307, 308 and 404 are Public, 401 and 403 Private.
//
// Calls for one repository at the same time share their requests, and the token is
// cached; the verdict is the caller's to keep.
//
// Whatever else happens is an error and no verdict: *ThrottledError (by the token
// service, or by the registry to the HEAD), *TokenError, the context's, or a plain one
// that names what the registry did.
func (t *Transport) Access(ctx context.Context, repository string) (Visibility, error) {
	t.init()
	if !name.ValidRepository(repository) || t.Registry == nil {
		return Unknown, fmt.Errorf("auth: %q is not a repository name", repository)
	}
	flight := t.flights.DoChan("access\n"+repository, func() (any, error) {
		return t.verdict(repository)
	})
	select {
	case r := <-flight:
		return r.Val.(Visibility), r.Err
	case <-ctx.Done():
		return Unknown, ctx.Err()
	}
}

// Learn asks the registry at its front door how it challenges, unless that is known, so that
// the first request need not find out. It sends no credential. Errors: those of Base.
func (t *Transport) Learn() error {
	t.init()
	if t.known() != nil || t.Registry == nil {
		return nil
	}
	_, err := t.anonymous(http.MethodGet, "", "")
	return err
}

func (t *Transport) verdict(repository string) (Visibility, error) {
	if t.known() == nil {
		resp, err := t.anonymous(http.MethodGet, "", "")
		if err != nil {
			return Unknown, err
		}
		if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
			return Unknown, t.unsettled(resp)
		}
	}
	c := t.known()
	v, err := t.judge(c, repository)
	// A registry open at its front door may still want a token for this repository.
	if now := t.known(); c == nil && now != nil && v == Private {
		return t.judge(now, repository)
	}
	return v, err
}

// judge asks once, as challenge c wants it.
func (t *Transport) judge(c *Challenge, repository string) (Visibility, error) {
	if c == nil || c.Scheme != "bearer" {
		return t.probe(repository, "")
	}
	n, err := t.need(c, pull(repository))
	if err != nil {
		return Unknown, err
	}
	k, _, err := t.token(context.Background(), n) // ends within fetchTimeout
	if err != nil {
		return Unknown, err
	}
	if k.value == "" {
		return Private, nil
	}
	if v, ok := claims(k.value, repository); ok {
		return v, nil
	}
	return t.probe(repository, "Bearer "+k.value)
}

// probe settles what no token tells.
func (t *Transport) probe(repository, bearer string) (Visibility, error) {
	resp, err := t.anonymous(http.MethodHead, repository+"/manifests/latest", bearer)
	if err != nil {
		return Unknown, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusNoContent, http.StatusNotFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return Public, nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return Private, nil
	}
	return Unknown, t.unsettled(resp)
}

// unsettled is the error for an answer that tells nothing about access. The registry's
// 429 is not the token service's: no cool-down comes of it here.
func (t *Transport) unsettled(resp *http.Response) error {
	if resp.StatusCode != http.StatusTooManyRequests {
		return fmt.Errorf("%s answered %s to an anonymous request", t.Registry.Host, resp.Status)
	}
	c := newThrottled()
	now := time.Now()
	c.start(resp.Header.Get("Retry-After"), false, now)
	return c.check(t.Registry.Host, now)
}

// anonymous asks the registry for something below /v2/ without the credential, and
// learns from a 401. The body is closed.
func (t *Transport) anonymous(method, path, bearer string) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	u := *t.Registry
	u.Path, u.RawPath, u.RawQuery = strings.TrimSuffix(u.Path, "/")+"/v2/"+path, "", ""
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.base().RoundTrip(with(req, bearer))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Registry.Host, err)
	}
	drain(resp)
	if resp.StatusCode == http.StatusUnauthorized {
		t.learn(resp.Header)
	}
	return resp, nil
}

// drain reads what there is of a small body, so that the connection can be used again.
func drain(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// claims reads a token's access claim; ok is false when the token is not a JWT, or the
// claim not what the token specification says. The signature is the registry's business:
// the token came from its own token service, and what is read here grants nothing there.
func claims(jwt, repository string) (v Visibility, ok bool) {
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
