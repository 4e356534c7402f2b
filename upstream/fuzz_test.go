package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/answer"
)

// FuzzParseContentRange: what is accepted is inside the blob and says what it says.
func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-99/1000", "bytes 0-99/*", "bytes */1000", "bytes 5-4/10", "bytes 0-10/10", "bytes 0-9/10", "bytes 1-99999999999999999999/99999999999999999999", "bytes  0-1/2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		from, to, size, ok := parseContentRange(s)
		if !ok {
			return
		}
		if from < 0 || to <= from || to > size {
			t.Fatalf("%q: %d to %d of %d", s, from, to, size)
		}
		f2, t2, s2, ok := parseContentRange(fmt.Sprintf("bytes %d-%d/%d", from, to-1, size))
		if !ok || f2 != from || t2 != to || s2 != size {
			t.Errorf("%q does not survive being written again", s)
		}
	})
}

// FuzzParseQuota: what is accepted is a count and a window that can be used.
func FuzzParseQuota(f *testing.F) {
	for _, s := range []string{"100;w=21600", "100", "-1;w=5", "0;w=0", "100;x=1;w=3", "1e9", ";", "100;w=-4", "9223372036854775808"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, window, ok := parseQuota(s)
		if n < 0 || window < 0 {
			t.Fatalf("%q: %d, %d", s, n, window)
		}
		if !ok {
			if v, err := strconv.ParseUint(s, 10, 63); err == nil {
				t.Errorf("%q is the number %d, and refused", s, v)
			}
			return
		}
		if n2, w2, ok := parseQuota(fmt.Sprintf("%d;w=%d", n, window)); !ok || n2 != n || w2 != window {
			t.Errorf("%q does not survive being written again", s)
		}
	})
}

// FuzzNothingIsLost: whatever a host in trouble answers, nothing is said to be missing or
// forbidden that the registry API doesn't say so itself.
func FuzzNothingIsLost(f *testing.F) {
	for _, status := range []int{200, 307, 401, 403, 404, 410, 500} {
		for _, body := range []string{"", "<html>", `{"message":"Not Found"}`, `{"errors":[]}`, `{"errors":[{"code":"UNKNOWN"}]}`, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, `{"errors":[{"code":"DENIED"}]}`} {
			f.Add(status, status, "application/json", "", body)
			f.Add(status, 200, "text/html", "registry/2.0", body)
		}
	}
	f.Fuzz(func(t *testing.T, head, get int, contentType, version, body string) {
		valid := func(status int) bool { return status >= 200 && status < 600 }
		if !valid(head) || !valid(get) {
			return
		}
		c, _ := fakeClient(t, func(req *http.Request) *http.Response {
			status := get
			if req.Method == http.MethodHead {
				status = head
			}
			return answerOf(req, status, body, "Content-Type", contentType, "Docker-Distribution-Api-Version", version)
		})
		_, resolveErr := c.Resolve(t.Context(), "library/x", Manifests, "1")
		_, manifestErr := c.Manifest(t.Context(), "library/x", "1")
		confirmErr := c.Confirm(t.Context(), "library/x", Blobs, someDigest)
		_, listErr := c.List(t.Context(), "library/x", "tags/list", nil)
		for what, err := range map[string]error{"HEAD": resolveErr, "GET": manifestErr, "HEAD of a blob": confirmErr, "list": listErr} {
			u, ok := errors.AsType[*Error](err)
			if !ok || u.Cause != NotFound && u.Cause != Denied {
				continue
			}
			own := answer.Code([]byte(body)) != "" // said by the body of a GET
			if strings.HasPrefix(what, "HEAD") {
				own = own || strings.HasPrefix(version, "registry/2")
			}
			if !own {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}
