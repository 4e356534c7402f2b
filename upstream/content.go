package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/answer"
	"github.com/hubcache/hubcache/auth"
)

// Kind is what a reference names: the folder of it in the registry's API.
type Kind string

// The kinds.
const (
	Manifests Kind = "manifests"
	Blobs     Kind = "blobs"
)

// limit says what a request for the headers of such a thing counts against.
func (k Kind) limit() limit {
	if k == Manifests {
		return pulls
	}
	return plain
}

// header is what such a request is sent with.
func (k Kind) header() http.Header {
	if k == Manifests {
		return http.Header{"Accept": {acceptManifest}}
	}
	return http.Header{}
}

// acceptManifest names all four types; without it some registries convert.
const acceptManifest = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.5"

// Descriptor is what the headers of a manifest or blob say of it. All of it is the
// upstream's claim.
type Descriptor struct {
	Digest    digest.Digest // Docker-Content-Digest; "" when the upstream names none
	MediaType string        // without parameters
	Size      int64         // bytes; -1 when the upstream names none
}

// Resolve asks for the headers of a manifest or blob, by tag or digest (HEAD), which costs
// no quota on Docker Hub. A Size of -1 for a manifest means that only Manifest can tell.
// Errors: *Error; with the cause Unsupported, Manifest fails in the same way.
func (c *Client) Resolve(ctx context.Context, repository string, k Kind, reference string) (Descriptor, error) {
	resp, host, err := c.follow(auth.WithScope(ctx, repository), http.MethodHead, c.url(repository+"/"+string(k)+"/"+reference), k.header(), k.limit())
	if err != nil {
		return Descriptor{}, err
	}
	resp.Body.Close()
	mediaType := mediaTypeOf(resp.Header)
	switch {
	case k == Manifests && resp.StatusCode == http.StatusOK && (isSchema1(mediaType) || resp.ContentLength > MaxManifest):
		return Descriptor{}, &Error{Cause: Unsupported, Host: host.Host, Status: resp.StatusCode}
	case k == Manifests && (resp.StatusCode != http.StatusOK || !isManifestType(mediaType)):
		// There are registries that answer HEAD in odd ways, and what isn't called a manifest
		// may be a page that says 200 to everything: a GET tells.
		return Descriptor{Size: -1}, nil
	case resp.StatusCode != http.StatusOK:
		return Descriptor{}, &Error{Cause: Broken, Host: host.Host, Status: resp.StatusCode}
	}
	return Descriptor{Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest")), MediaType: mediaType, Size: resp.ContentLength}, nil
}

// Confirm asks whether the repository has the manifest or blob (HEAD). A redirect means yes and isn't
// followed, if it is surely the registry's own: 307, or one that is marked as such. Captive portals
// redirect, too, so that of any other one the first byte has to be there.
// Errors: *Error; with the cause NotFound or Denied the repository hasn't got it.
func (c *Client) Confirm(ctx context.Context, repository string, k Kind, d digest.Digest) error {
	resp, err := c.get(auth.WithScope(ctx, repository), http.MethodHead, c.url(repository+"/"+string(k)+"/"+string(d)), k.header(), k.limit())
	if err != nil {
		return err
	}
	resp.Body.Close()
	switch {
	case resp.StatusCode < 300, resp.StatusCode == http.StatusTemporaryRedirect, isRedirect(resp.StatusCode) && answer.Marked(resp.Header):
		return nil
	case isRedirect(resp.StatusCode):
		return c.confirmByByte(ctx, repository, k, d)
	}
	return &Error{Cause: Broken, Host: c.base.Host, Status: resp.StatusCode}
}

// confirmByByte is Confirm by a GET of the first byte, which no page that says 200 to everything has.
func (c *Client) confirmByByte(ctx context.Context, repository string, k Kind, d digest.Digest) error {
	header := k.header()
	header.Set("Range", "bytes=0-0")
	resp, host, err := c.follow(auth.WithScope(ctx, repository), http.MethodGet, c.url(repository+"/"+string(k)+"/"+string(d)), header, k.limit())
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return &Error{Cause: Broken, Host: host.Host, Status: resp.StatusCode}
	}
	return nil
}

// MaxManifest is the size in bytes of the largest manifest that is taken: containerd's limit.
const MaxManifest = 4 << 20

// Manifest is a manifest's bytes, not verified.
type Manifest struct {
	MediaType string // as the upstream names it, without parameters
	Body      []byte
	Host      string // which host sent it, for errors
}

