package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/history"
	"github.com/hubcache/hubcache/storage"
)

// countingStore counts how often it is asked, and holds so many bytes.
type countingStore struct{ asked, bytes *atomic.Int64 }

func (s countingStore) Stats() storage.Stats {
	s.asked.Add(1)
	return storage.Stats{Bytes: s.bytes.Load()}
}

// eventLab is an admin listener in memory. It only works in a synctest bubble.
type eventLab struct {
	t            *testing.T
	asked, bytes atomic.Int64
	server       *http.Server
	dial         func() net.Conn
}

func newEventLab(t *testing.T) *eventLab {
	l := &eventLab{t: t}
	o := idle()
	o.Store = countingStore{&l.asked, &l.bytes}
	conns := make(chan net.Conn)
	l.server = &http.Server{Handler: New(o)}
	go l.server.Serve(pipes{conns})
	l.dial = func() net.Conn {
		client, server := net.Pipe()
		conns <- server
		return client
	}
	t.Cleanup(func() { l.server.Close() })
	return l
}

// pipes is a listener whose connections are pipes. Close lets Accept wait on: nobody calls it then.
type pipes struct{ conns chan net.Conn }

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { close(p.conns); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Net: "pipe"} }

// listen begins to listen.
func (l *eventLab) listen() *http.Response {
	l.t.Helper()
	c := l.dial()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	resp, err := transport.RoundTrip(httptest.NewRequest(http.MethodGet, "http://localhost/api/v1/events", nil))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { resp.Body.Close(); transport.CloseIdleConnections() })
	return resp
}

// next reads an event; alive reports whether it only says that the connection lives.
func next(t *testing.T, r *bufio.Reader) (s Stats, alive bool) {
	t.Helper()
	var data string
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case line == "\n" && data == "":
			return s, true
		case line == "\n":
			if err := json.Unmarshal([]byte(data), &s); err != nil {
				t.Fatal(err)
			}
			return s, false
		}
		if text, ok := strings.CutPrefix(line, "data: "); ok {
			data = text
		}
	}
}

// TestEventsComeWhenSomethingChanges: at once, then with each change, within a second; and now and
// then a sign of life.
func TestEventsComeWhenSomethingChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newEventLab(t)
		resp := l.listen()
		if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
			t.Error(got)
		}
		r := bufio.NewReader(resp.Body)
		if s, _ := next(t, r); s.Schema != Schema || s.Version != "1.2.3" {
			t.Errorf("%+v", s)
		}
		l.bytes.Store(5)
		began := time.Now()
		if s, _ := next(t, r); s.Store.Bytes != 5 || time.Since(began) > time.Second {
			t.Errorf("%d bytes after %v", s.Store.Bytes, time.Since(began))
		}
		began = time.Now()
		if s, alive := next(t, r); !alive || time.Since(began) > 20*time.Second {
			t.Errorf("%+v after %v", s, time.Since(began))
		}
	})
}

// TestEventsCostNothingWithoutListeners: and with many of them no more than with one.
func TestEventsCostNothingWithoutListeners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newEventLab(t)
		time.Sleep(time.Minute)
		if n := l.asked.Load(); n > 0 {
			t.Errorf("asked %d times", n)
		}
		var all []*http.Response
		for range listenersMost {
			all = append(all, l.listen())
		}
		if resp := l.listen(); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("one more: %s", resp.Status)
		}
		before := l.asked.Load()
		for _, resp := range all {
			go func() {
				for r := bufio.NewReader(resp.Body); ; {
					if _, err := r.ReadByte(); err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(60*time.Second + 500*time.Millisecond)
		if n := l.asked.Load() - before; n > 62 {
			t.Errorf("%d times in a minute", n)
		}
		for _, resp := range all {
			resp.Body.Close()
		}
		synctest.Wait()
		before = l.asked.Load()
		time.Sleep(time.Minute)
		if n := l.asked.Load() - before; n > 0 {
			t.Errorf("asked %d times when all had left", n)
		}
		if resp := l.listen(); resp.StatusCode != http.StatusOK {
			t.Errorf("when all had left: %s", resp.Status)
		}
	})
}

// TestEventsEnd: a listener that doesn't read is cut off, and the end of the server ends all.
func TestEventsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newEventLab(t)
		for range listenersMost { // they read nothing but the headers
			l.listen()
		}
		for n := range 60 { // net/http's buffers take some
			l.bytes.Store(int64(n))
			time.Sleep(time.Second)
		}
		resp := l.listen()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("slow readers keep their places: %s", resp.Status)
		}
		r := bufio.NewReader(resp.Body)
		next(t, r)
		began := time.Now()
		l.server.Close()
		if _, err := r.ReadByte(); err == nil || time.Since(began) > 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// TestHistoryIsTold: with the form that other programs rely on.
func TestHistoryIsTold(t *testing.T) {
	o := idle()
	o.History = func() []history.Series {
		return []history.Series{{Name: "hour", Step: time.Minute, Points: []history.Point{{At: observed.UTC(), Counts: history.Counts{Requests: 1, Hits: 2, Errors: 3, Served: 4, Hit: 5, Fetched: 6}}}}}
	}
	resp, body := get(t, o, "/api/v1/history")
	want := `{
  "schema": 1,
  "series": [
    {
      "name": "hour",
      "step_seconds": 60,
      "points": [
        {
          "at": "2026-03-04T05:06:07Z",
          "requests": 1,
          "hits": 2,
          "errors": 3,
          "served": 4,
          "hit": 5,
          "fetched": 6
        }
      ]
    }
  ]
}
`
	if resp.StatusCode != http.StatusOK || body != want {
		t.Errorf("%s\n%s", resp.Status, body)
	}
	for _, path := range []string{"/api/v1/history", "/api/v1/events"} {
		req := httptest.NewRequest(http.MethodGet, path, nil)
		req.Host = "evil.example"
		if resp := ask(t, o, req); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s for a foreign Host: %s", path, resp.Status)
		}
	}
}
