package tier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/tier/lease"
)

const (
	// peerConnects is how long a connection to another node may take.
	peerConnects = time.Second

	// peerAnswers is how long its headers may take. The node waits for the upstream itself.
	peerAnswers = 4 * time.Second

	// peerStall is how long its body may bring no byte.
	peerStall = 4 * time.Second
)

var (
	// errDead: nobody fetches the blob at the other end, as far as can be seen from here.
	errDead = errors.New("the node that fetches the blob can't be reached")

	// errNotPeer: the node is there, and doesn't have the blob for this one.
	errNotPeer = errors.New("the node that fetched the blob doesn't have it for this one")

	errPeerStalled = fmt.Errorf("the node that fetches the blob has sent nothing for %s", peerStall)
)

func newPeerClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: peerConnects}).DialContext,
			TLSHandshakeTimeout:   peerConnects,
			ResponseHeaderTimeout: peerAnswers,
			MaxIdleConnsPerHost:   16,
			IdleConnTimeout:       time.Minute,
			DisableCompression:    true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// openPeer asks the holder of a lease for a part of a blob. registry and repository are those under which
// it is asked for here, since the rules there are for those who ask.
// Errors: errDead, errNotPeer, ctx's cause.
func (t *Tier) openPeer(ctx context.Context, holder lease.Lease, registry, repository string, d digest.Digest, p fetch.Part) (*fetch.Body, error) {
	reading, cancel := context.WithCancelCause(ctx)
	body, err := t.askPeer(reading, holder, registry, repository, d, p)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	stall := time.AfterFunc(peerStall, func() { cancel(errPeerStalled) })
	stall.Stop()
	body.ReadCloser = peerBody{body.ReadCloser, reading, cancel, stall}
	return body, nil
}

func (t *Tier) askPeer(ctx context.Context, holder lease.Lease, registry, repository string, d digest.Digest, p fetch.Part) (*fetch.Body, error) {
	u, err := url.Parse(holder.Holder)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%w: its URL is %q", errNotPeer, holder.Holder)
	}
	u = u.JoinPath("v2", repository, "blobs", string(d))
	u.RawQuery = url.Values{"ns": {registry}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotPeer, err)
	}
	req.Header.Set(fetch.PeerHeader, holder.Token)
	ranged := p.From > 0 || p.To >= 0
	if ranged {
		value := "bytes=" + strconv.FormatInt(p.From, 10) + "-"
		if p.To >= 0 {
			value += strconv.FormatInt(p.To-1, 10)
		}
		req.Header.Set("Range", value)
	}
	resp, err := t.peers.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: %w", errDead, err)
	}
	body, err := peerAnswer(resp, p, ranged)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return body, nil
}

// peerAnswer reads the headers of an answer.
func peerAnswer(resp *http.Response, p fetch.Part, ranged bool) (*fetch.Body, error) {
	body := &fetch.Body{ReadCloser: resp.Body, To: -1, Size: -1, Ranged: true}
	switch {
	case resp.StatusCode == http.StatusOK && !ranged:
		if resp.ContentLength >= 0 {
			body.To, body.Size = resp.ContentLength, resp.ContentLength
		}
		return body, nil
	case resp.StatusCode == http.StatusPartialContent && ranged:
		span, size, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "/")
		first, last, _ := strings.Cut(span, "-")
		from, err1 := strconv.ParseInt(first, 10, 64)
		to, err2 := strconv.ParseInt(last, 10, 64)
		all, err3 := strconv.ParseInt(size, 10, 64)
		if errors.Join(err1, err2, err3) != nil || from != p.From || to < from || p.To >= 0 && to >= p.To || to >= all {
			return nil, fmt.Errorf("%w: Content-Range is %q", errNotPeer, resp.Header.Get("Content-Range"))
		}
		body.From, body.To, body.Size = from, to+1, all
		return body, nil
	}
	return nil, fmt.Errorf("%w: %s", errNotPeer, resp.Status)
}

// peerBody is the body of another node, which must go on.
type peerBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  *time.Timer
}

func (b peerBody) Read(p []byte) (int, error) {
	b.stall.Reset(peerStall)
	n, err := b.ReadCloser.Read(p)
	b.stall.Stop()
	if err != nil && err != io.EOF && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

func (b peerBody) Close() error {
	b.stall.Stop()
	b.cancel(nil)
	return b.ReadCloser.Close()
}
