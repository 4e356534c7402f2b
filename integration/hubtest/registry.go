package hubtest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var registryPath = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs|tags|referrers)/([^/]+)$`)

func parseRegistryPath(path string) target {
	if path == "/v2/" || path == "/v2" {
		return target{kind: "ping"}
	}
	m := registryPath.FindStringSubmatch(path)
	switch {
	case m == nil:
		return target{kind: "other"}
	case m[2] == "tags":
		return target{kind: "tags", repository: m[1]}
	}
	return target{kind: m[2], repository: m[1], reference: m[3]}
}

// registry answers as registry-1.docker.io.
type registry struct {
	content *content
	tokens  *tokenService
	quota   *quota
	cdn     *cdn
	network *Network
	ledger  *ledger
}

func (g *registry) identify(q *request) {
	q.target = parseRegistryPath(q.r.URL.Path)
	q.grant, q.knownToken = g.tokens.grantOf(q.r)
	q.account = q.grant.account
}

func (g *registry) respond(q *request) *response {
	resp := g.response(q)
	resp.header.Set("Docker-Distribution-Api-Version", "registry/2.0")
	return resp
}

func (g *registry) response(q *request) *response {
	if q.r.Method != http.MethodGet && q.r.Method != http.MethodHead {
		return errorResponse(http.StatusMethodNotAllowed, "UNSUPPORTED", "The operation is unsupported.", nil)
	}
	if q.target.kind == "other" {
		return textResponse(http.StatusNotFound, "text/plain; charset=utf-8", "404 page not found\n")
	}
	if resp := g.authorize(q); resp != nil {
		return resp
	}
	switch q.target.kind {
	case "manifests":
		return g.manifest(q)
	case "blobs":
		return g.blob(q)
	case "tags":
		return g.tagList(q)
	case "referrers":
		return g.referrers(q)
	}
	return jsonResponse(http.StatusOK, struct{}{})
}

// authorize returns the 401 for a request without a good token, else nil.
func (g *registry) authorize(q *request) *response {
	if auth := q.r.Header.Get("Authorization"); auth != "" && !strings.HasPrefix(auth, "Bearer ") {
		g.ledger.violation("%s %s: credentials other than a bearer token at the registry", q.r.Method, q.r.URL.Path)
	}
	switch {
	case q.r.Header.Get("Authorization") == "":
		return g.challenge(q, "")
	case !q.knownToken || q.opts.now().After(q.grant.expires):
		return g.challenge(q, "invalid_token")
	case q.target.kind != "ping" && !slices.Contains(q.grant.pull, q.target.repository),
		q.target.kind != "ping" && !g.content.visible(q.opts, q.account, q.target.repository):
		return g.challenge(q, "insufficient_scope")
	}
	return nil
}

func (g *registry) challenge(q *request, problem string) *response {
	realm := q.opts.Realm
	if realm == "" {
		realm = g.network.URL(Token) + "/token"
	}
	value := fmt.Sprintf(`Bearer realm="%s",service="%s"`, realm, serviceName)
	var detail any
	if q.target.kind != "ping" {
		value += fmt.Sprintf(`,scope="repository:%s:pull"`, q.target.repository)
		detail = []any{map[string]string{"Type": "repository", "Class": "", "Name": q.target.repository, "Action": "pull"}}
	}
	if problem != "" {
		value += fmt.Sprintf(`,error="%s"`, problem)
	}
	resp := errorResponse(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required", detail)
	resp.header.Set("Www-Authenticate", value)
	resp.header.Set("Docker-Ratelimit-Source", sourceOf(q.account, q.remote).public())
	return resp
}

func (g *registry) manifest(q *request) *response {
	limit, ok := g.quota.spend(q, 0)
	if !ok {
		return g.overLimit(q, limit)
	}
	d, m, found := g.content.manifest(q.target.repository, q.target.reference)
	if !found {
		return errorResponse(http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown",
			map[string]string{"unknown": q.target.reference})
	}
	if q.r.Method == http.MethodGet {
		if limit, ok = g.quota.spend(q, 1); !ok {
			return g.overLimit(q, limit)
		}
	}
	resp := textResponse(http.StatusOK, m.mediaType, string(m.bytes))
	resp.header.Set("Docker-Content-Digest", d.String())
	resp.header.Set("Etag", `"`+d.String()+`"`)
	limit.set(resp.header)
	if q.opts.Gzip && strings.Contains(q.r.Header.Get("Accept-Encoding"), "gzip") {
		compress(resp, m.bytes)
	}
	return resp
}

func (g *registry) overLimit(q *request, limit rateLimit) *response {
	resp := errorResponse(http.StatusTooManyRequests, "TOOMANYREQUESTS", pullLimitMessage(q.account), nil)
	limit.set(resp.header)
	return resp
}

func compress(resp *response, b []byte) {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	resp.header.Set("Content-Encoding", "gzip")
	resp.body, resp.size = Bytes(buf.Bytes()), int64(buf.Len())
}

func (g *registry) blob(q *request) *response {
	if resp := badDigest(q.target.reference); resp != nil {
		return resp
	}
	b := g.content.blobIn(q.target.repository, digest.Digest(q.target.reference))
	if b == nil {
		return errorResponse(http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry",
			map[string]string{"digest": q.target.reference})
	}
	if q.r.Method == http.MethodHead && q.opts.HeadBlobOK || b.Size() <= q.opts.InlineBlobs {
		resp := blobResponse(q, b)
		resp.header.Set("Docker-Content-Digest", q.target.reference)
		return resp
	}
	to := g.cdn.signedURL(q)
	// As distribution does, which leaves it to http.Redirect.
	resp := textResponse(http.StatusTemporaryRedirect, "text/html; charset=utf-8", `<a href="`+html.EscapeString(to)+`">Temporary Redirect</a>.`+"\n\n")
	resp.header.Set("Location", to)
	return resp
}

func badDigest(s string) *response {
	if _, err := digest.Parse(s); err != nil {
		return errorResponse(http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content", nil)
	}
	return nil
}

// tagList pages by n and last, with a Link to the rest.
func (g *registry) tagList(q *request) *response {
	tags := g.content.tags(q.target.repository)
	slices.Sort(tags)
	query := q.r.URL.Query()
	if last := query.Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	link := ""
	if n, err := strconv.Atoi(query.Get("n")); err == nil && n >= 0 && n < len(tags) {
		tags = tags[:n]
		if n > 0 {
			next := url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}}
			link = fmt.Sprintf(`<%s?%s>; rel="next"`, q.r.URL.Path, next.Encode())
		}
	}
	resp := jsonResponse(http.StatusOK, map[string]any{"name": q.target.repository, "tags": tags})
	if link != "" {
		resp.header.Set("Link", link)
	}
	return resp
}

func (g *registry) referrers(q *request) *response {
	if q.opts.NoReferrers {
		return textResponse(http.StatusNotFound, "text/plain; charset=utf-8", "404 page not found\n")
	}
	if resp := badDigest(q.target.reference); resp != nil {
		return resp
	}
	index := ocispec.Index{
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: g.content.referrers(q.target.repository, q.target.reference),
	}
	index.SchemaVersion = 2
	return textResponse(http.StatusOK, ocispec.MediaTypeImageIndex, string(mustJSON(index, "")))
}
