package transfer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
)

// What refers to an image, such as a signature, is in an OCI layout as other tools have it there: as a
// manifest in index.json that has no name and says itself what it refers to. The lists that a registry
// gives are made of these.

// subjectOf returns what a manifest refers to; "" if it refers to nothing.
func subjectOf(body []byte) digest.Digest {
	var m struct {
		Subject *v1.Descriptor `json:"subject"`
	}
	if json.Unmarshal(body, &m) != nil || m.Subject == nil || !name.ValidDigest(m.Subject.Digest.String()) {
		return ""
	}
	return m.Subject.Digest
}

// refer adds what refers to the manifests that have just been added, such as signatures, and to that, as far
// as it is cached. It returns the rows of index.json: they have no names, and say themselves what they
// refer to.
func (x *exporter) refer(repository string) (rows []v1.Descriptor, err error) {
	for len(x.fresh) > 0 {
		subject := x.fresh[0]
		x.fresh = x.fresh[1:]
		list, err := x.store.Referrers(repository, subject)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		body, err := x.body(list)
		if err != nil {
			return nil, err
		}
		var index v1.Index
		if json.Unmarshal(body, &index) != nil {
			continue
		}
		for _, d := range index.Manifests {
			ok, err := x.referrer(d.Digest, subject)
			if err != nil {
				return nil, err
			}
			if ok {
				rows = append(rows, d)
			}
		}
	}
	return rows, nil
}

// referrer adds a manifest that refers to another one. ok is false if it isn't there as a whole, doesn't
// refer to it, or is in index.json already.
func (x *exporter) referrer(d, subject digest.Digest) (ok bool, err error) {
	if x.referring[d] || !name.ValidDigest(d.String()) {
		return false, nil
	}
	m, err := x.store.Manifest(d)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	body, err := x.body(m)
	if err != nil || subjectOf(body) != subject {
		return false, err
	}
	if _, err := x.manifest(m, 0); err != nil {
		if errors.Is(err, ErrNotComplete) {
			err = nil
		}
		return false, err
	}
	x.referring[d] = true
	return true, nil
}

// refer writes the lists of what refers to the manifests of an image. A list that the store has is from
// the upstream, and stays.
func (r *run) refer(from storage.Origin, i Planned) error {
	for subject, all := range i.referrers {
		list := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
		for _, d := range all {
			if _, ok := r.store.Has(d.Digest); ok {
				list.Manifests = append(list.Manifests, d)
			}
		}
		if _, err := r.store.Referrers(i.Repository, subject); err == nil || len(list.Manifests) == 0 {
			continue
		}
		body, err := json.Marshal(list)
		if err != nil {
			return err
		}
		if err := r.store.SetReferrers(from, subject, v1.MediaTypeImageIndex, body); err != nil {
			return fmt.Errorf("%s: the list of what refers to it: %w", i.Reference(), err)
		}
	}
	return nil
}
