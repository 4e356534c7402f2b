package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/content"
	"github.com/hubcache/hubcache/fetch"
	"github.com/hubcache/hubcache/image"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/storage"
	"github.com/hubcache/hubcache/upstream"
)

// A manifest must be answered within 5 s whatever happens, or a client with no timeout of
// its own never falls back.
const (
	requestDeadline = 4500 * time.Millisecond // for each question to the upstream
	answerDeadline  = 4800 * time.Millisecond // for all that an answer needs
)

// found is a manifest, or, for a HEAD, what is known of one.
type found struct {
	digest    digest.Digest
	mediaType string
	size      int64
	body      []byte // nil: only headers, or large
	large     bool   // the store has the body, which isn't kept in memory
	children  []image.Child
	outcome   Outcome
	held      bool      // a tag names a newer one, which has to wait
	checked   time.Time // when the upstream said so of a tag; zero: just now, or it is no answer of the upstream
	expires   time.Time // until when a tag may be answered with it unasked; zero with a digest: for ever
}

// manifestRequest is a GET or HEAD of a manifest by tag or digest. Immutable.
type manifestRequest struct {
	*repo
	ref    string        // tag or digest
	digest digest.Digest // ref, when it is one
	head   bool          // the headers are enough
	epoch  int           // of the hot manifests, from before the policy was read

	// sparing: below the quota reserve no manifest is fetched for it, since that counts as a pull.
	sparing bool

	// now: what the upstream told somebody else a moment ago isn't enough.
	now bool
}

// serveHot answers from memory, if the answer is there and upstream isn't known to be down:
// then more must be looked at.
func (m *mirror) serveHot(w http.ResponseWriter, req *http.Request, q *request) (res result, ok bool) {
	h := m.hot.get(q.name, q.ref)
	if h == nil || m.client.Down() != nil || len(req.Header["Range"]) > 0 || len(req.Header["If-None-Match"]) > 0 {
		return result{}, false
	}
	head := req.Method == http.MethodHead
	if !head && h.handed.CompareAndSwap(false, true) {
		m.ahead.handedOut(q.name, h.digest, h.children, h.body)
	}
	if h.due() { // apart, because it reads the index, and an answer from memory waits for nothing
		m.tasks.background(func(context.Context) { m.store.Touch(h.digest) })
	}
	m.store.CountPull(h.full, h.ref)
	header := w.Header()
	for k, v := range h.header {
		header[k] = v
	}
	if head {
		w.WriteHeader(http.StatusOK)
		return result{status: http.StatusOK, outcome: OutcomeHit}, true
	}
	n, err := content.Write(w, h.body)
	return result{status: http.StatusOK, sent: n, outcome: OutcomeHit, err: err}, true
}

// serve answers the request from the store or from upstream.
func (q *manifestRequest) serve(w http.ResponseWriter, req *http.Request) result {
	ctx, cancel := context.WithTimeoutCause(withClient(req.Context(), q.client), answerDeadline, &upstream.Error{Cause: upstream.Timeout, Host: q.m.client.Host()})
	defer cancel()
	for again := false; ; again = true {
		f, err := q.find(ctx)
		if err != nil {
			return result{err: err}
		}
		if !again {
			q.m.store.CountPull(q.full, q.ref)
		}
		q.noteSize(f)
		q.m.refresher.used(q)
		if f.body != nil {
			q.m.hot.put(q.epoch, q.repo, string(f.digest), &found{digest: f.digest, mediaType: f.mediaType, body: f.body, children: f.children})
			if q.digest == "" && !f.expires.IsZero() {
				q.m.hot.put(q.epoch, q.repo, q.ref, f)
			}
		}
		if !q.head && (f.body != nil || f.large) {
			q.m.ahead.handedOut(q.name, f.digest, f.children, f.body)
		}
		o := content.Object{Digest: string(f.digest), MediaType: f.mediaType, Size: f.size, Cache: string(f.outcome)}
		if q.head || !f.large && len(f.body) <= storage.ManifestInMemory {
			return send(w, req, o, content.Bytes(f.body))
		}
		b, err := q.m.store.Open(f.digest)
		switch {
		case err == nil:
			return q.sendLarge(w, req, o, b)
		case f.body != nil:
			return send(w, req, o, content.Bytes(f.body))
		case again || !errors.Is(err, fs.ErrNotExist): // the first time, it has just been evicted
			return result{err: err}
		}
	}
}

