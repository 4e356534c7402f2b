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

// signedURL is the CDN's address of the exchange's blob. The query tells who asked for which
// repository, so that the ledger can; the signature covers it, the path and the expiry.
func (x *exchange) signedURL() string {
	d := digest.Digest(x.target.reference)
	path := fmt.Sprintf("/registry-v2/docker/registry/v2/blobs/%s/%s/%s/data", d.Algorithm(), d.Encoded()[:2], d.Encoded())
	expires := x.opts.now().Add(cmp.Or(x.opts.URLLifetime, 20*time.Minute))
	if x.tricks.expired {
		expires = x.opts.now().Add(-time.Minute)
	}
	via := base64.RawURLEncoding.EncodeToString([]byte(x.target.repository + "\n" + x.grant.account))
	stamp := strconv.FormatInt(expires.UnixNano(), 10)
	signature := x.hub.signature(path, via, stamp)
	x.hub.mu.Lock()
	x.hub.secrets = append(x.hub.secrets, signature)
	x.hub.mu.Unlock()
	query := url.Values{"via": {via}, "verify": {stamp + "-" + signature}}
	return x.hub.CDNURL() + path + "?" + query.Encode()
}

func (h *Hub) signature(path, via, stamp string) string {
	return hex.EncodeToString(h.sign(path + "\n" + via + "\n" + stamp))
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

// cdn answers for production.cloudflare.docker.com.
func (x *exchange) cdn() *reply {
	switch {
	case x.entry.HasAuth:
		x.hub.violation("%s %s: Authorization at the CDN", x.r.Method, x.r.URL.Path)
		return xmlReply(http.StatusBadRequest, "InvalidArgument", "Only one auth mechanism allowed")
	case x.target.kind == "other":
		return xmlReply(http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
	case x.r.Method != http.MethodGet && x.r.Method != http.MethodHead:
		return xmlReply(http.StatusMethodNotAllowed, "MethodNotAllowed", "Use GET or HEAD.")
	case !x.signed():
		return xmlReply(http.StatusForbidden, "AccessDenied", "Request has expired or its signature is wrong")
	}
	x.hub.mu.Lock()
	b := x.hub.content.blobs[digest.Digest(x.target.reference)]
	x.hub.mu.Unlock()
	if b == nil {
		return xmlReply(http.StatusNotFound, "NoSuchKey", "The specified key does not exist.")
	}
	return x.blobReply(b)
}

func xmlReply(status int, code, message string) *reply {
	return textReply(status, "application/xml", fmt.Sprintf(
		`<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, message))
}

func (x *exchange) signed() bool {
	query := x.r.URL.Query()
	stamp, signature, _ := strings.Cut(query.Get("verify"), "-")
	nanos, err := strconv.ParseInt(stamp, 10, 64)
	return err == nil && !x.tricks.expired &&
		signature == x.hub.signature(x.r.URL.Path, query.Get("via"), stamp) &&
		x.opts.now().UnixNano() < nanos
}

// blobReply is the blob, or the single range of it that was asked for.
func (x *exchange) blobReply(b *io.SectionReader) *reply {
	rep := &reply{status: http.StatusOK, body: b, size: b.Size(), header: http.Header{
		"Content-Type":  {"application/octet-stream"},
		"Accept-Ranges": {"bytes"},
		"Etag":          {`"` + x.target.reference + `"`},
	}}
	first, last, ok := parseRange(x.r.Header.Get("Range"), b.Size())
	switch {
	case !ok || x.opts.IgnoreRange || x.tricks.ignoreRange:
	case first > last:
		rep = textReply(http.StatusRequestedRangeNotSatisfiable, "text/plain", "")
		rep.header.Set("Content-Range", fmt.Sprintf("bytes */%d", b.Size()))
	default:
		rep.status, rep.offset, rep.size = http.StatusPartialContent, first, last-first+1
		rep.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, b.Size()))
	}
	return rep
}

// parseRange understands one range of bytes (RFC 9110 §14.1.2). It returns first > last for
// one that lies outside, and false for anything to be ignored, several ranges among it.
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
