package registry

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/hubcache/hubcache/upstream"
)

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
	if !m.judges() || p.private.match(name) {
		return true
	}
	v, err := m.store.Visibility(m.name + "/" + name)
	return err == nil && v.Public || err != nil && !m.client.HasCredential()
}
