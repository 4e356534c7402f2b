package prune

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// silentEngine takes every request and answers none.
type silentEngine struct{ Engine }

func silent[T any](ctx context.Context) (none T, err error) {
	<-ctx.Done()
	return none, ctx.Err()
}

func (silentEngine) Info(ctx context.Context, _ client.InfoOptions) (client.SystemInfoResult, error) {
	return silent[client.SystemInfoResult](ctx)
}
func (silentEngine) ImageList(ctx context.Context, _ client.ImageListOptions) (client.ImageListResult, error) {
	return silent[client.ImageListResult](ctx)
}
func (silentEngine) ImageInspect(ctx context.Context, _ string, _ ...client.ImageInspectOption) (client.ImageInspectResult, error) {
	return silent[client.ImageInspectResult](ctx)
}
func (silentEngine) ImageHistory(ctx context.Context, _ string, _ ...client.ImageHistoryOption) (client.ImageHistoryResult, error) {
	return silent[client.ImageHistoryResult](ctx)
}
func (silentEngine) DiskUsage(ctx context.Context, _ client.DiskUsageOptions) (client.DiskUsageResult, error) {
	return silent[client.DiskUsageResult](ctx)
}
func (silentEngine) ImageRemove(ctx context.Context, _ string, _ client.ImageRemoveOptions) (client.ImageRemoveResult, error) {
	return silent[client.ImageRemoveResult](ctx)
}
func (silentEngine) ContainerList(ctx context.Context, _ client.ContainerListOptions) (client.ContainerListResult, error) {
	return silent[client.ContainerListResult](ctx)
}
func (silentEngine) ContainerInspect(ctx context.Context, _ string, _ client.ContainerInspectOptions) (client.ContainerInspectResult, error) {
	return silent[client.ContainerInspectResult](ctx)
}
func (silentEngine) ServiceList(ctx context.Context, _ client.ServiceListOptions) (client.ServiceListResult, error) {
	return silent[client.ServiceListResult](ctx)
}
func (silentEngine) TaskList(ctx context.Context, _ client.TaskListOptions) (client.TaskListResult, error) {
	return silent[client.TaskListResult](ctx)
}

// Events returns when the request has ended, as the client's does.
func (silentEngine) Events(ctx context.Context, _ client.EventsListOptions) client.EventsResult {
	end := make(chan error, 1)
	<-ctx.Done()
	end <- ctx.Err()
	return client.EventsResult{Messages: make(chan events.Message), Err: end}
}

// TestEveryCallToTheEngineEnds, also one that is added to [Engine] later.
func TestEveryCallToTheEngineEnds(t *testing.T) {
	engine := reflect.TypeFor[Engine]()
	for i := range engine.NumMethod() {
		name := engine.Method(i).Name
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			var err error
			if name == "Events" {
				_, err = pastEvents(t.Context(), boundedEngine{silentEngine{}, defaultLimits}, began, began, nil)
				live := boundedEngine{silentEngine{}, defaultLimits}.Events(t.Context(), client.EventsListOptions{})
				if err := <-live.Err; !errors.Is(err, errSilent) {
					t.Errorf("a stream without an end: %v", err)
				}
			} else {
				method := reflect.ValueOf(boundedEngine{silentEngine{}, defaultLimits}).MethodByName(name)
				args := []reflect.Value{reflect.ValueOf(t.Context())}
				for j := 1; j < method.Type().NumIn(); j++ {
					if !method.Type().IsVariadic() || j < method.Type().NumIn()-1 {
						args = append(args, reflect.Zero(method.Type().In(j)))
					}
				}
				err, _ = method.Call(args)[1].Interface().(error)
			}
			if took := time.Since(began); !errors.Is(err, errSilent) || took > time.Hour {
				t.Errorf("%s ended after %v with %v", name, took, err)
			}
		})
	}
}

// TestSilentEngineEndsTheRun: whichever request the Engine takes and doesn't answer, the run fails,
// and nothing is deleted after that.
func TestSilentEngineEndsTheRun(t *testing.T) {
	for _, request := range []string{"GET /info", "GET /images/json", "GET /images/" + id("a") + "/json", "GET /containers/json",
		"GET /containers/web/json", "GET /services", "GET /tasks", "GET /events", "DELETE /images/" + id("a")} {
		t.Run(request, func(t *testing.T) {
			t.Parallel()
			e, c := newEngine(t, "1.41")
			addOrphans(e, 4)
			e.runContainer("web", "d", time.Now().Add(-24*time.Hour))
			e.info.Swarm.ControlAvailable = true
			p := newPruner(t, e, c)
			p.limits = limits{time.Second, time.Second}
			ended := make(chan struct{})
			t.Cleanup(func() { close(ended) })
			e.before = func(r string) {
				if r == request {
					<-ended
				}
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				r, err := p.Run(context.Background(), true)
				if r.Decision != Failed || !errors.Is(err, errSilent) || !strings.Contains(err.Error(), "asked") {
					t.Errorf("%s (%v)", r.Decision, err)
				}
			}()
			select {
			case <-done:
			case <-time.After(time.Minute):
				t.Fatal("the run goes on for ever")
			}
			if deletions := len(e.log("DELETE")); e.imagesLeft() != "abcd" || deletions > 1 {
				t.Errorf("left %q after %d deletions", e.imagesLeft(), deletions)
			}
		})
	}
}

// TestWatcherLeavesASilentEngine, and tries again.
func TestWatcherLeavesASilentEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &Watcher{Engine: silentEngine{}, Uses: Uses{Path: t.TempDir() + "/uses.db"}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if err := w.session(ctx); !errors.Is(err, errSilent) {
			t.Errorf("the session ended with %v", err)
		}
	})
}
