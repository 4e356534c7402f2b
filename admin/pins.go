package admin

import (
	"errors"
	"io/fs"
	"net/http"
	"time"

	"github.com/gorilla/mux"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// Pins is the document of GET /api/v1/pins, the oldest pin first.
type Pins struct {
	Schema      int   `json:"schema"`
	Pins        []Pin `json:"pins"`         // never null
	PinnedBytes int64 `json:"pinned_bytes"` // on disk, of all pinned images; what they share counts once
	LimitBytes  int64 `json:"limit_bytes"`  // that may be pinned
}

// Pin is a pinned image. Sizes are in bytes.
type Pin struct {
	Reference string    `json:"reference"`     // whole: docker.io/library/redis:7, or with @ and the digest
	Digest    string    `json:"digest"`        // of its index, or of its one manifest
	Bytes     int64     `json:"bytes"`         // all that is cached of it
	Missing   int64     `json:"missing_bytes"` // what isn't, of the platforms that are cached
	Protected bool      `json:"protected"`     // false: it can be evicted, because the pins take more than they may, or nothing of it is here
	Since     time.Time `json:"since"`
}

// Pinned is the answer to PUT /api/v1/pins/<reference>.
type Pinned struct {
	Schema int `json:"schema"`
	Pin
}

// Unpinned is the answer to DELETE /api/v1/pins/<reference>.
type Unpinned struct {
	Schema    int    `json:"schema"`
	Reference string `json:"reference"` // whole
}

func pinOf(p storage.PinState) Pin {
	return Pin{Reference: p.Reference(), Digest: p.Digest.String(), Bytes: p.Cached, Missing: p.Missing, Protected: p.Protected, Since: p.Since.UTC()}
}

// pins answers with all pins.
func (a *admin) pins(w http.ResponseWriter, req *http.Request) {
	all, err := a.Cache.Pins()
	if err != nil {
		refuse(http.StatusInternalServerError, err.Error()).ServeHTTP(w, req)
		return
	}
	doc := Pins{Schema: Schema, Pins: []Pin{}, PinnedBytes: a.Cache.Stats().PinnedBytes, LimitBytes: a.Cache.PinLimit()}
	for _, p := range all {
		doc.Pins = append(doc.Pins, pinOf(p))
	}
	writeJSON(w, http.StatusOK, doc)
}

// pin pins an image.
func (a *admin) pin(w http.ResponseWriter, req *http.Request) error {
	ref, err := referenceIn(req)
	if err != nil {
		return err
	}
	p, err := a.Cache.Pin(ref.Repository, ref.Tag, ref.Digest)
	_, large := errors.AsType[*storage.PinTooLarge](err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return a.notCached(ref, "pull it first")
	case large || errors.Is(err, storage.ErrTooManyPins):
		return fault{http.StatusConflict, err}
	case err != nil:
		return err
	}
	writeJSON(w, http.StatusOK, Pinned{Schema, pinOf(p)})
	return nil
}

// unpin takes a pin back.
func (a *admin) unpin(w http.ResponseWriter, req *http.Request) error {
	ref, err := referenceIn(req)
	if err != nil {
		return err
	}
	p, err := a.Cache.Unpin(ref.Repository, ref.Tag, ref.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		return faultf(http.StatusNotFound, "%s is not pinned", ref)
	}
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, Unpinned{Schema, p.Reference()})
	return nil
}

// referenceIn reads the reference at the end of the path.
func referenceIn(req *http.Request) (name.Reference, error) {
	ref, err := name.ParseReference(mux.Vars(req)["reference"])
	if err != nil {
		return ref, fault{http.StatusBadRequest, err}
	}
	return ref, nil
}

// notCached says that an image isn't cached, and what to do, or that it can't be.
func (a *admin) notCached(ref name.Reference, todo string) error {
	if err := a.unserved(ref); err != nil {
		return err
	}
	return faultf(http.StatusNotFound, "%s is not cached: %s", ref, todo)
}

// unserved is the error for an image of a registry that isn't configured, nil for others.
func (a *admin) unserved(ref name.Reference) error {
	if a.Unserved == nil {
		return nil
	}
	if err := a.Unserved(ref); err != nil {
		return faultf(http.StatusNotFound, "%s: %w", ref, err)
	}
	return nil
}

// allowed returns the methods that a router has a handler for at the path of a request.
func allowed(m *mux.Router, req *http.Request) (methods []string) {
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete} {
		other := *req
		other.Method = method
		var match mux.RouteMatch
		if m.Match(&other, &match) && match.MatchErr == nil {
			methods = append(methods, method)
		}
	}
	return methods
}