// noteSize tells the store how large the image is that a client asks for. What clients can do
// without, or get elsewhere, doesn't count.
func (q *manifestRequest) noteSize(f *found) {
	if q.head {
		return
	}
	var without map[digest.Digest]bool
	if bytes.Contains(f.body, []byte(`"urls"`)) {
		without = image.Dispensable(f.body)
	}
	size, isImage := f.size, false
	for _, c := range f.children {
		if c.Role == image.RoleManifest || without[c.Digest] {
			continue
		}
		isImage = isImage || c.Role == image.RoleLayer
		size += min(c.Size, math.MaxInt64-size)
	}
	if !isImage {
		return
	}
	reference := q.full + ":" + q.ref
	if q.digest != "" {
		reference = q.full + "@" + q.ref
	}
	q.m.store.ImageAsked(reference, f.digest, size)
}

// sendLarge sends a large manifest from its file, so that however many clients read it, and
// however slowly, none of them takes memory for it.
func (q *manifestRequest) sendLarge(w http.ResponseWriter, req *http.Request, o content.Object, b *storage.Blob) result {
	defer b.Close()
	return send(w, req, o, func(w http.ResponseWriter, off, n int64) (int64, error) {
		return content.SendShort(w, b.Recipient(), b.File, off, n)
	})
}

// find returns the manifest, once the repository may be served. The first time that a
// repository is asked for, upstream is asked for visibility and tag at the same time; nothing
// of the tag is given away before the visibility is known.
func (q *manifestRequest) find(ctx context.Context) (*found, error) {
	if q.digest != "" && q.policy.denies(q.digest) {
		return nil, deniedDigest
	}
	if q.digest != "" || !q.admission.mayBlock() {
		if err := q.admission.wait(ctx); err != nil {
			return nil, err
		}
	}
	if q.digest != "" {
		return q.byDigest(ctx)
	}
	f, err := q.byTag(ctx)
	if notAdmitted := q.admission.wait(ctx); notAdmitted != nil {
		return nil, notAdmitted
	}
	if err == nil && q.policy.denies(f.digest) {
		return nil, deniedDigest
	}
	return f, err
}

// byDigest answers from the store, or fetches.
func (q *manifestRequest) byDigest(ctx context.Context) (*found, error) {
	m, err := q.m.store.Manifest(q.digest)
	if err == nil {
		return q.stored(ctx, m)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		q.m.log.Error("a cached manifest can't be read", "digest", q.digest, "error", err)
	}
	if q.head {
		return q.resolve(ctx)
	}
	return q.fetch(ctx, q.digest)
}

// stored answers with a manifest of the store, if the repository has it and its image can
// be had.
func (q *manifestRequest) stored(ctx context.Context, m *storage.Manifest) (*found, error) {
	ok, err := q.linked(m.Digest, m.Private)
	if err == nil && !ok {
		err = q.confirm(ctx, fetch.Manifests, m.Digest, m.Size)
	}
	if err != nil {
		return nil, err
	}
	if err := q.deliverable(ctx, m); err != nil {
		return nil, err
	}
	q.m.store.Touch(m.Digest)
	return &found{digest: m.Digest, mediaType: m.MediaType, size: m.Size, body: m.Body, large: m.Body == nil, children: m.Children, outcome: OutcomeHit}, nil
}

