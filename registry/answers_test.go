package registry

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/auth"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/upstream"
)

// inside are texts that the errors below have in them: an account, paths, addresses of the
// network inside, and what another machine said. They are for the log.
var inside = []string{"some-account", "/var/lib/secret-place", "10.66.", "what-it-said", "index page"}

// insideErrors are errors of every package below, as they reach the answers.
func insideErrors() map[string]error {
	pathError := &fs.PathError{Op: "open", Path: "/var/lib/secret-place/blobs", Err: syscall.EIO}
	reason := map[string]error{
		"the token's file":    &auth.FileError{Path: "/var/lib/secret-place/token", Err: os.ErrPermission},
		"a refused token":     &auth.RefusedError{Username: "some-account", Host: "auth.docker.io", Until: time.Now().Add(time.Minute)},
		"a throttled service": &auth.ThrottledError{Host: "10.66.1.1", Until: time.Now().Add(time.Minute)},
		"a broken service":    &auth.TokenError{Host: "auth.docker.io", Status: 200, Err: errors.New("what-it-said")},
		"a dial":              &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(10, 66, 0, 1)}, Addr: &net.TCPAddr{IP: net.IPv4(10, 66, 0, 2)}, Err: syscall.ECONNREFUSED},
		"a name server":       &net.DNSError{Err: "no such host", Name: "registry-1.docker.io", Server: "10.66.0.53:53"},
		"a certificate":       x509.CertificateInvalidError{Reason: x509.Expired, Detail: "what-it-said"},
		"a full disk":         &os.SyscallError{Syscall: "write /var/lib/secret-place", Err: syscall.ENOSPC},
		"a disk":              pathError,
		"a link":              &os.LinkError{Op: "rename", Old: "/var/lib/secret-place/a", New: "/var/lib/secret-place/b", Err: syscall.EXDEV},
		"the index":           fmt.Errorf("index page 7 is damaged in %s: %w", "/var/lib/secret-place", pathError),
	}
	all := map[string]error{
		"too many":    fmt.Errorf("of some-account: %w", fetch.ErrBusy),
		"too late":    fmt.Errorf("reading /var/lib/secret-place: %w", context.DeadlineExceeded),
		"not kept":    fmt.Errorf("%w: %w", fetch.ErrEnded, pathError),
		"stopping":    fmt.Errorf("in /var/lib/secret-place: %w", errStopping),
		"a cancel":    context.Canceled,
		"own failure": &failure{status: 502, code: answers[upstream.Broken].manifest.code, detail: "a word for clients", err: pathError},
	}
	for name, err := range reason {
		all["bare: "+name] = err
		for cause := upstream.NotFound; cause <= upstream.Unsupported; cause++ {
			all[fmt.Sprintf("cause %d: %s", cause, name)] = &upstream.Error{Cause: cause, Host: "registry-1.docker.io", Status: 418, Err: err}
		}
		all["wrapped: "+name] = fmt.Errorf("on the way: %w", &upstream.Error{Cause: upstream.Broken, Host: "registry-1.docker.io", Err: err})
	}
	return all
}

// TestAnswersSayNothingFromInside: whatever fails, the answer to a client has neither the
// account nor a path nor an address in it, nor what another machine said. The log has all.
func TestAnswersSayNothingFromInside(t *testing.T) {
	for name, err := range insideErrors() {
		for k := ping; k <= catalog; k++ {
			for _, method := range []string{"GET", "HEAD"} {
				f := fail(k, err)
				w := httptest.NewRecorder()
				f.write(w, httptest.NewRequest(method, "/v2/", nil))
				answer := w.Body.String() + fmt.Sprint(w.Result().Header)
				for _, text := range inside {
					if strings.Contains(answer, text) {
						t.Errorf("%s, %s: %q is in the answer: %s", name, k, text, answer)
					}
					if strings.Contains(err.Error(), text) && !strings.Contains(f.Error(), text) {
						t.Errorf("%s, %s: %q is not in the log: %s", name, k, text, f)
					}
				}
				var body struct {
					Errors []struct{ Code, Message, Detail string }
				}
				if method == "GET" && (json.Unmarshal(w.Body.Bytes(), &body) != nil || len(body.Errors) != 1 || body.Errors[0].Detail == "") {
					t.Errorf("%s, %s: the answer gives no reason: %s", name, k, answer)
				}
			}
		}
	}
}
