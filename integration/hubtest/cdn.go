package hubtest

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

var cdnPath = regexp.MustCompile(`^/registry-v2/docker/registry/v2/blobs/([a-z0-9]+)/[0-9a-f]{2}/([0-9a-f]+)/data$`)

// cdn answers as production.cloudflare.docker.com.
type cdn struct {
	signer  signer
	content *content
	network *Network
	ledger  *ledger
}

// signedURL is the CDN's URL of the requested blob. Its query names the repository and the
// account, for the ledger; the signature covers it, the path and the expiry.
func (c *cdn) signedURL(q *request) string {
	d := digest.Digest(q.target.reference)
	path := fmt.Sprintf("/registry-v2/docker/registry/v2/blobs/%s/%s/%s/data", d.Algorithm(), d.Encoded()[:2], d.Encoded())
	expires := q.opts.now().Add(cmp.Or(q.opts.URLLifetime, 20*time.Minute))
	if q.effects.expired {
		expires = q.opts.now().Add(-time.Minute)
	}
	via := base64.RawURLEncoding.EncodeToString([]byte(q.target.repository + "\n" + q.account))
	stamp := strconv.FormatInt(expires.UnixNano(), 10)
	signature := c.signature(path, via, stamp)
	c.ledger.secret(signature)
	query := url.Values{"via": {via}, "verify": {stamp + "-" + signature}}
	return c.network.URL(CDN) + path + "?" + query.Encode()
}

func (c *cdn) signature(path, via, stamp string) string {
	return hex.EncodeToString(c.signer.sign(path + "\n" + via + "\n" + stamp))
}

func parseCDNRequest(r *http.Request) (target, string) {
	m := cdnPath.FindStringSubmatch(r.URL.Path)
	if m == nil {
		return target{kind: "other"}, ""
	}
	via, _ := base64.RawURLEncoding.DecodeString(r.URL.Query().Get("via"))
	repository, account, _ := strings.Cut(string(via), "\n")
	return target{kind: "blobs", repository: repository, reference: m[1] + ":" + m[2]}, account
}

func (c *cdn) identify(q *request) { q.target, q.account = parseCDNRequest(q.r) }

func (c *cdn) respond(q *request) *response {
	switch {
	case q.r.Header.Get("Authorization") != "":
		c.ledger.violation("%s %s: Authorization at the CDN", q.r.Method, q.r.URL.Path)
		return xmlResponse(http.StatusBadRequest, "InvalidArgument", "Only one auth mechanism allowed")
	case q.target.kind == "other":
		return xmlResponse(http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
	case q.r.Method != http.MethodGet && q.r.Method != http.MethodHead:
		return xmlResponse(http.StatusMethodNotAllowed, "MethodNotAllowed", "Use GET or HEAD.")
	case !c.signed(q):
		return xmlResponse(http.StatusForbidden, "AccessDenied", "Request has expired or its signature is wrong")
	}
	b := c.content.blob(digest.Digest(q.target.reference))
	if b == nil {
		return xmlResponse(http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
	}
	return blobResponse(q, b)
}

func xmlResponse(status int, code, message string) *response {
	return textResponse(status, "application/xml", fmt.Sprintf(
		`<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, message))
}

// signed reports whether the URL has a valid signature and has not expired.
func (c *cdn) signed(q *request) bool {
	query := q.r.URL.Query()
	stamp, signature, _ := strings.Cut(query.Get("verify"), "-")
	nanos, err := strconv.ParseInt(stamp, 10, 64)
	return err == nil && !q.effects.expired &&
		signature == c.signature(q.r.URL.Path, query.Get("via"), stamp) &&
		q.opts.now().UnixNano() < nanos
}

// blobResponse is the blob, or the single range of it that was requested.
func blobResponse(q *request, b *io.SectionReader) *response {
	resp := &response{status: http.StatusOK, body: b, size: b.Size(), header: http.Header{
		"Content-Type": {"application/octet-stream"},
		"Etag":         {`"` + q.target.reference + `"`},
	}}
	if !q.opts.IgnoreRange {
		resp.header.Set("Accept-Ranges", "bytes")
	}
	first, last, ok := parseRange(q.r.Header.Get("Range"), b.Size())
	switch {
	case !ok || q.opts.IgnoreRange || q.effects.ignoreRange:
	case first > last:
		resp = textResponse(http.StatusRequestedRangeNotSatisfiable, "text/plain", "")
		resp.header.Set("Content-Range", fmt.Sprintf("bytes */%d", b.Size()))
	default:
		resp.status, resp.offset, resp.size = http.StatusPartialContent, first, last-first+1
		resp.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, b.Size()))
	}
	return resp
}

// parseRange parses a Range header with one range of bytes (RFC 9110 §14.1.2). It returns
// first > last for a range outside of the blob, and false for a header that must be ignored,
// such as one with several ranges.
func parseRange(s string, size int64) (first, last int64, ok bool) {
	spec, found := strings.CutPrefix(s, "bytes=")
	from, to, dash := strings.Cut(spec, "-")
	if !found || !dash || strings.Contains(spec, ",") {
		return 0, 0, false
	}
	if from == "" {
		n, err := strconv.ParseUint(to, 10, 62)
		if err != nil {
			return 0, 0, false
		}
		return max(0, size-int64(n)), size - 1, true
	}
	a, err := strconv.ParseUint(from, 10, 62)
	if err != nil {
		return 0, 0, false
	}
	first, last = int64(a), size-1
	if to != "" {
		b, err := strconv.ParseUint(to, 10, 62)
		if err != nil || b < a {
			return 0, 0, false
		}
		last = min(last, int64(b))
	}
	if first >= size {
		return 1, 0, true
	}
	return first, last, true
}
