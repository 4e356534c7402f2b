package registry

import (
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
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxList is the size of the largest tag list or referrers index taken; Hub's pages are
// far smaller.
const maxList = 4 << 20

// listCount and listKept bound the lists kept in memory: 32 MiB of them.
const (
	listCount = 128
	listKept  = 256 << 10
)

// list is an upstream answer to tags/list or referrers.
type list struct {
	mediaType string
	body      []byte
	link      string // of the next page
	filters   string // OCI-Filters-Applied
	at        time.Time
}

// lists are the answers kept, each for the TTL of its repository's tags.
type lists struct {
	mu  sync.Mutex // guards lru
	lru *simplelru.LRU[string, *list]
}

func newLists() *lists {
	l := &lists{}
	l.lru, _ = simplelru.NewLRU[string, *list](listCount, nil)
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
	l.lru.Add(key, v)
}

// serveList passes tags/list and referrers through. A registry that knows referrers never
// answers 404 for them, so upstream's 404 becomes an empty index, and so does, for this
// once, its failure.
func (r *Registry) serveList(w http.ResponseWriter, req *http.Request, q request) result {
	ctx := req.Context()
	if err := r.admit(ctx, q.name); err != nil {
		return result{err: err}
	}
	path, query := q.name+"/tags/list", pick(req.URL.Query(), "n", "last")
	if q.kind == referrers {
		path, query = q.name+"/referrers/"+q.ref, pick(req.URL.Query(), "artifactType", "n", "last", "nextPage", "token")
	}
	key := path + "?" + query.Encode()
	s := r.policy.Load().tag(q.name, "")
	kept := r.lists.get(key)
	if kept != nil && time.Since(kept.at) < s.ttl {
		return kept.write(w, req, OutcomeHit)
	}
	l, err := share(ctx, r, "list "+key, func(ctx context.Context) (*list, error) {
		ctx, cancel := context.WithTimeout(ctx, manifestDeadline)
		defer cancel()
		l, err := r.getList(ctx, path, query)
		if u, ok := errors.AsType[*upstreamError](err); ok && u.cause == gone && q.kind == referrers {
			l, err = emptyIndex(), nil
		}
		if err == nil {
			l.at = time.Now()
		}
		if err == nil && len(l.body) <= listKept {
			r.lists.put(key, l)
		}
		return l, err
	})
	if err == nil {
		return l.write(w, req, OutcomeMiss)
	}
	u, ok := errors.AsType[*upstreamError](err)
	switch {
	case ok && u.down() && kept != nil && time.Since(kept.at) < s.maxStale:
		return kept.write(w, req, OutcomeStale)
	case ok && u.down() && q.kind == referrers:
		return emptyIndex().write(w, req, OutcomeStale)
	case ok && u.cause == gone:
		return result{err: &failure{status: http.StatusNotFound, code: errcode.ErrorCodeNameUnknown, detail: u.Error(), err: u}}
	case ok && u.down():
		return result{err: &failure{status: http.StatusBadGateway, code: errcode.ErrorCodeUnavailable, detail: u.Error(), err: u}}
	}
	return result{err: err}
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

func (r *Registry) getList(ctx context.Context, path string, query url.Values) (*list, error) {
	to := r.up.url(path)
	to.RawQuery = query.Encode()
	resp, host, err := r.up.follow(ctx, http.MethodGet, to, http.Header{"Accept": {"application/json, " + v1.MediaTypeImageIndex}}, plain)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxList+1))
	if err != nil {
		return nil, classify(host.Host, err)
	}
	if resp.StatusCode != http.StatusOK || len(body) > maxList || !json.Valid(body) {
		return nil, &upstreamError{cause: broken, host: host.Host, status: resp.StatusCode, err: errors.New("not a list")}
	}
	return &list{
		mediaType: mediaTypeOf(resp.Header), body: body, link: ourLink(resp.Header.Get("Link"), r.up.base),
		filters: resp.Header.Get("OCI-Filters-Applied"),
	}, nil
}

// ourLink makes the link to the next page lead here: without upstream's scheme, host and
// folder. A link to anywhere else is dropped.
func ourLink(link string, base *url.URL) string {
	target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	if !ok {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil || u.Host != "" && u.Host != base.Host {
		return ""
	}
	i := strings.Index(u.Path, "/v2/")
	if i < 0 {
		return ""
	}
	to := url.URL{Path: u.Path[i:], RawQuery: u.RawQuery}
	return "<" + to.String() + ">" + params
}

func emptyIndex() *list {
	return &list{mediaType: v1.MediaTypeImageIndex, body: []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[]}`)}
}

func (l *list) write(w http.ResponseWriter, req *http.Request, o Outcome) result {
	h := w.Header()
	h.Set("Content-Type", cmp.Or(l.mediaType, "application/json"))
	h.Set("Content-Length", strconv.Itoa(len(l.body)))
	h.Set("X-Hubcache", string(o))
	if l.link != "" {
		h.Set("Link", l.link)
	}
	if l.filters != "" {
		h.Set("OCI-Filters-Applied", l.filters)
	}
	w.WriteHeader(http.StatusOK)
	if req.Method == http.MethodHead {
		return result{status: http.StatusOK, outcome: o}
	}
	n, err := w.Write(l.body)
	return result{http.StatusOK, int64(n), o, err}
}

// serveCatalog lists the repositories that are cached and that everybody may see.
func (r *Registry) serveCatalog(w http.ResponseWriter, req *http.Request) result {
	all, err := r.store.Repositories(r.up.name)
	if err != nil {
		return result{err: err}
	}
	p := r.policy.Load()
	names := []string{}
	for _, name := range all {
		name = strings.TrimPrefix(name, r.up.name+"/")
		if p.allowed(name) && r.seen(p, name) {
			names = append(names, name)
		}
	}
	query := req.URL.Query()
	if last := query.Get("last"); last != "" {
		i, found := slices.BinarySearch(names, last)
		if found {
			i++
		}
		names = names[i:]
	}
	l := &list{mediaType: "application/json"}
	if query.Has("n") {
		n, err := strconv.Atoi(query.Get("n"))
		if err != nil || n < 0 {
			return result{err: invalid(errcode.ErrorCodePaginationNumberInvalid, query.Get("n"))}
		}
		if n < len(names) {
			names = names[:n]
			if n > 0 {
				l.link = "</v2/_catalog?" + url.Values{"n": {strconv.Itoa(n)}, "last": {names[n-1]}}.Encode() + `>; rel="next"`
			}
		}
	}
	if l.body, err = json.Marshal(map[string][]string{"repositories": names}); err != nil {
		return result{err: err}
	}
	return l.write(w, req, OutcomeHit)
}

// seen reports whether the catalogue may name the repository, from what is known already.
func (r *Registry) seen(p *policy, name string) bool {
	if r.up.cred == nil || p.private.match(name) {
		return true
	}
	v, err := r.store.Visibility(r.full(name))
	return err == nil && v.Public
}
