package admin

import (
	"context"
	"errors"
	"net/http"
	"path"
	"time"

	"github.com/hubcache/hubcache/inventory"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/quarantine"
	"github.com/hubcache/hubcache/registry"
)

// Quarantine knows the tags that name what has to wait. *registry.Registry implements it.
type Quarantine interface {
	// Waiting returns what a tag of a repository ("docker.io/library/redis") names and clients don't
	// get yet, or nil.
	Waiting(repository, tag string) *quarantine.Waiting
	// EachWaiting calls f for all such tags, in order.
	EachWaiting(f func(repository, tag string, w quarantine.Waiting))
	// Release lets clients have what a tag names now. Errors: quarantine.ErrUnknown; that the registry
	// isn't configured.
	Release(context.Context, name.Reference) (registry.Released, error)
}

// Quarantined is the document of GET /api/v1/quarantine.
type Quarantined struct {
	Schema  int       `json:"schema"`
	Waiting []Waiting `json:"waiting"` // by reference; never null
}

// Waiting is a tag that names what clients don't get yet.
type Waiting struct {
	Reference string    `json:"reference"` // whole: docker.io/library/redis:7
	Digest    string    `json:"digest"`    // that has to wait
	Until     time.Time `json:"until"`
}

// Released is the answer to DELETE /api/v1/quarantine/<reference>.
type Released struct {
	Schema    int    `json:"schema"`
	Reference string `json:"reference"` // whole
	Digest    string `json:"digest"`    // that clients get from now on
}

// waiting returns the tags that wait and match the pattern of a list and its prefix.
func (a *admin) waiting(pattern, prefix string) []Waiting {
	all := []Waiting{}
	if a.Quarantine == nil {
		return all
	}
	a.Quarantine.EachWaiting(func(repository, tag string, w quarantine.Waiting) {
		if i := (inventory.Image{Repository: repository, Tag: tag, Digest: w.Digest}); i.Match(pattern) && i.HasPrefix(prefix) {
			all = append(all, Waiting{i.Reference(), w.Digest.String(), w.Until.UTC()})
		}
	})
	return all
}

// quarantined answers with all tags that wait.
func (a *admin) quarantined(w http.ResponseWriter, req *http.Request) {
	pattern := req.URL.Query().Get("pattern")
	if _, err := path.Match(pattern, ""); err != nil {
		refuse(http.StatusBadRequest, "pattern: "+err.Error()).ServeHTTP(w, req)
		return
	}
	writeJSON(w, http.StatusOK, Quarantined{Schema, a.waiting(pattern, "")})
}

// release lets through what a tag names.
func (a *admin) release(w http.ResponseWriter, req *http.Request) error {
	ref, err := referenceIn(req)
	if err != nil {
		return err
	}
	if ref.Tag == "" {
		return faultf(http.StatusBadRequest, "%s: a digest never waits, tags do", ref)
	}
	done, err := a.Quarantine.Release(req.Context(), ref)
	if errors.Is(err, quarantine.ErrUnknown) {
		if err := a.unserved(ref); err != nil {
			return err
		}
		return faultf(http.StatusNotFound, "%s: %w", ref, err)
	}
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, Released{Schema, done.Reference.String(), done.Digest.String()})
	return nil
}
