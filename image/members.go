package image

import (
	"encoding/json"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Member is a manifest that an index names, with what the index says of it.
type Member struct {
	Digest    digest.Digest
	MediaType string        // "" if the index says none
	Platform  *v1.Platform  // nil: the index says none
	Attests   digest.Digest // the manifest that this one is an attestation of, as BuildKit makes them; "" if it is none
}

// Annotations by which BuildKit marks an attestation.
const (
	attestationType   = "vnd.docker.reference.type"
	attestationOf     = "vnd.docker.reference.digest"
	attestationMarker = "attestation-manifest"
)

// Members returns the manifests that the index in body names, in its order. A body that is no
// index, or names more than MaxChildren, has none. Those with an invalid digest are left out.
func Members(body []byte) []Member {
	if _, ok := parse(body); !ok { // it bounds how many there are
		return nil
	}
	var index struct {
		Manifests []struct {
			Digest      digest.Digest   `json:"digest"`
			MediaType   json.RawMessage `json:"mediaType"`
			Platform    json.RawMessage `json:"platform"`
			Annotations json.RawMessage `json:"annotations"`
		} `json:"manifests"`
	}
	if json.Unmarshal(body, &index) != nil {
		return nil
	}
	var members []Member
	for _, d := range index.Manifests {
		if d.Digest.Validate() != nil {
			continue
		}
		m := Member{Digest: d.Digest}
		if json.Unmarshal(d.MediaType, &m.MediaType) != nil {
			m.MediaType = ""
		}
		var p v1.Platform
		if json.Unmarshal(d.Platform, &p) == nil && p.OS != "" && p.Architecture != "" {
			m.Platform = &p
		}
		var notes map[string]string
		if json.Unmarshal(d.Annotations, &notes) == nil && notes[attestationType] == attestationMarker {
			m.Attests = digest.Digest(notes[attestationOf])
		}
		members = append(members, m)
	}
	return members
}
