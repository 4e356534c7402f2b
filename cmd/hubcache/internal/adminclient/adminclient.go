// Package adminclient asks a running server over its admin listener.
package adminclient

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// maxLine, in bytes, is more than any event of a stream has.
const maxLine = 1 << 20

// timeout is how long an answer may take. The server is mostly on this machine.
const timeout = 5 * time.Second

// Client asks one server. It is safe for concurrent use.
type Client struct {
	addr   string
	source string // where the address is from; "": from the caller of New
	token  string // for requests that change the cache; "": none
	http   *http.Client
	slow   *http.Client // without a limit of time, for what the server works on
}

// Addr returns the address that is asked: host:port or unix:/path.
func (c *Client) Addr() string { return c.addr }

// String returns the address and where it is from.
func (c *Client) String() string {
	if c.source == "" {
		return c.addr
	}
	return c.addr + " (" + c.source + ")"
}

// New returns a client of the admin listener at addr: host:port, with http:// or without,
// or unix:/path. It asks nothing yet. Its error is a settings.UsageError.
func New(addr string) (*Client, error) {
	addr = strings.TrimSuffix(strings.TrimPrefix(addr, "http://"), "/")
	if err := settings.CheckAddress(addr); err != nil {
		return nil, settings.UsageError{Err: fmt.Errorf("admin address: %w", err)}
	}
	t := &http.Transport{DisableKeepAlives: true}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
	return &Client{addr: addr, http: &http.Client{Transport: t, Timeout: timeout}, slow: &http.Client{Transport: t}}, nil
}

// Stats returns the server's figures, and the document as it came. It fails when nothing
// answers within five seconds, and when what answers is not hubcache's admin listener.
func (c *Client) Stats(ctx context.Context) (s admin.Stats, raw []byte, err error) {
	if raw, err = c.get(ctx, "/api/v1/stats"); err != nil {
		return s, nil, err
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, nil, fmt.Errorf("what answers at %s is not hubcache: %w", c, err)
	}
	return s, raw, nil
}

// statusError is an answer with another status than 200.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

// Settings returns what the server runs with. It fails with ErrNotTold when the server doesn't
// tell whoever asks at this address.
func (c *Client) Settings(ctx context.Context) (s admin.Settings, err error) {
	raw, err := c.get(ctx, "/api/v1/settings")
	if e, ok := errors.AsType[*statusError](err); ok && (e.status == http.StatusForbidden || e.status == http.StatusNotFound) {
		return s, fmt.Errorf("%w: %w", ErrNotTold, err)
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fmt.Errorf("what answers at %s is not hubcache: %w", c, err)
	}
	return s, nil
}

// ErrNotTold is wrapped by the errors of Settings when the server refuses, or is too old to know
// the question. The rest of the text is the server's.
var ErrNotTold = errors.New("the server doesn't tell its settings here")

// Stats asks the admin listener at addr once. Its errors are those of New and
// Client.Stats.
func Stats(ctx context.Context, addr string) (admin.Stats, error) {
	c, err := New(addr)
	if err != nil {
		return admin.Stats{}, err
	}
	s, _, err := c.Stats(ctx)
	return s, err
}

// get returns the body of an answer whose status is 200.
func (c *Client) get(ctx context.Context, path string) ([]byte, error) {
	resp, err := c.send(ctx, c.http, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// send sends a request and returns the answer if its status is 200. The error for another status
// is a *statusError.
func (c *Client) send(ctx context.Context, by *http.Client, method, path string, body any) (*http.Response, error) {
	host := c.addr
	if strings.HasPrefix(host, "unix:") {
		host = "localhost"
	}
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, r)
	if err != nil {
		return nil, settings.UsageError{Err: fmt.Errorf("admin address %q: %w", c.addr, err)}
	}
	req.Header.Set(admin.VerbHeader, "1")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := by.Do(req)
	if err != nil {
		return nil, c.unanswered(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // an error is a line or two
	if err != nil {
		return nil, err
	}
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(b, &said) == nil && said.Error != "" {
		if said.Error == admin.NoSuchPath || said.Error == admin.NoSuchMethod {
			said.Error = fmt.Sprintf("the hubcache at %s is another version, which can't do this: update it and restart it", c)
		}
		return nil, &statusError{resp.StatusCode, said.Error}
	}
	return nil, &statusError{resp.StatusCode, fmt.Sprintf("%s answers %s: %s (is it the admin address?)", c, resp.Status, bytes.TrimSpace(b))}
}

// Status returns the status of the answer that an error of a Client is about; 0: there was none.
func Status(err error) int {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	return 0
}

// Do sends a request for one of the verbs and decodes the answer into out, if it isn't nil. The
// error of a refusal is the server's own text; Status tells its status.
func (c *Client) Do(ctx context.Context, method, path string, body, out any) error {
	resp, err := c.send(ctx, c.slow, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("the answer of %s: %w", c, err)
	}
	return nil
}

// Download gets what an answer has, of so many bytes; -1 if that isn't known. Close it. Reading
// fails with io.ErrUnexpectedEOF when the server breaks it off.
func (c *Client) Download(ctx context.Context, path string) (io.ReadCloser, int64, error) {
	resp, err := c.send(ctx, c.slow, http.MethodGet, path, nil)
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

// Stream sends a request whose answer is a line of JSON for each event, and calls each with every
// one but the last. The last says whether all went well: its error is the one that Stream
// returns. It also fails when the answer ends without a last line, because then nobody knows.
func (c *Client) Stream(ctx context.Context, method, path string, body any, each func(line []byte) error) error {
	resp, err := c.send(ctx, c.slow, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var last struct {
			Done  bool    `json:"done"`
			Error *string `json:"error"`
		}
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			return fmt.Errorf("the answer of %s: %w", c, err)
		}
		if last.Done && last.Error != nil {
			return errors.New(*last.Error)
		} else if last.Done {
			return nil
		}
		if err := each(lines.Bytes()); err != nil {
			return err
		}
	}
	if err := errors.Join(lines.Err(), ctx.Err()); err != nil {
		return fmt.Errorf("the answer of %s: %w", c, err)
	}
	return fmt.Errorf("the server at %s ended its answer early; its log says why", c)
}

// unanswered says why there was no answer, and at which address and from where.
func (c *Client) unanswered(err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case !ok || op.Op != "dial":
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // the rest is the URL of the request
		}
		return fmt.Errorf("asking hubcache at %s: %w", c, err)
	case errors.Is(op.Err, fs.ErrPermission):
		return fmt.Errorf("this user may not ask hubcache at %s: only root and the members of the group %s may", c, groupOf(strings.TrimPrefix(c.addr, "unix:")))
	}
	return fmt.Errorf("no hubcache answers at %s: %w; is 'hubcache serve' running, with this admin address? --admin or $HUBCACHE_ADMIN names another", c, op.Err)
}

// groupOf is the name of the group of a file, its number if it has no name, and what the
// package calls it if the file can't be looked at.
func groupOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "hubcache"
	}
	gid := strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Gid)) // what os.Stat returns on Linux
	if g, err := user.LookupGroupId(gid); err == nil {
		return g.Name
	}
	return gid
}
