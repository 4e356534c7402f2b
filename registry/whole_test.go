package registry_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/hubcache/hubcache/integration/hubtest"
	"github.com/hubcache/hubcache/registry"
)

// TestWhatClientsDoNotNeedIsNotMissing: a manifest is whole, and is served while the upstream
// is down, when what its clients need is cached. Foreign layers come from elsewhere, and many
// clients of artifacts don't ask for the config.
func TestWhatClientsDoNotNeedIsNotMissing(t *testing.T) {
	t.Parallel()
	const image, layer = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"
	const foreign, empty = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/vnd.oci.empty.v1+json"
	type blob struct {
		mediaType, content, more string
		asked                    bool // by the client
	}
	for _, c := range []struct {
		name   string
		blobs  []blob // the first one is the config
		pad    int
		status int
	}{
		{"a Windows image", []blob{{image, "c", "", true}, {foreign, "", `,"urls":["https://elsewhere.test/x"]`, false}, {layer, "l", "", true}}, 0, 200},
		{"a Windows image, and a layer is missing", []blob{{image, "c", "", true}, {foreign, "", `,"urls":["https://elsewhere.test/x"]`, false}, {layer, "l", "", true}, {layer, "m", "", false}}, 0, 503},
		{"an image without its config", []blob{{image, "c", "", false}, {layer, "l", "", true}}, 0, 503},
		{"an artifact with an empty config", []blob{{empty, "{}", "", false}, {"text/plain", "l", "", true}}, 0, 200},
		{"an artifact with nothing but annotations", []blob{{empty, "{}", "", false}, {empty, "{}", "", false}}, 0, 200},
		{"a chart", []blob{{"application/vnd.cncf.helm.config.v1+json", "c", "", false}, {"application/vnd.cncf.helm.chart.content.v1.tar+gzip", "l", "", true}}, 0, 200},
		{"a signature", []blob{{image, "c", "", false}, {"application/vnd.dev.cosign.simplesigning.v1+json", "l", "", true}}, 0, 200},
		{"an artifact with a large manifest", []blob{{empty, "{}", "", false}, {"text/plain", "l", "", true}}, 1 << 20, 200},
		{"half an artifact", []blob{{empty, "{}", "", false}, {"text/plain", "l", "", true}, {"text/plain", "m", "", false}}, 0, 503},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labOptions{})
				known := l.smallImage("library/whole", "1")
				l.pull(known)
				var ds, asked []string
				for _, b := range c.blobs {
					d := digest.FromString(b.content)
					if b.content != "" {
						l.hub.AddBlob("library/app", b.mediaType, []byte(b.content))
					}
					ds = append(ds, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, b.mediaType, d, len(b.content), b.more))
					if b.asked {
						asked = append(asked, string(d))
					}
				}
				body := fmt.Sprintf(`{"schemaVersion":2,"config":%s,"layers":[%s],"annotations":{"pad":%q}}`, ds[0], strings.Join(ds[1:], ","), strings.Repeat("x", c.pad))
				m := l.hub.AddManifest("library/app", "1", "application/vnd.oci.image.manifest.v1+json", []byte(body))
				if r := l.get("/v2/library/app/manifests/1"); r.status != 200 {
					t.Fatal(r.status)
				}
				for _, d := range asked {
					l.blob("library/app", d)
				}
				time.Sleep(2 * time.Minute)
				l.hub.Inject(hubtest.Match{}, hubtest.Hang())
				defer l.hub.ClearFaults()
				l.get(manifestPath(known)) // finds that upstream is down
				time.Sleep(5 * time.Second)
				for _, ref := range []string{"1", string(m.Digest)} {
					for _, method := range []string{"HEAD", "GET"} {
						if r := l.do(method, "/v2/library/app/manifests/"+ref); r.status != c.status || r.status == 200 && method == "GET" && !is(r.body, body) {
							t.Errorf("%s %s: %d instead of %d: %.300s", method, ref, r.status, c.status, r.body)
						}
					}
				}
			})
		})
	}
}

// TestReadAheadMakesImagesWhole: with the first layer, a small config is fetched too, which
// not all clients ask for. A foreign layer, which the upstream may not have, isn't, and neither
// is anything of a manifest that names more blobs than any image has.
func TestReadAheadMakesImagesWhole(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labOptions{policy: func(p *registry.Policy) { p.ReadAhead = true }})
		config := l.hub.AddBlob("library/app", "x", []byte("{}"))
		first := l.hub.AddBlob("library/app", "x", []byte("first"))
		foreign := digest.FromString("elsewhere")
		one := fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":2},"layers":[{"digest":%q,"size":9,"urls":["https://elsewhere.test/x"]},{"digest":%q,"size":5}]}`, config.Digest, foreign, first.Digest)
		l.hub.AddManifest("library/app", "1", "application/vnd.oci.image.manifest.v1+json", []byte(one))
		for range 2 { // from the upstream, and from memory
			l.get("/v2/library/app/manifests/1")
		}
		l.blob("library/app", string(first.Digest))
		l.drain()
		if _, ok := l.store.Has(config.Digest); !ok {
			t.Error("the config was not read ahead")
		}
		if n := len(l.hub.Ledger().Filter(func(e hubtest.Entry) bool { return strings.Contains(e.Path, foreign.Encoded()) })); n != 0 {
			t.Errorf("upstream was asked %d times for a layer that is elsewhere", n)
		}
		if strings.Contains(l.log.String(), "fetching a blob failed") {
			t.Errorf("%s", l.log)
		}

		var layers []string
		for n := range 1000 {
			d := l.hub.AddBlob("library/many", "x", fmt.Appendf(nil, "layer %d", n))
			layers = append(layers, fmt.Sprintf(`{"digest":%q,"size":%d}`, d.Digest, d.Size))
		}
		l.hub.AddManifest("library/many", "1", "application/vnd.oci.image.manifest.v1+json", fmt.Appendf(nil, `{"schemaVersion":2,"layers":[%s]}`, strings.Join(layers, ",")))
		l.get("/v2/library/many/manifests/1")
		l.hub.ResetLedger()
		l.blob("library/many", string(digest.FromString("layer 7")))
		l.drain()
		if n := l.hub.Ledger().BlobGETs(); n != 1 {
			t.Errorf("%d of 1000 layers were fetched for one", n)
		}
	})
}
