package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// client pulls as containerd does, config and layers three at a time, and discards the bytes.
// It shares no connections with other clients.
type client struct {
	base   string
	http   *http.Client
	direct *upstream // when it pulls from the Hub itself, with tokens
	verify bool      // check digests; not where time is measured

	mu     sync.Mutex // guards all below
	tokens map[string]string
	first  []time.Duration // from a layer's request to its first byte
}

func newClient(t *target) *client {
	c := &client{base: t.url, tokens: map[string]string{}}
	c.http = &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 8, DisableCompression: true, ReadBufferSize: 64 << 10,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, // each run has a certificate of its own
		CheckRedirect: func(req *http.Request, _ []*http.Request) error {
			req.Header.Del("Authorization")
			return nil
		},
	}
	if t.name == direct {
		c.direct = t.bench.upstream
	}
	return c
}

func (c *client) close() { c.http.CloseIdleConnections() }

// get sends a GET or HEAD that must be answered with 200.
func (c *client) get(ctx context.Context, method, repository, path string) (*http.Response, error) {
	return c.ask(ctx, method, repository, path, "")
}

// ask is get with a Range field, which may be answered with 206; "": without one.
func (c *client) ask(ctx context.Context, method, repository, path, ranges string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/v2/"+repository+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	if ranges != "" {
		req.Header.Set("Range", ranges)
	}
	if c.direct != nil {
		token, err := c.token(ctx, repository)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.http.Do(req)
	if err == nil && resp.StatusCode != http.StatusOK && (ranges == "" || resp.StatusCode != http.StatusPartialContent) {
		resp.Body.Close()
		err = fmt.Errorf("%s %s%s: %s", method, repository, path, resp.Status)
	}
	return resp, err
}

// token gets a token for the Hub, once for each repository.
func (c *client) token(ctx context.Context, repository string) (string, error) {
	c.mu.Lock()
	token := c.tokens[repository]
	c.mu.Unlock()
	if token != "" {
		return token, nil
	}
	query := url.Values{"service": {"registry.docker.io"}, "scope": {"repository:" + repository + ":pull"}}
	token, err := getToken(ctx, c.http, c.direct.hub.Network.URL(hubtest.Token)+"/token?"+query.Encode())
	c.mu.Lock()
	c.tokens[repository] = token
	c.mu.Unlock()
	return token, err
}

// pull pulls an image: HEAD of the tag, index, manifest, config and layers.
func (c *client) pull(ctx context.Context, img *hubtest.Image) error {
	resp, err := c.get(ctx, http.MethodHead, img.Repository, "/manifests/"+img.Tag)
	if err != nil {
		return err
	}
	resp.Body.Close()
	m := img.Manifests[0]
	for _, d := range []ocispec.Descriptor{img.Descriptor, m.Descriptor} {
		if err := c.read(ctx, img.Repository, "/manifests/", d); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3)
	g.Go(func() error { return c.blob(ctx, img.Repository, m.Config, nil) })
	for _, l := range m.Layers {
		g.Go(func() error {
			start := time.Now()
			return c.blob(ctx, img.Repository, l, func() {
				c.mu.Lock()
				c.first = append(c.first, time.Since(start))
				c.mu.Unlock()
			})
		})
	}
	return g.Wait()
}

func (c *client) read(ctx context.Context, repository, path string, d ocispec.Descriptor) error {
	resp, err := c.get(ctx, http.MethodGet, repository, path+d.Digest.String())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return c.drain(resp.Body, d)
}

// blob reads a whole blob. It calls first, which may be nil, at its first byte.
func (c *client) blob(ctx context.Context, repository string, d ocispec.Descriptor, first func()) error {
	resp, err := c.get(ctx, http.MethodGet, repository, "/blobs/"+d.Digest.String())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if first == nil {
		return c.drain(resp.Body, d)
	}
	return c.drain(&firstByte{resp.Body, first}, d)
}

// firstByte calls a function when the first byte is read.
type firstByte struct {
	io.Reader
	call func() // nil after the first byte
}

func (f *firstByte) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if n > 0 && f.call != nil {
		f.call()
		f.call = nil
	}
	return n, err
}

var drainBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

func (c *client) drain(r io.Reader, d ocispec.Descriptor) error {
	w := io.Discard
	v := d.Digest.Verifier()
	if c.verify {
		w = v
	}
	buf := drainBuffers.Get().(*[256 << 10]byte)
	defer drainBuffers.Put(buf)
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, r, buf[:])
	switch {
	case err != nil:
		return err
	case n != d.Size:
		return fmt.Errorf("%s has %d bytes instead of %d", d.Digest, n, d.Size)
	case c.verify && !v.Verified():
		return fmt.Errorf("wrong bytes for %s", d.Digest)
	}
	return nil
}

// raw reads a blob and lets the kernel discard it (MSG_TRUNC), so that the client uses almost
// no CPU time.
func raw(ctx context.Context, t *target, repository string, d digest.Digest, size int64) error {
	addr := strings.TrimPrefix(t.url, "http://")
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "GET /v2/%s/blobs/%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", repository, d, addr)
	head := make([]byte, 0, 4096)
	for !strings.Contains(string(head), "\r\n\r\n") {
		n, err := conn.Read(head[len(head):cap(head)])
		if err != nil {
			return err
		}
		head = head[:len(head)+n]
	}
	header, rest, _ := strings.Cut(string(head), "\r\n\r\n")
	if !strings.HasPrefix(header, "HTTP/1.1 200 ") {
		return errors.New(header)
	}
	sock, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	got := int64(len(rest))
	buf := make([]byte, 1<<20)
	for got < size {
		n := 0
		var rerr error
		err := sock.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			return rerr != unix.EAGAIN
		})
		if err = errors.Join(err, rerr); err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		got += int64(n)
	}
	return nil
}
