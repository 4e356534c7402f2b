package registry

import (
	_ "crypto/sha512" // sha512 digests are as good as sha256 ones
	"fmt"
	"net/http"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/name"
)

// kind is what a request is about.
type kind uint8

const (
	ping kind = iota
	manifest
	blob
	tags
	referrers
	catalog
)

func (k kind) String() string {
	return [...]string{"ping", "manifest", "blob", "tags", "referrers", "catalog"}[k]
}

// request is a parsed pull request.
type request struct {
	kind   kind
	name   string        // repository, as its registry has it once finish has seen it: "library/redis"
	prefix string        // the registry that the path names before the repository, or ""
	ref    string        // manifest: tag or digest; blob, referrers: digest
	digest digest.Digest // ref, when it is one
}

// parse reads the path of a request. It is written by hand, and not a gorilla/mux router
// such as registry/api/v2 builds, because it stands before every cached answer; a test
// holds it against that router. referrers, which the router lacks, is a route of the
// OCI distribution-spec 1.1.
//
// It doesn't look at the name, which begins with a registry perhaps: see finish.
//
// Errors are *failure: 404 for what is no path of the API, TAG_INVALID, DIGEST_INVALID.
func parse(path string) (request, error) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	switch {
	case path == "/v2" || ok && rest == "":
		return request{kind: ping}, nil
	case rest == "_catalog":
		return request{kind: catalog}, nil
	case !ok:
		return request{}, notFound
	}
	if repository, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return request{kind: tags, name: repository}, nil
	}
	rest, ref, _ := cutLast(rest)
	repository, route, _ := cutLast(rest)
	q := request{name: repository, ref: ref}
	switch route {
	case "manifests":
		q.kind = manifest
		if !strings.Contains(ref, ":") {
			if !name.ValidTag(ref) {
				return q, invalid(errcode.ErrorCodeTagInvalid, ref)
			}
			return q, nil
		}
	case "blobs":
		q.kind = blob
	case "referrers":
		q.kind = referrers
	default:
		return q, notFound
	}
	q.digest = digest.Digest(ref)
	if !name.ValidDigest(ref) {
		return q, invalid(errcode.ErrorCodeDigestInvalid, ref)
	}
	return q, nil
}

// finish checks the name, and makes it whole as the mirror's registry has it. It is called once the
// registry has been cut off.
// Errors: *failure.
func (q *request) finish(m *mirror) error {
	if q.kind == ping || q.kind == catalog {
		return nil
	}
	if m.hub {
		q.name = name.WithLibrary(q.name)
	}
	if !name.ValidRepository(q.name) {
		return invalid(errcode.ErrorCodeNameInvalid, q.name)
	}
	if !name.CanExist(m.client.Host(), q.name) {
		return impossibleName // and the upstream isn't asked
	}
	return nil
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

func invalid(code errcode.ErrorCode, what string) *failure {
	if len(what) > 200 {
		what = what[:200] + "…"
	}
	return &failure{status: http.StatusBadRequest, code: code, detail: fmt.Sprintf("%q", what)}
}

var notFound = &failure{status: http.StatusNotFound, code: errcode.ErrorCodeUnsupported, detail: "no such path in the pull API"}
