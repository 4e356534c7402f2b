package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// client is one client of a crowd.
type client struct {
	name  string
	from  int64 // offset of the first byte asked for
	leave bool  // goes away after the first bytes

	took   time.Duration // until the headers, or the lack of them
	status int
	header http.Header
	n      int64  // bytes of the blob
	wrong  bool   // some were others
	body   []byte // of an error
	err    error
}

// crowd sends different clients for a blob and returns how they fared: the first one, one
// with a range, one with a range in the back, one that comes later, one that leaves.
func (l *lab) mixedClients(repository string, d digest.Digest) []*client {
	cs := []*client{
		{name: "first"},
		{name: "range", from: 100},
		{name: "tail", from: l.hub.Blob(d).Size() - 1000},
		{name: "late"},
		{name: "fickle", leave: true},
	}
	var wg sync.WaitGroup
	for i, c := range cs {
		wg.Go(func() {
			time.Sleep(time.Duration(i) * 20 * time.Millisecond)
			c.get(l, repository, d)
		})
	}
	wg.Wait()
	l.waitIdle()
	return cs
}

func (c *client) get(l *lab, repository string, d digest.Digest) {
	path := "/v2/" + repository + "/blobs/" + string(d)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var header []string
	if c.from > 0 {
		header = []string{"Range", fmt.Sprintf("bytes=%d-", c.from)}
	}
	start := time.Now()
	resp, err := l.ask(ctx, "GET", path, header...)
	c.took = time.Since(start)
	if err != nil {
		c.err = err
		return
	}
	defer resp.Body.Close()
	c.status, c.header = resp.StatusCode, resp.Header
	switch {
	case c.leave:
		io.CopyN(io.Discard, resp.Body, 1000)
	case c.status >= 400:
		c.body, c.err = io.ReadAll(resp.Body)
	default:
		c.err = c.compare(resp.Body, l.hub.Blob(d))
	}
}

// compare reads a body and holds it against the blob.
func (c *client) compare(body io.Reader, b io.ReaderAt) error {
	got, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := body.Read(got)
		b.ReadAt(want[:n], c.from+c.n)
		if !bytes.Equal(got[:n], want[:n]) {
			c.wrong = true
		}
		c.n += int64(n)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// result is how clients fare.
type result uint8

const (
	whole           result = iota // all have all bytes
	refused                       // an error before the headers
	broken                        // the connection breaks after them
	refusedOrBroken               // refused or broken: it depends on when one comes
)

// check: right bytes or a broken connection, never a short or wrong success.
func (c *client) check(t *testing.T, l *lab, d digest.Digest, want result) {
	t.Helper()
	if c.took > 10*time.Second {
		t.Errorf("%s: waited %s for headers", c.name, c.took)
	}
	if c.leave {
		return
	}
	got := broken
	switch rest := l.hub.Blob(d).Size() - c.from; {
	case c.status == 0 && c.err != nil:
	case c.status >= 400:
		got = refused
		c.checkRefusal(t)
	case c.status != 200 && c.status != 206:
		t.Errorf("%s: status %d", c.name, c.status)
	case (c.status == 206) != (c.from > 0):
		t.Errorf("%s: status %d from %d", c.name, c.status, c.from)
	case c.wrong:
		t.Errorf("%s: wrong bytes", c.name)
	case c.err == nil && c.n != rest:
		t.Errorf("%s: a success of %d bytes instead of %d", c.name, c.n, rest)
	case c.err != nil && c.n >= rest:
		t.Errorf("%s: all bytes, and %v", c.name, c.err)
	case c.err == nil:
		got = whole
	}
	if got != want && !(want == refusedOrBroken && got != whole) {
		t.Errorf("%s: %d, %d bytes, %v: result %d instead of %d\n%s", c.name, c.status, c.n, c.err, got, want, l.log)
	}
}

// refusal: a blob that can't be had is 429 with Retry-After or 404, never 5xx and never 401.
func (c *client) checkRefusal(t *testing.T) {
	t.Helper()
	if c.status != 404 && (c.status != 429 || c.header.Get("Retry-After") == "") || c.header.Get("Www-Authenticate") != "" {
		t.Errorf("%s: refused with %d %v", c.name, c.status, c.header)
	}
	if !bytes.HasPrefix(c.body, []byte(`{"errors":[`)) {
		t.Errorf("%s: error body %q", c.name, c.body)
	}
}

// fetch gets a blob, whole and right.
func (l *lab) fetch(repository string, d digest.Digest) {
	l.t.Helper()
	c := &client{name: "fetch"}
	c.get(l, repository, d)
	c.check(l.t, l, d, whole)
}

// apiError: the API's JSON, no challenge, and, with 429, when to come back.
func checkAPIError(t *testing.T, r reply) {
	t.Helper()
	var body struct {
		Errors []struct{ Code, Message, Detail string }
	}
	if err := json.Unmarshal(r.body, &body); err != nil || len(body.Errors) != 1 || body.Errors[0].Code == "" || body.Errors[0].Detail == "" {
		t.Errorf("error body %q, %v", r.body, err)
	}
	if r.header.Get("Www-Authenticate") != "" || r.status == 429 && r.header.Get("Retry-After") == "" {
		t.Errorf("%d with headers %v", r.status, r.header)
	}
}

// fetchMode is how a blob comes in.
type fetchMode struct {
	name   string
	size   int64 // of the faulty layer
	skip   int   // healthy requests for it before the first faulty one
	offset int64 // within a body, of faults in the body
	ahead  bool  // the layer is read ahead of its clients
}

var fetchModes = []fetchMode{
	{name: "single stream", size: 5 << 18, offset: 5 << 17},
	{name: "one of several ranges", size: 17 << 19, skip: 1, offset: 1 << 18},
	{name: "read ahead", size: 5 << 18, offset: 5 << 17, ahead: true},
}
