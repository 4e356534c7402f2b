package registry_test

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

const mib = 1 << 20

func blobPath(repository string, d digest.Digest) string {
	return "/v2/" + repository + "/blobs/" + string(d)
}

// manifestPath is the path of a manifest by tag.
func manifestPath(img *hubtest.Image) string {
	return "/v2/" + img.Repository + "/manifests/" + img.Tag
}

// smallImage adds an image with two layers of 64 KiB.
func (l *lab) smallImage(repository, tag string) *hubtest.Image {
	return l.hub.AddImage(repository, tag, hubtest.ImageSpec{Layers: hubtest.Layers(2, 64<<10)})
}

// oneLayerImage adds an image with one layer of size bytes, and lets the registry fetch its
// manifest.
func (l *lab) oneLayerImage(size int64) (layer digest.Digest) {
	l.t.Helper()
	layer = l.addImage("library/one", "1", size)[0]
	if r := l.get("/v2/library/one/manifests/1"); r.status != 200 {
		l.t.Fatal(r.status)
	}
	l.hub.ResetLedger()
	return layer
}

// noise is random bytes, more than any test takes of them.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 33*mib)
	hubtest.Random(1<<40).ReadAt(b, 0)
	return b
})

// addImage adds an image with layers of these sizes and returns their digests. Layers with
// the same place and size are the same in all images.
func (l *lab) addImage(repository, tag string, sizes ...int64) (layers []digest.Digest) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = l.hub.AddBlob(repository, ocispec.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux"}`))
	for i, size := range sizes {
		m.Layers = append(m.Layers, l.hub.AddBlobAt(repository, ocispec.MediaTypeImageLayer, layerDigest(i, size), hubtest.Random(i), size))
		layers = append(layers, m.Layers[i].Digest)
	}
	b, err := json.Marshal(m)
	if err != nil {
		l.t.Fatal(err)
	}
	l.hub.AddManifest(repository, tag, m.MediaType, b)
	return layers
}

var layerDigests sync.Map // digests that layerDigest has computed

// layerDigest is the digest of the layer with index i and this size.
func layerDigest(i int, size int64) digest.Digest {
	key := [2]int64{int64(i), size}
	if d, ok := layerDigests.Load(key); ok {
		return d.(digest.Digest)
	}
	d, err := digest.FromReader(io.NewSectionReader(hubtest.Random(i), 0, size))
	if err != nil {
		panic(err) // it doesn't happen
	}
	layerDigests.Store(key, d)
	return d
}

// zeroImage adds an image with one layer that is all zeros, and lets the registry fetch its
// manifest. Zeros cost no time to make, so large layers are possible.
func (l *lab) zeroImage(repository string, size int64) digest.Digest {
	l.t.Helper()
	d := zeroDigest(size)
	layer := l.hub.AddBlobAt(repository, "application/vnd.oci.image.layer.v1.tar", d, zeroReader{}, size)
	m := fmt.Sprintf(`{"schemaVersion":2,"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`, layer.MediaType, d, size)
	l.hub.AddManifest(repository, "1", "application/vnd.oci.image.manifest.v1+json", []byte(m))
	if r := l.get("/v2/" + repository + "/manifests/1"); r.status != 200 || !strings.Contains(string(r.body), string(d)) {
		l.t.Fatal(r.status)
	}
	l.hub.ResetLedger()
	return d
}

// zeroDigest is the digest of size zeros.
func zeroDigest(size int64) digest.Digest {
	if d, ok := zeroDigests.Load(size); ok {
		return d.(digest.Digest)
	}
	h, piece := digest.SHA256.Hash(), make([]byte, mib)
	for left := size; left > 0; left -= mib {
		h.Write(piece[:min(left, mib)])
	}
	d := digest.NewDigest(digest.SHA256, h)
	zeroDigests.Store(size, d)
	return d
}

var zeroDigests sync.Map // digests that zeroDigest has computed

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (zeroReader) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

// cdnRequests are the requests for a blob that the CDN saw, in order of their ranges.
func (l *lab) cdnRequests(d digest.Digest) hubtest.Ledger {
	all := l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return e.Face == hubtest.CDN && e.Reference == string(d) })
	slices.SortFunc(all, func(a, b hubtest.Entry) int { return int(firstByteOf(a) - firstByteOf(b)) })
	return all
}

// firstByteOf is the offset at which a request's range begins.
func firstByteOf(e hubtest.Entry) (n int64) {
	fmt.Sscanf(e.Range, "bytes=%d-", &n)
	return n
}

// bodyBytes adds up the bytes of the bodies that were sent.
func bodyBytes(all hubtest.Ledger) (n int64) {
	for _, e := range all {
		n += e.BodyBytes
	}
	return n
}

// maxConcurrent is the largest number of requests that were running at one time.
func maxConcurrent(all hubtest.Ledger) (n int) {
	for _, e := range all {
		at := all.Count(func(o hubtest.Entry) bool { return !o.Started.After(e.Started) && o.Ended.After(e.Started) })
		n = max(n, at)
	}
	return n
}

// timeBlobs reads blobs at the same time and returns how long each took.
func (l *lab) timeBlobs(repository string, ds ...digest.Digest) []time.Duration {
	took := make([]time.Duration, len(ds))
	var wg sync.WaitGroup
	start := time.Now()
	for i, d := range ds {
		wg.Go(func() {
			resp, err := l.ask(l.t.Context(), "GET", blobPath(repository, d))
			if err != nil {
				l.t.Error(err)
				return
			}
			defer resp.Body.Close()
			if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != l.hub.Blob(d).Size() {
				l.t.Errorf("%d bytes of %d, %v", n, l.hub.Blob(d).Size(), err)
			}
			took[i] = time.Since(start)
		})
	}
	wg.Wait()
	return took
}

// timeWithLaterBlob reads a blob, and a second one that is asked for some time later. It
// returns how long the first took.
func (l *lab) timeWithLaterBlob(repository string, d digest.Digest, later time.Duration, repository2 string, d2 digest.Digest) (took time.Duration) {
	var wg sync.WaitGroup
	wg.Go(func() { took = l.timeBlobs(repository, d)[0] })
	time.Sleep(later)
	wg.Go(func() { l.timeBlobs(repository2, d2) })
	wg.Wait()
	return took
}

// throttledBody is a body of which n bytes can be read every 100 ms.
type throttledBody struct {
	io.ReadCloser
	n int
}

func (s throttledBody) Read(p []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return s.ReadCloser.Read(p[:min(len(p), s.n)])
}