// deliverable fails for a single-platform manifest of which a blob that its clients need isn't
// here and can't be fetched: some clients commit themselves to a mirror with the manifest, and
// this one would leave them with half an image.
func (q *manifestRequest) deliverable(ctx context.Context, m *storage.Manifest) error {
	down := q.m.client.Down()
	if down == nil {
		return nil
	}
	var missing []digest.Digest
	for _, c := range m.Children {
		if _, ok := q.m.store.Has(c.Digest); !ok && c.Role != image.RoleManifest {
			missing = append(missing, c.Digest)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	without, err := q.dispensable(ctx, m)
	if err != nil {
		return err
	}
	for _, d := range missing {
		if !without[d] && !q.elsewhere(ctx, d) {
			return &failure{status: http.StatusServiceUnavailable, code: errcode.ErrorCodeUnavailable, err: down,
				detail: "blob " + string(d) + " of this image is not cached, and " + fail(manifest, down).detail}
		}
	}
	return nil
}

// elsewhere reports whether what stands in front of the upstream has a blob.
func (q *manifestRequest) elsewhere(ctx context.Context, d digest.Digest) bool {
	if !q.m.behind {
		return false
	}
	_, err := q.m.source.Resolve(ctx, q.name, fetch.Blobs, string(d))
	return err == nil
}

// dispensable returns what the clients of the manifest can do without.
// Errors: those of reading the store, ctx's cause.
func (q *manifestRequest) dispensable(ctx context.Context, m *storage.Manifest) (map[digest.Digest]bool, error) {
	if m.Body != nil {
		return image.Dispensable(m.Body), nil
	}
	body, err := q.m.readLarge(ctx, m.Digest)
	return image.Dispensable(body), err
}

// readLarge reads a large manifest. They are read one at a time.
// Errors: those of reading the store, ctx's cause.
func (m *mirror) readLarge(ctx context.Context, d digest.Digest) ([]byte, error) {
	if err := m.reading.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer m.reading.Release(1)
	b, err := m.store.Open(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b.File)
}

// fetch gets the manifest d from upstream, once for all who wait, and keeps it. The first to
// ask is a miss, the others share.
// Errors: ErrReserve; those of get, ctx's cause.
func (q *manifestRequest) fetch(ctx context.Context, d digest.Digest) (*found, error) {
	if q.sparing && q.m.client.Scarce(q.policy.QuotaReserve) { // not below, since others may share it
		return nil, ErrReserve
	}
	first := false
	f, err := share(ctx, q.m.tasks, &q.m.calls, "manifest "+q.name+"@"+string(d), func(ctx context.Context) (*found, error) {
		// Another request may have brought it since this one looked into the store.
		if m, err := q.m.store.Manifest(d); err == nil {
			return q.stored(ctx, m)
		}
		first = true
		return q.get(ctx, d)
	})
	if err != nil {
		return nil, err
	}
	if !first && f.outcome == OutcomeMiss {
		g := *f
		g.outcome = OutcomeShared
		return &g, nil
	}
	return f, nil
}

// get is one GET, by digest, or by tag when d is "": when upstream named no digest for it.
func (q *manifestRequest) get(ctx context.Context, d digest.Digest) (*found, error) {
	ref := string(d)
	if d == "" {
		ref = q.ref
	}
	m, err := q.m.source.Manifest(ctx, q.name, ref)
	if err != nil {
		return nil, err
	}
	broken := func(format string, args ...any) error {
		return &upstream.Error{Cause: upstream.Broken, Host: m.Host, Status: http.StatusOK, Err: fmt.Errorf(format, args...)}
	}
	if d == "" {
		// No digest speaks for it, and captive portals answer 200 to everything.
		if !isManifest(m.Body) {
			return nil, broken("not a manifest")
		}
		d = digest.FromBytes(m.Body)
	} else if d.Algorithm().FromBytes(m.Body) != d {
		q.m.counters.mismatches.Add(1)
		return nil, broken("the manifest's bytes are not those of %s", d)
	}
	// The visibility may have been asked for at the same time: nothing is kept before it. It is
	// not asked for with q.admission, since the request that q is of may have left.
	if err := q.m.admit(ctx, q.repo).wait(ctx); err != nil {
		return nil, err
	}
	f := &found{digest: d, mediaType: m.MediaType, size: int64(len(m.Body)), body: m.Body, children: image.Children(m.Body), outcome: OutcomeMiss}
	switch err := q.m.store.PutManifest(q.origin(), d, m.MediaType, m.Body); {
	case errors.Is(err, storage.ErrBusy): // by another repository's request
		q.m.store.Confirm(q.full, d, f.size)
	case err != nil:
		f.outcome = OutcomeBypass
	}
	return f, nil
}

// isManifest reports whether body is JSON with the one field that all manifests have.
func isManifest(body []byte) bool {
	var m struct {
		SchemaVersion int `json:"schemaVersion"`
	}
	return json.Unmarshal(body, &m) == nil && m.SchemaVersion > 0
}

// resolve asks upstream for a manifest's headers, by tag or digest, and keeps nothing but
// what a tag resolves to.
func (q *manifestRequest) resolve(ctx context.Context) (*found, error) {
	key := "head " + q.name + ":" + q.ref
	if q.now {
		key = "now " + key
	}
	return share(ctx, q.m.tasks, &q.m.calls, key, func(ctx context.Context) (*found, error) {
		if f := q.recalled(ctx); f != nil {
			return f, nil
		}
		d, err := q.m.source.Resolve(ctx, q.name, fetch.Manifests, q.ref)
		if err != nil {
			return nil, err
		}
		if q.digest != "" && d.Digest == "" {
			d.Digest = q.digest
		}
		if !name.ValidDigest(string(d.Digest)) || d.Size < 0 || q.digest != "" && d.Digest != q.digest {
			// Not what the spec asks for, but there are such registries: get it.
			return q.get(ctx, q.digest)
		}
		return &found{digest: d.Digest, mediaType: d.MediaType, size: d.Size, checked: d.Checked, outcome: OutcomeMiss}, nil
	})
}
