package registry

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// listLife is how long a list is kept at least, also where tags are asked for every time:
// tools page through lists, and Docker asks for the referrers of an image at each pull.
const listLife = 5 * time.Second

// list is an answer to tags/list or referrers.
type list struct {
	upstream.List           // without Rest
	at            time.Time // when the upstream gave it
	packed        bool      // Body is compressed
	long          *longList // what follows Body, if the list is too large for memory; else nil
}

// Bounds of the lists kept in memory.
const (
	listKept  = 256 << 10 // the largest of the small ones
	listCount = 128       // of them, so 32 MiB at most

	// largeBytes is for all large ones, which push out no small one. They may be compressed;
	// then one has packedMost bytes at most.
	largeBytes = 16 << 20
	packedMost = 4 << 20
)

// lists are answers that are kept, within bounds. All methods are safe for concurrent use.
type lists struct {
	mu           sync.Mutex // guards what follows
	small, large *simplelru.LRU[string, *list]
	bytes        int64 // of the bodies in large
}

func newLists() *lists {
	l := &lists{}
	l.small, _ = simplelru.NewLRU[string, *list](listCount, nil)
	l.large, _ = simplelru.NewLRU(listCount, func(_ string, v *list) { l.bytes -= int64(len(v.Body)) })
	return l
}

func (l *lists) get(key string) *list {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.small.Get(key)
	if !ok {
		v, _ = l.large.Get(key)
	}
	return v
}

func (l *lists) put(key string, v *list) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.small.Remove(key)
	l.large.Remove(key) // its bytes don't count any more
	if len(v.Body) <= listKept {
		l.small.Add(key, v)
		return
	}
	l.bytes += int64(len(v.Body))
	for l.large.Add(key, v); l.bytes > largeBytes; {
		l.large.RemoveOldest()
	}
}

// serveList passes tags/list and referrers through. A registry that knows referrers never
// answers 404 for them, so upstream's 404 becomes an empty index.
func (r *repo) serveList(w http.ResponseWriter, req *http.Request, q *request) result {
	ctx := req.Context()
	if err := r.admission.wait(ctx); err != nil {
		return result{err: err}
	}
	path, query := "tags/list", pick(req.URL.Query(), "n", "last", "next_page", "page", "page_token") // the last three: Quay, and others
	if q.kind == referrers {
		path, query = "referrers/"+q.ref, pick(req.URL.Query(), "artifactType", "n", "last", "nextPage", "token")
	}
	s := r.policy.tag(r.name, "")
	kept := r.m.lists.get(listKey(r.name, path, query))
	if kept != nil && time.Since(kept.at) < max(s.ttl, listLife) {
		return kept.write(w, req, OutcomeHit)
	}
	l, err := r.currentList(ctx, path, query, kept, s.maxStale)
	if err == nil {
		return r.sendList(w, req, listKey(r.name, path, query), l)
	}
	u, ok := errors.AsType[*upstream.Error](err)
	down := ok && u.Down()
	switch {
	case down && q.kind == referrers && r.has(q.digest):
		r.m.log.Warn("serving referrers that could not be asked for", "repository", r.full, "digest", q.digest, "error", err)
		return r.staleReferrers(ctx, q.digest, kept).write(w, req, OutcomeStale)
	case kept != nil && time.Since(kept.at) < s.maxStale && (down || errors.Is(err, errSlow)):
		return kept.write(w, req, OutcomeStale)
	case ok && u.Cause == upstream.NotFound:
		return result{err: &failure{status: http.StatusNotFound, code: errcode.ErrorCodeNameUnknown, detail: u.Summary(), err: err}}
	case ok && u.Cause == upstream.Refused:
		return result{err: &failure{status: http.StatusBadGateway, code: errcode.ErrorCodeUnavailable, detail: u.Summary(), err: err}}
	}
	return result{err: err}
}

// has reports whether the manifest is cached and the repository has it.
func (r *repo) has(d digest.Digest) bool {
	if _, cached := r.m.store.Has(d); !cached {
		return false
	}
	_, err := r.m.store.Link(r.full, d)
	return err == nil
}

