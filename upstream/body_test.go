package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
)

const someDigest = digest.Digest("sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")

type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// fakeClient is a client of a registry that answers so, and wants no token. It returns the
// requests that were made.
func fakeClient(t testing.TB, answer func(*http.Request) *http.Response) (*Client, *[]*http.Request) {
	t.Helper()
	base, _ := url.Parse("https://registry.hub.test")
	var seen []*http.Request
	c, err := New(Options{URL: base, Transport: transportFunc(func(req *http.Request) (*http.Response, error) {
		seen = append(seen, req)
		return answer(req), nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	return c, &seen
}

// answerOf is a response whose length is known; header has names and values in turn.
func answerOf(req *http.Request, status int, body string, header ...string) *http.Response {
	resp := &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: req,
		ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body))}
	for i := 0; i < len(header); i += 2 {
		resp.Header.Set(header[i], header[i+1])
	}
	return resp
}

// withoutLength makes a response one whose length isn't announced.
func withoutLength(resp *http.Response) *http.Response {
	resp.ContentLength = -1
	return resp
}

// TestBodyThatEndsBeforeWhatItSkipsIsNoEndOfTheBlob: a server without ranges sends the blob from
// its start, without a length, and ends before the bytes that are wanted. That is a break, and
// not the end of the blob.
func TestBodyThatEndsBeforeWhatItSkipsIsNoEndOfTheBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := true
		c, _ := fakeClient(t, func(req *http.Request) *http.Response {
			if first {
				first = false
				resp := answerOf(req, 200, strings.Repeat("x", 100))
				resp.ContentLength = 1000
				return resp
			}
			return withoutLength(answerOf(req, 200, strings.Repeat("x", 50)))
		})
		b, err := c.Blob("library/x", someDigest).Open(t.Context(), Part{To: -1, Size: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		got, err := io.ReadAll(b)
		if _, ok := errors.AsType[*Error](err); len(got) != 100 || !ok {
			t.Errorf("%d bytes of 1000, %v", len(got), err)
		}
		_, err = c.Blob("library/x", someDigest).Open(t.Context(), Part{From: 100, To: -1, Size: -1})
		if u, ok := errors.AsType[*Error](err); !ok || u.Cause != Broken {
			t.Errorf("%v", err)
		}
	})
}

// TestNoReadAfterClose: a body that is closed makes no request.
func TestNoReadAfterClose(t *testing.T) {
	c, seen := fakeClient(t, func(req *http.Request) *http.Response { return answerOf(req, 200, "0123456789") })
	for _, n := range []int{0, 3, 10} {
		*seen = nil
		b, err := c.Blob("library/x", someDigest).Open(t.Context(), Part{To: -1, Size: -1})
		if err != nil {
			t.Fatal(err)
		}
		io.CopyN(io.Discard, b, int64(n))
		b.Close()
		for range 2 {
			if n, err := b.Read(make([]byte, 4)); n != 0 || err == nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
		}
		b.Close()
		if len(*seen) != 1 {
			t.Errorf("%d requests", len(*seen))
		}
	}
}

// TestRegistryThatSendsBlobsItselfIsNoCDN: a registry that doesn't redirect is still asked as
// the registry: its 404 says that the blob isn't there, and its silence that it is down.
func TestRegistryThatSendsBlobsItselfIsNoCDN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := false
		c, seen := fakeClient(t, func(req *http.Request) *http.Response {
			if gone {
				return answerOf(req, 404, `{"errors":[{"code":"BLOB_UNKNOWN"}]}`)
			}
			return answerOf(req, 206, "01234", "Content-Range", "bytes 0-4/10")
		})
		blob := c.Blob("library/x", someDigest)
		b, err := blob.Open(t.Context(), Part{To: 5, Size: 10})
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		gone = true
		_, err = blob.Open(t.Context(), Part{To: 5, Size: 10})
		if u, ok := errors.AsType[*Error](err); !ok || u.Cause != NotFound {
			t.Errorf("%v", err)
		}
		if len(*seen) != 2 {
			t.Errorf("%d requests", len(*seen))
		}
	})
}

// TestCDNIsAskedAgainWithoutTheRegistry: a URL that the registry has redirected to is used for
// the next ranges of the blob.
func TestCDNIsAskedAgainWithoutTheRegistry(t *testing.T) {
	c, seen := fakeClient(t, func(req *http.Request) *http.Response {
		if req.URL.Host == "registry.hub.test" {
			return answerOf(req, 307, "", "Location", "https://cdn.hub.test/x")
		}
		return answerOf(req, 206, "01234", "Content-Range", "bytes 0-4/10")
	})
	blob := c.Blob("library/x", someDigest)
	for range 3 {
		b, err := blob.Open(context.Background(), Part{To: 5, Size: 10})
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
	}
	if len(*seen) != 4 {
		t.Errorf("%d requests", len(*seen))
	}
}
