package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/name"
	"github.com/hubcache/hubcache/registry"
	"github.com/hubcache/hubcache/warm"
)

// warmer is a Warmer that warms everything but what its tag says.
type warmer struct{ asked string }

func (w *warmer) Warm(ctx context.Context, refs []name.Reference, o registry.WarmOptions) (all []registry.Warmed) {
	w.asked = fmt.Sprint(refs, o.Platforms, o.Refresh)
	for _, ref := range refs {
		res := registry.Warmed{Reference: ref, Digest: "sha256:1", Bytes: 30, Fetched: 20, Err: map[string]error{
			"large": fmt.Errorf("%w: it needs more", registry.ErrNoRoom), "quota": registry.ErrReserve, "bad": errors.New("no such thing"),
		}[ref.Tag]}
		o.Report(registry.WarmEvent{Reference: ref, Plan: &registry.WarmPlan{Bytes: 30, Missing: 20}})
		o.Report(registry.WarmEvent{Reference: ref, Blob: &registry.WarmBlob{Digest: "sha256:2", Size: 20, Received: 10}})
		o.Report(registry.WarmEvent{Reference: ref, Result: &res})
		all = append(all, res)
	}
	return all
}

func (w *warmer) Cached(_ context.Context, refs []name.Reference, _ []v1.Platform) (all []registry.Cached) {
	for _, ref := range refs {
		all = append(all, registry.Cached{Reference: ref, State: registry.Partial, Digest: "sha256:1", Bytes: 30, Missing: 20})
	}
	return all
}

// TestWarmStreamsWhatItDoes: a line for each event, and the last one says whether all went well. What
// can't be read is refused before anything is done. The log says which images were meant.
func TestWarmStreamsWhatItDoes(t *testing.T) {
	plan := `{"reference":"%[1]s","plan":{"bytes":30,"missing_bytes":20}}` + "\n" + `{"reference":"%[1]s","blob":{"digest":"sha256:2","size":20,"received":10}}` + "\n"
	result := func(ref, fields string) string { return `{"reference":"` + ref + `","result":{` + fields + "}}\n" }
	redis, large := "docker.io/library/redis:7", "docker.io/library/redis:large"
	for _, row := range []struct {
		body   string
		status int
		want   string
		asked  string
	}{
		{`{"references":["redis:7","redis:7"],"platforms":["linux/arm/v7"],"refresh":true}`, http.StatusOK,
			fmt.Sprintf(plan, redis) + result(redis, `"state":"complete","digest":"sha256:1","bytes":30,"fetched_bytes":20,"missing_bytes":0,"stale":false,"error":null,"reason":""`) + `{"done":true,"error":null}` + "\n",
			"[docker.io/library/redis:7] [{arm linux  [] v7}] true"},
		{`{"references":["redis:large"]}`, http.StatusOK,
			fmt.Sprintf(plan, large) + result(large, `"state":"failed","digest":"sha256:1","bytes":30,"fetched_bytes":20,"missing_bytes":0,"stale":false,"error":"there is no room for it: it needs more","reason":"no_room"`) + `{"done":true,"error":"1 of 1 images could not be warmed"}` + "\n",
			"[docker.io/library/redis:large] [] false"},
		{`{"references":["redis:7"],"check":true}`, http.StatusOK,
			result(redis, `"state":"partial","digest":"sha256:1","bytes":30,"fetched_bytes":0,"missing_bytes":20,"stale":false,"error":null,"reason":""`) + `{"done":true,"error":null}` + "\n", ""},
		{`{"references":[]}`, http.StatusBadRequest, "from 1 to 1000 are wanted", ""},
		{`{"references":["Redis!"]}`, http.StatusBadRequest, "is not the name of an image", ""},
		{`{"references":["redis"],"platforms":["amd64"]}`, http.StatusBadRequest, "is not a platform like linux/amd64", ""},
		{`{"references":["redis"],"force":true}`, http.StatusBadRequest, "unknown field", ""},
		{`redis`, http.StatusBadRequest, "the body is not a request", ""},
		{`{"references":["` + strings.Repeat("x", maxWarmBody) + `"]}`, http.StatusBadRequest, "too large", ""},
	} {
		var log bytes.Buffer
		w := &warmer{}
		h := New(Options{Store: fakeStore{}, Registry: fakeRegistry{}, Warmer: w, Log: slog.New(slog.NewTextHandler(&log, nil))})
		req := httptest.NewRequest(http.MethodPost, "http://localhost/api/v1/warm", strings.NewReader(row.body))
		req.Header.Set(VerbHeader, "1")
		req = req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, net.Addr(&net.UnixAddr{Net: "unix"})))
		resp := httptest.NewRecorder()
		h.ServeHTTP(resp, req)
		if got := resp.Body.String(); resp.Code != row.status || got != row.want && (row.status == http.StatusOK || !strings.Contains(got, row.want)) {
			t.Errorf("%.60s: %d\n%s\nwant\n%s", row.body, resp.Code, got, row.want)
		}
		if w.asked != row.asked {
			t.Errorf("%.60s: %q", row.body, w.asked)
		}
		if row.status == http.StatusOK && !strings.Contains(log.String(), "references=docker.io/library/redis") && !strings.Contains(log.String(), "references=") {
			t.Errorf("log: %s", &log)
		}
	}
}

// TestWarmStatsHaveTheLastRun: with its failures, of which there may be many.
func TestWarmStatsHaveTheLastRun(t *testing.T) {
	run := &warm.Run{Began: time.Unix(1000, 0), Took: 1500 * time.Millisecond, Images: 2, Fetched: 7}
	for range 200 {
		run.Failures = append(run.Failures, warm.Failure{What: "docker.io/library/redis:7", Err: registry.ErrReserve})
	}
	o := idle()
	o.Warm = func() warm.State {
		return warm.State{Schedule: "30 3 * * *", Next: time.Unix(2000, 0), Last: run, Succeeded: time.Unix(900, 0)}
	}
	a := newAdmin(o)
	if _, body := get(t, o, "/metrics"); !strings.Contains(body, "\nhubcache_warm_last_run_timestamp_seconds 1000\n") || !strings.Contains(body, "\nhubcache_warm_last_success_timestamp_seconds 900\n") || !strings.Contains(body, "\nhubcache_warm_next_run_timestamp_seconds 2000\n") {
		t.Error(body)
	}
	d := a.document(time.Now()).Warm
	if d.Schedule != "30 3 * * *" || d.Running || !d.Next.Equal(time.Unix(2000, 0)) || d.Last.Seconds != 1.5 || d.Last.Images != 2 || d.Last.Fetched != 7 ||
		d.Last.Failed != 200 || len(d.Last.Failures) != maxWarmFailures || d.Last.Failures[0] != (WarmFailure{"docker.io/library/redis:7", registry.ErrReserve.Error()}) {
		t.Errorf("%+v %+v", d, d.Last)
	}
}
