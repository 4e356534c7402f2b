package upstream

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestPartsAreWhatWasAskedFor: whatever a manifest claims, and whether the upstream knows ranges
// and states lengths or not, a body has the bytes that its span says, and its size is the blob's,
// or unknown. A closed part that begins inside the blob has no byte that was not asked for.
func TestPartsAreWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	content := make([]byte, 1000)
	for i := range content {
		content[i] = byte(i * 7)
	}
	for _, blob := range [][]byte{content, content[:1], nil} {
		size := int64(len(blob))
		for _, ranges := range []bool{true, false} {
			for _, length := range []bool{true, false} {
				base, _ := url.Parse("http://registry.test")
				c, err := New(Options{URL: base, Transport: transportFunc(func(r *http.Request) (*http.Response, error) {
					if !ranges {
						r.Header.Del("Range")
					}
					w := httptest.NewRecorder()
					w.Header().Set("Content-Type", "application/octet-stream")
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
					resp := w.Result()
					if !length {
						resp.ContentLength = -1
					}
					return resp, nil
				})})
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range []Part{{0, -1, 0, false, false}, {0, 1, 0, false, false}, {0, 10, 0, false, false}, {10, 20, 0, false, false}, {990, 2000, 0, false, false}, {500, -1, 0, false, false}, {2000, 3000, 0, false, false}} {
					for _, claim := range []int64{-1, 0, size, size + 1, size - 1, 5, 5000} {
						if p.From > 0 && claim >= 0 && claim <= p.From { // nobody asks for that
							continue
						}
						for _, whole := range []bool{false, true} {
							p.Size, p.Claim, p.Whole = claim, claim >= 0, whole
							t.Run(fmt.Sprintf("%d bytes, ranges %v, length %v, %+v", size, ranges, length, p), func(t *testing.T) {
								synctest.Test(t, func(t *testing.T) { testPart(t, c, blob, p) })
							})
						}
					}
				}
			}
		}
	}
}

func testPart(t *testing.T, c *Client, blob []byte, p Part) {
	size := int64(len(blob))
	body, err := c.Blob("library/x", digest.FromBytes(blob)).Open(t.Context(), p)
	if err != nil {
		if p.Claim || p.From < size || size == 0 && p.From == 0 && p.To < 0 {
			t.Error(err)
		}
		return // behind the end of a blob of which nothing is known
	}
	defer body.Close()
	from, to := body.Span()
	known := body.Size() >= 0
	got, err := io.ReadAll(body)
	if p.From > size && err != nil {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if from != p.From && from != 0 || known && (to > size || from+int64(len(got)) != to) || body.Size() != size && body.Size() >= 0 {
		t.Errorf("span %d to %d, %d bytes, size %d", from, to, len(got), body.Size())
	}
	if want := blob[min(from, size):min(from+int64(len(got)), size)]; !bytes.Equal(got, want) {
		t.Errorf("wrong bytes from %d", from)
	}
	if end := from + int64(len(got)); !p.Whole && from == p.From && p.To >= 0 && end > p.To || p.To < 0 && end != size {
		t.Errorf("%d bytes from %d", len(got), from)
	}
}