// Manifest gets a manifest by tag or digest (GET), which counts against the pull quota of
// Docker Hub.
// Errors: *Error; with the cause Unsupported, what there is isn't served.
func (c *Client) Manifest(ctx context.Context, repository, reference string) (Manifest, error) {
	resp, host, err := c.follow(auth.WithScope(ctx, repository), http.MethodGet, c.url(repository+"/manifests/"+reference), Manifests.header(), pulls)
	if err != nil {
		return Manifest{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Manifest{}, &Error{Cause: Broken, Host: host.Host, Status: resp.StatusCode}
	}
	body, err := io.ReadAll(io.LimitReader(counted{resp.Body, &c.manifestBytes}, MaxManifest+1))
	if err != nil {
		return Manifest{}, classify(host.Host, err)
	}
	mediaType := mediaTypeOf(resp.Header)
	unsupported := func(format string, args ...any) (Manifest, error) {
		return Manifest{}, &Error{Cause: Unsupported, Host: host.Host, Status: resp.StatusCode, Err: fmt.Errorf(format, args...)}
	}
	switch {
	case resp.ContentLength > MaxManifest:
		return unsupported("a manifest of %d bytes, and %d are the most", resp.ContentLength, MaxManifest)
	case len(body) > MaxManifest: // of no length that is known: it may never end
		return Manifest{}, &Error{Cause: Broken, Host: host.Host, Status: resp.StatusCode, Err: fmt.Errorf("a manifest of more than %d bytes", MaxManifest)}
	case isSchema1(mediaType) || !isManifestType(mediaType) && schemaVersion(body) == 1:
		return unsupported("a manifest of schema 1, called %q", mediaType)
	}
	return Manifest{MediaType: mediaType, Body: body, Host: host.Host}, nil
}

// isSchema1 reports whether a media type is one of Docker's schema 1, signed or not. Such a
// manifest isn't served: its digest is that of a part of it, Docker has given it up, and
// containerd refuses it. Docker asks Docker Hub itself when it gets a 404 here.
func isSchema1(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1+")
}

// isManifestType reports whether something is called a manifest. All types of manifests are of
// this form, and pages and other answers aren't.
func isManifestType(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.") && strings.HasSuffix(mediaType, "json")
}

// schemaVersion returns the version that a manifest says it has, or 0.
func schemaVersion(body []byte) int {
	var m struct {
		SchemaVersion int `json:"schemaVersion"`
	}
	if json.Unmarshal(body, &m) != nil {
		return 0
	}
	return m.SchemaVersion
}

// mediaTypeOf is the media type as the upstream named it, without parameters, which the
// spec forbids and containerd strips.
func mediaTypeOf(h http.Header) string {
	t := h.Get("Content-Type")
	if m, _, err := mime.ParseMediaType(t); err == nil {
		return m
	}
	return t
}

// maxList is the size of the largest tag list or referrers index that is read into memory. Docker
// Hub's pages are far smaller. Some registries know no pages.
const maxList = 4 << 20

// ListDeadline is how long the answer to a tag list may take to begin. Docker Hub's takes over half
// a minute for repositories with very many tags.
const ListDeadline = 2 * time.Minute

// List is an answer to tags/list or referrers.
type List struct {
	MediaType string
	Body      []byte // valid JSON, if there is no Rest
	// Rest is nil, or what comes after Body in a list that is larger than should be in memory. It
	// ends with an error if the upstream breaks off. Close it.
	Rest    io.ReadCloser
	Link    string // the Link header to the next page, without scheme, host and folder of the upstream; "": none
	Filters string // OCI-Filters-Applied
}

// List gets a list of the repository: "tags/list", or "referrers/" and a digest. The answer may take
// ListDeadline to begin, and then as long as it likes, as long as bytes come.
// Errors: *Error.
func (c *Client) List(ctx context.Context, repository, list string, query url.Values) (List, error) {
	to := c.url(repository + "/" + list)
	to.RawQuery = query.Encode()
	if list == "tags/list" {
		ctx = patiently(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(ListDeadline, func() { cancel(context.DeadlineExceeded) })
	resp, host, err := c.follow(auth.WithScope(ctx, repository), http.MethodGet, to, http.Header{"Accept": {"application/json, " + v1.MediaTypeImageIndex}}, plain)
	if !late.Stop() && err == nil {
		resp.Body.Close()
		err = context.DeadlineExceeded
	}
	failed := func(host *url.URL, err error) (List, error) {
		if cause := context.Cause(ctx); errors.Is(cause, context.DeadlineExceeded) {
			err = cause // not every transport says so
		}
		cancel(nil)
		return List{}, classify(host.Host, err)
	}
	if err != nil {
		return failed(to, err)
	}
	rest := newListBody(resp.Body, cancel)
	l := List{MediaType: mediaTypeOf(resp.Header), Link: ownLink(resp.Header.Get("Link"), c.base), Filters: resp.Header.Get("OCI-Filters-Applied")}
	l.Body, err = io.ReadAll(io.LimitReader(rest, maxList+1))
	if err == nil && len(l.Body) > maxList && resp.StatusCode == http.StatusOK && bytes.HasPrefix(bytes.TrimSpace(l.Body), []byte("{")) {
		l.Rest = rest
		return l, nil
	}
	resp.Body.Close()
	if err != nil {
		return failed(host, err)
	}
	if resp.StatusCode != http.StatusOK || !json.Valid(l.Body) {
		return failed(host, &Error{Cause: Broken, Host: host.Host, Status: resp.StatusCode, Err: errors.New("not a list")})
	}
	cancel(nil)
	return l, nil
}

// listBody is the body of a list. It fails after stallDeadline without a byte.
type listBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	stall  *time.Timer // calls cancel; runs during a read
}

func newListBody(body io.ReadCloser, cancel context.CancelCauseFunc) *listBody {
	b := &listBody{body, cancel, time.AfterFunc(stallDeadline, func() { cancel(errStalled) })}
	b.stall.Stop()
	return b
}

func (b *listBody) Read(p []byte) (int, error) {
	b.stall.Reset(stallDeadline)
	defer b.stall.Stop()
	return b.ReadCloser.Read(p)
}

func (b *listBody) Close() error {
	b.cancel(nil)
	return b.ReadCloser.Close()
}

// ownLink makes the link to the next page relative to the server that passes it on: without
// the upstream's scheme, host and folder. A link to anywhere else is dropped.
func ownLink(link string, base *url.URL) string {
	target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	if !ok {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil || u.Host != "" && u.Host != base.Host {
		return ""
	}
	i := strings.Index(u.Path, "/v2/")
	if i < 0 {
		return ""
	}
	to := url.URL{Path: u.Path[i:], RawQuery: u.RawQuery}
	return "<" + to.String() + ">" + params
}
