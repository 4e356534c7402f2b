package auth

import (
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// maxWitnesses is how many repositories a refusal is compared with at most: one of them may
	// have been made private meanwhile.
	maxWitnesses = 3
	// witnessPause is how long the result of a comparison holds, so that invented names, each of
	// which is refused, don't double the requests to the token service.
	witnessPause = 10 * time.Second
)

// witnesses are repositories that could be read lately. A token service that refuses a
// repository says something about the repository only while it grants one of these: in trouble,
// services refuse everybody. All methods are safe for concurrent use.
type witnesses struct {
	more func() []string // further ones, when none has been seen since the start; may be nil

	flights singleflight.Group // comparisons under way

	mu    sync.Mutex // guards what follows; no other lock is taken under it
	names []string   // the latest first
	asked time.Time  // when the last comparison was made
	by    string     // the repository that was granted then; "": none was
}

// saw takes note that the repository could be read.
func (w *witnesses) saw(repository string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if repository == "" || len(w.names) > 0 && w.names[0] == repository {
		return
	}
	w.names = slices.DeleteFunc(w.names, func(n string) bool { return n == repository })
	w.names = slices.Insert(w.names, 0, repository)
	w.names = w.names[:min(len(w.names), maxWitnesses+1)] // one may be the one that is refused
	if w.by == "" {
		w.asked = time.Time{} // there is another one to compare with
	}
}

// other returns the repositories to compare a refused one with.
func (w *witnesses) other(refused string) []string {
	w.mu.Lock()
	names := slices.Clone(w.names)
	w.mu.Unlock()
	except := func(n string) bool { return n == refused }
	names = slices.DeleteFunc(names, except)
	if len(names) == 0 && w.more != nil {
		names = slices.DeleteFunc(w.more(), except)
	}
	return names[:min(len(names), maxWitnesses)]
}

// grant reports whether another repository than the refused one is granted now. granted asks
// for one; its error means that the service says nothing at all. The result holds for
// witnessPause, and is shared by all who ask at the same time.
func (w *witnesses) grant(refused string, granted func(repository string) (bool, error)) bool {
	w.mu.Lock()
	fresh, by := time.Since(w.asked) < witnessPause, w.by
	w.mu.Unlock()
	if fresh && by != refused {
		return by != ""
	}
	result, _, _ := w.flights.Do("", func() (any, error) {
		names := w.other(refused)
		if len(names) == 0 {
			return "", nil
		}
		by := ""
		for _, name := range names {
			ok, err := granted(name)
			if ok {
				by = name
			}
			if ok || err != nil {
				break
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asked, w.by = time.Now(), by
		return by, nil
	})
	by = result.(string)
	return by != "" && by != refused
}

// repositoryOf returns the repository of a scope, or "".
func repositoryOf(scope string) string {
	repository, ok := strings.CutPrefix(scope, "repository:")
	if !ok {
		return ""
	}
	return strings.TrimSuffix(repository, ":pull")
}
