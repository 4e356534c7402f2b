package prune

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/moby/moby/client"
)

// fakeEngine is a Docker Engine on a unix socket. The tests talk to it with the real client. Its
// disk gets emptier when images are deleted.
type fakeEngine struct {
	volumes     []volume.Volume
	cacheUnused int64      // bytes of the build cache that no image has
	mu          sync.Mutex // guards all below
	version     string     // API version
	images      []image.Summary
	tagTimes    map[string]time.Time
	containers  []container.InspectResponse
	services    []swarm.Service
	tasks       []swarm.Task
	info        system.Info
	remembered  []events.Message // what it remembers
	listeners   map[chan events.Message]bool
	fail        map[string]int // "GET /images/json" → status
	requests    []string
	before      func(request string) // called, unlocked, before a request is answered
	used        int64                // bytes of a disk of 1000
	layers      map[string][]layer   // image ID → its layers; an image without any has its size alone
	cache       []int64              // sizes of the layers that the build cache has too
}

// layer is a layer of the fakeEngine's images. Two images share a layer if all below it is the
// same, too.
type layer struct {
	id   string
	size int64
}

// newEngine starts a fakeEngine with a disk that is 90 % full.
func newEngine(t *testing.T, version string) (*fakeEngine, *client.Client) {
	t.Helper()
	e := &fakeEngine{version: version, used: 900, tagTimes: map[string]time.Time{}, fail: map[string]int{},
		listeners: map[chan events.Message]bool{}, layers: map[string][]layer{}, info: system.Info{DockerRootDir: t.TempDir()}}
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(e)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	c, err := client.New(client.WithHost("unix://" + listener.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return e, c
}

func (e *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, "/v"+e.version); ok {
		path = rest
	} else if path != "/_ping" {
		http.Error(w, "this engine speaks "+e.version+" only", http.StatusBadRequest)
		return
	}
	request := r.Method + " " + path
	e.mu.Lock()
	before := e.before
	e.mu.Unlock()
	if before != nil {
		before(request)
	}
	e.mu.Lock()
	e.requests = append(e.requests, request+"?"+r.URL.RawQuery)
	status := e.fail[request]
	e.mu.Unlock()
	if status != 0 {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"message": "the test says %d"}`, status)
		return
	}
	if path == "/events" {
		e.serveEvents(w, r)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case path == "/_ping":
		w.Header().Set("API-Version", e.version)
	case path == "/info":
		reply(w, e.info)
	case path == "/images/json":
		reply(w, e.images)
	case path == "/system/df":
		e.serveDiskUsage(w)
	case strings.HasSuffix(path, "/history"):
		e.serveHistory(w, strings.TrimSuffix(strings.TrimPrefix(path, "/images/"), "/history"))
	case path == "/containers/json":
		reply(w, e.summaries())
	case path == "/services":
		reply(w, e.services)
	case path == "/tasks":
		reply(w, e.tasks)
	case strings.HasPrefix(path, "/containers/"):
		e.serveContainer(w, strings.TrimSuffix(strings.TrimPrefix(path, "/containers/"), "/json"))
	case strings.HasPrefix(path, "/images/") && r.Method == http.MethodDelete:
		e.serveRemove(w, strings.TrimPrefix(path, "/images/"))
	case strings.HasPrefix(path, "/images/"):
		e.serveImage(w, strings.TrimSuffix(strings.TrimPrefix(path, "/images/"), "/json"))
	default:
		http.Error(w, "no such endpoint in this fake: "+request, http.StatusNotImplemented)
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func notFound(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprint(w, `{"message": "no such thing"}`)
}

func (e *fakeEngine) summaries() []container.Summary {
	var out []container.Summary
	for _, c := range e.containers {
		created, _ := time.Parse(time.RFC3339Nano, c.Created)
		out = append(out, container.Summary{ID: c.ID, Names: []string{c.Name}, Image: c.Config.Image, ImageID: c.Image, Created: created.Unix()})
	}
	return out
}

func (e *fakeEngine) serveContainer(w http.ResponseWriter, id string) {
	for _, c := range e.containers {
		if c.ID == id {
			reply(w, c)
			return
		}
	}
	notFound(w)
}

// index finds an image by ID or name; -1 if there is none.
func (e *fakeEngine) index(ref string) int {
	return slices.IndexFunc(e.images, func(s image.Summary) bool {
		return s.ID == ref || slices.Contains(s.RepoTags, ref) || slices.Contains(s.RepoDigests, ref)
	})
}

func (e *fakeEngine) serveImage(w http.ResponseWriter, ref string) {
	i := e.index(ref)
	if i < 0 {
		notFound(w)
		return
	}
	s := e.images[i]
	reply(w, image.InspectResponse{ID: s.ID, RepoTags: s.RepoTags, RepoDigests: s.RepoDigests,
		RootFS: e.rootFS(s.ID), Metadata: image.Metadata{LastTagTime: e.tagTimes[s.ID]}})
}

func (e *fakeEngine) rootFS(id string) (fs image.RootFS) {
	for _, l := range e.layers[id] {
		fs.Layers = append(fs.Layers, l.id)
	}
	return fs
}

// serveHistory answers with a step that makes no layer on top of those that make one.
func (e *fakeEngine) serveHistory(w http.ResponseWriter, ref string) {
	items := []image.HistoryResponseItem{{CreatedBy: "/bin/sh -c #(nop)  CMD [\"x\"]"}}
	if i := e.index(ref); i >= 0 {
		for _, l := range slices.Backward(e.layers[e.images[i].ID]) {
			items = append(items, image.HistoryResponseItem{CreatedBy: "RUN " + l.id, Size: l.size})
		}
	}
	reply(w, items)
}

func (e *fakeEngine) serveDiskUsage(w http.ResponseWriter) {
	var records []build.CacheRecord
	for _, size := range e.cache {
		records = append(records, build.CacheRecord{Shared: true, Size: size})
	}
	if e.cacheUnused > 0 {
		records = append(records, build.CacheRecord{Size: e.cacheUnused})
	}
	usage := map[string]any{"BuildCache": records, "Volumes": e.volumes}
	if e.version >= "1.52" {
		usage = map[string]any{"BuildCacheUsage": map[string]any{"Items": records}}
	}
	reply(w, usage)
}

// occupied returns the bytes of all layers that there are.
func (e *fakeEngine) occupied() (n int64) {
	cached := slices.Clone(e.cache)
	seen := map[string]bool{}
	for _, s := range e.images {
		var ids []string
		for _, l := range e.layers[s.ID] {
			ids = append(ids, l.id)
			if key := strings.Join(ids, " "); !seen[key] {
				seen[key] = true
				n += l.size
				if i := slices.Index(cached, l.size); i >= 0 {
					cached = slices.Delete(cached, i, i+1)
				}
			}
		}
		if len(e.layers[s.ID]) == 0 {
			n += s.Size
		}
	}
	for _, size := range cached { // what only the cache has now
		n += size
	}
	return n
}

// serveRemove deletes as the graphdriver store does: the image is deleted with its last name, and
// the last tag deletes the digests of its repository.
func (e *fakeEngine) serveRemove(w http.ResponseWriter, ref string) {
	i := e.index(ref)
	if i < 0 {
		notFound(w)
		return
	}
	s := &e.images[i]
	if slices.ContainsFunc(e.containers, func(c container.InspectResponse) bool { return c.Image == s.ID }) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusConflict)
		fmt.Fprint(w, `{"message": "a container uses it"}`)
		return
	}
	is := func(name string) bool { return name == ref }
	tagged := slices.ContainsFunc(s.RepoTags, is)
	s.RepoTags = slices.DeleteFunc(slices.Clone(s.RepoTags), is)
	s.RepoDigests = slices.DeleteFunc(slices.Clone(s.RepoDigests), is)
	tags, digests := names(s.RepoTags, s.RepoDigests)
	if len(tags) == 0 && (tagged || len(digests) == 0 || ref == s.ID) {
		before := e.occupied()
		e.images = slices.Delete(e.images, i, i+1)
		e.used -= before - e.occupied()
	}
	reply(w, []image.DeleteResponse{{Untagged: ref}})
}

// send publishes an event, as the daemon does.
func (e *fakeEngine) send(m events.Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m.TimeNano == 0 {
		m.TimeNano = time.Now().UnixNano()
	}
	m.Time = m.TimeNano / 1e9
	e.remembered = append(e.remembered, m)
	e.remembered = e.remembered[max(0, len(e.remembered)-256):]
	for l := range e.listeners {
		l <- m
	}
}

func (e *fakeEngine) serveEvents(w http.ResponseWriter, r *http.Request) {
	at := func(key string) int64 {
		var sec, nano int64
		if _, err := fmt.Sscanf(r.URL.Query().Get(key), "%d.%d", &sec, &nano); err != nil {
			return 0
		}
		return sec*1e9 + nano
	}
	live := make(chan events.Message, 1000)
	e.mu.Lock()
	replayed := slices.Clone(e.remembered)
	e.listeners[live] = true
	e.mu.Unlock()
	defer func() { e.mu.Lock(); delete(e.listeners, live); e.mu.Unlock() }()
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	for _, m := range replayed {
		if since := at("since"); since != 0 && m.TimeNano >= since && (at("until") == 0 || m.TimeNano <= at("until")) {
			_ = out.Encode(m)
		}
	}
	w.(http.Flusher).Flush()
	for at("until") == 0 {
		select {
		case <-r.Context().Done():
			return
		case m, ok := <-live:
			if !ok {
				return
			}
			_ = out.Encode(m)
			w.(http.Flusher).Flush()
		}
	}
}

// add adds an image of 100 bytes.
func (e *fakeEngine) add(digit string, tags, digests []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images = append(e.images, image.Summary{ID: id(digit), RepoTags: tags, RepoDigests: digests, Size: 100, SharedSize: -1, Containers: -1})
}

// addLayered adds an image that has these layers.
func (e *fakeEngine) addLayered(digit, parent string, tags []string, layers ...layer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var size int64
	for _, l := range layers {
		size += l.size
	}
	e.layers[id(digit)] = layers
	s := image.Summary{ID: id(digit), RepoTags: tags, Size: size, SharedSize: -1, Containers: -1}
	if parent != "" {
		s.ParentID = id(parent)
	}
	e.images = append(e.images, s)
}

// runContainer adds a container of that image.
func (e *fakeEngine) runContainer(name, imageDigit string, started time.Time, mounts ...string) {
	c := container.InspectResponse{ID: name, Name: "/" + name, Image: id(imageDigit), Config: &container.Config{Image: id(imageDigit)},
		Created: started.Format(time.RFC3339Nano), State: &container.State{StartedAt: started.Format(time.RFC3339Nano)}, HostConfig: &container.HostConfig{}}
	for _, ref := range mounts {
		c.HostConfig.Mounts = append(c.HostConfig.Mounts, mount.Mount{Type: mount.TypeImage, Source: ref, Target: "/m"})
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.containers = append(e.containers, c)
}

// imagesLeft returns the hex digits of the images that are there.
func (e *fakeEngine) imagesLeft() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var s string
	for _, img := range e.images {
		s += img.ID[7:8]
	}
	return s
}

// log returns the requests that begin with prefix.
func (e *fakeEngine) log(prefix string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(e.requests), func(s string) bool { return !strings.HasPrefix(s, prefix) })
}

func (e *fakeEngine) disk(path string) (Disk, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Disk{Path: path, Total: 1000, Used: e.used}, nil
}

// endStreams ends every event stream, as a daemon that restarts does.
func (e *fakeEngine) endStreams() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for l := range e.listeners {
		delete(e.listeners, l)
		close(l)
	}
}
