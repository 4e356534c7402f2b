package adminclient

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// TestStreamEndsWithItsLastLine: the error of the last line is Stream's, and an answer without a
// last line is never taken for a success.
func TestStreamEndsWithItsLastLine(t *testing.T) {
	for _, c := range []struct {
		body   string
		status int
		events int
		err    string // part of it; "": none
	}{
		{body: "{\"n\":1}\n{\"n\":2}\n{\"done\":true,\"error\":null}\n", events: 2},
		{body: "{\"done\":true,\"error\":null}\n"},
		{body: "{\"n\":1}\n{\"done\":true,\"error\":\"no room\"}\n", events: 1, err: "no room"},
		{body: "{\"n\":1}\n", events: 1, err: "ended its answer early"},
		{body: "", err: "ended its answer early"},
		{body: "<html>", err: "invalid character"},
		{body: "{\"error\":\"no header\"}", status: http.StatusForbidden, err: "no header"},
		{body: "nginx", status: http.StatusBadGateway, err: "is it the admin address?"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method != http.MethodPost || req.Header.Get("X-Hubcache-Admin") != "1" || req.URL.Path != "/api/v1/verify" {
				t.Errorf("%s %s %v", req.Method, req.URL, req.Header)
			}
			if c.status != 0 {
				w.WriteHeader(c.status)
			}
			io.WriteString(w, c.body)
		}))
		client, err := New(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		var events []string
		err = client.Stream(context.Background(), http.MethodPost, "/api/v1/verify", nil, func(line []byte) error {
			events = append(events, string(line))
			return nil
		})
		server.Close()
		if len(events) != c.events || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: events %q, error %v; want %q", c.body, events, err, c.err)
		}
		if c.status != 0 && Status(err) != c.status {
			t.Errorf("%q: status %d", c.body, Status(err))
		}
		if slices.Contains(events, "") {
			t.Errorf("%q: an empty event", c.body)
		}
	}
}
