package registry_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestEveryRequestGetsTheRightCodeAndJSON: each kind of request, valid or not, is answered
// with the status and error code of the API. Credentials that a client sends are ignored
// and not logged.
func TestEveryRequestGetsTheRightCodeAndJSON(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{})
		img := l.smallImage("library/redis", "7")
		none := strings.Repeat("0", 64)
		for _, c := range []struct {
			method, path string
			status       int
			code         string
		}{
			{"GET", "/v2/", 200, ""},
			{"GET", "/v2", 200, ""},
			{"GET", "/v2/redis/manifests/7", 200, ""},
			{"GET", "/v2/library/redis/manifests/7?ns=docker.io", 200, ""},
			{"GET", "/v2/library/redis/manifests/7?ns=index.docker.io", 200, ""},
			{"GET", "/v2/library/redis/manifests/7?ns=ghcr.io", 404, "NAME_UNKNOWN"},
			{"GET", "/v2/library/redis/manifests/nope", 404, "MANIFEST_UNKNOWN"},
			{"GET", "/v2/library/redis/manifests/sha256:" + none, 404, "MANIFEST_UNKNOWN"},
			{"GET", "/v2/library/redis/manifests/sha256:xyz", 400, "DIGEST_INVALID"},
			{"GET", "/v2/library/redis/blobs/sha256:" + none, 404, "BLOB_UNKNOWN"},
			{"GET", "/v2/library/redis/blobs/7", 400, "DIGEST_INVALID"},
			{"GET", "/v2/library/unknown/manifests/1", 404, "NAME_UNKNOWN"},
			{"GET", "/v2/Library/redis/manifests/7", 400, "NAME_INVALID"},
			{"GET", "/v2/../../etc/manifests/7", 400, "NAME_INVALID"},
			{"PUT", "/v2/library/redis/manifests/7", 405, "UNSUPPORTED"},
			{"POST", "/v2/library/redis/blobs/uploads/", 404, "UNSUPPORTED"},
			{"DELETE", "/v2/library/redis/manifests/sha256:" + none, 405, "UNSUPPORTED"},
			{"GET", "/v1/search", 404, "UNSUPPORTED"},
			{"GET", "/api/v1/stats", 404, "UNSUPPORTED"},
		} {
			r := l.do(c.method, c.path)
			if r.status != c.status || c.code != "" && !strings.Contains(string(r.body), `"code":"`+c.code+`"`) {
				t.Errorf("%s %s: %d %s", c.method, c.path, r.status, r.body)
			}
			if r.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" || r.header.Get("WWW-Authenticate") != "" {
				t.Errorf("%s: %v", c.path, r.header)
			}
			if strings.Contains(c.path, "ns=") && c.status == 200 && r.header.Get("OCI-Namespace") != "docker.io" {
				t.Errorf("%s: no OCI-Namespace", c.path)
			}
		}
		for _, auth := range []string{"Basic dXNlcjpwYXNz", "Bearer abc", "nonsense"} {
			if r := l.get(manifestPath(img), "Authorization", auth); r.status != 200 {
				t.Errorf("with %q: %d", auth, r.status)
			}
		}
		if s := l.log.String(); strings.Contains(s, "dXNlcjpwYXNz") {
			t.Error("a client's credentials were logged")
		}
		st := l.reg.Stats().Manifest
		if sum := st.Hit + st.Revalidated + st.Miss + st.Shared + st.Stale + st.Bypass + st.Error; sum != 13 {
			t.Errorf("%d manifest requests counted: %+v", sum, st)
		}
	})
}

// TestHalfClosedClientGetsNoEmptySuccess: a client that closes its sending side after the
// request gets no empty answer with status 200.
func TestHalfClosedClientGetsNoEmptySuccess(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{anonymous: true})
	img := l.smallImage("library/redis", "7")
	l.hub.Inject(hubtest.Match{Kind: "blobs"}, hubtest.Delay(time.Second))
	srv := httptest.NewServer(l.reg)
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: cache\r\n\r\n", blobPath("library/redis", img.Manifests[0].Layers[0].Digest))
	c.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return // the connection was cut, which is right
	}
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode == 200 && err == nil && len(b) == 0 {
		t.Errorf("%d with %d bytes, ended without an error: %v", resp.StatusCode, len(b), resp.Header)
	}
}
