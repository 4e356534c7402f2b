package image

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// FuzzChildren: every child comes once, with a valid digest and size; and a manifest made of the
// children has the same children.
func FuzzChildren(f *testing.F) {
	d := digest.FromString("x")
	f.Add(fmt.Appendf(nil, `{"config":{"digest":%q,"size":3},"layers":[{"digest":%q,"size":3},{"digest":%q,"size":4}]}`, d, d, digest.FromString("y")))
	f.Add(fmt.Appendf(nil, `{"manifests":[{"digest":%q,"size":-3},{"digest":"sha256:../../etc","size":1}]}`, d))
	f.Add([]byte(`{"layers":{"digest":1}}`))
	f.Add([]byte(`{"layers":null,"manifests":[],"config":null}`))
	f.Add([]byte(`[[[[`))
	f.Add(fmt.Appendf(nil, `{"config":{"mediaType":7,"digest":%q,"size":3},"layers":[{"mediaType":"x","digest":%q,"size":3,"urls":["a"]}]}`, d, digest.FromString("y")))
	f.Fuzz(func(t *testing.T, body []byte) {
		children := Children(body)
		for d := range Dispensable(body) {
			if !slices.ContainsFunc(children, func(c Child) bool { return c.Digest == d }) {
				t.Errorf("%q: %s can be missing, and is no child", body, d)
			}
		}
		seen := map[digest.Digest]bool{}
		var again struct {
			Manifests []map[string]any `json:"manifests"`
			Config    map[string]any   `json:"config"`
			Layers    []map[string]any `json:"layers"`
		}
		for _, c := range children {
			if seen[c.Digest] || c.Size < 0 || c.Digest.Validate() != nil {
				t.Fatalf("%q: %+v", body, c)
			}
			seen[c.Digest] = true
			m := map[string]any{"digest": c.Digest, "size": c.Size}
			switch c.Role {
			case RoleManifest:
				again.Manifests = append(again.Manifests, m)
			case RoleConfig:
				again.Config = m
			case RoleLayer:
				again.Layers = append(again.Layers, m)
			default:
				t.Fatalf("role %d", c.Role)
			}
		}
		b, err := json.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		if got := Children(b); !reflect.DeepEqual(got, children) {
			t.Errorf("%q: %v, then %v", body, children, got)
		}
	})
}

// TestDispensable: what clients of a manifest can do without.
func TestDispensable(t *testing.T) {
	const config, layer = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"
	const dockerConfig, foreign = "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	empty := digest.FromString("{}")
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	d := func(mediaType string, d digest.Digest, more string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":3%s}`, mediaType, d, more)
	}
	for name, x := range map[string]struct {
		body string
		want []digest.Digest
	}{
		"an image":                       {`{"config":` + d(config, c, "") + `,"layers":[` + d(layer, a, "") + `,` + d(layer, b, "") + `]}`, nil},
		"an image of Docker":             {`{"config":` + d(dockerConfig, c, "") + `,"layers":[` + d("application/vnd.docker.image.rootfs.diff.tar.gzip", a, "") + `]}`, nil},
		"without media types":            {fmt.Sprintf(`{"config":{"digest":%q,"size":1},"layers":[{"digest":%q,"size":1}]}`, c, a), nil},
		"a foreign layer":                {`{"config":` + d(dockerConfig, c, "") + `,"layers":[` + d(foreign, a, `,"urls":["https://x"]`) + `,` + d(layer, b, "") + `]}`, []digest.Digest{a}},
		"a layer with urls":              {`{"config":` + d(config, c, "") + `,"layers":[` + d(layer, a, `,"urls": [ "https://x" ]`) + `]}`, []digest.Digest{a}},
		"no urls":                        {`{"config":` + d(config, c, "") + `,"layers":[` + d(layer, a, `,"urls":[ ]`) + `,` + d(layer, b, `,"urls":null`) + `]}`, nil},
		"one layer with and without":     {`{"layers":[` + d(layer, a, `,"urls":["https://x"]`) + `,` + d(layer, a, "") + `]}`, nil},
		"a chart":                        {`{"config":` + d("application/vnd.cncf.helm.config.v1+json", c, "") + `,"layers":[` + d("application/vnd.cncf.helm.chart.content.v1.tar+gzip", a, "") + `]}`, []digest.Digest{c}},
		"a signature":                    {`{"config":` + d(config, c, "") + `,"layers":[` + d("application/vnd.dev.cosign.simplesigning.v1+json", a, "") + `]}`, []digest.Digest{c}},
		"an empty config":                {`{"artifactType":"x/y","config":` + d("application/vnd.oci.empty.v1+json", empty, "") + `,"layers":[` + d("text/plain", a, "") + `]}`, []digest.Digest{empty}},
		"nothing but an annotation":      {`{"config":` + d("application/vnd.oci.empty.v1+json", empty, "") + `,"layers":[` + d("application/vnd.oci.empty.v1+json", empty, "") + `]}`, []digest.Digest{empty}},
		"a config that is a layer, too":  {`{"config":` + d("x/y", a, "") + `,"layers":[` + d("text/plain", a, "") + `]}`, nil},
		"an artifact of the candidates":  {`{"blobs":[` + d("text/plain", a, "") + `]}`, nil},
		"media types that are no string": {fmt.Sprintf(`{"config":{"mediaType":7,"digest":%q,"size":1,"urls":"x"},"layers":[]}`, c), nil},
		"no manifest":                    {`[]`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := Dispensable([]byte(x.body))
			for _, d := range x.want {
				if !got[d] {
					t.Errorf("%s is missing in %v", d, got)
				}
			}
			if len(got) != len(x.want) {
				t.Errorf("%v instead of %v", got, x.want)
			}
			if n := len(Children([]byte(x.body))); n == 0 && name != "no manifest" {
				t.Error("no children")
			}
		})
	}
}

// TestHostileManifestsCostLittle: none of them takes much memory or time, and none has children.
func TestHostileManifestsCostLittle(t *testing.T) {
	const limit = 4 << 20 // the largest body that the registry takes; these are larger
	fill := func(open, piece, end string) []byte {
		return []byte(open + strings.Repeat(piece, (5<<20-len(open)-len(end))/len(piece)) + end)
	}
	for name, body := range map[string][]byte{
		"a million layers":       fill(`{"layers":[{}`, `,{}`, `]}`),
		"a million manifests":    fill(`{"manifests":[{}`, `,{}`, `]}`),
		"a million configs":      fill(`{"x":1`, `,"config":{}`, `}`),
		"a million nulls":        fill(`{"blobs":[null`, `,null`, `]}`),
		"deep arrays":            fill(`{"layers":`, `[`, ``),
		"deep objects":           fill(``, `{"manifests":[{"config":`, ``),
		"deep in something else": fill(`{"annotations":`, `{"a":`, `1`),
		"one long string":        fill(`{"mediaType":"`, `x`, `"}`),
		"5 MiB of spaces":        fill(`{`, ` `, `}`),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if c := Children(body); len(c) > 0 {
			t.Errorf("%s: %d children", name, len(c))
		}
		if n := len(Dispensable(body)); n > 0 {
			t.Errorf("%s: %d children that can be missing", name, n)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 4*limit {
			t.Errorf("%s: %d MiB allocated", name, n>>20)
		}
	}
}
