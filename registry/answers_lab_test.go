package registry_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestTroubleWithTheTokenStaysInTheLog: while the access token can't be used, or the disk can't
// be read, no answer names the account or a folder, and the log does.
func TestTroubleWithTheTokenStaysInTheLog(t *testing.T) {
	t.Parallel()
	refuse := func(l *lab) {
		l.hub.Inject(hubtest.Match{Face: hubtest.Token}, hubtest.Status(401, `{"details":"incorrect username or password"}`))
	}
	for name, c := range map[string]struct {
		trouble func(*lab)
		logged  string
	}{
		"refused": {refuse, username},
		"missing": {func(l *lab) { // and started again since: the last secret isn't known any more
			l.stop()
			l.cred = auth.NewFile(username, filepath.Join(l.dir, "none", "pat"))
			l.start()
		}, "/none/pat"},
		"a damaged disk": {func(l *lab) {
			manifests, err := filepath.Glob(filepath.Join(l.dir, "data", "blobs", "*", "*", "*"))
			if err != nil || len(manifests) == 0 {
				l.t.Fatalf("no blobs: %v", err)
			}
			for _, path := range manifests {
				os.Remove(path)
				os.Mkdir(path, 0o700)
			}
			refuse(l)
		}, username},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{hub: hubtest.Options{TokenLifetime: time.Minute}})
				img := l.smallImage("library/redis", "7")
				l.pull(img)
				l.waitIdle()
				time.Sleep(10 * time.Minute)
				c.trouble(l)
				defer l.hub.ClearFaults()
				other := "sha256:" + strings.Repeat("0", 64)
				for _, path := range []string{
					"/v2/library/redis/manifests/7", "/v2/library/redis/manifests/8", "/v2/library/redis/manifests/" + string(img.Digest),
					"/v2/library/redis/manifests/" + other, "/v2/library/redis/blobs/" + other, "/v2/library/redis/blobs/" + string(img.Blobs()[0].Digest),
					"/v2/library/redis/tags/list", "/v2/library/redis/referrers/" + other, "/v2/library/new/manifests/1", "/v2/library/new/blobs/" + other,
					"/v2/library/new/tags/list", "/v2/_catalog", "/v2/nonsense",
				} {
					for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut} {
						r := l.do(method, path)
						answer := fmt.Sprint(r.status, r.header, string(r.body))
						for _, text := range []string{username, l.dir, "/pat", pat} {
							if strings.Contains(answer, text) {
								t.Errorf("%s %s: %q is in the answer: %s", method, path, text, answer)
							}
						}
					}
				}
				if !strings.Contains(l.log.String(), c.logged) {
					t.Errorf("the log does not name %q", c.logged)
				}
			})
		})
	}
}
