//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/dockertest"
	"github.com/hubcache/hubcache/integration/hubtest"
)

// manifestTypes are the media types that clients accept.
var manifestTypes = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, hubtest.DockerList, hubtest.DockerManifest}

// labClient is for requests that tests make themselves. It uses no proxy and has no limit on
// connections.
var labClient = &http.Client{Transport: &http.Transport{DialContext: labDial, DisableCompression: true, DisableKeepAlives: true}}

// labDial connects to loopback addresses and to networks of dockertest, which are not connected
// to any other network. It refuses all other addresses.
func labDial(ctx context.Context, network, addr string) (net.Conn, error) {
	if a, err := netip.ParseAddrPort(addr); err == nil && dockertest.Subnets.Contains(a.Addr()) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	return hubtest.Dial(ctx, network, addr)
}

// answer is a response with its whole body.
type answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// request makes a request and reads the whole answer. It returns an error if the connection
// fails, but not for any status.
func request(ctx context.Context, method, url string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return answer{}, err
	}
	req.Header["Accept"] = manifestTypes
	resp, err := labClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body}, err
}

// get makes a GET request. Any status but 200 fails the test. It must be called from the
// test's goroutine.
func get(t testing.TB, url string) answer {
	t.Helper()
	a, err := request(t.Context(), http.MethodGet, url)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", a.Status, a.Body)
	}
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return a
}

// pullImage pulls all platforms of an image from the registry at base. It returns an error if
// any byte differs from what the Hub has. reference is a tag or digest; "" is the image's own
// tag.
func pullImage(ctx context.Context, base string, img *hubtest.Image, reference string) error {
	if reference == "" {
		reference = img.Tag
	}
	errs := []error{pullManifest(ctx, base, img.Repository, reference, img.MediaType, img.Bytes)}
	if img.IsIndex {
		for _, m := range img.Manifests {
			errs = append(errs, pullManifest(ctx, base, img.Repository, m.Digest.String(), m.MediaType, m.Bytes))
		}
	}
	for _, b := range img.Blobs() {
		errs = append(errs, pullBlob(ctx, base, img.Repository, b))
	}
	return errors.Join(errs...)
}

func pullManifest(ctx context.Context, base, repository, reference, mediaType string, want []byte) error {
	url := base + "/v2/" + repository + "/manifests/" + reference
	a, err := request(ctx, http.MethodGet, url)
	switch {
	case err != nil:
		return err
	case a.Status != http.StatusOK:
		return fmt.Errorf("%s: %d %s", url, a.Status, a.Body)
	case a.Header.Get("Content-Type") != mediaType:
		return fmt.Errorf("%s: Content-Type %q, upstream has %q", url, a.Header.Get("Content-Type"), mediaType)
	case !bytes.Equal(a.Body, want):
		return fmt.Errorf("%s: %d bytes that differ from upstream's", url, len(a.Body))
	}
	return nil
}

// pullBlob reads a blob, checks its digest and discards it.
func pullBlob(ctx context.Context, base, repository string, b ocispec.Descriptor) error {
	url := base + "/v2/" + repository + "/blobs/" + b.Digest.String()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := labClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s %s", url, resp.Status, body)
	}
	got, err := digest.SHA256.FromReader(resp.Body)
	if err == nil && got != b.Digest {
		err = fmt.Errorf("bytes of digest %s", got)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	return nil
}

// runnableImage adds an image that runs a shell: a layer with busybox, and this many synthetic
// layers of size bytes each.
func runnableImage(t testing.TB, hub *hubtest.Hub, repository, tag string, layers int, size int64, spec hubtest.ImageSpec) *hubtest.Image {
	t.Helper()
	base, err := hubtest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	spec.Layers = slices.Concat([]hubtest.Layer{base}, hubtest.Layers(layers, size))
	if spec.Config.Cmd == nil {
		spec.Config.Cmd = []string{"/bin/sh"}
	}
	spec.Config.Env = append(spec.Config.Env, "PATH=/bin")
	return hub.AddImage(repository, tag, spec)
}

// upstreamGETs returns the requests that a second pull must not cause: GETs of manifests and
// blobs.
func upstreamGETs(hub *hubtest.Hub) hubtest.Ledger {
	return hub.Ledger().Filter(func(e hubtest.Entry) bool {
		return e.Method == http.MethodGet && (e.Kind == "blobs" || e.Kind == "manifests")
	})
}
