package registry

import (
	"bytes"
	"cmp"
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
	"github.com/hubcache/hubcache/upstream"
)

// Bounds of the lists kept in memory.
const (
	listKept  = 256 << 10 // the largest; a longer one isn't kept
	listCount = 128       // of them, so 32 MiB at most

	// referrersCount and referrersBytes are for the referrers of manifests that are cached. Most
	// have none, and their lists are 100 bytes long.
	referrersCount = 4096
	referrersBytes = 16 << 20
)

// listLife is how long a list is kept at least, also where tags are asked for every time:
// tools page through lists, and Docker asks for the referrers of an image at each pull.
const listLife = 5 * time.Second

// list is an answer to tags/list or referrers.
type list struct {
	upstream.List
	at time.Time // when the upstream gave it
}

// lists are answers that are kept, within bounds.
type lists struct {
	most int64

	mu    sync.Mutex // guards what follows
	lru   *simplelru.LRU[string, *list]
	bytes int64 // of the bodies in lru
}

// newLists returns lists of at most so many answers with at most so many bytes.
func newLists(count int, bytes int64) *lists {
	l := &lists{most: bytes}
	l.lru, _ = simplelru.NewLRU(count, func(_ string, v *list) { l.bytes -= int64(len(v.Body)) })
	return l
}

func (l *lists) get(key string) *list {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, _ := l.lru.Get(key)
	return v
}

func (l *lists) put(key string, v *list) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lru.Remove(key) // the bytes of the one before don't count any more
	l.lru.Add(key, v)
	for l.bytes += int64(len(v.Body)); l.bytes > l.most; {
		l.lru.RemoveOldest()
	}
}

