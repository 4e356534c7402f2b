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

// registry answers for registry-1.docker.io.
func (x *exchange) registry() *reply {
	rep := x.registryReply()
	rep.header.Set("Docker-Distribution-Api-Version", "registry/2.0")
	return rep
}

func (x *exchange) registryReply() *reply {
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		return errorReply(http.StatusMethodNotAllowed, "UNSUPPORTED", "The operation is unsupported.", nil)
	}
	if x.target.kind == "other" {
		return textReply(http.StatusNotFound, "text/plain; charset=utf-8", "404 page not found\n")
	}
	if rep := x.authorize(); rep != nil {
		return rep
	}
	switch x.target.kind {
	case "manifests":
		return x.manifest()
	case "blobs":
		return x.blob()
	case "tags":
		return x.tagList()
	case "referrers":
		return x.referrers()
	}
	return jsonReply(http.StatusOK, struct{}{})
}

// authorize returns the 401 for a request without a good token, else nil.
func (x *exchange) authorize() *reply {
	if auth := x.r.Header.Get("Authorization"); auth != "" && !strings.HasPrefix(auth, "Bearer ") {
		x.hub.violation("%s %s: credentials other than a bearer token at the registry", x.r.Method, x.r.URL.Path)
	}
	switch {
	case x.r.Header.Get("Authorization") == "":
		return x.challenge("")
	case !x.known || x.opts.now().After(x.grant.expires):
		return x.challenge("invalid_token")
	case x.target.kind != "ping" && !slices.Contains(x.grant.pull, x.target.repository),
		x.target.kind != "ping" && !x.hub.visible(x.opts, x.grant.account, x.target.repository):
		return x.challenge("insufficient_scope")
	}
	return nil
}

func (x *exchange) challenge(problem string) *reply {
	realm := x.opts.Realm
	if realm == "" {
		realm = x.hub.TokenURL() + "/token"
	}
	value := fmt.Sprintf(`Bearer realm="%s",service="%s"`, realm, service)
	var detail any
	if x.target.kind != "ping" {
		value += fmt.Sprintf(`,scope="repository:%s:pull"`, x.target.repository)
		detail = []any{map[string]string{"Type": "repository", "Class": "", "Name": x.target.repository, "Action": "pull"}}
	}
	if problem != "" {
		value += fmt.Sprintf(`,error="%s"`, problem)
	}
	rep := errorReply(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required", detail)
	rep.header.Set("Www-Authenticate", value)
	rep.header.Set("Docker-Ratelimit-Source", x.hub.source(x.grant.account, x.entry.Remote).public())
	return rep
}

func (x *exchange) manifest() *reply {
	limit, ok := x.hub.spend(x, 0)
	if !ok {
		return x.overLimit(limit)
	}
	d, m, found := x.hub.manifest(x.target.repository, x.target.reference)
	if !found {
		return errorReply(http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown",
			map[string]string{"unknown": x.target.reference})
	}
	if x.r.Method == http.MethodGet {
		if limit, ok = x.hub.spend(x, 1); !ok {
			return x.overLimit(limit)
		}
	}
	rep := textReply(http.StatusOK, m.mediaType, string(m.bytes))
	rep.header.Set("Docker-Content-Digest", d.String())
	rep.header.Set("Etag", `"`+d.String()+`"`)
	limit.set(rep.header)
	if x.opts.Gzip && strings.Contains(x.r.Header.Get("Accept-Encoding"), "gzip") {
		compress(rep, m.bytes)
	}
	return rep
}

func (x *exchange) overLimit(limit rateLimit) *reply {
	rep := errorReply(http.StatusTooManyRequests, "TOOMANYREQUESTS", pullLimit(x.grant.account), nil)
	limit.set(rep.header)
	return rep
}

func compress(rep *reply, b []byte) {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	rep.header.Set("Content-Encoding", "gzip")
	rep.body, rep.size = bytes.NewReader(buf.Bytes()), int64(buf.Len())
}

func (x *exchange) blob() *reply {
	if rep := badDigest(x.target.reference); rep != nil {
		return rep
	}
	b := x.hub.blob(x.target.repository, x.target.reference)
	if b == nil {
		return errorReply(http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry",
			map[string]string{"digest": x.target.reference})
	}
	if x.r.Method == http.MethodHead && x.opts.HeadBlobOK || b.Size() <= x.opts.InlineBlobs {
		rep := x.blobReply(b)
		rep.header.Set("Docker-Content-Digest", x.target.reference)
		return rep
	}
	to := x.signedURL()
	// As distribution does, which leaves it to http.Redirect.
	rep := textReply(http.StatusTemporaryRedirect, "text/html; charset=utf-8", `<a href="`+html.EscapeString(to)+`">Temporary Redirect</a>.`+"\n\n")
	rep.header.Set("Location", to)
	return rep
}

func badDigest(s string) *reply {
	if _, err := digest.Parse(s); err != nil {
		return errorReply(http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content", nil)
	}
	return nil
}

// tagList pages by n and last, with a Link to the rest.
func (x *exchange) tagList() *reply {
	tags := x.hub.tags(x.target.repository)
	slices.Sort(tags)
	query := x.r.URL.Query()
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
			link = fmt.Sprintf(`<%s?%s>; rel="next"`, x.r.URL.Path, next.Encode())
		}
	}
	rep := jsonReply(http.StatusOK, map[string]any{"name": x.target.repository, "tags": tags})
	if link != "" {
		rep.header.Set("Link", link)
	}
	return rep
}

func (x *exchange) referrers() *reply {
	if x.opts.NoReferrers {
		return textReply(http.StatusNotFound, "text/plain; charset=utf-8", "404 page not found\n")
	}
	if rep := badDigest(x.target.reference); rep != nil {
		return rep
	}
	index := ocispec.Index{
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: x.hub.referrers(x.target.repository, x.target.reference),
	}
	index.SchemaVersion = 2
	return textReply(http.StatusOK, ocispec.MediaTypeImageIndex, string(mustJSON(index, "")))
}