// keepReferrers keeps in the store what refers to a manifest, if that is cached.
func (r *repo) keepReferrers(d digest.Digest, l *list) {
	if !r.has(d) {
		return
	}
	body := l.Body
	var index struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	if json.Unmarshal(body, &index) == nil && len(index.Manifests) == 0 {
		body = nil // staleReferrers says the same without it
	}
	if err := r.m.store.SetReferrers(r.origin(), d, cmp.Or(l.MediaType, v1.MediaTypeImageIndex), body); err != nil {
		r.m.log.Debug("referrers are not kept", "repository", r.full, "digest", d, "error", err)
	}
}

// staleReferrers is what a client gets while the upstream can't be asked for the referrers of a
// manifest that is cached: the last list, of whatever age and without the filter that the client
// may have asked for, as the spec allows; or the empty index. dockerd 29 fails the pull of a
// cached image after an error here, and containerd 2 asks no other registry. The empty index is
// not kept, since the upstream hasn't said so. There is no link to more: it couldn't be followed.
// inMemory is what is kept there, or nil.
func (r *repo) staleReferrers(ctx context.Context, d digest.Digest, inMemory *list) *list {
	r.m.store.Touch(d)
	m, err := r.m.store.Referrers(r.full, d)
	if err != nil && inMemory != nil && !inMemory.packed { // the store had no room
		m, err = &storage.Manifest{MediaType: inMemory.MediaType, Body: inMemory.Body}, nil
	}
	if err != nil {
		return emptyIndex()
	}
	body := m.Body
	if body == nil {
		if body, err = r.m.readLarge(ctx, m.Digest); err != nil {
			return emptyIndex()
		}
	}
	if body = r.withoutMissing(body); body == nil {
		return emptyIndex()
	}
	return &list{List: upstream.List{MediaType: m.MediaType, Body: body}}
}

