package warm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hubcache/hubcache/compose"
	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/registry"
)

// cache takes down what a Keeper warms.
type cache struct {
	mu   sync.Mutex // guards all below
	runs [][]string
	now  int           // runs that are under way
	most int           // at one time
	took time.Duration // that a run takes
}

func (c *cache) warm(ctx context.Context, refs []name.Reference, o registry.WarmOptions) (all []registry.Warmed) {
	c.mu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	var names []string
	for _, ref := range refs {
		names = append(names, name.Familiar(ref.String()))
	}
	c.runs = append(c.runs, names)
	took := c.took
	c.mu.Unlock()
	select {
	case <-time.After(took):
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now--
	for _, ref := range refs {
		res := registry.Warmed{Reference: ref, Fetched: 10}
		if strings.HasPrefix(ref.Repository, "ghcr.io/") {
			res = registry.Warmed{Reference: ref, Err: registry.ErrUnserved}
		}
		if ref.Tag == "bad" {
			res = registry.Warmed{Reference: ref, Err: errors.New("no such thing")}
		}
		all = append(all, res)
	}
	return all
}

func (c *cache) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.runs)
}

// hourly is every full hour.
func hourly(t time.Time) time.Time { return t.Truncate(time.Hour).Add(time.Hour) }

func refs(t *testing.T, names ...string) (all []name.Reference) {
	for _, n := range names {
		ref, err := name.ParseReference(n)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ref)
	}
	return all
}

// TestKeeperRunsAtItsTimes: at each time once, with what references and files name; a reload changes
// it; failures are told by what they are about.
func TestKeeperRunsAtItsTimes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "compose.yml")
	if err := os.WriteFile(file, []byte("services: {a: {image: redis}, b: {image: org/app:2}, c: {image: redis:latest}, d: {image: ghcr.io/org/app}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		c := &cache{}
		k := New(c.warm, filepath.Join(t.TempDir(), "warm.json"), slog.New(slog.NewTextHandler(io.Discard, nil)))
		defer k.Close(t.Context())
		k.SetPlan(Plan{References: refs(t, "redis:7")})
		time.Sleep(5 * time.Hour)
		if s := k.State(); c.count() != 0 || !s.Next.IsZero() || s.Last != nil {
			t.Errorf("without times: %d runs, %+v", c.count(), s)
		}
		k.SetPlan(Plan{Next: hourly, References: refs(t, "redis:7", "redis:bad"), Files: []string{file, file + ".none"}})
		began := time.Now()
		if s := k.State(); !s.Next.Equal(hourly(began)) {
			t.Errorf("next at %s", s.Next)
		}
		time.Sleep(3*time.Hour + time.Minute)
		if c.count() != 3 {
			t.Errorf("%d runs", c.count())
		}
		if want := []string{"redis:7", "redis:bad", "redis:latest", "org/app:2", "ghcr.io/org/app:latest"}; !slices.Equal(c.runs[0], want) {
			t.Error(c.runs[0])
		}
		s := k.State()
		if s.Running || s.Last == nil || s.Last.Images != 3 || s.Last.Fetched != 30 || len(s.Last.Failures) != 2 || !s.Next.Equal(began.Add(4*time.Hour)) {
			t.Fatalf("%+v", s)
		}
		if f := s.Last.Failures; f[0].What != file+".none" || f[1].What != "docker.io/library/redis:bad" {
			t.Errorf("%+v", f)
		}
		k.SetPlan(Plan{})
		time.Sleep(3 * time.Hour)
		if c.count() != 3 || !k.State().Next.IsZero() {
			t.Errorf("%d runs", c.count())
		}
	})
}

// TestRunsDontOverlap: times that pass during a run are left out.
func TestRunsDontOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cache{took: 150 * time.Minute}
		k := New(c.warm, filepath.Join(t.TempDir(), "warm.json"), slog.New(slog.DiscardHandler))
		defer k.Close(t.Context())
		k.SetPlan(Plan{Next: hourly, References: refs(t, "redis:7")})
		time.Sleep(time.Hour + time.Minute)
		if s := k.State(); !s.Running {
			t.Errorf("%+v", s)
		}
		time.Sleep(23 * time.Hour)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.most != 1 || len(c.runs) != 8 { // one in three hours
			t.Errorf("%d at one time, %d in all", c.most, len(c.runs))
		}
	})
}

