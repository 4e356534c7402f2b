//go:build integration

package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/integration/tiertest"
)

// tierLab is a bucket and a Redis, and what nodes need to share them.
type tierLab struct {
	t             *testing.T
	hub           *hubtest.Hub
	bucket, redis *tiertest.Program
	config        string
}

func newTierLab(t *testing.T) *tierLab {
	l := &tierLab{t: t, hub: startHub(t, hubtest.Options{}), bucket: tiertest.StartVersity(t), redis: tiertest.StartRedis(t)}
	c := versityConfig(t, "http://"+l.bucket.Addr)
	l.config = fmt.Sprintf("bucket: {endpoint: %q, name: %s, prefix: cache, path_style: true, access_key_file: %s, secret_key_file: %s}, lease: {redis: %q}",
		c.Endpoint, c.Name, c.AccessKeyFile, c.SecretKeyFile, l.redis.Addr)
	return l
}

// node starts a node. The upstream is the Hub unless it is given.
func (l *tierLab) node(upstream string) *server {
	l.t.Helper()
	return l.start(serverOptions{Upstream: upstream, Anonymous: true})
}

// start starts a node with these options.
func (l *tierLab) start(o serverOptions) *server {
	l.t.Helper()
	addr := freeAddr(l.t, "127.0.0.1")
	file := filepath.Join(l.t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("shared: {advertise: 'http://"+addr+"', "+l.config+"}\n"), 0o600); err != nil {
		l.t.Fatal(err)
	}
	o.Hub, o.Args = l.hub, append([]string{"--listen", addr, "--config", file}, o.Args...)
	return startServer(l.t, o)
}

// at is where the node listens: its flag overrides the lab's.
func at(s *server) string {
	args := s.options.Args
	return "http://" + args[1]
}

// pull gets an image as a client does: the tag, and then all blobs, each from the first of the nodes, and
// where that breaks off, the rest by Range from the next one.
func (l *tierLab) pull(img *hubtest.Image, nodes ...*server) error {
	if _, err := l.fetch("manifests/"+img.Tag, img, img.Digest, nodes); err != nil {
		return err
	}
	for _, b := range img.Blobs() {
		if _, err := l.fetch("blobs/"+string(b.Digest), img, b.Digest, nodes); err != nil {
			return err
		}
	}
	return nil
}

func (l *tierLab) fetch(what string, img *hubtest.Image, d digest.Digest, nodes []*server) (int, error) {
	hash := d.Algorithm().Hash()
	got, tries := int64(0), 0
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); tries++ {
		var done bool
		if done, err = fetchOnce(at(nodes[tries%len(nodes)])+"/v2/"+img.Repository+"/"+what, hash, &got); done {
			if digest.NewDigest(d.Algorithm(), hash) != d {
				return tries, fmt.Errorf("%s: wrong bytes as a success", what)
			}
			return tries, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return tries, fmt.Errorf("%s: %w", what, err)
}

// fetchOnce goes on where the last try ended.
func fetchOnce(url string, to io.Writer, got *int64) (done bool, err error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return false, err
	}
	if *got > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", *got))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent || *got > 0 && resp.StatusCode == http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return false, fmt.Errorf("%s: %s", resp.Status, b)
	}
	n, err := io.Copy(to, resp.Body)
	*got += n
	return err == nil, err
}

// blobBytes returns how many bytes of blobs the Hub has sent.
func (l *tierLab) blobBytes() (n int64) {
	for _, e := range l.hub.Ledger() {
		if e.Face == hubtest.CDN {
			n += e.BodyBytes
		}
	}
	return n
}

func sizeOf(img *hubtest.Image) (n int64) {
	for _, b := range img.Blobs() {
		n += b.Size
	}
	return n
}

// stampede has clients of all nodes pull at the same time.
func (l *tierLab) stampede(img *hubtest.Image, clients int, nodes []*server) {
	l.t.Helper()
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			mine := append(append([]*server{}, nodes[i%len(nodes):]...), nodes[:i%len(nodes)]...)
			if err := l.pull(img, mine...); err != nil {
				l.t.Errorf("client %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// TestThreeNodesFetchAnImageOnce, and others, empty and with the upstream down, serve it.
func TestThreeNodesFetchAnImageOnce(t *testing.T) {
	t.Parallel()
	l := newTierLab(t)
	nodes := []*server{l.node(""), l.node(""), l.node("")}
	img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 100}, {Size: 2 << 20}, {Size: 9 << 20}}})
	l.stampede(img, 60, nodes)
	if got, want := l.blobBytes(), sizeOf(img); got != want {
		t.Errorf("the Hub has sent %d bytes of an image of %d", got, want)
	}
	for i, n := range nodes { // a lease lasts until the bucket has the blob
		eventually(t, fmt.Sprintf("the uploads of node %d", i), func() error {
			if s := n.Stats().Shared; s.Leases > 0 || s.State != "well" {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	}
	if err := l.pull(img, l.node("http://127.0.0.1:1")); err != nil { // it waits for tag and manifest
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.Stop()
	}
	fifth := l.node("http://127.0.0.1:1")
	if err := l.pull(img, fifth); err != nil {
		t.Error(err)
	}
	if s := fifth.Stats().Shared; s.Bytes < sizeOf(img) {
		t.Errorf("not all came from the bucket: %+v", s)
	}
}

// TestNodesWhoseTierIsSick: bucket, Redis or the node that fetches is killed or stopped while clients pull.
// Each ends with the right bytes.
func TestNodesWhoseTierIsSick(t *testing.T) {
	t.Parallel()
	for name, strike := range map[string]func(*tierLab, []*server){
		"the bucket is killed":  func(l *tierLab, _ []*server) { l.bucket.Kill() },
		"the bucket is stopped": func(l *tierLab, _ []*server) { l.bucket.Stop() },
		"Redis is killed":       func(l *tierLab, _ []*server) { l.redis.Kill() },
		"Redis is stopped":      func(l *tierLab, _ []*server) { l.redis.Stop() },
		"a node is killed":      func(_ *tierLab, nodes []*server) { nodes[0].Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTierLab(t)
			nodes := []*server{l.node(""), l.node(""), l.node("")}
			img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 2 << 20}, {Size: 10 << 20}}})
			stall := l.hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(1<<20))
			done := make(chan struct{})
			go func() { defer close(done); l.stampede(img, 12, nodes) }()
			eventually(t, "the first bytes", func() error {
				if l.blobBytes() == 0 && len(l.hub.Ledger()) < 3 {
					return io.EOF
				}
				return nil
			})
			strike(l, nodes)
			stall.Release()
			<-done
			if strings.Contains(name, "node") {
				return
			}
			other := l.hub.AddImage("library/app", "2", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 1 << 20, Seed: 9}}})
			l.stampede(other, 3, nodes)
			if s := nodes[1].Stats().Shared; s.State != "unwell" {
				t.Errorf("nobody is told: %+v", s)
			}
		})
	}
}
