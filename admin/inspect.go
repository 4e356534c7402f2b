package admin

import (
	"cmp"
	"errors"
	"io/fs"
	"net/http"
	"time"

	"github.com/containerd/platforms"

	"github.com/hubcache/hubcache/inventory"
)

// Inspected is the document of GET /api/v1/images/<reference>. Sizes are bytes.
type Inspected struct {
	Schema int `json:"schema"`
	Image
	Freed        int64           `json:"freed_bytes"`       // what only this image needs: what its eviction would free
	Visibility   string          `json:"visibility"`        // of its repository: public, private, or unknown if nobody has had to ask
	VisibilityAt *time.Time      `json:"visibility_at"`     // when the upstream last said so; null: never
	Waiting      *Waiting        `json:"waiting,omitempty"` // what the tag names now, if that has to wait; absent: nothing waits
	Index        bool            `json:"index"`             // it is an index, and names the manifests
	Manifests    []ImageManifest `json:"manifests"`         // never null
	SharedWith   []SharedWith    `json:"shared_with"`       // never null: the 20 images with which it shares most
	Sharers      int             `json:"sharers"`           // with how many images it shares
}

// ImageManifest is a manifest for one platform, or an attestation of one.
type ImageManifest struct {
	Digest    string      `json:"digest"`
	MediaType string      `json:"media_type"`   // "" if it is absent
	Platform  string      `json:"platform"`     // linux/amd64; "" if nobody says which
	Attests   string      `json:"attests"`      // the digest of what it is an attestation of; "" if it is none
	State     string      `json:"state"`        // whole, partial or absent
	Size      int64       `json:"bytes"`        // all of it and of what it names, as far as is known
	Cached    int64       `json:"cached_bytes"` // the part of that which is here
	Parts     []ImagePart `json:"parts"`        // never null
}

// ImagePart is the config or a layer of a manifest.
type ImagePart struct {
	Digest       string     `json:"digest"`
	Role         string     `json:"role"`       // config or layer
	MediaType    string     `json:"media_type"` // "" if the manifest says none
	State        string     `json:"state"`      // whole, partial or absent
	Size         int64      `json:"bytes"`
	Cached       int64      `json:"cached_bytes"`
	Arrived      *time.Time `json:"arrived"`      // when it came in; null if it isn't here as a whole
	Repositories []string   `json:"repositories"` // under which the upstream has served it, or has said that it has it; at most five, never null
	Sharers      int        `json:"sharers"`      // other images that need it
}

// SharedWith is another image that needs some of the same bytes.
type SharedWith struct {
	Reference string `json:"reference"`
	Bytes     int64  `json:"bytes"`
}

// inspect answers with all that is known of one image. It shows private ones too, as the list does.
func (a *admin) inspect(w http.ResponseWriter, req *http.Request) {
	ref, err := referenceIn(req)
	if err != nil {
		refuse(http.StatusBadRequest, err.Error()).ServeHTTP(w, req)
		return
	}
	d, err := a.Inspect(req.Context(), ref)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		refuse(http.StatusNotFound, cmp.Or(a.unserved(ref), err).Error()).ServeHTTP(w, req)
	case err != nil:
		refuse(http.StatusInternalServerError, err.Error()).ServeHTTP(w, req)
	default:
		doc := inspected(d)
		if a.Quarantine != nil && d.Tag != "" {
			if w := a.Quarantine.Waiting(d.Repository, d.Tag); w != nil {
				doc.Waiting = &Waiting{d.Reference(), w.Digest.String(), w.Until.UTC()}
			}
		}
		writeJSON(w, http.StatusOK, doc)
	}
}

func inspected(d *inventory.Detail) Inspected {
	doc := Inspected{
		Schema: Schema, Image: imageOf(d.Image), Freed: d.Freed, Visibility: "unknown", Index: d.Index,
		Manifests: []ImageManifest{}, SharedWith: []SharedWith{}, Sharers: d.Sharers,
	}
	if v := d.Visibility; v != nil {
		doc.VisibilityAt, doc.Visibility = &v.At, "private"
		if v.Public {
			doc.Visibility = "public"
		}
	}
	for _, m := range d.Manifests {
		doc.Manifests = append(doc.Manifests, manifestOf(m))
	}
	for _, s := range d.Sharing {
		doc.SharedWith = append(doc.SharedWith, SharedWith(s))
	}
	return doc
}

func manifestOf(m inventory.Manifest) ImageManifest {
	out := ImageManifest{
		Digest: m.Digest.String(), MediaType: m.MediaType, Attests: m.Attests.String(), State: string(m.State),
		Size: m.Size, Cached: m.Cached, Parts: []ImagePart{},
	}
	if m.Platform != nil {
		out.Platform = platforms.Format(*m.Platform)
	}
	for _, p := range m.Parts {
		part := ImagePart{
			Digest: p.Digest.String(), Role: "layer", MediaType: p.MediaType, State: string(p.State),
			Size: p.Size, Cached: p.Cached, Repositories: append([]string{}, p.Repositories...), Sharers: p.Images,
		}
		if p.Config {
			part.Role = "config"
		}
		if !p.Arrived.IsZero() {
			part.Arrived = &p.Arrived
		}
		out.Parts = append(out.Parts, part)
	}
	return out
}
