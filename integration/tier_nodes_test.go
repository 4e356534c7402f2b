//go:build integration

package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/integration/tiertest"
)

// tierLab is a bucket and a Redis, and what nodes need to share them. All ways between nodes, bucket and
// Redis can be made worse.
type tierLab struct {
	t                 *testing.T
	hub               *hubtest.Hub
	disk              string // of the bucket
	bucket, redis     *tiertest.Program
	toBucket, toRedis *tiertest.Proxy
	toNodes           []*tiertest.Proxy // in the order of their starts
	config            string
}

func newTierLab(t *testing.T) *tierLab { return newTierLabOn(t, t.TempDir(), hubtest.Options{}) }

// newTierLabOn keeps the bucket in the folder disk.
func newTierLabOn(t *testing.T, disk string, o hubtest.Options) *tierLab {
	l := &tierLab{t: t, disk: disk, hub: startHub(t, o), bucket: tiertest.StartVersityIn(t, disk), redis: tiertest.StartRedis(t)}
	l.toBucket, l.toRedis = tiertest.StartProxy(t, l.bucket.Addr), tiertest.StartProxy(t, l.redis.Addr)
	c := versityConfig(t, "http://"+l.toBucket.Addr)
	l.config = fmt.Sprintf("bucket: {endpoint: %q, name: %s, prefix: cache, path_style: true, access_key_file: %s, secret_key_file: %s}, lease: {redis: %q}",
		c.Endpoint, c.Name, c.AccessKeyFile, c.SecretKeyFile, l.toRedis.Addr)
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
	way := tiertest.StartProxy(l.t, addr)
	l.toNodes = append(l.toNodes, way)
	file := filepath.Join(l.t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("shared: {advertise: 'http://"+way.Addr+"', "+l.config+"}\n"), 0o600); err != nil {
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

// TestThreeNodesFetchAnImageOnce, and another one, empty and with the upstream down, serves it.
func TestThreeNodesFetchAnImageOnce(t *testing.T) {
	t.Parallel()
	l := newTierLab(t)
	nodes := []*server{l.node(""), l.node(""), l.node("")}
	img := l.hub.AddImage("library/app", "1", hubtest.ImageSpec{Layers: []hubtest.Layer{{Size: 100}, {Size: 1 << 20}, {Size: 5 << 20}}})
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
	tag := filepath.Join(l.disk, "data", tiertest.BucketName, "cache", "v1", "repos", "docker.io", img.Repository, "_tags", img.Tag)
	eventually(t, "the record of the tag", func() error { _, err := os.Stat(tag); return err })
	for _, n := range nodes {
		n.Stop()
	}
	fourth := l.start(serverOptions{Upstream: "http://127.0.0.1:1"}) // with an access token
	if err := l.pull(img, fourth); err != nil {
		t.Error(err)
	}
	if s := fourth.Stats().Shared; s.Bytes < sizeOf(img) {
		t.Errorf("not all came from the bucket: %+v", s)
	}
}