// TestRunEndsWithTheKeeperOrItsPlan: at once.
func TestRunEndsWithTheKeeperOrItsPlan(t *testing.T) {
	for name, end := range map[string]func(*Keeper){
		"close": func(k *Keeper) { k.Close(context.Background()) },
		"plan":  func(k *Keeper) { k.SetPlan(Plan{}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &cache{took: 24 * time.Hour}
				k := New(c.warm, filepath.Join(t.TempDir(), "warm.json"), slog.New(slog.DiscardHandler))
				defer k.Close(t.Context())
				k.SetPlan(Plan{Next: hourly, References: refs(t, "redis:7")})
				time.Sleep(time.Hour + time.Minute)
				end(k)
				synctest.Wait()
				c.mu.Lock()
				defer c.mu.Unlock()
				if c.now != 0 || k.State().Running {
					t.Error("it goes on")
				}
			})
		})
	}
}

// TestImagesOfFiles: as docker compose config has them, each once.
func TestImagesOfFiles(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{
		"a.yml":     "services:\n  web: {image: \"org/web:${VERSION}\"}\n  db: {image: \"postgres${UNSET}:16\"}\n  built: {build: .}\n  cache: {image: redis:7, profiles: [x]}\n",
		"b.yml":     "services:\n  db: {image: postgres:17}\n  other: {image: redis:7}\n",
		"app.env":   "VERSION=3\n",
		"whole.yml": "services: {web: {image: \"org/web:${VERSION}\"}}",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, row := range []struct {
		files, env []string
		want       []string
		notes      int
		err        string
	}{
		{files: []string{at("a.yml")}, env: []string{at("app.env")}, want: []string{"redis:7", "postgres:16", "org/web:3"}, notes: 1},
		{files: []string{at("a.yml"), at("b.yml")}, env: []string{at("app.env")}, want: []string{"redis:7", "postgres:17", "org/web:3"}},
		{files: []string{at("whole.yml")}, err: "services.web.image needs a variable that is set nowhere"},
		{files: []string{at("none.yml")}, err: "no such file"},
		{files: []string{at("a.yml")}, env: []string{at("none.env")}, err: "none.env"},
	} {
		var got []string
		refs, notes, err := Images(t.Context(), compose.Project{Files: row.files, EnvFiles: row.env})
		for _, ref := range refs {
			got = append(got, name.Familiar(ref.String()))
		}
		if row.err == "" && (err != nil || !slices.Equal(got, row.want) || len(notes) != row.notes) || row.err != "" && (err == nil || !strings.Contains(err.Error(), row.err)) {
			t.Errorf("%v: %v %v %v", row.files, got, notes, err)
		}
	}
}

// TestLastRunOutlivesARestart, with its failures, and so does when a run last had none. What can't be read is
// none, and the file of a newer program stays.
func TestLastRunOutlivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "warm.json")
	run := func(t *testing.T, names ...string) State {
		c := &cache{took: 2 * time.Second}
		k := New(c.warm, path, slog.New(slog.DiscardHandler))
		k.SetPlan(Plan{Next: hourly, References: refs(t, names...)})
		time.Sleep(time.Hour + time.Minute)
		k.Close(t.Context())
		return k.State()
	}
	again := func(t *testing.T) State {
		k := New((&cache{}).warm, path, slog.New(slog.DiscardHandler))
		defer k.Close(t.Context())
		return k.State()
	}
	synctest.Test(t, func(t *testing.T) {
		if s := again(t); s.Last != nil || !s.Succeeded.IsZero() {
			t.Errorf("%+v", s)
		}
		good := run(t, "redis:7")
		if s := again(t); s.Last == nil || !s.Last.Began.Equal(good.Last.Began) || s.Last.Took != good.Last.Took || s.Last.Images != 1 || s.Last.Fetched != 10 || !s.Succeeded.Equal(good.Last.Began.Add(2*time.Second)) {
			t.Errorf("%+v, %+v", s.Last, s)
		}
		run(t, "redis:7", "redis:bad")
		if s := again(t); s.Last == nil || len(s.Last.Failures) != 1 || s.Last.Failures[0].What != "docker.io/library/redis:bad" || !s.Succeeded.Equal(good.Succeeded) {
			t.Errorf("%+v, %+v", s.Last, s)
		}
		for _, text := range []string{"", "no JSON", `{"schema": 9}`} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if s := again(t); s.Last != nil {
				t.Errorf("%q: %+v", text, s.Last)
			}
		}
		run(t, "redis:7")
		if b, err := os.ReadFile(path); err != nil || string(b) != `{"schema": 9}` {
			t.Errorf("the newer file: %s, %v", b, err)
		}
	})
}