// withoutMissing returns an index without the manifests that can't be served now: dockerd 29 asks
// for what a list of referrers names, and fails the pull if that can't be had. It returns nil for
// what is no index.
func (r *repo) withoutMissing(body []byte) []byte {
	var index struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	if json.Unmarshal(body, &index) != nil {
		return nil
	}
	there := []json.RawMessage{}
	for _, raw := range index.Manifests {
		var d v1.Descriptor
		if json.Unmarshal(raw, &d) == nil && r.whole(d.Digest) {
			there = append(there, raw)
		}
	}
	if len(there) == len(index.Manifests) {
		return body
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(body, &all) != nil {
		return nil
	}
	manifests, err := json.Marshal(there)
	if err != nil {
		return nil
	}
	all["manifests"] = manifests
	if body, err = json.Marshal(all); err != nil {
		return nil
	}
	return body
}

// whole reports whether the repository has a manifest here, with all that it names.
func (r *repo) whole(d digest.Digest) bool {
	if !name.ValidDigest(string(d)) || !r.has(d) {
		return false
	}
	m, err := r.m.store.Manifest(d)
	return err == nil && !slices.ContainsFunc(m.Children, func(c image.Child) bool {
		_, ok := r.m.store.Has(c.Digest)
		return !ok
	})
}

func listKey(repository, path string, query url.Values) string {
	return repository + "/" + path + "?" + query.Encode()
}

// currentList gets a list from upstream. If kept may be stale, it doesn't wait long.
func (r *repo) currentList(ctx context.Context, path string, query url.Values, kept *list, maxStale time.Duration) (*list, error) {
	key := listKey(r.name, path, query)
	mayBeStale := kept != nil && time.Since(kept.at) < maxStale
	ask := r.list
	if r.m.longLists.Has(key) { // it can't be shared, and is kept only when a client has had all of it
		ask, mayBeStale = r.askList, false
	}
	ctx = withClient(ctx, r.client)
	l, err := briefly(ctx, r.m, "list "+key, mayBeStale, func(ctx context.Context) (*list, error) { return ask(ctx, path, query) })
	if err == nil && l.long != nil && !l.long.take() {
		if l, err = r.askList(ctx, path, query); err == nil && l.long != nil {
			l.long.take()
		}
	}
	return l, err
}

// list is askList, once for all who wait. A long list that it returns is for the first who takes it.
func (r *repo) list(ctx context.Context, path string, query url.Values) (*list, error) {
	return share(ctx, r.m.tasks, &r.m.calls, "list "+listKey(r.name, path, query), func(ctx context.Context) (*list, error) {
		return r.askList(ctx, path, query)
	})
}

// askList gets a list from upstream, and keeps it unless it is long.
func (r *repo) askList(ctx context.Context, path string, query url.Values) (*list, error) {
	if err := clientIn(ctx).enter(); err != nil {
		return nil, err
	}
	err := r.m.absent.get(listKind, r.name, path)
	l := &list{}
	if err == nil {
		l, err = r.openList(ctx, path, query)
		r.m.absent.note(listKind, r.name, path, err)
	}
	d, isReferrers := strings.CutPrefix(path, "referrers/")
	if err != nil {
		u, ok := errors.AsType[*upstream.Error](err)
		if !ok || u.Cause != upstream.NotFound || !isReferrers {
			return nil, err
		}
		if _, kept := r.m.store.Referrers(r.full, digest.Digest(d)); kept == nil {
			// It has given the list once, and a registry that knows referrers never answers 404.
			return nil, &upstream.Error{Cause: upstream.Broken, Host: u.Host, Status: u.Status, Err: errNoReferrers}
		}
		l = emptyIndex()
	}
	l.at = time.Now()
	if l.long == nil {
		r.m.lists.put(listKey(r.name, path, query), l)
		// Only without a filter: clients could invent any number of them.
		if isReferrers && len(query) == 0 && err == nil {
			r.keepReferrers(digest.Digest(d), l)
		}
	}
	return l, nil
}

var errNoReferrers = errors.New("it knows no referrers now")

// openList asks upstream for a list. A long one comes with a slot of its own, so that those who
// read it slowly keep no other list waiting.
func (r *repo) openList(ctx context.Context, path string, query url.Values) (*list, error) {
	key := listKey(r.name, path, query)
	slots, deadline := r.m.questions, requestDeadline // a pull waits for referrers
	switch {
	case r.m.longLists.Has(key):
		slots, deadline = r.m.streaming, 0
	case path == "tags/list":
		slots, deadline = r.m.listing, 0
	}
	asking, done, err := r.m.ask(r.m.requester(ctx, r.name), slots, deadline)
	if err != nil {
		return nil, err
	}
	// A long list outlives the question.
	reading, cancel := context.WithCancelCause(context.WithoutCancel(asking))
	goOn := context.AfterFunc(asking, func() { cancel(context.Cause(asking)) })
	l, err := r.m.client.List(reading, r.name, path, query)
	if l.Rest == nil {
		cancel(nil)
		done()
		return &list{List: l}, untold(asking, err)
	}
	r.m.longLists.Add(key, longListFor, nil)
	long := &longList{rest: l.Rest, end: sync.OnceFunc(func() { cancel(nil); done() })}
	l.Rest = nil
	if slots != r.m.streaming {
		defer done()
		_, streamed, err := r.m.ask(asking, r.m.streaming, 0)
		if err != nil {
			long.rest.Close()
			return nil, err
		}
		long.end = sync.OnceFunc(func() { cancel(nil); streamed() })
	}
	if !goOn() { // it has just ended
		long.close()
		return nil, context.Cause(reading)
	}
	time.AfterFunc(longWaits, func() {
		if long.take() { // those who wanted it have left
			long.close()
		}
	})
	return &list{List: l, long: long}, nil
}

const (
	// longListFor is how long it is remembered that a list is too large for memory, so that each
	// client asks for it by itself at once.
	longListFor = 10 * time.Minute

	// longWaits is how long a long list waits for whoever passes it on.
	longWaits = 2 * time.Second
)

// longList is what follows the beginning of a list that is too large for memory. One request
// takes it, and passes it on as it comes. All methods are safe for concurrent use.
type longList struct {
	rest  io.ReadCloser
	end   func() // ends the request to the upstream, and gives its slot back
	taken atomic.Bool
}

// take reports whether the caller is the one who has to close the list.
func (l *longList) take() bool { return l.taken.CompareAndSwap(false, true) }

func (l *longList) close() {
	l.rest.Close()
	l.end()
}

// sendList sends a list. A long one is passed on as it comes, and is then kept for the next
// clients if it is small enough when compressed.
func (r *repo) sendList(w http.ResponseWriter, req *http.Request, key string, l *list) result {
	if l.long == nil {
		return l.write(w, req, OutcomeMiss)
	}
	defer l.long.close()
	defer context.AfterFunc(req.Context(), l.long.end)() // upstream may be silent when the client leaves
	l.setHeader(w.Header(), req, OutcomeMiss)
	w.WriteHeader(http.StatusOK)
	if req.Method == http.MethodHead {
		return result{status: http.StatusOK, outcome: OutcomeMiss}
	}
	p := newPacker()
	all := io.MultiReader(bytes.NewReader(l.Body), l.long.rest)
	n, err := content.CopyShort(w, io.TeeReader(all, p))
	if packed, ok := p.finish(); err == nil && ok {
		kept := &list{List: l.List, at: l.at, packed: true}
		kept.Body = packed
		r.m.lists.put(key, kept)
	}
	return result{status: http.StatusOK, sent: n, outcome: OutcomeMiss, err: err}
}

// packer compresses what is written to it, unless that becomes too much.
type packer struct {
	packed *bytes.Buffer // nil: it has become too much
	z      *gzip.Writer
}

func newPacker() *packer {
	b := &bytes.Buffer{}
	z, _ := gzip.NewWriterLevel(b, gzip.BestSpeed) // the only error is another level
	return &packer{b, z}
}

// Write implements io.Writer. It never fails.
func (p *packer) Write(b []byte) (int, error) {
	if p.packed != nil {
		p.z.Write(b) // a bytes.Buffer takes all
		if p.packed.Len() > packedMost {
			p.packed, p.z = nil, nil
		}
	}
	return len(b), nil
}

// finish returns what was written, compressed. ok is false if that is too much.
func (p *packer) finish() (packed []byte, ok bool) {
	if p.packed == nil || p.z.Close() != nil {
		return nil, false
	}
	return bytes.Clone(p.packed.Bytes()), true // without the buffer's room to grow
}

// pick returns the parameters of a query that upstream is to see.
func pick(from url.Values, names ...string) url.Values {
	to := url.Values{}
	for _, n := range names {
		if from.Has(n) {
			to.Set(n, from.Get(n))
		}
	}
	return to
}

// linkFor is the link to the next page as the client has to follow it: by the path that it has asked
// for, which may name the registry, and with its parameter ns.
func linkFor(req *http.Request, link string) string {
	target, params, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	to := url.URL{Path: req.URL.Path, RawQuery: u.RawQuery}
	if query := req.URL.Query(); query.Has("ns") {
		to.RawQuery += "&ns=" + url.QueryEscape(query.Get("ns"))
	}
	return "<" + to.String() + ">" + params
}

func emptyIndex() *list {
	body := `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[]}`
	return &list{List: upstream.List{MediaType: v1.MediaTypeImageIndex, Body: []byte(body)}}
}

// setHeader sets all headers but the length.
func (l *list) setHeader(h http.Header, req *http.Request, o Outcome) {
	h.Set("Content-Type", cmp.Or(l.MediaType, "application/json"))
	h.Set("X-Hubcache", string(o))
	if l.Link != "" {
		h.Set("Link", linkFor(req, l.Link))
	}
	if l.Filters != "" {
		h.Set("OCI-Filters-Applied", l.Filters)
	}
}

func (l *list) write(w http.ResponseWriter, req *http.Request, o Outcome) result {
	l.setHeader(w.Header(), req, o)
	if !l.packed {
		w.Header().Set("Content-Length", strconv.Itoa(len(l.Body)))
	}
	w.WriteHeader(http.StatusOK)
	if req.Method == http.MethodHead {
		return result{status: http.StatusOK, outcome: o}
	}
	if !l.packed {
		n, err := content.Write(w, l.Body)
		return result{status: http.StatusOK, sent: n, outcome: o, err: err}
	}
	z, err := gzip.NewReader(bytes.NewReader(l.Body))
	if err != nil {
		return result{status: http.StatusOK, outcome: o, err: err}
	}
	n, err := content.CopyShort(w, z)
	return result{status: http.StatusOK, sent: n, outcome: o, err: err}
}
