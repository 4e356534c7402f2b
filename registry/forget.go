package registry

import (
	"strings"

	"github.com/hubcache/hubcache/name"
)

// Forget forgets what is in memory of a repository: manifests, lists, and what the upstream hasn't
// got. Call it when something has been taken out of the store, so that the next pull asks the
// upstream. An answer that is being made at the moment isn't kept.
func (r *Registry) Forget(repository string) {
	m, short, err := r.mirrorOf(name.Reference{Repository: repository})
	if err == nil {
		m.forget(short)
	}
}

// ForgetManifests forgets all manifests in memory, which are then read from the store again.
func (r *Registry) ForgetManifests() {
	for _, m := range r.routes.Load().mirrors {
		m.hot.clear()
	}
}

func (m *mirror) forget(repository string) {
	m.hot.clear()
	m.lists.forget(repository)
	m.catalogue.kept.Store(nil)
	m.absent.memory.ForgetAll(func(key string) bool { return strings.Contains(key, " "+repository+" ") })
}

// forget forgets the lists of a repository.
func (l *lists) forget(repository string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, keys := range [][]string{l.small.Keys(), l.large.Keys()} {
		for _, key := range keys {
			if strings.HasPrefix(key, repository+"/") {
				l.small.Remove(key)
				l.large.Remove(key)
			}
		}
	}
}
