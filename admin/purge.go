package admin

import (
	"errors"
	"io/fs"
	"net/http"

	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/inventory"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// Purged is the answer to DELETE /api/v1/images/<reference> and /api/v1/blobs/<digest>. Sizes are in
// bytes on disk. With dry_run=1 it says what would be done.
type Purged struct {
	Schema     int      `json:"schema"`
	DryRun     bool     `json:"dry_run"`
	References []string `json:"references"`  // whole: images that are forgotten; empty for a blob
	Blobs      []string `json:"blobs"`       // digests of what leaves the disk
	Freed      int64    `json:"freed_bytes"` // their sizes; what is being read leaves when its readers are done
	Kept       int64    `json:"kept_bytes"`  // the part of the image that stays, because other images need it
	KeptFor    []string `json:"kept_for"`    // those images
	Partial    []string `json:"partial"`     // images that lack the blob from then on
	Unpinned   []string `json:"unpinned"`    // pins that were taken back
}

// purgeImage removes an image, but for what other images need.
func (a *admin) purgeImage(w http.ResponseWriter, req *http.Request) error {
	ref, err := referenceIn(req)
	if err != nil {
		return err
	}
	dry, unpin := flags(req)
	p, err := inventory.PlanPurge(req.Context(), a.Cache, ref, unpin)
	if errors.Is(err, fs.ErrNotExist) {
		if !dry {
			a.Forget(ref.Repository) // that the upstream hasn't got it, for example
		}
		return a.notCached(ref, "nothing is purged")
	}
	return a.purge(w, p, err, ref.String(), ref.Repository, dry)
}

// purgeBlob removes one blob or manifest, whatever needs it.
func (a *admin) purgeBlob(w http.ResponseWriter, req *http.Request) error {
	text := mux.Vars(req)["digest"]
	if !name.ValidDigest(text) {
		return faultf(http.StatusBadRequest, "%q is not a digest: it is sha256: and 64 digits, or sha512: and 128", text)
	}
	dry, unpin := flags(req)
	p, err := inventory.PlanPurgeBlob(req.Context(), a.Cache, digest.Digest(text), unpin)
	if errors.Is(err, fs.ErrNotExist) {
		return faultf(http.StatusNotFound, "%s is not cached: nothing is purged", text)
	}
	return a.purge(w, p, err, text, "", dry)
}

func flags(req *http.Request) (dry, unpin bool) {
	q := req.URL.Query()
	return q.Get("dry_run") == "1", q.Get("unpin") == "1"
}

// purge does what was planned, unless that failed or the run is dry, and answers. what is what the
// operator has named, of the repository; "" of a blob.
func (a *admin) purge(w http.ResponseWriter, p *inventory.Purge, err error, what, repository string, dry bool) error {
	if err == nil && !dry {
		err = p.Run(a.Cache)
		a.Forget(repository)
	}
	_, pinned := errors.AsType[*inventory.PinnedError](err)
	_, part := errors.AsType[*inventory.PartError](err)
	switch {
	case errors.Is(err, storage.ErrPinned):
		return faultf(http.StatusConflict, "%s: something of it has just been pinned: try again", what)
	case pinned || part:
		return faultf(http.StatusConflict, "%s: %w", what, err)
	case err != nil:
		return err
	}
	doc := Purged{
		Schema: Schema, DryRun: dry, References: list(p.References), Blobs: []string{}, Freed: p.Freed,
		Kept: p.Kept, KeptFor: list(p.KeptFor), Partial: list(p.Partial), Unpinned: list(p.Unpinned),
	}
	for _, d := range p.Blobs {
		doc.Blobs = append(doc.Blobs, d.String())
	}
	writeJSON(w, http.StatusOK, doc)
	return nil
}

// list is s, but never null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
