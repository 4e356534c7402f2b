package settings

import (
	"fmt"

	"github.com/opencontainers/go-digest"
	"go.yaml.in/yaml/v3"

	"github.com/hubcache/hubcache/name"
)

// DigestList has digests, such as sha256:….
type DigestList List

// UnmarshalText splits at commas.
func (l *DigestList) UnmarshalText(b []byte) error {
	return unmarshalItems((*List)(l), b, checkDigest)
}

// MarshalText joins with commas.
func (l DigestList) MarshalText() ([]byte, error) { return List(l).MarshalText() }

// Kind implements Value.
func (DigestList) Kind() string { return kindList }

func (l *DigestList) decode(d *decoder, n *yaml.Node, key string) {
	decodeItems(d, n, key, l, (*List)(l), checkDigest)
}

func (l DigestList) document() any { return []string(l) }

func checkDigest(text string) error {
	if !name.ValidDigest(text) {
		return fmt.Errorf("%q is not a digest like sha256:… with 64 hex digits", text)
	}
	return nil
}

// Digests returns them.
func (l DigestList) Digests() (all []digest.Digest) {
	for _, text := range l {
		all = append(all, digest.Digest(text))
	}
	return all
}
