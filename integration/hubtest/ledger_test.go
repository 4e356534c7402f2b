package hubtest_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// TestLedgerCountsWhatWasSent checks the ledger right after each of many complete bodies, and
// after a body whose client left.
func TestLedgerCountsWhatWasSent(t *testing.T) {
	onBoth(t, hubtest.Options{}, func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
		c, path, _ := faulty(t, hub, rt)
		for i := range 400 {
			hub.ResetLedger()
			n := int64(1 + i*4999%100_000)
			c.get("GET", faultyRepo, path, fmt.Sprintf("Range: bytes=0-%d", n-1))
			l := hub.Ledger()
			if last := l[len(l)-1]; l.BlobBytes() != n || last.Ended.IsZero() || last.Status != 206 {
				t.Fatalf("%d bytes in the ledger, want %d: %+v", l.BlobBytes(), n, last)
			}
		}

		hub.Inject(hubtest.Match{Face: hubtest.CDN}, hubtest.StallAfter(12_345))
		hub.ResetLedger()
		req, _ := http.NewRequest("GET", hub.RegistryURL()+"/v2/"+faultyRepo+"/"+path, nil)
		req.Header.Set("Authorization", "Bearer "+c.tokens[faultyRepo])
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(resp.Body, make([]byte, 12_345))
		resp.Body.Close()
		if err := hub.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := hub.Ledger().BlobBytes(); n != 12_345 {
			t.Errorf("%d bytes in the ledger, and 12,345 were sent", n)
		}
	})
}

func TestPullIsInTheLedger(t *testing.T) {
	onBoth(t, hubtest.Options{Accounts: []hubtest.Account{{Username: "alice", PAT: "secret"}}},
		func(t *testing.T, hub *hubtest.Hub, rt http.RoundTripper) {
			img := hub.AddImage("library/redis", "7", hubtest.ImageSpec{
				Layers: hubtest.Layers(2, 100_000), Platforms: []string{"linux/amd64", "linux/arm/v7"}, Attestations: true,
			})
			c := newClient(t, hub.RegistryURL(), rt)
			c.username, c.password = "alice", "secret"
			c.login("library/redis")

			head := c.get("HEAD", "library/redis", "manifests/7")
			if head.StatusCode != 200 || head.Header.Get("Docker-Content-Digest") != img.Digest.String() ||
				head.ContentLength != img.Descriptor.Size || head.Header.Get("Content-Type") != ocispec.MediaTypeImageIndex ||
				head.Header.Get("ETag") != `"`+img.Digest.String()+`"` || head.Header.Get("RateLimit-Remaining") != "200;w=21600" {
				t.Errorf("HEAD: %d %v", head.StatusCode, head.Header)
			}
			get := c.get("GET", "library/redis", "manifests/"+img.Digest.String())
			if string(get.body) != string(img.Bytes) || get.Header.Get("RateLimit-Remaining") != "199;w=21600" {
				t.Errorf("GET: %d %v", get.StatusCode, get.Header)
			}
			layer := img.Manifests[0].Layers[0]
			whole := c.get("GET", "library/redis", "blobs/"+layer.Digest.String())
			if digest.FromBytes(whole.body) != layer.Digest {
				t.Errorf("blob: %d, %d bytes", whole.StatusCode, len(whole.body))
			}
			part := c.get("GET", "library/redis", "blobs/"+layer.Digest.String(), "Range: bytes=1000-1999")
			if part.StatusCode != 206 || string(part.body) != string(whole.body[1000:2000]) ||
				part.Header.Get("Content-Range") != "bytes 1000-1999/100000" {
				t.Errorf("range: %d %v", part.StatusCode, part.Header)
			}

			d := hubtest.Short(layer.Digest.String())
			want := []string{
				"GET registry library/redis manifests/none range=- account=- → 401",
				"GET token library/redis token/pull range=- account=alice → 200",
				"HEAD registry library/redis manifests/7 range=- account=alice → 200",
				"GET registry library/redis manifests/" + hubtest.Short(img.Digest.String()) + " range=- account=alice → 200",
				"GET registry library/redis blobs/" + d + " range=- account=alice → 307",
				"GET cdn library/redis blobs/" + d + " range=- account=alice → 200",
				"GET registry library/redis blobs/" + d + " range=bytes=1000-1999 account=alice → 307",
				"GET cdn library/redis blobs/" + d + " range=bytes=1000-1999 account=alice → 206",
			}
			l := hub.Ledger()
			if got := l.Lines(); !slices.Equal(got, want) {
				t.Errorf("ledger:\n%s\nwant:\n%s", l, strings.Join(want, "\n"))
			}
			if l.ManifestGETs() != 1 || l.ManifestHEADs() != 1 || l.BlobGETs() != 2 || l.BlobBytes() != 101_000 || l.TokenRequests("alice") != 1 {
				t.Errorf("counts: %d %d %d %d", l.ManifestGETs(), l.ManifestHEADs(), l.BlobGETs(), l.BlobBytes())
			}
			if v := hub.Violations(); len(v) > 0 {
				t.Error(v)
			}
		})
}
