package name

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Reference is the whole name of an image. Either Tag or Digest is set.
type Reference struct {
	Repository string        // with its registry: docker.io/library/redis
	Tag        string        // "" if Digest is set
	Digest     digest.Digest // "" if Tag is set
}

// ParseReference reads the name of an image as docker pull does: redis, redis:7, org/app,
// docker.io/library/redis:7, ghcr.io/org/app@sha256:… and so on. Without a tag it is latest. With
// a tag and a digest the digest counts.
//
// Its error says what is wrong and how such a name looks, so that it needs no addition.
func ParseReference(text string) (Reference, error) {
	if ValidDigest(text) { // else it would be the repository sha256 with a very long tag
		return Reference{}, fmt.Errorf("%s is a digest alone: write the repository and @ in front of it", text)
	}
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return Reference{}, notAnImage(text, strings.TrimPrefix(err.Error(), "invalid reference format: "))
	}
	ref := Reference{Repository: named.Name()}
	host, path := reference.Domain(named), reference.Path(named)
	if !ValidRepository(path) || !CanExist(host, path) {
		return Reference{}, notAnImage(text, host+" can have no repository "+path)
	}
	if digested, ok := named.(reference.Digested); ok {
		ref.Digest = digested.Digest()
		if !ValidDigest(string(ref.Digest)) {
			return Reference{}, notAnImage(text, "the digest is neither sha256 nor sha512")
		}
		return ref, nil
	}
	ref.Tag = reference.TagNameOnly(named).(reference.Tagged).Tag()
	return ref, nil
}

func notAnImage(text, why string) error {
	return fmt.Errorf("%q is not the name of an image: %s. A name is redis:7, org/app or ghcr.io/org/app@sha256:<64 digits>", text, why)
}

// String is the whole reference: docker.io/library/redis:7. ParseReference reads it.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Repository + "@" + string(r.Digest)
	}
	return r.Repository + ":" + r.Tag
}

// Familiar shortens the whole name of an image or of a repository to what people write: redis:7 for
// docker.io/library/redis:7. ParseReference reads it as the same image.
func Familiar(reference string) string {
	short, ok := strings.CutPrefix(reference, hub)
	if !ok {
		return reference
	}
	account, rest, _ := strings.Cut(short, "/")
	switch {
	case account+"/" == library && !strings.Contains(rest, "/"):
		return rest
	case IsRegistry(account):
		return reference // it would be taken for a registry
	}
	return short
}

// Begins returns the whole name of an image in that spelling which begins with the text, the
// shortest first: redis:7, library/redis:7 and docker.io/library/redis:7 are the same. It returns ""
// if none does.
func Begins(reference, text string) string {
	for _, spelling := range []string{Familiar(reference), strings.TrimPrefix(reference, hub), reference} {
		if strings.HasPrefix(spelling, text) {
			return spelling
		}
	}
	return ""
}