// serveList passes tags/list and referrers through. A registry that knows referrers never
// answers 404 for them, so upstream's 404 becomes an empty index.
func (r *repo) serveList(w http.ResponseWriter, req *http.Request, q *request) result {
	ctx := req.Context()
	if err := r.admission.wait(ctx); err != nil {
		return result{err: err}
	}
	path, query := "tags/list", pick(req.URL.Query(), "n", "last")
	if q.kind == referrers {
		path, query = "referrers/"+q.ref, pick(req.URL.Query(), "artifactType", "n", "last", "nextPage", "token")
	}
	s := r.policy.tag(r.name, "")
	kept := r.m.lists.get(listKey(r.name, path, query))
	if kept != nil && time.Since(kept.at) < max(s.ttl, listLife) {
		return kept.write(w, req, OutcomeHit)
	}
	key := listKey(r.name, path, query)
	if r.m.longLists.Has(key) {
		return r.streamList(w, req, path, query)
	}
	mayBeStale := kept != nil && time.Since(kept.at) < s.maxStale
	l, err := briefly(ctx, r.m, "list "+key, mayBeStale, func(ctx context.Context) (*list, error) { return r.list(ctx, path, query) })
	if err == nil {
		return l.write(w, req, OutcomeMiss)
	}
	u, ok := errors.AsType[*upstream.Error](err)
	switch {
	case errors.Is(err, errLongList):
		return r.streamList(w, req, path, query)
	case mayBeStale && (ok && u.Down() || errors.Is(err, errSlow)):
		return kept.write(w, req, OutcomeStale)
	}
	if ok && u.Down() {
		if q.kind == referrers && r.has(q.digest) {
			r.m.log.Warn("serving referrers that could not be asked for", "repository", r.full, "digest", q.digest, "error", err)
			return r.keptReferrers(path).write(w, req, OutcomeStale)
		}
	}
	switch {
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

// keptReferrers is what a client gets while the upstream can't be asked for the referrers of a
// manifest that is cached: the last list, of whatever age and without the filter that the client
// may have asked for, as the spec allows; or the empty index. dockerd 29 fails the pull of a
// cached image after an error here, and containerd 2 asks no other registry. The empty index is
// not kept, since the upstream hasn't said so.
func (r *repo) keptReferrers(path string) *list {
	if l := r.m.referrers.get(listKey(r.name, path, nil)); l != nil {
		return l
	}
	return emptyIndex()
}

func listKey(repository, path string, query url.Values) string {
	return repository + "/" + path + "?" + query.Encode()
}

// list gets a list from upstream, once for all who wait, and keeps it.
func (r *repo) list(ctx context.Context, path string, query url.Values) (*list, error) {
	key := listKey(r.name, path, query)
	return share(withClient(ctx, r.client), r.m.tasks, &r.m.calls, "list "+key, func(ctx context.Context) (*list, error) {
		l := &list{}
		var err error
		if err = r.m.absent.get(listKind, r.name, path); err == nil {
			l.List, err = r.askList(ctx, path, query)
			r.m.absent.note(listKind, r.name, path, err)
		}
		if err != nil {
			u, ok := errors.AsType[*upstream.Error](err)
			if !ok || u.Cause != upstream.NotFound || !strings.HasPrefix(path, "referrers/") {
				return nil, err
			}
			l = emptyIndex()
		}
		l.at = time.Now()
		if len(l.Body) <= listKept {
			r.m.lists.put(key, l)
			// Only without a filter: clients could invent any number of them.
			if d, ok := strings.CutPrefix(path, "referrers/"); ok && len(query) == 0 && r.has(digest.Digest(d)) {
				r.m.referrers.put(key, l)
			}
		}
		return l, nil
	})
}

// errLongList is the error for a list that is too large for memory, and so isn't shared.
var errLongList = errors.New("the list is too large for memory")

// longListFor is how long it is remembered that a list is too large, so that it is streamed at once.
const longListFor = 10 * time.Minute

func (r *repo) askList(ctx context.Context, path string, query url.Values) (upstream.List, error) {
	ctx = r.m.requester(ctx, r.name)
	slots, deadline := r.m.questions, requestDeadline // a pull waits for referrers
	if path == "tags/list" {
		slots, deadline = r.m.listing, upstream.ListDeadline
	}
	ctx, done, err := r.m.ask(ctx, slots, deadline)
	if err != nil {
		return upstream.List{}, err
	}
	defer done()
	l, err := r.m.client.List(ctx, r.name, path, query)
	if l.Rest != nil {
		l.Rest.Close()
		r.m.longLists.Add(listKey(r.name, path, query), longListFor, nil)
		return upstream.List{}, errLongList
	}
	return l, untold(ctx, err)
}

// streamList passes on a list that is too large for memory, as it comes, to this client alone. It
// isn't kept, so each request for it goes upstream, tagLists at one time.
func (r *repo) streamList(w http.ResponseWriter, req *http.Request, path string, query url.Values) result {
	if err := r.client.enter(); err != nil {
		return result{err: err}
	}
	ctx, done, err := r.m.ask(r.m.requester(withClient(req.Context(), r.client), r.name), r.m.listing, 0)
	if err != nil {
		return result{err: err}
	}
	defer done()
	l, err := r.m.client.List(ctx, r.name, path, query)
	if err != nil {
		return result{err: untold(ctx, err)}
	}
	if l.Rest == nil { // it has become shorter
		return (&list{List: l}).write(w, req, OutcomeMiss)
	}
	defer l.Rest.Close()
	(&list{List: l}).setHeader(w.Header(), OutcomeMiss)
	w.WriteHeader(http.StatusOK)
	if req.Method == http.MethodHead {
		return result{status: http.StatusOK, outcome: OutcomeMiss}
	}
	all := io.MultiReader(bytes.NewReader(l.Body), l.Rest)
	n, err := content.Copy(w, 0, -1, func(p []byte, _ int64) (int, error) { return all.Read(p) })
	return result{http.StatusOK, n, OutcomeMiss, err}
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

func emptyIndex() *list {
	body := `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[]}`
	return &list{List: upstream.List{MediaType: v1.MediaTypeImageIndex, Body: []byte(body)}}
}

// setHeader sets all headers but the length.
func (l *list) setHeader(h http.Header, o Outcome) {
	h.Set("Content-Type", cmp.Or(l.MediaType, "application/json"))
	h.Set("X-Hubcache", string(o))
	if l.Link != "" {
		h.Set("Link", l.Link)
	}
	if l.Filters != "" {
		h.Set("OCI-Filters-Applied", l.Filters)
	}
}

func (l *list) write(w http.ResponseWriter, req *http.Request, o Outcome) result {
	l.setHeader(w.Header(), o)
	w.Header().Set("Content-Length", strconv.Itoa(len(l.Body)))
	w.WriteHeader(http.StatusOK)
	if req.Method == http.MethodHead {
		return result{status: http.StatusOK, outcome: o}
	}
	n, err := content.Write(w, l.Body)
	return result{http.StatusOK, n, o, err}
}

// catalogPage is how many names a page of the catalogue has at most, as in distribution: it
// bounds what one request costs.
const catalogPage = 1000

// catalogue is the list of the repositories that are cached. It is made anew when a request finds
// it older than listLife, since that reads all tags of the index. Safe for concurrent use.
type catalogue struct {
	kept atomic.Pointer[catalogueList]
}

type catalogueList struct {
	names []string // sorted, without the registry's name
	at    time.Time
}

// repositories returns the names, made once for all who wait.
func (m *mirror) repositories(ctx context.Context) ([]string, error) {
	if k := m.catalogue.kept.Load(); k != nil && time.Since(k.at) < listLife {
		return k.names, nil
	}
	return share(ctx, m.tasks, &m.calls, "catalogue", func(context.Context) ([]string, error) {
		names, err := m.store.Repositories(m.name)
		if err != nil {
			return nil, err
		}
		for i := range names {
			names[i] = strings.TrimPrefix(names[i], m.name+"/")
		}
		m.catalogue.kept.Store(&catalogueList{names, time.Now()})
		return names, nil
	})
}

// serveCatalog lists the repositories that are cached and that everybody may see.
func (m *mirror) serveCatalog(w http.ResponseWriter, req *http.Request) result {
	all, err := m.repositories(req.Context())
	if err != nil {
		return result{err: err}
	}
	query := req.URL.Query()
	if last := query.Get("last"); last != "" {
		i, found := slices.BinarySearch(all, last)
		if found {
			i++
		}
		all = all[i:]
	}
	n := catalogPage
	if query.Has("n") {
		if n, err = strconv.Atoi(query.Get("n")); err != nil || n < 0 {
			return result{err: invalid(errcode.ErrorCodePaginationNumberInvalid, query.Get("n"))}
		}
		n = min(n, catalogPage)
	}
	l := &list{List: upstream.List{MediaType: "application/json"}}
	p := m.policy.Load()
	names := []string{}
	for _, name := range all {
		if n == 0 {
			break
		}
		if !p.allowed(name) || !m.listed(p, name) {
			continue
		}
		if len(names) == n { // there is more
			l.Link = "</v2/_catalog?" + url.Values{"n": {strconv.Itoa(n)}, "last": {names[n-1]}}.Encode() + `>; rel="next"`
			break
		}
		names = append(names, name)
	}
	if l.Body, err = json.Marshal(map[string][]string{"repositories": names}); err != nil {
		return result{err: err}
	}
	return l.write(w, req, OutcomeHit)
}

// listed reports whether the catalogue may name the repository, from what is known already.
func (m *mirror) listed(p *policy, name string) bool {
	if !m.client.HasCredential() || p.private.match(name) {
		return true
	}
	v, err := m.store.Visibility(m.name + "/" + name)
	return err == nil && v.Public
}
