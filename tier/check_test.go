package tier

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hubcache/hubcache/integration/tiertest"
)

// TestCheck: each way of being unwell is named, and nothing is left behind.
func TestCheck(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := l.node(nil)
	if b, r := n.tier.Check(t.Context()); b != Well || r != Well {
		t.Errorf("bucket %s, lease %s", b, r)
	}
	if len(l.s3.Names()) > 0 || len(l.leases.held) > 0 {
		t.Errorf("left behind: %v, %v", l.s3.Names(), l.leases.held)
	}
	for method, want := range map[string]string{http.MethodPut: "can't be written to", http.MethodGet: "can't be read", http.MethodDelete: "nothing can be deleted"} {
		l.s3.Fault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == method {
				io.Copy(io.Discard, r.Body)
				tiertest.Refuse(w, http.StatusForbidden, "AccessDenied")
				return
			}
			next.ServeHTTP(w, r)
		})
		if b, r := n.tier.Check(t.Context()); !strings.Contains(b, want) || !strings.Contains(b, "AccessDenied") || r != Well {
			t.Errorf("%s is refused: bucket %s, lease %s", method, b, r)
		}
	}
	l.s3.Fault(nil)
	l.leases.fail = errRefused
	if b, r := n.tier.Check(t.Context()); b != Well || !strings.Contains(r, "no lease can be taken") {
		t.Errorf("bucket %s, lease %s", b, r)
	}
	alone := l.node(func(o *Options) { o.Bucket, o.Notes = nil, nil })
	if b, _ := alone.tier.Check(t.Context()); b != Off {
		t.Errorf("without a bucket: %s", b)
	}
}
