// Package adminclient asks a running server over its admin listener.
package adminclient

import (
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

// timeout is how long an answer may take. The server is mostly on this machine.
const timeout = 5 * time.Second

// Client asks one server. It is safe for concurrent use.
type Client struct {
	addr   string
	source string // where the address is from; "": from the caller of New
	http   *http.Client
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
	return &Client{addr: addr, http: &http.Client{Transport: t, Timeout: timeout}}, nil
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
	host := c.addr
	if strings.HasPrefix(host, "unix:") {
		host = "localhost"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return nil, settings.UsageError{Err: fmt.Errorf("admin address %q: %w", c.addr, err)}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unanswered(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &statusError{resp.StatusCode, fmt.Sprintf("%s answers %s: %s (is it the admin address?)", c, resp.Status, bytes.TrimSpace(b))}
	}
	return b, nil
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
