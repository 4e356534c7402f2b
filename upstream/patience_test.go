package upstream

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

// TestOnlyListsMayTakeLong: an answer that begins late is given up, but for requests that may take
// long.
func TestOnlyListsMayTakeLong(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			select { // until the client has left
			case <-r.Context().Done():
			case <-time.After(time.Minute):
			}
			return
		}
		time.Sleep(100 * time.Millisecond)
	}))
	defer srv.Close()
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	d := &dialer{base: base}
	transport := byPatience{d.transport(nil, 20*time.Millisecond), d.transport(nil, ListDeadline)}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	late, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/late", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := transport.RoundTrip(late); err == nil {
		resp.Body.Close()
		t.Error("a late answer is waited for")
	}
	resp, err := transport.RoundTrip(req.WithContext(patiently(req.Context())))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	made := newTransport(d, nil).(byPatience)
	usual, patient := made.usual.(*http.Transport).ResponseHeaderTimeout, made.patient.(*http.Transport).ResponseHeaderTimeout
	if usual != headersDeadline || patient != ListDeadline {
		t.Errorf("%s for most requests, %s for lists", usual, patient)
	}
}
