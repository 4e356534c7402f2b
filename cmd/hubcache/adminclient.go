package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// adminWithin is how long a server, mostly on this machine, may take to answer a command.
const adminWithin = 5 * time.Second

// adminClient asks a running server.
type adminClient struct {
	addr string
	http *http.Client
}

// newAdminClient takes host:port, with http:// or without, or unix:/path. The error is a
// usageError.
func newAdminClient(addr string) (*adminClient, error) {
	addr = strings.TrimSuffix(strings.TrimPrefix(addr, "http://"), "/")
	if err := settings.CheckAddress(addr); err != nil {
		return nil, usageError{fmt.Errorf("admin address: %w", err)}
	}
	t := &http.Transport{DisableKeepAlives: true}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
	return &adminClient{addr, &http.Client{Transport: t, Timeout: adminWithin}}, nil
}

// stats returns the server's figures, and as they came.
func (c *adminClient) stats(ctx context.Context) (s admin.Stats, raw []byte, err error) {
	if raw, err = c.get(ctx, "/api/v1/stats"); err != nil {
		return s, nil, err
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, nil, fmt.Errorf("what answers at %s is not hubcache: %w", c.addr, err)
	}
	return s, raw, nil
}

// get returns the body of a 200.
func (c *adminClient) get(ctx context.Context, path string) ([]byte, error) {
	host := c.addr
	if strings.HasPrefix(host, "unix:") {
		host = "localhost"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return nil, usageError{fmt.Errorf("admin address %q: %w", c.addr, err)}
	}
	resp, err := c.http.Do(req)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return nil, fmt.Errorf("no hubcache answers at %s (%w); is 'hubcache serve' running, with this admin address?", c.addr, op.Err)
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: %s (is it the admin address?)", c.addr, resp.Status, bytes.TrimSpace(b))
	}
	return b, nil
}
